"""From a study's finished trials to verdicts on its claims: which arms, which runs, at which scale."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.completeness import Completeness
from analysis.estimators import Comparison, crossed_comparison, paired_comparison
from analysis.label_curves import PRETRAINED, SCRATCH, Curves, NoCurves, study_curves
from analysis.label_reduction import LabelReduction, label_reduction
from analysis.needs import Saving
from analysis.plot_ablation import arm_name, is_number
from analysis.predictions import Predictions
from analysis.replicates import by_replicate, with_fold_numbers
from analysis.rulings import Evidence, Ruling, judge_equivalent, judge_greater, judge_rising, rule
from analysis.words import counted
from workbench.settings import ConfigError
from workbench.study.claims import Claim, Equivalent, FewerLabels, Greater, Part, Rising, read_entered
from workbench.study.results import StudyRecord, arms, best_tuned, settings_tried

OF_FOLDS = "test folds, whose training sets overlap, are the replicates"
Contrast = tuple[list[tuple[str, Any]], list[tuple[str, Any]]]  # (regime, level) of either side
ORDINALS = ("first", "second", "third", "fourth")


class NotTested(ValueError):
    """A part that the study's trials cannot decide; the message says why."""


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


@dataclass
class Trials:
    """The finished trials of a study, each arm at its best tuned setting."""

    record: StudyRecord
    done: pd.DataFrame
    predictions: Predictions
    used: set[str] = field(default_factory=set)  # runs behind what was asked for

    def __post_init__(self) -> None:
        self.done = with_fold_numbers(self.done)

    def levels(self, regime: str) -> list[Any]:
        """That the study has, finished or not; numbers rising, others in the order of the file."""
        if regime not in self.record.regimes:
            raise NotTested(f"the study has no regime {regime!r}; it has {', '.join(self.record.regimes)}")
        if self.record.axes and not self.record.levels:
            raise NotTested("the study's levels were not kept; its command keeps them")
        if len(self.record.axes) > 1:
            raise NotTested(f"the study varies more than one setting: {', '.join(self.record.axes)}")
        return ordered_levels(self.record)

    def scores(self, arms_of_part: Sequence[tuple[str, Any]]) -> tuple[pd.DataFrame, list[list[str]], int]:
        """Test scores of the replicates that have all arms, a column an arm; keys; how many lack one."""
        metric = f"test/{self.record.metric}"
        columns = []
        for regime, level in arms_of_part:
            rows = self.done[(self.done["regime"] == regime) & self.done[metric].notna()]
            if self.record.axes:
                rows = rows[rows[self.record.axes[0]] == level]
            if not len(rows):
                raise NotTested(f"no trial of {regime}{'' if level is None else f'/{level}'} has finished")
            columns.append(rows.set_index(["seed", "fold"]))
        complete = every = columns[0].index
        for rows in columns[1:]:
            complete, every = complete.intersection(rows.index), every.union(rows.index)
        if not len(complete):
            raise NotTested("no replicate has finished in all of its arms")
        shown = [rows.loc[complete] for rows in columns]
        self.used |= {run for rows in shown for run in rows["run_id"]}
        values = pd.DataFrame({i: rows[metric] for i, rows in enumerate(shown)}, index=complete)
        return values, [list(rows["key"]) for rows in shown], len(every) - len(complete)

    def resolve(self, names: Sequence[str]) -> list[list[tuple[str, Any]]]:
        """(regime, level) of each `regime/level`, in every way that `any` may be read. Raises NotTested."""
        split = [name.partition("/")[::2] for name in names]
        found = [None if word == "any" else self._level(regime, word) for regime, word in split]
        open_regimes = {regime for regime, word in split if word == "any"}
        if not open_regimes:
            return [[(regime, level) for (regime, _), level in zip(split, found, strict=True)]]
        named = [level for (_, word), level in zip(split, found, strict=True) if word != "any"]
        free = [level for level in self.levels(min(open_regimes)) if level not in named]
        if not free:
            raise NotTested("there is no further level")
        return [
            [
                (regime, level if word == "any" else own)
                for (regime, word), own in zip(split, found, strict=True)
            ]
            for level in free
        ]

    def _level(self, regime: str, word: str) -> Any:
        levels = self.levels(regime)
        if not word:
            if levels != [None]:
                raise NotTested(f"{regime} has several levels")
            return None
        if word == "last":
            return levels[-1]
        if word in ORDINALS:
            place = ORDINALS.index(word)
            if place >= len(levels):
                raise NotTested(f"{regime} has {len(levels)} levels and no {word}")
            return levels[place]
        if word == "base":
            if not self.record.axes:
                raise NotTested("the study varies no setting")
            value = _setting(self.record.base, self.record.axes[0])
            if value not in levels:
                raise NotTested(f"the preset's own {self.record.axes[0]}, {value}, is not among the levels")
            return value
        by_text = {str(level).lower(): level for level in levels}
        if word.lower() not in by_text:
            raise NotTested(f"{regime} has no level {word!r}; it has {', '.join(map(str, levels))}")
        return by_text[word.lower()]


def ordered_levels(record: StudyRecord) -> list[Any]:
    """In the order that `first` and `last` go by."""
    if not record.axes:
        return [None]
    return sorted(record.levels) if all(map(is_number, record.levels)) else record.levels


def level_words(record: StudyRecord) -> str:
    """What a claim's words for levels stand for in a study, such as "2 (first), 3 (second, base)"."""
    if len(record.axes) != 1 or not record.levels:
        return ""
    levels = ordered_levels(record)
    words = dict(zip(map(repr, levels), ([word] for word in ORDINALS), strict=False))
    words.setdefault(repr(levels[-1]), []).append("last")
    with contextlib.suppress(NotTested):
        words.setdefault(repr(_setting(record.base, record.axes[0])), []).append("base")
    return ", ".join(f"{level} ({', '.join(words.get(repr(level), ['-']))})" for level in levels)


def _setting(base: dict[str, Any], path: str) -> Any:
    value: Any = base
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NotTested(f"the preset sets no {path}")
        value = value[name]
    return value


def compare(
    trials: Trials,
    of: Sequence[tuple[str, Any]],
    than: Sequence[tuple[str, Any]],
    scale: str = "score",
) -> tuple[Comparison, str]:
    """The scores of `of`, summed, less those of `than`; and what the reader should know.

    Over replicates, and over test clips where all were judged on the same. Test folds are replicates of each
    other, with their seeds averaged. Raises NotTested.
    """
    if sorted(map(repr, of)) == sorted(map(repr, than)):
        raise NotTested("both sides are the same arm")
    values, keys, lacking = trials.scores([*of, *than])
    if scale == "log" and (values <= 0).to_numpy().any():
        raise NotTested("a score of 0 has no logarithm")
    signs = np.array([1.0] * len(of) + [-1.0] * len(than))
    scaled: Callable[[Any], Any] = np.log if scale == "log" else np.asarray
    notes = [lacking_words(lacking)] if lacking else []
    differences = pd.Series(scaled(values.to_numpy()) @ signs, index=values.index)
    clips = trials.predictions.shared_clips(key for arm in keys for key in arm)
    if clips is None:
        raise NotTested("predictions that it needs were deleted; the study's command makes them again")
    if len(differences) == 1:
        return paired_comparison([0.0], differences), "; ".join(notes)
    differences, overlap = by_replicate(differences)
    if overlap:
        notes.append(OF_FOLDS)
        found = paired_comparison(np.zeros(len(differences)), differences, overlap=overlap)
        return found, "; ".join(notes)
    if not clips:
        notes.append("over replicates alone: each has its own test clips")
        return paired_comparison(np.zeros(len(differences)), differences), "; ".join(notes)
    redrawn = np.stack(
        [
            sum(
                sign * scaled(trials.predictions.resampled(arm[r]))
                for sign, arm in zip(signs, keys, strict=True)
            )
            for r in range(len(differences))
        ],
        axis=1,
    )
    return crossed_comparison(differences, redrawn, clips), "; ".join(notes)


def lacking_words(count: int) -> str:
    return f"{counted(count, 'replicate')} {'lacks' if count == 1 else 'lack'} a trial"


def contrasts(trials: Trials, part: Part) -> list[Contrast]:
    """The arms of each difference that a part is about. Raises NotTested."""
    match part:
        case Greater() | Equivalent():
            return [_sides(part, way) for way in trials.resolve([*part.of, *part.than])]
        case Rising():
            steps = itertools.pairwise(trials.levels(part.regime))
            return [([(part.regime, after)], [(part.regime, before)]) for before, after in steps]
        case FewerLabels():
            levels = trials.levels(PRETRAINED)
            return [([(PRETRAINED, level)], [(SCRATCH, level)]) for level in levels]


def examine(trials: Trials, part: Part, table: pd.DataFrame) -> Evidence:
    """One part, before it is ruled on; a part that cannot be tested says why."""
    try:
        match part:
            case Greater():
                return _examine_greater(trials, part)
            case Equivalent():
                found, note = compare(trials, *contrasts(trials, part)[0])
                return _with_note(judge_equivalent(part, found), note)
            case Rising():
                levels = trials.levels(part.regime)
                if len(levels) < 3:
                    raise NotTested(f"to rise with every level takes three, here are {len(levels)}")
                found_at = [compare(trials, of, than) for of, than in contrasts(trials, part)]
                notes = "; ".join(dict.fromkeys(note for _, note in found_at if note))
                return _with_note(judge_rising(part, [found for found, _ in found_at]), notes)
            case FewerLabels():
                return _examine_labels(trials, part, table)
    except ValueError as error:  # NotTested, or figures that an estimator refuses
        return Evidence(part=part, effect=None, note=f"not tested: {error}")


def _examine_greater(trials: Trials, part: Greater) -> Evidence:
    """Of several levels that `any` may be, the surest, corrected for their number; all must fall short."""
    judged = []
    ways = trials.resolve([*part.of, *part.than])
    for way in ways:
        of, than = _sides(part, way)
        found, note = compare(trials, of, than, part.scale)
        chosen = f"any: {_any_of(part, way)}, of {len(ways)}" if len(ways) > 1 else ""
        judged.append(_with_note(judge_greater(part, found), "; ".join(filter(None, (chosen, note)))))
    surest = min(judged, key=lambda one: np.nan_to_num(one.p_support, nan=2.0))
    if len(judged) == 1 or math.isnan(surest.p_support):
        return surest
    return replace(
        surest,
        correction=len(judged),
        p_support=min(1.0, len(judged) * surest.p_support),
        p_contradict=float(np.max([one.p_contradict for one in judged])),  # NaN: one was not tested
    )


def _sides(part: Greater | Equivalent, way: Sequence[tuple[str, Any]]) -> Contrast:
    return list(way[: len(part.of)]), list(way[len(part.of) :])


def _any_of(part: Greater, way: Sequence[tuple[str, Any]]) -> Any:
    names = [*part.of, *part.than]
    return next(level for name, (_, level) in zip(names, way, strict=True) if name.endswith("/any"))


def _with_note(evidence: Evidence, note: str) -> Evidence:
    return replace(evidence, note="; ".join(filter(None, (evidence.note, note))))


def _examine_labels(trials: Trials, part: FewerLabels, table: pd.DataFrame) -> Evidence:
    record = trials.record
    try:
        curves = study_curves(record, table, trials.predictions)
    except NoCurves as error:
        raise NotTested(str(error)) from None
    if {len(curves.scratch_labels), len(curves.pretrained_labels)} != {len(record.levels)}:
        raise NotTested("some label counts have no finished trial")
    trials.used |= set(trials.done["run_id"])
    found, by_replicates = (
        label_reduction(
            curves.scratch_labels,
            curves.scratch,
            curves.pretrained_labels,
            curves.pretrained,
            share=part.share,
            overlap=curves.overlap,
            draws=draws,
        )
        for draws in (curves.draws, None)
    )
    low, high = found.reduction_low, found.reduction_high
    ruling = Ruling.INCONCLUSIVE
    if low >= part.at_least:
        ruling = Ruling.SUPPORTED
    elif high < part.at_least:
        ruling = Ruling.CONTRADICTED
    notes = [f"over {curves.over}; not corrected for other tests"]
    if found.reduction is None:
        notes.insert(0, f"{found.reach} within the label counts measured")
    if curves.left_out:
        notes.append(lacking_words(len(curves.left_out)))
    return Evidence(
        part=part,
        effect=_saving(found, by_replicates, part.at_least, curves),
        ruling=ruling,
        gap=math.nan if found.reduction is None else abs(found.reduction - part.at_least),
        note="; ".join(notes),
    )


def _saving(found: LabelReduction, by_replicates: LabelReduction, at_least: float, curves: Curves) -> Saving:
    of_both, of_replicates = _half_width(found, at_least), _half_width(by_replicates, at_least)
    of_clips = math.inf if of_both == math.inf else math.sqrt(max(0.0, of_both**2 - of_replicates**2))
    return Saving(
        mean=math.nan if found.reduction is None else found.reduction,
        low=found.reduction_low,
        high=found.reduction_high,
        n=found.n,
        by_replicates=of_replicates,
        by_clips=of_clips,
        clips=curves.draws.clips if curves.draws else 0,
        overlap=curves.overlap,
    )


def _half_width(found: LabelReduction, at_least: float) -> float:
    """On the side of what is asked for; infinite where the label counts do not bound it."""
    mean = found.reduction
    if mean is None or (found.labels_low == 0 and mean < at_least):
        return math.inf
    return mean - found.reduction_low if mean >= at_least else found.reduction_high - mean


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
