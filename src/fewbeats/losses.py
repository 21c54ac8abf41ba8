"""Pure loss functions on logits and targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def dice_ce_loss(logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Soft Dice, pooled over the batch, plus cross-entropy (Isensee et al., Nature Methods 2021).

    Where a sample's labels do not speak of a class, that class is merged into its background: neither a
    present nor an absent structure is punished there (marginal loss, Shi et al., MedIA 2021).

    Args:
        logits: (B, 1 + C, ...) scores, class 0 is background.
        target: (B, ...) class indices.
        annotated: (B, C) bool, None where all labels speak of all classes.

    Returns:
        scalar; 0.5 Dice loss + 0.5 cross-entropy.
    """
    log_probabilities = logits.float().log_softmax(1)
    known = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if annotated is not None and not bool(annotated.all()):
        known[:, 1:] = annotated
        log_probabilities = _merge_into_background(log_probabilities, known)
    ce = F.nll_loss(log_probabilities, target)
    probabilities = log_probabilities.exp()
    onehot = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1.0)
    sees = known.view(*known.shape, *[1] * (logits.ndim - 2)).float()
    axes = [0, *range(2, logits.ndim)]
    overlap = (probabilities * onehot * sees).sum(axes)
    total = ((probabilities + onehot) * sees).sum(axes)
    dice = (2 * overlap[1:] + 1e-5) / (total[1:] + 1e-5)
    present = known[:, 1:].any(0)
    dice_loss = 1 - dice[present].mean() if bool(present.any()) else logits.new_zeros(())
    return 0.5 * dice_loss + 0.5 * ce


def _merge_into_background(log_probabilities: Tensor, known: Tensor) -> Tensor:
    """Add the probability of unknown classes to class 0; unknown classes keep a harmless -inf-free value."""
    shape = (*known.shape, *[1] * (log_probabilities.ndim - 2))
    unknown = ~known.view(shape)
    unknown[:, 0] = True  # background itself joins the sum
    background = log_probabilities.masked_fill(~unknown, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([background, log_probabilities[:, 1:]], 1)
