"""Which trials there are, and which is next: Optuna's storage is the truth (`trial_storage`).

Whatever the storage holds as running when a study starts was cut off, and is run to its end under the same
number. `GridLedger` and `SearchLedger` say how trials come about.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from workbench.config import TrialConfig
from workbench.store import Stage
from workbench.study.definition import Study
from workbench.study.plan import PlannedTrial, Planner, work_of, work_to_do
from workbench.study.trial_storage import (
    ENDED,
    FAILED_STAGE,
    FORGOTTEN,
    HANDED_OUT,
    Ended,
    ended_of,
    open_storage,
)
from workbench.training.pack import pack_key


@dataclass(frozen=True)
class Assignment:
    """A trial to run, under its number in the storage."""

    number: int
    planned: PlannedTrial


class Stages(Protocol):
    """What a ledger asks of the store."""

    def has(self, stage: Stage) -> bool: ...

    def is_busy(self, stage: Stage) -> bool: ...


Work = Callable[[TrialConfig], Mapping[str, float]]  # of each stage of a trial, in any one unit


class Ledger:
    """The trials of one study, handed out one by one; only one process may hold it.

    A trial that needs a stage which another one is at, of this study or not, is held back meanwhile.
    What is said here is of any study.
    """

    def __init__(
        self,
        study: Study,
        planner: Planner,
        url: str,
        *,
        store: Stages,
        work: Work = work_of,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        """`url` is Optuna's storage; `work` tells how long the stages of a trial are."""
        self.study = study
        self.store = store
        self.work = work
        self._planner = planner
        self._optuna = optuna.create_study(
            study_name=study.id,
            storage=open_storage(url),
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # replaced before every use
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        self._running: dict[int, PlannedTrial] = {}
        self._entered: list[Assignment] = []  # in the storage and at no worker: cut off, put back, held

    def next(self, like: PlannedTrial | None = None) -> Assignment | None:
        """A trial to run now, or None when none is ready yet, or none is left.

        `like` asks for one whose next stage can be trained together with that of another.
        """
        ready = (a for a in self._entered if self._is_ready(a.planned, like))
        assignment = next(ready, None)
        if assignment is not None:
            self._entered.remove(assignment)
        else:
            assignment = self._next(like)
        if assignment is not None:
            self._running[assignment.number] = assignment.planned
            now = datetime.datetime.now().isoformat()  # as Optuna keeps its own times
            self._trial(assignment.number).set_user_attr(HANDED_OUT, now)
        return assignment

    def num_ready(self, like: PlannedTrial) -> int:
        """How many `next(like)` could give now: of those that need the same stage next, one."""
        waiting = [*self._not_begun(), *(a.planned for a in self._entered)]
        ready = [planned for planned in waiting if self._is_ready(planned, like)]
        return len({tuple(planned.stages.missing(self.store.has)[:1]) for planned in ready})

    def _next(self, like: PlannedTrial | None) -> Assignment | None:
        raise NotImplementedError

    def _is_ready(self, planned: PlannedTrial, like: PlannedTrial | None) -> bool:
        if like is not None and self._pack_key(planned) != self._pack_key(like):
            return False
        return not self._must_wait(planned)

    def _pack_key(self, planned: PlannedTrial) -> str | None:
        """Of the stage that it needs next."""
        missing = planned.stages.missing(self.store.has)
        return pack_key(planned.trial.config, missing[0].kind) if missing else None

    def _must_wait(self, planned: PlannedTrial) -> bool:
        """Whether what it needs next is being computed."""
        missing = planned.stages.missing(self.store.has)
        if not missing:
            return False
        here = any(missing[0] in running.stages.all() for running in self._running.values())
        return here or self.store.is_busy(missing[0])

    @property
    def num_trials(self) -> int:
        raise NotImplementedError

    def _not_begun(self) -> list[PlannedTrial]:
        """Trials that were never handed out, or others of their size."""
        raise NotImplementedError

    @property
    def num_left(self) -> int:
        """Trials still to end; one that is running may yet have to be handed out again."""
        return len(self._not_begun()) + len(self._entered) + len(self._running)

    def work_left(self) -> float:
        """Work still to be done, by trials as a whole; a stage that several share counts once."""
        waiting = [*self._not_begun(), *(a.planned for a in self._entered), *self._running.values()]
        return sum(work_to_do(waiting, self.store.has, self.work).values())

    # --- how a trial ended --------------------------------------------------------------------------------

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Tell an intermediate validation score; whether the pruner gives the trial up."""
        return False

    def complete(self, number: int, value: float) -> None:
        """The trial ended with this validation score."""
        if math.isfinite(value):
            self._tell(number, TrialState.COMPLETE, value)
        else:
            self.fail(number, f"the validation score is {value}")

    def fail(self, number: int, reason: str) -> None:
        """The trial ended by its own fault, at the stage that it needs next, if it needs one."""
        running = self._running.get(number)
        if running is not None and (missing := running.stages.missing(self.store.has)):
            self._trial(number).set_user_attr(FAILED_STAGE, missing[0].key)
        self._trial(number).set_user_attr("reason", reason)
        self._tell(number, TrialState.FAIL)

    def why_failed_already(self, planned: PlannedTrial) -> str | None:
        """What to say of a trial that needs a stage next at which another has failed; None for any other."""
        missing = planned.stages.missing(self.store.has)
        if not missing:
            return None
        failed = next((e for e in self.ended() if e.failed_stage == missing[0].key), None)
        if failed is None:
            return None
        return f"its {missing[0].kind} stage failed in trial {failed.number}: {failed.reason}"

    def prune(self, number: int) -> None:
        self._trial(number).set_user_attr("reason", "given up by the pruner")
        self._tell(number, TrialState.PRUNED)

    def put_back(self, number: int) -> None:
        """The trial has not ended: hand it out again, under its number."""
        self._entered.append(Assignment(number, self._running.pop(number)))

    def forget(self, number: int) -> None:
        """An ended trial that counts no longer; it is still in the storage, and will be run anew."""
        self._optuna.set_user_attr(FORGOTTEN, sorted({number, *self._forgotten()}))

    def _entered_whole(self, running: FrozenTrial, planned: PlannedTrial) -> Assignment:
        """A new trial: a kill leaves it there with all that it carries, or not at all."""
        storage, study_id = self._optuna._storage, self._optuna._study_id
        trial_id = storage.create_new_trial(study_id, template_trial=running)
        return Assignment(storage.get_trial_number_from_id(trial_id), planned)

    def _forgotten(self) -> set[int]:
        # Of the study: an ended trial's own attributes cannot be changed.
        return set(self._optuna.user_attrs.get(FORGOTTEN, ()))

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        values = None if value is None else [value]
        self._optuna._storage.set_trial_state_values(self._trial_id(number), state, values)
        self._running.pop(number, None)

    def _trial(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._optuna, self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        storage, study_id = self._optuna._storage, self._optuna._study_id
        return storage.get_trial_id_from_study_id_trial_number(study_id, number)

    # --- what there is ------------------------------------------------------------------------------------

    def ended(self) -> list[Ended]:
        """The ended trials that count."""
        forgotten = self._forgotten()
        trials = self._optuna.get_trials(deepcopy=False, states=ENDED)
        return [ended_of(trial) for trial in trials if trial.number not in forgotten]

    def planned_of(self, ended: Ended) -> PlannedTrial | None:
        """The trial behind an entry; None where the study no longer has it."""
        raise NotImplementedError

    def known(self) -> list[PlannedTrial]:
        """Trials that the study is known to have: what they need is to be kept, whoever else does without."""
        raise NotImplementedError

    def _cut_off_trials(self) -> Iterable[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
