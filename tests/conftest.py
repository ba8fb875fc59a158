"""Shared by the tests: tiny trials, and a corpus made once."""

import dataclasses
import shutil
import subprocess
import sys

import pytest
import torch
from mlflow import MlflowClient

from workbench.config import TrialConfig
from workbench.data import load_splits
from workbench.settings import from_dict
from workbench.store import Store
from workbench.store.remote import RemoteStore
from workbench.study.plan import Planner
from workbench.study.study_file import load_study, read_preset

from .small_datasets import write_esc50
from .small_plan import STUDY

SMOKE = "studies/smoke.yaml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of the finished study share one of pytest's workers: it is run once."""
    for item in items:
        if "finished" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("finished"))


@pytest.fixture(autouse=True)
def _one_thread():
    """As a worker has it: results then do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Where the session's corpora lie."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def calibration(tmp_path_factory):
    """Where the session's step times lie."""
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="session")
def tiny_trial():
    """The smoke preset's trial."""
    return from_dict(TrialConfig, read_preset("smoke")[0])


@pytest.fixture(scope="session")
def tiny_splits(tiny_trial, data_root):
    return load_splits(tiny_trial.data, data_root, tiny_trial.seed, lambda line: None)


@pytest.fixture(scope="session")
def with_changes():
    """`with_changes(trial, {"finetuning.steps": 3})`: the trial with settings replaced by dotted path."""

    def change(settings, changes):
        for path, value in changes.items():
            settings = _replace(settings, path.split("."), value)
        return settings

    return change


def _replace(settings, path, value):
    head, *rest = path
    inner = _replace(getattr(settings, head), rest, value) if rest else value
    return dataclasses.replace(settings, **{head: inner})


# --- a small copy of ESC-50 ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("esc50") / "ESC-50"
    return root, write_esc50(root)


@pytest.fixture
def esc50(pristine, tmp_path):
    """A copy to spoil, and its rows."""
    root = tmp_path / "ESC-50"
    shutil.copytree(pristine[0], root)
    return root, [dict(row) for row in pristine[1]]


# --- whole studies, by the command line ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def project(request):
    return request.config.rootpath


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow's, with its tables and nothing in them: making one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path, data_root, calibration, empty_database):
    """A results folder of its own, on the session's corpora, step times and tables."""
    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copy(empty_database, root)
    (root / "data").symlink_to(data_root)
    (root / "calibration").symlink_to(calibration)
    return root


@pytest.fixture
def command(project):
    def command(root, study=SMOKE, *arguments):
        return [
            sys.executable,
            "-m",
            "workbench.study",
            str(study),
            "--root",
            str(root),
            *arguments,
        ]

    return command


@pytest.fixture
def run(project, command):
    def run(root, study=SMOKE, *arguments):
        return subprocess.run(
            command(root, study, *arguments),
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def finished(project, tmp_path_factory, data_root, calibration):
    """The smoke study, run once without disturbance: its folder and what it printed."""
    root = tmp_path_factory.mktemp("finished")
    (root / "data").symlink_to(data_root)
    (root / "calibration").symlink_to(calibration)
    done = subprocess.run(
        [sys.executable, "-m", "workbench.study", SMOKE, "--root", str(root)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


@pytest.fixture(params=["folder", "URL"])
def store(request, tmp_path):
    """Both kinds keep one contract; `local://` is a file system that is used by its URL alone."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    return RemoteStore(f"local://{tmp_path}/store", cache=tmp_path / "cache")


@pytest.fixture
def study(tmp_path):
    """Of `small_plan`."""
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def planned(study):
    """Its trials, with their stages."""
    return Planner().plan_study(study)
