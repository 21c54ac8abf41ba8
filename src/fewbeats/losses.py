"""Pure loss functions on logits and targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbeats.sample import Batch


def dice_ce_loss(
    logits: Tensor, target: Tensor, annotated: Tensor | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """Soft Dice, pooled over the batch, plus cross-entropy (Isensee et al., Nature Methods 2021).

    Where a sample's labels do not speak of a class, that class is merged into its background: neither a
    present nor an absent structure is punished there (marginal loss, Shi et al., MedIA 2021). Both terms are
    means over what has weight: samples of weight 0, and such as speak of no class, change neither.

    Args:
        logits: (B, 1 + C, ...) scores, class 0 is background.
        target: (B, ...) class indices, or (B, 1 + C, ...) soft masks that sum to 1 over the classes.
        annotated: (B, C) bool, None where all labels speak of all classes.
        weight: (B,) of samples or (B, ...) of voxels, None where all count alike.

    Returns:
        scalar; 0.5 Dice loss + 0.5 cross-entropy, 0 where nothing has weight.

    >>> logits = torch.tensor([[[4.0, -4.0]], [[-4.0, 4.0]]]).transpose(0, 1)  # one sample, two voxels
    >>> sure = dice_ce_loss(logits, torch.tensor([[0, 1]]))
    >>> soft = dice_ce_loss(logits, torch.eye(2)[None])
    >>> bool(sure < 0.01), torch.equal(sure, soft)
    (True, True)
    """
    log_probabilities = logits.float().log_softmax(1)
    soft = target.float() if target.ndim == logits.ndim else _one_hot(target, log_probabilities)
    known = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if annotated is not None and not bool(annotated.all()):
        known[:, 1:] = annotated
        log_probabilities = _merge_into_background(log_probabilities, known)
        soft = _merge_soft(soft, known)
        told = known[:, 1:].any(1)
        if not bool(told.all()):
            weight = told.float() if weight is None else weight * _like(told, weight)
    counts = _like(known.float(), logits) * (1.0 if weight is None else _like(weight, logits[:, 0])[:, None])
    axes = [0, *range(2, logits.ndim)]
    probabilities = log_probabilities.exp()
    overlap = (probabilities * soft * counts).sum(axes)
    total = ((probabilities + soft) * counts).sum(axes)
    dice = (2 * overlap[1:] + 1e-5) / (total[1:] + 1e-5)
    present = counts[:, 1:].flatten(2).any(2).any(0)
    dice_loss = 1 - dice[present].mean() if bool(present.any()) else logits.new_zeros(())
    return 0.5 * dice_loss + 0.5 * _cross_entropy(log_probabilities, target, soft, weight)


def _cross_entropy(log_probabilities: Tensor, target: Tensor, soft: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over voxels, by weight."""
    if weight is None and target.ndim < log_probabilities.ndim:
        return F.nll_loss(log_probabilities, target)
    each = -(soft * log_probabilities).sum(1)
    weights = _like(torch.ones_like(each[:, :1]) if weight is None else weight, each).expand_as(each)
    return (each * weights).sum() / weights.sum().clamp_min(1e-8)


def _one_hot(target: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, target[:, None], 1.0)


def _like(values: Tensor, other: Tensor) -> Tensor:
    """`values` with axes of length 1 behind, as many as `other` has."""
    return values.reshape(*values.shape, *[1] * (other.ndim - values.ndim))


def _merge_soft(soft: Tensor, known: Tensor) -> Tensor:
    """Add the share of unknown classes to class 0."""
    unknown = _like(~known, soft)
    background = soft[:, :1] + (soft * unknown).sum(1, keepdim=True)
    return torch.cat([background, soft[:, 1:] * ~unknown[:, 1:]], 1)


def _merge_into_background(log_probabilities: Tensor, known: Tensor) -> Tensor:
    """Add the probability of unknown classes to class 0; unknown classes keep a harmless -inf-free value."""
    shape = (*known.shape, *[1] * (log_probabilities.ndim - 2))
    unknown = ~known.view(shape)
    unknown[:, 0] = True  # background itself joins the sum
    background = log_probabilities.masked_fill(~unknown, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([background, log_probabilities[:, 1:]], 1)


def supervised_loss(logits: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
    """`dice_ce_loss` of a batch's labeled samples, over all scales (deep supervision).

    Args:
        logits: (B, 1 + C, [Z,] Y, X), or several of them, finest first; their weights halve.
        batch: coarser scales see its target by nearest neighbor.

    Returns:
        scalar; 0 where nothing is labeled.
    """
    scales: list[Tensor] = [logits] if isinstance(logits, Tensor) else list(logits)
    if batch.target is None:
        return scales[0].sum() * 0.0  # of a batch without any label
    shares, loss, weight = [0.5**i for i in range(len(scales))], scales[0].new_zeros(()), batch.label_weight
    for share, scale in zip(shares, scales):
        target, own = _shrink(batch.target, scale), None if weight is None else _shrink(weight, scale)
        loss = loss + share * dice_ce_loss(scale, target, batch.annotated, weight=own)
    return loss / sum(shares)


def _shrink(values: Tensor, logits: Tensor) -> Tensor:
    """Class indices, soft masks or weights at the resolution of coarser logits; weights of samples as are."""
    size = logits.shape[2:]
    if values.ndim == 1 or values.shape[-len(size) :] == size:
        return values
    channels = values if values.ndim == logits.ndim else values[:, None]
    small = F.interpolate(channels.float(), size=size, mode="nearest").to(values.dtype)
    return small if values.ndim == logits.ndim else small[:, 0]


def soft_dice_kl(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of all classes, pooled over batch and space, plus KL(target || prediction) over all elements.

    As in the release of M&N (Yeung et al., 2025): squared denominators; of one-hot targets the second term is
    the cross-entropy over the number of classes.

    Args:
        logits: (B, C, ...).
        target: (B, C, ...) probabilities.

    Returns:
        scalar.
    """
    log_probabilities = logits.float().log_softmax(1)
    probabilities = log_probabilities.exp()
    axes = [0, *range(2, logits.ndim)]
    overlap = (probabilities * target).sum(axes)
    total = probabilities.square().sum(axes) + target.square().sum(axes)
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    return 1 - dice.mean() + F.kl_div(log_probabilities, target, reduction="none").mean()


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

    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # a, b and again a, b
    >>> pairs = torch.eye(2, dtype=torch.bool).repeat(2, 2)
    >>> round(float(contrastive_loss(views, pairs, temperature=1.0)), 4)  # -log e / (e + 2)
    0.5514
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
