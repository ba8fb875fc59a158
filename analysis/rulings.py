"""Whether differences support a part of a claim: from comparisons to rulings.

A claim is supported where all of its parts are, and contradicted where any is. A part is supported where its
p value, corrected by Holm's method for the claims that the study tests, is below 0.05: the largest p value of
its parts stands for a claim (all must hold), and the smallest, times their number, against it. `greater` is
supported where the difference is above its margin and contradicted where it is below; `equivalent` where it
lies within its margin, or beyond; `rising` where every step is up. `fewer_labels` goes by an interval alone.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.estimators import Comparison, holm
from analysis.needs import Need, Saving, need_of
from workbench.study.claims import Equivalent, FewerLabels, Greater, Part, Rising

ERROR_RATE = 0.05


class Ruling(enum.StrEnum):
    """What the data say of a claim, or of a part of it."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a study's trials say of one part of a claim.

    effect: of a difference, in the metric's unit (of its logarithm on that scale); of the step that rules, of
        `rising`; a share of the labels, of `fewer_labels`.
    p_support, p_contradict: corrected for all that the study tests; NaN where there is none.
    gap: the distance of the effect from what would settle it, in its unit; NaN where none is known.
    correction: by how much p values are multiplied, for all that is tested beside.
    note: what the reader should know of it.
    """

    part: Part
    effect: Comparison | Saving | None
    p_support: float = math.nan
    p_contradict: float = math.nan
    ruling: Ruling = Ruling.INCONCLUSIVE
    gap: float = math.nan
    correction: float = 1.0
    note: str = ""

    @property
    def need(self) -> str:
        """How many more seeds would decide it, or why no number of them does; empty where it is decided."""
        return "" if self._need is None else self._need.words

    @property
    def leans_against(self) -> bool:
        """Whether more of the same would contradict it."""
        if self.effect is None:
            return False
        match self.part:
            case FewerLabels():
                return self.effect.mean < self.part.at_least
            case Equivalent():
                return abs(self.effect.mean) > self.part.margin
            case Greater() | Rising():
                return self.effect.mean < self.part.margin

    @property
    def replicates_to_decide(self) -> int | None:
        """In all, if effect and noise stay as they are; None where it is decided, or no number is known."""
        return None if self._need is None else self._need.replicates

    @functools.cached_property
    def _need(self) -> Need | None:
        if self.ruling is not Ruling.INCONCLUSIVE:
            return None
        return need_of(self.effect, self.gap, self.correction)


def judge_greater(part: Greater, found: Comparison) -> Evidence:
    """By the difference of `of` less `than`."""
    p_value = found.p_against(part.margin)
    return _judged(
        part,
        found,
        p_support=_one_way(p_value, found.mean > part.margin),
        p_contradict=_one_way(p_value, found.mean < part.margin),
        gap=abs(found.mean - part.margin),
    )


def judge_equivalent(part: Equivalent, found: Comparison) -> Evidence:
    """By the difference of `of` less `than`."""
    end = math.copysign(part.margin, found.mean)
    return _judged(
        part,
        found,
        p_support=found.p_outside(part.margin),
        p_contradict=_one_way(found.p_against(end), abs(found.mean) > part.margin),
        gap=abs(abs(found.mean) - part.margin),
    )


def judge_rising(part: Rising, steps: Sequence[Comparison]) -> Evidence:
    """By the difference at every step to the next level: the least certain one decides for all.

    What is shown is of the step that falls short for the surest; where none does, of the least certain.
    A test over all levels together, such as Page's, is significant where one step is large, whatever the
    others do.
    """
    judged = [
        judge_greater(Greater(of=(part.regime,), than=(part.regime,), margin=part.margin), step)
        for step in steps
    ]
    failing = [i for i, one in enumerate(judged) if one.p_contradict < 1]  # NaN: not tested
    if failing:
        shown = min(failing, key=lambda i: (judged[i].p_contradict, steps[i].mean))
        why = "the surest to fall short"
    else:
        shown = max(
            range(len(steps)), key=lambda i: (np.nan_to_num(judged[i].p_support, nan=2.0), -steps[i].mean)
        )
        why = "the least certain"
    return replace(
        judged[shown],
        part=part,
        p_support=float(np.max([one.p_support for one in judged])),  # NaN: one was not tested
        p_contradict=_any_of([one.p_contradict for one in judged]),
        correction=len(steps) if failing else 1.0,
        note="; ".join(filter(None, (f"step {shown + 1} of {len(steps)}, {why}", judged[shown].note))),
    )


def _any_of(p_values: Sequence[float]) -> float:
    """That one of several is so, corrected for their number; NaN where none was tested."""
    tested = [p for p in p_values if not math.isnan(p)]
    return min(1.0, len(p_values) * min(tested)) if tested else math.nan


def _judged(part: Part, found: Comparison, *, p_support: float, p_contradict: float, gap: float) -> Evidence:
    if not found.has_spread:
        note = "all replicates have the same difference, which leaves their spread unknown"
        return Evidence(part=part, effect=found, note=note)
    return Evidence(part=part, effect=found, p_support=p_support, p_contradict=p_contradict, gap=gap)


def rule(claims: Sequence[Sequence[Evidence]]) -> list[tuple[Evidence, ...]]:
    """The evidence of all claims that one study tests, with corrected p values, and ruled on."""
    for_each = _factors([_all_hold(parts) for parts in claims])
    against_each = _factors([_any_fails(parts) for parts in claims])
    return [
        tuple(_ruled(e, support, _num_against(parts) * against) for e in parts)
        for parts, support, against in zip(claims, for_each, against_each, strict=True)
    ]


def _all_hold(parts: Sequence[Evidence]) -> float:
    """The p value of a claim; NaN where a part has none."""
    return float(np.max([e.p_support for e in parts]))


def _any_fails(parts: Sequence[Evidence]) -> float:
    """The p value against a claim; NaN where no part has one."""
    if not _num_against(parts):
        return math.nan
    return min(1.0, _num_against(parts) * float(np.nanmin([e.p_contradict for e in parts])))


def _num_against(parts: Sequence[Evidence]) -> int:
    return sum(not math.isnan(e.p_contradict) for e in parts)


def _ruled(evidence: Evidence, support_factor: float, contradict_factor: float) -> Evidence:
    if math.isnan(evidence.p_support) and math.isnan(evidence.p_contradict):
        return evidence  # by its interval, or not at all
    # NaN, where one side was not tested, stays NaN, and is below nothing.
    support, contradict = (
        float(np.minimum(1.0, p * factor))
        for p, factor in (
            (evidence.p_support, support_factor),
            (evidence.p_contradict, contradict_factor),
        )
    )
    ruling = Ruling.INCONCLUSIVE
    if contradict < ERROR_RATE:
        ruling = Ruling.CONTRADICTED
    elif support < ERROR_RATE:
        ruling = Ruling.SUPPORTED
    return replace(
        evidence,
        p_support=support,
        p_contradict=contradict,
        ruling=ruling,
        correction=evidence.correction * max(support_factor, contradict_factor),
    )


def _factors(p_values: Sequence[float]) -> list[float]:
    """By what Holm's method multiplies each; those that are NaN are no tests."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    factors = [float(max(1, len(tested)))] * len(p_values)
    if tested:
        for i, adjusted in zip(tested, holm([p_values[i] for i in tested]), strict=True):
            if 0 < adjusted < 1:
                factors[i] = float(adjusted) / p_values[i]
    return factors


def _one_way(p_value: float, is_that_way: bool) -> float:
    """A two-sided p value, for a finding in one direction."""
    return p_value if is_that_way or math.isnan(p_value) else 1.0
