"""What must be known of a model from outside: what its values mean, whose it is, what it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fewbeats.anatomy import Convention, name_structure
from fewbeats.data.conventions import find_convention
from fewbeats.errors import InputError

if TYPE_CHECKING:
    import polars as pl

FILE_NAME = "card.yaml"
"""In a folder of masks or of a model; beside a file MODEL.onnx it is called MODEL.yaml."""
FIELDS = ("name", "license", "trained_on", "contaminated", "modality", "labels", "silent_about", "network")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model from outside, as its card describes it.

    >>> card = card_of({"labels": {1: "RV", 2: "MYO", 3: "LV"}, "trained_on": ["ACDC"]}, file="card.yaml")
    >>> card.structures, card.license
    (('LV', 'MYO', 'RV'), 'unknown')
    """

    name: str
    labels: Convention
    """Its own label values -> structures."""
    license: str = "unknown"
    trained_on: tuple[str, ...] = ()
    """Names of the data sets it has seen, as ACDC; empty where nobody says it."""
    contaminated: bool = False
    """Take it for scans of these data sets all the same; what is measured there proves nothing."""
    modality: str = ""
    """MR or CT, empty for both."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """What the network takes and gives, of a card of a network; see `teachers.network`."""

    @property
    def structures(self) -> tuple[str, ...]:
        """What it labels, in the usual order."""
        from fewbeats.anatomy import FEWBEATS_VALUES

        return tuple(s for s in FEWBEATS_VALUES if s in self.labels.speaks_of)

    def describe(self) -> dict[str, Any]:
        """For `run.json`: what a reader of its masks must know."""
        return {
            "name": self.name,
            "license": self.license,
            "trained_on": list(self.trained_on),
            "contaminated": self.contaminated,
        }


def read_card(file: Path) -> Card:
    """Read a card.

    Args:
        file: YAML with `labels` ({1: RV, 2: MYO}, or the name of a convention) and, where they are known,
            the other fields of `Card`.

    Raises:
        InputError: no such file, no YAML, an unknown field or structure.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); write what the model's labels mean into it"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file}: no YAML; write fields like `labels: {{1: LV, 2: MYO}}`") from error
    return card_of(content, file=file)


def card_of(content: Any, *, file: Path | str) -> Card:
    """A card from what its YAML holds.

    Raises:
        InputError: naming `file` and the field.
    """
    if not isinstance(content, dict) or "labels" not in content:
        raise InputError(f"{file}: has no field labels; write them like `labels: {{1: LV, 2: MYO}}`")
    if unknown := sorted(set(map(str, content)) - set(FIELDS)):
        raise InputError(f"{file}: unknown field '{unknown[0]}'; a card has {', '.join(FIELDS)}")
    seen = content.get("trained_on") or []
    if (modality := content.get("modality") or "") not in ("", "MR", "CT"):
        raise InputError(f"{file}: modality '{modality}'; write MR or CT, or leave it out")
    if not isinstance(contaminated := content.get("contaminated", False), bool):
        raise InputError(f"{file}: contaminated '{contaminated}'; write true or false")
    if not isinstance(network := content.get("network") or {}, dict):
        raise InputError(f"{file}: network is no list of fields")
    return Card(
        name=str(content.get("name") or Path(file).stem),
        labels=_labels(content["labels"], content.get("silent_about") or [], file=file),
        license=str(content.get("license") or "unknown"),
        trained_on=tuple(map(str, [seen] if isinstance(seen, str) else seen)),
        contaminated=contaminated,
        modality=modality,
        network=network,
    )


def _labels(content: Any, silent: Any, *, file: Path | str) -> Convention:
    if isinstance(content, str):
        return find_convention(content)
    try:
        named = {int(value): str(name) for value, name in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{file}: labels are no values and structures; write them like `labels: {{1: LV, 2: MYO}}`"
        ) from error
    values = {v: name_structure(n, file=file) for v, n in named.items() if v and n.lower() != "background"}
    if not values or min(values) < 0:
        raise InputError(
            f"{file}: labels name no structure, or one below 0; values are positive, 0 is background"
        )
    unsaid = frozenset(name_structure(str(name), file=file) for name in silent)
    return Convention(name=str(file), values=values, silent_about=unsaid)


def refuse_seen_data(card: Card, cohort: pl.DataFrame, *, spec: str) -> None:
    """Refuse a model for scans of a data set that it was trained on.

    A cohort is of a data set where the convention of its labels or a folder of its images is called so; under
    another name nobody can tell without the model's own list of scans.

    Raises:
        InputError: naming the data set.
    """
    if card.contaminated:
        return
    named = {str(text).split(":")[0].lower() for text in cohort["convention"].drop_nulls().unique()}
    folders = {part.lower() for image in cohort["image"] for part in PurePath(image).parts[:-1]}
    for name in card.trained_on:
        plain = name.lower().replace(" ", "")
        if plain in named | folders:
            raise InputError(
                f"--teacher {spec}: was trained on {name}, which this cohort is of; take another teacher, or "
                "write `contaminated: true` into its card if nothing is to be measured"
            )
