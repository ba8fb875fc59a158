"""Ranking metrics of tagging and classification, from scores and targets to numbers.

Axes: N clips, C classes. `scores` (N, C) are real numbers, higher meaning more likely; only their
order matters, so logits and probabilities give the same result. `targets` (N, C) are 0 or 1.

Every function refuses, with a ValueError, arrays that are empty, not two-dimensional or of unequal
shapes, scores that are not finite and targets other than 0 and 1.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Distance from 1 to the next float64 below it: the nearest to 0 or 1 that an AUC is taken to be.
SMALLEST_AUC_MARGIN = float(np.finfo(np.float64).epsneg)


def average_precision(scores: ArrayLike, targets: ArrayLike) -> FloatArray:
    """Average precision of each class, (C,) in 0..1; NaN for a class without a positive.

    The sum over thresholds of (rise in recall) x (precision), without interpolation. Clips with
    equal scores pass a threshold together, so their order in the file has no influence.
    """
    checked_scores, positive = _checked(scores, targets)
    return _per_class(_average_precision_of_class, checked_scores, positive)


def roc_auc(scores: ArrayLike, targets: ArrayLike) -> FloatArray:
    """Area under each class's ROC curve, (C,) in 0..1; NaN without both a positive and a negative.

    The probability that a positive clip outscores a negative one, a tie counting one half
    (the Mann-Whitney form; Hanley and McNeil 1982).
    """
    checked_scores, positive = _checked(scores, targets)
    return _per_class(_roc_auc_of_class, checked_scores, positive)


def d_prime(auc: float) -> float:
    """Separation of two unit-variance normals that have this AUC, in standard deviations.

    sqrt(2) times the inverse normal CDF of `auc`, as reported for AudioSet (Hershey et al. 2017).
    An AUC of exactly 0 or 1 has no finite separation; it is taken to lie `SMALLEST_AUC_MARGIN`
    inside, which gives about -11.6 or +11.6. NaN stays NaN.

    Raises:
        ValueError: `auc` lies outside 0..1.
    """
    if math.isnan(auc):
        return math.nan
    if not 0.0 <= auc <= 1.0:
        raise ValueError(f"an AUC lies in 0..1, got {auc}")
    inside = min(max(auc, SMALLEST_AUC_MARGIN), 1.0 - SMALLEST_AUC_MARGIN)
    return math.sqrt(2.0) * NormalDist().inv_cdf(inside)


def lwlrap(scores: ArrayLike, targets: ArrayLike) -> float:
    """Label-weighted label-ranking average precision, in 0..1 (Fonseca et al. 2019, FSDKaggle2019).

    For every label of every clip, the share of true labels among the classes of that clip that
    score at least as high; then the mean over all labels, so that each label (not each clip)
    weighs the same. Ties are pessimistic: a label takes the worst rank among its equals. Clips
    without a label carry no weight.

    Raises:
        ValueError: no clip has a label.
    """
    checked_scores, positive = _checked(scores, targets)
    _require_a_positive(positive)
    num_classes = positive.shape[1]

    order = np.argsort(-checked_scores, axis=1)  # (N, C), best first
    ranked_scores = np.take_along_axis(checked_scores, order, axis=1)
    ranked_positive = np.take_along_axis(positive, order, axis=1)

    ends_tie = np.ones_like(ranked_positive)
    ends_tie[:, :-1] = ranked_scores[:, 1:] != ranked_scores[:, :-1]

    # Flat positions are safe here because a clip's last place always ends a tie: no tie can reach
    # into the next clip.
    label_places = np.flatnonzero(ranked_positive)
    tie_ends = np.flatnonzero(ends_tie)
    worst_places = tie_ends[np.searchsorted(tie_ends, label_places)]

    labels_so_far = np.cumsum(ranked_positive, axis=1, dtype=np.int32).ravel()
    worst_ranks = worst_places % num_classes + 1
    return float(np.mean(labels_so_far[worst_places] / worst_ranks))


def accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Share of clips, in 0..1, whose one true class scores strictly highest.

    Ties are pessimistic: a clip whose true class shares the top score is a miss, so a model that
    scores all classes alike earns 0 and not a reward for the order of the classes.

    Raises:
        ValueError: some clip does not have exactly one label.
    """
    checked_scores, positive = _checked(scores, targets)
    _require_single_labels(positive)
    true_scores = checked_scores[positive]  # (N,)
    best_rivals = np.where(positive, -np.inf, checked_scores).max(axis=1)  # (N,)
    return float(np.mean(true_scores > best_rivals))


def summarise(scores: ArrayLike, targets: ArrayLike, *, single_label: bool) -> dict[str, float]:
    """All metrics of one evaluation, by name.

    mAP: mean average precision over the classes with a positive.
    macro_auc: mean AUC over the classes with both a positive and a negative; NaN if there is none.
    d_prime: d-prime of macro_auc (of the mean, as for AudioSet; not the mean of d-primes).
    lwlrap: see `lwlrap`.
    accuracy: see `accuracy`; only with `single_label`.
    classes_left_out: number of classes without a positive, which no mean above includes.

    Raises:
        ValueError: unfit arrays (see the module), no positive at all, or, with `single_label`, a
            clip that does not have exactly one label.
    """
    checked_scores, positive = _checked(scores, targets)
    _require_a_positive(positive)
    if single_label:
        _require_single_labels(positive)

    macro_auc = _mean_of_defined(roc_auc(checked_scores, positive))
    summary = {
        "mAP": _mean_of_defined(average_precision(checked_scores, positive)),
        "macro_auc": macro_auc,
        "d_prime": d_prime(macro_auc),
        "lwlrap": lwlrap(checked_scores, positive),
        "classes_left_out": float(np.sum(~positive.any(axis=0))),
    }
    if single_label:
        summary["accuracy"] = accuracy(checked_scores, positive)
    return summary


def _checked(scores: ArrayLike, targets: ArrayLike) -> tuple[FloatArray, BoolArray]:
    score_array = np.asarray(scores, dtype=np.float64)
    target_array = np.asarray(targets)
    if score_array.ndim != 2 or score_array.shape != target_array.shape:
        raise ValueError(
            "scores and targets must both be (clips, classes), "
            f"got {score_array.shape} and {target_array.shape}"
        )
    if score_array.size == 0:
        raise ValueError(f"no clip or no class to evaluate: the arrays are {score_array.shape}")
    finite = np.isfinite(score_array)
    if not finite.all():
        clip, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"scores must be finite, but {np.sum(~finite)} of {finite.size} are not; "
            f"the first is {score_array[clip, column]} at clip {clip}, class {column}"
        )
    positive = target_array == 1
    if not np.all(positive | (target_array == 0)):
        raise ValueError(
            "targets must be 0 or 1, "
            f"got values from {target_array.min()} to {target_array.max()}; threshold them first"
        )
    return score_array, positive


def _require_a_positive(positive: BoolArray) -> None:
    if not positive.any():
        raise ValueError(
            f"none of the {positive.shape[0]} clips has a label, so no ranking can be judged; "
            "check the targets or the split"
        )


def _require_single_labels(positive: BoolArray) -> None:
    labels_per_clip = positive.sum(axis=1)
    unfit = np.flatnonzero(labels_per_clip != 1)
    if unfit.size:
        raise ValueError(
            f"accuracy needs exactly one label per clip, but {unfit.size} clips differ; the first, "
            f"clip {unfit[0]}, has {labels_per_clip[unfit[0]]}; for several labels use mAP"
        )


def _mean_of_defined(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _per_class(
    metric: Callable[[IntArray, IntArray], float], scores: FloatArray, positive: BoolArray
) -> FloatArray:
    """`metric` of each class's (clips, positives) by distinct score, (C,)."""
    columns = zip(scores.T, positive.T, strict=True)
    return np.array([metric(*_counts_by_score(*column)) for column in columns])


def _counts_by_score(scores: FloatArray, positive: BoolArray) -> tuple[IntArray, IntArray]:
    """How many clips, and how many positives, hold each distinct score, the highest score first.

    Takes one class's (N,) columns; returns two (K,) counts, K being the number of distinct scores.
    """
    order = np.argsort(-scores)
    ranked_scores = scores[order]
    tie_ends = np.append(np.flatnonzero(ranked_scores[1:] != ranked_scores[:-1]), scores.size - 1)
    clips_down_to = tie_ends + 1
    positives_down_to = np.cumsum(positive[order], dtype=np.int64)[tie_ends]
    return np.diff(clips_down_to, prepend=0), np.diff(positives_down_to, prepend=0)


def _average_precision_of_class(clips: IntArray, positives: IntArray) -> float:
    if not positives.any():
        return math.nan
    precision = np.cumsum(positives) / np.cumsum(clips)  # (K,)
    return float(np.sum(positives * precision) / np.sum(positives))


def _roc_auc_of_class(clips: IntArray, positives: IntArray) -> float:
    negatives = clips - positives
    pairs = int(positives.sum()) * int(negatives.sum())
    if pairs == 0:
        return math.nan
    positives_above = np.cumsum(positives) - positives
    # Counted in halves, so that the sum stays an integer and a perfect ranking gives exactly 1.
    half_wins = int(np.sum(negatives * (2 * positives_above + positives)))
    return half_wins / (2 * pairs)
