"""`onnx:FILE` in two parts: a promptable network, as Segment Anything, that a run tells where to look.

The card's `network` names the second part and how it is asked:

    network:
      size: [1024, 1024]
      spacing_mm: [0.25, 0.25]
      decoder: decoder.onnx           # a path from the card's folder on
      prompt: box                     # or point
      prompter: synthetic             # run whose masks say where each structure is, slice by slice: a path
                                      # from the card's folder on, or one that comes with the package

The first part takes (1, C, Y, X) and gives an embedding. The second is Segment Anything's as exported
(Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643): image_embeddings, point_coords (x, y),
point_labels and, where it has them, mask_input, has_mask_input, orig_im_size give masks (1, n, Y, X), inside
above 0, and iou_predictions (1, n), which choose among several masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, special

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.inference.labeler import open_run
from fewbeats.metrics import bounding_box
from fewbeats.teachers.outside import Outside, digest_files, load_session
from fewbeats.training.rundir import shipped_run

if TYPE_CHECKING:
    from fewbeats.inference.labeler import Labeler
    from fewbeats.scan import Scan
    from fewbeats.teachers.card import Card
    from fewbeats.teachers.network import Feeding
    from fewbeats.transforms.preprocess import Grid

BOX = (2, 3)
"""Labels of a box's first and last corner among the points."""
POINT = (1, -1)
"""Labels of a point inside and of the padding that Segment Anything wants where there is no box."""
OFFERED = (
    "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size",
)  # fmt: skip
MASKS, CHOICE = "masks", "iou_predictions"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def open_promptable(spec: str, file: Path, card: Card, feeding: Feeding) -> Outside:
    """Both parts, their card and the run that asks them as a labeler.

    Args:
        spec: as it was asked for, onnx:FILE.
        file: the first part.
        card: of both.
        feeding: its part `network`.

    Raises:
        InputError: a part is missing or cannot be asked, or the prompter does not know what the card names.
    """
    card_file, decoder = file.with_suffix(".yaml"), file.parent / feeding.decoder
    if not spec.startswith("onnx:"):
        raise InputError(f"--teacher {spec}: a promptable network is read from ONNX files; write onnx:FILE")
    if not decoder.is_file():
        raise InputError(f"{card_file}: decoder: there is no file {decoder}")
    told = shipped_run(feeding.prompter) or file.parent / feeding.prompter
    try:
        prompter = open_run(told, confident=True)
    except InputError as error:
        raise InputError(f"{card_file}: prompter: {error}") from error
    values = {name: value for value, name in card.labels.values.items() if name in card.structures}
    if blind := sorted(set(values) - set(prompter.structures)):
        raise InputError(
            f"{card_file}: prompter '{feeding.prompter}' does not know {', '.join(blind)}; take another"
        )
    seen = prompter.known.modalities if prompter.known else ()
    if card.modality and seen and card.modality not in seen:
        raise InputError(
            f"{card_file}: is of {card.modality}, its prompter of {' and '.join(seen)}; take another"
        )
    if not card.modality and len(seen) == 1:
        card = replace(card, modality=seen[0])
    segment = Prompted(file, decoder, feeding, values, prompter)
    segment.check()
    parts = hashlib.sha256((digest_files(file, decoder, card_file) + prompter.key).encode())
    seen_by = Provenance(run=card.name, ancestors=(prompter.provenance,))
    return Outside(spec=spec, card=card, segment=segment, key=parts.hexdigest()[:12], seen=seen_by)


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
            mask, sure = self.segment(scan.frame(t), told.mask, scan.spacing_mm)
            # Where it was not asked it knows nothing: it is no surer than who says where to ask.
            yield mask, sure if told.confidence is None else np.minimum(sure, told.confidence)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "parts"}

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        return load_session(self.encoder), load_session(self.decoder)

    def check(self) -> None:
        """Refuse parts that cannot be asked, before any scan.

        Raises:
            InputError: a file that is no ONNX network, or one that wants or gives something else.
        """
        encoder, decoder = self.parts
        [first, *others], rows_columns = encoder.get_inputs(), self.feeding.size
        fixed = [n for n in first.shape[2:] if isinstance(n, int)]
        if others or len(first.shape) != 4 or (fixed and tuple(first.shape[2:]) != rows_columns):
            raise InputError(
                f"{self.encoder}: takes {first.shape}, not (1, C, {rows_columns[0]}, {rows_columns[1]})"
            )
        wanted, given = ([one.name for one in side] for side in (decoder.get_inputs(), decoder.get_outputs()))
        if unknown := sorted(set(wanted) - set(OFFERED)):
            raise InputError(
                f"{self.decoder}: wants '{unknown[0]}'; it is given {', '.join(OFFERED)} at most"
            )
        if MASKS not in given:
            raise InputError(f"{self.decoder}: gives {', '.join(given)}; one must be called {MASKS}")

    def segment(
        self, frame: np.ndarray, told: np.ndarray, spacing_mm: tuple[float, float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label values of a frame (Z, Y, X), and how sure they are; slice by slice, as sizes are large.

        Args:
            frame: gray values.
            told: the prompter's mask, in the `fewbeats` convention.
            spacing_mm: of both.
        """
        whole = self.feeding.lay(frame, spacing_mm)
        grid = replace(whole, shape=(1, *whole.shape[1:]), source_shape=(1, *whole.source_shape[1:]))
        gray = self.feeding.scaled(frame)
        value = np.array([0, *self.values.values()], np.int32)
        mask, sure = np.zeros(frame.shape, np.int32), np.ones(frame.shape, np.float32)
        for z in range(len(frame)):
            if told[z].any():
                index, sure[z] = self._ask_slice(grid, gray[z : z + 1], told[z : z + 1])
                mask[z] = value[index]
        return mask, sure

    def _ask_slice(self, grid: Grid, gray: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, hint = grid.sample(gray)[0].astype(np.float32), grid.sample_labels(told)[0]
        index, sure = self.feeding.lay_back(grid, self.ask(image, hint)[:, None], gray.shape)
        return index[0], sure[0]

    def ask(self, image: np.ndarray, hint: np.ndarray) -> np.ndarray:
        """Probabilities (1 + structures, Y, X) of a slice, from the hint (Y, X) of where structures are.

        A box round the wall holds the cavity, too: what is found in it is the wall where no cavity is found.
        """
        regions = {name: hint == FEWBEATS_VALUES[name] for name in self.values}
        regions = {name: region for name, region in regions.items() if region.any()}
        cavity = hint == FEWBEATS_VALUES["LV"]
        nested = self.feeding.prompt == "box" and "MYO" in regions and cavity.any()
        if nested:
            regions |= {"LV": cavity, "MYO": regions["MYO"] | cavity}
        embedding = self._embed(image) if regions else None
        inside = {name: self._decode(embedding, region) for name, region in regions.items()}
        if nested:
            inside["MYO"] = inside["MYO"] * (1.0 - inside["LV"])
        scores = np.zeros((1 + len(self.values), *image.shape), np.float32)
        for channel, name in enumerate(self.values, 1):
            scores[channel] = inside.get(name, 0.0)
        scores[0] = 1.0 - scores[1:].max(0)
        return scores / scores.sum(0)

    def _embed(self, image: np.ndarray) -> np.ndarray:
        encoder = self.parts[0]
        asked = encoder.get_inputs()[0]
        channels = asked.shape[1] if isinstance(asked.shape[1], int) else 1
        batch = np.repeat(image[None, None], channels, 1)
        return encoder.run(None, {asked.name: batch.astype(DTYPES.get(asked.type, np.float32))})[0]

    def _decode(self, embedding: Any, region: np.ndarray) -> np.ndarray:
        """Probability (Y, X) of what the network finds where a region (Y, X) is.

        Raises:
            InputError: its masks are of another size, or nothing says which of several is meant.
        """
        decoder, (points, labels) = self.parts[1], self._prompt(region)
        low = [4 * n for n in embedding.shape[-2:]]  # sides of its low-resolution masks
        offered = {
            "image_embeddings": embedding,
            "point_coords": points,
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, *low), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(region.shape, np.float32),
        }
        feed = {
            one.name: offered[one.name].astype(DTYPES.get(one.type, np.float32))
            for one in decoder.get_inputs()
        }
        given = dict(zip([one.name for one in decoder.get_outputs()], decoder.run(None, feed)))
        masks = np.asarray(given[MASKS], np.float32)
        if masks.ndim != 4 or masks.shape[2:] != region.shape:
            raise InputError(
                f"{self.decoder}: gave masks of {masks.shape} for {region.shape} pixels; export it so that "
                "it gives them at the size of its input"
            )
        several = masks.shape[1] > 1
        if several and CHOICE not in given:
            raise InputError(f"{self.decoder}: gives {masks.shape[1]} masks and no {CHOICE} to choose by")
        return special.expit(masks[0, int(np.argmax(given[CHOICE][0])) if several else 0])

    def _prompt(self, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (1, 2, 2) as x, y in pixels, and what each is (1, 2)."""
        if self.feeding.prompt == "box":
            y, x = bounding_box(region)
            points, labels = [[x.start, y.start], [x.stop - 1, y.stop - 1]], BOX
        else:
            depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), region.shape)
            points, labels = [[int(column), int(row)], [0, 0]], POINT
        return np.array([points], np.float32), np.array([labels], np.float32)
