"""Teachers are ranked without labels as truth would rank them, where their mistakes show."""

from __future__ import annotations

import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.self_training.audit import tell_rank


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Folder and table of an audit of four teachers on three phantoms of 8 frames."""
    folder = tmp_path_factory.mktemp("audit")
    made = ["--subjects=3", "--frames=8", "--matrix=64", "--pixel-mm", "2.3", "2.4"]
    assert main(["phantom", str(folder / "source"), *made]) == 0
    assert main(["index", str(folder / "source"), "--layout=phantom", f"--out={folder / 'cohort.csv'}"]) == 0
    teachers = ["oracle:random", "oracle:random,1", "oracle:clean", "oracle:systematic"]
    asked = ["audit", str(folder / "cohort.csv"), "--teacher", *teachers, f"--out={folder / 'audit'}"]
    assert main([*asked, "--species=human"]) == 0
    return folder, pl.read_csv(folder / "audit" / "audit.csv")


def test_the_truth_is_first_and_random_mistakes_are_last(audited):
    _, table = audited
    assert table["teacher"][0] == "oracle:clean"
    assert set(table["teacher"][2:]) == {"oracle:random", "oracle:random,1"}
    clean = table.row(0, named=True)
    assert clean["dice"] == pytest.approx(1, abs=1e-3)
    assert clean["plausibility"] == pytest.approx(1)
    assert clean["usable"] == 1
    assert (table["plausibility"][2:] < 0.7).all()


def test_an_audit_goes_on_where_it_was_stopped(audited, capsys):
    folder, table = audited
    before = (folder / "audit" / "teacher1" / "predictions.csv").stat().st_mtime_ns
    asked = ["audit", str(folder / "cohort.csv"), "--teacher=oracle:random", f"--out={folder / 'audit'}"]
    assert main(asked) == 0
    assert (folder / "audit" / "teacher1" / "predictions.csv").stat().st_mtime_ns == before
    assert len(pl.read_csv(folder / "audit" / "audit.csv")) == 1
    table.write_csv(folder / "audit" / "audit.csv")


def test_a_teacher_that_fails_everywhere_is_told_and_the_others_are_ranked(audited, tmp_path, capsys):
    folder, _ = audited
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "card.yaml").write_text("labels: fewbeats")
    mask = next((folder / "source" / "labels").glob("*.nii.gz"))
    (tmp_path / "masks" / "nobody.nii.gz").write_bytes(mask.read_bytes())
    asked = ["audit", str(folder / "cohort.csv"), f"--out={tmp_path / 'out'}", "--teacher"]
    assert main([*asked, f"folder:{tmp_path / 'masks'}", "oracle:clean"]) == 0
    assert "3 of 3 scans cannot be labeled" in capsys.readouterr().out
    assert pl.read_csv(tmp_path / "out" / "audit.csv")["teacher"].to_list() == ["oracle:clean"]
    assert main([*asked, f"folder:{tmp_path / 'masks'}"]) == 2
    assert "no teacher labels any of these scans" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--teacher=oracle:clean", "--split=dev"], "has no scan of split 'dev'"),
        (["--teacher", "oracle", "oracle"], "is named twice"),
    ],
)
def test_what_cannot_be_audited_is_told(audited, tmp_path, flags, told, capsys):
    folder, _ = audited
    assert main(["audit", str(folder / "cohort.csv"), f"--out={tmp_path / 'out'}", *flags]) == 2
    assert told in capsys.readouterr().err


def test_how_well_ranks_agree_is_said():
    table = pl.DataFrame({"teacher": ["a", "b", "c"], "score": [0.9, 0.8, 0.7], "dice": [0.7, 0.8, 0.6]})
    assert tell_rank(table) == (
        "rank without labels against rank by Dice: Kendall's tau 0.33, by Dice b is first"
    )
    assert tell_rank(table.head(1)) == ""
    assert tell_rank(table.with_columns(score=pl.lit(0.5))) == "", "equal scores are no rank"
