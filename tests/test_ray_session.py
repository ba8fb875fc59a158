"""What an earlier launch left of its Ray is ended, and nothing else."""

import subprocess
import sys

import psutil
import pytest

from workbench.study import ray_session

LEAVE_A_PROCESS = """
import subprocess
print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
"""


@pytest.fixture
def left():
    """A process whose parent has ended."""
    done = subprocess.run([sys.executable, "-c", LEAVE_A_PROCESS], capture_output=True, text=True, check=True)
    process = psutil.Process(int(done.stdout))
    yield process
    if process.is_running():
        process.kill()


@pytest.fixture
def own():
    process = subprocess.Popen(["sleep", "60"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def _note(path, process, *, began=0.0, machine=None):
    content = {
        "machine": machine or ray_session.platform.node(),
        "processes": [[process.pid, process.create_time() + began]],
    }
    ray_session.write_json(path, content)


def test_what_an_earlier_launch_left_is_ended(left, tmp_path):
    _note(tmp_path / "processes.json", left)
    ray_session._end_survivors(tmp_path / "processes.json")
    assert psutil.wait_procs([left], timeout=30)[1] == []


@pytest.mark.parametrize("change", [{"began": -100.0}, {"machine": "another"}])
def test_a_process_that_has_its_number_by_now_is_left_alone(left, tmp_path, change):
    _note(tmp_path / "processes.json", left, **change)
    ray_session._end_survivors(tmp_path / "processes.json")
    assert psutil.wait_procs([left], timeout=0.5)[1] == [left]


def test_a_process_of_this_one_is_left_alone(own, tmp_path):
    """It may run two studies, one after the other, with helpers that serve both."""
    ray_session._note_processes(tmp_path / "processes.json")
    assert str(own.pid) in (tmp_path / "processes.json").read_text()
    ray_session._end_survivors(tmp_path / "processes.json")
    assert psutil.wait_procs([own], timeout=0.5)[1] == [own]
