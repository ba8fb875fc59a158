"""A study whose workers train several trials as one."""

import itertools
import os
import re
import signal
import subprocess

import pandas as pd
import pytest

from workbench.study.results import studies, trial_table

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
    assert len(re.findall("its worker died; another will go on", printed)) > 1
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
