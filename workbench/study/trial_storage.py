"""How trials ended, as Optuna's storage has it: the truth that a study goes on from."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from workbench.study.definition import SearchStudy, Study

optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what is wrong is raised, and told once
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds; for a host that does not answer, else minutes

LEDGER_ERRORS = (StorageInternalError, SQLAlchemyError)  # a storage that cannot be read or written
FORGOTTEN = "forgotten"  # numbers of ended trials that count no longer
EXHAUSTED = "exhausted"  # num_trials of a search that found nothing new any more
DUPLICATE = "duplicate_of"  # of a search's trial that repeats another: that one's number
REFUSED = "refused"  # of a search's trial whose settings cannot stand together: why
FAILED_STAGE = "failed_stage"  # the key of the stage that a failed trial was at
HANDED_OUT = "handed_out"  # when a worker was last given the trial; it may have waited, or been stopped
TRIALS_A_SETTING = 2  # complete ones that a search has at least for each, where its importance is told
ENDED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


@dataclass(frozen=True)
class Ended:
    """A trial that has ended, as the storage has it."""

    number: int
    key: str
    state: str  # "complete", "failed", "pruned"
    reason: str
    began: datetime.datetime
    finished: datetime.datetime
    point: dict[str, Any] | None = None  # of a search's space
    counts: bool = True  # not so a search's trial that repeats another, or that could not be
    value: float = -math.inf  # the validation score, of a complete trial
    failed_stage: str | None = None  # the key of the stage that a failed trial was at


def ended_trials(study: Study, url: str) -> list[Ended]:
    """Those of a study that may never have been run; nothing is created to find out."""
    known = _known(study.id, url)
    if known is None:
        return []
    forgotten = known.user_attrs.get(FORGOTTEN, ())
    ended = map(ended_of, known.get_trials(deepcopy=False, states=ENDED))
    return [trial for trial in ended if trial.number not in forgotten and trial.counts]


def is_exhausted(study: SearchStudy, url: str) -> bool:
    """Whether a search found nothing new any more before it had as many trials as it asks for."""
    known = _known(study.id, url)
    return known is not None and bool(known.user_attrs.get(EXHAUSTED) == study.search.num_trials)


def _known(study_id: str, url: str) -> optuna.Study | None:
    """What the storage has of it; nothing is created to find out."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None
    if not sqlalchemy.inspect(sqlalchemy.create_engine(url, poolclass=NullPool)).has_table("studies"):
        return None
    try:
        return optuna.load_study(study_name=study_id, storage=open_storage(url))
    except KeyError:
        return None


def importances(study_id: str, url: str) -> dict[str, float]:
    """Share of the validation score's variance that each setting of a search explains, by fANOVA.

    Of its complete trials; empty for fewer than `TRIALS_A_SETTING` for each setting, where all scores are the
    same, or where the storage does not have the search (results that were copied without it).
    """
    known = _known(study_id, url)
    if known is None:
        return {}
    complete = [t for t in known.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if counts(t)]
    settings = {name for trial in complete for name in trial.params}
    if len(complete) < TRIALS_A_SETTING * len(settings) or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {name: float(share) for name, share in evaluator.evaluate(known).items()}


def best_of(ended: Iterable[Ended]) -> Ended | None:
    """A search's winner: of the complete trials the one with the best validation score, or the first such."""
    complete = [trial for trial in ended if trial.state == "complete" and trial.counts]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def first_line(error: BaseException) -> str:
    """What an error of a database says, without its statement; Optuna hides it behind one of its own."""
    if isinstance(error, LEDGER_ERRORS) and error.__cause__ is not None:
        return first_line(error.__cause__)
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """What is at the end of a traceback that stands for an error."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's, in a file or on a server."""
    # Hours may lie between two trials: a server's connection that was cut meanwhile is replaced.
    options = {} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def ended_of(frozen: FrozenTrial) -> Ended:
    """Of a trial that has ended."""
    assert frozen.datetime_start is not None
    assert frozen.datetime_complete is not None
    handed_out = frozen.user_attrs.get(HANDED_OUT)
    return Ended(
        number=frozen.number,
        key=frozen.user_attrs.get("key", ""),
        state={"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}[frozen.state.name],
        reason=frozen.user_attrs.get("reason", ""),
        began=frozen.datetime_start if handed_out is None else datetime.datetime.fromisoformat(handed_out),
        finished=frozen.datetime_complete,
        point=frozen.user_attrs.get("point"),
        counts=counts(frozen),
        value=-math.inf if frozen.value is None else frozen.value,
        failed_stage=frozen.user_attrs.get(FAILED_STAGE),
    )


def counts(frozen: FrozenTrial) -> bool:
    """Whether it is a trial of its own: no repetition of another, and one that could be run."""
    return not {DUPLICATE, REFUSED} & frozen.user_attrs.keys()
