"""How many labels one arm needs for a score of the other: from arrays, with an interval."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from analysis.estimators import FloatArray

GRID_POINTS = 2001  # over the measured range; four octaves in steps of 0.14 %


@dataclass(frozen=True)
class ClipDraws:
    """Scores of both arms on test clips that were redrawn with replacement, for all replicates alike.

    scratch (R, n, S), pretrained (R, n, P): row r of both is of the same draw.
    clips: how many test clips there are.
    """

    scratch: FloatArray
    pretrained: FloatArray
    clips: int


class Reach(StrEnum):
    """Where a curve reaches a score."""

    REACHED = "reached"
    NOT_REACHED = "not reached"  # not with the most labels measured
    BELOW_RANGE = "below range"  # with the fewest labels measured already


@dataclass(frozen=True, kw_only=True)
class LabelReduction:
    """Labels with which the pre-trained arm reaches a score of scratch's; nothing is extrapolated.

    share, score: the score to reach is `share` of what scratch's monotone curve has at `scratch_labels`.
    scratch_labels: the count of scratch's that is compared with.
    reference_labels: with which scratch's curve first has its whole score: what the reduction is relative to.
        `scratch_labels` where the means rise to it; fewer where scratch has levelled off or fallen, for what
        it learns nothing from saves no one anything.
    reference_low: the fewest labels measured at which scratch is not told apart from its whole score;
        `reference_labels` with one replicate.
    reach, labels: on the monotone curve, straight between means over log labels; labels is None unless
        reached.
    labels_low, labels_high: their interval; 0 and infinity where it is open, that is where the range
        measured does not bound it; NaN with one replicate.
    smooth_labels: as labels, on a smooth monotone curve (PCHIP). The interval spans both.
    power_law_labels: as labels, by a power law fitted to each curve; None outside the range or without fit.
    own_labels: with which scratch's own curve reaches the score; less than `reference_labels` where the
        share is below 1, and then part of the reduction is none of pre-training's. None if below its range.
    smallest, largest: range of the pre-trained arm's labels.
    n: replicates.
    """

    share: float
    score: float
    scratch_labels: float
    reference_labels: float
    reference_low: float
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
        """1 - labels / reference_labels; negative if pre-training needs more; None unless reached."""
        return None if self.labels is None else 1 - self.labels / self.reference_labels

    @property
    def reduction_low(self) -> float:
        """By the fewest labels that may be scratch's own; minus infinity where the interval is open."""
        return 1 - self.labels_high / self.reference_low

    @property
    def reduction_high(self) -> float:
        """By the most, for a curve may rise less than can be seen; 1 where the interval is open."""
        return 1 - self.labels_low / self.scratch_labels

    @property
    def has_levelled_off(self) -> bool:
        """Whether scratch has its whole score with fewer labels than it is compared at."""
        return self.reference_labels < self.scratch_labels


def label_reduction(
    scratch_labels: ArrayLike,
    scratch: ArrayLike,
    pretrained_labels: ArrayLike,
    pretrained: ArrayLike,
    *,
    share: float = 1.0,
    at: float | None = None,
    overlap: float = 0.0,
    confidence: float = 0.95,
    ceiling: float | None = 1.0,
    draws: ClipDraws | None = None,
) -> LabelReduction:
    """Labels with which `pretrained` (n, P) has `share` of the score of `scratch` (n, S), and the reduction.

    `scratch_labels` (S,) and `pretrained_labels` (P,) are label counts, rising. Row i of both arms is the
    same replicate. `at` is the one of scratch's counts that is compared with (its largest). `overlap` is that
    of test folds, as in `mean_interval`. `ceiling` is the best possible score, for the power law; None for
    scores without one. `draws` are of test clips that all replicates share; None where each has its own.

    Both curves are the isotonic regression of the means, straight between them over log labels, as the paper
    reads its table; the score is scratch's curve's. The interval of the labels holds each count at which a
    paired t-test over replicates does not tell the pre-trained curve from the score (Fieller's method, so
    that the noise of both arms and their pairing count); with `draws` over test clips as well, both combined
    as in `crossed_comparison`. The curve may lie anywhere among a straight and two smooth ones: between
    measured counts its shape is unknown, and with many replicates this is what is left. Noise may differ
    between levels. A bootstrap over few replicates is much too narrow (`bootstrap_labels`).

    Where scratch no longer rises, the score takes it fewer labels than it had, and the reduction is relative
    to these. Whether it does is not certain: the interval of the reduction is relative to the fewest labels
    that may be scratch's own at its low end, and to `at` at its high one.

    Raises:
        ValueError: counts that do not rise or are not positive, arms of unequal replicates, fewer than two
            pre-trained counts, a share outside 0..1, `at` not among scratch's, or draws of another shape.
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
    if draws is not None:
        _check_draws(draws, own, scores)

    place = np.log2(counts)
    means, pool = monotone(scores)
    own_means, own_pool = monotone(own)
    targets = share * (own @ own_pool)[:, column]
    target = share * float(own_means[column])
    reach, straight = first_reach(place, means, target, smooth=False)
    _, smooth = first_reach(place, means, target, smooth=True)
    low, high = math.nan, math.nan
    reference = first_level = int(np.argmax(own_means == own_means[column]))
    if len(scores) > 1:
        grid = np.union1d(np.linspace(place[0], place[-1], GRID_POINTS), place)
        lacking = _lacking(place, scores @ pool, targets, grid)
        clip_error = np.zeros(len(grid))
        if draws is not None:
            redrawn_targets = share * (draws.scratch @ own_pool)[..., column]
            redrawn = _lacking(place, draws.pretrained @ pool, redrawn_targets, grid)
            clip_error = _shared_deviation(redrawn)
        within = _not_told_apart(lacking, clip_error, draws.clips if draws else 0, overlap, confidence)
        low, high = _bounds(grid, within, reach, [straight, smooth])
        first_level = min(reference, _first_level(own, own_pool, column, draws, overlap, confidence))
    own_place = None
    if len(own_counts) > 1:
        own_place = first_reach(np.log2(own_counts), own_means, target, smooth=False)[1]
    return LabelReduction(
        share=share,
        score=target,
        scratch_labels=float(own_counts[column]),
        reference_labels=float(own_counts[reference]),
        reference_low=float(own_counts[first_level]),
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
        reach, x = first_reach(place, monotone(scores[rows])[0], target, smooth=False)
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


def _check_draws(draws: ClipDraws, own: FloatArray, scores: FloatArray) -> None:
    shapes = draws.scratch.shape, draws.pretrained.shape
    wanted = tuple((len(draws.pretrained), *one.shape) for one in (own, scores))
    if not (np.isfinite(draws.scratch).all() and np.isfinite(draws.pretrained).all()):
        raise ValueError("draws must be finite: a metric that some redraws do not define has no interval")
    if shapes != wanted or len(draws.pretrained) < 2 or draws.clips < 2:
        raise ValueError(
            f"draws must be of two clips or more, and two or more of {own.shape} and {scores.shape}, "
            f"got {shapes[0]} and {shapes[1]} of {draws.clips} clips"
        )


def monotone(scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The means of `scores` (n, P) by isotonic regression (P,), and what pools other scores so (P, P)."""
    fit = optimize.isotonic_regression(scores.mean(axis=0))
    pool = np.zeros((scores.shape[1], scores.shape[1]))
    for first, end in itertools.pairwise(fit.blocks):
        pool[first:end, first:end] = 1 / (end - first)
    return fit.x, pool


def _lacking(place: FloatArray, scores: FloatArray, targets: FloatArray, grid: FloatArray) -> FloatArray:
    """How far curves through scores (..., P) exceed targets (...): (3, ..., G).

    Straight, and two smooth ones: PCHIP, and modified Akima, which bends more where a curve levels off.
    """
    straight = scores @ np.array([np.interp(grid, place, one) for one in np.eye(len(place))])
    smooth = PchipInterpolator(place, scores, axis=-1)(grid)
    bent = Akima1DInterpolator(place, scores, axis=-1, method="makima")(grid)
    return np.stack([straight, smooth, bent]) - targets[..., None]


def _first_level(
    own: FloatArray,
    pool: FloatArray,
    column: int,
    draws: ClipDraws | None,
    overlap: float,
    confidence: float,
) -> int:
    """The first count at which scratch (n, S), made monotone, is not told apart from itself in `column`."""

    def still_to_rise(scores: FloatArray) -> FloatArray:
        fitted = scores @ pool
        return (fitted[..., [column]] - fitted[..., : column + 1])[None]

    clip_error = _shared_deviation(still_to_rise(draws.scratch)) if draws else np.zeros((1, column + 1))
    clips = draws.clips if draws else 0
    return int(np.argmax(_not_told_apart(still_to_rise(own), clip_error, clips, overlap, confidence)))


def _shared_deviation(redrawn: FloatArray) -> FloatArray:
    """What redrawn clips do to all replicates alike (C, G), from (C, R, n, G), of C curves.

    The root of the mean covariance of two replicates.
    """
    n = redrawn.shape[2]
    of_sum, own = redrawn.sum(axis=2).var(axis=1, ddof=1), redrawn.var(axis=1, ddof=1).sum(axis=1)
    return np.sqrt(np.maximum(0.0, of_sum - own) / (n * (n - 1)))


def _not_told_apart(
    lacking: FloatArray, clip_error: FloatArray, clips: int, overlap: float, confidence: float
) -> NDArray[np.bool_]:
    """Where on the grid what is lacking (C, n, G) may be nothing.

    Between the curves, and beyond any as far as its own noise may have it.
    """
    n = lacking.shape[1]
    mean, error = lacking.mean(axis=1), lacking.std(axis=1, ddof=1) * math.sqrt(1 / n + overlap)
    gap = mean.max(axis=0) - mean.min(axis=0)
    critical = _critical(gap, np.hypot(error, clip_error).max(axis=0), n - 1, confidence)
    half_width = critical * error
    if clips:  # each source at the same error rate, by its own degrees of freedom
        by_clips = stats.t(clips - 1).isf(stats.t(n - 1).sf(critical))
        half_width = np.hypot(half_width, by_clips * clip_error)
    return np.asarray(((mean - half_width).min(axis=0) <= 0) & ((mean + half_width).max(axis=0) >= 0))


def _bounds(
    grid: FloatArray, within: NDArray[np.bool_], reach: Reach, estimates: list[float | None]
) -> tuple[float, float]:
    """Label counts, 0 and infinity where the range does not bound them."""
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
    full = monotone(own)[0][column] if own_law is None else own_law.score(own_counts[column])
    labels = law.labels(share * float(full))
    return labels if labels is not None and counts[0] <= labels <= counts[-1] else None


def _count(place: float | None) -> float | None:
    return None if place is None else float(2.0**place)
