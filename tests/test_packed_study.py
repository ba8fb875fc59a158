"""A study whose workers train several trials as one."""

import re
import subprocess

import pandas as pd
import pytest

from workbench.study.results import studies, trial_table

from .books import assert_each_ended_once, wait_for, workers_of

SMOKE = "studies/smoke.yaml"
PACKED = ("--set", "resources.pack=4", "--set", "resources.concurrency=1")


def _scores(root):
    (record,) = studies(root)
    table = trial_table(record, root)
    names = ["regime", *record.axes, "seed"]
    return table.set_index(names)[["test/mAP", "validation/mAP", "key"]].sort_index()


def test_trials_of_a_pack_end_as_trials_apart(finished, root, run):
    done = run(root, SMOKE, *PACKED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_each_ended_once(root, 8)
    ours, apart = _scores(root), _scores(finished[0])
    assert ours["key"].tolist() == apart["key"].tolist()
    for name in ("test/mAP", "validation/mAP"):
        pd.testing.assert_series_equal(ours[name], apart[name], atol=0.02)
    together = re.findall(r"(\d) running", done.stdout)
    assert max(map(int, together), default=4) <= 4


@pytest.mark.slow
def test_a_pack_whose_worker_dies_goes_on_one_by_one(root, command, project):
    packed = command(root, SMOKE, *PACKED, "--set", "pretraining.steps=200")
    with subprocess.Popen(packed, cwd=project, stdout=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: list((root / "store" / "pretrain").glob("*.work")))
        (worker,) = wait_for(lambda: workers_of(driver.pid))
        worker.kill()
        printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, printed
    assert len(re.findall("its worker died; another will go on", printed)) > 1
    assert_each_ended_once(root, 8)
