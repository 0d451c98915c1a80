"""Reads an XDS-I.b manifest with pydicom and says as JSON what it names: evidence by series, content items, and what it says of itself."""

import json
import sys

import pydicom

data_set = pydicom.dcmread(sys.argv[1])
(study,) = data_set.CurrentRequestedProcedureEvidenceSequence
(title,) = data_set.ConceptNameCodeSequence
(template,) = data_set.ContentTemplateSequence
reference = lambda item: [str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)]
print(
    json.dumps(
        {
            "sop_class": data_set.SOPClassUID,
            "meta_sop_instance": data_set.file_meta.MediaStorageSOPInstanceUID,
            "sop_instance": data_set.SOPInstanceUID,
            "series": data_set.SeriesInstanceUID,
            "modality": data_set.Modality,
            "title": [title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning],
            "template": [template.MappingResource, template.TemplateIdentifier],
            "patient": [str(data_set.PatientName), data_set.PatientID, data_set.AccessionNumber],
            "study": [data_set.StudyInstanceUID, study.StudyInstanceUID],
            "made": data_set.ContentDate + data_set.ContentTime,
            "locations": sorted({series.RetrieveLocationUID for series in study.ReferencedSeriesSequence}),
            "evidence": {
                series.SeriesInstanceUID: [reference(item) for item in series.ReferencedSOPSequence]
                for series in study.ReferencedSeriesSequence
            },
            "content": [
                [item.RelationshipType, item.ValueType, *(reference(sop) for sop in item.ReferencedSOPSequence)]
                for item in data_set.ContentSequence
            ],
        }
    )
)
