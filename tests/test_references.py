"""What a study tells the store that it needs: gc never deletes what the study has, or works with."""

import contextlib
import io
import types

import pytest
from rich.console import Console

from workbench.places import Places
from workbench.store.__main__ import main as store_command
from workbench.study import books, run
from workbench.study.study_file import load_study

from .stores import change_facts

SEARCH = """
question: Which?
preset: smoke
regimes: [full]
search:
  num_trials: 4
  sampler: random
  space: {pretraining.optimiser.peak_lr: {kind: uniform, low: 1e-5, high: 1e-2, log: true}}
"""


class NoTracking:
    def __init__(self, study, places):
        pass

    def has(self, number):
        return True

    def record(self, ended, planned, result):
        pass


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """`launch(trials)`: a start of the search, where `trials(ledger, watcher)` is in place of Ray Tune.

    It returns what the calibration is then told: the seconds of stages.
    """
    path = tmp_path / "mine.yaml"
    path.write_text(SEARCH)
    places = Places.read(tmp_path)
    cost = types.SimpleNamespace(wall_seconds=0.0, computing_seconds=0.0)
    told = []
    model = types.SimpleNamespace(device=None, learn=lambda trials, seconds: told.append((trials, seconds)))
    plan = types.SimpleNamespace(planned=[], cost=cost, model=model)
    monkeypatch.setattr(books, "Tracking", NoTracking)
    monkeypatch.setattr(run, "ray_started", lambda *arguments: contextlib.nullcontext())
    monkeypatch.setattr(run, "_prepare_data", lambda *arguments: None)

    def launch(trials):
        def run_trials(ledger, places, watcher, *arguments, **options):
            trials(ledger, watcher)

        monkeypatch.setattr(run, "run_trials", run_trials)
        opened = books.Books(load_study(path), places, places.store())
        run._run_trials(opened, places, plan, "to go on", Console(file=io.StringIO()))
        return told[-1]

    return launch


@pytest.fixture
def gc(tmp_path):
    """Run the command."""

    def gc():
        assert store_command(["gc", "--root", str(tmp_path)]) == 0

    return gc


def _begin(ledger, watcher):
    assignment = ledger.next()
    watcher.started(assignment)
    return assignment


def _compute(ledger, stages):
    for stage in stages:
        ledger.store.obtain(stage, lambda folder: {"metrics": {}})


def _end(ledger, watcher, assignment):
    _compute(ledger, assignment.planned.stages.all())
    ledger.complete(assignment.number, 0.5)
    watcher.ended(assignment.number)


def _stages(ledger, assignments):
    return {stage.key: ledger.store.has(stage) for a in assignments for stage in a.planned.stages.all()}


def test_the_stages_of_a_running_trial_of_a_search_are_kept(launch, gc):
    def trials(ledger, watcher):
        first = _begin(ledger, watcher)
        _compute(ledger, [first.planned.stages.pretrain])
        gc()
        assert ledger.store.has(first.planned.stages.pretrain)

    launch(trials)


def test_the_calibration_is_told_what_this_launch_has_computed(launch):
    """Of a search, whose plan knows of none of its trials; and not again what was there."""
    computed = []

    def one(ledger, watcher):
        computed.append(_begin(ledger, watcher))
        _end(ledger, watcher, computed[-1])

    for _ in range(2):
        trials, seconds = launch(one)
        assert seconds.keys() == set(computed[-1].planned.stages.all())
        assert {planned.key for planned in trials} == {assignment.planned.key for assignment in computed}


def test_the_calibration_is_told_nothing_of_a_damaged_stage(launch):
    def one(ledger, watcher):
        assignment = _begin(ledger, watcher)
        _end(ledger, watcher, assignment)
        stages.extend(assignment.planned.stages.all())
        change_facts(ledger.store.path(stages[0]), lambda facts: facts.update(seconds="long"))

    stages = []
    _, seconds = launch(one)
    assert seconds.keys() == set(stages[1:])


def test_a_search_that_goes_on_keeps_what_it_had(launch, gc):
    before = []

    def some(ledger, watcher):
        before.extend(_begin(ledger, watcher) for _ in range(3))
        for assignment in before[:2]:
            _end(ledger, watcher, assignment)
        _compute(ledger, before[2].planned.stages.all()[:2])  # and is cut off

    def more(ledger, watcher):
        expected = [True] * 8 + [False]  # the evaluation of what was cut off
        gc()
        assert list(_stages(ledger, before).values()) == expected
        taken_up, new = _begin(ledger, watcher), _begin(ledger, watcher)
        assert taken_up.planned.key == before[2].planned.key
        _end(ledger, watcher, new)
        gc()
        assert list(_stages(ledger, before).values()) == expected
        assert all(_stages(ledger, [new]).values())

    launch(some)
    gc()
    launch(more)
