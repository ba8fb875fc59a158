"""What difference so many pairs of trials can be expected to show."""

from __future__ import annotations

import math

from scipy import optimize, stats

CONFIDENCE, POWER = 0.95, 0.8
# A test fold to the three of five that train (one more is for validation), however few of their labels do.
NUM_FOLDS = 5
FOLD_OVERLAP = 1 / (NUM_FOLDS - 2)


def detectable_difference(
    pairs: int,
    deviation: float = 1.0,
    *,
    overlap: float = 0.0,
    clip_error: float = 0.0,
    confidence: float = CONFIDENCE,
) -> float:
    """The true mean difference that a two-sided paired t-test finds with probability `POWER`.

    `deviation` is the standard deviation of a pair's difference, and the unit of the result. `overlap` is of
    the pairs' training sets, where they are test folds, and `clip_error` what test clips that all pairs share
    add to the standard error of the mean: no number of pairs takes them away.
    """
    if pairs < 2:
        return float("inf")
    critical = float(stats.t.isf((1 - confidence) / 2, pairs - 1))

    def lacking(noncentrality: float) -> float:  # a finding with the wrong sign is none
        return float(stats.nct.sf(critical, pairs - 1, noncentrality) - POWER)

    by_pairs = float(optimize.brentq(lacking, 0.0, 3 * critical + 3)) / math.sqrt(pairs)
    by_pairs *= deviation * math.sqrt(1 + pairs * overlap)
    return math.hypot(by_pairs, standard_errors_to_find(confidence) * clip_error)


def standard_errors_to_find(confidence: float = CONFIDENCE) -> float:
    """Of a mean whose noise is known, that it must be off to be found with probability `POWER`."""
    return float(stats.norm.isf((1 - confidence) / 2) + stats.norm.ppf(POWER))
