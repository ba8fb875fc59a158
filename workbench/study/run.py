"""Run a study: open its books, prepare its data, let Tune schedule, write down how each trial ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from workbench.commands import INTERRUPTED
from workbench.data import make_ready
from workbench.files import write_text
from workbench.places import Places
from workbench.settings import digest
from workbench.store import Store
from workbench.study.books import BOOKS_ERRORS, Books
from workbench.study.cost import Cost, CostModel, Plan, duration
from workbench.study.definition import GridStudy, SearchStudy, Study
from workbench.study.grid_ledger import GridLedger
from workbench.study.interruption import Interruption, StudyBusy, StudyInterrupted, StudyStopped
from workbench.study.plan import PlannedTrial, Planner
from workbench.study.progress import Progress
from workbench.study.ray_session import ray_started
from workbench.study.record import DEFINITION, StudyRecord, write_definition
from workbench.study.results import TABLE, trial_table
from workbench.study.summary import print_summary
from workbench.study.tracking import Elsewhere
from workbench.study.trial_storage import first_line
from workbench.study.tune import run_trials

NAMED_FILES = 20  # of those that are left out; of AudioSet that can be 100,000


def run_study(
    study: Study,
    places: Places,
    plan: Plan,
    *,
    command: str,
    to_go_on: str,
    console: Console,
    retry_failed: bool = False,
) -> bool:
    """Run what is left of `study`; whether every trial ended well.

    `command` runs this study again, `to_go_on` all that were asked for with it. Raises DataError, StudyBusy,
    StudyInterrupted, StudyStopped.
    """
    folder = places.study(study.id)
    store = places.store(lambda line: console.print(line, markup=False))
    try:
        with _only_driver(folder):
            books = Books(
                study,
                places,
                store,
                work=plan.model.seconds,
                workers=plan.model.device.concurrency,
                retry_failed=retry_failed,
            )
            with books.closed_by_errors():
                ledger = books.ledger
                planned = ledger.planned if isinstance(ledger, GridLedger) else []
                record = StudyRecord.read(write_definition(study, planned, command, folder))
                interrupted = bool(ledger.num_left) and _run_trials(books, places, plan, to_go_on, console)
                table = trial_table(record, places.root)
                write_text(folder / TABLE, table.to_csv(index=False))
                try:
                    for path in (folder / DEFINITION, folder / TABLE):
                        books.tracking.attach(path)
                except Elsewhere as error:
                    console.print(f"not kept in MLflow: {error}", markup=False)
                well = books.close()
    except BOOKS_ERRORS as error:
        raise StudyStopped(f"what is kept of the study could not be written: {first_line(error)}") from error
    print_summary(record, table, places.root, console)
    if interrupted:
        raise StudyInterrupted(finished=True, well=well)
    return well


def stopped_message(reason: str, to_go_on: str) -> str:
    return f"{reason}. What is finished is kept; to go on:\n  {to_go_on}"


def _run_trials(books: Books, places: Places, plan: Plan, to_go_on: str, console: Console) -> bool:
    """What is left of the study; whether it was to stop meanwhile. Raises StudyInterrupted where it has."""
    ledger, store, model = books.ledger, books.store, plan.model
    study, folder = ledger.study, places.study(ledger.study.id)
    began = time.monotonic()
    is_missing = any(item.stages.missing(store.has) for item in plan.planned)
    if is_missing or isinstance(study, SearchStudy):  # what is all found needs no audio
        _prepare_data(study, places, console)
    console.print(f"{ledger.num_left} of {ledger.num_trials} trials to run", markup=False)
    interruption = Interruption(_flag(study, places))
    wall = plan.cost.wall_seconds
    rate = plan.cost.computing_seconds / wall if wall else None
    progress = Progress(ledger, console, books.begin, books.record, interruption, rate)

    def last_words(reason: str) -> int:
        progress.close()
        with contextlib.suppress(Exception):
            books.tracking.finish("KILLED")
        # A signal to the whole process group ends Ray, too; that is no accident.
        said = "Interrupted" if interruption.requested else reason
        print(stopped_message(said, to_go_on), file=sys.stderr, flush=True)
        return INTERRUPTED if interruption.requested else 1

    with ray_started(model.device, folder / "processes.json", last_words), progress, interruption:
        run_trials(ledger, places, progress, model.device, interruption, pack_size=_pack_size(model, store))
    model.learn(ledger.known(), books.seconds_taken())
    to_confirm = isinstance(study, SearchStudy) and study.search.confirm_seeds
    if interruption.requested and (ledger.num_left or to_confirm):
        raise StudyInterrupted(finished=False)
    _judge_estimate(plan.cost, time.monotonic() - began, folder, console)
    return interruption.requested


def _pack_size(model: CostModel, store: Store) -> Callable[[PlannedTrial], int]:
    """By the stage that a trial needs next."""

    def size(planned: PlannedTrial) -> int:
        missing = planned.stages.missing(store.has)
        return model.pack_size(planned.trial.config, missing[0].kind) if missing else 1

    return size


def _flag(study: Study, places: Places) -> str:
    """Where workers on any machine look whether they are to stop."""
    if "://" in places.store_location:
        whose = digest(str(places.root.resolve()))[:12]  # others may run the same study on the same store
        return f"{places.store_location}/stop-{study.id}-{whose}"
    return str(places.study(study.id).resolve() / "stop")


def _judge_estimate(expected: Cost, seconds: float, folder: Path, console: Console) -> None:
    """Say how good the plan's estimate was, and keep it."""
    if not expected.wall_seconds:
        return
    error = round(100 * (expected.wall_seconds / seconds - 1))
    judgement = f"{abs(error)}% too {'long' if error > 0 else 'short'}" if error else "right"
    console.print(
        f"expected {duration(expected.wall_seconds)}, took {duration(seconds)}: the estimate was {judgement}",
        markup=False,
    )
    path = folder / "estimates.jsonl"
    row = {"expected_seconds": round(expected.wall_seconds, 1), "seconds": round(seconds, 1)}
    write_text(path, (path.read_text() if path.exists() else "") + json.dumps(row) + "\n")


def _prepare_data(study: Study, places: Places, console: Console) -> None:
    trials = study.trials() if isinstance(study, GridStudy) else study.corners()
    distinct = {(trial.config.data, trial.config.pool): trial.seed for trial in trials}
    planner = Planner()
    left_out: set[str] = set()

    def say(line: str) -> None:
        console.print(line, markup=False)

    for (data, pool), seed in distinct.items():
        fingerprints = planner.fingerprint(data), None if pool is None else planner.fingerprint(pool)
        left_out |= make_ready(data, pool, places.data, seed, say, fingerprints)
    if left_out:
        named = sorted(left_out)[:NAMED_FILES]
        more = f" and {len(left_out) - len(named)} more" if len(left_out) > len(named) else ""
        console.print(f"{len(left_out)} files are left out: {', '.join(named)}{more}", markup=False)
    asked = any(trial.config.precision == "bf16" for trial in trials)
    if asked and not torch.cuda.is_bf16_supported(including_emulation=False):
        say("precision: bf16 was asked for; without a GPU that has it the study computes in float32")


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
