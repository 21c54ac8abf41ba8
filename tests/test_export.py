"""Exported weights load in nnU-Net's own network, by its own loader, and compute the same."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import TINY
from fewbeats.cli import main
from fewbeats.models.weights import read_weights
from test_pretrain import LITTLE


def nnunet_network(architecture: dict, channels: int):
    """As nnU-Net builds it from its plans."""
    plans = pytest.importorskip(
        "nnunetv2.utilities.get_network_from_plans",
        reason="nnunetv2 is not installed (make test installs it)",
    )
    return plans.get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        4,
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("method", ["simclr", "mim"])
def test_a_pretrained_encoder_loads_in_nnunet(method, norm, phantoms, tmp_path, capfd):
    run, file = tmp_path / "run", tmp_path / "weights.pth"
    words = [*LITTLE, "--steps=1", f"--network.norm={norm}"]
    assert main(["pretrain", method, str(phantoms), f"--out={run}", *words]) == 0
    assert main(["export", str(run), "--to=nnunet", f"--out={file}"]) == 0
    told = capfd.readouterr().out
    assert (", 0 at a random start" in told) == (method == "mim")
    network = nnunet_network(json.loads(file.with_suffix(".json").read_text())["architecture"], 1)
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    load_pretrained_weights(network, str(file))
    ours = {n: v for n, v in read_weights(run / "network.safetensors").items() if ".seg_layers." not in n}
    theirs = network.state_dict()
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_a_fine_tuned_network_loads_in_nnunet(small_run, tmp_path):
    assert main(["export", str(small_run), "--to=nnunet", f"--out={tmp_path / 'w.pth'}"]) == 0
    network = nnunet_network(json.loads((tmp_path / "w.json").read_text())["architecture"], 1)
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 4, 64, 64)


def test_what_nnunet_cannot_take_is_refused(phantoms, small_run, tmp_path, capfd, no_onnx):
    lite = tmp_path / "lite"
    flags = [f for f in TINY if "network" not in f]
    assert main(["finetune", str(phantoms), f"--out={lite}", *flags, "--steps=1", "--localizer-steps=0"]) == 0
    for run, out, complaint in (
        (lite, "w.pth", "nnU-Net has no 'lite0'"),
        (small_run, "w.pt", "called .pth"),
        (tmp_path / "none", "w.pth", "not a finished run folder"),
        (small_run, small_run / "run.pth", "would lie among the files of a run"),
    ):
        assert main(["export", str(run), "--to=nnunet", f"--out={tmp_path / out}"]) == 2
        assert complaint in capfd.readouterr().err
        assert not (tmp_path / out).exists()
