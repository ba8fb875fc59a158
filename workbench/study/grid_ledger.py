"""The ledger of a grid: a trial carries its place in the study and its key as attributes."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from workbench.study.definition import GridStudy
from workbench.study.ledger import Assignment, Ledger, Stages, Work
from workbench.study.plan import PlannedTrial, Planner, most_urgent, work_of
from workbench.study.trial_storage import Ended


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
        attributes = {"key": planned.key, **planned.trial.coordinates}
        frozen = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        return self._entered_whole(frozen, planned)

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
