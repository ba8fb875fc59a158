"""What Tune asks for trials is given the ledger's, and enters how each ended."""

import types

import pytest
from mlflow.exceptions import MlflowException

from workbench.study.grid_ledger import GridLedger
from workbench.study.plan import Planner
from workbench.study.study_file import load_study
from workbench.study.tune import WORKER_DEATHS, Watcher, _Handout, _Scheduler

from .ledgers import STUDY, FakeStore, optuna_url


class Watching(Watcher):
    def __init__(self):
        self.notes, self.ended_numbers = [], []

    def started(self, assignment):
        pass

    def note(self, text):
        self.notes.append(text)

    def ended(self, number):
        self.ended_numbers.append(number)


@pytest.fixture
def handout(tmp_path):
    path = tmp_path / "order.yaml"
    path.write_text(STUDY)
    ledger = GridLedger(load_study(path), Planner(), optuna_url(tmp_path), store=FakeStore())
    calm = types.SimpleNamespace(requested=False)
    return _Handout(ledger, Watching(), calm, lambda planned: 1, num_workers=2)


def _begin(handout, name="one"):
    return handout.suggest(name)["trials"][0]["number"]


def _states(handout):
    return {ended.number: (ended.state, ended.reason) for ended in handout._ledger.ended()}


def test_a_trial_ends_as_its_worker_says(handout):
    done, failed = _begin(handout, "one"), _begin(handout, "other")
    handout.on_trial_result("one", {"event": "done", "number": done, "value": 0.5})
    handout.on_trial_result("other", {"event": "failed", "number": failed, "reason": "diverged"})
    assert _states(handout) == {done: ("complete", ""), failed: ("failed", "diverged")}
    assert handout._watcher.ended_numbers == [done, failed]
    for name, event in (("one", "done"), ("other", "failed")):  # Tune sends the last result once more
        handout.on_trial_complete(name, {"event": event, "number": -1})
    assert handout._watcher.ended_numbers == [done, failed]


def test_a_trial_whose_workers_die_is_given_out_again_and_fails_at_last(handout):
    number = _begin(handout, "life 0")
    for life in range(WORKER_DEATHS):
        handout.on_trial_complete(f"life {life}", error=True)
        assert _states(handout) == {}
        assert _begin(handout, f"life {life + 1}") == number
    handout.on_trial_complete(f"life {WORKER_DEATHS}", error=True)
    assert _states(handout)[number][0] == "failed"
    assert f"its worker died {WORKER_DEATHS + 1} times" in _states(handout)[number][1]
    assert len(handout._watcher.notes) == WORKER_DEATHS


def test_a_pretraining_that_has_failed_is_not_tried_again_for_every_trial_that_shares_it(handout, tmp_path):
    """Nor after a restart; with --retry-failed it is."""
    needed = {p.key: p.stages.pretrain.key for p in handout._ledger.planned}
    failed = _begin(handout)
    handout.on_trial_result("one", {"event": "failed", "number": failed, "reason": "diverged"})
    given = [handout._ledger._running[_begin(handout, f"other {i}")] for i in range(3)]
    stage = needed[handout._ledger.ended()[0].key]
    assert len({p.stages.pretrain.key for p in given} - {stage}) == 3
    assert handout.suggest("one more") is None, "the others' pre-trainings are under way"
    ended = {e.number: e for e in handout._ledger.ended()}
    (sharing,) = ended.keys() - {failed}
    assert needed[ended[sharing].key] == stage
    assert ended[sharing].reason == f"its pretrain stage failed in trial {failed}: diverged"
    assert handout._watcher.ended_numbers == [failed, sharing]

    def again(**options):
        return GridLedger(
            handout._ledger.study, Planner(), optuna_url(tmp_path), store=FakeStore(), **options
        )

    doomed = [p for p in again().planned if p.stages.pretrain.key == stage]
    assert len(doomed) == 2
    assert all(again().why_failed_already(p) for p in doomed)
    assert not any(again(retry_failed=True).why_failed_already(p) for p in doomed)


def test_a_failed_finetuning_is_its_own_trials_alone(handout):
    number = _begin(handout)
    running = handout._ledger._running[number]
    handout._ledger.store.trained = {running.stages.pretrain.key}
    handout.on_trial_result("one", {"event": "failed", "number": number, "reason": "diverged"})
    assert not any(handout._ledger.why_failed_already(p) for p in handout._ledger._pending)


def test_what_is_not_the_trials_fault_ends_the_study_and_keeps_the_trial(handout):
    number = _begin(handout)
    handout.on_trial_result("one", {"event": "broken", "number": number, "reason": "disk full"})
    assert handout.broken == "disk full"
    assert handout.suggest("next") == handout.FINISHED
    assert _states(handout) == {}
    handout.broken = ""
    assert _begin(handout, "again") == number


@pytest.mark.parametrize("event", ["busy", "stopped"])
def test_what_was_put_aside_is_given_out_again(handout, event):
    number = _begin(handout)
    handout.on_trial_result("one", {"event": event, "number": number})
    assert _begin(handout, "again") == number


def test_what_the_pruner_ends_is_given_up(handout):
    number = _begin(handout)
    handout.on_trial_complete("one", {"event": "validation", "number": number})
    assert _states(handout)[number][0] == "pruned"


def test_nothing_is_given_out_after_an_interruption(handout):
    handout._interruption.requested = True
    assert handout.suggest("one") == handout.FINISHED


def test_what_fails_in_the_books_is_kept_as_it_was(handout):
    """Tune makes a text of its traceback, whose last line says nothing of use."""
    number = _begin(handout)
    failure = MlflowException("database or disk is full")

    def ended(number):
        raise failure

    handout._watcher.ended = ended
    with pytest.raises(MlflowException):
        handout.on_trial_result("one", {"event": "done", "number": number, "value": 0.5})
    assert handout.failure is failure


def test_what_fails_when_a_trial_is_judged_is_kept_as_it_was(handout, monkeypatch):
    failure = OSError(28, "No space left on device")

    def full(*arguments):
        raise failure

    monkeypatch.setattr(handout._ledger, "should_prune", full)
    validation = {"event": "validation", "number": _begin(handout), "step": 1, "value": 0.5}
    with pytest.raises(OSError, match="No space"):
        _Scheduler(handout).on_trial_result(None, None, validation)
    assert handout.failure is failure
