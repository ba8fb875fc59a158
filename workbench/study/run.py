"""Run a study: open its books, prepare its data, let Tune schedule, write down how each trial ended."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from workbench.data import load_splits
from workbench.settings import digest, identity
from workbench.stages import read_result
from workbench.store import Store
from workbench.study import results
from workbench.study.definition import Study, Trial
from workbench.study.ledger import Ended, Ledger, storage_url
from workbench.study.plan import Planner
from workbench.study.progress import Progress
from workbench.study.results import StudyRecord
from workbench.study.summary import print_summary
from workbench.study.tracking import Tracking
from workbench.study.tune import Places, ray_started, run_trials


class StudyBusy(RuntimeError):
    """Another process runs this study."""


class Books:
    """Optuna's and MLflow's view of one study, kept in step: what has ended in one is in the other."""

    def __init__(self, study: Study, root: Path, store: Store, *, retry_failed: bool) -> None:
        with _locked(root / "databases.lock"):  # processes that create a database together fail
            self.ledger = Ledger(
                study,
                Planner(),
                storage_url(root),
                is_trained=store.has,
                retry_failed=retry_failed,
            )
            self.tracking = Tracking(study, root)
        self._store = store
        for ended in self.ledger.ended():  # those that a kill kept from MLflow
            self._record(ended)

    def record(self, number: int) -> Ended | None:
        """Bring the trial of that number, which has ended, into MLflow."""
        ended = next((e for e in self.ledger.ended() if e.number == number), None)
        if ended is not None:
            self._record(ended)
        return ended

    def _record(self, ended: Ended) -> None:
        planned = self.ledger.planned_of(ended)
        if planned is None:
            return
        complete = ended.state == "complete"
        result = read_result(planned.stages, self._store) if complete else None
        self.tracking.record(ended, planned, result)


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
        ledger = books.ledger
        keys = [planned.key for planned in ledger.planned]
        definition = results.write_definition(study, keys, command, folder)
        if not ledger.exhausted:
            _prepare_data(study, places, console)
            console.print(f"{ledger.num_left} of {ledger.num_trials} trials to run", markup=False)
            progress = Progress(ledger, console, books.record)
            with ray_started(study.resources), progress:
                run_trials(ledger, places, progress, study.resources)
        record = StudyRecord.read(definition)
        table = results.trial_table(record, root)
        table.to_csv(folder / "trials.csv", index=False)
        for path in (definition, folder / "trials.csv"):
            books.tracking.attach(path)
        failed = any(ended.state == "failed" for ended in ledger.ended())
        books.tracking.finish(failed=failed)
    print_summary(record, table, root, console)
    return not failed


def _prepare_data(study: Study, places: Places, console: Console) -> None:
    """Make or decode the data once, here: workers then only open them."""
    trials: list[Trial] = study.trials() if study.search is None else study.corners()
    distinct = {digest(identity(trial.config.data)): trial for trial in trials}
    left_out: set[str] = set()
    for trial in distinct.values():
        splits = load_splits(
            trial.config.data,
            places.data,
            trial.seed,
            lambda line: console.print(line, markup=False),
        )
        left_out |= set(splits.left_out)
    if left_out:
        console.print(
            f"{len(left_out)} unreadable files are left out: {', '.join(sorted(left_out))}",
            markup=False,
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
