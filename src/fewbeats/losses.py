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


def contrastive_loss(embeddings: Tensor, positives: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE with any number of positives an anchor.

    For anchor i with positives P(i): -1 / |P(i)| sum over p in P(i) of
    log(exp(s_ip / t) / sum over a != i of exp(s_ia / t)), s the cosine similarity; the mean over all anchors
    that have a positive. With the other view as the only positive it is NT-Xent (Chen et al., SimCLR, eq. 1),
    with slices of near position it is PCL's (Zeng et al., MICCAI 2021).

    Args:
        embeddings: (N, D), of any length.
        positives: (N, N) bool; the diagonal is ignored.
        temperature: t.

    Returns:
        scalar.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    with torch.autocast(unit.device.type, enabled=False):
        similarity = (unit @ unit.T / temperature).masked_fill(own, float("-inf"))
    log_share = similarity.log_softmax(1).masked_fill(own, 0.0)
    wanted = positives & ~own
    count = wanted.sum(1)
    per_anchor = -(log_share * wanted).sum(1) / count.clamp_min(1)
    return per_anchor[count > 0].mean()
