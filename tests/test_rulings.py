"""What supports a claim, what contradicts it, and what says nothing."""

import dataclasses
import math
import re

import numpy as np
import pytest

from analysis.estimators import crossed_comparison, paired_comparison
from analysis.needs import Saving, need_of
from analysis.rulings import Ruling, judge_equivalent, judge_greater, judge_rising, rule
from workbench.study.claims import Equivalent, Greater, Rising
from workbench.study.power import FOLD_OVERLAP

GREATER = Greater(of=("a",), than=("b",), margin=0.01)
EQUAL = Equivalent(of=("a",), than=("b",), margin=0.02)
RISING = Rising(regime="balanced", margin=0.005)


def _ruled(*evidence):
    """Each as a claim of its own."""
    return [found for (found,) in rule([[one] for one in evidence])]


def _differences(mean, deviation, n=5):
    """`n` differences with exactly this mean and standard deviation."""
    shape = np.linspace(-1, 1, n)
    return mean + deviation * (shape - shape.mean()) / shape.std(ddof=1)


def _compared(mean, deviation, n=5):
    return paired_comparison(np.zeros(n), _differences(mean, deviation, n))


@pytest.mark.parametrize(
    ("mean", "deviation", "ruling"),
    [
        (0.05, 0.01, Ruling.SUPPORTED),
        (-0.05, 0.01, Ruling.CONTRADICTED),
        (0.05, 0.20, Ruling.INCONCLUSIVE),
        (0.004, 0.0001, Ruling.CONTRADICTED),  # there, and too small to matter
        (0.012, 0.0001, Ruling.SUPPORTED),
        (0.0101, 0.0010, Ruling.INCONCLUSIVE),  # above 0 for certain, but not above what matters
    ],
)
def test_a_difference_is_ruled_on_by_its_sign_and_its_margin(mean, deviation, ruling):
    assert _ruled(*[judge_greater(GREATER, _compared(mean, deviation))])[0].ruling is ruling


@pytest.mark.parametrize(
    ("mean", "deviation", "ruling"),
    [
        (0.001, 0.005, Ruling.SUPPORTED),
        (-0.015, 0.001, Ruling.SUPPORTED),
        (-0.050, 0.005, Ruling.CONTRADICTED),
        (0.001, 0.050, Ruling.INCONCLUSIVE),  # no significant difference is no evidence of equality
        (0.018, 0.010, Ruling.INCONCLUSIVE),
    ],
)
def test_equality_needs_evidence_too(mean, deviation, ruling):
    assert _ruled(*[judge_equivalent(EQUAL, _compared(mean, deviation))])[0].ruling is ruling


def _steps(scores):
    return [paired_comparison(scores[:, i], scores[:, i + 1]) for i in range(scores.shape[1] - 1)]


def test_a_rise_is_one_at_every_step():
    noise = np.random.default_rng(0).normal(0, 1e-4, (4, 4))
    rising = noise + np.array([0.1, 0.2, 0.3, 0.4])
    assert _ruled(judge_rising(RISING, _steps(rising)))[0].ruling is Ruling.SUPPORTED
    assert _ruled(judge_rising(RISING, _steps(rising[:, ::-1])))[0].ruling is Ruling.CONTRADICTED
    flat = _ruled(judge_rising(RISING, _steps(noise + np.array([0.1, 0.1, 0.1, 0.5]))))[0]
    assert flat.ruling is not Ruling.SUPPORTED  # as a test over all levels together would have it


def test_more_tests_ask_for_more_evidence():
    one = judge_greater(GREATER, _compared(0.06, 0.035))
    assert _ruled(one)[0].ruling is Ruling.SUPPORTED
    assert {e.ruling for e in _ruled(*[one] * 6)} == {Ruling.INCONCLUSIVE}


def test_parts_that_must_all_hold_need_no_correction_to_support_and_one_to_contradict():
    good, bad = (judge_greater(GREATER, _compared(mean, 0.035)) for mean in (0.06, -0.04))
    assert {e.ruling for e in rule([[good] * 6])[0]} == {Ruling.SUPPORTED}
    assert _ruled(bad)[0].ruling is Ruling.CONTRADICTED
    assert {e.ruling for e in rule([[bad] + [good] * 5])[0]} == {Ruling.SUPPORTED, Ruling.INCONCLUSIVE}


def test_replicates_that_agree_to_the_last_digit_decide_nothing():
    """Accuracy on few clips moves in steps: equal differences come by chance."""
    found = judge_greater(GREATER, paired_comparison([0.5, 0.6], [0.75, 0.85]))
    assert _ruled(found)[0].ruling is Ruling.INCONCLUSIVE
    assert "spread unknown" in found.note


def test_one_replicate_decides_nothing():
    alone = paired_comparison([0.0], [0.5])
    assert _ruled(*[judge_greater(GREATER, alone)])[0].ruling is Ruling.INCONCLUSIVE
    assert _ruled(*[judge_equivalent(EQUAL, alone)])[0].ruling is Ruling.INCONCLUSIVE


def test_more_seeds_that_are_asked_for_would_decide():
    """Alone; and of six claims, whose p values are corrected for each other, which takes more."""
    needed = []
    for claims in (1, 6):
        found = _ruled(*[judge_greater(GREATER, _compared(0.03, 0.05, 3))] * claims)[0]
        assert found.ruling is Ruling.INCONCLUSIVE
        needed.append(found.replicates_to_decide)
        assert found.need == f"about {needed[-1] - 3} more seeds"
        again = _ruled(*[judge_greater(GREATER, _compared(0.03, 0.05, needed[-1]))] * claims)[0]
        assert again.ruling is Ruling.SUPPORTED
        assert again.need == ""
    assert needed[1] > needed[0]


def test_more_seeds_cannot_make_up_for_few_clips():
    """As many clips as are asked for can: the noise that they share falls with their root."""

    def found(clips, seeds):
        noise = np.random.default_rng(0).normal(0, 0.02 * np.sqrt(100 / clips), (300, 1)) * np.ones(
            (1, seeds)
        )
        differences = _differences(0.016, 0.002, seeds)
        return _ruled(judge_greater(GREATER, crossed_comparison(differences, noise, clips)))[0]

    few = found(100, 3)
    assert few.replicates_to_decide is None
    assert few.need.startswith("no number of seeds, for 100 test clips are too few: about ")
    clips, seeds = (
        int(word.replace(",", "")) for word in re.findall(r"about ([\d,]+) .* and ([\d,]+)", few.need)[0]
    )
    assert found(clips, seeds).ruling is Ruling.SUPPORTED
    assert found(100, 1000).ruling is Ruling.INCONCLUSIVE


def test_clips_are_not_asked_for_where_seeds_are_what_lacks():
    noise = 1e-5 * np.random.default_rng(0).normal(size=(300, 1)) * np.ones((1, 3))
    near = crossed_comparison(_differences(0.0101, 0.05, 3), noise, 1000)
    assert _ruled(judge_greater(GREATER, near))[0].need.startswith("more than 1,000 seeds")


def _saving(n, overlap):
    return Saving(mean=0.5, low=0.35, high=0.65, n=n, by_replicates=0.15, overlap=overlap)


@pytest.mark.parametrize(
    ("effect", "gap", "words"),
    [
        (_saving(3, FOLD_OVERLAP), 0.14, "about 1 more test fold"),
        (_saving(3, FOLD_OVERLAP), 0.125, "about 2 more test folds"),
        (_saving(5, FOLD_OVERLAP), 0.1, "there are not enough of them"),
        (_saving(3, 0.0), 0.14, "about 1 more seed"),
    ],
)
def test_a_share_of_labels_is_decided_by_folds_only_where_some_are_left(effect, gap, words):
    assert words in need_of(effect, gap).words


def test_a_rising_curve_is_contradicted_by_one_step_whichever_are_untested():
    down, alone = _compared(-0.05, 0.001), paired_comparison([0.0], [0.5])
    for steps in ([alone, down], [down, alone]):
        assert judge_rising(RISING, steps).p_contradict < 0.01
    assert math.isnan(judge_rising(RISING, [alone, alone]).p_contradict)


@pytest.mark.parametrize("turned", [False, True])
def test_the_step_that_is_shown_is_the_one_that_rules(turned):
    """Of two that fall, the one that does for certain; though one may be lacking, too."""
    hardly, surely = _compared(-0.001, 0.05), _compared(-0.2, 0.002)
    alone, up = paired_comparison([0.0], [0.5]), _compared(0.2, 0.002)
    for steps in ([hardly, surely], [alone, surely], [up, surely]):
        steps = steps[::-1] if turned else steps
        (found,) = _ruled(judge_rising(RISING, steps))
        assert found.ruling is Ruling.CONTRADICTED
        assert found.effect is surely
        assert found.gap == pytest.approx(0.2 + RISING.margin)
        assert found.note == f"step {1 if turned else 2} of 2, the surest to fall short"


def test_the_step_that_is_shown_is_else_the_least_certain_with_its_own_note():
    up, less_sure = _compared(0.2, 0.002), _compared(0.05, 0.03)
    (found,) = _ruled(judge_rising(RISING, [up, less_sure]))
    assert found.effect is less_sure
    assert found.note == "step 2 of 2, the least certain"
    same = paired_comparison([0.5, 0.6], [0.75, 0.85])
    found = judge_rising(RISING, [up, same])
    assert found.effect is same
    assert math.isnan(found.p_support)
    assert found.note.startswith("step 2 of 2, the least certain; all replicates have the same difference")


def test_one_side_that_was_not_tested_leaves_the_other_to_be_ruled_on():
    down, alone = _compared(-0.05, 0.001), paired_comparison([0.0], [0.5])
    down_for_certain = judge_rising(RISING, [alone, down])
    assert math.isnan(down_for_certain.p_support)
    others = [judge_greater(GREATER, _compared(0.03, 0.05, 3))] * 3
    found, *_ = _ruled(down_for_certain, *others)
    assert found.ruling is Ruling.CONTRADICTED
    assert found.p_contradict == pytest.approx(4 * down_for_certain.p_contradict)
    assert math.isnan(found.p_support)
    half = dataclasses.replace(judge_greater(GREATER, _compared(0.05, 0.001)), p_contradict=math.nan)
    (found,) = _ruled(half)
    assert found.ruling is Ruling.SUPPORTED
    assert math.isnan(found.p_contradict)


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        (paired_comparison([0.0], [0.5]), "not known from one"),
        (paired_comparison([0.5, 0.6], [0.75, 0.85]), "agree to the last digit"),
        (_compared(0.0101, 0.05, 3), "more than 1,000 seeds"),
        (paired_comparison(np.zeros(5), _differences(0.02, 0.02), overlap=1 / 3), "not enough of them"),
        (paired_comparison(np.zeros(3), _differences(0.1, 0.03, 3), overlap=1 / 3), "more test folds"),
    ],
)
def test_an_open_part_always_says_what_would_decide_it_or_why_nothing_does(compared, words):
    found = _ruled(judge_greater(GREATER, compared))[0]
    assert found.ruling is Ruling.INCONCLUSIVE
    assert words in found.need


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("clip_noise", [0.0, 0.003])
def test_what_is_not_there_is_rarely_found(n, clip_noise):
    """1,000 simulated studies of three claims each, every one at the edge of what would make it true.

    A difference of just the margin, for `greater` and `equivalent`; a curve that is flat in one step. Test
    clips that all replicates share add noise of their own.
    """
    generator = np.random.default_rng(n)
    found = {"greater": 0, "equivalent": 0, "rising": 0, "any": 0}

    def compared(differences):
        if not clip_noise:
            return paired_comparison(np.zeros(n), differences)
        redrawn = generator.normal(0, clip_noise, (60, 1)) * np.ones((1, n))
        return crossed_comparison(differences + generator.normal(0, clip_noise), redrawn, 1000)

    for _ in range(1000):
        noise = generator.normal(0, 0.01, (n, 4))
        evidence = {
            "greater": judge_greater(GREATER, compared(noise[:, 0] + GREATER.margin)),
            "equivalent": judge_equivalent(EQUAL, compared(noise[:, 1] + EQUAL.margin)),
            "rising": judge_rising(
                RISING, [compared(noise[:, 2] + RISING.margin), compared(noise[:, 3] + 0.1)]
            ),
        }
        wrong = [one.ruling is Ruling.SUPPORTED for one in _ruled(*evidence.values())]
        found["any"] += any(wrong)
        for name, one in zip(evidence, wrong, strict=True):
            found[name] += one
    assert found["any"] <= 70, found  # 50 of them, and three standard deviations
