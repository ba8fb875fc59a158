"""How many labels pre-training saves: `python analysis/label_efficiency.py [study ...]`.

Of studies that vary `data.label_fraction` in the regimes scratch and pretrained: scores and their paired
differences at each label count, and the labels with which the pre-trained arm reaches what scratch reaches
with its most. Printed, and written as CSV and figure (PNG and PDF).

The library part takes arrays: `label_reduction` and what it needs.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike
from scipy import optimize, stats
from scipy.interpolate import PchipInterpolator

from analysis.estimators import FloatArray, holm, mean_interval, paired_comparison
from analysis.plot_ablation import COLOURS, MARKERS, METRIC_NAMES
from workbench.study.results import (
    StudyRecord,
    UnknownStudy,
    best_tuned,
    select_studies,
    studies,
    trial_table,
)

AXIS = "data.label_fraction"
SCRATCH, PRETRAINED = "scratch", "pretrained"
SHARES = (1.0, 0.97)  # of scratch's score: exact, and what the paper calls "approximately matches"
BOUNDED_BY_ONE = ("mAP", "macro_auc", "lwlrap", "accuracy")
GRID_POINTS = 2001  # over the measured range; four octaves in steps of 0.14 %


# The estimate


class Reach(StrEnum):
    """Where a curve reaches a score."""

    REACHED = "reached"
    NOT_REACHED = "not reached"  # not with the most labels measured
    BELOW_RANGE = "below range"  # with the fewest labels measured already


@dataclass(frozen=True, kw_only=True)
class LabelReduction:
    """Labels with which the pre-trained arm reaches a score of scratch's; nothing is extrapolated.

    share, score: the score to reach is `share` of scratch's mean at `scratch_labels`.
    scratch_labels: with which scratch has its whole score, the reference of the reduction.
    reach, labels: on the monotone curve, straight between means over log labels; labels is None unless
        reached.
    labels_low, labels_high: their interval; 0 and infinity where it is open, that is where the range
        measured does not bound it; NaN with one replicate.
    smooth_labels: as labels, on a smooth monotone curve (PCHIP). The interval spans both.
    power_law_labels: as labels, by a power law fitted to each curve; None outside the range or without fit.
    own_labels: with which scratch's own curve reaches the score; less than `scratch_labels` where the
        share is below 1 or scratch has levelled off, and then part of the reduction is none of
        pre-training's. None if below its range.
    smallest, largest: range of the pre-trained arm's labels.
    n: replicates.
    """

    share: float
    score: float
    scratch_labels: float
    reach: Reach
    labels: float | None
    labels_low: float
    labels_high: float
    smooth_labels: float | None
    power_law_labels: float | None
    own_labels: float | None
    smallest: float
    largest: float
    n: int

    @property
    def reduction(self) -> float | None:
        """1 - labels / scratch_labels; negative if pre-training needs more; None unless reached."""
        return None if self.labels is None else 1 - self.labels / self.scratch_labels

    @property
    def reduction_low(self) -> float:
        """Minus infinity where the interval is open."""
        return 1 - self.labels_high / self.scratch_labels

    @property
    def reduction_high(self) -> float:
        """1 where the interval is open."""
        return 1 - self.labels_low / self.scratch_labels


def label_reduction(
    scratch_labels: ArrayLike,
    scratch: ArrayLike,
    pretrained_labels: ArrayLike,
    pretrained: ArrayLike,
    *,
    share: float = 1.0,
    at: float | None = None,
    confidence: float = 0.95,
    ceiling: float | None = 1.0,
) -> LabelReduction:
    """Labels with which `pretrained` (n, P) has `share` of the score of `scratch` (n, S), and the reduction.

    `scratch_labels` (S,) and `pretrained_labels` (P,) are label counts, rising. Row i of both arms is the
    same replicate. `at` is the one of scratch's counts that is compared with (its largest). `ceiling` is
    the best possible score, for the power law; None for scores without one.

    The curve is the isotonic regression of the means, straight between them over log labels, as the paper
    reads its table. The interval holds each label count at which a paired t-test over replicates does not
    tell the curve from the score (Fieller's method, so that the noise of both arms and their pairing
    count). The curve may lie anywhere from the straight to the smooth one: between measured counts its
    shape is unknown, and with many replicates this is what is left. Noise may differ between levels. A
    bootstrap over few replicates is much too narrow (`bootstrap_labels`).

    Raises:
        ValueError: counts that do not rise or are not positive, arms of unequal replicates, fewer than two
            pre-trained counts, a share outside 0..1, or `at` not among scratch's.
    """
    own_counts, own = _checked_curve(scratch_labels, scratch)
    counts, scores = _checked_curve(pretrained_labels, pretrained)
    if len(own) != len(scores):
        raise ValueError(f"arms need the same replicates, got {len(own)} and {len(scores)}")
    if len(counts) < 2:
        raise ValueError("a curve needs two label counts at least")
    if not 0 < share <= 1 or not 0 < confidence < 1:
        raise ValueError(f"share lies within 0..1, as does confidence, got {share} and {confidence}")
    column = len(own_counts) - 1 if at is None else int(np.argmin(np.abs(own_counts - at)))
    if at is not None and own_counts[column] != at:
        raise ValueError(f"scratch has no score at {at:g} labels, only at {own_counts.tolist()}")

    place = np.log2(counts)
    means, pooled = _monotone(scores)
    targets = share * own[:, column]
    target = float(targets.mean())
    reach, straight = first_reach(place, means, target, smooth=False)
    _, smooth = first_reach(place, means, target, smooth=True)
    low, high = _interval(place, pooled, targets, reach, [straight, smooth], confidence)
    own_place = None
    if len(own_counts) > 1:
        own_place = first_reach(np.log2(own_counts), _monotone(own)[0], target, smooth=False)[1]
    return LabelReduction(
        share=share,
        score=target,
        scratch_labels=float(own_counts[column]),
        reach=reach,
        labels=_count(straight),
        labels_low=low,
        labels_high=high,
        smooth_labels=_count(smooth),
        power_law_labels=_by_power_law(own_counts, own, column, counts, scores, share, ceiling),
        own_labels=_count(own_place),
        smallest=float(counts[0]),
        largest=float(counts[-1]),
        n=len(scores),
    )


def first_reach(
    place: FloatArray, means: FloatArray, target: float, *, smooth: bool
) -> tuple[Reach, float | None]:
    """Where the curve through `means` (P,) at `place` (P,), never falling, first reaches `target`.

    Straight between the points, or PCHIP, which is monotone between them, too. None outside of them.
    """
    slack = 1e-12 * max(1.0, abs(target))  # a mean may be off its own value by rounding
    if target < means[0] - slack:
        return Reach.BELOW_RANGE, None
    if target > means[-1] + slack:
        return Reach.NOT_REACHED, None
    i = int(np.argmax(means >= target - slack))
    if i == 0 or means[i] <= target + slack:
        return Reach.REACHED, float(place[i])
    if smooth:
        curve = PchipInterpolator(place, means)
        return Reach.REACHED, float(
            optimize.brentq(lambda x: float(curve(x)) - target, place[i - 1], place[i])
        )
    part = (target - means[i - 1]) / (means[i] - means[i - 1])
    return Reach.REACHED, float(place[i - 1] + part * (place[i] - place[i - 1]))


@dataclass(frozen=True)
class PowerLaw:
    """ceiling - score = scale * labels ** -exponent.

    residual: root mean square of score less curve, in the unit of the score. Large: no power law.
    """

    ceiling: float
    scale: float
    exponent: float
    residual: float

    @classmethod
    def fit(cls, labels: ArrayLike, means: ArrayLike, ceiling: float = 1.0) -> PowerLaw | None:
        """Least squares of log(ceiling - score) over log labels (P,); None if it cannot be fitted."""
        counts, scores = np.asarray(labels, dtype=float), np.asarray(means, dtype=float)
        if len(counts) < 2 or not (scores < ceiling).all():
            return None
        slope, offset = np.polyfit(np.log(counts), np.log(ceiling - scores), 1)
        law = cls(ceiling, float(np.exp(offset)), -float(slope), 0.0)
        residual = float(np.sqrt(np.mean((scores - law.score(counts)) ** 2)))
        return cls(law.ceiling, law.scale, law.exponent, residual)

    def score(self, labels: ArrayLike) -> FloatArray:
        """At label counts of any shape."""
        return np.asarray(self.ceiling - self.scale * np.asarray(labels, dtype=float) ** -self.exponent)

    def labels(self, score: float) -> float | None:
        """With which the law has `score`; None if it never has."""
        if self.exponent <= 0 or score >= self.ceiling:
            return None
        log_labels = math.log(self.scale / (self.ceiling - score)) / self.exponent
        return math.exp(log_labels) if log_labels < 700 else None


def bootstrap_labels(
    scratch: ArrayLike,
    pretrained_labels: ArrayLike,
    pretrained: ArrayLike,
    generator: np.random.Generator,
    *,
    share: float = 1.0,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Percentile bootstrap over replicates, drawn in pairs, of what `label_reduction` calls labels.

    `scratch` (n,) at its largest count. For comparison only: its 95 % interval covers 63 to 89 % with 3 to
    10 replicates (`analysis.bench_coverage`).
    """
    reference = np.asarray(scratch, dtype=float)
    counts, scores = _checked_curve(pretrained_labels, pretrained)
    place, n = np.log2(counts), len(scores)
    drawn = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(n, size=n)
        target = share * float(reference[rows].mean())
        reach, x = first_reach(place, _monotone(scores[rows])[0], target, smooth=False)
        drawn[i] = 2.0**x if x is not None else 0.0 if reach is Reach.BELOW_RANGE else math.inf
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")  # the others average with inf
    return float(low), float(high)


def _checked_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    counts, values = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or counts.shape != values.shape[1:] or values.size == 0:
        raise ValueError(f"scores must be (n, labels), got {values.shape} for labels of {counts.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite; leave out the replicates that lack one, and say so")
    if not np.isfinite(counts).all() or counts[0] <= 0 or (np.diff(counts) <= 0).any():
        raise ValueError(f"label counts must be positive and rise, got {counts.tolist()}")
    return counts, values


def _monotone(scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The means of `scores` (n, P) by isotonic regression (P,), and each replicate pooled as they are."""
    fit = optimize.isotonic_regression(scores.mean(axis=0))
    pooled = scores.copy()
    for first, end in zip(fit.blocks[:-1], fit.blocks[1:], strict=True):
        pooled[:, first:end] = scores[:, first:end].mean(axis=1, keepdims=True)
    return fit.x, pooled


def _interval(
    place: FloatArray,
    pooled: FloatArray,
    targets: FloatArray,
    reach: Reach,
    estimates: list[float | None],
    confidence: float,
) -> tuple[float, float]:
    """Label counts, 0 and infinity where the range does not bound them."""
    n = len(pooled)
    if n == 1:
        return math.nan, math.nan
    grid = np.union1d(np.linspace(place[0], place[-1], GRID_POINTS), place)
    straight = np.array([np.interp(grid, place, row) for row in pooled])
    smooth = PchipInterpolator(place, pooled, axis=1)(grid)
    lacking = np.stack([straight, smooth]) - targets[:, None]  # (2, n, grid)
    mean, error = lacking.mean(axis=1), lacking.std(axis=1, ddof=1) / math.sqrt(n)
    critical = _critical(np.abs(mean[1] - mean[0]), error.max(axis=0), n - 1, confidence)
    # Between both curves, and beyond either as far as its own noise may have it.
    within = ((mean - critical * error).min(axis=0) <= 0) & ((mean + critical * error).max(axis=0) >= 0)
    # A finer set than the grid's steps still holds its estimates.
    inside = [*grid[within], *(x for x in estimates if x is not None)]
    if reach is Reach.BELOW_RANGE:
        inside.append(grid[0])
    if reach is Reach.NOT_REACHED:
        inside.append(grid[-1])
    low = 0.0 if within[0] or reach is Reach.BELOW_RANGE else float(2.0 ** min(inside))
    high = math.inf if within[-1] or reach is Reach.NOT_REACHED else float(2.0 ** max(inside))
    return low, high


def _critical(gap: FloatArray, standard_error: FloatArray, freedom: int, confidence: float) -> FloatArray:
    """Standard errors beyond either end of a gap, so that a truth anywhere within it is covered as claimed.

    Student's two-sided quantile where there is no gap; with a wide one the one-sided, for a truth at one
    end is then never missed at the other (Imbens and Manski 2004). All are (grid,).
    """
    student = stats.t(freedom)
    critical = np.linspace(student.ppf(confidence), student.ppf((1 + confidence) / 2), 201)
    relative_gap = student.ppf(np.minimum(1.0, confidence + student.cdf(-critical))) - critical
    relative_gap[0], relative_gap[-1] = np.inf, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.nan_to_num(gap / standard_error, posinf=1e9)
    return np.interp(wanted, relative_gap[:0:-1], critical[:0:-1])


def _by_power_law(
    own_counts: FloatArray,
    own: FloatArray,
    column: int,
    counts: FloatArray,
    scores: FloatArray,
    share: float,
    ceiling: float | None,
) -> float | None:
    if ceiling is None:
        return None
    law = PowerLaw.fit(counts, scores.mean(axis=0), ceiling)
    own_law = PowerLaw.fit(own_counts, own.mean(axis=0), ceiling)
    if law is None:
        return None
    full = own[:, column].mean() if own_law is None else own_law.score(own_counts[column])
    labels = law.labels(share * float(full))
    return labels if labels is not None and counts[0] <= labels <= counts[-1] else None


def _count(place: float | None) -> float | None:
    return None if place is None else float(2.0**place)


# A study's table


class NoCurves(ValueError):
    """A table that has not both curves."""


@dataclass(frozen=True)
class Curves:
    """Both arms of a study.

    scratch (n, S), pretrained (n, P): test scores; row i is replicate i of both.
    left_out: replicates that lack a trial.
    """

    scratch_labels: FloatArray
    scratch: FloatArray
    pretrained_labels: FloatArray
    pretrained: FloatArray
    replicates: list[str]
    left_out: list[str]


def is_suitable(record: StudyRecord) -> bool:
    """Whether a study compares scratch with pre-trained over label counts."""
    return AXIS in record.axes and {SCRATCH, PRETRAINED} <= set(record.regimes) and not record.search


def study_curves(record: StudyRecord, table: pd.DataFrame) -> Curves:
    """The finished trials of `table`, by replicates (seed, fold) that have every label count in both arms.

    Raises:
        NoCurves: not such a study, no such replicate, fewer than two label counts, or several trials to one.
    """
    if not is_suitable(record):
        raise NoCurves(f"{record.id}: does not vary {AXIS} in the regimes {SCRATCH} and {PRETRAINED}")
    metric = f"test/{record.metric}"
    if not len(table) or not (table["state"] == "complete").any():
        raise NoCurves(f"{record.id}: no finished trial")
    done = best_tuned(record, table[table["state"] == "complete"])
    done = done.assign(fold=pd.to_numeric(done["fold"]).fillna(-1).astype(int))
    place = ["regime", "seed", "fold", AXIS]
    if done.duplicated(place).any():
        raise NoCurves(
            f"{record.id}: several trials to a label count and seed; it varies something else, too"
        )
    arms = {}
    for regime in (SCRATCH, PRETRAINED):
        rows = done[done["regime"] == regime]
        arms[regime] = rows.pivot(index=["seed", "fold"], columns=AXIS, values=metric)
    both = pd.concat(arms, axis=1)
    complete = both.dropna()
    if not len(complete) or arms[PRETRAINED].shape[1] < 2 or not arms[SCRATCH].shape[1]:
        raise NoCurves(
            f"{record.id}: no seed has finished every label count in both regimes, of two or more; "
            "run the study to its end"
        )
    counts = done.groupby(AXIS)["labelled_clips"].mean()
    fractions = {regime: counts[complete[regime].columns].sort_values() for regime in arms}
    return Curves(
        fractions[SCRATCH].to_numpy(float),
        complete[SCRATCH][fractions[SCRATCH].index].to_numpy(float),
        fractions[PRETRAINED].to_numpy(float),
        complete[PRETRAINED][fractions[PRETRAINED].index].to_numpy(float),
        [_replicate_name(*name) for name in complete.index],
        [_replicate_name(*name) for name in both.index.difference(complete.index)],
    )


def _replicate_name(seed: int, fold: int) -> str:
    return f"seed {seed}" if fold < 0 else f"seed {seed} fold {fold}"


def level_table(curves: Curves) -> pd.DataFrame:
    """A row a label count: mean and 95 % interval of each arm, and of pretrained - scratch where both are.

    `p` is of the paired t-test, `p_holm` corrected for the study's label counts.
    """
    arms = {
        SCRATCH: dict(zip(curves.scratch_labels, curves.scratch.T, strict=True)),
        PRETRAINED: dict(zip(curves.pretrained_labels, curves.pretrained.T, strict=True)),
    }
    rows = []
    for labels in sorted(arms[SCRATCH] | arms[PRETRAINED]):
        row: dict[str, float] = {"labels": labels, "n": len(curves.replicates)}
        for name, scores in arms.items():
            if labels in scores:
                interval = mean_interval(scores[labels])
                row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        if all(labels in scores for scores in arms.values()):
            found = paired_comparison(arms[SCRATCH][labels], arms[PRETRAINED][labels])
            row |= {"difference": found.mean, "difference_low": found.low, "difference_high": found.high}
            row["p"] = found.p_value
        rows.append(row)
    levels = pd.DataFrame(rows).reindex(columns=LEVEL_COLUMNS)
    tested = levels["p"].notna()
    if tested.any():
        levels.loc[tested, "p_holm"] = holm(levels.loc[tested, "p"])
    return levels


LEVEL_COLUMNS = [
    "labels",
    *(f"{arm}{end}" for arm in (SCRATCH, PRETRAINED, "difference") for end in ("", "_low", "_high")),
    "p",
    "p_holm",
    "n",
]


def study_reductions(record: StudyRecord, curves: Curves) -> list[LabelReduction]:
    """One for each of `SHARES`."""
    return [
        label_reduction(
            curves.scratch_labels,
            curves.scratch,
            curves.pretrained_labels,
            curves.pretrained,
            share=share,
            ceiling=1.0 if record.metric in BOUNDED_BY_ONE else None,
        )
        for share in SHARES
    ]


def reduction_table(reductions: list[LabelReduction]) -> pd.DataFrame:
    """A row a reading; an open end of an interval is empty, as are labels that no count reaches."""
    rows = []
    for found in reductions:
        row = vars(found) | {
            "reach": str(found.reach),
            "reduction": found.reduction,
            "reduction_low": found.reduction_low,
            "reduction_high": found.reduction_high,
        }
        if found.labels_low == 0:
            row |= {"labels_low": None, "reduction_high": None}
        if found.labels_high == math.inf:
            row |= {"labels_high": None, "reduction_low": None}
        rows.append(row)
    return pd.DataFrame(rows)


# Words


def describe(record: StudyRecord, curves: Curves, levels: pd.DataFrame, found: list[LabelReduction]) -> str:
    """The plain table that the command prints."""
    n = len(curves.replicates)
    lines = [f"{record.id}: {METRIC_NAMES[record.metric]}, n = {n} ({', '.join(curves.replicates)})"]
    if curves.left_out:
        lines.append(f"left out, for lack of a trial: {', '.join(curves.left_out)}")
    if n == 1:
        lines.append("one replicate gives no interval")
    lines += [
        "",
        f"{'labels':>9}  {'scratch':>8}  {'pretrained':>10}  {'difference':>10}  "
        f"{'95 % interval':<18}  p (Holm)",
    ]
    for row in levels.to_dict("records"):
        low, high = row["difference_low"], row["difference_high"]
        between = "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
        lines.append(
            f"{row['labels']:9,.0f}  {_number(row[SCRATCH]):>8}  {_number(row[PRETRAINED]):>10}  "
            f"{_number(row['difference'], '+.3f'):>10}  {between:<18}  {_number(row['p_holm'])}"
        )
    most = found[0].scratch_labels
    lines += ["", f"labels that reach the score of scratch with {most:,.0f}, and how many fewer they are:"]
    for item in found:
        name = "exact match" if item.share == 1 else f"{item.share:.0%} of it"
        lines.append(f"  {name} ({item.score:.3f}): {reading(item)}")
        checks = [
            f"smooth curve {_labels(item.smooth_labels)}",
            f"power law {_labels(item.power_law_labels)}",
        ]
        if item.own_labels is not None and item.own_labels < 0.995 * item.scratch_labels:
            checks.append(f"scratch itself {_labels(item.own_labels)}")
        lines.append(f"    for comparison: {', '.join(checks)}")
    return "\n".join(lines)


def reading(found: LabelReduction) -> str:
    """A reduction in words, with its interval."""
    if found.reach is Reach.NOT_REACHED:
        text = f"not reached with {found.largest:,.0f}, the most measured"
    elif found.reach is Reach.BELOW_RANGE:
        least = 1 - found.smallest / found.scratch_labels
        text = f"fewer than {found.smallest:,.0f}, the fewest measured: more than {least:.0%} fewer"
    else:
        text = f"{_labels(found.labels)}: {_fewer(found.reduction)}"
    if math.isnan(found.labels_low):
        return text
    low = f"below {found.smallest:,.0f}" if found.labels_low == 0 else f"{found.labels_low:,.0f}"
    high = f"above {found.largest:,.0f}" if found.labels_high == math.inf else f"{found.labels_high:,.0f}"
    return f"{text} (95 % interval: {low} to {high} labels; {_bounds(found)})"


def _bounds(found: LabelReduction) -> str:
    """The reduction's interval; where it is open the range measured gives no bound."""
    if found.labels_low == 0 and found.labels_high == math.inf:
        return "no bound on either side"
    if found.labels_high == math.inf:
        return f"at most {_fewer(found.reduction_high)}"
    if found.labels_low == 0:
        return f"at least {_fewer(found.reduction_low)}"
    return f"{found.reduction_low:.0%} to {found.reduction_high:.0%} fewer"


def _fewer(reduction: float | None) -> str:
    assert reduction is not None
    return f"{reduction:.0%} fewer" if reduction >= 0 else f"{-reduction:.0%} more"


def _labels(count: float | None) -> str:
    return "none within the range" if count is None else f"{count:,.0f}"


def _number(value: float, form: str = ".3f") -> str:
    return "-" if math.isnan(value) else format(value, form)


# The figure


def draw_efficiency(
    ax: Axes, record: StudyRecord, levels: pd.DataFrame, curves: Curves, found: list[LabelReduction]
) -> Axes:
    """Both curves over log labels, and at each score to reach a line from pre-trained to scratch."""
    arms = (
        (PRETRAINED, curves.pretrained_labels, curves.pretrained),
        (SCRATCH, curves.scratch_labels, curves.scratch),
    )
    for i, (name, counts, scores) in enumerate(arms):
        colour, marker = COLOURS[i], MARKERS[i]
        ax.plot(counts, _monotone(scores)[0], color=colour, linewidth=1.5, zorder=3)
        shown = levels[levels[name].notna()]
        error = np.nan_to_num([shown[name] - shown[f"{name}_low"], shown[f"{name}_high"] - shown[name]])
        ax.errorbar(
            shown["labels"],
            shown[name],
            yerr=error,
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
            linestyle="none",
            label={PRETRAINED: "pre-trained", SCRATCH: "from scratch"}[name],
            zorder=4,
        )
        beside = np.broadcast_to(counts * (1.05 if i else 1 / 1.05), scores.shape)
        ax.scatter(beside, scores, edgecolors=colour, facecolors="none", marker=marker, s=12, zorder=4)
    for item, style in zip(found, ("-", "--"), strict=False):
        _draw_reading(ax, item, style)
    ax.set_xscale("log")
    places = sorted({*curves.scratch_labels, *curves.pretrained_labels})
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{p:,.0f}" for p in places])
    ax.set_xlabel("labelled clips")
    ax.set_ylabel(METRIC_NAMES[record.metric])
    return ax


def _draw_reading(ax: Axes, item: LabelReduction, style: str) -> None:
    """The score as a thin line; on it the interval as a bar, arrows where it is open, and the estimate."""
    name = "score of scratch" if item.share == 1 else f"{item.share:.0%} of it"
    name += f": {_fewer(item.reduction) if item.reach is Reach.REACHED else item.reach}"
    if not math.isnan(item.labels_low):
        name += f" ({_bounds(item)})"
    ax.axhline(item.score, color="0.35", linewidth=0.9, linestyle=style, label=name, zorder=1)
    if not math.isnan(item.labels_low):
        low, high = max(item.labels_low, item.smallest), min(item.labels_high, item.largest)
        ax.plot(
            [low, high],
            [item.score] * 2,
            color="0.25",
            linewidth=4,
            alpha=0.35,
            zorder=2,
            solid_capstyle="butt",
        )
        # An arrow stands beside the range, where it hides no data.
        ends = ((low, item.labels_low == 0, "<", 1 / 1.13), (high, item.labels_high == math.inf, ">", 1.13))
        for end, is_open, arrow, aside in ends:
            x, marker = (end * aside, arrow) if is_open else (end, "|")
            ax.plot(x, item.score, color="0.25", marker=marker, markersize=8, zorder=5)
    if item.labels is not None:
        ax.plot(item.labels, item.score, color="black", marker="D", markersize=5, zorder=6)


def write_study(
    record: StudyRecord, curves: Curves, levels: pd.DataFrame, found: list[LabelReduction], output: Path
) -> list[Path]:
    """Write `<id>-label-efficiency.png` and `.pdf`, `-labels.csv` (a row a count) and `-reduction.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1)
    figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    draw_efficiency(ax, record, levels, curves, found)
    ax.set_title(record.id, loc="left", fontsize="medium")
    n = len(curves.replicates)
    bars = "bars: 95 % intervals, of the mean and of the labels needed (◆)" if n > 1 else "no interval"
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        title=f"n = {n} replicates, each a small mark\n{bars}",
        title_fontsize="small",
        frameon=False,
    )
    stem = f"{record.id}-label-efficiency"
    paths = [output / f"{stem}{end}" for end in (".png", ".pdf", "-labels.csv", "-reduction.csv")]
    figure.savefig(paths[0], dpi=200)
    figure.savefig(paths[1])
    plt.close(figure)
    levels.to_csv(paths[2], index=False)
    reduction_table(found).to_csv(paths[3], index=False)
    return paths


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when a reduction was estimated, or found not to be reached; 2 when there was nothing to estimate."""
    options = _parser().parse_args(arguments)
    try:
        records = select_studies(studies(options.root), options.studies, options.root)
    except UnknownStudy as error:
        print(error, file=sys.stderr)
        return 2
    if not options.studies:
        records = [r for r in records if is_suitable(r)]
    estimated = 0
    for record in records:
        try:
            curves = study_curves(record, trial_table(record, options.root))
        except NoCurves as error:
            print(error, file=sys.stderr)
            continue
        levels, found = level_table(curves), study_reductions(record, curves)
        print(describe(record, curves, levels, found), end="\n\n")
        for path in write_study(record, curves, levels, found, options.output):
            print(path)
        estimated += 1
    if not records:
        print(
            f"no study below {options.root} varies {AXIS} in the regimes {SCRATCH} and {PRETRAINED}; "
            "run one first: make study STUDY=studies/label_fraction.yaml",
            file=sys.stderr,
        )
    return 0 if estimated else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Estimate how many labels pre-training saves.")
    parser.add_argument("studies", nargs="*", help="names or ids; every suitable study if none is given")
    parser.add_argument("--root", type=Path, default=Path("mlruns"), help="default: mlruns")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="default: figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
