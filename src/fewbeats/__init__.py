"""fewbeats: cardiac image segmentation when labels are scarce. Research use only."""

__version__ = "0.1.0"
