"""Ray Tune schedules the trials that the ledger hands out.

A fresh Tuner at every launch, never a restored one: what has happened is in the ledger and the store. A
worker trains, and reports small dictionaries; only the driver writes to Optuna and MLflow.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.study.cluster import environment

os.environ.update(environment())

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from workbench.places import Places
from workbench.settings import to_dict
from workbench.study.device import Device
from workbench.study.interruption import Interruption, StudyStopped
from workbench.study.ledger import Assignment, Ledger
from workbench.study.plan import PlannedTrial
from workbench.study.trial_storage import last_line
from workbench.study.worker import ENDS, work

WORKER_DEATHS = 3  # survived by a trial; each time it is handed out again, and goes on from its checkpoint
RAY_UNITS = 10_000  # of a GPU: Ray rounds what is asked for to whole ones


class Watcher:
    """Told what happens while trials run; the driver's progress display is one."""

    def started(self, assignment: Assignment) -> None: ...

    def progress(self, number: int, stage: str, step: int, steps: int) -> None: ...

    def ended(self, number: int) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


Worker = Callable[..., None]  # what Tune calls in a worker's process: (config, settings)
PackSize = Callable[[PlannedTrial], int]


def run_trials(
    ledger: Ledger,
    places: Places,
    watcher: Watcher,
    device: Device,
    interruption: Interruption,
    *,
    pack_size: PackSize = lambda planned: 1,
    worker: Worker | None = None,
) -> None:
    """Run every trial that the ledger has left; returns when each has ended, or when interrupted.

    `pack_size` says how many trials like one a worker trains together. Ray must have been started. Raises
    StudyStopped, and whatever ledger or watcher raise.
    """
    folder = places.study(ledger.study.id) / "tune"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier launch; nothing in it is read
    per_trial = {"cpu": device.threads * device.processes, "gpu": _gpus_each(device)}
    settings = {
        "store": places.store_location,
        "data": str(places.data.resolve()),
        "stop": interruption.flag,
        "threads": device.threads,
        "processes": device.processes,
        "device": device.kind,
        "select": f"validation/{ledger.study.metric}",
        "folder": str(Path.cwd()),
    }
    handout = _Handout(ledger, watcher, interruption, pack_size, device.concurrency)
    trainable = tune.with_parameters(worker or _train, settings=settings)
    tuner = tune.Tuner(
        tune.with_resources(trainable, per_trial),
        tune_config=tune.TuneConfig(
            search_alg=handout,
            scheduler=_Scheduler(handout),
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
        if handout.failure is not None:
            raise handout.failure from error
        raise StudyStopped(f"Ray ended before the study did ({last_line(error)})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if handout.broken:
        raise StudyStopped(handout.broken)


def _gpus_each(device: Device) -> float:
    """Of a trial: one for each of its processes, or the part of one that it shares with others."""
    if not device.num_gpus:
        return 0
    if device.processes > 1:
        return device.processes
    sharing = math.ceil(device.concurrency / device.num_gpus)
    return math.floor(RAY_UNITS / sharing) / RAY_UNITS  # rounded up, the parts would be more than a GPU


# --- in the driver ------------------------------------------------------------------------------------------


class _Handout(Searcher):
    """What Tune calls a search algorithm: hands out the ledger's trials, and enters how they ended.

    What Tune takes for a trial is what one worker is given: a trial of the ledger, or some that train
    together.
    """

    def __init__(
        self,
        ledger: Ledger,
        watcher: Watcher,
        interruption: Interruption,
        pack_size: PackSize,
        num_workers: int,
    ) -> None:
        super().__init__(metric="value", mode="max")
        self._ledger = ledger
        self._watcher = watcher
        self._interruption = interruption
        self._pack_size = pack_size
        self._num_workers = num_workers
        self._packs = True  # until one fails
        self._open: dict[str, set[int]] = {}  # Tune's id -> the ledger's numbers that have not ended
        self._deaths: Counter[int] = Counter()  # of workers, by the ledger's number
        self.broken = ""  # why no further trial makes sense
        self.failure: Exception | None = None  # of ledger or watcher; Tune makes a text of what is raised

    @contextlib.contextmanager
    def _kept_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._kept_failure():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._ledger.num_left == 0 or self.broken or self._interruption.requested:
            return Searcher.FINISHED
        group = self._next_group()
        if not group:  # none is ready yet, unless the last ones have failed meanwhile
            return None if self._ledger.num_left else Searcher.FINISHED
        self._open[trial_id] = {assignment.number for assignment in group}
        for assignment in group:
            self._watcher.started(assignment)
        # In a list: Tune flattens a mapping and sends it back with every report.
        return {"trials": [_to_send(assignment) for assignment in group]}

    def _next_group(self) -> list[Assignment]:
        """A trial, and others to train with it; no more than leaves the other workers their part."""
        first = self._next()
        if first is None:
            return []
        group = [first]
        alone = self._deaths[first.number] or not self._packs
        most = 1 if alone else self._pack_size(first.planned)
        if most > 1:
            fair = math.ceil((1 + self._ledger.num_ready(first.planned)) / self._num_workers)
            while len(group) < min(most, fair):
                following = self._next(like=first.planned)
                if following is None:
                    break
                group.append(following)
        return group

    def _next(self, like: PlannedTrial | None = None) -> Assignment | None:
        """The ledger's next; one whose next stage has failed in another fails with it, untrained."""
        while (assignment := self._ledger.next(like=like)) is not None:
            reason = self._ledger.why_failed_already(assignment.planned)
            if reason is None:
                return assignment
            self._watcher.started(assignment)
            self._ledger.fail(assignment.number, reason)
            self._watcher.ended(assignment.number)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        with self._kept_failure():
            match result.get("event"):
                case "progress":
                    self._watcher.progress(result["number"], result["stage"], result["step"], result["steps"])
                case "note":
                    self._watcher.note(result["text"])
                case event if event in ENDS:
                    self._end(trial_id, result)

    def should_prune(self, result: dict[str, Any]) -> bool:
        """Whether a trial that tells this validation is to be given up."""
        with self._kept_failure():
            return self._ledger.should_prune(result["number"], result["step"], result["value"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        result = result or {}
        with self._kept_failure():
            if result.get("event") in ENDS:
                self._end(trial_id, result)
            for number in sorted(self._open.pop(trial_id, ())):
                if result.get("event") == "validation" and not error:
                    self._ledger.prune(number)
                else:
                    self._survive(number)
                self._watcher.ended(number)

    def _end(self, trial_id: str, result: dict[str, Any]) -> None:
        """As the trial itself has told, once."""
        number = result["number"]
        if number not in self._open.get(trial_id, ()):
            return
        self._open[trial_id].remove(number)
        match result["event"]:
            case "done":
                self._ledger.complete(number, result["value"])
            case "failed":
                self._ledger.fail(number, result["reason"])
            case "broken":
                self.broken = result["reason"]
                self._ledger.put_back(number)
            case "busy" | "stopped":
                self._ledger.put_back(number)
            case "died":
                self._survive(number, result["reason"])
            case "apart":
                self._go_on_apart(result["reason"])
                self._ledger.put_back(number)
        self._watcher.ended(number)

    def _go_on_apart(self, reason: str) -> None:
        """From here on every trial trains alone, those of the pack from their checkpoints."""
        if self._packs:
            self._packs = False
            self._watcher.note(f"a pack of trials failed ({reason}); from here on trials train one by one")

    def _survive(self, number: int, reason: str = "") -> None:
        """Its worker has died; `reason` where it is known."""
        self._deaths[number] += 1
        if self._deaths[number] <= WORKER_DEATHS:
            self._ledger.put_back(number)
            why = f" ({reason})" if reason else ""
            self._watcher.note(f"trial {number}: its worker died{why}; another will go on with it")
        else:
            why = f"at last: {reason}" if reason else "memory may be short"
            self._ledger.fail(number, f"its worker died {self._deaths[number]} times; {why}")

    def __reduce__(self) -> Any:
        return (
            Searcher,
            (),
        )  # Tune pickles what it is given, to restore from; nothing here reads that

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study goes on by the same command, with a fresh Tuner")


def _to_send(assignment: Assignment) -> dict[str, Any]:
    planned = assignment.planned
    return {
        "number": assignment.number,
        "config": json.dumps(to_dict(planned.trial.config)),
        "data_fingerprint": planned.data_fingerprint,
        "pool_fingerprint": planned.pool_fingerprint,
    }


class _Scheduler(FIFOScheduler):
    """First in, first out; stops the trials that the pruner gives up."""

    def __init__(self, handout: _Handout) -> None:
        super().__init__()
        self._handout = handout

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("event") == "validation" and self._handout.should_prune(result):
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
    work(config, settings, tune.report)
