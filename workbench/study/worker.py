"""What a worker's process does: trials, one or some together, each told of by small dictionaries."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.config import TrialConfig
from workbench.data.clips import DataError
from workbench.data.corpus import die_with_parent
from workbench.settings import from_dict
from workbench.stages import run_trial
from workbench.store import StageBusy, open_store
from workbench.study.interruption import is_flagged
from workbench.training.loop import Diverged, Stopped
from workbench.training.rendezvous import Rendezvous

REPORT_SECONDS = 1.0  # between reports of a trial's progress
ENDS = ("done", "failed", "broken", "busy", "stopped")  # events that end a trial

Report = Callable[[dict[str, Any]], None]  # of an event, with the trial's number


def work(config: dict[str, Any], settings: dict[str, Any], report: Report) -> None:
    """Run `config["trials"]`. Their own failures are results; only a worker that dies is tried again."""
    # Ray takes a dead raylet that nobody has reaped for alive: this worker would wait to report, and hold its
    # stage's lock, for ever.
    die_with_parent()
    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):  # on another machine it may not be there
        os.chdir(settings["folder"])  # a cluster's worker starts elsewhere; data.root may be relative
    trials = config["trials"]
    if len(trials) == 1:
        _run(trials[0], settings, report)
        return
    meeting = Rendezvous()
    events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    jobs = [functools.partial(_run, trial, settings, events.put, meeting) for trial in trials]

    def meet() -> None:
        meeting.run(jobs)
        events.put(None)

    threading.Thread(target=meet, daemon=True).start()
    for event in iter(events.get, None):  # only this thread may report
        report(event)


def _run(
    trial: dict[str, Any], settings: dict[str, Any], report: Report, meeting: Rendezvous | None = None
) -> None:
    number, select = trial["number"], settings["select"]

    def tell(event: str, **content: Any) -> None:
        report({"event": event, "number": number, **content})

    try:
        result = run_trial(
            from_dict(TrialConfig, json.loads(trial["config"])),
            trial["data_fingerprint"],
            store=open_store(settings["store"], lambda text: tell("note", text=text)),
            data_root=Path(settings["data"]),
            device=torch.device(settings["device"]),
            tracker=_Reporter(tell, select),
            report=lambda line: None,
            should_stop=is_flagged(settings["stop"]),
            wait=False,
            meeting=meeting,
        )
        tell("done", value=result.metrics[select])
    except Stopped:
        tell("stopped")
    except StageBusy:  # by a trial of another study; a worker is not to be held while it runs
        tell("busy")
    except Diverged as error:
        tell("failed", reason=str(error))
    except torch.OutOfMemoryError as error:
        tell("failed", reason=f"out of GPU memory: {error}")
    except MemoryError:
        tell("failed", reason="out of memory")
    except (OSError, DataError) as error:  # a full disk, data that are gone: not the trial's fault
        tell("broken", reason=str(error))
    except Exception as error:
        logging.getLogger(__name__).exception("trial %d", number)
        tell("failed", reason=f"{type(error).__name__}: {error}")


class _Reporter:
    """The training loop's tracker."""

    def __init__(self, tell: Callable[..., None], select: str) -> None:
        self._tell = tell
        self._select = select
        self._last = 0.0

    def progress(self, stage: str, step: int, steps: int) -> None:
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS:
            self._last = now
            self._tell("progress", stage=stage, step=step, steps=steps)

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        if self._select in metrics:
            self._tell("validation", step=step, value=metrics[self._select])
