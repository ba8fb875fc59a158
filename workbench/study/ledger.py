"""Which trials there are, and which is next: Optuna's storage is the truth (`trial_storage`).

A trial of a grid carries its place in the study and its key as attributes; a trial of a search carries its
parameters. Whatever the storage holds as running when a study starts was cut off, and is run to its end
under the same number.
"""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from workbench.config import TrialConfig
from workbench.random_streams import derive
from workbench.settings import ConfigError
from workbench.store import Stage
from workbench.study.definition import MOST_REFUSED, UNPRUNED, GridStudy, SearchStudy, Study
from workbench.study.plan import PlannedTrial, Planner, most_urgent, work_of, work_to_do
from workbench.study.search import Choice, Integer, Search
from workbench.study.trial_storage import (
    DUPLICATE,
    ENDED,
    EXHAUSTED,
    FAILED_STAGE,
    FORGOTTEN,
    HANDED_OUT,
    REFUSED,
    Ended,
    counts,
    ended_of,
    open_storage,
)
from workbench.training.pack import pack_key

LOOK_AHEAD = 2  # trials, for each worker, that a search may propose while they wait for a stage
STUCK = 10  # refused proposals in a row after which a search draws at random
NOTHING_NEW = 100  # proposals in a row that were all tried before end a search


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
    What is said here is of any study; how trials come about is said by `GridLedger` and `SearchLedger`.
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


class GridLedger(Ledger):
    """Trials that are known beforehand."""

    study: GridStudy

    def __init__(
        self,
        study: GridStudy,
        planner: Planner,
        url: str,
        *,
        store: Stages,
        work: Work = work_of,
        retry_failed: bool = False,
    ) -> None:
        """`retry_failed` forgets the failed trials."""
        super().__init__(study, planner, url, store=store, work=work)
        self.planned = [planner.plan(trial) for trial in study.trials()]
        self._by_key = {planned.key: planned for planned in self.planned}
        if retry_failed:
            for ended in self.ended():
                if ended.state == "failed":
                    super().forget(ended.number)
        self._pending = self._take_stock()

    @property
    def num_trials(self) -> int:
        return len(self.planned)

    def _not_begun(self) -> list[PlannedTrial]:
        return self._pending

    def _next(self, like: PlannedTrial | None) -> Assignment | None:
        """Of those that need not wait, the one behind which most work waits."""
        ready = [planned for planned in self._pending if self._is_ready(planned, like)]
        if not ready:
            return None
        chosen = most_urgent(ready, self.store.has, self.work)
        self._pending.remove(chosen)
        return self._enter(chosen)

    def _enter(self, planned: PlannedTrial) -> Assignment:
        """A new running trial, entered whole: a kill leaves it there with its key, or not at all."""
        attributes = {"key": planned.key, **planned.trial.coordinates}
        frozen = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        storage, study_id = self._optuna._storage, self._optuna._study_id
        trial_id = storage.create_new_trial(study_id, template_trial=frozen)
        return Assignment(storage.get_trial_number_from_id(trial_id), planned)

    def forget(self, number: int) -> None:
        """The same; if the trial is still in the study, it is handed out again, under a new number."""
        ended = next(e for e in self.ended() if e.number == number)
        super().forget(number)
        self._pending.append(self._by_key[ended.key])

    def ended(self) -> list[Ended]:
        """The ended trials of the study as it is now defined, once each."""
        return list({e.key: e for e in super().ended() if e.key in self._by_key}.values())

    def planned_of(self, ended: Ended) -> PlannedTrial | None:
        return self._by_key.get(ended.key)

    def known(self) -> list[PlannedTrial]:
        return self.planned

    def _take_stock(self) -> list[PlannedTrial]:
        """What has not begun; what was cut off is taken over."""
        done = {ended.key for ended in self.ended()}
        for frozen in self._cut_off_trials():
            key = frozen.user_attrs["key"]
            if key in self._by_key and key not in done:
                self._entered.append(Assignment(frozen.number, self._by_key[key]))
                done.add(key)
            else:
                super().forget(frozen.number)  # should the study have it again, it is run
                self.fail(frozen.number, "cut off, and no longer in the study")
        return [planned for planned in self.planned if planned.key not in done]


class SearchLedger(Ledger):
    """Trials that a sampler proposes; one that repeats another gets that one's result and is not counted."""

    study: SearchStudy

    def __init__(
        self,
        study: SearchStudy,
        planner: Planner,
        url: str,
        *,
        store: Stages,
        work: Work = work_of,
        workers: int = 2,
    ) -> None:
        """`workers` are as many as there will be trials at once."""
        pruner = _pruner(study.search)
        super().__init__(study, planner, url, store=store, work=work, pruner=pruner)
        self._search = study.search
        self._look_ahead = LOOK_AHEAD * workers
        self._likely = planner.plan_study(study)
        self._found_nothing_new = self._optuna.user_attrs.get(EXHAUSTED) == study.search.num_trials
        self._refuse_other_scores()
        for frozen in self._cut_off_trials():
            self._optuna.sampler = _sampler(self._search, frozen.number)
            assignment = self._suggest(optuna.Trial(self._optuna, frozen._trial_id))
            if assignment is not None:
                self._entered.append(assignment)

    def _refuse_other_scores(self) -> None:
        """A search chooses by scores of the same data, computed alike."""
        strange = sum((planned := self.planned_of(e)) is None or planned.key != e.key for e in self.ended())
        if strange:
            raise ConfigError(
                "search",
                f"{strange} of its ended trials ran on other data than there are now, or with another "
                "version of a stage: their scores cannot be compared with new ones. To search anew, give the "
                "study another name (name: in its file) or another --root",
            )

    @property
    def num_trials(self) -> int:
        """Fewer than were asked for, if the space holds no more."""
        return self._num_proposed() if self._found_nothing_new else self._search.num_trials

    def _num_proposed(self) -> int:
        trials = self._optuna.get_trials(deepcopy=False)
        return sum(map(counts, trials)) - len(self._forgotten())

    def _not_begun(self) -> list[PlannedTrial]:
        return [] if self._found_nothing_new else self._likely[self._num_proposed() :]

    def next(self, like: PlannedTrial | None = None) -> Assignment | None:
        if like is not None:
            return None  # one by one: a pruner may end a trial before the others
        for assignment in list(self._entered):
            if self._tell_known(assignment):
                self._entered.remove(assignment)
        return super().next()

    def num_ready(self, like: PlannedTrial) -> int:
        return 0

    def _next(self, like: PlannedTrial | None) -> Assignment | None:
        """A proposal that need not wait; some that must are kept for later."""
        in_a_row = refused = 0
        while self._not_begun() and len(self._entered) < self._look_ahead:
            proposed = self._optuna.get_trials(deepcopy=False)
            self._optuna.sampler = _sampler(self._search, len(proposed), at_random=_is_stuck(proposed))
            assignment = self._suggest(self._optuna.ask())
            if assignment is None:
                refused += 1
            elif self._tell_known(assignment):
                in_a_row += 1
            elif self._must_wait(assignment.planned):
                self._entered.append(assignment)
            else:
                return assignment
            if in_a_row == NOTHING_NEW or refused == MOST_REFUSED:
                self._found_nothing_new = True
                self._optuna.set_user_attr(EXHAUSTED, self._search.num_trials)
        return None

    def _tell_known(self, assignment: Assignment) -> bool:
        """Tell a trial that repeats an ended one how that one ended; whether it does repeat one."""
        key, forgotten = assignment.planned.key, self._forgotten()
        ended = [t for t in self._optuna.get_trials(deepcopy=False, states=ENDED) if counts(t)]
        alike = (t for t in ended if t.user_attrs.get("key") == key and t.number not in forgotten)
        known = next(alike, None)
        if known is None:
            return False
        trial = self._trial(assignment.number)
        trial.set_user_attr(DUPLICATE, known.number)
        trial.set_user_attr("reason", f"the same as trial {known.number}")
        self._tell(assignment.number, known.state, known.value)
        return True

    def should_prune(self, number: int, step: int, value: float) -> bool:
        if self._search.pruner == "none":
            return False
        trial = self._trial(number)
        trial.report(value, step)
        return bool(trial.should_prune())

    def ended(self) -> list[Ended]:
        return [ended for ended in super().ended() if ended.counts]

    def _suggest(self, trial: optuna.Trial) -> Assignment | None:
        """Draw what the trial lacks; what was drawn before a kill stays as it was.

        None for settings that cannot stand together: they are told as failed, and do not count.
        """
        level: dict[str, Any] = {}
        for path, space in self._search.space.items():
            if isinstance(space, Choice):
                index = trial.suggest_categorical(path, list(range(len(space.values))))
                level[path] = space.values[index]
            elif isinstance(space, Integer):
                level[path] = trial.suggest_int(path, space.low, space.high, log=space.log, step=space.step)
            else:
                level[path] = trial.suggest_float(path, space.low, space.high, log=space.log, step=space.step)
        try:
            planned = self._planner.plan(self.study.trial_at(level))
        except ConfigError as error:
            trial.set_user_attr(REFUSED, str(error))
            self.fail(trial.number, str(error))
            return None
        for name, value in {"point": level, "key": planned.key, **planned.trial.coordinates}.items():
            trial.set_user_attr(name, value)
        return Assignment(trial.number, planned)

    def planned_of(self, ended: Ended) -> PlannedTrial | None:
        return self._planner.plan(self.study.trial_at(ended.point)) if ended.point else None

    def known(self) -> list[PlannedTrial]:
        """Those that have ended, and those that were cut off or are kept for later.

        What a pruner ended is not gone on with: its checkpoint may go.
        """
        whole = [e for e in self.ended() if e.state != "pruned"]
        ended = [planned for e in whole if (planned := self.planned_of(e)) is not None]
        return [*ended, *(assignment.planned for assignment in self._entered)]


def open_ledger(
    study: Study,
    planner: Planner,
    url: str,
    *,
    store: Stages,
    work: Work = work_of,
    workers: int = 2,
    retry_failed: bool = False,
) -> Ledger:
    """The ledger of a study: of its grid, or of its search (where a failed point is not tried again)."""
    if isinstance(study, SearchStudy):
        return SearchLedger(study, planner, url, store=store, work=work, workers=workers)
    return GridLedger(study, planner, url, store=store, work=work, retry_failed=retry_failed)


def _is_stuck(proposed: Sequence[FrozenTrial]) -> bool:
    """Whether the last proposals were refused, one after the other: a sampler does not learn from these."""
    last = proposed[-STUCK:]
    return len(last) == STUCK and all(REFUSED in trial.user_attrs for trial in last)


def _sampler(search: Search, number: int, *, at_random: bool = False) -> BaseSampler:
    """Seeded by the trial's number: a search that is resumed proposes what it would have proposed."""
    seed = derive(search.seed, "sampler", number) % 2**32
    match "random" if at_random else search.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # mind what is running
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "qmc":
            # One scrambled sequence for all trials: its seed must not change with the number. Until a trial
            # has ended Optuna draws at random, which with that seed would be the same point for ever.
            first = optuna.samplers.RandomSampler(seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return optuna.samplers.QMCSampler(seed=search.seed, scramble=True, independent_sampler=first)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    match search.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED)
        case "successive_halving":
            return optuna.pruners.SuccessiveHalvingPruner()
        case "none":
            return optuna.pruners.NopPruner()
