"""Run a study: open its books, prepare its data, let Tune schedule, write down how each trial ended."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from workbench.data import load_splits
from workbench.settings import digest, identity
from workbench.stages import read_result
from workbench.store import Store
from workbench.study import results
from workbench.study.definition import Study, Trial
from workbench.study.ledger import Ended, GridLedger, open_ledger, storage_url
from workbench.study.plan import Planner
from workbench.study.progress import Progress
from workbench.study.summary import print_summary
from workbench.study.tracking import Tracking
from workbench.study.tune import Places, ray_started, run_trials


class StudyBusy(RuntimeError):
    """Another process runs this study."""


class Books:
    """Optuna's and MLflow's view of one study, kept in step: what has ended in one is in the other."""

    def __init__(self, study: Study, root: Path, store: Store, *, retry_failed: bool) -> None:
        with _locked(root / "databases.lock"):  # processes that create a database together fail
            self.ledger = open_ledger(
                study,
                Planner(),
                storage_url(root),
                is_trained=store.has,
                retry_failed=retry_failed,
            )
            self.tracking = Tracking(study, root)
        self._store = store
        for ended in self.ledger.ended():
            if not self.tracking.has(ended.number):  # a kill came in between
                self._record(ended)

    def record(self, number: int) -> Ended | None:
        """Bring the trial of that number into MLflow, if it has ended; how it did."""
        ended = next((e for e in self.ledger.ended() if e.number == number), None)
        if ended is not None:
            self._record(ended)
        return ended

    def _record(self, ended: Ended) -> None:
        planned = self.ledger.planned_of(ended)
        if planned is None:
            return
        if ended.state != "complete":
            self.tracking.record(ended, planned, None)
        elif self._store.has(planned.stages.finetune):
            self.tracking.record(ended, planned, read_result(planned.stages, self._store))
        else:  # what it found was deleted before it was written down
            self.ledger.forget(ended.number)


def run_study(
    study: Study, root: Path, *, command: str, console: Console, retry_failed: bool = False
) -> bool:
    """Run what is left of `study`; whether every trial ended well.

    `command` is what a reader types to run it again. Raises DataError, StudyBusy.
    """
    places = Places(root)
    folder = places.study(study.id)
    with _only_driver(folder):
        books = Books(study, root, places.store, retry_failed=retry_failed)
        try:
            record = _run_trials(study, books, places, command, console)
            table = results.trial_table(record, root)
            table.to_csv(folder / "trials.csv", index=False)
            for path in (folder / results.DEFINITION, folder / "trials.csv"):
                books.tracking.attach(path)
        except BaseException:
            books.tracking.finish("KILLED")
            raise
        failed = any(ended.state == "failed" for ended in books.ledger.ended())
        books.tracking.finish("FAILED" if failed else "FINISHED")
    print_summary(record, table, root, console)
    return not failed


def _run_trials(
    study: Study, books: Books, places: Places, command: str, console: Console
) -> results.StudyRecord:
    ledger = books.ledger
    planned = ledger.planned if isinstance(ledger, GridLedger) else []
    definition = results.write_definition(study, planned, command, places.study(study.id))
    if ledger.num_left:
        _prepare_data(study, places, console)
        console.print(f"{ledger.num_left} of {ledger.num_trials} trials to run", markup=False)
        progress = Progress(ledger, console, books.record)
        with ray_started(study.resources), progress:
            run_trials(ledger, places, progress, study.resources)
    return results.StudyRecord.read(definition)


def _prepare_data(study: Study, places: Places, console: Console) -> None:
    """Make or decode the data once, here: workers then only open them."""
    trials: list[Trial] = study.trials() if study.search is None else study.corners()
    distinct = {digest(identity(trial.config.data)): trial for trial in trials}
    planner = Planner()
    left_out: set[str] = set()
    for trial in distinct.values():
        splits = load_splits(
            trial.config.data,
            places.data,
            trial.seed,
            lambda line: console.print(line, markup=False),
            planner.plan(trial).data_fingerprint,
        )
        left_out |= set(splits.left_out)
    if left_out:
        console.print(
            f"{len(left_out)} unreadable files are left out: {', '.join(sorted(left_out))}",
            markup=False,
        )
    if any(trial.config.precision == "bf16" for trial in trials) and not torch.cuda.is_available():
        console.print(
            "precision: bf16 was asked for; without a GPU the study computes in float32", markup=False
        )


@contextlib.contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyBusy(
                f"{folder.name} is being run by another process; wait for it, or end it"
            ) from None
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
