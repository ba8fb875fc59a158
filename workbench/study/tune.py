"""Ray Tune schedules the trials that the ledger hands out. Ray is imported here, and in `cluster`.

A fresh Tuner at every launch, never a restored one: what has happened is in the ledger and the store. A
worker trains, and reports small dictionaries; only the driver writes to Optuna and MLflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.study.cluster import check_listening, cluster_address, environment

os.environ.update(environment())
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Raylet is terminated")  # with its whole log behind it
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # data.root may be relative to where the study starts
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # most reports are of progress
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import psutil
import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from workbench.config import TrialConfig
from workbench.data.clips import DataError
from workbench.data.corpus import die_with_parent
from workbench.places import Places
from workbench.settings import from_dict, to_dict
from workbench.stages import run_trial
from workbench.store import StageBusy, open_store
from workbench.store.stage import write_json
from workbench.study.calibration import Device
from workbench.study.interruption import Interruption, is_flagged
from workbench.study.ledger import Assignment, Ledger
from workbench.training.loop import Diverged, Stopped

WORKER_DEATHS = 3  # survived by a trial; each time it is handed out again, and goes on from its checkpoint
REPORT_SECONDS = 1.0  # between a worker's reports of progress
WATCH_SECONDS = 0.5  # between looks at whether Ray's servers live


class StudyStopped(RuntimeError):
    """Something other than a trial has failed; the same command goes on with what is left."""


class Watcher:
    """Told what happens while trials run; the driver's progress display is one."""

    def started(self, assignment: Assignment) -> None: ...

    def progress(self, number: int, stage: str, step: int, steps: int) -> None: ...

    def ended(self, number: int) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


Worker = Callable[..., None]  # what Tune calls in a worker's process: (config, settings)


def run_trials(
    ledger: Ledger,
    places: Places,
    watcher: Watcher,
    device: Device,
    interruption: Interruption,
    worker: Worker | None = None,
) -> None:
    """Run every trial that the ledger has left; returns when each has ended, or when interrupted.

    Ray must have been started. Raises StudyStopped.
    """
    folder = places.study(ledger.study.id) / "tune"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier launch; nothing in it is read
    sharing = math.ceil(device.concurrency / (device.num_gpus or 1))  # of a GPU; no trial uses more than one
    per_trial = {"cpu": device.threads, "gpu": 1 / sharing if device.num_gpus else 0}
    settings = {
        "store": places.store_location,
        "data": str(places.data.resolve()),
        "stop": interruption.flag,
        "threads": device.threads,
        "device": device.kind,
        "select": f"validation/{ledger.study.metric}",
        "folder": str(Path.cwd()),
    }
    handout = _Handout(ledger, watcher, interruption)
    trainable = tune.with_parameters(worker or _train, settings=settings)
    tuner = tune.Tuner(
        tune.with_resources(trainable, per_trial),
        tune_config=tune.TuneConfig(
            search_alg=handout,
            scheduler=_Scheduler(ledger),
            num_samples=-1,  # the ledger says when it is enough
            max_concurrent_trials=device.concurrency,
            reuse_actors=True,  # starting a worker costs more than a short trial
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="runs",
            storage_path=str(folder.resolve()),
            # Tune's own retries lose a trial whose reused actor dies with two calls under way.
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[_Tick(watcher)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (RayError, tune.TuneError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StudyStopped(f"Ray ended before the study did ({reason})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if handout.broken:
        raise StudyStopped(handout.broken)


@contextlib.contextmanager
def ray_started(
    device: Device, processes: Path | None = None, last_words: Callable[[str], int | None] = print
) -> Iterator[None]:
    """A Ray of the study's own, ended with it; or the one that RAY_ADDRESS names. Raises StudyStopped.

    `processes` is a file that keeps its processes: should all of this be killed, some of Ray's helpers go
    on for a minute, and the next start ends them. Ray ends its driver when one of its servers dies, without
    a word; before it does, `last_words` is called with what has happened, in another thread, and may return
    the exit status.
    """
    own = cluster_address() is None
    if processes is not None:
        _end_survivors(processes)
    done = threading.Event()
    if own:  # from before the start: a server may die while Ray starts
        threading.Thread(target=_watch_ray, args=(psutil.Process(), done, last_words), daemon=True).start()
    try:
        _start_ray(device.concurrency * device.threads)
        if own and processes is not None:
            _note_processes(processes)
        yield
    finally:
        done.set()
        ray.shutdown()


def _watch_ray(
    driver: psutil.Process, done: threading.Event, last_words: Callable[[str], int | None]
) -> None:
    """End the driver, with last words, when a server of its Ray has died: nothing can go on then."""
    servers: dict[psutil.Process, str] = {}
    while not done.wait(WATCH_SECONDS):
        for child in driver.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() in ("raylet", "gcs_server"):
                    servers[child] = child.name()
        dead = [name for server, name in servers.items() if not _is_alive(server)]
        if dead and not done.is_set():
            status = last_words(f"Ray's {dead[0]} has died")
            for child in driver.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(status or 1)


def _note_processes(path: Path) -> None:
    pids = [[child.pid, child.create_time()] for child in psutil.Process().children(recursive=True)]
    write_json(path, {"machine": platform.node(), "processes": pids})


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_survivors(processes: Path) -> None:
    """By process id, where that is still of the process that began then."""
    if not processes.exists():
        return
    content = json.loads(processes.read_text())
    if content["machine"] != platform.node():
        return
    for pid, began in content["processes"]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(process.create_time() - began) < 1.0:
                process.kill()


def _start_ray(num_cpus: int) -> None:
    try:
        _init_ray(num_cpus)
    except Exception as error:  # Ray raises bare ones here
        raise StudyStopped(f"Ray could not be started ({str(error).strip().splitlines()[0]})") from error


def _init_ray(num_cpus: int) -> None:
    for name in ("ray", "ray.tune", "ray.train"):  # the ledger says what failed, and why
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address()
    if address is not None:
        check_listening(address)  # it was there for the plan; were it gone, Ray would wait for it
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL)
        return
    ray.init(
        address="local",  # else it would follow the file of an earlier cluster, even a dead one
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=100 * 1024**2,  # nothing large travels; the default takes a third of memory
        _node_ip_address="127.0.0.1",
    )


# --- in the driver ------------------------------------------------------------------------------------------


class _Handout(Searcher):
    """What Tune calls a search algorithm: hands out the ledger's trials, and enters how they ended."""

    def __init__(self, ledger: Ledger, watcher: Watcher, interruption: Interruption) -> None:
        super().__init__(metric="value", mode="max")
        self._ledger = ledger
        self._watcher = watcher
        self._interruption = interruption
        self._numbers: dict[str, int] = {}  # Tune's id -> the ledger's number
        self._deaths: Counter[int] = Counter()  # of workers, by the ledger's number
        self.broken = ""  # why no further trial makes sense

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._ledger.num_left == 0 or self.broken or self._interruption.requested:
            return Searcher.FINISHED
        assignment = self._ledger.next()
        if assignment is None:
            return None
        self._numbers[trial_id] = assignment.number
        self._watcher.started(assignment)
        return {
            "number": assignment.number,
            # As text: Tune flattens a mapping and sends it back with every report.
            "trial": json.dumps(to_dict(assignment.planned.trial.config)),
            "data_fingerprint": assignment.planned.data_fingerprint,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if result.get("event") == "progress":
            number = self._numbers[trial_id]
            self._watcher.progress(number, result["stage"], result["step"], result["steps"])
        elif result.get("event") == "note":
            self._watcher.note(result["text"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        match result.get("event"):
            case "done":
                self._ledger.complete(number, result["value"])
            case "failed":
                self._ledger.fail(number, result["reason"])
            case "broken":
                self.broken = result["reason"]
                self._ledger.put_back(number)
            case "busy" | "stopped":
                self._ledger.put_back(number)
            case "validation" if not error:
                self._ledger.prune(number)
            case _:
                self._deaths[number] += 1
                if self._deaths[number] <= WORKER_DEATHS:
                    self._ledger.put_back(number)
                    self._watcher.note(f"trial {number}: its worker died; another will go on with it")
                else:
                    times = self._deaths[number]
                    self._ledger.fail(number, f"its worker died {times} times; memory may be short")
        self._watcher.ended(number)

    def __reduce__(self) -> Any:
        return (
            Searcher,
            (),
        )  # Tune pickles what it is given, to restore from; nothing here reads that

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study goes on by the same command, with a fresh Tuner")


class _Scheduler(FIFOScheduler):
    """First in, first out; stops the trials that the pruner gives up."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("event") == "validation" and self._ledger.should_prune(
            result["number"], result["step"], result["value"]
        ):
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def __reduce__(self) -> Any:
        return (FIFOScheduler, ())


class _Tick(tune.Callback):
    """Lets the watcher draw."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._watcher.tick()

    def __reduce__(self) -> Any:
        return (tune.Callback, ())


# --- in the worker ------------------------------------------------------------------------------------------


def _train(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """One trial. Its own failures are results; only a worker that dies is tried again."""
    # Ray takes a dead raylet that nobody has reaped for alive: this worker would wait to report, and hold its
    # stage's lock, for ever.
    die_with_parent()
    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):  # on another machine it may not be there
        os.chdir(settings["folder"])  # a cluster's worker starts elsewhere; data.root may be relative
    trial = from_dict(TrialConfig, json.loads(config["trial"]))
    select = settings["select"]

    def note(text: str) -> None:
        tune.report({"event": "note", "text": text})

    try:
        result = run_trial(
            trial,
            config["data_fingerprint"],
            store=open_store(settings["store"], note),
            data_root=Path(settings["data"]),
            device=torch.device(settings["device"]),
            tracker=_Reporter(config["number"], select),
            report=lambda line: None,
            should_stop=is_flagged(settings["stop"]),
            wait=False,
        )
        tune.report({"event": "done", "value": result.metrics[select]})
    except Stopped:
        tune.report({"event": "stopped"})
    except StageBusy:  # by a trial of another study; a worker is not to be held while it runs
        tune.report({"event": "busy"})
    except Diverged as error:
        tune.report({"event": "failed", "reason": str(error)})
    except torch.OutOfMemoryError as error:
        tune.report({"event": "failed", "reason": f"out of GPU memory: {error}"})
    except MemoryError:
        tune.report({"event": "failed", "reason": "out of memory"})
    except (OSError, DataError) as error:  # a full disk, data that are gone: not the trial's fault
        tune.report({"event": "broken", "reason": str(error)})
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logging.getLogger(__name__).exception("trial %d", config["number"])
        tune.report({"event": "failed", "reason": reason})


class _Reporter:
    """The training loop's tracker in a worker."""

    def __init__(self, number: int, select: str) -> None:
        self._number = number
        self._select = select
        self._last = 0.0

    def progress(self, stage: str, step: int, steps: int) -> None:
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS:
            self._last = now
            tune.report({"event": "progress", "stage": stage, "step": step, "steps": steps})

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        if self._select in metrics:
            tune.report(
                {
                    "event": "validation",
                    "number": self._number,
                    "step": step,
                    "value": metrics[self._select],
                }
            )
