"""Training from the command line: what a run folder holds, which labels it used, other networks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from conftest import TINY
from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.training import loop
from fewbeats.training.rundir import RunDir

FEW = ("--steps=2", "--localizer-steps=0")


def train(cohort, out, *flags) -> dict:
    """A run of two steps; returns its run.json."""
    assert main(["finetune", str(cohort), f"--out={out}", *TINY, *FEW, *map(str, flags)]) == 0
    return json.loads((out / "run.json").read_text())


def test_a_run_folder_holds_all_that_prediction_and_proof_need(small_run):
    about = json.loads((small_run / "run.json").read_text())
    assert about["labeled_subjects"] == ["phantom000", "phantom001", "phantom002"]
    assert about["structures"] == ["LV", "MYO", "RV"]
    assert about["modalities"] == ["MR"]
    assert (about["steps"], about["seed"], about["init"]) == (150, 0, "scratch")
    assert about["settings"]["preprocess"]["size"] == 64
    assert {"torch", "onnxruntime", "openvino"} == about["engines_seconds"].keys()
    assert about["versions"]["fewbeats"]
    provenance = json.loads((small_run / "provenance.json").read_text())
    assert {s: len(h) for s, h in provenance["labeled"].items()} == dict.fromkeys(
        about["labeled_subjects"], 3 + 1
    )  # frames, and their slices in one
    steps = [json.loads(line)["step"] for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 151, 10))
    names = {f.name for f in small_run.iterdir()}
    assert not {"checkpoint"} & names
    assert not [n for n in names if "partial" in n]
    assert (small_run / "localizer" / "network.safetensors").is_file()


@pytest.mark.usefixtures("no_onnx")
def test_budgets_are_nested_and_lists_are_taken(phantoms, tmp_path):
    one = train(phantoms, tmp_path / "one", "--labeled=1", "--seed=3")["labeled_subjects"]
    two = train(phantoms, tmp_path / "two", "--labeled=2", "--seed=3")["labeled_subjects"]
    assert len(one) == 1
    assert set(one) < set(two)
    names = tmp_path / "names.txt"
    names.write_text("phantom002\n")
    assert train(phantoms, tmp_path / "list", f"--labeled-subjects={names}")["labeled_subjects"] == [
        "phantom002"
    ]


@pytest.mark.usefixtures("no_onnx")
def test_the_checkpoint_is_chosen_within_the_label_budget(phantoms, tmp_path, capfd):
    about = train(phantoms, tmp_path / "run", "--select=best", "--labeled=2")
    assert "1 of the 2 labeled subjects choose the checkpoint" in capfd.readouterr().out
    assert len(about["labeled_subjects"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["validation"] <= 1 for row in rows if "validation" in row)
    assert any("validation" in row for row in rows)


def test_only_manual_labels_are_trained_on(phantoms, tmp_path):
    """A predicted label of a labeled subject is no part of the supervised pool."""
    from fewbeats.commands.finetune import Finetune

    cohort = read_cohort(phantoms)
    more = cohort.filter(pl.col("subject") == "phantom000").with_columns(
        scan=pl.lit("again"), label_source=pl.lit("pseudo")
    )
    write_cohort(pl.concat([cohort, more]), tmp_path / "cohort.csv")
    pools = Finetune(cohort=tmp_path / "cohort.csv", out=tmp_path / "run", steps=1).choose()
    assert pools.labeled["scan"].to_list() == [f"phantom00{i}_4d" for i in range(3)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--network.kind=unet3d", "--slab-slices=8", "--batch-size=2", "--localizer-steps=1"],
        ["--structures", "LV", "--network.context=1"],
        ["--network.kind=hub", "--network.encoder=mobilenetv3_small_050", "--batch-size=4"],
    ],
    ids=["3D", "one structure", "hub"],
)
@pytest.mark.usefixtures("no_onnx")
def test_other_networks_train_and_predict(flags, phantoms, tmp_path):
    train(phantoms, tmp_path / "run", *flags)
    assert (
        main(["predict", str(tmp_path / "run"), str(phantoms), "--split=tune", f"--out={tmp_path / 'm'}"])
        == 0
    )
    assert (tmp_path / "m" / "phantom003_4d.nii.gz").is_file()


def test_a_hub_encoder_starts_from_what_timm_gives(phantoms, tmp_path, monkeypatch, capfd):
    """A stand-in for the network: timm's own model with known weights."""
    import torch
    from segmentation_models_pytorch import encoders

    build = encoders.get_encoder

    def offline(name, *, weights=None, **more):
        made = build(name, weights=None, **more)
        if weights:
            with torch.no_grad():
                for value in made.parameters():
                    value.fill_(0.01)
        return made

    monkeypatch.setattr(encoders, "get_encoder", offline)
    from fewbeats.models.network import NetworkSettings
    from fewbeats.recipes.starts import start_network

    settings = NetworkSettings(kind="hub", encoder="mobilenetv3_small_050", context=1)
    network = start_network(settings, 4, "natural", seed=0)
    assert "timm mobilenetv3_small_050" in capfd.readouterr().out
    weights = [p for n, p in network.named_parameters() if n.startswith("encoder.") and p.ndim == 4]
    assert all(np.allclose(w.detach().numpy(), 0.01, atol=0.01) for w in weights)


@pytest.mark.usefixtures("no_onnx")
def test_a_run_starts_from_another_and_keeps_its_provenance(phantoms, small_run, tmp_path):
    about = train(phantoms, tmp_path / "run", f"--init={small_run}", "--labeled=1")
    assert about["init"] == str(small_run)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert list(provenance["labeled"]) == about["labeled_subjects"]
    assert list(provenance["ancestors"][0]["labeled"]) == ["phantom000", "phantom001", "phantom002"]


def swap_splits(cohort, to, subject="phantom000"):
    """The cohort with one training subject held out as `dev`."""
    table = read_cohort(cohort)
    split = pl.when(pl.col("subject") == subject).then(pl.lit("dev")).otherwise("split").alias("split")
    table.with_columns(split).write_csv(to)
    return to


@pytest.mark.usefixtures("no_onnx")
def test_a_runs_weights_are_followed_wherever_they_lie(phantoms, small_run, tmp_path, capfd):
    swapped = swap_splits(phantoms, tmp_path / "swapped.csv")
    shutil.copy(small_run / "network.safetensors", tmp_path / "bare.safetensors")
    starts = {
        small_run: "has seen held-out subjects: phantom000",
        small_run / "network.safetensors": "has seen held-out subjects: phantom000",
        small_run / "localizer" / "network.safetensors": "has seen held-out subjects: phantom000",
        tmp_path / "bare.safetensors": "use a whole run folder",
    }
    for start, complaint in starts.items():
        flags = [f"--init={start}", "--labeled=1", "--steps=1", "--localizer-steps=0"]
        assert main(["finetune", str(swapped), f"--out={tmp_path / 'run'}", *TINY, *flags]) == 2
        assert complaint in capfd.readouterr().err


@pytest.mark.usefixtures("no_onnx")
def test_weights_from_elsewhere_are_noted_as_of_unknown_origin(phantoms, small_run, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(small_run / "network.safetensors"), tmp_path / "theirs.safetensors")
    train(phantoms, tmp_path / "run", f"--init={tmp_path / 'theirs.safetensors'}", "--labeled=1")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [a["run"] for a in provenance["ancestors"]] == ["theirs.safetensors (of unknown origin)"]


@pytest.mark.usefixtures("no_onnx")
def test_a_corrected_mask_is_another_request_and_another_place_is_not(phantoms, tmp_path, capfd):
    table = read_cohort(phantoms).filter(pl.col("subject") == "phantom000")
    mask = tmp_path / "mask.nii.gz"
    shutil.copy(table["label"][0], mask)
    table.with_columns(label=pl.lit(str(mask))).write_csv(tmp_path / "one.csv")
    train(tmp_path / "one.csv", tmp_path / "run")
    shutil.copy(tmp_path / "one.csv", tmp_path / "moved.csv")
    train(tmp_path / "moved.csv", tmp_path / "run")
    assert "already trained" in capfd.readouterr().out
    old = nib.load(mask)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(old.dataobj), 4, 0), old.affine, old.header), mask)
    assert main(["finetune", str(tmp_path / "one.csv"), f"--out={tmp_path / 'run'}", *TINY, *FEW]) == 2
    assert "run of other labels" in capfd.readouterr().err


@pytest.mark.usefixtures("no_onnx")
def test_minutes_become_steps_once(phantoms, tmp_path):
    out = tmp_path / "run"
    flags = ["--minutes=0.01", "--localizer-steps=0", "--batch-size=2"]
    assert main(["finetune", str(phantoms), f"--out={out}", *TINY, *flags]) == 0
    assert json.loads((out / "run.json").read_text())["steps"] >= 20
    assert not (out / "localizer").exists()


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("command", ["finetune", "pretrain mim"])
def test_the_time_of_a_stopped_process_counts_and_costs_no_budget(command, phantoms, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(loop._Loop, "steps_for", lambda _, minutes, batches: given.append(minutes) or 2)
    out, pretrain = tmp_path / "run", command.startswith("pretrain")
    out.mkdir()
    RunDir(out).append_metrics({"step": 100, "step_seconds": 9.0})  # 15 minutes, no checkpoint
    flags = [f for f in TINY if not (pretrain and f.startswith("--ema"))]
    words = [*command.split(), str(phantoms), f"--out={out}", *flags, "--minutes=10"]
    assert main([*words, *([] if pretrain else ["--localizer-steps=0"])]) == 0
    assert given[0] > 9
    assert 900 < json.loads((out / "run.json").read_text())["seconds"] < 1000


@pytest.mark.slow
@pytest.mark.usefixtures("no_onnx")
def test_two_processes_train_one_run(phantoms, tmp_path):
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29637"]
    command = [*torchrun, "-m", "fewbeats.cli", "finetune", str(phantoms), f"--out={out}", *TINY, *FEW]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr[:3000]
    assert json.loads((out / "run.json").read_text())["steps"] == 2
    assert not [f for f in out.rglob("*") if "partial" in f.name]


def test_the_moving_average_forgets_the_start_of_a_short_run():
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    from fewbeats.training.average import moving_average

    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    average = AveragedModel(weight, multi_avg_fn=moving_average(0.99))
    expected = 0.0
    for step in range(60):  # a jump after the first step
        average.update_parameters(weight)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = (
            weight.weight.item() if step == 0 else decay * expected + (1 - decay) * weight.weight.item()
        )
        nn.init.ones_(weight.weight)
    found = average.module.weight.item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 0.999
    with torch.no_grad():
        weight.weight.fill_(2.0)
    for _ in range(5000):
        average.update_parameters(weight)
        if int(average.n_averaged) == 2000:  # from here on it is the plain one
            before = average.module.weight.item()
            average.update_parameters(weight)
            assert 2 - average.module.weight.item() == pytest.approx(0.99 * (2 - before), abs=1e-6)


def test_batch_norm_is_taken_anew_for_the_exported_network():
    """Weights that were averaged, or moved, meet statistics of the data they will see."""
    import torch
    from torch import nn

    from fewbeats.models.finish import RECALIBRATION, finish_network
    from fewbeats.sample import Batch

    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    generator, drawn = torch.Generator().manual_seed(0), []

    def batches(clock):
        drawn.append(3 + 2 * torch.randn(4, 1, 8, 8, generator=generator))
        return Batch(views={"image": drawn[-1]})

    trained, network = network, finish_network(network, batches)
    assert not network.training
    assert trained.training
    assert trained[1].running_mean.tolist() == [0, 0]  # what is trained is left as it is
    assert len(drawn) == RECALIBRATION
    seen = network[0](torch.cat(drawn))
    assert network[1].running_mean == pytest.approx(seen.mean((0, 2, 3)).detach(), abs=1e-4)
    assert network[1].running_var == pytest.approx(seen.var((0, 2, 3)).detach(), rel=0.02)
    assert network[1].momentum == 0.1


@pytest.mark.usefixtures("no_onnx")
def test_runs_that_are_compared_share_a_localizer(small_run, phantoms, tmp_path):
    run = tmp_path / "run"
    assert (
        main(["finetune", str(phantoms), f"--out={run}", *TINY, "--steps=2", f"--localizer={small_run}"]) == 0
    )
    for name in ("network.safetensors", "run.json", "provenance.json"):
        assert (run / "localizer" / name).read_bytes() == (small_run / "localizer" / name).read_bytes()
    provenance = json.loads((run / "provenance.json").read_text())
    assert [a["run"] for a in provenance["ancestors"]] == ["run"]
    assert sorted(provenance["ancestors"][0]["labeled"]) == ["phantom000", "phantom001", "phantom002"]


@pytest.mark.usefixtures("no_onnx")
def test_a_shared_localizer_must_exist_and_must_not_have_seen_held_out_scans(
    small_run, phantoms, tmp_path, capfd
):
    bare = tmp_path / "bare"
    train(phantoms, bare)
    words = [*TINY, "--steps=1"]
    assert main(["finetune", str(phantoms), f"--out={tmp_path / 'a'}", *words, f"--localizer={bare}"]) == 2
    assert "has no localizer" in capfd.readouterr().err
    turned = read_cohort(phantoms).with_columns(
        split=pl.when(pl.col("subject") == "phantom000").then(pl.lit("tune")).otherwise(pl.col("split"))
    )
    other = tmp_path / "cohort.csv"
    write_cohort(turned, other)
    assert main(["finetune", str(other), f"--out={tmp_path / 'b'}", *words, f"--localizer={small_run}"]) == 2
    assert "has seen held-out subjects: phantom000" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_run_may_learn_only_where_the_heart_is(phantoms, tmp_path, no_onnx, capfd):
    where, run = tmp_path / "where", tmp_path / "run"
    words = ["finetune", str(phantoms), *TINY]
    assert main([*words, f"--out={where}", "--task=localization", "--localizer-steps=2"]) == 0
    assert main([*words, f"--out={run}", "--steps=1", f"--localizer={where}"]) == 0
    assert (run / "localizer" / "network.safetensors").is_file()
    capfd.readouterr()
    assert main(["predict", str(where), str(phantoms), f"--out={tmp_path / 'masks'}"]) == 2
    assert "a run of localization labels nothing" in capfd.readouterr().err
    assert main([*words, f"--out={tmp_path / 'x'}", "--task=localization", "--steps=2"]) == 2
    assert "takes --localizer-steps as its only budget" in capfd.readouterr().err


def test_labels_of_one_phase_alone_may_be_learned_from(phantoms, tmp_path):
    from fewbeats.commands.finetune import Finetune
    from fewbeats.recipes.segmenter import read_samples

    cohort = read_cohort(phantoms)
    about = {"cache": tmp_path / "cache", "out": tmp_path / "run", "steps": 1, "localizer_steps": 0}
    for phase in ("ED", "ES"):
        command = Finetune(cohort=phantoms, phase=phase, **about)
        found = read_samples(command.choose(), command.model.preprocess, phase=phase)
        column = f"{phase.lower()}_frame"
        wanted = dict(cohort.select("scan", column).iter_rows())
        assert {s.scan: s.frame for s in found} == {s: wanted[s] for s in {f.scan for f in found}}
        assert len(found) == 3


@pytest.mark.usefixtures("no_onnx")
def test_a_folder_belongs_to_its_request_from_the_localizer_on(
    phantoms, small_run, tmp_path, monkeypatch, capfd
):
    """A killed run leaves a localizer behind, which no other request must take for its own."""
    words = [
        "finetune",
        str(phantoms),
        f"--out={tmp_path / 'run'}",
        *TINY,
        "--steps=2",
        "--localizer-steps=2",
    ]
    fit = loop.fit

    def killed(*parts, label, **settings):
        if label == "training":
            raise KeyboardInterrupt
        return fit(*parts, label=label, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("fewbeats.recipes.run.fit", killed)
        assert main(words) == 2
    assert (tmp_path / "run" / "localizer" / "run.json").is_file()
    capfd.readouterr()
    for other in (f"--localizer={small_run}", "--localizer-steps=0", "--init=natural"):
        assert main([*words, other]) == 2
        assert "holds a run of other" in capfd.readouterr().err
    assert main(words) == 0
