"""A promptable network in two parts: asked in the right place, its answers become structures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.inference.labeler import Known, Labeled
from fewbeats.metrics import dice
from fewbeats.scan import ArrayPixels, Scan
from fewbeats.teachers import promptable
from fewbeats.teachers.specs import open_teacher
from fewbeats.transforms.preprocess import PreprocessSettings

pytest.importorskip("onnxruntime")

CARD = """
name: toy
labels: {1: LV, 2: MYO, 3: RV}
network:
  size: [64, 64]
  spacing_mm: [2.0, 2.0]
  decoder: decoder.onnx
"""


class Encoder(nn.Module):
    """Its embedding is the image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1]


class Decoder(nn.Module):
    """Answers a box with the ellipse in it, a point with a disc of 5 pixels; its second mask is the best."""

    def forward(self, image_embeddings, point_coords, point_labels, has_mask_input):
        y = torch.arange(64.0)[:, None]
        x = torch.arange(64.0)[None]
        first, last = point_coords[0, 0], point_coords[0, 1]
        is_box = (point_labels[0, 0] == 2).float()
        middle = is_box * (first + last) / 2 + (1 - is_box) * first
        half = is_box * (last - first + 1) / 2 + (1 - is_box) * 5.0
        away = ((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2
        mask = 20 * (1 - away) + 0 * image_embeddings.mean() + has_mask_input.sum()
        return torch.stack([-mask, mask])[None], torch.tensor([[0.1, 0.9]])


def write_parts(folder: Path) -> Path:
    """Both parts and their card."""
    image, points = torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Encoder(), (image,), str(folder / "sam.onnx"), dynamo=False)
        torch.onnx.export(
            Decoder(), (image[:, :1], points, points[..., 0], torch.zeros(1)), str(folder / "decoder.onnx"),
            input_names=["image_embeddings", "point_coords", "point_labels", "has_mask_input"],
            output_names=["masks", "iou_predictions"], dynamo=False,
        )  # fmt: skip
    (folder / "sam.yaml").write_text(CARD)
    return folder / "sam.onnx"


@dataclass(frozen=True)
class Told:
    """A run that knows where everything is."""

    masks: np.ndarray
    structures: tuple[str, ...] = ("LV", "MYO", "RV")
    key: str = "told"

    @property
    def provenance(self) -> Provenance:
        return Provenance(run="told", labeled={"a": ["b"]})

    @property
    def known(self) -> Known:
        return Known(("MR",), {}, PreprocessSettings())

    def label(self, scan):
        for mask in self.masks:
            yield Labeled(mask, np.full(mask.shape, 0.75, np.float32))


def heart() -> tuple[Scan, np.ndarray]:
    """Two frames of three slices, a heart in two of them, on a grid that is not the network's."""
    y, x = np.meshgrid(np.arange(100), np.arange(110), indexing="ij")
    mask = np.zeros((2, 3, 100, 110), np.uint8)
    for t, radius in enumerate((24, 20)):
        away = np.hypot(y - 55, x - 50)
        mask[t, 1:, away < radius] = FEWBEATS_VALUES["MYO"]
        mask[t, 1:, away < radius - 8] = FEWBEATS_VALUES["LV"]
        mask[t, 1:, np.hypot(y - 50, x - 84) < 9] = FEWBEATS_VALUES["RV"]
    image = np.random.default_rng(0).normal(100, 10, mask.shape).astype(np.float32)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    return Scan(pixels=ArrayPixels(image), affine=affine, modality="MR"), mask


@pytest.fixture
def opened(tmp_path, monkeypatch):
    scan, mask = heart()
    monkeypatch.setattr(promptable, "open_run", lambda run, confident: Told(mask))
    return open_teacher(f"onnx:{write_parts(tmp_path)}"), scan, mask, tmp_path


def test_boxes_give_back_what_lies_in_them(opened):
    teacher, scan, mask, _ = opened
    for found, true in zip(teacher.label(scan), mask, strict=True):
        assert not found.mask[0].any()  # the prompter saw nothing there
        for name, value in FEWBEATS_VALUES.items():
            if name in teacher.structures:
                assert dice(found.mask == value, true == value) > 0.9, name
        assert found.confidence.max() == np.float32(0.75)  # no surer than who says where to look
        assert found.confidence.min() > 0.3


def test_points_lie_inside_and_a_wall_has_its_own(opened):
    teacher, scan, mask, folder = opened
    (folder / "sam.yaml").write_text(CARD + "  prompt: point\n")
    pointed = open_teacher(f"onnx:{folder / 'sam.onnx'}")
    assert pointed.key != teacher.key
    found = next(iter(pointed.label(scan))).mask
    for name in ("LV", "MYO", "RV"):
        disc = found[1] == FEWBEATS_VALUES[name]
        middle = np.argwhere(disc).mean(0).round().astype(int)
        assert mask[0, 1][tuple(middle)] == FEWBEATS_VALUES[name], name


def test_it_descends_from_its_prompter(opened):
    teacher, *_ = opened
    assert [one.run for one in teacher.provenance.lineage()] == ["toy", "told"]


@pytest.mark.parametrize("labels", ["{1: MYO}", "{2: MYO, 600: RV}"])
def test_a_wall_alone_is_no_cavity(opened, labels):
    _, scan, mask, folder = opened
    (folder / "sam.yaml").write_text(CARD.replace("{1: LV, 2: MYO, 3: RV}", labels))
    found = next(iter(open_teacher(f"onnx:{folder / 'sam.onnx'}").label(scan))).mask
    wall, cavity = (mask[0] == FEWBEATS_VALUES[name] for name in ("MYO", "LV"))
    assert dice(found == FEWBEATS_VALUES["MYO"], wall) > 0.9
    assert (found[cavity] > 0).mean() < 0.1


def test_a_point_at_the_border_lies_inside(opened):
    teacher, *_ = opened
    asked = replace(teacher.segment, feeding=replace(teacher.segment.feeding, prompt="point"))
    region = np.zeros((64, 64), bool)
    region[20:40, :15] = True
    (x, y), _ = asked._prompt(region)[0][0]
    assert 5 < x < 9
    assert 25 < y < 34


def test_large_weights_beside_a_file_are_part_of_its_key(opened):
    teacher, *_, folder = opened
    spec = f"onnx:{folder / 'sam.onnx'}"
    assert open_teacher(spec).key == teacher.key
    (folder / "sam.onnx.data").write_bytes(b"weights")
    assert open_teacher(spec).key != teacher.key


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[64, 64]", "[4, 64, 64]", "spacing_mm"),
        ("[64, 64]\n  spacing_mm: [2.0, 2.0]", "[4, 64, 64]\n  spacing_mm: [8.0, 2.0, 2.0]", "about slices"),
        ("[64, 64]", "[96, 96]", "takes .* not"),
        ("decoder.onnx", "parts/decoder.onnx", "there is no file"),
        ("decoder.onnx", "sam.yaml", "no ONNX network"),
        ("decoder.onnx", "sam.onnx", "wants 'onnx"),
        ("{1: LV", "{-1: LV", "below 0"),
        ("name: toy", "modality: CT", "its prompter of MR"),
        ("decoder: ", "output: labels\n  decoder: ", "gives logits"),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_scan(opened, old, new, said):
    *_, folder = opened
    (folder / "sam.yaml").write_text(CARD.replace(old, new))
    with pytest.raises(InputError, match=said):
        open_teacher(f"onnx:{folder / 'sam.onnx'}")


def test_a_prompter_must_know_what_the_card_names(opened, monkeypatch):
    _, _, mask, folder = opened
    monkeypatch.setattr(promptable, "open_run", lambda run, confident: Told(mask, ("LV",)))
    with pytest.raises(InputError, match="does not know MYO, RV"):
        open_teacher(f"onnx:{folder / 'sam.onnx'}")
    monkeypatch.undo()
    (folder / "sam.yaml").write_text(CARD + "  prompter: nowhere\n")
    with pytest.raises(InputError, match=r"prompter: .*nowhere"):
        open_teacher(f"onnx:{folder / 'sam.onnx'}")
