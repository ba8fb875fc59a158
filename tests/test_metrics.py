"""The metrics agree with independent implementations and mean what their names say."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    roc_auc_score,
)

from workbench.training.metrics import (
    accuracy,
    average_precision,
    d_prime,
    lwlrap,
    roc_auc,
    summarise,
)

Scores = NDArray[np.float64]
Targets = NDArray[np.int64]
EMPTY_CLASS, FULL_CLASS = 3, 5


def random_clips(*, ties: bool, seed: int = 0) -> tuple[Scores, Targets]:
    """90 clips of 7 classes with 0 to 7 labels; one class never true, one always."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(90, 7))
    if ties:
        scores = np.round(scores)  # about seven distinct values
    targets = (generator.random((90, 7)) < 0.25).astype(np.int64)
    targets[0] = 1
    targets[:, EMPTY_CLASS] = 0
    targets[:, FULL_CLASS] = 1
    return scores, targets


def single_label_clips(seed: int = 0) -> tuple[Scores, Targets]:
    generator = np.random.default_rng(seed)
    labels = np.r_[np.arange(6), generator.integers(6, size=54)]
    return generator.normal(size=(60, 6)), np.eye(6, dtype=np.int64)[labels]


def average_precision_by_definition(scores: Scores, targets: Targets) -> float:
    """For one class: walk down the distinct scores, adding precision times the rise in recall."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = [target for score, target in zip(scores, targets, strict=True) if score >= threshold]
        recall = sum(chosen) / targets.sum()
        total += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return total


def lwlrap_by_definition(scores: Scores, targets: Targets) -> float:
    """Fonseca et al. 2019: each class's mean precision at its labels, weighted by its prior."""
    num_classes = targets.shape[1]
    precisions: list[list[float]] = [[] for _ in range(num_classes)]
    for clip_scores, clip_targets in zip(scores, targets, strict=True):
        for label in range(num_classes):
            if clip_targets[label]:
                at_least = [c for c in range(num_classes) if clip_scores[c] >= clip_scores[label]]
                true_ones = [c for c in at_least if clip_targets[c]]
                precisions[label].append(len(true_ones) / len(at_least))
    num_labels = sum(len(of_class) for of_class in precisions)
    return sum(len(of_class) / num_labels * float(np.mean(of_class)) for of_class in precisions if of_class)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
class TestAgainstReferences:
    def test_average_precision(self, ties: bool, seed: int) -> None:
        scores, targets = random_clips(ties=ties, seed=seed)
        ours = average_precision(scores, targets)
        assert np.flatnonzero(np.isnan(ours)).tolist() == [EMPTY_CLASS]
        for c in np.flatnonzero(~np.isnan(ours)):
            column = scores[:, c], targets[:, c]
            assert ours[c] == pytest.approx(average_precision_score(column[1], column[0]))
            assert ours[c] == pytest.approx(average_precision_by_definition(*column))

    def test_roc_auc(self, ties: bool, seed: int) -> None:
        scores, targets = random_clips(ties=ties, seed=seed)
        ours = roc_auc(scores, targets)
        assert np.flatnonzero(np.isnan(ours)).tolist() == [EMPTY_CLASS, FULL_CLASS]
        for c in np.flatnonzero(~np.isnan(ours)):
            assert ours[c] == pytest.approx(roc_auc_score(targets[:, c], scores[:, c]))

    def test_lwlrap(self, ties: bool, seed: int) -> None:
        scores, targets = random_clips(ties=ties, seed=seed)
        targets[:, FULL_CLASS] = targets[:, 0]
        num_labels = targets.sum(axis=1)
        assert num_labels.min() == 0, "the data should hold clips without a label"
        by_sklearn = label_ranking_average_precision_score(targets, scores, sample_weight=num_labels)
        assert lwlrap(scores, targets) == pytest.approx(by_sklearn)
        assert lwlrap(scores, targets) == pytest.approx(lwlrap_by_definition(scores, targets))


def test_d_prime_agrees_with_scipy() -> None:
    for auc in [1e-9, 0.03, 0.5, 0.76, 0.97, 1 - 1e-9]:
        assert d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-12)


def test_d_prime_of_a_perfect_or_reversed_ranking_is_finite_and_beyond_all_others() -> None:
    assert d_prime(1.0) == pytest.approx(-d_prime(0.0)) == pytest.approx(11.6, abs=0.05)
    assert d_prime(1.0) >= d_prime(np.nextafter(1.0, 0.0)) > d_prime(1 - 1e-12)
    assert math.isnan(d_prime(math.nan))
    with pytest.raises(ValueError, match=r"0\.\.1, got 1\.2"):
        d_prime(1.2)


def test_accuracy_agrees_with_the_highest_score() -> None:
    scores, targets = single_label_clips()
    expected = float(np.mean(scores.argmax(axis=1) == targets.argmax(axis=1)))
    assert 0 < expected < 1
    assert accuracy(scores, targets) == expected


def test_ties_are_never_rewarded_by_the_order_of_the_classes() -> None:
    targets = np.eye(4, dtype=np.int64)
    same = np.ones((4, 4))
    assert accuracy(same, targets) == 0.0
    assert lwlrap(same, targets) == 1 / 4
    assert roc_auc(same, targets).tolist() == [0.5] * 4
    assert average_precision(same, targets).tolist() == [1 / 4] * 4


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("transform", [lambda s: 3 * s - 7, np.arctan, np.exp, lambda s: s**3 + s])
def test_only_the_order_of_the_scores_matters(ties: bool, transform: Callable[[Scores], Scores]) -> None:
    scores, targets = random_clips(ties=ties)
    assert summarise(transform(scores), targets, single_label=False) == summarise(
        scores, targets, single_label=False
    )


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_the_clips_does_not_matter(ties: bool) -> None:
    scores, targets = random_clips(ties=ties)
    shuffled = np.random.default_rng(1).permutation(len(scores))
    assert summarise(scores[shuffled], targets[shuffled], single_label=False) == pytest.approx(
        summarise(scores, targets, single_label=False)
    )


def test_a_perfect_ranking_earns_everything() -> None:
    _, targets = single_label_clips()
    summary = summarise(targets.astype(float), targets, single_label=True)
    assert summary == {
        "mAP": 1.0,
        "macro_auc": 1.0,
        "d_prime": d_prime(1.0),
        "lwlrap": 1.0,
        "accuracy": 1.0,
        "classes_left_out": 0,
    }


def test_a_reversed_ranking_earns_the_least_there_is() -> None:
    _, targets = single_label_clips()
    summary = summarise(-targets.astype(float), targets, single_label=True)
    assert summary["macro_auc"] == 0.0
    assert summary["d_prime"] == d_prime(0.0)
    assert summary["accuracy"] == 0.0
    assert summary["lwlrap"] == pytest.approx(1 / 6)  # last of six classes, every time
    assert summary["mAP"] == pytest.approx(targets.mean())  # all positives join at the end


def test_means_leave_out_classes_without_a_positive_and_say_how_many() -> None:
    scores, targets = random_clips(ties=False)
    targets[:, EMPTY_CLASS + 1] = 0
    summary = summarise(scores, targets, single_label=False)
    kept = [c for c in range(7) if c not in (EMPTY_CLASS, EMPTY_CLASS + 1)]
    both = [c for c in kept if c != FULL_CLASS]
    assert summary["classes_left_out"] == 2
    assert summary["mAP"] == pytest.approx(average_precision(scores, targets)[kept].mean())
    assert summary["macro_auc"] == pytest.approx(roc_auc(scores, targets)[both].mean())
    assert summary["d_prime"] == d_prime(summary["macro_auc"])
    assert "accuracy" not in summary


def test_an_auc_that_no_class_defines_is_nan() -> None:
    summary = summarise([[0.2, 0.1]], [[1, 0]], single_label=True)
    assert math.isnan(summary["macro_auc"])
    assert math.isnan(summary["d_prime"])
    assert summary["mAP"] == summary["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((4, 3)), np.ones((4, 2)), r"\(4, 3\) and \(4, 2\)"),
        (np.zeros(4), np.ones(4), r"\(clips, classes\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "no clip"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "no clip"),
        ([[0.0, np.nan]], [[0, 1]], "finite.*nan at clip 0, class 1"),
        ([[np.inf, 0.0]], [[0, 1]], "finite.*inf at clip 0, class 0"),
        ([[1.0, 2.0]], [[0.0, 0.5]], "0 or 1"),
    ],
)
@pytest.mark.parametrize("metric", [average_precision, roc_auc, lwlrap, accuracy, summarise])
def test_unfit_arrays_are_refused(
    metric: Callable[..., object], scores: Scores, targets: Targets, message: str
) -> None:
    options = {"single_label": False} if metric is summarise else {}
    with pytest.raises(ValueError, match=message):
        metric(scores, targets, **options)


def test_targets_without_any_positive_are_refused() -> None:
    scores, targets = np.ones((4, 3)), np.zeros((4, 3))
    with pytest.raises(ValueError, match="none of the 4 clips"):
        summarise(scores, targets, single_label=False)
    with pytest.raises(ValueError, match="none of the 4 clips"):
        lwlrap(scores, targets)


@pytest.mark.parametrize("second_clip", [[0, 0, 0], [1, 1, 0]])
def test_accuracy_refuses_clips_without_exactly_one_label(second_clip: list[int]) -> None:
    targets = np.array([[0, 1, 0], second_clip])
    with pytest.raises(ValueError, match=f"clip 1, has {sum(second_clip)}"):
        accuracy(np.ones((2, 3)), targets)
    with pytest.raises(ValueError, match="exactly one label"):
        summarise(np.ones((2, 3)), targets, single_label=True)
