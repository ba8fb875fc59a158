"""Intervals agree with the textbook, cover what they claim, and repeat with their generator."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis.estimators import (
    Interval,
    bootstrap_interval,
    crossed_comparison,
    equivalence,
    expected_best,
    hierarchical_comparison,
    holm,
    mean_interval,
    monotonic_trend,
    paired_comparison,
    paired_difference,
    pairs_to_decide,
    per_clip_difference,
)
from workbench.study.power import detectable_difference


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


def _simulated(studies: int, n: int, effect: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two arms (studies, n) that share their seeds' noise of 0.05, and differ by 0.01 and `effect`."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(scale=0.05, size=(studies, n))
    a, b = generator.normal(scale=0.01, size=(2, studies, n))
    return shared + a, shared + b + effect


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_comparison_agrees_with_scipys_paired_t_test(n: int) -> None:
    a, b = (arm[0] for arm in _simulated(1, n, effect=0.01))
    ours = paired_comparison(a, b)
    reference = stats.ttest_rel(b, a)
    assert ours.p_value == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.deviation == pytest.approx(np.std(b - a, ddof=1))


def test_swapping_the_arms_turns_the_sign_and_nothing_else() -> None:
    a, b = (arm[0] for arm in _simulated(1, 4, effect=0.01))
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    assert (other.mean, other.low, other.high) == pytest.approx((-one.mean, -one.high, -one.low))
    assert other.p_value == pytest.approx(one.p_value)


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 1.0])
def test_replicates_that_overlap_cover_as_claimed(overlap: float) -> None:
    """Folds with a correlation of overlap / (1 + overlap), as Nadeau and Bengio take it."""
    generator = np.random.default_rng(0)
    shared = overlap / (1 + overlap)
    covered = plain = 0
    for _ in range(600):
        scores = 0.7 + np.sqrt(shared) * generator.normal() + np.sqrt(1 - shared) * generator.normal(size=5)
        found = mean_interval(scores, overlap=overlap)
        assert paired_comparison(np.zeros(5), scores, overlap=overlap).low == pytest.approx(found.low)
        covered += found.low <= 0.7 <= found.high
        found = mean_interval(scores)
        plain += found.low <= 0.7 <= found.high
    assert covered / 600 == pytest.approx(0.95, abs=0.027)  # three standard errors
    assert (plain / 600 < 0.9) == (overlap > 0)


def test_three_seeds_cover_as_claimed_where_a_percentile_bootstrap_does_not() -> None:
    # 400 studies: the standard error of a coverage of 0.95 is 0.011.
    generator = np.random.default_rng(0)
    ours = bootstrap = 0
    for difference in generator.normal(loc=0.02, scale=0.01, size=(400, 3)):
        found = paired_comparison(np.zeros(3), difference)
        ours += found.low <= 0.02 <= found.high
        found = bootstrap_interval(difference, np.mean, generator, resamples=100)
        bootstrap += found.low <= 0.02 <= found.high
    assert ours / 400 == pytest.approx(0.95, abs=0.033)
    assert bootstrap / 400 < 0.85


def test_no_effect_is_rarely_significant() -> None:
    a, b = _simulated(1000, 3)
    wrong = np.mean([paired_comparison(x, y).p_value < 0.05 for x, y in zip(a, b, strict=True)])
    assert wrong == pytest.approx(0.05, abs=0.021)  # three standard errors


def test_differences_without_spread_are_certain() -> None:
    assert paired_comparison([0.25, 0.5], [0.5, 0.75]).p_value == 0.0
    assert paired_comparison([0.25, 0.5], [0.25, 0.5]).p_value == 1.0
    assert math.isnan(paired_comparison([0.25], [0.5]).p_value)


def _clips(generator: np.random.Generator, n: int, clip_noise: float, effect: float = 0.02) -> np.ndarray:
    """Gains (n, 100) of a replicate's noise of 0.01, what clips do to all replicates, and the rest."""
    gain = effect + generator.normal(scale=0.01, size=(n, 1)) + 0.1 * generator.normal(size=(n, 100))
    return gain + clip_noise * generator.normal(size=(1, 100))


@pytest.mark.parametrize("clip_noise", [0.0, 0.2])
def test_intervals_over_replicates_and_clips_cover_the_truth(clip_noise: float) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        gain = _clips(generator, 3, clip_noise)
        difference = per_clip_difference(np.zeros_like(gain), gain)
        found = hierarchical_comparison(difference, 3, 100, generator, resamples=100)
        covered += found.low <= 0.02 <= found.high
    assert covered / 200 == pytest.approx(0.95, abs=0.046)  # three standard errors


def test_clips_that_differ_widen_the_interval_of_replicates_that_agree() -> None:
    gain = np.tile(_clips(np.random.default_rng(0), 1, clip_noise=0.2), (3, 1))
    gain += np.array([[0.0], [0.001], [-0.001]])
    over_replicates = paired_comparison(np.zeros(3), gain.mean(axis=1))
    over_both = hierarchical_comparison(
        per_clip_difference(0 * gain, gain), 3, 100, np.random.default_rng(0), resamples=400
    )
    assert over_both.mean == pytest.approx(over_replicates.mean)
    assert over_both.high - over_both.low > 5 * (over_replicates.high - over_replicates.low)
    # With so little from the replicates it is the interval of a mean over 100 clips.
    assert (over_both.high - over_both.low) / 2 == pytest.approx(
        1.98 * gain[0].std(ddof=1) / math.sqrt(100), rel=0.15
    )
    assert over_both.p_value > over_replicates.p_value


def test_any_score_of_a_set_of_clips_will_do() -> None:
    gain = _clips(np.random.default_rng(0), 4, clip_noise=0.1)
    by_mean = per_clip_difference(np.zeros_like(gain), gain)

    def found(difference):
        return hierarchical_comparison(difference, 4, 100, np.random.default_rng(3), resamples=50)

    assert found(lambda replicate, clips: float(np.mean(gain[replicate][clips]))) == found(by_mean)
    assert found(lambda replicate, clips: float(np.median(gain[replicate][clips]))) != found(by_mean)


def test_clips_repeat_with_their_generator_and_the_order_of_replicates_is_nothing() -> None:
    gain = _clips(np.random.default_rng(0), 4, clip_noise=0.1)

    def found(rows: np.ndarray, seed: int):
        difference = per_clip_difference(np.zeros_like(rows), rows)
        result = hierarchical_comparison(difference, 4, 100, np.random.default_rng(seed), resamples=50)
        return result.mean, result.low, result.high, result.p_value

    assert found(gain, 1) == found(gain, 1)
    assert found(gain, 1) != found(gain, 2)
    assert found(gain[::-1], 1) == pytest.approx(found(gain, 1))


def test_holm_agrees_with_the_worked_example() -> None:
    # 4 x 0.005, 3 x 0.01, then 2 x 0.03 and 1 x 0.04, which may not be less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    for wrong in ([1.5], [-0.1], [math.nan], []):
        with pytest.raises(ValueError, match=r"p values|finite|no value"):
            holm(wrong)


def test_holm_keeps_the_chance_of_any_wrong_finding_in_a_study() -> None:
    # Five arms against one base, so that the tests depend on each other.
    arms = np.random.default_rng(0).normal(size=(500, 6, 4))
    any_raw = any_holm = 0
    for base, *others in arms:
        p_values = [paired_comparison(base, other).p_value for other in others]
        any_raw += min(p_values) < 0.05
        any_holm += holm(p_values).min() < 0.05
    assert any_holm / 500 <= 0.05 + 0.03
    assert any_raw > 2 * any_holm


def test_equivalence_agrees_with_two_one_sided_tests() -> None:
    a, b = (arm[0] for arm in _simulated(1, 5, effect=0.003))
    ours = equivalence(a, b, margin=0.02)
    above = stats.ttest_1samp(b - a, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(b - a, 0.02, alternative="less").pvalue
    assert ours.p_value == pytest.approx(max(above, below))


def test_equivalent_is_an_interval_within_the_margin() -> None:
    a, b = _simulated(200, 3, effect=0.005)
    verdicts = [equivalence(x, y, margin=0.04) for x, y in zip(a, b, strict=True)]
    for verdict in verdicts:
        assert verdict.equivalent == (verdict.low > -0.04 and verdict.high < 0.04)
    assert 0 < sum(v.equivalent for v in verdicts) < 200


@pytest.mark.parametrize("clip_error", [0.0, 0.01])
def test_the_interval_that_judges_equivalence_lies_within_the_margin_just_when_it_is_shown(
    clip_error: float,
) -> None:
    generator = np.random.default_rng(0)
    shown = []
    for _ in range(100):
        redrawn = clip_error * generator.normal(size=(300, 1)) * np.ones((1, 4))
        found = crossed_comparison(generator.normal(0.0, 0.02, 4), redrawn, 150)
        low, high = found.ends(0.9)
        assert found.low < low < found.mean < high < found.high
        shown.append(found.p_outside(0.04) < 0.05)
        assert shown[-1] == (low > -0.04 and high < 0.04)
    assert 0 < sum(shown) < 100


def test_arms_at_the_margin_are_rarely_equivalent_and_equal_ones_mostly() -> None:
    a, b = _simulated(400, 8)
    at_margin = np.mean([equivalence(x, y + 0.02, 0.02).equivalent for x, y in zip(a, b, strict=True)])
    equal = np.mean([equivalence(x, y, 0.02).equivalent for x, y in zip(a, b, strict=True)])
    assert at_margin <= 0.05 + 0.033
    assert equal > 0.8
    noisy = equivalence([0.1, 0.5, 0.3], [0.5, 0.1, 0.4], 0.02)  # not significant, and not equal either
    assert not noisy.equivalent


def test_one_pair_is_never_equivalent_and_a_margin_must_be_one() -> None:
    assert not equivalence([0.5], [0.5], 0.1).equivalent
    assert equivalence([0.5, 0.6], [0.5, 0.6], 0.1).equivalent
    for margin in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            equivalence([0.5, 0.6], [0.5, 0.6], margin)


def test_a_trend_is_found_with_its_direction_and_slope() -> None:
    generator = np.random.default_rng(0)
    seed = generator.normal(scale=0.05, size=(3, 1))  # hides it from anyone who ignores the pairing
    rising = 0.01 * np.arange(5) + seed + generator.normal(scale=0.002, size=(3, 5))
    up, down = monotonic_trend(rising), monotonic_trend(rising[:, ::-1])
    assert (up.direction, down.direction) == (1, -1)
    assert up.p_value == pytest.approx(down.p_value)
    assert up.p_value < 0.001
    assert up.slope.low < 0.01 < up.slope.high
    assert up.slope.mean == pytest.approx(-down.slope.mean)
    assert up.reversals == ()
    assert monotonic_trend(rising[[2, 0, 1]]).p_value == up.p_value


def test_a_trends_p_value_is_that_of_all_orders() -> None:
    # Three levels, two replicates: 36 orders, of which one is as extreme on each side.
    assert monotonic_trend([[1, 2, 3], [4, 5, 6]]).p_value == pytest.approx(2 / 36)


def test_a_trend_says_where_it_turns() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.5, 0.4]]) + np.arange(4)[:, None]
    found = monotonic_trend(scores)
    assert found.direction == 1
    assert found.p_value < 0.05
    assert found.reversals == (3,)
    with pytest.raises(ValueError, match="levels >= 3"):
        monotonic_trend(scores[:, :2])


@pytest.mark.parametrize("n", [2, 3, 6])
def test_no_trend_is_rarely_significant(n: int) -> None:
    generator = np.random.default_rng(n)
    scores = generator.normal(size=(300, n, 1)) + generator.normal(size=(300, n, 4))
    wrong = np.mean([monotonic_trend(study).p_value < 0.05 for study in scores])
    assert wrong <= 0.05 + 0.038  # three standard errors


def test_pairs_to_decide_are_the_fewest_that_detect_the_effect() -> None:
    pairs = pairs_to_decide(0.01, 0.012)
    assert pairs is not None
    assert detectable_difference(pairs, 0.012) <= 0.01 < detectable_difference(pairs - 1, 0.012)
    assert pairs_to_decide(-0.01, 0.012) == pairs
    # They do decide: 80 % of studies of that size find it.
    generator = np.random.default_rng(0)
    studies = generator.normal(0.01, 0.012, size=(400, pairs))
    power = np.mean([paired_comparison(np.zeros(pairs), study).p_value < 0.05 for study in studies])
    assert power == pytest.approx(0.8, abs=0.06)


def test_pairs_to_decide_ends() -> None:
    assert pairs_to_decide(0.0, 0.01) is None
    assert pairs_to_decide(1e-6, 0.01) is None
    assert pairs_to_decide(0.01, 0.0) == 2
    # An effect that is nearly none is decided by equivalence, which it has a whole margin for.
    assert pairs_to_decide(0.001, 0.01, margin=0.021) == pairs_to_decide(0.02, 0.01)
    with pytest.raises(ValueError, match="deviation"):
        pairs_to_decide(0.1, -0.1)


def test_the_expected_best_is_the_mean_over_all_choices():
    scores = [0.3, 0.9, 0.5, 0.5]
    expected = [
        np.mean([max(chosen) for chosen in itertools.combinations(scores, k)])
        for k in range(1, len(scores) + 1)
    ]
    assert expected_best(scores) == pytest.approx(expected)
