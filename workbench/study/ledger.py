"""Which trials there are and how each ended: Optuna's storage is the truth. The only importer of optuna.

A trial of a grid carries its place in the study and its key as attributes; a trial of a search carries its
parameters. Whatever the storage holds as running when a study starts was cut off, and is run to its end
under the same number.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from workbench.random_streams import derive
from workbench.store import Stage
from workbench.study.definition import Choice, Integer, Search, Study, Trial
from workbench.study.plan import PlannedTrial, Planner, work_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

ENDED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


@dataclass(frozen=True)
class Assignment:
    """A trial to run, under its number in the storage."""

    number: int
    planned: PlannedTrial


@dataclass(frozen=True)
class Ended:
    """A trial that has ended, as the storage has it."""

    number: int
    key: str
    state: str  # "complete", "failed", "pruned"
    reason: str
    began: datetime.datetime
    finished: datetime.datetime


class Ledger:
    """The trials of one study, handed out one by one; only one process may hold it."""

    def __init__(
        self,
        study: Study,
        planner: Planner,
        url: str,
        *,
        is_trained: Callable[[Stage], bool],
        retry_failed: bool = False,
    ) -> None:
        """`url` is Optuna's storage; `is_trained` tells whether a stage is in the store."""
        self.study = study
        self.is_trained = is_trained
        self._planner = planner
        self._optuna = optuna.create_study(
            study_name=study.id,
            storage=optuna.storages.RDBStorage(url),
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # replaced before every use
            pruner=_pruner(study.search),
        )
        self._running: dict[int, PlannedTrial] = {}
        self._pending: list[Assignment | PlannedTrial] = []
        if study.search is None:
            self.planned: list[PlannedTrial] = [planner.plan(t) for t in study.trials()]
            self._take_stock(retry_failed)
        else:
            self.planned = []
            self._take_over_search()

    # --- handing out --------------------------------------------------------------------------------------

    def next(self) -> Assignment | None:
        """A trial to run now, or None when none is ready: all are handed out, or wait for a pre-training.

        Trials that need a pre-training which another running trial is at are held back.
        """
        return self._next_of_search() if self.study.search else self._next_of_grid()

    @property
    def exhausted(self) -> bool:
        """Whether every trial has ended; one that is running may yet have to be handed out again."""
        return self.num_left == 0

    @property
    def num_trials(self) -> int:
        return self.study.search.num_trials if self.study.search else len(self.planned)

    @property
    def num_left(self) -> int:
        """Trials still to end."""
        unasked = self.study.search.num_trials - self._asked if self.study.search else 0
        return len(self._pending) + len(self._running) + unasked

    def _next_of_grid(self) -> Assignment | None:
        """What was cut off first; then the longest, so that workers do not wait for one at the end."""
        busy = {t.stages.pretrain.key for t in self._running.values() if t.stages.pretrain}
        ready = [item for item in self._pending if not self._must_wait(_planned(item), busy)]
        if not ready:
            return None
        chosen = max(ready, key=lambda item: (isinstance(item, Assignment), self._work(_planned(item))))
        self._pending.remove(chosen)
        assignment = chosen if isinstance(chosen, Assignment) else self._enter(chosen)
        self._running[assignment.number] = assignment.planned
        return assignment

    def _must_wait(self, planned: PlannedTrial, busy: Collection[str]) -> bool:
        first = planned.stages.pretrain
        return first is not None and first.key in busy and not self.is_trained(first)

    def _work(self, planned: PlannedTrial) -> int:
        """Clips that the trial has to train on."""
        clips = work_of(planned.trial.config)
        first = planned.stages.pretrain
        if first is None or self.is_trained(first):
            return clips["finetune"]
        return clips["pretrain"] + clips["finetune"]

    def _enter(self, planned: PlannedTrial) -> Assignment:
        """A new running trial, entered whole: a kill leaves it there with its key, or not at all."""
        attributes = {"key": planned.key, **place(planned.trial)}
        frozen = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        storage, study_id = self._optuna._storage, self._optuna._study_id
        trial_id = storage.create_new_trial(study_id, template_trial=frozen)
        return Assignment(storage.get_trial_number_from_id(trial_id), planned)

    def _next_of_search(self) -> Assignment | None:
        if self._pending:
            assignment = self._pending.pop(0)
            assert isinstance(assignment, Assignment)
        else:
            search = self.study.search
            assert search is not None
            if self._asked >= search.num_trials:
                return None
            self._optuna.sampler = _sampler(search, self._asked)
            self._asked += 1
            assignment = self._suggest(self._optuna.ask())
        self._running[assignment.number] = assignment.planned
        return assignment

    def _suggest(self, trial: optuna.Trial) -> Assignment:
        """Draw what the trial lacks; what was drawn before a kill stays as it was."""
        search = self.study.search
        assert search is not None
        level: dict[str, Any] = {}
        for path, space in search.space.items():
            if isinstance(space, Choice):
                index = trial.suggest_categorical(path, list(range(len(space.values))))
                level[path] = space.values[index]
            elif isinstance(space, Integer):
                level[path] = trial.suggest_int(path, space.low, space.high, log=space.log, step=space.step)
            else:
                level[path] = trial.suggest_float(path, space.low, space.high, log=space.log, step=space.step)
        planned = self._planner.plan(self.study.searched(level))
        trial.set_user_attr("key", planned.key)
        for name, value in place(planned.trial).items():
            trial.set_user_attr(name, value)
        return Assignment(trial.number, planned)

    # --- taking in ----------------------------------------------------------------------------------------

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Tell an intermediate validation score; whether the pruner gives the trial up."""
        if self.study.search is None or self.study.search.pruner == "none":
            return False
        trial = self._trial(number)
        trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, number: int, value: float) -> None:
        """The trial ended with this validation score."""
        if math.isfinite(value):
            self._tell(number, TrialState.COMPLETE, value)
        else:
            self.fail(number, f"the validation score is {value}")

    def fail(self, number: int, reason: str) -> None:
        self._trial(number).set_user_attr("reason", reason)
        self._tell(number, TrialState.FAIL)

    def prune(self, number: int) -> None:
        self._trial(number).set_user_attr("reason", "given up by the pruner")
        self._tell(number, TrialState.PRUNED)

    def put_back(self, number: int) -> None:
        """The trial has not ended: hand it out again, under its number."""
        self._pending.insert(0, Assignment(number, self._running.pop(number)))

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        storage = self._optuna._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._optuna._study_id, number)
        storage.set_trial_state_values(trial_id, state, None if value is None else [value])
        self._running.pop(number, None)

    def _trial(self, number: int) -> optuna.Trial:
        storage, study_id = self._optuna._storage, self._optuna._study_id
        return optuna.Trial(self._optuna, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    # --- what there is ------------------------------------------------------------------------------------

    def ended(self) -> list[Ended]:
        """The ended trials of the study as it is now defined, the last attempt at each."""
        wanted = {planned.key for planned in self.planned}
        latest: dict[str, Ended] = {}
        for frozen in self._optuna.get_trials(deepcopy=False, states=ENDED):
            key = frozen.user_attrs.get("key", f"number {frozen.number}")
            if self.study.search is None and key not in wanted:
                continue
            state = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}[frozen.state.name]
            name = key if self.study.search is None else str(frozen.number)
            assert frozen.datetime_start is not None
            assert frozen.datetime_complete is not None
            latest[name] = Ended(
                number=frozen.number,
                key=key,
                state=state,
                reason=frozen.user_attrs.get("reason", ""),
                began=frozen.datetime_start,
                finished=frozen.datetime_complete,
            )
        return list(latest.values())

    def planned_of(self, ended: Ended) -> PlannedTrial | None:
        """The trial behind an entry; None where it is no longer in the study."""
        if self.study.search is None:
            return next((p for p in self.planned if p.key == ended.key), None)
        attributes = self._optuna.get_trials(deepcopy=False)[ended.number].user_attrs
        if "level" not in attributes:
            return None
        return self._planner.plan(self.study.searched(attributes["level"]))

    def _take_stock(self, retry_failed: bool) -> None:
        """Queue the trials that have not ended, those first that were cut off."""
        done = {e.key for e in self.ended() if not (retry_failed and e.state == "failed")}
        by_key = {planned.key: planned for planned in self.planned}
        for frozen in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            key = frozen.user_attrs.get("key")
            if key in by_key and key not in done:
                self._pending.append(Assignment(frozen.number, by_key[key]))
                done.add(key)
            else:
                self.fail(frozen.number, "cut off, and no longer in the study")
        for planned in self.planned:
            if planned.key not in done:
                self._pending.append(planned)
                done.add(planned.key)

    def _take_over_search(self) -> None:
        trials = self._optuna.get_trials(deepcopy=False)
        self._asked = len(trials)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                assert self.study.search is not None
                self._optuna.sampler = _sampler(self.study.search, frozen.number)
                trial = optuna.Trial(self._optuna, frozen._trial_id)
                self._pending.append(self._suggest(trial))


def _planned(item: Assignment | PlannedTrial) -> PlannedTrial:
    return item.planned if isinstance(item, Assignment) else item


def place(trial: Trial) -> dict[str, Any]:
    """Where a trial stands in its study, as JSON."""
    return {
        "level": trial.level,
        "regime": trial.regime,
        "seed": trial.seed,
        "fold": trial.fold,
    }


def storage_url(root: Path) -> str:
    return f"sqlite:///{(root / 'optuna.db').resolve()}"


def _sampler(search: Search, number: int) -> BaseSampler:
    """Seeded by the trial's number: a search that is resumed proposes what it would have proposed."""
    seed = derive(search.seed, "sampler", number) % 2**32
    match search.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "qmc":
            # One scrambled sequence for all trials: its seed must not change with the number.
            return optuna.samplers.QMCSampler(seed=search.seed, scramble=True)


def _pruner(search: Search | None) -> optuna.pruners.BasePruner:
    match search.pruner if search else "none":
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
        case "successive_halving":
            return optuna.pruners.SuccessiveHalvingPruner()
        case _:
            return optuna.pruners.NopPruner()
