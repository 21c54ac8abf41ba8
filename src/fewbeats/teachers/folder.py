"""`folder:DIR`: masks that are there already, made by anything.

DIR holds one NIfTI mask a scan, called like the scan (`SCAN.nii.gz`, `SCAN_label.nii.gz`), and says what the
values mean: by a `card.yaml`, by the `dataset.json` of nnU-Net, or as a folder that `fewbeats predict` wrote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.data.conventions import find_convention, read_convention
from fewbeats.data.files import bare_name, open_labels
from fewbeats.data.names import bare_label, list_nifti, plain, stem_of
from fewbeats.data.provenance import FILE_NAME as PROVENANCE
from fewbeats.data.provenance import file_key, load_provenance
from fewbeats.errors import InputError, name_some
from fewbeats.teachers.card import FILE_NAME, Card, read_card
from fewbeats.teachers.outside import Outside
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from fewbeats.scan import Scan

PREDICTIONS = "predictions.csv"
DATASET = "dataset.json"


def open_folder(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """Masks in a folder as a labeler.

    Args:
        where: the folder, see above.
        cohort: whose scans are labeled, for their names; a file's own name without it.

    Raises:
        InputError: no such folder, no mask in it, two of one scan, or nothing says what the values mean.
    """
    folder = Path(where)
    if not folder.is_dir():
        raise InputError(f"--teacher folder:{where}: no such folder; give one with a mask for each scan")
    masks: dict[str, Path] = {}
    for file in list_nifti(folder):
        stem = plain(stem_of(file))
        for name in {stem, bare_label(stem)}:
            if (other := masks.setdefault(name, file)) != file:
                raise InputError(f"{folder}: {other.name} and {file.name} are of one scan; keep one of them")
    if not masks:
        raise InputError(f"{folder}: no mask (.nii.gz) in it; check the path")
    names = {} if cohort is None else dict(cohort.select("image", "scan").iter_rows())
    states = [file_key(str(file)) for file in sorted(set(masks.values()))]
    return Outside(
        spec=f"folder:{where}",
        card=read_card_of(folder),
        segment=_Masks(folder, masks, names),
        key=hashlib.sha256(repr(states).encode()).hexdigest()[:12],
        seen=load_provenance(folder) if (folder / PROVENANCE).is_file() else None,
    )


@dataclass(frozen=True)
class _Masks:
    folder: Path
    masks: Mapping[str, Path]
    """Name of a scan -> its mask."""
    names: Mapping[str, str]
    """Image -> name of the scan."""

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        path = scan.source.path or Path("scan")
        name = self.names.get(str(path)) or plain(bare_name(path))
        if name not in self.masks:
            raise InputError(
                f"{path}: has no mask in {self.folder}, which has those of {name_some(sorted(self.masks))}"
            )
        labels = open_labels({"label": str(self.masks[name]), "label_frames": None}, scan)
        for t in sorted(labels):
            yield labels[t], None


def read_card_of(folder: Path) -> Card:
    """The card of a folder: its own, or what nnU-Net or fewbeats wrote beside the masks or the model.

    Raises:
        InputError: none of them is there, or it cannot be read.
    """
    if (folder / FILE_NAME).is_file():
        return read_card(folder / FILE_NAME)
    if (folder / DATASET).is_file():
        return Card(name=folder.name, labels=read_convention(folder / DATASET))
    if (folder / PREDICTIONS).is_file():
        found = "+".join(RunDir(folder).read_json("run.json").get("structures", ()))
        return Card(name=folder.name, labels=find_convention(f"fewbeats:{found}"))
    raise InputError(
        f"{folder}: nothing says what the masks' values mean; write {FILE_NAME} like "
        "`labels: {1: LV, 2: MYO, 3: RV}` into it"
    )
