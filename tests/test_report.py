"""The page of a prediction: what it tells and hides, and the page opened in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.evaluation.evaluate import write_prediction_report
from small_cohort import ACDC, empty_cohort, heart, judge, labels

cohort = pytest.fixture(empty_cohort)


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
