"""Scan -> network grid and back; augmentation in batched tensor operations."""
