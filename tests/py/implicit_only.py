"""Judges what a receiver gets that takes nothing but Implicit VR Little Endian, with pynetdicom, pydicom and its decoders, and dciodvfy.

    implicit_only.py PORT CALLED_AE FILE...

Sends each file as it is and gets it back by C-GET. Prints what it looked at and what is wrong as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
import warnings

import pydicom
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as StudyRootGet

from dicomweb_judge import LOSSLESS, compare_decoded, fail, pictures, prepared, send, Wrong

warnings.simplefilter("ignore")


def get(sent, port, called):
    """The object as it comes back; the counts of completed and failed sub-operations."""
    came = []

    def take(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        came.append(dataset)
        return 0x0000

    ae = AE(ae_title="IMPLICIT")
    ae.add_requested_context(StudyRootGet, ImplicitVRLittleEndian)
    ae.add_requested_context(sent.SOPClassUID, ImplicitVRLittleEndian)
    roles = [build_role(sent.SOPClassUID, scp_role=True)]
    association = ae.associate("127.0.0.1", port, ae_title=called, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, take)])
    if not association.is_established:
        raise Wrong("no association")
    asked = pydicom.Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    asked.StudyInstanceUID = sent.StudyInstanceUID
    status = None
    for status, _ in association.send_c_get(asked, StudyRootGet):
        pass
    association.release()
    return came, status


def complaints(dataset):
    """What dciodvfy calls an error, without places and numbers, which change with the encoding."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        dataset.save_as(file.name, enforce_file_format=True)
        said = subprocess.run(["dciodvfy", file.name], capture_output=True, timeout=60)
    lines = said.stderr.decode(errors="replace").splitlines()
    return {re.sub(r"0x[0-9a-f]+|[0-9]+", "#", line) for line in lines if line.startswith("Error")}


def judge(port, called, file, report):
    sent = prepared(file)
    if sent is None or not send(sent, port, called):
        return
    syntax = sent.file_meta.TransferSyntaxUID
    came, status = get(sent, port, called)
    if not came:
        report["refused"].append([syntax.name, file.rsplit("/", 1)[-1]])
        if status is None or status.get("NumberOfFailedSuboperations") != 1:
            fail("an object is missing and nobody says so", file, status)
        if syntax in LOSSLESS and pictures(sent) is not None and sent.get("BitsAllocated") != 1:
            fail("what pydicom decodes does not come", file)
        return
    [got] = came
    could_tell = compare_decoded(sent, got, file)
    report["came"] += 1
    if not syntax.is_encapsulated:
        return
    report["decoded"] += 1
    report["decoded like pydicom"] += could_tell
    if more := complaints(got) - complaints(sent):
        fail("dciodvfy finds more in the decoded object", file, sorted(more))
    report["verified"] += 1


def main():
    port, called, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    report = {"came": 0, "decoded": 0, "decoded like pydicom": 0, "verified": 0, "refused": [], "wrong": []}
    for file in files:
        try:
            judge(port, called, file, report)
        except Exception as error:
            report["wrong"].append(str(error) if isinstance(error, Wrong) else f"{file}: {error!r}")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
