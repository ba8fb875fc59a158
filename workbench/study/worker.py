"""What a worker's process does: trials, one or some together, each told of by small dictionaries."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from workbench import processes
from workbench.child_processes import die_with_parent
from workbench.config import TrialConfig
from workbench.data.clips import DataError
from workbench.hardware import one_memory_arena
from workbench.settings import ConfigError, from_dict
from workbench.stages import run_trial
from workbench.store import StageBusy, open_store
from workbench.study.interruption import is_flagged
from workbench.training.loop import Diverged, Stopped
from workbench.training.rendezvous import PackFailed, Rendezvous

REPORT_SECONDS = 1.0  # between reports of a trial's progress
EVENT = "event "  # before each, where it is a line of text
LEAVING_SECONDS = 5.0  # for a trial's other processes to end by themselves
ENDS = ("done", "failed", "broken", "busy", "stopped", "apart", "died")  # events that end a trial
BROKEN = 3  # the exit status of one of a trial's processes that found something else than the trial at fault

Report = Callable[[dict[str, Any]], None]  # of an event, with the trial's number


def work(config: dict[str, Any], settings: dict[str, Any], report: Report) -> None:
    """Run `config["trials"]`. Their own failures are results; only a worker that dies is tried again."""
    # Ray takes a dead raylet that nobody has reaped for alive: this worker would wait to report, and hold its
    # stage's lock, for ever.
    die_with_parent()
    one_memory_arena()
    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):  # on another machine it may not be there
        os.chdir(settings["folder"])  # a cluster's worker starts elsewhere; data.root may be relative
    trials = config["trials"]
    if settings["processes"] > 1:
        try:
            _run_in_processes(trials[0], settings, report)
        except OSError as error:  # they could not be started: not the trial's fault
            report({"event": "broken", "number": trials[0]["number"], "reason": str(error)})
        return
    if len(trials) == 1:
        _run(trials[0], settings, torch.device(settings["device"]), report)
        return
    meeting = Rendezvous()
    events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    device = torch.device(settings["device"])
    jobs = [functools.partial(_run, trial, settings, device, events.put, meeting) for trial in trials]

    def meet() -> None:
        meeting.run(jobs)
        events.put(None)

    threading.Thread(target=meet, daemon=True).start()
    for event in iter(events.get, None):  # only this thread may report
        report(event)


def _run_in_processes(trial: dict[str, Any], settings: dict[str, Any], report: Report) -> None:
    """One trial by `settings["processes"]` processes below this one; its events are lines of the first."""
    count = settings["processes"]
    command = [sys.executable, "-m", "workbench.study.worker"]
    command += [json.dumps({"trial": trial, "settings": settings})]
    with tempfile.TemporaryDirectory() as folder:
        family: list[subprocess.Popen[str]] = []
        for rank in range(count):
            own = processes.as_one_of(rank, count, Path(folder) / "meeting")
            try:
                family.append(_start(command, own, is_first=rank == 0))
            except OSError:
                for process in family:
                    process.kill()
                raise
        threading.Thread(target=_end_together, args=(family,), daemon=True).start()
        first = family[0]
        assert first.stdout is not None
        words = [_Tail(process.stderr) for process in family if process.stderr is not None]
        has_ended = False
        for line in first.stdout:
            if line.startswith(EVENT):
                event = json.loads(line.removeprefix(EVENT))
                has_ended |= event["event"] in ENDS
                report(event)
        for process in family:
            process.wait()
    if not has_ended:
        statuses = [process.returncode for process in family]
        guilty = _guilty(statuses)
        found = words[guilty].last()
        if statuses[guilty] == BROKEN:
            report({"event": "broken", "number": trial["number"], "reason": found})
        else:  # killed, or short of memory: as when a worker dies
            reason = f"process {guilty} of the trial ended with {statuses[guilty]}: {found}"
            report({"event": "died", "number": trial["number"], "reason": reason})


def _start(command: list[str], own: dict[str, str], *, is_first: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE if is_first else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | own,
    )


def _guilty(statuses: list[int]) -> int:
    """Whose end was not another's doing: the others are killed, and the first complains that one is gone."""
    own = [rank for rank, status in enumerate(statuses) if status == BROKEN]
    own += [rank for rank, status in enumerate(statuses) if status > 0 and rank > 0]
    return next(iter(own), 0)


def _end_together(family: list[subprocess.Popen[str]]) -> None:
    """When one of a trial's processes has died, or the first has ended: the others would wait for it."""
    while any(process.poll() is None for process in family):
        if family[0].poll() is not None or any(process.poll() for process in family):
            time.sleep(LEAVING_SECONDS)
            for process in family:
                process.kill()
        time.sleep(0.5)


class _Tail:
    """Reads a stream to its end, so that its writer does not wait, and keeps its last line."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=5)
        self._thread = threading.Thread(target=lambda: self._lines.extend(stream), daemon=True)
        self._thread.start()

    def last(self) -> str:
        self._thread.join()
        return next((line.strip() for line in reversed(self._lines) if line.strip()), "without a word")


def _run(
    trial: dict[str, Any],
    settings: dict[str, Any],
    device: torch.device,
    report: Report,
    meeting: Rendezvous | None = None,
) -> None:
    number, select = trial["number"], settings["select"]

    def tell(event: str, **content: Any) -> None:
        report({"event": event, "number": number, **content})

    try:
        result = run_trial(
            from_dict(TrialConfig, json.loads(trial["config"])),
            trial["data_fingerprint"],
            trial["pool_fingerprint"],
            store=open_store(settings["store"], lambda text: tell("note", text=text)),
            data_root=Path(settings["data"]),
            device=device,
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
    except PackFailed as error:
        tell("apart", reason=str(error))
    except Diverged as error:
        tell("failed", reason=str(error))
    except torch.OutOfMemoryError as error:
        tell("failed", reason=f"out of GPU memory: {error}")
    except MemoryError:
        tell("failed", reason="out of memory")
    except (OSError, DataError, ConfigError) as error:  # a full disk, no compiler: not the trial's fault
        tell("broken", reason=str(error))
    except Exception as error:
        if processes.count() > 1:  # another of them may have died: then it is not the trial's fault
            raise
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


def main(content: str) -> None:
    """One of the processes of a trial."""
    die_with_parent()
    sent = json.loads(content)
    settings = sent["settings"]
    torch.set_num_threads(settings["threads"])
    device = processes.join(settings["device"])
    failures: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        if processes.rank() == 0:
            print(EVENT + json.dumps(event), flush=True)
        elif event["event"] in ("failed", "broken"):
            failures.append(event)

    _run(sent["trial"], settings, device, report)
    if failures:  # perhaps this process's alone: the first would wait for it, and is to be ended
        print(failures[0]["reason"].replace("\n", " "), file=sys.stderr)
        sys.exit(BROKEN if failures[0]["event"] == "broken" else 1)
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1])
