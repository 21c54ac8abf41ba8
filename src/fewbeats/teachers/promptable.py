"""`onnx:FILE` in two parts: a promptable network, as Segment Anything, that a run tells where to look.

The card's `network` names the second part, which lies beside FILE, and how it is asked:

    network:
      size: [1024, 1024]
      spacing_mm: [0.25, 0.25]
      decoder: decoder.onnx
      prompt: box                     # or point
      prompter: synthetic             # run whose masks say where each structure is, slice by slice

The first part takes (1, C, Y, X) and gives an embedding. The second is Segment Anything's as exported
(Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643): image_embeddings, point_coords (x, y),
point_labels and, where it has them, mask_input, has_mask_input, orig_im_size give masks (1, n, Y, X), inside
above 0, and iou_predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, special

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.metrics import bounding_box

if TYPE_CHECKING:
    from fewbeats.inference.labeler import Labeler
    from fewbeats.scan import Scan
    from fewbeats.teachers.network import Feeding

CORNERS = (2, 3)
"""Labels of a box's first and last corner among the points; 1 is a point inside, -1 none."""


@dataclass(frozen=True)
class Prompted:
    """Both parts and who asks them; opened in the process that uses them."""

    encoder: Path
    decoder: Path
    feeding: Feeding
    values: Mapping[str, int]
    """Structure -> label value of the card."""
    prompter: Labeler

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for t, told in enumerate(self.prompter.label(scan)):
            yield self.segment(scan.frame(t), told.mask, scan.spacing_mm)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "parts"}

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        from fewbeats.models.export import open_session

        return open_session(self.encoder), open_session(self.decoder)

    def segment(
        self, frame: np.ndarray, told: np.ndarray, spacing_mm: tuple[float, float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label values of a frame (Z, Y, X), and how sure they are.

        Args:
            frame: gray values.
            told: the prompter's mask, in the `fewbeats` convention.
            spacing_mm: of both.
        """
        grid = self.feeding.lay(frame, spacing_mm)
        image, hints = grid.sample(self.feeding.scaled(frame)), grid.sample_labels(told)
        answers = [self.ask(plane.astype(np.float32), hint) for plane, hint in zip(image, hints)]
        return self.feeding.lay_back(grid, np.stack(answers, 1), frame.shape)

    def ask(self, image: np.ndarray, hint: np.ndarray) -> np.ndarray:
        """Probabilities (classes, Y, X) of a slice, from the prompter's hint (Y, X) of where structures are.

        A box round the wall holds the cavity, too: what is found in it is the wall where no cavity is found.
        """
        inside: dict[str, np.ndarray] = {}
        embedding = None
        for name in self.values:
            region = hint == FEWBEATS_VALUES[name]
            if not region.any():
                continue
            if name == "MYO" and self.feeding.prompt == "box":
                region = region | (hint == FEWBEATS_VALUES["LV"])
            if embedding is None:
                embedding = self._embed(image)
            inside[name] = special.expit(self._decode(embedding, region))
        if "MYO" in inside and "LV" in inside and self.feeding.prompt == "box":
            inside["MYO"] = inside["MYO"] * (1.0 - inside["LV"])
        scores = np.zeros((1 + max(self.values.values()), *image.shape), np.float32)
        for name, probability in inside.items():
            scores[self.values[name]] = probability
        scores[0] = 1.0 - scores[1:].max(0)
        return scores / scores.sum(0)

    def _embed(self, image: np.ndarray) -> np.ndarray:
        encoder = self.parts[0]
        asked = encoder.get_inputs()[0]
        channels = asked.shape[1] if isinstance(asked.shape[1], int) else 1
        return encoder.run(None, {asked.name: np.repeat(image[None, None], channels, 1)})[0]

    def _decode(self, embedding: np.ndarray, region: np.ndarray) -> np.ndarray:
        """Logits (Y, X) of what the network finds where a region (Y, X) is.

        Raises:
            InputError: the second part wants or gives something else than Segment Anything's.
        """
        decoder, (points, labels) = self.parts[1], self._prompt(region)
        side = 4 * embedding.shape[-1]  # of its low-resolution masks
        offered = {
            "image_embeddings": embedding,
            "point_coords": points,
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, side, side), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(region.shape, np.float32),
        }
        asked = [one.name for one in decoder.get_inputs()]
        if unknown := sorted(set(asked) - offered.keys()):
            raise InputError(f"{self.decoder}: wants '{unknown[0]}'; it takes {', '.join(offered)} at most")
        names = [one.name for one in decoder.get_outputs()]
        given = dict(zip(names, decoder.run(None, {name: offered[name] for name in asked})))
        masks = np.asarray(given.get("masks", given[names[0]]))
        if masks.ndim != 4 or masks.shape[2:] != region.shape:
            raise InputError(
                f"{self.decoder}: gave {masks.shape} for {region.shape} pixels; mend size in the card"
            )
        best = int(np.argmax(given["iou_predictions"][0])) if "iou_predictions" in given else 0
        return masks[0, best]

    def _prompt(self, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (1, N, 2) as x, y in pixels, and what each is (1, N)."""
        if self.feeding.prompt == "box":
            y, x = bounding_box(region)
            corners = [[x.start, y.start], [x.stop - 1, y.stop - 1]]
            return np.array([corners], np.float32), np.array([CORNERS], np.float32)
        depth = ndimage.distance_transform_edt(region)
        row, column = np.unravel_index(int(depth.argmax()), region.shape)
        nowhere = [[column, row], [0, 0]]  # without a box Segment Anything wants a padding point
        return np.array([nowhere], np.float32), np.array([[1, -1]], np.float32)
