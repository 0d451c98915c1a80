"""Sends files as series of one study and says what pydicom decodes their first frames to, for viewers to be compared with.

    one_study.py DICOM_PORT CALLED_AE FILE...

Prints JSON: the study, and of each object that was taken its UIDs, its transfer syntax, and the SHA-256 of its values as 32-bit integers; none
where two decoders may differ or pydicom has none.
"""

import hashlib
import json
import sys

import numpy
import pydicom
from dicomweb_judge import LOSSLESS, prepared, send
from pydicom.uid import generate_uid

STUDY = generate_uid(entropy_srcs=["one study"])


def decoded(dataset):
    """The first frame's values; none where pydicom cannot decode them, as of a damaged object."""
    try:
        return numpy.ascontiguousarray(pydicom.pixels.pixel_array(dataset, index=0, raw=True))
    except Exception:
        return None


def is_comparable(dataset, file):
    if dataset.file_meta.TransferSyntaxUID not in LOSSLESS or dataset.get("BitsAllocated") not in (8, 16):
        return False
    # Colours of more than 8 bits become 8 in some viewers; of a codestream that contradicts the header decoders think differently.
    if dataset.SamplesPerPixel > 1 and dataset.BitsAllocated > 8 or "mismatch" in file:
        return False
    return dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2", "RGB")


def main():
    port, called, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    objects = []
    for file in files:
        sent = prepared(file)
        values = decoded(sent) if sent is not None and "PixelData" in sent else None
        if values is None:
            continue
        sent.StudyInstanceUID, sent.PatientID, sent.PatientName = STUDY, "VIEWED", "Viewed^Study"
        sent.StudyDate, sent.StudyDescription, sent.SeriesNumber = "20260101", "every kind", str(len(objects) + 1)
        sent.SeriesDescription = file.rsplit("/", 1)[-1]
        if not send(sent, port, called):
            continue
        objects.append(
            {
                "file": file,
                "series": sent.SeriesInstanceUID,
                "instance": sent.SOPInstanceUID,
                "syntax": sent.file_meta.TransferSyntaxUID,
                "values": hashlib.sha256(values.astype("<i4").tobytes()).hexdigest() if is_comparable(sent, file) else None,
            }
        )
    print(json.dumps({"study": STUDY, "objects": objects}))


if __name__ == "__main__":
    main()
