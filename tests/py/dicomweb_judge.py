"""Judges a DICOMweb server by files, with dicomweb-client, pydicom and its decoders: sends them, every other one over DIMSE, compares what comes
back, and sends what is told of them back as descriptions with bulk data.

    dicomweb_judge.py URL DICOM_PORT CALLED_AE FILE... < TOKEN

Prints what it looked at and what is wrong as JSON. Files often share UIDs; each is sent under UIDs of its own.
"""

import copy
import hashlib
import io
import json
import sys
import warnings

import numpy
import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.encaps import generate_frames
from pydicom.uid import UID, generate_uid
from pynetdicom import AE

warnings.simplefilter("ignore")
# Longer values are named and not written.
INLINE_BYTES_MAX = 16 * 1024
NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
LOSSLESS = NATIVE + ["1.2.840.10008.1.2.4." + tail for tail in ("57", "70", "80", "90")] + ["1.2.840.10008.1.2.5"]


class Wrong(Exception):
    pass


def fail(why, file, *about):
    raise Wrong(" ".join([why + ":", file, *map(str, about)])[:500])


def plain(element):
    """A value as both sides should have it: text without padding, numbers as numbers."""
    def one(value):
        if isinstance(value, pydicom.valuerep.PersonName):
            return str(value).rstrip("= ")
        if element.VR in ("DS", "IS", "FL", "FD"):
            try:
                return float(value)
            except (TypeError, ValueError):
                return str(value).strip()
        if isinstance(value, (int, float)):
            return value
        return str(value).strip(" \0") if value is not None else ""
    values = element.value if isinstance(element.value, (list, tuple, pydicom.multival.MultiValue)) else [element.value]
    if element.VR == "AT":
        return ["%08X" % int(value) for value in values]
    values = [one(value) for value in values]
    return [] if values in ([""], [None]) else values


def alike(a, b):
    if len(a) != len(b):
        return False
    return all(x == y or isinstance(x, float) and isinstance(y, float) and abs(x - y) <= 1e-6 * abs(x) for x, y in zip(a, b))


def same(sent, told, file, big_endian, where=""):
    """Every attribute that was sent and is not too long is told, with the same value."""
    looked_at = 0
    for element in sent:
        tag, path = element.tag, f"{where}/{element.tag}"
        if tag.element == 0 or tag >= 0x7FE00000:
            continue
        raw = element.value
        if isinstance(raw, bytes) and len(raw) > INLINE_BYTES_MAX or isinstance(raw, str) and len(raw) > INLINE_BYTES_MAX / 4:
            continue
        if tag not in told:
            fail("an attribute is missing", file, path, element)
        other = told[tag]
        if element.VR == "SQ":
            if len(element.value) != len(other.value):
                fail("a sequence has other items", file, path)
            for number, (a, b) in enumerate(zip(element.value, other.value)):
                looked_at += same(a, b, file, big_endian, f"{path}/{number}")
        elif tag == 0x00080005:
            pass
        elif other.VR != element.VR and (tag.is_private or {element.VR, other.VR} <= {"US", "SS", "OW"}):
            # Without VRs on the wire nobody can tell.
            pass
        elif other.VR == "UN":
            # What the server does not know the kind of it passes on as it is.
            pass
        elif isinstance(raw, bytes):
            # pydicom leaves words as they are in the file.
            words = "O" in element.VR and big_endian
            if bytes(other.value or b"") != raw and raw and not words:
                fail("a value differs", file, path, raw[:40], other.value)
        elif not alike(plain(element), plain(other)):
            fail("a value differs", file, path, plain(element), plain(other))
        looked_at += 1
    return looked_at


def frames_of(dataset):
    """The frames as they are in the file."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    return None


def native(dataset):
    """What native octets of the first frame are by pydicom's decoders; none where it cannot tell."""
    bits = dataset.get("BitsAllocated")
    if dataset.file_meta.TransferSyntaxUID not in LOSSLESS or bits not in (8, 16, 32) or "PixelData" not in dataset:
        return None
    if dataset.PhotometricInterpretation.startswith("YBR") and "422" in dataset.PhotometricInterpretation:
        return None
    if dataset.file_meta.TransferSyntaxUID in NATIVE[:2]:
        length = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * bits // 8
        # Of what was cut short nobody says what it should be.
        return dataset.PixelData[:length] if len(dataset.PixelData) >= length else None
    try:
        array = pydicom.pixels.pixel_array(dataset, index=0, raw=True)
    except Exception:  # what is damaged is judged by others
        return None
    if dataset.get("PlanarConfiguration") == 1 and array.ndim == 3:
        array = numpy.moveaxis(array, -1, 0)
    return numpy.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def prepared(file):
    """The object under UIDs of its own; none where pydicom cannot read it, or nobody could store it."""
    try:
        sent = pydicom.dcmread(file)
        for element in sent.iterall():
            plain(element)
        # Numbers that are none are passed on as text, which pydicom does not read.
        if any(element.VR == "IS" and isinstance(element.value, str) for element in sent.iterall()):
            return None
        if "SOPClassUID" not in sent or not UID(sent.get("StudyInstanceUID", "")).is_valid:
            return None
        name = hashlib.sha256(open(file, "rb").read()).hexdigest()
        sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID = (
            generate_uid(entropy_srcs=[name, level]) for level in ("study", "series", "instance")
        )
        sent.file_meta.MediaStorageSOPInstanceUID = sent.SOPInstanceUID
        sent.file_meta.TransferSyntaxUID
        return sent
    except Exception:
        return None


def send(sent, port, called):
    """Whether the server took it."""
    ae = AE(ae_title="JUDGE")
    ae.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return False
    try:
        return association.send_c_store(sent).get("Status") == 0
    except Exception:
        return False
    finally:
        association.release()


def store(client, sent):
    """Whether the server took it over HTTP."""
    try:
        outcome = client.store_instances([sent])
    except requests.HTTPError:
        return False
    return len(outcome.get("ReferencedSOPSequence", [])) == 1 and "FailedSOPSequence" not in outcome


def places(told):
    """Every attribute of a description that names bulk data, with its place."""
    for tag, attribute in told.items():
        if "BulkDataURI" in attribute:
            yield tag, attribute["BulkDataURI"]
        for item in attribute.get("Value") or []:
            if attribute.get("vr") == "SQ":
                yield from places(item)


def part(head, content):
    return b"--judge\r\n" + "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + content + b"\r\n"


def described(client, url, headers, file, sent, report):
    """What is told of an object makes an object that is the same but for its UIDs."""
    study, series, instance = sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID
    told = client.retrieve_instance_metadata(study, series, instance)
    encoded = frames_of(sent) if "PixelData" in sent else None
    if encoded is not None and len(encoded) > 20:
        return
    syntax = str(sent.file_meta.TransferSyntaxUID) if encoded is not None else "1.2.840.10008.1.2.1"
    parts = []
    for tag, uri in places(told):
        if tag == "7FE00010" and encoded is not None:
            contents = encoded
        else:
            accept = {"Accept": "application/octet-stream", **headers}
            contents = [requests.get(url.split("/dicomweb")[0] + uri, headers=accept, timeout=60).content]
        for content in contents:
            kind = f"application/octet-stream; transfer-syntax={syntax if tag == '7FE00010' else '1.2.840.10008.1.2.1'}"
            parts.append(part([f"Content-Type: {kind}", f"Content-Location: {uri}"], content))
    names = {"0020000D": generate_uid(), "0020000E": generate_uid(), "00080018": generate_uid()}
    for tag, uid in names.items():
        told[tag]["Value"] = [uid]
    description = part(["Content-Type: application/dicom+json"], json.dumps([told]).encode())
    kind = 'multipart/related; type="application/dicom+json"; boundary=judge'
    body = description + b"".join(parts) + b"--judge--\r\n"
    outcome = requests.post(url + "/studies", data=body, headers={"Content-Type": kind, **headers}, timeout=120)
    if outcome.status_code != 200:
        fail("a description is not taken", file, outcome.status_code, outcome.text)
    got = client.retrieve_instance(*names.values(), media_types=(("application/dicom", "*"),))
    if got.file_meta.TransferSyntaxUID != syntax:
        fail("a description became another transfer syntax", file, got.file_meta.TransferSyntaxUID)
    expected = copy.deepcopy(sent)
    expected.StudyInstanceUID, expected.SeriesInstanceUID, expected.SOPInstanceUID = names.values()
    same(expected, got, file, sent.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2")
    if encoded is not None:
        if [bytes(one) for one in frames_of(got)] != [bytes(one) for one in encoded]:
            fail("a described frame differs", file)
    elif sent.file_meta.TransferSyntaxUID != "1.2.840.10008.1.2.2" and got.get("PixelData") != sent.get("PixelData"):
        fail("described pixels differ", file)
    report["described"] += 1


def judge(client, file, sent, report):
    study, series, instance = sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID

    found = client.search_for_instances(search_filters={"SOPInstanceUID": instance})
    if len(found) != 1 or found[0]["0020000D"]["Value"] != [study]:
        fail("a search for the object", file, found)
    got = client.retrieve_instance(study, series, instance, media_types=(("application/dicom", "*"),))
    if got.file_meta.TransferSyntaxUID != sent.file_meta.TransferSyntaxUID:
        fail("another transfer syntax", file, got.file_meta.TransferSyntaxUID)
    if got.get("PixelData") != sent.get("PixelData"):
        fail("other pixels", file)

    told = client.retrieve_instance_metadata(study, series, instance)
    uris = []
    told = pydicom.Dataset.from_json(told, bulk_data_uri_handler=lambda tag, vr, uri: uris.append((tag, vr, uri)) or b"")
    big_endian = sent.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    report["attributes"] += same(sent, told, file, big_endian)
    report["objects"] += 1

    if "PixelData" not in sent:
        return
    encoded = frames_of(sent)
    if encoded is not None:
        numbers = list(range(1, len(encoded) + 1))[:20]
        stored = client.retrieve_instance_frames(
            study, series, instance, numbers, media_types=(("application/octet-stream", "*"),)
        )
        for number, one in zip(numbers, stored):
            if one != encoded[number - 1]:
                fail("a stored frame differs", file, number, len(one), len(encoded[number - 1]))
        report["stored frames"] += len(stored)
    expected = native(sent)
    if expected is not None:
        [one] = client.retrieve_instance_frames(
            study, series, instance, [1], media_types=(("application/octet-stream", "1.2.840.10008.1.2.1"),)
        )
        if one != expected:
            fail("a native frame differs", file, len(one), len(expected))
        report["native frames"] += 1


# What a decoded object may say otherwise.
OF_CODING = {0x00280004, 0x00280006, 0x00282110, 0x00880200}
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


def in_another(url, headers, sent, syntax):
    """The object in a transfer syntax, or in that which is the default (PS3.18 8.7.3.4); the words with which it is refused."""
    place = f"/studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}/instances/{sent.SOPInstanceUID}"
    accept = {"Accept": f"application/dicom; transfer-syntax={syntax}" if syntax else "application/dicom", **headers}
    answer = requests.get(url + place, headers=accept, timeout=120)
    if answer.status_code == 406:
        return answer.text
    answer.raise_for_status()
    got = pydicom.dcmread(io.BytesIO(answer.content))
    if syntax and got.file_meta.TransferSyntaxUID != syntax:
        fail("decoded into another transfer syntax", got.file_meta.TransferSyntaxUID)
    return got


def pictures(dataset):
    """All frames by pydicom's decoders, colour as RGB; none where it has none."""
    if "PixelData" not in dataset:
        return None
    try:
        return pydicom.pixels.pixel_array(dataset)
    except Exception:  # what is damaged, or that there is no decoder for
        return None


def difference(a, b):
    return numpy.abs(a.astype(numpy.int64) - b.astype(numpy.int64))


def compare_decoded(sent, got, file):
    """Of an object that was decoded for somebody: the same attributes but for those of its coding, and the same pixels. Whether pydicom could tell."""
    syntax = sent.file_meta.TransferSyntaxUID
    for tag in set(sent.keys()) - set(got.keys()):
        if tag not in OF_CODING and tag.element != 0 and tag.group != 0x7FE0:
            fail("decoding lost an attribute", file, tag)
    if added := set(got.keys()) - set(sent.keys()) - OF_CODING - {0x7FE00010}:
        fail("decoding added attributes", file, added)
    kept = copy.deepcopy(sent)
    for tag in OF_CODING:
        kept.pop(tag, None)
    same(kept, got, file, syntax == "1.2.840.10008.1.2.2")
    expected, ours = pictures(sent), pictures(got)
    if expected is None:
        return False
    if ours is None or ours.shape != expected.shape:
        fail("decoded pixels cannot be read", file, got.get("PhotometricInterpretation"), expected.shape)
    apart = difference(ours, expected)
    if syntax in LOSSLESS and apart.any():
        fail("decoded pixels differ", file, apart.max())
    # Some encoders wrote luminance and chroma and called it RGB, which pydicom believes.
    if syntax.startswith("1.2.840.10008.1.2.4.5") and sent.PhotometricInterpretation == "RGB":
        converted = pydicom.pixels.convert_color_space(expected, "YBR_FULL", "RGB")
        apart = min(apart, difference(ours, converted), key=numpy.mean)
    # Decoders of what was compressed with loss may round otherwise; colour is upsampled in several ways.
    if apart.mean() > 1.0:
        fail("decoded pixels are others", file, apart.mean(), apart.max())
    return True


def decoded(url, headers, file, sent, report):
    """What is decoded for a viewer without the codec is the same object with the same pixels."""
    syntax = sent.file_meta.TransferSyntaxUID
    got = in_another(url, headers, sent, EXPLICIT)
    default = in_another(url, headers, sent, None).file_meta.TransferSyntaxUID
    if default != (EXPLICIT if syntax in LOSSLESS and not isinstance(got, str) else default):
        fail("another default transfer syntax", file, default)
    if default not in (EXPLICIT, syntax):
        fail("a default transfer syntax that is neither", file, default)
    if isinstance(got, str):
        report["refused"].append([syntax.name, file.rsplit("/", 1)[-1], got[-160:]])
        if syntax in LOSSLESS and pictures(sent) is not None and sent.BitsAllocated > 1:
            fail("what pydicom decodes is refused", file, got)
        return
    could_tell = compare_decoded(sent, got, file)
    other = in_another(url, headers, sent, IMPLICIT)
    if isinstance(other, str) or other.get("PixelData") != got.get("PixelData"):
        fail("implicit and explicit differ", file)
    report["decoded" if syntax.is_encapsulated else "re-encoded"] += 1
    report["decoded like pydicom"] += could_tell and syntax.is_encapsulated


def main():
    url, port, called, files = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    headers = {"Authorization": f"Bearer {sys.stdin.readline().strip()}"}
    client = DICOMwebClient(url=url, headers=headers)
    report = {"objects": 0, "over http": 0, "described": 0, "attributes": 0, "stored frames": 0, "native frames": 0, "wrong": []}
    report |= {"decoded": 0, "re-encoded": 0, "decoded like pydicom": 0, "refused": []}
    for number, file in enumerate(files):
        sent = prepared(file)
        if sent is None:
            continue
        over_http = number % 2 == 0 and store(client, sent)
        if not over_http and not send(sent, port, called):
            continue
        try:
            if number % 2 == 0 and not over_http:
                fail("an object is taken over DIMSE alone", file)
            report["over http"] += over_http
            judge(client, file, sent, report)
            described(client, url, headers, file, sent, report)
            decoded(url, headers, file, sent, report)
        except Exception as error:
            report["wrong"].append(str(error) if isinstance(error, Wrong) else f"{file}: {error!r}")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
