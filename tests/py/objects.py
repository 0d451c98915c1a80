"""Stores and retrieves DICOM files with pynetdicom, comparing data sets byte by byte.

  plan DIR...                       rounds of files without two objects of one SOP Instance UID, as JSON
  store HOST PORT AET FILES.json    C-STORE every file as it is; prints {path: status}
  get   HOST PORT AET FILES.json    C-GET every study; prints {path: "same" | what is wrong}
  move  HOST PORT AET FILES.json DESTINATION_AET LISTEN_PORT   the same by C-MOVE to a receiver of our own

The bytes sent and compared are those after the file meta information, never re-encoded.
"""

import json
import os
import sys
import tempfile
from collections import defaultdict

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as GET
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as MOVE

_config.STORE_SEND_CHUNKED_DATASET = True
_config.UNRESTRICTED_STORAGE_SERVICE = True


def describe(path):
    """What the bridge must make of a file: its identity, or why it is no legal object."""
    try:
        with open(path, "rb") as file:
            head = pydicom.dcmread(file, stop_before_pixels=True, force=False)
    except Exception as error:  # pydicom raises many kinds
        return {"path": path, "illegal": f"not a readable file: {type(error).__name__}"}
    file_meta = head.file_meta
    out = {"path": path}
    try:
        out["transfer_syntax"] = str(file_meta.TransferSyntaxUID)
        out["sop_class"] = str(head.SOPClassUID)
        out["sop_instance"] = str(head.SOPInstanceUID)
        out["study"] = str(head.StudyInstanceUID)
        out["series"] = str(head.SeriesInstanceUID)
        if not (UID(out["study"]).is_valid and UID(out["series"]).is_valid and UID(out["sop_instance"]).is_valid):
            out["illegal"] = "a UID is not valid"
    except (AttributeError, KeyError) as error:
        out["illegal"] = f"lacks {error}"
    out["start"] = data_set_start(path)
    return out


def data_set_start(path):
    with open(path, "rb") as file:
        file.seek(128 + 4)
        tag, vr, length = file.read(4), file.read(2), file.read(2)
        if tag != b"\x02\x00\x00\x00" or vr != b"UL" or length != b"\x04\x00":
            file.seek(132)
            return None
        return 144 + int.from_bytes(file.read(4), "little")


def data_set(entry):
    with open(entry["path"], "rb") as file:
        file.seek(entry["start"])
        return file.read()


def sendable(entry, folder):
    """A file whose meta information names what the data set holds; some test files' does not."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = entry["sop_class"]
    meta.MediaStorageSOPInstanceUID = entry["sop_instance"]
    meta.TransferSyntaxUID = entry["transfer_syntax"]
    meta.ImplementationClassUID = "2.25.1"
    path = os.path.join(folder, "object.dcm")
    with open(path, "wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(file, meta)
        file.write(data_set(entry))
    return path


def plan(directories):
    entries = []
    for directory in directories:
        for folder, _, names in sorted(os.walk(directory)):
            for name in sorted(names):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    if file.read(132)[128:] != b"DICM":
                        continue
                entries.append(describe(path))
    illegal = [entry for entry in entries if "illegal" in entry or entry.get("start") is None]
    rounds = []
    for entry in entries:
        if entry in illegal:
            continue
        for one in rounds:
            known = next((e for e in one if e["sop_instance"] == entry["sop_instance"]), None)
            if known is None:
                one.append(entry)
                break
            if data_set(known) == data_set(entry) and known["transfer_syntax"] == entry["transfer_syntax"]:
                break
        else:
            rounds.append([entry])
    return {"rounds": rounds, "illegal": illegal}


def associate(host, port, aet, contexts, **extra):
    ae = AE(ae_title="PYNET")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    for abstract, syntaxes in contexts:
        ae.add_requested_context(abstract, syntaxes)
    association = ae.associate(host, int(port), ae_title=aet, **extra)
    if not association.is_established:
        raise SystemExit("the association was not established")
    return association


def in_groups(items, size):
    items = list(items)
    return [items[i : i + size] for i in range(0, len(items), size)]


def store(host, port, aet, entries):
    result = {}
    by_context = defaultdict(list)
    for entry in entries:
        by_context[entry["sop_class"], entry["transfer_syntax"]].append(entry)
    with tempfile.TemporaryDirectory() as folder:
        for group in in_groups(by_context.items(), 100):
            association = associate(host, port, aet, [(cls, [syntax]) for (cls, syntax), _ in group])
            for entry in (entry for _, members in group for entry in members):
                try:
                    status = association.send_c_store(sendable(entry, folder))
                    result[entry["path"]] = status.Status if "Status" in status else "no answer"
                except Exception as error:  # told in the result, and failed on there
                    result[entry["path"]] = f"{type(error).__name__}: {error}"
            association.release()
    return result


def compare(entries, received):
    result = {}
    for entry in entries:
        found = received.get(entry["sop_instance"])
        if found is None:
            result[entry["path"]] = "not returned"
        elif found[0] != entry["transfer_syntax"]:
            result[entry["path"]] = f"returned in {found[0]}"
        else:
            result[entry["path"]] = "same" if found[1] == data_set(entry) else "other bytes"
    return result


def keeper(received):
    def keep(event):
        syntax = str(event.context.transfer_syntax)
        received[str(event.request.AffectedSOPInstanceUID)] = (syntax, event.request.DataSet.getvalue())
        return 0x0000

    return keep


def identifier(study):
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = study
    return query


def get(host, port, aet, entries):
    received = {}
    by_study = defaultdict(set)
    for entry in entries:
        by_study[entry["study"]].add((entry["sop_class"], entry["transfer_syntax"]))
    for study, wanted in by_study.items():
        for group in in_groups(sorted(wanted), 100):
            contexts = [(cls, [syntax]) for cls, syntax in group]
            roles = [build_role(cls, scp_role=True) for cls in {cls for cls, _ in group}]
            handlers = [(evt.EVT_C_STORE, keeper(received))]
            association = associate(
                host, port, aet, [(GET, None), *contexts], ext_neg=roles, evt_handlers=handlers
            )
            for _ in association.send_c_get(identifier(study), GET):
                pass
            association.release()
    return compare(entries, received)


def move(host, port, aet, entries, destination, listen):
    received = {}
    receiver = AE(ae_title=destination)
    for cls in {entry["sop_class"] for entry in entries}:
        receiver.add_supported_context(cls, sorted({e["transfer_syntax"] for e in entries if e["sop_class"] == cls}))
    server = receiver.start_server(
        ("127.0.0.1", int(listen)), block=False, evt_handlers=[(evt.EVT_C_STORE, keeper(received))]
    )
    try:
        for study in {entry["study"] for entry in entries}:
            association = associate(host, port, aet, [(MOVE, None)])
            for _ in association.send_c_move(identifier(study), destination, MOVE):
                pass
            association.release()
    finally:
        server.shutdown()
    return compare(entries, received)


def main(arguments):
    command, *rest = arguments
    if command == "plan":
        print(json.dumps(plan(rest)))
        return
    host, port, aet, files, *rest = rest
    with open(files) as file:
        entries = json.load(file)
    print(json.dumps({"store": store, "get": get, "move": move}[command](host, port, aet, entries, *rest)))


if __name__ == "__main__":
    main(sys.argv[1:])
