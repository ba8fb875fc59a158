"""Batch orders are what they promise to be, as pure functions of the seed and the step."""

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.data.labels import Labels
from workbench.training.batches import BalancedClasses, ShuffledEpochs, neighbours
from workbench.training.finetune import new_clip_model, predict
from workbench.training.pretrain import new_encoder

SHAPES = [(12, 4), (10, 4), (7, 3), (5, 8), (3, 10), (1, 4), (6, 1)]  # clips N, batch size B


def _skewed_labels():
    """(1000, 5): classes of 900 down to 4 clips, overlapping, one empty; some clips unlabelled."""
    labels = np.zeros((1000, 5), np.uint8)
    labels[:900, 0] = 1
    labels[850:940, 1] = 1
    labels[890:898, 2] = 1
    labels[946:950, 4] = 1
    return labels


@pytest.mark.parametrize(("clips", "batch_size"), SHAPES)
def test_an_epoch_visits_every_clip_once(clips, batch_size):
    order = ShuffledEpochs(clips, batch_size, seed=0, stage="pretrain")
    epochs = 3 * batch_size  # then they end with a batch
    batches = [order.batch(step) for step in range(epochs * clips // batch_size)]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    visited = np.concatenate(batches).reshape(epochs, clips)
    assert (np.sort(visited, axis=1) == np.arange(clips)).all()


def test_every_epoch_has_an_order_of_its_own():
    order = ShuffledEpochs(50, 50, seed=0, stage="pretrain")
    assert len({order.batch(step).tobytes() for step in range(20)}) == 20


@pytest.mark.parametrize(("clips", "batch_size"), SHAPES)
def test_a_step_draws_the_same_whatever_was_drawn_before(clips, batch_size):
    """What a resumed run needs: no batch depends on those before it."""
    forwards = ShuffledEpochs(clips, batch_size, seed=3, stage="pretrain")
    expected = [forwards.batch(step) for step in range(20)]
    backwards = ShuffledEpochs(clips, batch_size, seed=3, stage="pretrain")
    for step in (*reversed(range(20)), 7, 19, 0, 7):
        np.testing.assert_array_equal(backwards.batch(step), expected[step])


@pytest.mark.parametrize(
    "make",
    [
        lambda seed, stage: ShuffledEpochs(1000, 64, seed, stage),
        lambda seed, stage: BalancedClasses(Labels.of_matrix(_skewed_labels()), 64, seed, stage),
    ],
    ids=["shuffled", "balanced"],
)
def test_seed_and_stage_decide_the_order(make):
    batch = make(0, "pretrain").batch(5)
    np.testing.assert_array_equal(make(0, "pretrain").batch(5), batch)
    assert not np.array_equal(make(1, "pretrain").batch(5), batch)
    assert not np.array_equal(make(0, "finetune").batch(5), batch)
    assert not np.array_equal(make(0, "pretrain").batch(6), batch)


def test_balanced_classes_are_drawn_uniformly_and_their_clips_too():
    labels = _skewed_labels()
    order = BalancedClasses(Labels.of_matrix(labels), 100, seed=0, stage="finetune")
    drawn = np.concatenate([order.batch(step) for step in range(200)])
    # A class with probability 1 / 4 (of those that have clips), then one of its clips.
    clips_of_class = labels.sum(axis=0)
    present = clips_of_class > 0
    probability = (labels[:, present] / clips_of_class[present]).sum(axis=1) / present.sum()
    kinds, kind = np.unique(labels, axis=0, return_inverse=True)
    observed = np.bincount(kind[drawn], minlength=len(kinds))
    expected = np.bincount(kind, probability) * len(drawn)
    possible = expected > 0
    assert stats.chisquare(observed[possible], expected[possible]).pvalue > 0.01
    of_rarest = np.bincount(drawn, minlength=1000)[946:950]
    assert stats.chisquare(of_rarest).pvalue > 0.01
    assert of_rarest.sum() / len(drawn) == pytest.approx(1 / 4, abs=0.01)


def test_balanced_classes_never_draw_a_clip_without_labels():
    labels = _skewed_labels()
    order = BalancedClasses(Labels.of_matrix(labels), 100, seed=0, stage="finetune")
    drawn = np.concatenate([order.batch(step) for step in range(200)])
    assert labels[drawn].any(axis=1).all()


def test_balanced_steps_do_not_depend_on_each_other():
    first = BalancedClasses(Labels.of_matrix(_skewed_labels()), 16, seed=0, stage="finetune")
    second = BalancedClasses(Labels.of_matrix(_skewed_labels()), 16, seed=0, stage="finetune")
    expected = [first.batch(step) for step in range(5)]
    for step in (4, 0, 2, 4):
        np.testing.assert_array_equal(second.batch(step), expected[step])


def test_a_batch_that_is_evaluated_is_bounded_though_one_recording_lasts_for_hours():
    """What is no longer than usual is heard in the same batches as ever."""
    lengths = np.random.default_rng(0).integers(1, 60 * 16_000, 200)
    assert neighbours(lengths) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    lengths[[70, 150]] = 2 * 3600 * 16_000
    found = neighbours(lengths)
    assert [clip for begin, end in found for clip in range(begin, end)] == list(range(200))
    padded = [(end - begin) * lengths[begin:end].max() for begin, end in found]
    assert max(padded) == lengths.max()  # those of two hours alone
    assert len(found) < 30


def test_how_clips_are_batched_changes_no_score(tiny_trial, tiny_splits, monkeypatch):
    cpu = torch.device("cpu")
    model = new_clip_model(
        tiny_trial, new_encoder(tiny_trial, tiny_splits.pool, cpu), len(tiny_splits.classes)
    )
    together = predict(tiny_trial, model, tiny_splits.test, cpu)
    monkeypatch.setattr("workbench.training.batches.HEARD_SECONDS", 5.0)
    np.testing.assert_allclose(predict(tiny_trial, model, tiny_splits.test, cpu), together, atol=1e-5)
