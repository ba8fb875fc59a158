"""How a trial ends, as its worker tells it: what is its own fault, and what is another's."""

import pytest
import torch

from workbench.data.clips import DataError
from workbench.settings import ConfigError
from workbench.store import StageBusy
from workbench.study import worker
from workbench.study.ledger import Assignment
from workbench.study.tune import _to_send
from workbench.training.loop import Diverged, Stopped
from workbench.training.rendezvous import PackFailed


@pytest.mark.parametrize(
    ("error", "event", "words"),
    [
        (Diverged("finetune", 7, {}), "failed", "no longer finite by update 7"),
        (torch.OutOfMemoryError("no room"), "failed", "out of GPU memory: no room"),
        (MemoryError(), "failed", "out of memory"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (OSError(28, "No space left on device"), "broken", "No space left on device"),
        (DataError("data/mine: not there"), "broken", "data/mine: not there"),
        (ConfigError("compile", "needs a compiler"), "broken", "compile: needs a compiler"),
        (StageBusy("another process is at it"), "busy", None),
        (Stopped("pretrain", 3), "stopped", None),
        (PackFailed("a kernel is missing"), "apart", "a kernel is missing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ends_a_trial_is_told_by_its_cause(planned, tmp_path, monkeypatch, error, event, words):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(worker, "run_trial", fails)
    settings = {"store": str(tmp_path / "store"), "data": str(tmp_path), "select": "validation/mAP"}
    settings["stop"] = str(tmp_path / "stop")
    told = []
    worker._run(_to_send(Assignment(4, planned[0])), settings, torch.device("cpu"), told.append)
    (end,) = told
    assert (end["event"], end["number"]) == (event, 4)
    assert words is None or words in end["reason"]
