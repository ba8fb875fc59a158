"""A study whose workers train several trials as one."""

import functools
import itertools
import os
import re
import signal
import subprocess
import types

import pandas as pd
import pytest
import torch

from workbench.places import Places
from workbench.study.device import Device
from workbench.study.grid_ledger import GridLedger
from workbench.study.plan import Planner
from workbench.study.record import studies
from workbench.study.results import trial_table
from workbench.study.study_file import load_study
from workbench.study.tune import Watcher, _gpus_each, _Handout
from workbench.study.worker import ENDS, _run
from workbench.training import rendezvous
from workbench.training.rendezvous import Rendezvous

from .books import (
    assert_all_gone,
    assert_each_ended_once,
    family_of,
    is_loopback,
    listening,
    optuna_trials,
    wait_for,
    workers_of,
)

SMOKE = "studies/smoke.yaml"
PACKED = ("--set", "resources.pack=4", "--set", "resources.concurrency=1")


class Notes(Watcher):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_pack_that_fails_is_told_of_and_its_study_goes_on_one_by_one(root, project, tmp_path, monkeypatch):
    places = Places.read(root)
    study, watcher = load_study(project / SMOKE), Notes()
    ledger = GridLedger(study, Planner(), f"sqlite:///{tmp_path / 'optuna.db'}", store=places.store())
    calm = types.SimpleNamespace(requested=False)
    handout = _Handout(ledger, watcher, calm, lambda planned: 2, num_workers=1)
    trials = handout.suggest("pack")["trials"]
    assert len(trials) == 2

    def fails(courses):
        raise RuntimeError("a kernel that takes no stacked weights")

    monkeypatch.setattr(rendezvous, "train_together", fails)
    settings = {"store": places.store_location, "data": str(places.data), "select": "validation/mAP"}
    settings["stop"] = str(tmp_path / "stop")
    meeting, events = Rendezvous(), []
    meeting.run(
        [
            functools.partial(_run, trial, settings, torch.device("cpu"), events.append, meeting)
            for trial in trials
        ]
    )
    ends = [event for event in events if event["event"] in ENDS]
    assert [end["event"] for end in ends] == ["apart"] * 2
    for end in ends:
        handout.on_trial_result("pack", end)
    handout.on_trial_complete("pack", ends[-1])
    reason = "RuntimeError: a kernel that takes no stacked weights"
    assert watcher.notes == [f"a pack of trials failed ({reason}); from here on trials train one by one"]
    again = [handout.suggest(name)["trials"] for name in ("one", "other")]
    assert sorted([trial["number"] for trial in group] for group in again) == [[t["number"]] for t in trials]


def test_as_many_trials_share_a_gpu_as_were_asked_for():
    for sharing in range(1, 33):
        each = _gpus_each(Device("cuda", 1, concurrency=2 * sharing, num_gpus=2))
        assert sharing * round(each * 10_000) <= 10_000, sharing  # as Ray adds them up
        assert (sharing + 1) * round(each * 10_000) > 10_000, sharing
    assert _gpus_each(Device("cuda", 1, concurrency=1, num_gpus=4, processes=4)) == 4
    assert _gpus_each(Device("cpu", 1, concurrency=2, num_gpus=0)) == 0


def _scores(root):
    (record,) = studies(root)
    table = trial_table(record, root)
    names = ["regime", *record.axes, "seed"]
    return table.set_index(names)[["test/mAP", "validation/mAP", "key"]].sort_index()


@pytest.mark.slow  # test_rendezvous has the same without Ray
def test_trials_of_a_pack_end_as_trials_apart(finished, root, run):
    done = run(root, SMOKE, *PACKED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_each_ended_once(root, 8)
    ours, apart = _scores(root), _scores(finished[0])
    assert ours["key"].tolist() == apart["key"].tolist()
    for name in ("test/mAP", "validation/mAP"):
        pd.testing.assert_series_equal(ours[name], apart[name], atol=0.02)
    trials = sorted((t.datetime_start, t.datetime_complete) for t in optuna_trials(root))
    assert any(began < ended for (_, ended), (began, _) in itertools.pairwise(trials)), "one worker, packs"


@pytest.mark.slow
def test_a_pack_whose_worker_dies_goes_on_one_by_one(root, command, project):
    packed = command(root, SMOKE, *PACKED, "--set", "pretraining.steps=200")
    with subprocess.Popen(packed, cwd=project, stdout=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: list((root / "store" / "pretrain").glob("*.work")))
        (worker,) = wait_for(lambda: workers_of(driver.pid))
        os.kill(worker, signal.SIGKILL)
        printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, printed
    assert len(re.findall(r"its worker died.*; another will go on", printed)) > 1
    assert_each_ended_once(root, 8)


@pytest.mark.slow
def test_processes_that_share_a_trial_end_it_and_end_with_their_worker(root, command, project, run):
    shared = ("--set", "resources.processes=2", "--set", "seeds=[0]", "--set", "regimes=[full]")
    with subprocess.Popen(command(root, SMOKE, *shared), cwd=project, stdout=subprocess.PIPE) as driver:
        wait_for(lambda: list((root / "store" / "pretrain").glob("*.work")))
        family = family_of(driver.pid)
        ranks = [process for process in family if "workbench.study.worker" in process.cmdline()]
        assert len(ranks) == 2
        assert all(is_loopback(address.ip) for address in listening(driver.pid))
        driver.kill()
    assert_all_gone(ranks)
    done = run(root, SMOKE, *shared)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_each_ended_once(root, 2)
