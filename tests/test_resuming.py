"""Training repeats itself exactly, also from the checkpoint of any update."""

import dataclasses
import itertools
import math
import os
import types

import pytest
import torch

from workbench.training import loop
from workbench.training.checkpoint import TrainingState, save_tensors
from workbench.training.loop import Course, Diverged, Run
from workbench.training.pretrain import Pretraining, pretrain

from .trained import finetuned
from .trained_alike import assert_identical_weights

CPU = torch.device("cpu")


class StopAt:
    """A tracker that ends the training after an update, as a kill would."""

    class Stopped(Exception):
        pass

    def __init__(self, step):
        self.step = step

    def progress(self, stage, step, steps):
        if step == self.step:
            raise self.Stopped

    def log(self, stage, step, metrics):
        pass


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_trial, tiny_splits, with_changes):
    first = pretrain(tiny_trial, tiny_splits.pool, Run())
    torch.rand(7)  # whatever else draws from the global generator
    second = pretrain(tiny_trial, tiny_splits.pool, Run())
    assert_identical_weights(first.encoder.state_dict(), second.encoder.state_dict())
    assert first.history == second.history
    other = pretrain(with_changes(tiny_trial, {"seed": 1}), tiny_splits.pool, Run())
    assert other.history != first.history


@pytest.mark.parametrize("stop", [1, 7, 29])
def test_pretraining_resumes_exactly_at_any_step(tiny_trial, tiny_splits, tmp_path, stop):
    whole = pretrain(tiny_trial, tiny_splits.pool, Run())
    checkpoint = tmp_path / "checkpoint.safetensors"
    run = Run(tracker=StopAt(stop + 1), checkpoint=checkpoint, save_seconds=0)
    with pytest.raises(StopAt.Stopped):
        pretrain(tiny_trial, tiny_splits.pool, run)
    assert TrainingState.load(checkpoint).step == stop
    resumed = pretrain(tiny_trial, tiny_splits.pool, Run(checkpoint=checkpoint))
    assert_identical_weights(whole.encoder.state_dict(), resumed.encoder.state_dict())
    assert whole.history == resumed.history


@pytest.mark.parametrize("log_points", [50, 4])
@pytest.mark.parametrize("stop", [3, 15, 22])  # before, at and after the first of two evaluations
def test_finetuning_resumes_exactly_at_any_step(
    tiny_trial, tiny_splits, tmp_path, stop, log_points, monkeypatch
):
    monkeypatch.setattr("workbench.training.loop.LOG_POINTS", log_points)
    whole = finetuned(tiny_trial, tiny_splits)
    checkpoint = tmp_path / "checkpoint.safetensors"
    run = Run(tracker=StopAt(stop + 1), checkpoint=checkpoint, save_seconds=0)
    with pytest.raises(StopAt.Stopped):
        finetuned(tiny_trial, tiny_splits, run)
    resumed = finetuned(tiny_trial, tiny_splits, Run(checkpoint=checkpoint))
    assert_identical_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history == resumed.history
    assert whole.validation == resumed.validation


def test_a_checkpoint_counts_a_trials_part_of_the_time_that_it_shares(
    tiny_trial, tiny_splits, tmp_path, monkeypatch
):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("workbench.training.loop.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    seconds = {}
    for shared_by in (1, 4):
        path = tmp_path / f"{shared_by}.safetensors"
        run = Run(tracker=StopAt(2), checkpoint=path, save_seconds=0, shared_by=shared_by)
        with pytest.raises(StopAt.Stopped):
            pretrain(tiny_trial, tiny_splits.pool, run)
        seconds[shared_by] = TrainingState.load(path).seconds
    assert seconds[1] == 4 * seconds[4] > 0


def test_a_stop_while_saving_leaves_the_previous_checkpoint(tiny_trial, tiny_splits, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(StopAt.Stopped):
        pretrain(
            tiny_trial,
            tiny_splits.pool,
            Run(tracker=StopAt(6), checkpoint=checkpoint, save_seconds=0),
        )
    before = checkpoint.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pretrain(tiny_trial, tiny_splits.pool, Run(checkpoint=checkpoint, save_seconds=0))
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_cannot_be_read_says_what_to_do(tiny_trial, tiny_splits, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    for content in (b"", b"not tensors at all"):
        checkpoint.write_bytes(content)
        with pytest.raises(OSError, match=r"checkpoint\.safetensors is no checkpoint .* delete it"):
            pretrain(tiny_trial, tiny_splits.pool, Run(checkpoint=checkpoint))
    save_tensors(checkpoint, {"model/weight": torch.zeros(1)}, {"step": 3})  # of another version
    with pytest.raises(OSError, match="delete it"):
        pretrain(tiny_trial, tiny_splits.pool, Run(checkpoint=checkpoint))


def test_what_diverges_between_log_points_replaces_no_checkpoint(tiny_trial, tiny_splits, tmp_path):
    task = Pretraining(tiny_trial, tiny_splits.pool, CPU)
    run = Run(checkpoint=tmp_path / "checkpoint.safetensors", save_seconds=0.0)
    course = Course(task, dataclasses.replace(task.settings, steps=1000), seed=0, run=run)

    def updated(loss):
        course.updated({"loss": torch.tensor(loss)}, torch.ones(()), dict)

    for loss in (0.5, 0.25):
        updated(loss)
    with pytest.raises(Diverged, match="no longer finite by update 3"):
        updated(math.nan)
    assert TrainingState.load(run.checkpoint).step == 2
    again = Course(task, course.config, seed=0, run=run)
    assert loop._on_host(again._window) == [{"loss": 0.5}, {"loss": 0.25}]
