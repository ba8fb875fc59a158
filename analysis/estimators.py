"""Intervals, tests and label efficiency: estimators that take arrays and, if random, a generator.

Values carry whatever unit they come in, and so do the intervals. Every function refuses, with a
ValueError, empty arrays, values that are not finite and a confidence outside 0..1.

A study has 3 to 10 replicates (seeds, label subsets). Percentile bootstraps over so few cover far less
than they claim, so that intervals here rest on Student's t, which is exact for normal noise however few;
resampling is for test clips, of which there are hundreds. `python -m analysis.bench_coverage` measures it.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from workbench.study.power import CONFIDENCE, detectable_difference

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its two-sided confidence interval.

    mean: the estimate; for a bootstrap, the statistic of the values as they are.
    low, high: ends of the interval, in the unit of the values; NaN where none can be given.
    n: number of values (seeds, pairs or rows) behind the estimate.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison(Interval):
    """A mean difference between two arms, its interval, and a two-sided test of no difference.

    p_value: NaN where one replicate gives none.
    deviation: standard deviation of a pair's difference, in the unit of the values; NaN likewise.
    standard_error: of the mean, by the replicates; NaN likewise.
    clip_error: what the test clips that all replicates share add to it; 0 where they share none.
    clips: how many they are.
    overlap: of the replicates' training sets; 0 where these are independent.
    n: replicates.
    """

    p_value: float
    deviation: float
    standard_error: float
    clip_error: float = 0.0
    clips: int = 0
    overlap: float = 0.0

    @property
    def has_spread(self) -> bool:
        """False where all replicates have the same difference: their spread is unknown, and no test holds."""
        return self.n == 1 or self.standard_error > 0

    def p_against(self, value: float) -> float:
        """Two-sided p value of a true mean of `value`."""
        return _two_sided(abs(self.mean - value), self.standard_error, self.n, self.clip_error, self.clips)

    def ends(self, confidence: float) -> tuple[float, float]:
        """Of its interval at another confidence than its own."""
        half_width = _half_width(1 - confidence, self.standard_error, self.n, self.clip_error, self.clips)
        return self.mean - half_width, self.mean + half_width

    def p_outside(self, margin: float) -> float:
        """Of a true mean that lies outside of -margin..margin: the larger of two one-sided p values.

        Below 0.05 the two arms are equivalent (Schuirmann 1987).
        """
        distance = margin - abs(self.mean)  # to the nearer end, whose p value is the larger
        half = _two_sided(abs(distance), self.standard_error, self.n, self.clip_error, self.clips) / 2
        return half if distance > 0 else 1 - half


@dataclass(frozen=True, kw_only=True)
class Equivalence(Interval):
    """Whether a mean difference lies within -margin..margin.

    low, high: the interval that lies within the margin just when the arms are equivalent (90 % for an
    error rate of 5 %, for each side is tested at 5 %).
    p_value: the larger of the two one-sided p values.
    """

    margin: float
    p_value: float
    equivalent: bool


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether scores rise or fall over ordered levels.

    direction: +1 rising, -1 falling, 0 neither, by the sign of Page's statistic against its expectation.
    p_value: two-sided, of Page's test.
    slope: change a level, by the least-squares line of each replicate, with its t interval over these.
    reversals: each i where the mean at level i + 1 goes against the direction. A trend can be significant
        and still have one: only an empty tuple is a monotone curve.
    """

    direction: int
    p_value: float
    slope: Interval
    reversals: tuple[int, ...]


def mean_interval(values: ArrayLike, *, overlap: float = 0.0, confidence: float = 0.95) -> Interval:
    """Student-t interval of the mean of `values` (n,), one value a replicate.

    Exact for independent normal values with unknown variance. One value says nothing of its own
    spread, so n = 1 gives low = high = NaN.

    Test folds share most of their training recordings, so that they vary less than independent replicates
    would. The variance of their mean is therefore taken as s^2 (1 / n + overlap), with `overlap` the size of
    a test fold over that of its training folds (Nadeau and Bengio 2003); it is 0 for seeds.
    """
    sample = _checked_values(values)
    if sample.ndim != 1:
        raise ValueError(f"values must be (n,), one a seed, got shape {sample.shape}")
    _check_confidence(confidence)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, n=1)
    standard_error = float(sample.std(ddof=1)) * math.sqrt(1 / sample.size + overlap)
    half_width = float(stats.t.ppf((1 + confidence) / 2, df=sample.size - 1)) * standard_error
    return Interval(mean=mean, low=mean - half_width, high=mean + half_width, n=sample.size)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student-t interval of mean(b - a), for `a` and `b` (n,) of the same seeds in the same order.

    Pairing removes what a seed does to both sides alike. The order is the caller's to ensure: it
    cannot be checked here.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = _checked_values(a), _checked_values(b)
    if first.shape != second.shape:
        raise ValueError(
            f"pairs need the same seeds on both sides, got shapes {first.shape} and "
            f"{second.shape}; keep the seeds that both have"
        )
    return mean_interval(second - first, confidence=confidence)


def paired_comparison(
    a: ArrayLike, b: ArrayLike, *, overlap: float = 0.0, confidence: float = 0.95
) -> Comparison:
    """`paired_difference` with the paired t-test's p value, for `a` and `b` (n,).

    `overlap` as in `mean_interval`.

    Not by resampling: with 3 replicates a sign flip cannot give p < 0.25, and a percentile bootstrap's
    95 % interval covers 72 %.
    """
    interval = paired_difference(a, b, confidence)
    if interval.n == 1:
        return _alone(interval.mean)
    deviation = float((_checked_values(b) - _checked_values(a)).std(ddof=1))
    return _comparison(interval.mean, deviation, interval.n, 0.0, 0, confidence, overlap)


def hierarchical_comparison(
    difference: Callable[[int, IntArray], float],
    num_replicates: int,
    num_clips: int,
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Comparison:
    """Mean difference between two arms over replicates and over the test clips that all of them share.

    `difference(replicate, clips)` is the score of one arm less the other's, in one replicate, on the test
    clips with these indices (k,); an index comes more than once in a resample. `per_clip_difference` makes
    it of arrays. Where each replicate has its own test clips, `paired_comparison` already covers them.

    Two sources vary crosswise. Over replicates, the variance of the mean is that of the replicates'
    differences. Over clips it is bootstrapped: clips are redrawn, the same for all replicates, and what the
    clips do to all of them alike is the mean covariance of two replicates' differences (what they do to
    one alone is within the former). The half-width is the root of the summed squares of both sources' own
    t intervals: a sum of variances with one t quantile (Satterthwaite's degrees of freedom) is too narrow
    where two or three replicates happen to agree, the more so far out in the tails.

    Raises:
        ValueError: no replicate, no clip, fewer than two resamples, or a difference that is not finite.
    """
    if num_replicates < 1 or num_clips < 1 or resamples < 2:
        raise ValueError(
            "needs one replicate, one clip and two resamples at least, got "
            f"{num_replicates}, {num_clips} and {resamples}"
        )
    every_clip = np.arange(num_clips)
    redrawn = np.empty((resamples, num_replicates))
    for row in redrawn if num_replicates > 1 else ():
        clips = generator.integers(num_clips, size=num_clips)
        row[:] = [difference(r, clips) for r in range(num_replicates)]
    differences = [difference(r, every_clip) for r in range(num_replicates)]
    if num_replicates == 1:
        return _alone(float(_checked_values(differences)[0]))
    return crossed_comparison(differences, redrawn, num_clips, confidence=confidence)


def crossed_comparison(
    differences: ArrayLike, redrawn: ArrayLike, num_clips: int, *, confidence: float = 0.95
) -> Comparison:
    """`hierarchical_comparison` from what it computes first.

    differences: (n,) of each replicate, n > 1. redrawn: (resamples, n), of the same draw of clips in a row.
    """
    _check_confidence(confidence)
    values, resampled = _checked_values(differences), _checked_values(redrawn)
    n = len(values)
    if n < 2 or resampled.ndim != 2 or resampled.shape[0] < 2 or resampled.shape[1] != n:
        raise ValueError(f"needs (n > 1,) and (resamples > 1, n), got {values.shape} and {resampled.shape}")
    covariance = np.cov(resampled, rowvar=False)
    shared = covariance[~np.eye(n, dtype=bool)].mean()
    clip_error = math.sqrt(max(0.0, float(shared)))
    deviation = float(values.std(ddof=1))
    return _comparison(float(values.mean()), deviation, n, clip_error, num_clips, confidence)


def _comparison(
    mean: float,
    deviation: float,
    n: int,
    clip_error: float,
    clips: int,
    confidence: float,
    overlap: float = 0.0,
) -> Comparison:
    standard_error = deviation * math.sqrt(1 / n + overlap)
    half_width = _half_width(1 - confidence, standard_error, n, clip_error, clips)
    return Comparison(
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        n=n,
        p_value=_two_sided(abs(mean), standard_error, n, clip_error, clips),
        deviation=deviation,
        standard_error=standard_error,
        clip_error=clip_error,
        clips=clips,
        overlap=overlap,
    )


def _half_width(error_rate: float, standard_error: float, n: int, clip_error: float, clips: int) -> float:
    by_replicates = float(stats.t.isf(error_rate / 2, n - 1)) * standard_error
    if clip_error == 0 or clips < 2:
        return by_replicates
    return math.hypot(by_replicates, float(stats.t.isf(error_rate / 2, clips - 1)) * clip_error)


def _two_sided(distance: float, standard_error: float, n: int, clip_error: float, clips: int) -> float:
    """The error rate whose interval just reaches so far."""
    if math.isnan(standard_error):
        return math.nan
    if clip_error == 0 or clips < 2:
        if standard_error == 0:
            return 1.0 if distance == 0 else 0.0
        return float(2 * stats.t.sf(distance / standard_error, n - 1))

    rates, by_replicates, by_clips = _quantiles(n, clips)
    half_widths = np.hypot(by_replicates * standard_error, by_clips * clip_error)
    return float(np.exp(np.interp(distance, half_widths, np.log(rates))))


@functools.lru_cache
def _quantiles(n: int, clips: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Error rates from 1 down, and the t quantiles of both sources at them."""
    rates = np.geomspace(1.0, 1e-12, 1000)
    return rates, stats.t.isf(rates / 2, n - 1), stats.t.isf(rates / 2, clips - 1)


def _alone(mean: float) -> Comparison:
    """Of one replicate, which says nothing of its own spread."""
    nan = math.nan
    return Comparison(mean=mean, low=nan, high=nan, n=1, p_value=nan, deviation=nan, standard_error=nan)


def per_clip_difference(a: ArrayLike, b: ArrayLike) -> Callable[[int, IntArray], float]:
    """What `hierarchical_comparison` takes, of scores (n, num_clips) whose mean over clips is the score."""
    first, second = _checked_values(a), _checked_values(b)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"scores must be (replicates, clips) on both sides, got {first.shape} and {second.shape}"
        )
    gain = second - first
    return lambda replicate, clips: float(gain[replicate, clips].mean())


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's adjusted p values (m,), in the order given: reject where one is below the error rate.

    The chance of a single wrong rejection among the m tests of a study is then at most that rate, however
    the tests depend on each other (Holm 1979).

    Raises:
        ValueError: a value outside 0..1.
    """
    values = _checked_values(p_values)
    if values.ndim != 1 or values.min() < 0 or values.max() > 1:
        raise ValueError(f"p values must be (m,) and within 0..1, got {values}")
    order = np.argsort(values, kind="stable")
    remaining = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * remaining))
    return adjusted


def equivalence(a: ArrayLike, b: ArrayLike, margin: float, *, error_rate: float = 0.05) -> Equivalence:
    """Two one-sided paired t-tests of |mean(b - a)| < margin, for `a` and `b` (n,) (Schuirmann 1987).

    `margin`, in the unit of the values, is to be set before the data are seen. "No significant difference"
    is no evidence of equality; this is. One pair is never enough: p_value is NaN and `equivalent` false.

    Raises:
        ValueError: a margin that is not positive, or an error rate outside 0..0.5.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be positive, in the unit of the values, got {margin}")
    if not 0.0 < error_rate < 0.5:
        raise ValueError(f"error_rate lies between 0 and 0.5 (0.05 for 5 %), got {error_rate}")
    interval = paired_difference(a, b, confidence=1 - 2 * error_rate)
    if interval.n == 1:
        return Equivalence(**vars(interval), margin=margin, p_value=math.nan, equivalent=False)
    p_value = paired_comparison(a, b).p_outside(margin)
    return Equivalence(**vars(interval), margin=margin, p_value=p_value, equivalent=p_value < error_rate)


def monotonic_trend(scores: ArrayLike, *, confidence: float = 0.95) -> Trend:
    """Page's test of `scores` (n, num_levels): a row a replicate, levels in their order.

    Ranks within a replicate, so that what a replicate does to all levels alike cancels; the p value is
    exact for few replicates and levels, by all orders. Two-sided: twice the smaller one.

    Raises:
        ValueError: fewer than two replicates or three levels (two: `paired_comparison`).
    """
    values = _checked_values(scores)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        raise ValueError(
            f"a trend needs scores of (replicates >= 2, levels >= 3), got {values.shape}; "
            "two levels are compared by paired_comparison"
        )
    rising, falling = stats.page_trend_test(values), stats.page_trend_test(values[:, ::-1])
    direction = int(np.sign(rising.statistic - falling.statistic))
    place = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    slope = mean_interval(values @ place / (place @ place), confidence=confidence)
    steps = np.diff(values.mean(axis=0))
    return Trend(
        direction=direction,
        p_value=min(1.0, 2 * float(min(rising.pvalue, falling.pvalue))),
        slope=slope,
        reversals=tuple(int(i) for i in np.flatnonzero(steps * direction < 0)),
    )


def expected_best(scores: ArrayLike) -> FloatArray:
    """The best of k of these `scores` (n,), on average over all choices of k: (n,) for k = 1..n.

    What a budget of k settings can be expected to reach on validation data. Drawn without replacement, so
    that it is not biased as the version with replacement is (Dodge et al. 2019; Tang et al. 2020).
    """
    values = np.sort(_checked_values(scores))
    n = len(values)
    place = np.arange(1, n + 1)
    # The i-th smallest is the best of k in C(i - 1, k - 1) of C(n, k) choices.
    weights = [special.comb(place - 1, k - 1) / special.comb(n, k) for k in place]
    return np.asarray(np.stack(weights) @ values)


def pairs_to_decide(
    effect: float,
    deviation: float,
    *,
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    most: int = 1000,
) -> int | None:
    """How many pairs in all would show an `effect`, with `deviation` of a pair's difference.

    Those with which `detectable_difference` comes down to the effect (80 % power at this confidence). With
    a `margin` of equivalence, showing that the effect lies within it decides as well, and the easier counts.
    Effect and deviation that were observed in a few pairs are noisy, and so is this. None: more than `most`.

    Raises:
        ValueError: a negative deviation, a margin that is not positive, or values that are not finite.
    """
    given = [effect, deviation] if margin is None else [effect, deviation, margin]
    _checked_values(given)
    if deviation < 0 or (margin is not None and margin <= 0):
        raise ValueError(
            f"deviation must not be negative, nor margin 0 or less, got {deviation} and {margin}"
        )
    gap = abs(effect) if margin is None else max(abs(effect), margin - abs(effect))
    if gap == 0 or detectable_difference(most, deviation, confidence=confidence) > gap:
        return None
    low, high = 1, most  # low is too few, high enough; the detectable difference falls with the pairs
    while high - low > 1:
        middle = (low + high) // 2
        enough = detectable_difference(middle, deviation, confidence=confidence) <= gap
        low, high = (low, middle) if enough else (middle, high)
    return high


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[FloatArray], float],
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap interval of `statistic` over the rows of `values` (n, ...).

    Each of the `resamples` draws n rows with replacement and keeps a row's columns together (Efron
    and Tibshirani 1993, chapter 13). It is too narrow for a handful of rows: for the mean of a few
    seeds use `mean_interval`. One row gives low = high = NaN, as there.

    Raises:
        ValueError: fewer than one resample, or a statistic that is not finite, be it of the values
            or of a resample (such as an AUC of rows that are all negative).
    """
    rows = _checked_values(values)
    if rows.ndim == 0:
        raise ValueError("values must have rows to draw from, got a single number")
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")

    estimate = float(statistic(rows))
    if not math.isfinite(estimate):
        raise ValueError(f"the statistic of the values is {estimate}; it must be finite")
    n = rows.shape[0]
    if n == 1:
        return Interval(mean=estimate, low=math.nan, high=math.nan, n=1)

    redrawn = np.array([float(statistic(rows[generator.integers(n, size=n)])) for _ in range(resamples)])
    num_undefined = int(np.sum(~np.isfinite(redrawn)))
    if num_undefined:
        raise ValueError(
            f"the statistic is not finite on {num_undefined} of {resamples} resamples; use one "
            "that any draw of rows defines, or more rows"
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(redrawn, [tail, 1 - tail])
    return Interval(mean=estimate, low=float(low), high=float(high), n=n)


def _checked_values(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"no value to estimate from: the array is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"values must be finite, but {np.sum(~np.isfinite(array))} of {array.size} are not; "
            "leave out the failed trials, and say so"
        )
    return array


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence lies between 0 and 1 (0.95 for 95 %), got {confidence}")
