"""The next two nouns: a `Sample` (one frame on the network's grid) and a `Batch` (what a method is given)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fewbeats.clock import Clock

UNKNOWN = -1
"""Class of what nobody tells."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One frame of one scan, resampled and normalized; its arrays may lie on disk until they are indexed."""

    image: Any
    """(Z, Y, X) float16, zero mean and unit variance in the field of view, 0 outside; read where indexed."""
    mask: Any
    """(Z, Y, X) uint8 class indices, 0 background, None where unlabeled."""
    annotated: tuple[bool, ...]
    """For each class after background, whether the labels speak of it."""
    subject: str
    scan: str
    frame: int
    source: str
    """Where the labels come from: "manual", "teacher", "pseudo", "" where there are none."""
    spacing_mm: tuple[float, float, float]
    """(z, y, x) of the scan's own grid."""
    order: int = 0
    """1 where the base comes first, -1 where the apex does, 0 where the direction is unknown."""
    weight: Any = None
    """(Z, Y, X) uint8, 255 of a voxel that counts in full; None where all do."""
    key: str = ""
    """Digest of the content it was made from and of the settings that made it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Everything a method may look at, by name."""

    views: dict[str, torch.Tensor]
    """Name -> (B, C, Y, X) or (B, C, Z, Y, X) float32; views may differ in size."""
    target: torch.Tensor | None = None
    """(B, [Z,] Y, X) class indices, or soft masks with a class axis after B; (B,) classes of whole images."""
    annotated: torch.Tensor | None = None
    """(B, C) bool: the labels of this sample speak of class c + 1."""
    weight: torch.Tensor | None = None
    """(B,) of samples or (B, [Z,] Y, X) of voxels, in the loss."""
    labeled: torch.Tensor | None = None
    """(B,) bool: the sample has a label, None where all have; of the others `target` says nothing."""
    position: torch.Tensor | None = None
    """(B,) share of the stack's height, 0 to 1, from base to apex where `directed`; NaN where not told."""
    directed: torch.Tensor | None = None
    """(B,) bool: the direction of the stack is known."""
    place: torch.Tensor | None = None
    """(B, Y, X, 3): x and y of each pixel in the middle of the stored slice, normalized, and 0 where it is
    blanked, else 1; see `transforms.views.follow`."""
    scan: torch.Tensor | None = None
    """(B,) number of the stack in its table: an unlabeled scan, or a labeled frame."""
    subject: tuple[str, ...] = ()
    frame: tuple[int, ...] = ()
    source: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "to")
        }
        views = {name: view.to(device, non_blocking=True) for name, view in self.views.items()}
        return replace(self, views=views, **moved)

    @property
    def label_weight(self) -> torch.Tensor | None:
        """`weight` with 0 for samples without a label; None where all count alike."""
        if self.labeled is None or self.weight is None:
            return self.weight if self.labeled is None else self.labeled.float()
        axes = [1] * (self.weight.ndim - 1)
        return self.weight * self.labeled.view(-1, *axes)

    def split(self, parts: int) -> Iterator[tuple[Batch, float]]:
        """Parts of about equal size, every n-th item in each, and the share of the items in each.

        So labeled items, which come first in a mixture, are spread over the parts.

        Raises:
            ValueError: more parts than items.
        """
        if parts == 1:
            yield self, 1.0
            return
        items = len(next(iter(self.views.values())))
        if parts > items:
            raise ValueError(f"{parts} parts of a batch of {items}")
        for part in range(parts):
            own = range(part, items, parts)
            yield self.select(own), len(own) / items

    def select(self, items: Sequence[int]) -> Batch:
        """Some of its samples, by number."""
        chosen: dict[str, Any] = {"views": {name: view[list(items)] for name, view in self.views.items()}}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                chosen[f.name] = tuple(value[i] for i in items) if value else ()
            elif value is not None and f.name != "views":
                chosen[f.name] = value[list(items)]
        return replace(self, **chosen)


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Several batches as one; samples of a part without `target` are unlabeled in it.

    Args:
        parts: with views of the same names and sizes.
    """
    import torch

    counts = [len(next(iter(part.views.values()))) for part in parts]
    joined: dict[str, Any] = {}
    for f in fields(Batch):
        values = [getattr(part, f.name) for part in parts]
        known = next((v for v in values if v is not None), None)
        if f.name == "views":
            joined["views"] = {name: torch.cat([v[name] for v in values]) for name in values[0]}
        elif isinstance(known, tuple):
            joined[f.name] = tuple(item for value in values for item in value)
        elif known is not None:
            missing = [known.new_zeros(n, *known.shape[1:]) for n in counts]
            joined[f.name] = torch.cat([m if v is None else v for v, m in zip(values, missing)])
    told = [part.target is not None for part in parts]
    return Batch(**joined | {"labeled": torch.tensor(told).repeat_interleave(torch.tensor(counts))})


Batches = Callable[["Clock"], Batch]
"""The batch of a step and process; the same one whenever it is asked."""
