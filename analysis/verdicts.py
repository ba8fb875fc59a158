"""A study's verdicts on its claims: on which trials they rest, at which scale, and set when."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.completeness import Completeness
from analysis.contrasts import Trials
from analysis.examination import examine
from analysis.plot_ablation import arm_name
from analysis.predictions import Predictions
from analysis.rulings import Evidence, Ruling, rule
from workbench.settings import ConfigError
from workbench.study.claims import Claim, read_entered
from workbench.study.record import StudyRecord
from workbench.study.results import arms, best_tuned, settings_tried


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one claim, by one study."""

    claim_id: str
    claim: Claim
    record: StudyRecord
    evidence: tuple[Evidence, ...]
    runs: tuple[str, ...]  # of MLflow, that it rests on
    scale: str  # of what was run
    since: str  # when the study was first run with the claim as it stands, ISO 8601
    changed: bool  # whether it stood otherwise before
    before_runs: bool | None  # whether that was before the first of its runs was judged; None: not known
    trials_since: str | None = None  # since when its trials are those that were planned; None: not known
    trials_changed: bool = False  # whether others were planned before
    trials_before_runs: bool | None = None  # as before_runs
    note: str = ""  # what is lacking in the study that it rests on

    @property
    def ruling(self) -> Ruling:
        rulings = {evidence.ruling for evidence in self.evidence}
        if Ruling.CONTRADICTED in rulings:
            return Ruling.CONTRADICTED
        return Ruling.SUPPORTED if rulings == {Ruling.SUPPORTED} else Ruling.INCONCLUSIVE

    @property
    def need(self) -> str:
        """How many more seeds would decide it, or why no number would; empty where it is decided."""
        deciding = self._deciding
        if deciding is None:
            return ""
        why = ""
        if deciding.leans_against and deciding.replicates_to_decide is not None:
            why = ", by which one part would be contradicted"
        elif len(self.evidence) > 1:
            why = ", of the part that takes most, for all must hold"
        return f"To decide it, if effects and noise stay as they are: {deciding.need}{why}"

    @property
    def replicates_to_decide(self) -> int | None:
        """In all; None where it is decided, or no number would."""
        return None if self._deciding is None else self._deciding.replicates_to_decide

    @property
    def _deciding(self) -> Evidence | None:
        """The easiest of the parts that fail, for one is enough; else the hardest, for none may stay open."""
        if self.ruling is not Ruling.INCONCLUSIVE:
            return None
        open_parts = [e for e in self.evidence if e.ruling is Ruling.INCONCLUSIVE]
        against = [e for e in open_parts if e.leans_against and e.replicates_to_decide is not None]
        if against:
            return min(against, key=_replicates)
        return max(open_parts, key=_replicates)


def _replicates(evidence: Evidence) -> float:
    return math.inf if evidence.replicates_to_decide is None else evidence.replicates_to_decide


def study_verdicts(record: StudyRecord, table: pd.DataFrame, predictions: Predictions) -> list[Verdict]:
    """On every claim that a study tests, and that was defined when it ran."""
    done = table[table.state == "complete"] if len(table) else table
    if not len(done) or record.search:  # what a search chose is no even sample
        return []
    best = best_tuned(record, done)
    claims, _ = claims_of(record)
    found: list[list[Evidence]] = []
    used: list[set[str]] = []
    for claim in claims.values():
        trials = Trials(record, best, predictions)
        found.append([examine(trials, part, table) for part in claim.parts])
        used.append(trials.used)
    return [
        _verdict(record, table, predictions, name, claim, evidence, best[best["run_id"].isin(runs)])
        for (name, claim), evidence, runs in zip(claims.items(), rule(found), used, strict=True)
    ]


def _verdict(
    record: StudyRecord,
    table: pd.DataFrame,
    predictions: Predictions,
    claim_id: str,
    claim: Claim,
    evidence: tuple[Evidence, ...],
    rests_on: pd.DataFrame,
) -> Verdict:
    done = table[table.state == "complete"]
    entry = record.entered[claim_id]
    trials = entry.get("trials", {"since": None, "earlier": []})  # which older studies did not keep
    # What an arm has tried and not chosen was seen, too.
    seen = done.merge(rests_on[arms(record)].drop_duplicates()) if record.tuned else rests_on
    computed = [predictions.computed(key) for key in seen["key"]]
    return Verdict(
        claim_id=claim_id,
        claim=claim,
        record=record,
        evidence=evidence,
        runs=tuple(sorted(rests_on["run_id"])),
        scale=scale_of(record, rests_on if len(rests_on) else done),
        since=entry["since"],
        changed=bool(entry["earlier"]),
        before_runs=_set_before(entry["since"], computed),
        trials_since=trials["since"],
        trials_changed=bool(trials["earlier"]),
        trials_before_runs=_set_before(trials["since"], computed),
        note="; ".join(
            filter(None, (_missing_trials(record, table), _uneven_budgets(record, done, rests_on)))
        ),
    )


def _missing_trials(record: StudyRecord, table: pd.DataFrame) -> str:
    completeness = Completeness.of(record, table)
    return "" if completeness.is_whole else str(completeness)


def _uneven_budgets(record: StudyRecord, done: pd.DataFrame, used: pd.DataFrame) -> str:
    """Which of the arms in use have tried fewer settings than others; empty where all have tried as many."""
    if not record.tuned:
        return ""
    tried = settings_tried(record, done.merge(used[arms(record)].drop_duplicates()))
    if len({*tried.values()}) < 2:
        return ""
    counts = ", ".join(f"{arm_name(record, arm)} {count}" for arm, count in tried.items())
    return f"arms differ in how many settings they have tried: {counts}"


def claims_of(record: StudyRecord) -> tuple[dict[str, Claim], list[str]]:
    """Those that a study tests, as they were when it was last run; and of others why they cannot be read."""
    claims, unread = {}, []
    for name in record.claims:
        if name in record.entered:
            try:
                claims[name] = read_entered(name, record.entered[name])
            except ConfigError as error:
                unread.append(f"{record.id}: left out: {error}")
    return claims, unread


def _set_before(since: str | None, computed: Sequence[datetime.datetime | None]) -> bool | None:
    """Whether what stands since then did before the first of its runs was judged, by whatever study."""
    known = [moment for moment in computed if moment is not None]
    if since is None or not known or len(known) < len(computed):
        return None
    return datetime.datetime.fromisoformat(since) <= min(known)


def scale_of(record: StudyRecord, done: pd.DataFrame) -> str:
    """In words, for a verdict holds at no other. `done` are the trials that it rests on."""
    parts = [f"preset {record.preset}", f"data {data_name(record)}"]
    if "parameters" in done:
        parts.append(f"{_range_of(done['parameters'] / 1e6, '.2f')} M parameters")
    if "labelled_clips" in done:
        parts.append(f"{_range_of(done['labelled_clips'], ',.0f')} labelled clips")
    if "pool_hours" in done:
        parts.append(f"{_range_of(done['pool_hours'], '.1f')} h of pre-training audio")
    return ", ".join(parts)


def _range_of(values: pd.Series, form: str) -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def data_name(record: StudyRecord) -> str:
    """Of the labelled data before regimes and levels: kind and subset, such as "esc50 esc10", or folder."""
    data = record.base.get("data", {})
    parts = [data.get("kind", "unknown"), data.get("subset")]
    if data.get("kind") == "folder":
        parts.append(data.get("root"))
    return " ".join(str(part) for part in parts if part)
