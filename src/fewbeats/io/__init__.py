"""Files to scans and back: NIfTI and DICOM."""
