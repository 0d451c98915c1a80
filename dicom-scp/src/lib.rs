//! DICOM services over dicom-ul.
