"""What is said of the time left, before and while anything is known of the trials' pace."""

import io
import types

import pytest
from rich.console import Console

from workbench.study import progress
from workbench.study.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def _progress(work_left, rate):
    ledger = types.SimpleNamespace(ended=lambda: [], work_left=lambda: work_left, num_trials=4)
    silent = Console(file=io.StringIO())
    return Progress(ledger, silent, lambda assignment: None, lambda number: None, None, rate)


def test_the_plan_says_how_long_it_takes_until_trials_do(clock):
    shown = _progress(work_left=1200.0, rate=2.0)
    assert "about 10 min left" in shown._status()
    clock.seconds += 600
    shown._work_done = 600.0  # half as fast as planned
    assert "about 18 min left" in shown._status()  # 1,200 at (120 + 600) / 660 a second


def test_without_a_plan_it_is_measured(clock):
    shown = _progress(work_left=100.0, rate=None)
    assert "measuring" in shown._status()
    clock.seconds += 10
    shown._work_done = 20.0
    assert "about 50 s left" in shown._status()
