"""What makes runs and pools of parts: asked first, guarded once, every network a run folder of its own."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from fewbeats.clock import Clock
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.data.provenance import Provenance, load_provenance
from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings
from fewbeats.models.weights import read_weights, save_weights
from fewbeats.recipes.pools import Labels, Pool, choose_pools
from fewbeats.recipes.run import Exported, Length, Training, carry_out
from fewbeats.recipes.segmenter import draw_labeled
from fewbeats.sample import Batch, Sample
from fewbeats.training.loop import FitSettings
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.rundir import RunDir
from tiny_training import batches

SEEN = Provenance(run="pair", labeled={"anna": ["0" * 24]})


class Pair(Method):
    """Two networks that learn the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deep, self.flat = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        logits = (self.deep(batch.views["image"]), self.flat(batch.views["image"]))
        return Step(sum(nn.functional.cross_entropy(found, batch.target) for found in logits))

    def parameter_groups(self) -> list[ParameterGroup]:
        rates = (lambda _: 1e-2, lambda _: 0.0)
        both = {"deep": self.deep, "flat": self.flat}
        return [ParameterGroup(n, tuple(m.parameters()), *rates, network=n) for n, m in both.items()]

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.deep, "flat": self.flat}


def train(out, *, steps: int = 3, built: list | None = None) -> RunDir:
    def write(network: nn.Module, folder: RunDir) -> dict:
        save_weights(network.state_dict(), folder.weights())
        return {"wide": network.kernel_size[0]}

    def build() -> Training:
        if built is not None:
            built.append(out)
        exports = {
            n: Exported(about={"task": "segmentation", "of": n}, write=write) for n in ("network", "flat")
        }
        return Training(method=Pair(), batches=batches, exports=exports)

    return carry_out(
        out, request={"steps": steps}, provenance=SEEN, build=build, length=Length(steps=steps),
        settings=FitSettings(seed=4),
    )  # fmt: skip


def test_every_exported_network_is_a_run_folder(tmp_path):
    run = train(tmp_path / "pair")
    other = RunDir(run.path / "flat")
    for folder, name, wide in ((run, "network", 1), (other, "flat", 3)):
        config = folder.read_config()
        assert (config.record["of"], config.record["wide"], config.steps, config.seed) == (name, wide, 3, 4)
        assert config.networks == (("network", "flat") if name == "network" else ("network",))
        assert 0 < config.network_seconds <= config.seconds
        assert load_provenance(folder.path) == SEEN
        assert read_weights(folder.weights())["weight"].shape[-1] == wide
    assert not run.checkpoint.exists()


def test_a_finished_run_is_asked_for_before_anything_is_built(tmp_path, capfd):
    built: list = []
    train(tmp_path / "pair", built=built)
    train(tmp_path / "pair", built=built)
    assert len(built) == 1
    assert "already trained with these settings" in capfd.readouterr().out
    with pytest.raises(InputError, match="holds a run of other steps"):
        train(tmp_path / "pair", steps=4, built=built)
    assert len(built) == 1


def test_a_run_is_finished_only_when_all_of_it_is_there(tmp_path, monkeypatch):
    """The folder's own run.json is written last."""
    write = RunDir.write_config
    written = []

    def note(folder, config):
        written.append(folder.path.name)
        write(folder, config)

    monkeypatch.setattr(RunDir, "write_config", note)
    train(tmp_path / "pair")
    assert written == ["flat", "pair"]


# Pools


def choose(cohort, tmp_path, **parts):
    return choose_pools(cohort, out=tmp_path / "run", cache=tmp_path / "cache", **parts)


def test_labels_and_pool_are_chosen_and_guarded_together(phantoms, tmp_path):
    pools = choose(phantoms, tmp_path, labels=Labels(budget=1, seed=3), pool=Pool())
    assert len(pools.labeled_subjects) == 1
    assert set(pools.unlabeled["subject"]) == {"phantom000", "phantom001", "phantom002"}
    assert set(pools.provenance.labeled) == set(pools.labeled_subjects)
    assert set(pools.provenance.unlabeled) == set(pools.unlabeled["subject"])
    assert pools.structures == ("LV", "MYO", "RV")
    assert pools.provenance.run == "run"
    assert json.dumps(pools.describe())  # goes into request.json


def test_a_held_out_copy_in_the_pool_is_found_under_another_name(phantoms, tmp_path):
    cohort = read_cohort(phantoms)
    image = cohort.filter(pl.col("subject") == "phantom004")["image"][0]
    copied = pl.when(pl.col("subject") == "phantom000").then(pl.lit(image)).otherwise("image")
    measured = ("frames", "slices", "rows", "columns", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm")
    write_cohort(cohort.with_columns(image=copied).drop(measured), tmp_path / "copied.csv")
    for parts in ({"pool": Pool()}, {"labels": Labels(), "pool": Pool()}, {"labels": Labels()}):
        with pytest.raises(InputError, match="copy of a scan of the held-out phantom004"):
            choose(tmp_path / "copied.csv", tmp_path, **parts)


def test_without_labels_no_start_may_have_seen_any(phantoms, tmp_path):
    with pytest.raises(InputError, match="run 'pair' has seen labels, of anna"):
        choose(phantoms, tmp_path, pool=Pool(), ancestors=[SEEN])
    choose(phantoms, tmp_path, labels=Labels(budget=1), pool=Pool(), ancestors=[SEEN])


def test_a_pool_is_checked_before_any_image_is_read(phantoms, tmp_path, monkeypatch):
    def refuse(rows: pl.DataFrame) -> None:
        raise InputError(f"{len(rows)} scans are too few")

    monkeypatch.setattr("fewbeats.recipes.pools.hash_scans", lambda *a, **b: pytest.fail("read an image"))
    with pytest.raises(InputError, match="2 scans are too few"):
        choose(phantoms, tmp_path, pool=Pool(subjects=2, check=refuse))


def test_labels_of_people_are_half_of_what_is_drawn_beside_those_of_models():
    def sample(name: str, source: str, slices: int) -> Sample:
        image = np.zeros((slices, 16, 16), np.float16)
        return Sample(
            image=image, mask=image.astype(np.uint8), annotated=(True, True), subject=name, scan=name,
            frame=0, source=source, spacing_mm=(8.0, 1.0, 1.0),
        )  # fmt: skip

    settings = SegmentationSettings(batch_size=10, network=NetworkSettings(kind="unet2d"))
    mixed = [sample("anna", "manual", 4), *(sample(f"p{n}", "pseudo", 6 + n) for n in range(9))]
    sampler = draw_labeled(mixed, settings, seed=0)
    drawn = [name for step in range(200) for name in sampler(Clock(step, 200)).subject]
    assert drawn.count("anna") / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert drawn.count("p8") / drawn.count("p0") == pytest.approx(14 / 6, rel=0.4)  # slices are alike
    alone = draw_labeled(mixed[1:], settings, seed=0)
    assert alone.shares is None
