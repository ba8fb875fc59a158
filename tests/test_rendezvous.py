"""Trials in threads train together at each training, one thread at a time, and end as they would alone."""

import re
import threading
import time

import pytest
import torch

from workbench.config import TrialConfig
from workbench.data.clips import DataError
from workbench.data_config import Esc50Data
from workbench.training import pack, rendezvous
from workbench.training.checkpoint import TrainingState
from workbench.training.finetune import finetune, score
from workbench.training.loop import Diverged, Run
from workbench.training.pack import pack_key
from workbench.training.pretrain import pretrain
from workbench.training.rendezvous import PackFailed, Rendezvous

from .trained_alike import assert_same_weights
from .variants import variants

UPDATES = 4
CPU = torch.device("cpu")


@pytest.fixture
def trials(tiny_trial, with_changes):
    short = {
        "pretraining.steps": UPDATES,
        "finetuning.steps": UPDATES,
        "data.validation_clips": 32,
        "data.test_clips": 32,
    }
    changes = [{"seed": 0}, {"seed": 1}, {"seed": 2, "finetuning.optimiser.peak_lr": 1e-3}]
    return [with_changes(tiny_trial, short | change) for change in changes]


def _whole(trial, splits, train=None):
    """Pre-training, fine-tuning and a score."""
    run = Run() if train is None else Run(train=train)
    encoder = pretrain(trial, splits.pool, run).encoder
    model = finetune(trial, splits, encoder, run).model
    return score(trial, model, splits.validation, CPU, "validation")[1]


@pytest.fixture
def packs(monkeypatch):
    """How many trained together, each time."""
    sizes = []

    def counted(courses):
        sizes.append(len(courses))
        return together(courses)

    together = rendezvous.train_together
    monkeypatch.setattr(rendezvous, "train_together", counted)
    return sizes


def test_trials_meet_at_each_training_and_end_as_alone(trials, tiny_splits, packs):
    alone = [_whole(trial, tiny_splits) for trial in trials]
    meeting = Rendezvous()
    met = meeting.run([lambda t=trial: _whole(t, tiny_splits, meeting.train) for trial in trials])
    assert packs == [3, 3]
    for one, other in zip(met, alone, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_one_that_ends_early_is_not_waited_for(trials, tiny_splits, packs, with_changes):
    wild = with_changes(trials[0], {"pretraining.optimiser.peak_lr": 1e25, "pretraining.steps": 40})
    meeting = Rendezvous()

    def breaks():
        raise KeyError("mine")

    jobs = [lambda t=trial: _whole(t, tiny_splits, meeting.train) for trial in (wild, *trials[1:])]
    diverged, first, second, broken = meeting.run([*jobs, breaks])
    assert isinstance(diverged, Diverged)
    assert isinstance(broken, KeyError)
    assert first.shape == second.shape == (len(tiny_splits.validation), 12)
    assert packs == [3, 2]


def test_when_a_pack_fails_each_trial_goes_on_alone_from_its_checkpoint(
    trials, tiny_splits, monkeypatch, tmp_path
):
    """A pack fails in its third update, as when a GPU is short of memory."""

    def runs(**settings):
        paths = [tmp_path / f"{trial.seed}.safetensors" for trial in trials]
        return [Run(checkpoint=path, save_seconds=0, **settings) for path in paths]

    clipped, calls = pack.Pack._clip, []

    def short_of_memory(self):
        calls.append(self)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("none left\nand much else")
        return clipped(self)

    monkeypatch.setattr(pack.Pack, "_clip", short_of_memory)
    meeting = Rendezvous()
    together = zip(trials, runs(train=meeting.train), strict=True)
    failed = meeting.run([lambda t=t, run=run: pretrain(t, tiny_splits.pool, run) for t, run in together])
    assert all(isinstance(end, PackFailed) for end in failed)
    assert {str(end) for end in failed} == {"OutOfMemoryError: none left"}
    monkeypatch.setattr(rendezvous, "train_together", None)
    for trial, run in zip(trials, runs(), strict=True):
        assert TrainingState.load(run.checkpoint).step == 2
        ours = pretrain(trial, tiny_splits.pool, run).encoder.state_dict()
        assert_same_weights(ours, pretrain(trial, tiny_splits.pool, Run()).encoder.state_dict())


@pytest.mark.parametrize("error", [OSError(28, "No space left"), DataError("unreadable")])
def test_what_is_not_a_packs_own_failure_is_raised_as_it_is(trials, tiny_splits, monkeypatch, error):
    def fails(courses):
        raise error

    monkeypatch.setattr(rendezvous, "train_together", fails)
    meeting = Rendezvous()
    ends = meeting.run([lambda t=t: _whole(t, tiny_splits, meeting.train) for t in trials])
    assert ends == [error] * 3


def test_trials_of_other_shapes_train_apart(trials, tiny_splits, packs, with_changes):
    larger = with_changes(trials[0], {"pretraining.batch_size": 8})
    meeting = Rendezvous()
    met = meeting.run([lambda t=t: _whole(t, tiny_splits, meeting.train) for t in (larger, *trials[1:])])
    assert packs == [2, 3]
    assert met[0] == pytest.approx(_whole(larger, tiny_splits), abs=2e-3)


def test_one_thread_runs_at_a_time():
    """New models draw from torch's global random state."""
    inside, most = [], []

    def job():
        inside.append(threading.get_ident())
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()

    Rendezvous().run([job] * 5)
    assert most == [1] * 5


# What may differ between the trials of a pack: each draws, and updates, for itself.
THEIR_OWN = {
    "pretrain": r"seed|model\.dropout|data\.(?!clip_seconds)|finetuning\.|"
    r"pretraining\.(steps|gain_db|mel_shift|optimiser|schedule)",
    "finetune": r"seed|model\.dropout|data\.(?!clip_seconds)|pretraining\.|"
    r"finetuning\.(steps|class_balanced|num_evaluations|augmentation|optimiser|schedule)",
}


@pytest.mark.parametrize("kind", THEIR_OWN)
def test_whatever_a_pack_shares_is_in_its_key(kind):
    trial = TrialConfig()
    own = pack_key(trial, kind)
    found = {path: pack_key(changed, kind) == own for path, changed in variants(trial)}
    assert found == {path: bool(re.match(THEIR_OWN[kind], path)) for path in found}


def test_what_a_pack_cannot_take_has_no_key(tiny_trial, with_changes):
    for kind in ("pretrain", "finetune"):
        assert pack_key(with_changes(tiny_trial, {"model.recompute": True}), kind) is None
        assert pack_key(with_changes(tiny_trial, {"data": Esc50Data()}), kind) is None
        without = pack_key(with_changes(tiny_trial, {"model.dropout": 0.0}), kind)
        assert without not in (None, pack_key(tiny_trial, kind))
