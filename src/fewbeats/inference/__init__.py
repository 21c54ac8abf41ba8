"""Network + Scan -> masks on the scan's own grid."""
