"""What would decide a part that is open: so many more seeds, or why no number of them does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from analysis.estimators import Comparison, Interval, pairs_to_decide
from analysis.words import counted
from workbench.study.power import (
    CONFIDENCE,
    NUM_FOLDS,
    detectable_difference,
    standard_errors_to_find,
)

MOST_CLIPS = 1000  # times those that there are; what takes more is nearer its margin than can be told


@dataclass(frozen=True)
class Need:
    """If effect and noise stay as they are, with 80 % power.

    words: without a capital or a full stop.
    replicates: in all; None where no number of them would do, where it is above 1,000, or unknown.
    """

    words: str
    replicates: int | None = None


@dataclass(frozen=True, kw_only=True)
class Saving(Interval):
    """The share of the labels that pre-training saves.

    mean: NaN where it lies outside of the label counts measured.
    by_replicates: half-width of its interval by their noise alone, on the side of what is asked for; infinite
        where the label counts do not bound it.
    by_clips: what the noise of the test clips that all replicates share adds to it, as a root of squares.
    clips: how many they are.
    overlap: of test folds, where these are the replicates.
    """

    by_replicates: float
    by_clips: float = 0.0
    clips: int = 0
    overlap: float = 0.0


def need_of(effect: Comparison | Saving | None, gap: float, correction: float = 1.0) -> Need:
    """Of an `effect` that is `gap` from what would settle it, in its unit.

    `correction` is by how much p values are multiplied, for all that is tested beside.
    """
    if effect is None:
        return Need("no number of seeds decides what was not tested")
    if effect.n == 1:
        return Need("how many seeds would decide is not known from one; run two or more")
    if isinstance(effect, Saving):
        return _by_scaling(effect, gap)
    if math.isnan(gap):
        return Need("how many seeds would decide is not known, for these agree to the last digit")
    confidence = 1 - (1 - CONFIDENCE) / correction
    if effect.overlap:
        return _by_folds(effect.deviation, effect.n, effect.overlap, gap, confidence)
    return _by_seeds(effect.deviation, effect.n, effect.clip_error, effect.clips, gap, confidence)


def _by_seeds(
    deviation: float, have: int, clip_error: float, clips_there: int, gap: float, confidence: float
) -> Need:
    by_clips = standard_errors_to_find(confidence) * clip_error
    if by_clips < gap:
        left = math.sqrt(gap**2 - by_clips**2)
        needed = pairs_to_decide(left, deviation, confidence=confidence)
        if needed is not None:
            return _more_seeds(needed, have)
        if by_clips <= gap / math.sqrt(2):  # clips leave seeds the half of the variance
            return Need("more than 1,000 seeds, so near to its margin is the effect")
    share = 2 * (by_clips / gap) ** 2 if gap else math.inf  # so that clips leave half of the variance
    if not 0 < share <= MOST_CLIPS:
        return Need("more than 1,000 seeds, so near to its margin is the effect")
    clips = _rounded(clips_there * share)
    beside = pairs_to_decide(gap / math.sqrt(2), deviation, confidence=confidence)
    with_seeds = f"{_rounded(beside):,} seeds" if beside else "more than 1,000 seeds"
    return Need(
        f"no number of seeds, for {clips_there:,} test clips are too few: about {clips:,} of them and "
        f"{with_seeds} in all would do"
    )


def _by_folds(deviation: float, have: int, overlap: float, gap: float, confidence: float) -> Need:
    for folds in range(have + 1, NUM_FOLDS + 1):
        if detectable_difference(folds, deviation, overlap=overlap, confidence=confidence) <= gap:
            return Need(f"about {counted(folds - have, 'more test fold')}", folds)
    return Need("no number of seeds, for test folds are the replicates, and there are not enough of them")


def _by_scaling(found: Saving, gap: float) -> Need:
    """Of an interval that narrows with seeds and clips as one of a mean does."""
    if not math.isfinite(found.by_replicates) or not math.isfinite(found.by_clips):
        return Need("how many seeds would decide is not known, for the label counts do not bound the share")
    tail = (1 - CONFIDENCE) / 2
    standard_error = found.by_replicates / float(stats.t.isf(tail, found.n - 1))
    deviation = standard_error / math.sqrt(1 / found.n + found.overlap)
    if found.overlap:
        return _by_folds(deviation, found.n, found.overlap, gap, CONFIDENCE)
    clip_error = found.by_clips / float(stats.t.isf(tail, found.clips - 1)) if found.clips else 0.0
    return _by_seeds(deviation, found.n, clip_error, found.clips, gap, CONFIDENCE)


def _more_seeds(needed: int, have: int) -> Need:
    needed = max(needed, have + 1)  # what is open with those that there are takes one more at least
    more = _rounded(needed - have)
    return Need(f"about {counted(more, 'more seed')}", needed)


def _rounded(count: float) -> int:
    """To what such an estimate is good for."""
    return round(count) if count < 100 else int(float(f"{count:.2g}"))
