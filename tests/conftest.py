"""Shared by the tests: tiny trials, and a corpus made once."""

import dataclasses
from pathlib import Path

import pytest
import torch

from workbench.config import TrialConfig
from workbench.data import load_splits
from workbench.settings import from_dict
from workbench.study.definition import read_preset

PROJECT = Path(__file__).parent.parent


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
