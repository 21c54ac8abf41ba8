"""Predictions joined to labels, the figures that come of it, and the page opened in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.commands.evaluate import Evaluate
from fewbeats.data.cohort import new_cohort, write_cohort
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.evaluation.evaluate import evaluate, write_prediction_report
from fewbeats.evaluation.measure import measure_scan
from fewbeats.evaluation.pictures import Pictured, overlay_frame
from fewbeats.evaluation.predictions import PredictedScan
from fewbeats.metrics import compare
from fewbeats.pages.charts import ticks
from fewbeats.pages.pictures import outline

SPACING_MM = (8.0, 1.5, 1.5)
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])
SHAPE = (5, 40, 44)
STRUCTURES = ("LV", "MYO", "RV")
ACDC = {"LV": 3, "MYO": 2, "RV": 1}


def heart(radius: float, *, shift: int = 0) -> dict[str, np.ndarray]:
    """Structure -> (Z, Y, X) mask: round cavity, ring of muscle, RV beside it."""
    z, y, x = np.indices(SHAPE)
    far = np.hypot(y - 20, x - 24 - shift)
    inside = (z > 0) & (z < 4)
    rv = (np.hypot(y - 20, x - 10 - shift) < radius) & (far >= radius + 4)
    return {
        "LV": inside & (far < radius),
        "MYO": inside & (far >= radius) & (far < radius + 4),
        "RV": inside & rv,
    }


def save(path: Path, frames: list[np.ndarray], *, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.stack(frames).T if len(frames) > 1 else frames[0].T
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def labels(masks: dict[str, np.ndarray], values: dict[str, int]) -> np.ndarray:
    out = np.zeros(SHAPE, np.uint8)
    for structure, mask in masks.items():
        out[mask] = values[structure]
    return out


def gray(masks: dict[str, np.ndarray]) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    return (100 + 300 * masks["LV"] + 250 * masks["RV"] - 40 * masks["MYO"] + noise).astype(np.int16)


class Cohort:
    """Files and rows of a small cohort with its predictions, built one scan at a time."""

    def __init__(self, folder: Path):
        self.folder, self.predictions = folder, folder / "predictions"
        self.rows: list[dict] = []
        self.predicted: list[dict] = []
        self.run = {
            "structures": list(STRUCTURES),
            "seconds": 3.5,
            "peak_memory_mb": 300,
            "labeled_subjects": ["t1"],
            "config": {"training": {"steps": 10, "pool": "/home/someone/cohort.csv"}},
        }

    def add(self, scan: str, predicted: list[np.ndarray], manual: list[np.ndarray] | None, **about) -> None:
        truth = [gray(heart(8)) for _ in predicted]
        image = save(self.folder / "DOE_JANE" / f"{scan}.nii.gz", truth)
        mask = save(self.predictions / "masks" / f"{scan}.nii.gz", predicted)
        label = save(self.folder / "labels" / f"{scan}.nii.gz", manual) if manual else None
        ends, warnings = about.pop("ends", ("", "")), about.pop("warnings", "")
        self.predicted.append({
            "scan": scan, "subject": about["subject"], "image": str(image), "mask": f"masks/{mask.name}",
            "ed_frame": ends[0], "es_frame": ends[1], "warnings": warnings, "seconds": 0.5,
        })  # fmt: skip
        self.rows.append({
            "scan": scan, "study": "", "frame": None, "phase": None, "view": "SAX", "image": str(image),
            "label": label and str(label), "label_frames": None, "convention": "acdc", "split": "dev",
            "group": "NOR", "height_cm": None, "weight_kg": None, "spacing_trusted": None, **about,
        })  # fmt: skip

    def add_pair(self, subject: str, *, shift: int = 0, drop: str = "", **about) -> None:
        """ED and ES as single files; the prediction is shifted, and may lack a structure at ES."""
        for frame, (phase, radius) in enumerate((("ED", 9.0), ("ES", 6.0))):
            found = heart(radius, shift=shift)
            if drop and phase == "ES":
                found.pop(drop)
            predicted, manual = labels(found, FEWBEATS_VALUES), labels(heart(radius), ACDC)
            self.add(
                f"{subject}_{phase}",
                [predicted],
                [manual],
                subject=subject,
                phase=phase,
                frame=frame,
                **about,
            )

    def add_cine(self, subject: str, *, manual: list[np.ndarray] | None = None, **about) -> None:
        """A 4D scan of 6 frames that contracts and relaxes."""
        frames = [labels(heart(r), FEWBEATS_VALUES) for r in (9, 8, 6, 6.5, 7, 8)]
        self.add(f"{subject}_4d", frames, manual, subject=subject, ends=(0, 2), **about)

    def write(self) -> tuple[Path, pl.DataFrame]:
        pl.DataFrame(self.predicted).write_csv(self.predictions / "predictions.csv")
        (self.predictions / "run.json").write_text(json.dumps(self.run))
        return self.predictions, new_cohort(self.rows)


def volume_ml(mask: np.ndarray) -> float:
    return mask.sum() * 8.0 * 1.5 * 1.5 / 1000


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    return Cohort(tmp_path)


def judge(cohort: Cohort) -> tuple[dict, pl.DataFrame, pl.DataFrame, str]:
    out = cohort.folder / "out"
    summary = evaluate(*cohort.write(), out)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    tables = (pl.read_csv(out / f"{name}.csv") for name in ("subjects", "clinical"))
    return summary, *tables, (out / "report.html").read_text()


def test_pairs_of_files_by_hand(cohort):
    cohort.add_pair("s1", height_cm=180.0, weight_kg=80.0)
    cohort.add_pair("s2", shift=2, group="DCM")
    cohort.add_pair("s3", drop="RV")
    summary, rows, clinical, _ = judge(cohort)
    assert len(rows) == 3 * 2 * 3
    shifted = [
        compare(heart(r, shift=2)[s], heart(r)[s], spacing_mm=SPACING_MM) for s in STRUCTURES for r in (9, 6)
    ]
    of_subject = [1.0, np.mean([a.dice for a in shifted]), 1 - 1 / 6]
    assert summary["dice"]["mean"] == pytest.approx(np.mean(of_subject))
    assert summary["groups"]["DCM"]["hd95_mm"]["mean"] == pytest.approx(np.mean([a.hd95_mm for a in shifted]))
    assert summary["groups"]["DCM"]["dice"]["ci95"] is None  # one subject
    assert summary["dice"]["RV"] == pytest.approx(np.mean([1, np.mean([a.dice for a in shifted[4:]]), 0.5]))
    assert summary["dice"]["ci95"][0] < summary["dice"]["mean"] < summary["dice"]["ci95"][1]
    assert (summary["subjects"], summary["misses"], summary["judged_masks"]) == (3, 1, 18)
    diagonal = np.linalg.norm(np.multiply(SHAPE, SPACING_MM))
    missed = rows.filter(pl.col("miss")).row(0, named=True)
    assert (missed["subject"], missed["phase"], missed["structure"]) == ("s3", "ES", "RV")
    assert missed["hd95_mm"] == pytest.approx(diagonal, abs=1e-4)
    ef = 100 * (1 - heart(6)["LV"].sum() / heart(9)["LV"].sum())
    found = {
        (s, q): (p, m) for s, q, p, m in clinical.select("subject", "quantity", "predicted", "manual").rows()
    }
    assert found["s1", "lv_ef_percent"] == pytest.approx((ef, ef), abs=1e-3)
    assert found["s1", "lv_mass_g"][1] == pytest.approx(1.05 * volume_ml(heart(9)["MYO"]), abs=1e-3)
    assert found["s1", "lv_edv_index_ml_m2"][0] == pytest.approx(volume_ml(heart(9)["LV"]) / 2, abs=1e-3)
    assert found["s3", "rv_ef_percent"][0] == 100.0
    assert ("s2", "lv_edv_index_ml_m2") not in found
    assert summary["ef_percent"]["LV"]["mae"] < 1
    assert summary["seconds"] == 3.5


def test_a_cine_with_labels_on_some_frames(cohort):
    manual = [
        labels(heart(r), ACDC) if r in (9, 6) else np.zeros(SHAPE, np.uint8) for r in (9, 8, 6, 6.5, 7, 8)
    ]
    cohort.add_cine("c1", manual=manual, label_frames="0;2")
    cohort.add_cine(
        "c0", manual=manual, label_frames="0;2", ed_frame=2, es_frame=0
    )  # the cohort's word counts
    cohort.add_cine("c2", manual=[labels(heart(6), ACDC)], label_frames="2")  # 3D label of one frame
    cohort.add_cine("c3")
    summary, rows, clinical, page = judge(cohort)
    assert rows.filter(subject="c1")["frame"].unique().to_list() == [0, 2]
    assert rows.filter(subject="c1", frame=2)["phase"].unique().to_list() == ["ES"]
    assert rows.filter(subject="c2")["frame"].unique().to_list() == [2]
    assert rows.filter(subject="c0", frame=2)["phase"].unique().to_list() == ["ED"]
    assert rows["dice"].to_list() == [1.0] * 15
    both = clinical.filter(quantity="lv_ef_percent").sort("subject")
    assert both["predicted"].is_null().sum() == 0
    assert both["manual"].is_not_null().to_list() == [True, True, False, False]
    assert (summary["unlabeled_scans"], summary["frames"]) == (1, 5)
    assert page.count('class="cine"') == 3  # of four: the page stays light


def test_a_warning_withholds_the_ejection_fraction_but_not_the_dice(cohort):
    cohort.add_pair("s1")
    cohort.add_pair("s2", warnings="the heart is cut; too dark")
    summary, rows, clinical, page = judge(cohort)
    assert set(rows["subject"]) == {"s1", "s2"}
    assert clinical.filter(subject="s2")["predicted"].null_count() == len(clinical.filter(subject="s2"))
    assert clinical.filter(subject="s2")["manual"].null_count() == 0
    assert (summary["warned_scans"], summary["withheld_heartbeats"]) == (2, 1)
    assert clinical.filter(subject="s2")["from_masks"].null_count() == 0
    agreement = summary["ef_percent"]["LV"]
    assert (agreement["subjects"], agreement["quoted"]["subjects"]) == (2, 1)  # failures are judged, too
    assert "in the 1 without a warning" in page
    assert "the heart is cut; too dark" in page


def test_lost_spacing_gives_no_mm_and_no_ml(cohort):
    cohort.add_pair("s1", spacing_trusted=False)
    summary, rows, clinical, page = judge(cohort)
    assert summary["dice"]["mean"] == 1.0
    assert summary["hd95_mm"]["mean"] is None
    assert rows["volume_ml"].null_count() == len(rows)
    assert clinical.is_empty()
    assert "HD95 mm" not in page


def test_planes_give_no_volumes(cohort):
    frames = [labels(heart(r), FEWBEATS_VALUES)[2:3] for r in (9, 6)]
    manual = [labels(heart(r), ACDC)[2:3] for r in (9, 6)]
    cohort.add("plane", frames, manual, subject="s1", view=None, ends=(0, 1))
    cohort.add_cine("long", view="4CH")
    cohort.add_cine("stack", view=None)
    summary, rows, clinical, _ = judge(cohort)
    assert summary["dice"]["mean"] == 1.0
    assert rows.filter(scan="plane")["volume_ml"].null_count() == 6
    assert clinical["scan"].unique().to_list() == ["stack_4d"]


def test_only_structures_the_labels_speak_of_are_judged(cohort):
    manual = labels({"LV": heart(9)["LV"], "MYO": heart(9)["MYO"]}, {"LV": 1, "MYO": 2})
    manual[2, 20, 35] = 3  # infarct is part of the myocardium
    predicted = labels(heart(9), FEWBEATS_VALUES)
    cohort.add("s1", [predicted], [manual], subject="s1", convention="emidec")
    summary, rows, _, _ = judge(cohort)
    assert set(rows["structure"]) == {"LV", "MYO"}
    assert summary["dice"]["MYO"] == 1.0


def test_caveats_are_counted(cohort):
    cohort.add_pair("t1")
    cohort.add_pair("s2")
    cohort.predicted.pop()
    cohort.predicted.append(cohort.predicted[0] | {"scan": "stranger"})
    summary, _, _, page = judge(cohort)
    assert summary["subjects_trained_on"] == 1
    assert summary["labeled_scans_not_predicted"] == 1
    assert summary["scans_outside_cohort"] == 1
    assert "labels the network was trained on" in page


def test_bad_input_is_named(cohort):
    cohort.add_pair("s1")
    save(cohort.folder / "labels" / "s1_ES.nii.gz", [np.zeros(SHAPE, np.uint8)], affine=AFFINE * 1.1)
    with pytest.raises(InputError, match=r"masks/s1_ES.*labels/s1_ES.*grid"):
        judge(cohort)
    assert not (cohort.folder / "out").exists()
    with pytest.raises(InputError, match=r"predictions\.csv: missing"):
        write_prediction_report(cohort.folder, cohort.folder / "out")


@pytest.mark.parametrize(
    ("ends", "complaint"),
    [
        (("abc", 2), r"predictions\.csv: ed_frame of c1_4d is 'abc'"),
        ((0, "-1"), "es_frame of c1_4d is '-1'"),
        ((0, 77), r"c1_4d\.nii\.gz: .*predictions\.csv is beyond its frames 0 to 5"),
    ],
)
def test_an_edited_table_of_predictions_is_checked(cohort, ends, complaint):
    cohort.add_cine("c1", manual=[labels(heart(9), ACDC)] * 6)
    assert judge(cohort)[0]["subjects"] == 1
    cohort.predicted[0] |= {"ed_frame": str(ends[0]), "es_frame": f"{ends[1]}"}
    with pytest.raises(InputError, match=complaint):
        judge(cohort)
    cohort.predicted[0] |= {"ed_frame": "1.0", "es_frame": " 2"}
    assert judge(cohort)[0]["subjects"] == 1


def test_frames_that_cannot_be_matched_are_refused(cohort):
    cohort.add_cine("c1", manual=[labels(heart(6), ACDC)] * 2)
    with pytest.raises(InputError, match="label_frames"):
        judge(cohort)


def test_predictions_that_cannot_be_written_to_are_judged(cohort, tmp_path):
    cohort.predictions = tmp_path / "closed"
    cohort.predictions.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cohort.predictions)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        cohort.add_pair("s1")
        predictions, table = cohort.write()
        Provenance(run="run").save(predictions)
        write_cohort(table, tmp_path / "cohort.csv")
        subprocess.run(["mount", "-o", "remount,ro", str(predictions)], check=True)
        judged = Evaluate(predictions=predictions, cohort=tmp_path / "cohort.csv", out=tmp_path / "out")
        assert judged.run()["subjects"] == 1
    finally:
        subprocess.run(["umount", "-l", str(cohort.predictions)], check=False)


def test_labels_of_a_teacher_judge_nothing(cohort):
    cohort.add_pair("s1", label_source="teacher")
    cohort.add_cine("c1")
    with pytest.raises(InputError, match=r"none of its 3 scans has a manual label .* \(2 labels are teacher"):
        judge(cohort)


def test_a_prediction_report_needs_no_labels_and_tells_no_names(cohort):
    cohort.add_cine("c1")
    cohort.add("<b>odd", [labels(heart(8), FEWBEATS_VALUES)], None, subject="<b>odd")
    cohort.run["labeled_subjects"] = []
    predictions, _ = cohort.write()
    page = write_prediction_report(predictions, cohort.folder / "out").read_text()
    assert "DOE_JANE" not in page
    assert "/home/someone" not in page
    assert "&lt;b&gt;odd" in page
    assert "<b>odd" not in page
    assert "Mean Dice" not in page
    assert "LV ejection fraction" in page


def test_a_lost_image_costs_its_picture_only(cohort):
    cohort.add_cine("c1")
    predictions, _ = cohort.write()
    shutil.rmtree(cohort.folder / "DOE_JANE")
    page = write_prediction_report(predictions, cohort.folder / "out").read_text()
    assert "No cine of c1_4d: no such file" in page
    assert "DOE_JANE" not in page


def test_outlines_enclose_the_mask():
    mask = heart(8)["LV"][2]
    (line,) = outline(mask)
    x, y = line.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(mask.sum(), rel=0.03)
    assert (x.mean(), y.mean()) == pytest.approx((24, 20), abs=0.3)
    assert len(outline(heart(8)["MYO"][2])) == 2


@pytest.mark.parametrize("axes_mm", [(1.5, 1.1, 8.0), (-1.5, 1.1, 8.0), (1.5, -1.1, 1.2)])
def test_outlines_lie_on_the_picture(tmp_path, axes_mm):
    """Filled outlines are the bright pixels, whatever the file's orientation and spacing."""
    from PIL import Image, ImageDraw

    mask, affine = heart(9)["LV"], np.diag([*axes_mm, 1.0])
    mask[:, :, :24] = False  # half a disk, so that a flip shows
    image = save(tmp_path / "image.nii.gz", [mask.astype(np.int16) * 1000], affine=affine)
    predicted = save(tmp_path / "mask.nii.gz", [mask.astype(np.uint8)], affine=affine)
    source = PredictedScan(scan="a", subject="a", mask=predicted, image=str(image), structures=("LV",))
    for picture in overlay_frame(Pictured(measure_scan(source)), 0):
        pixels = np.asarray(Image.open(BytesIO(b64decode(picture.src.split(",")[1]))).convert("L"))
        filled = Image.new("L", (picture.width, picture.height))
        points = [tuple(map(float, p.split())) for p in picture.predicted["LV"].strip("MZ").split("L")]
        ImageDraw.Draw(filled).polygon(points, fill=255)
        assert compare(pixels[None] > 127, np.asarray(filled)[None] > 0, spacing_mm=None).dice > 0.97


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-12.3, 40.1), (0.42, 1.0), (0, 271.0)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high
    assert np.ptp(np.diff(found)) < 1e-9


@pytest.fixture(scope="module")
def browser():
    """Debian's or any other Chromium, without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser, file: Path):
    """The page, and what it asked for or complained about."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on(
        "request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:")) else None
    )
    page.goto(file.as_uri())
    return page, complaints


@pytest.mark.browser
def test_the_page_in_a_browser(cohort, browser):
    manual = [labels(heart(r), ACDC) for r in (9, 8, 6, 6.5, 7, 8)]
    cohort.add_cine("c1", manual=manual)
    for subject, shift in (("s1", 3), ("s2", 0), ("s3", 1)):
        cohort.add_pair(subject, shift=shift)
    judge(cohort)
    page, complaints = open_page(browser, cohort.folder / "out" / "report.html")
    widths = page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) > 10
    assert min(widths) > 0
    cine = page.locator(".cine")
    cine.scroll_into_view_if_needed()
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(cine).to_have_attribute("data-frame", re.compile("[2-5]"))  # plays by itself
    cine.locator(".play").click()  # and stops
    stopped, outline_then = cine.get_attribute("data-frame"), cine.locator("path.LV").get_attribute("d")
    page.wait_for_timeout(400)
    assert cine.get_attribute("data-frame") == stopped
    moved = "3" if stopped == "0" else "0"  # the one frame at which the heart is largest
    cine.locator("input[type=range]").fill(moved)
    assert cine.get_attribute("data-frame") == moved
    assert cine.locator("path.LV").get_attribute("d") != outline_then
    cine.locator(".play").click()
    expect(cine).not_to_have_attribute("data-frame", moved)
    names = page.locator("#subjects tbody th")
    page.locator("#subjects thead th", has_text="Dice").click()
    assert names.all_inner_texts()[0] == "s1"
    page.locator("#subjects thead th", has_text="Dice").click()
    assert names.all_inner_texts()[-1] == "s1"
    page.locator("[data-toggle=manual]").uncheck()
    assert not page.locator("path.manual").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


@pytest.mark.browser
def test_a_prediction_report_on_a_phone(cohort, browser):
    cohort.add_cine("c1")
    predictions, _ = cohort.write()
    page, complaints = open_page(browser, write_prediction_report(predictions, cohort.folder / "out"))
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".cine svg.chart").is_visible()
    assert complaints == []
