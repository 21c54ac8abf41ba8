"""One frame on the network's grid -> the network's input, in training and prediction alike."""

from __future__ import annotations

import numpy as np


def cut_inputs(image: np.ndarray, *, dims: int, context: int = 0, multiple: int = 1) -> np.ndarray:
    """One frame (Z, Y, X) as the network takes it.

    Args:
        image: (Z, Y, X).
        dims: 2 or 3, of the network.
        context: neighboring slices on each side that a 2D network is given as channels.
        multiple: of slices that a 3D network needs.

    Returns:
        (Z, 1 + 2 context, Y, X) in 2D, the last slice repeated beyond the stack; (1, 1, Z', Y, X) in 3D,
        empty slices added at both ends.
    """
    slices = len(image)
    if dims == 3:
        missing = -slices % multiple
        return np.pad(image, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))[None, None]
    around = np.clip(np.arange(slices)[:, None] + np.arange(-context, context + 1), 0, slices - 1)
    return image[around]
