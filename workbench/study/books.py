"""Optuna's and MLflow's view of one study, kept in step."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.places import Places
from workbench.stages import read_result
from workbench.store import DamagedFacts, Stage, Store
from workbench.study.definition import SearchStudy, Study
from workbench.study.grid_ledger import GridLedger
from workbench.study.ledger import Assignment, Ledger, Work
from workbench.study.plan import PlannedTrial, Planner, work_of
from workbench.study.search_ledger import SearchLedger
from workbench.study.tracking import TRACKING_ERRORS, Tracking
from workbench.study.trial_storage import LEDGER_ERRORS, Ended

BOOKS_ERRORS = (OSError, *LEDGER_ERRORS, *TRACKING_ERRORS)  # they cannot be read, or written


class Books:
    """What has ended in one is in the other."""

    def __init__(
        self,
        study: Study,
        places: Places,
        store: Store,
        *,
        work: Work = work_of,
        workers: int = 2,
        retry_failed: bool = False,
    ) -> None:
        with _locked(places.root / "databases.lock"):  # processes that create a database together fail
            url = places.optuna_url
            self.ledger: Ledger = (
                SearchLedger(
                    study, Planner(), url, store=store, work=work, workers=workers, retry_failed=retry_failed
                )
                if isinstance(study, SearchStudy)
                else GridLedger(study, Planner(), url, store=store, work=work, retry_failed=retry_failed)
            )
            self.tracking = Tracking(study, places)
        self._places = places
        self.store = store
        self._needed: set[str] = set()
        self._to_compute: set[Stage] = set()
        with self.closed_by_errors():
            self._refer(self.ledger.known())
            for ended in self.ledger.ended():
                if not self.tracking.has(ended.number):  # a kill came in between
                    self._record(ended)

    def close(self) -> bool:
        """All has been handed out and recorded; whether every trial ended well."""
        self._needed = set()
        self._refer(self.ledger.known())  # what was pruned needs nothing any more
        well = not any(ended.state == "failed" for ended in self.ledger.ended())
        self.tracking.finish("FINISHED" if well else "FAILED")
        return well

    @contextlib.contextmanager
    def closed_by_errors(self) -> Iterator[None]:
        """MLflow shows the study as KILLED after one."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(*TRACKING_ERRORS):  # the first error is the one to hear of
                self.tracking.finish("KILLED")
            raise

    def begin(self, assignment: Assignment) -> None:
        """The trial is handed out: what it finds or computes is needed from now on, not from its end."""
        self._refer([assignment.planned])
        self._to_compute |= set(assignment.planned.stages.missing(self.store.has))

    def seconds_taken(self) -> dict[Stage, float]:
        """By the stages that trials have computed since they were begun."""
        seconds = {}
        for stage in filter(self.store.has, self._to_compute):
            with contextlib.suppress(FileNotFoundError, DamagedFacts):  # gone, or damaged
                seconds[stage] = self.store.facts(stage)["seconds"]
        return seconds

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
        elif self.store.is_sound(planned.stages.evaluate):
            self.tracking.record(ended, planned, read_result(planned.stages, self.store))
        else:  # what it found was deleted, or damaged, before it was written down
            self.ledger.forget(ended.number)

    def _refer(self, planned: Sequence[PlannedTrial]) -> None:
        """Tell the store what the study needs, so that it is not collected as garbage."""
        new = {stage.key for item in planned for stage in item.stages.all()} - self._needed
        if new:
            self._needed |= new
            self.store.refer(self.ledger.study.id, str(self._places.root.resolve()), self._needed)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
