"""Files to scans and back: NIfTI and DICOM."""

import sys

# nibabel imports pydicom, which imports requests where that is installed, whose urllib3 opens a socket to see
# whether there is IPv6. Nothing here downloads anything, so it is not let in.
if "pydicom" not in sys.modules and "requests" not in sys.modules:
    sys.modules["requests"] = None  # type: ignore[assignment]
    try:
        import pydicom  # noqa: F401
    finally:
        del sys.modules["requests"]
