"""Compares rendered frames with what pydicom makes of the same files.

Usage: samples_against_pydicom.py DIRECTORY, where DIRECTORY/index.tsv has one line per rendering:
path, frame, width, height, channels, name of the file with the raw samples. Exits 1 on any difference that rounding or
a lossy codec does not explain. Grey frames are windowed here independently of the program under test.
"""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

warnings.simplefilter("ignore")
# Says RGB, holds subsampled YCbCr without markers; pydicom shows the chroma as colour.
MISLABELLED = {"SC_rgb_jpeg_lossy_gdcm.dcm"}
LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.81"}


def group(ds, frame, sequence):
    for holder in (
        [ds.PerFrameFunctionalGroupsSequence[frame]] if "PerFrameFunctionalGroupsSequence" in ds else []
    ) + ([ds.SharedFunctionalGroupsSequence[0]] if "SharedFunctionalGroupsSequence" in ds else []):
        if sequence in holder and len(holder[sequence].value):
            return holder[sequence].value[0]
    return ds


def first(value):
    return value[0] if isinstance(value, pydicom.multival.MultiValue) else value


def grey(ds, frame, raw):
    mask = np.zeros(raw.shape, bool)
    padding = ds.get("PixelPaddingValue")
    if padding is not None and raw.dtype.kind in "iu":
        limit = ds.get("PixelPaddingRangeLimit", padding)
        mask = (raw >= min(padding, limit)) & (raw <= max(padding, limit))
    transformation = group(ds, frame, "PixelValueTransformationSequence")
    if ds.get("ModalityLUTSequence"):
        values = apply_modality_lut(raw, ds).astype(np.float64)
    else:
        values = raw.astype(np.float64) * float(transformation.get("RescaleSlope", 1)) + float(
            transformation.get("RescaleIntercept", 0)
        )
    plain = np.array_equal(values, raw.astype(np.float64))
    voi = group(ds, frame, "FrameVOILUTSequence")
    if ds.get("VOILUTSequence"):
        item = ds.VOILUTSequence[0]
        count, begin, bits = item.LUTDescriptor
        data = np.asarray(item.LUTData if not isinstance(item.LUTData, bytes) else np.frombuffer(item.LUTData, "<u2"))
        out = data[np.clip(np.rint(values).astype(int) - begin, 0, (count or 65536) - 1)] / float(2**bits - 1)
    elif voi.get("WindowWidth") not in (None, "") and voi.get("WindowCenter") not in (None, ""):
        c, w = float(first(voi.WindowCenter)), float(first(voi.WindowWidth))
        out = np.clip((values - (c - 0.5)) / max(w - 1, 1e-9) + 0.5, 0, 1)
    elif ds.get("BitsStored", 32) <= 8 and plain and ds.get("SegmentationType") != "LABELMAP":
        low = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
        out = (values - low) / (2**ds.BitsStored - 1)
    else:
        seen = values[~mask & np.isfinite(values)]
        low, high = (seen.min(), seen.max()) if seen.size else (0, 0)
        out = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        out = 1 - out
    out = np.where(mask, 0, out)
    return np.clip(np.floor(out * 255 + 0.5), 0, 255)


def expected(path, frame):
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        big = not ds.original_encoding[1]
        name = "ExplicitVRBigEndian" if big else "ImplicitVRLittleEndian" if ds.original_encoding[0] else "ExplicitVRLittleEndian"
        ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
    many = int(ds.get("NumberOfFrames", 1) or 1) > 1
    raw = ds.pixel_array if not many else pixel_array(ds, index=frame) if "PixelData" in ds else ds.pixel_array[frame]
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        out = apply_color_lut(raw, ds)
        return ds, out >> 8 if out.dtype.itemsize == 2 and out.max() > 255 else out
    if raw.ndim == 3:
        full = 2**ds.BitsStored - 1
        return ds, np.floor(raw.astype(np.float64) * 255 / full + 0.5)
    return ds, grey(ds, frame, raw)


def main(directory):
    bad = same = skipped = 0
    for line in (directory / "index.tsv").read_text().splitlines():
        path, frame, width, height, channels, name = line.split("\t")
        width, height, channels = int(width), int(height), int(channels)
        ours = np.fromfile(directory / name, np.uint8).astype(int)
        ours = ours.reshape(height, width, 3) if channels == 3 else ours.reshape(height, width)
        try:
            ds, theirs = expected(path, int(frame))
        except Exception as error:  # what pydicom cannot decode tells nothing about us
            print("UNKNOWN", path, type(error).__name__, str(error)[:90])
            skipped += 1
            continue
        if Path(path).name in MISLABELLED or ds.get("PixelPresentation") in ("COLOR", "MIXED"):
            print("NOT COMPARED", path)
            skipped += 1
            continue
        if theirs.shape != ours.shape:
            stretched = theirs.shape[:2] != ours.shape[:2]
            print("STRETCHED" if stretched else "DIFFERS", path, ours.shape, theirs.shape)
            bad += not stretched
            continue
        difference = np.abs(theirs - ours)
        lossy = ds.file_meta.TransferSyntaxUID in LOSSY or ds.PhotometricInterpretation.startswith("YBR")
        allowed = 6 if lossy else 1
        if difference.max() > allowed and not (lossy and difference.mean() < 1.0):
            print("DIFFERS", path, "frame", frame, "max", difference.max(), "mean", round(float(difference.mean()), 2),
                  ds.file_meta.TransferSyntaxUID.name, ds.PhotometricInterpretation)
            bad += 1
        else:
            same += 1
    print(f"{same} agree, {skipped} unknown, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
