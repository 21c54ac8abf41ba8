"""`run.json`: what is read of it, of folders of this version and of earlier ones."""

from __future__ import annotations

import pytest

from fewbeats.errors import InputError
from fewbeats.training.runconfig import RunConfig, read_config

SEGMENTATION = {
    "format": 1, "task": "segmentation", "structures": ["LV", "MYO"], "modalities": ["MR"], "seed": 3,
    "settings": {"network": {"kind": "lite0"}}, "engines_seconds": {"torch": 0.1}, "steps": 5, "seconds": 2.5,
}  # fmt: skip


def test_runs_of_the_first_format_are_read():
    config = read_config(SEGMENTATION, file="run.json")
    assert (config.structures, config.networks, config.steps) == (("LV", "MYO"), ("network",), 5)
    assert config.network_settings == {"kind": "lite0"}
    assert config.network_seconds is None
    assert config.record == SEGMENTATION
    flat = {"format": 1, "task": "pretraining", "network": {"kind": "vit"}, "method": "dino"}
    assert read_config(flat, file="run.json").network_settings == {"kind": "vit"}
    assert RunConfig(task="localization").network_settings is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", 3), ("task", None), ("structures", "LV"), ("structures", None), ("structures", [1]),
        ("networks", {}), ("settings", []), ("settings", None), ("engines_seconds", {"torch": "fast"}),
        ("engines_seconds", {"torch": None}), ("seed", -1), ("seed", True), ("seconds", "2"),
        ("modalities", ["MR", None]), ("fingerprint", 7), ("labeled_subjects", [[]]),
    ],
)  # fmt: skip
def test_what_is_of_another_type_is_one_line(name, value):
    with pytest.raises(InputError, match=rf"^run\.json: damaged: '{name}'"):
        read_config(SEGMENTATION | {name: value}, file="run.json")


@pytest.mark.parametrize("found", [None, 0, 3, "1"])
def test_another_format_is_told(found):
    with pytest.raises(InputError, match="this version reads 1 and 2"):
        read_config(SEGMENTATION | {"format": found}, file="run.json")
