"""Which masks a student learns from: each filter names the frames it takes out, and why.

All are off in the plain form of the method (Rickmann et al., 2025, https://arxiv.org/abs/2505.09564).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from fewbeats.anatomy import VESSELS
from fewbeats.evaluation.temporal import beating
from fewbeats.inference.plausibility import LEAST_ENCLOSED, LONGEST_CUT_MM
from fewbeats.ranges import check_ranges
from fewbeats.self_training.frames import curves_of, structures_of

Species = Literal["any", "human", "pig"]
RANGES_ML: dict[str, dict[str, tuple[float, float]]] = {
    "any": {},
    "human": {"LV": (10, 500), "MYO": (25, 450), "RV": (10, 500), "LA": (10, 400), "RA": (10, 400)},
    "pig": {"LV": (8, 250), "MYO": (20, 300), "RV": (8, 250), "LA": (5, 150), "RA": (5, 150)},
}
"""mL that a structure may have in any frame of a beat, with much room around what is published: of people,
reference values and disease (Kawel-Boehm et al., JCMR 22:87, 2020; dilated hearts of ACDC reach 390 mL); of
pigs of 30 to 110 kg, LV end-diastolic volumes of 60 to 180 mL."""
LEAST_PART = 0.9  # of a structure in one connected part
LEAST_SLICES = 0.4  # of the slices that show the LV, those that show a structure beside it
EJECTION_PERCENT = (5.0, 88.0)  # of a ventricle that beats
MANY = 5  # frames, from which on a curve shows a beat


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What takes masks out of a student's training set."""

    qc: bool = False
    """Take out frames that lack a structure or have one in pieces, cut by the border, not enclosed by its
    wall, or of an impossible volume; and scans whose ventricle does not beat."""
    species: Species = "any"
    """Whose volumes `qc` expects; any: none in particular."""
    uncertainty: bool = False
    """Weigh voxels by how sure their label is, where the labeler tells: the least sure one of a frame not at
    all (STRUDEL)."""
    temporal: bool = False
    """Take out frames that do not fit between their neighbors."""
    agreement: float = 0.0
    """Take out frames whose masks agree less with those of the round before, by mean Dice."""

    def __post_init__(self) -> None:
        check_ranges(self, "filters.", shares=("agreement",))


def find_reasons(table: pl.DataFrame, settings: FilterSettings) -> pl.DataFrame:
    """Frames that a student must not learn from.

    Args:
        table: of `tabulate_frames`.
        settings: which filters are on.

    Returns:
        scan, frame, reason: one row a reason. Scans in which nothing was found in any frame are always there.
    """
    found = [_empty_scans(table)]
    if settings.qc:
        found += [implausible(table, settings.species), still_scans(table)]
    if settings.temporal:
        found.append(jumping(table))
    if settings.agreement:
        found.append(disagreeing(table, settings.agreement))
    return pl.concat(found).unique(maintain_order=True)


def _named(rows: pl.DataFrame, reason: pl.Expr | str) -> pl.DataFrame:
    told = pl.lit(reason) if isinstance(reason, str) else reason
    return rows.select("scan", "frame", told.alias("reason"))


def _empty_scans(table: pl.DataFrame) -> pl.DataFrame:
    empty = table.filter(pl.col("ml").sum().over("scan") == 0)
    return _named(empty.unique(["scan", "frame"], maintain_order=True), "nothing was found")


def implausible(table: pl.DataFrame, species: Species) -> pl.DataFrame:
    """Frames whose mask no heart has, one at a time."""
    name, ml = pl.col("structure"), pl.col("ml")
    leaves = name.is_in(VESSELS)  # the image, in pieces or not
    lv_slices = pl.col("slices").filter(name == "LV").first().over("scan", "frame")
    checks = [
        (ml == 0, pl.format("no {} was found", name)),
        (~leaves & (pl.col("largest_part") < LEAST_PART), pl.format("{} is in pieces", name)),
        (~leaves & (pl.col("cut_mm") > LONGEST_CUT_MM), pl.format("{} is cut by the image's border", name)),
        (pl.col("enclosed") < LEAST_ENCLOSED, pl.lit("the LV is not enclosed by myocardium")),
        (
            name.is_in(["MYO", "RV"]) & (pl.col("slices") < LEAST_SLICES * lv_slices),
            pl.format("{} is missing in most slices", name),
        ),
    ]
    limits = RANGES_ML[species]
    for structure, (low, high) in limits.items():
        outside = (name == structure) & (ml > 0) & ~ml.is_between(low, high)
        checks.append((outside, pl.lit(f"{structure} of an impossible volume")))
    return pl.concat([_named(table.filter(bad), reason) for bad, reason in checks])


def still_scans(table: pl.DataFrame) -> pl.DataFrame:
    """All frames of scans whose ventricle does not beat as one does."""
    found = []
    for scan, curves in curves_of(table):
        for structure in ("LV", "RV"):
            if structure in curves and len(curves[structure]) >= MANY:
                ejection = beating(curves[structure], circular=False).ejection_percent
                if not EJECTION_PERCENT[0] <= ejection <= EJECTION_PERCENT[1]:
                    frames = table.filter(pl.col("scan") == scan).unique("frame", maintain_order=True)
                    found.append(_named(frames, f"{structure} does not beat"))
    return pl.concat([*found, _nobody()])


def jumping(table: pl.DataFrame) -> pl.DataFrame:
    """Frames in which a structure does not fit between its neighbors."""
    found = []
    circular = dict(table.select("scan", "circular").unique().iter_rows())
    for scan, curves in curves_of(table):
        for structure, curve in curves.items():
            flagged = beating(curve, circular=circular[scan]).flagged
            reasons = [(scan, t, f"{structure} jumps") for t in flagged]
            found.append(pl.DataFrame(reasons, _nobody().schema, orient="row"))
    return pl.concat([*found, _nobody()])


def disagreeing(table: pl.DataFrame, least: float) -> pl.DataFrame:
    """Frames that agree less than `least` with those of before, where there are such."""
    mean = table.group_by("scan", "frame", maintain_order=True).agg(pl.col("agreement").mean())
    return _named(mean.filter(pl.col("agreement") < least), "differs from the masks of before")


def _nobody() -> pl.DataFrame:
    return pl.DataFrame(schema={"scan": pl.String, "frame": pl.Int64, "reason": pl.String})


def quality(table: pl.DataFrame, species: Species) -> pl.DataFrame:
    """How plausible the masks of each scan are, without any label.

    Returns:
        scan, score: the mean over its frames of the share of checks that it passes, less the share of frames
        that jump; halved where its ventricle does not beat, 0 where nothing was found.
    """
    checks = 5 * len(structures_of(table))
    frames = table.select("scan", "frame").unique(maintain_order=True)
    count = frames.group_by("scan", maintain_order=True).agg(pl.len().alias("frames"))
    parts = {
        "failed": implausible(table, species).group_by("scan").agg(pl.len().alias("failed")),
        "jumps": jumping(table).unique(["scan", "frame"]).group_by("scan").agg(pl.len().alias("jumps")),
        "still": still_scans(table).group_by("scan").agg(pl.lit(1).alias("still")),
        "empty": _empty_scans(table).group_by("scan").agg(pl.lit(1).alias("empty")),
    }
    for part in parts.values():
        count = count.join(part, on="scan", how="left", maintain_order="left")
    count = count.fill_null(0)
    passed = 1 - pl.col("failed") / (checks * pl.col("frames")) - pl.col("jumps") / pl.col("frames")
    score = passed.clip(0, 1) * (1 - 0.5 * pl.col("still")) * (1 - pl.col("empty"))
    return count.select("scan", score.alias("score"))
