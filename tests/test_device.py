"""What a study's resources come to on a machine."""

import pytest
import torch

from workbench.settings import ConfigError
from workbench.study.definition import Resources
from workbench.study.device import Device, _bytes_in_use, _control_groups


def test_update_times_are_measured_with_as_many_as_share_a_gpu():
    def at_once(**places):
        return Device(threads=1, **places).at_once_here

    assert at_once(kind="cuda", concurrency=8, num_gpus=8) == 1
    assert at_once(kind="cuda", concurrency=16, num_gpus=8, num_machines=2) == 2
    assert at_once(kind="cpu", concurrency=8, num_gpus=0) == 8


def test_trials_at_once_leave_each_its_threads(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    at_once = {
        (threads, processes): Device.of(
            Resources(device="cpu", threads=threads, processes=processes)
        ).concurrency
        for threads, processes in ((1, 1), (8, 1), (2, 4), (32, 1))
    }
    assert at_once == {(1, 1): 16, (8, 1): 2, (2, 4): 2, (32, 1): 1}


def test_resources_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="no GPU"):
        Device.of(Resources(device="cuda"))


def test_a_trial_has_no_more_processes_than_there_are_gpus(monkeypatch):
    """Ray would wait for the others for ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Device.of(Resources(processes=2)).concurrency == 1
    with pytest.raises(
        ConfigError, match=r"resources\.processes: is 3, .*, of which torch finds 2 here; use at most 2"
    ):
        Device.of(Resources(processes=3))
    assert Device.of(Resources(processes=3, device="cpu")).kind == "cpu"


def test_a_machine_measures_with_its_share_of_the_trials():
    spread = Device("cpu", threads=1, concurrency=5, num_gpus=0, num_machines=2)
    assert spread.at_once_here == 3
    assert spread.key == Device("cpu", threads=1, concurrency=3, num_gpus=0).key


def test_every_control_group_above_a_process_limits_it(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("4:memory:/old\n0::/slurm/job_7/step_0\n")
    job = root / "slurm" / "job_7"
    assert _control_groups(own, root) == [job / "step_0", job, root / "slurm", root]
    own.write_text("0::/\n")
    assert _control_groups(own, root) == [root]
    assert _control_groups(tmp_path / "none", root) == [root]


def test_copies_of_files_are_no_memory_in_use(tmp_path):
    """They are given up when memory is asked for: after an installation they may be most of it."""
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 6000\ninactive_file 5500\nactive_file 500\n")
    assert _bytes_in_use(tmp_path) == 1_500
