"""Few labels and many unlabeled scans: methods that learn from both, one a file."""
