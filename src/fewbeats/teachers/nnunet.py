"""`nnunet:DIR`: a trained nnU-Net v2, through its own predictor.

DIR is what nnU-Net calls the model folder: plans.json, dataset.json, fold_0 to fold_4 with their checkpoints.
All folds that are there vote, as nnU-Net does it. A checkpoint of nnU-Net is a pickle: loading it runs what
it holds, so take only such as you trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from fewbeats.data.provenance import file_key
from fewbeats.errors import InputError
from fewbeats.teachers.folder import read_card_of
from fewbeats.teachers.outside import Outside

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
PLANS = "plans.json"
TURNS = "Reorient"
"""In the name of nnU-Net's readers that turn an image to RAS+ before it is learned from."""


def open_nnunet(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """A model folder of nnU-Net v2 as a labeler.

    Raises:
        InputError: nnU-Net is not installed, or the folder is no model's.
    """
    folder, spec = Path(where), f"nnunet:{where}"
    if find_spec("nnunetv2") is None:
        raise InputError(f"--teacher {spec}: needs nnU-Net v2; pip install 'fewbeats[nnunet]'")
    found = sorted(file for name in CHECKPOINTS for file in folder.glob(f"fold_*/{name}"))
    if not (folder / PLANS).is_file() or not found:
        raise InputError(
            f"--teacher {spec}: no model folder of nnU-Net v2; give the one with {PLANS} and fold_0 in it"
        )
    states = [file_key(str(file)) for file in [folder / PLANS, *found]]
    return Outside(
        spec=spec,
        card=read_card_of(folder),
        segment=NnUNet(folder, found[0].name),
        key=hashlib.sha256(repr(states).encode()).hexdigest()[:12],
    )


@dataclass(frozen=True)
class NnUNet:
    """Asks nnU-Net's predictor for one frame after the other, in the order of axes that it was trained on."""

    folder: Path
    checkpoint: str

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "checkpoint": self.checkpoint}

    @cached_property
    def predictor(self) -> Any:
        """nnU-Net's own, with all folds."""
        import torch

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            predictor = nnUNetPredictor(
                device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False
            )
            predictor.initialize_from_trained_model_folder(
                str(self.folder), use_folds=None, checkpoint_name=self.checkpoint
            )
        return predictor

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        way = self._way(scan)
        for t in range(scan.shape[0]):
            image = way.there(scan.frame(t))[None].astype(np.float32)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                mask, probabilities = self.predictor.predict_single_npy_array(
                    image, {"spacing": way.spacing_mm}, None, None, True
                )
            yield way.back(np.asarray(mask)), way.back(np.asarray(probabilities).max(0))

    def _way(self, scan: Scan) -> Way:
        reader = str(self.predictor.plans_manager.plans.get("image_reader_writer", ""))
        return Way(scan, turned=TURNS in reader)


class Way:
    """From a scan's canonical axes to those of a file as another program reads it, and back.

    Args:
        scan: whose frames.
        turned: the program turns images to RAS+; else it takes them as they are stored.
    """

    def __init__(self, scan: Scan, *, turned: bool):
        self.reorientation = scan.source.reorientation
        stored = nib.orientations.io_orientation(scan.source.affine)
        plain = nib.orientations.axcodes2ornt("RAS") if turned else stored
        self.to_plain = nib.orientations.ornt_transform(stored, plain)
        self.to_stored = nib.orientations.ornt_transform(plain, stored)
        x, y, z = np.linalg.norm(scan.source.affine[:3, :3], axis=0)
        order = np.argsort(self.to_plain[:, 0]).astype(int)
        self.spacing_mm = [float(np.array([x, y, z])[order[axis]]) for axis in (2, 1, 0)]
        """(z, y, x) in the program's order."""

    def there(self, frame: np.ndarray) -> np.ndarray:
        """Canonical (Z, Y, X) -> the program's (z, y, x)."""
        stored = self.reorientation.invert(frame)
        return np.ascontiguousarray(nib.orientations.apply_orientation(stored.T, self.to_plain).T)

    def back(self, values: np.ndarray) -> np.ndarray:
        """The program's (z, y, x) -> canonical (Z, Y, X)."""
        stored = nib.orientations.apply_orientation(values.T, self.to_stored).T
        return np.ascontiguousarray(self.reorientation.apply(stored))
