"""Outlines of masks, and where they lie on the picture."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest

from fewbeats.evaluation.measure import measure_scan
from fewbeats.evaluation.pictures import Pictured, overlay_frame
from fewbeats.evaluation.predictions import PredictedScan
from fewbeats.metrics import compare
from fewbeats.pages.pictures import outline
from small_cohort import heart, save


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
