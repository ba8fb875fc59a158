"""The ledger of a search: Optuna's samplers propose its trials, and a trial carries its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from workbench.random_streams import derive
from workbench.settings import ConfigError
from workbench.study.definition import MOST_REFUSED, UNPRUNED, SearchStudy
from workbench.study.ledger import Assignment, Ledger, Stages, Work
from workbench.study.plan import PlannedTrial, Planner, work_of
from workbench.study.search import Choice, Integer, Search
from workbench.study.trial_storage import DUPLICATE, ENDED, EXHAUSTED, REFUSED, Ended, counts

LOOK_AHEAD = 2  # trials, for each worker, that a search may propose while they wait for a stage
STUCK = 10  # refused proposals in a row after which a search draws at random
NOTHING_NEW = 100  # proposals in a row that were all tried before end a search


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
        retry_failed: bool = False,
    ) -> None:
        """`workers` are as many as there will be trials at once; `retry_failed` tries failed points again."""
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
        if retry_failed:
            for ended in self.ended():
                if ended.state == "failed":
                    self._entered.append(self._again(ended))

    def _again(self, ended: Ended) -> Assignment:
        """A new running trial at the same point, in the place of that one."""
        planned = self.planned_of(ended)
        assert planned is not None, "searches of other scores are refused"
        before = self._optuna.get_trials(deepcopy=False)[ended.number]
        frozen = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=before.params,
            distributions=before.distributions,
            user_attrs=_attributes(planned),
        )
        assignment = self._entered_whole(frozen, planned)
        self.forget(ended.number)  # only now: a kill in between leaves both, and the new one is a repetition
        return assignment

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
        for name, value in _attributes(planned).items():
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


def _attributes(planned: PlannedTrial) -> dict[str, Any]:
    """Of the trial in the storage."""
    return {"point": planned.trial.level, "key": planned.key, **planned.trial.coordinates}


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
