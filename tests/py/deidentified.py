"""Judges de-identified copies with pydicom, knowing nothing of how they were made.

  deidentified.py PAIRS.json    PAIRS is [[original, copy], ...]; prints {copy: [what is wrong, ...]} for those that are wrong

Every identifying value of the original, wherever it is nested, is looked for in every value of the copy.
"""

import json
import sys

import numpy
import pydicom

# Of these, every value identifies: persons, dates of persons, ids, places, free text.
IDENTIFYING = {
    "AccessionNumber", "AdmissionID", "AdditionalPatientHistory", "EthnicGroup", "ImageComments", "InstitutionAddress",
    "InstitutionName", "InstitutionalDepartmentName", "IssuerOfPatientID", "MilitaryRank", "Occupation", "OtherPatientIDs",
    "PatientAddress", "PatientBirthDate", "PatientComments", "PatientID", "PatientTelephoneNumbers",
    "PerformedProcedureStepDescription", "PerformedProcedureStepID", "ProtocolName", "RequestedProcedureDescription",
    "RequestedProcedureID", "ScheduledProcedureStepDescription", "SeriesDescription", "StationName", "StudyComments",
    "StudyDescription", "StudyID", "TextValue", "DeviceSerialNumber", "DerivationDescription",
}
# These stay by the table, and may say by themselves what an identifying attribute says, such as a maker's name or an organ.
KEPT = {
    "BodyPartExamined", "CodeMeaning", "ImageID", "ImageType", "Manufacturer", "ManufacturerModelName",
    "PositionReferenceIndicator", "SeriesNumber",
}
CHARS_MIN = 6


def secrets(original):
    """Values that must not survive, with where they are."""

    def visit(data_set):
        for element in data_set:
            if element.VR == "SQ":
                for item in element.value:
                    yield from visit(item)
                continue
            if element.tag.group == 0x7FE0 or element.VM == 0:
                continue
            values = element.value if element.VM > 1 else [element.value]
            if element.VR == "UI":
                values = [value for value in values if not str(value).startswith("1.2.840.10008.")]
            elif element.VR not in ("PN", "DA", "DT") and element.keyword not in IDENTIFYING and not (
                element.tag.is_private and element.VR in ("LO", "SH", "ST", "LT", "UT", "UN")
            ):
                continue
            for value in values:
                raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
                raw = raw.strip(b"\0 ")
                # Runs of one byte are not secrets, and occur anywhere.
                if CHARS_MIN <= len(raw) <= 1024 and len(set(raw)) > 3:
                    yield f"{element.tag} {element.name}", raw

    yield from visit(original)


def searched(copy):
    """The values of the copy in which secrets are looked for: all but what stays. Pixels hold anything by chance."""
    for element in list(copy.file_meta) + list(copy.iterall()):
        if element.VR == "SQ" or element.tag.group == 0x7FE0 or element.keyword in KEPT:
            continue
        yield element.value if isinstance(element.value, bytes) else str(element.value).encode("utf-8", "replace")


def pixels(data_set):
    try:
        return data_set.pixel_array
    except Exception:  # No pixels, or no decoder here.
        return None


def judge(original_path, copy_path):
    original = pydicom.dcmread(original_path)
    copy = pydicom.dcmread(copy_path)
    header = b"\n".join(searched(copy))
    wrong = [f"holds {where}" for where, raw in secrets(original) if raw in header]
    if copy.PatientIdentityRemoved != "YES" or copy.DeidentificationMethodCodeSequence[0].CodeValue != "113100":
        wrong.append("does not state the profile")
    if copy.SOPInstanceUID != copy.file_meta.MediaStorageSOPInstanceUID or copy.SOPClassUID != original.SOPClassUID:
        wrong.append("has another class or contradicts its meta information")
    if any(element.tag.is_private for element in copy.iterall()):
        wrong.append("has private elements")
    before, after = pixels(original), pixels(copy)
    if before is not None and (after is None or not numpy.array_equal(before, after)):
        wrong.append("shows another image")
    return wrong


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        pairs = json.load(file)
    verdicts = {copy: judge(original, copy) for original, copy in pairs}
    print(json.dumps({copy: wrong for copy, wrong in verdicts.items() if wrong}))


if __name__ == "__main__":
    main()
