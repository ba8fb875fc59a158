"""Intervals agree with the textbook, cover what they claim, and repeat with their generator."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.estimators import Interval, bootstrap_interval, mean_interval, paired_difference


@pytest.mark.parametrize("n", [2, 3, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_agrees_with_scipy(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(loc=0.7, scale=0.02, size=n)
    low, high = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    ours = mean_interval(values, confidence=confidence)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((values.mean(), low, high))
    assert ours.n == n


def test_mean_interval_agrees_with_the_printed_table() -> None:
    # Five values with standard deviation sqrt(2.5); t(0.975, 4) is 2.776 in printed tables.
    half_width = 2.776 * math.sqrt(2.5 / 5)
    ours = mean_interval([1, 2, 3, 4, 5])
    assert (ours.low, ours.high) == pytest.approx((3 - half_width, 3 + half_width), abs=1e-3)


def test_mean_interval_covers_the_truth_as_often_as_it_claims() -> None:
    # 2,000 studies of five seeds: the standard error of the coverage is 0.0049; tolerance 3 of it.
    studies = np.random.default_rng(0).normal(loc=2.0, scale=3.0, size=(2000, 5))
    intervals = [mean_interval(study) for study in studies]
    coverage = np.mean([interval.low <= 2.0 <= interval.high for interval in intervals])
    assert coverage == pytest.approx(0.95, abs=0.015)


def test_equal_values_give_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(mean=0.5, low=0.5, high=0.5, n=3)


def test_one_value_gives_no_interval() -> None:
    for interval in [
        mean_interval([0.25]),
        paired_difference([0.5], [0.75]),
        bootstrap_interval([0.25], np.mean, np.random.default_rng(0)),
    ]:
        assert interval.mean == 0.25
        assert interval.n == 1
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)


def test_paired_difference_is_b_minus_a() -> None:
    a = np.array([0.50, 0.60, 0.70])
    b = a + np.array([0.1, 0.2, 0.3])
    ours = paired_difference(a, b)
    assert ours.mean == pytest.approx(0.2)
    reference = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high))


def test_pairing_cancels_what_the_seeds_share_exactly() -> None:
    # Multiples of 1/64, so that sums and differences are exact in floating point.
    generator = np.random.default_rng(0)
    a, b, shared = generator.integers(-640, 640, size=(3, 8)) / 64
    plain = paired_difference(a, b)
    assert paired_difference(a + 100 * shared, b + 100 * shared) == plain
    assert paired_difference(a, a + 0.25) == Interval(mean=0.25, low=0.25, high=0.25, n=8)


def test_pairs_of_unequal_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        paired_difference([1.0, 2.0, 3.0], [1.0])


def test_bootstrap_repeats_with_its_generator_and_differs_with_another() -> None:
    values = np.random.default_rng(0).normal(size=30)

    def interval(seed: int) -> Interval:
        return bootstrap_interval(values, np.median, np.random.default_rng(seed), resamples=200)

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_bootstrap_of_a_mean_agrees_with_the_t_interval_on_many_values() -> None:
    # With 2,000 resamples an end is off by about 2 % of the width (one standard error).
    values = np.random.default_rng(0).normal(loc=5.0, size=400)
    ours = bootstrap_interval(values, np.mean, np.random.default_rng(1))
    expected = mean_interval(values)
    tolerance = 0.08 * (expected.high - expected.low)
    assert ours.mean == expected.mean
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=tolerance)


def test_higher_confidence_contains_lower() -> None:
    values = np.random.default_rng(0).normal(size=30)
    wide, narrow = (
        bootstrap_interval(values, np.mean, np.random.default_rng(1), confidence=confidence)
        for confidence in (0.99, 0.80)
    )
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_bootstrap_keeps_the_columns_of_a_row_together() -> None:
    first = np.random.default_rng(0).normal(size=50)
    rows = np.column_stack([first, first + 3.0])
    ours = bootstrap_interval(
        rows, lambda drawn: float(np.mean(drawn[:, 1] - drawn[:, 0])), np.random.default_rng(1)
    )
    assert (ours.low, ours.high) == pytest.approx((3.0, 3.0))
    assert ours.n == 50


def test_bootstrap_refuses_a_statistic_that_some_resamples_leave_undefined() -> None:
    def mean_of_positives(drawn: np.ndarray) -> float:
        positives = drawn[drawn > 0]
        return float(positives.mean()) if positives.size else math.nan

    with pytest.raises(ValueError, match=r"not finite on \d+ of 100 resamples"):
        bootstrap_interval([0.0, 0.0, 1.0], mean_of_positives, np.random.default_rng(0), resamples=100)
    with pytest.raises(ValueError, match="statistic of the values is nan"):
        bootstrap_interval([0.0, 0.0], mean_of_positives, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "no value"), ([1.0, math.nan], "1 of 2"), ([[1.0, 2.0]], r"shape \(1, 2\)")],
)
def test_unfit_values_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], confidence=confidence)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0, 2.0], np.mean, np.random.default_rng(0), confidence=confidence)


def test_bootstrap_refuses_no_resamples() -> None:
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval([1.0, 2.0], np.mean, np.random.default_rng(0), resamples=0)
