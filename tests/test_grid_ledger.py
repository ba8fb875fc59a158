"""A grid's ledger hands out each trial once, longest first, and never two at one pre-training."""

import datetime

import pytest

from workbench.study.grid_ledger import GridLedger
from workbench.study.plan import Planner, work_of
from workbench.study.study_file import load_study
from workbench.training.pack import pack_key

from .ledgers import STUDY, FakeStore, optuna_url


@pytest.fixture
def open_ledger(tmp_path):
    path = tmp_path / "order.yaml"
    path.write_text(STUDY)

    def open_ledger(trained=(), **options):
        return GridLedger(
            load_study(path),
            Planner(),
            optuna_url(tmp_path),
            store=FakeStore(trained),
            **options,
        )

    return open_ledger


def test_each_trial_is_handed_out_once_and_no_pretraining_twice_at_a_time(open_ledger):
    trained = set()
    ledger = open_ledger(trained)
    running, seen = [], []
    while ledger.num_left:
        while len(running) < 3 and (assignment := ledger.next()) is not None:
            needed = assignment.planned.stages.pretrain.key
            at_work = {a.planned.stages.pretrain.key for a in running}
            assert needed in trained or needed not in at_work
            running.append(assignment)
            seen.append(assignment.planned.key)
        done = running.pop(0)
        trained.add(done.planned.stages.pretrain.key)
        ledger.complete(done.number, 0.5)
    assert len(seen) == len(set(seen)) == 8
    assert [e.state for e in ledger.ended()] == ["complete"] * 8


def test_trials_that_train_together_are_found_by_the_stage_that_they_need_next(open_ledger):
    ledger = open_ledger()
    first = ledger.next()
    pack = [first]
    ready = ledger.num_ready(first.planned)  # the other seed's, of both regimes; they share a pre-training
    while (following := ledger.next(like=first.planned)) is not None:
        pack.append(following)
    assert ready == len(pack) - 1
    needed = [a.planned.stages.pretrain.key for a in pack]
    key = pack_key(first.planned.trial.config, "pretrain")
    assert [pack_key(a.planned.trial.config, "pretrain") for a in pack] == [key] * len(pack)
    assert len(set(needed)) == len(needed) == 2


def test_the_longest_comes_first(open_ledger):
    first = open_ledger().next().planned.trial
    assert (first.regime, first.seed) == ("long", 0)
    everything = open_ledger({p.stages.pretrain.key for p in open_ledger().planned})
    lengths = [work_of(everything.next().planned.trial.config)["finetune"] for _ in range(8)]
    assert lengths == sorted(lengths, reverse=True)


def test_what_was_cut_off_comes_first_under_its_number(open_ledger):
    ledger = open_ledger()
    cut_off = [ledger.next(), ledger.next()]
    again = open_ledger()
    taken_up = [again.next(), again.next()]
    assert {(a.number, a.planned.key) for a in taken_up} == {(a.number, a.planned.key) for a in cut_off}
    assert again.num_left == 8


def test_a_trial_whose_worker_died_is_handed_out_again(open_ledger):
    ledger = open_ledger()
    assignment = ledger.next()
    ledger.put_back(assignment.number)
    assert ledger.next() == assignment


def test_a_failure_is_remembered_until_asked_otherwise(open_ledger):
    ledger = open_ledger()
    failed = ledger.next()
    ledger.fail(failed.number, "no luck")
    assert ledger.num_left == 7
    again = open_ledger()
    assert again.num_left == 7
    assert [(e.state, e.reason) for e in again.ended()] == [("failed", "no luck")]
    assert open_ledger(retry_failed=True).num_left == 8


def test_a_score_that_is_no_number_is_a_failure(open_ledger):
    ledger = open_ledger()
    ledger.complete(ledger.next().number, float("nan"))
    assert [e.state for e in ledger.ended()] == ["failed"]


def test_a_retry_that_is_cut_off_is_taken_over(open_ledger):
    ledger = open_ledger()
    failed = ledger.next()
    ledger.fail(failed.number, "no luck")
    retried = open_ledger(retry_failed=True)
    cut_off = next(a for a in iter(retried.next, None) if a.planned.key == failed.planned.key)
    plain = open_ledger()
    assert plain.num_left == 8
    assert cut_off.number in {plain.next().number for _ in range(4)}


def test_a_trial_that_left_the_study_is_closed_and_run_when_it_is_back(open_ledger, tmp_path):
    cut_off = open_ledger().next()
    assert cut_off.planned.trial.seed == 0
    path = tmp_path / "order.yaml"
    path.write_text(STUDY.replace("seeds: [0, 1]", "seeds: [1, 2]"))
    changed = open_ledger()
    assert changed.num_left == 8
    assert changed.ended() == []
    path.write_text(STUDY)
    assert open_ledger().num_left == 8


def test_what_is_forgotten_is_run_anew(open_ledger):
    ledger = open_ledger()
    done = ledger.next()
    ledger.complete(done.number, 0.5)
    assert (ledger.num_left, open_ledger().num_left) == (7, 7)
    ledger.forget(done.number)
    assert (ledger.num_left, open_ledger().num_left) == (8, 8)


def test_the_work_left_counts_a_shared_pretraining_once(open_ledger):
    trained = set()
    ledger = open_ledger(trained)
    one = work_of(ledger.planned[0].trial.config)["pretrain"]
    fine = sum(work_of(p.trial.config)["finetune"] for p in ledger.planned)
    assert ledger.work_left() == 4 * one + fine
    first = ledger.next()
    assert ledger.work_left() == 4 * one + fine
    trained.add(first.planned.stages.pretrain.key)
    ledger.complete(first.number, 0.5)
    assert ledger.work_left() == 3 * one + fine - work_of(first.planned.trial.config)["finetune"]


def test_what_is_ready_to_train_together_is_as_many_as_are_then_given(open_ledger):
    """At every moment of the study, whatever has been trained."""
    trained = set()
    ledger = open_ledger(trained)
    while (first := ledger.next()) is not None:
        ready = ledger.num_ready(first.planned)
        pack = [first]
        while (following := ledger.next(like=first.planned)) is not None:
            pack.append(following)
        assert ready == len(pack) - 1
        for assignment in pack:
            trained.update(stage.key for stage in assignment.planned.stages.all())
            ledger.complete(assignment.number, 0.5)
    assert ledger.num_left == 0


def test_a_trials_time_begins_when_a_worker_is_given_it(open_ledger):
    ledger = open_ledger()
    first = ledger.next()
    ledger.put_back(first.number)
    again = ledger.next()
    handed_out = datetime.datetime.now()
    ledger.complete(again.number, 0.5)
    (ended,) = ledger.ended()
    stored = ledger._optuna.get_trials(deepcopy=False)[first.number]
    assert stored.datetime_start < ended.began <= handed_out <= ended.finished


# --- stages that others are at ------------------------------------------------------------------------------


def test_a_trial_whose_stage_another_study_is_at_is_held_back(tmp_path):
    path = tmp_path / "order.yaml"
    path.write_text(STUDY)
    store = FakeStore()
    ledger = GridLedger(load_study(path), Planner(), optuna_url(tmp_path), store=store)
    first, second = sorted({p.stages.pretrain.key for p in ledger.planned})[:2]
    store.busy = {p.stages.pretrain.key for p in ledger.planned} - {first}
    assert ledger.next().planned.stages.pretrain.key == first
    assert ledger.next() is None, "one trial is at that stage, and the others are busy elsewhere"
    store.busy = store.busy - {second}
    assert ledger.next().planned.stages.pretrain.key == second


def test_a_trial_that_was_put_back_waits_while_its_stage_is_busy(open_ledger):
    ledger = open_ledger()
    assignment = ledger.next()
    ledger.put_back(assignment.number)
    ledger.store.busy = {assignment.planned.stages.pretrain.key}
    assert ledger.next().number != assignment.number
    ledger.store.busy = ()
    assert ledger.next() == assignment
