"""The ledger hands out each trial once, longest first, and never two at one pre-training."""

import pytest

from workbench.study.definition import load_study
from workbench.study.ledger import Ledger, storage_url
from workbench.study.plan import Planner, work_of

STUDY = """
question: Which order?
preset: smoke
vary: {model.num_heads: [1, 2]}
regimes: {long: {finetuning.steps: 90}, short: {}}
seeds: [0, 1]
"""


@pytest.fixture
def open_ledger(tmp_path):
    path = tmp_path / "order.yaml"
    path.write_text(STUDY)

    def open_ledger(trained=(), **options):
        return Ledger(
            load_study(path),
            Planner(),
            storage_url(tmp_path),
            is_trained=lambda stage: stage.key in trained,
            **options,
        )

    return open_ledger


def test_each_trial_is_handed_out_once_and_no_pretraining_twice_at_a_time(open_ledger):
    trained = set()
    ledger = open_ledger(trained)
    running, seen = [], []
    while not ledger.exhausted:
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
    assert open_ledger().num_left == 7
    retried = open_ledger(retry_failed=True)
    assert retried.num_left == 8
    assert [(e.state, e.reason) for e in open_ledger().ended()] == [("failed", "no luck")]


def test_a_score_that_is_no_number_is_a_failure(open_ledger):
    ledger = open_ledger()
    ledger.complete(ledger.next().number, float("nan"))
    assert [e.state for e in ledger.ended()] == ["failed"]


def test_a_trial_that_left_the_study_is_closed(open_ledger, tmp_path):
    ledger = open_ledger()
    cut_off = ledger.next()
    assert cut_off.planned.trial.seed == 0
    path = tmp_path / "order.yaml"
    path.write_text(STUDY.replace("seeds: [0, 1]", "seeds: [1, 2]"))
    changed = open_ledger()
    assert changed.num_left == 8
    assert changed.ended() == []
    assert all(changed.next().number != cut_off.number for _ in range(4))
