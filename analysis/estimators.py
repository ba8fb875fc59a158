"""Intervals for the figures and tables: estimators that take arrays and, if random, a generator.

Values carry whatever unit they come in, and so do the intervals. Every function refuses, with a
ValueError, empty arrays, values that are not finite and a confidence outside 0..1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]


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


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Student-t interval of the mean of `values` (n,), one value a seed.

    Exact for independent normal values with unknown variance. One value says nothing of its own
    spread, so n = 1 gives low = high = NaN.
    """
    sample = _checked_values(values)
    if sample.ndim != 1:
        raise ValueError(f"values must be (n,), one a seed, got shape {sample.shape}")
    _check_confidence(confidence)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, n=1)
    standard_error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
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
