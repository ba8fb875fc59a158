"""A study survives: after whatever ended it, the same command ends with the results of an undisturbed run."""

import os
import shutil
import signal
import subprocess

import pandas as pd
import psutil
import pytest

from .books import (
    assert_all_gone,
    assert_each_ended_once,
    family_of,
    figures,
    mlflow_runs,
    optuna_trials,
    wait_for,
    workers_of,
)

LONGER = ("--set", "pretraining.steps=200")  # so that there is something to interrupt


def _assert_as_undisturbed(root, finished):
    assert_each_ended_once(root, 8)
    pd.testing.assert_frame_equal(figures(finished[0]), figures(root), check_exact=True)


@pytest.fixture
def start(command, project):
    """`start(root)`: a driver in a session of its own, as below a terminal."""

    def start(root, *arguments):
        return subprocess.Popen(
            command(root, "studies/smoke.yaml", *arguments),
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def _read_until(driver, *beginnings, count=1):
    """Past the line that is the `count`th with one of these beginnings."""
    for line in driver.stdout:
        count -= line.startswith(beginnings)
        if count == 0:
            return
    raise AssertionError(f"no more lines; {driver.stderr.read()}")


# --- kill -9 ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_driver_goes_on_and_loses_nothing(finished, root, start, run, after):
    """After so many finished trials."""
    with start(root) as driver:
        if after:
            _read_until(driver, "complete", count=after)
        else:
            _read_until(driver, "8 of 8 trials to run")
            wait_for(lambda: any(t.state.name == "RUNNING" for t in optuna_trials(root)))
        family = family_of(driver.pid)
        driver.send_signal(signal.SIGKILL)
    done_before = {t.number for t in optuna_trials(root) if t.state.name == "COMPLETE"}
    again = run(root)
    assert again.returncode == 0, again.stdout + again.stderr
    rerun = {int(line.split()[1]) for line in again.stdout.splitlines() if line.startswith("complete")}
    assert not rerun & done_before
    _assert_as_undisturbed(root, finished)
    assert_all_gone(family)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(finished, root, start):
    with start(root) as driver:
        _read_until(driver, "complete")
        worker = wait_for(lambda: workers_of(driver.pid))[0]
        os.kill(worker, signal.SIGKILL)
        printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0
    assert "its worker died; another will go on with it" in printed
    _assert_as_undisturbed(root, finished)


@pytest.mark.slow  # .ci/run runs it
def test_everything_killed_at_once(finished, root, start, run):
    with start(root) as driver:
        _read_until(driver, "complete")
        family = [psutil.Process(driver.pid), *family_of(driver.pid)]
        for process in family:
            process.kill()
    assert run(root).returncode == 0
    _assert_as_undisturbed(root, finished)
    assert_all_gone(family)


@pytest.mark.slow
def test_rays_own_end_is_told_and_the_study_goes_on(finished, root, start, run):
    with start(root) as driver:
        _read_until(driver, "complete")
        raylets = [p for p in family_of(driver.pid) if p.name() == "raylet"]
        assert raylets
        for process in raylets:
            process.kill()
        _, printed = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "to go on" in printed
    assert "Traceback" not in printed
    assert run(root).returncode == 0
    _assert_as_undisturbed(root, finished)


# --- Ctrl-C -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGINT], id="once", marks=pytest.mark.slow),
        pytest.param([signal.SIGINT] * 2, id="twice", marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM], id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_once_stops_cleanly_and_twice_now(root, start, run, signals):
    with start(root, *LONGER) as driver:
        _read_until(driver, "8 of 8 trials to run")
        wait_for(lambda: list((root / "store").glob("pretrain/*.work")))
        family = family_of(driver.pid)
        for number in signals:
            if number is signal.SIGINT:
                os.killpg(driver.pid, number)  # as a terminal does
            else:
                driver.send_signal(number)  # as `kill` does
            if number is not signals[-1]:
                _read_until(driver, "stopping")
        said, printed = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "to go on:\n" in printed
    assert "Traceback" not in said + printed
    assert_all_gone(family)
    assert [p.info.status for p in mlflow_runs(root)[0]] == ["KILLED"]
    if len(signals) == 1:
        assert "stopping: running trials save where they are" in said
        assert list((root / "store").glob("pretrain/*.work/checkpoint.safetensors"))
    again = run(root, "studies/smoke.yaml", *LONGER)
    assert again.returncode == 0, again.stderr
    assert_each_ended_once(root, 8)


@pytest.mark.slow
def test_a_signal_to_every_process_is_an_interruption_too(root, start):
    """As `timeout`, or a service manager, sends it: Ray's own processes end with the driver."""
    with start(root, *LONGER) as driver:
        _read_until(driver, "8 of 8 trials to run")
        wait_for(lambda: list((root / "store").glob("pretrain/*.work")))
        family = family_of(driver.pid)
        os.killpg(driver.pid, signal.SIGTERM)
        said, printed = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Interrupted. What is finished is kept; to go on:\n" in printed
    assert "Traceback" not in said + printed
    assert_all_gone(family)


# --- disks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_mounts():
    """The beginning of a command that may mount file systems, seen by it alone."""
    for prefix in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if shutil.which("unshare"):
            tried = subprocess.run(
                [*prefix, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
            )
            if tried.returncode == 0:
                return prefix
    pytest.skip("needs unshare and the right to mount in a namespace of its own")


# The study, on a small disk of its own; what happens to the disk; the same command once more.
SCRIPT = """
mount -t tmpfs -o size=100m none {root} && cp -r {data} {root}/data && cp -r {calibration} {root}/calibration
{command} > {root}.first 2>&1 &
driver=$!
until ls {root}/store/pretrain || ! kill -0 $driver; do sleep 0.1; done
{fault}
wait $driver
echo $? > {root}.status
{mend}
{command} > {root}.second 2>&1
echo $? >> {root}.status
cp -r {root} {root}.result
"""
FAULTS = {
    "full": ("head -c 1G /dev/zero > {root}/ballast", "rm {root}/ballast", "No space left"),
    "read-only": (
        "mount --bind {root}/store {root}/store && mount -o remount,ro,bind {root}/store",
        "umount -l {root}/store",
        "Read-only file system",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fills_up_or_turns_read_only(
    finished, tmp_path, command, project, own_mounts, data_root, calibration, fault
):
    root = tmp_path / "disk"
    root.mkdir()
    happens, mend, words = FAULTS[fault]
    places = {"root": root, "data": data_root, "calibration": calibration}
    script = SCRIPT.format(
        command=" ".join(command(root)), fault=happens.format(**places), mend=mend.format(**places), **places
    )
    subprocess.run(
        [*own_mounts, "bash", "-c", script], cwd=project, capture_output=True, check=True, timeout=250
    )
    first, second = (root.with_suffix(ending).read_text() for ending in (".first", ".second"))
    assert root.with_suffix(".status").read_text().split() == ["1", "0"], first + second
    assert words in first
    assert "to go on:\n" in first
    assert "Traceback" not in first
    result = root.with_suffix(".result")
    assert figures(result).drop(columns="data").equals(figures(finished[0]).drop(columns="data"))
    assert_each_ended_once(result, 8)
