"""What the data say of the paper's claims: `python analysis/claims.py [study ...]`.

Each claim that a study tests is supported, contradicted or inconclusive, at the scale of that study and no
other; with effects, 95 % intervals, and how many more replicates would decide. Printed, and written as CSV.

A claim is supported where all of its parts are, and contradicted where any is. A part is supported where its
p value, corrected by Holm's method for the claims that the study tests, is below 0.05: the largest p value of
its parts stands for a claim (all must hold), and the smallest, times their number, against it. `greater` is
supported where the difference is above its margin and contradicted where it is below; `equivalent` where it
lies within its margin, or beyond; `rising` where every step is up. `fewer_labels` goes by an interval alone.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.estimators import (
    Comparison,
    Interval,
    crossed_comparison,
    fold_comparison,
    holm,
    paired_comparison,
    pairs_to_decide,
)
from analysis.label_efficiency import NoCurves, label_reduction, study_curves
from analysis.predictions import Predictions
from analysis.stored import StoredStages
from workbench.places import Places
from workbench.study.claims import Claim, Equivalent, FewerLabels, Greater, Part, Rising, read_entered
from workbench.study.results import (
    StudyRecord,
    UnknownStudy,
    best_tuned,
    select_studies,
    studies,
    trial_table,
)

FloatArray = NDArray[np.float64]

ERROR_RATE = 0.05
ORDINALS = ("first", "second", "third", "fourth")
FOLD_OVERLAP = 1 / 3  # a test fold to the three of five that train: one more is for validation
SURE = 2.8  # standard errors at which a difference is found with 80 % power at 95 % confidence


class Ruling(enum.StrEnum):
    """What the data say of a claim, or of a part of it."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


class NotTested(ValueError):
    """A part that the study's trials cannot decide; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a study's trials say of one part of a claim.

    effect: of a difference, in the metric's unit (of its logarithm on that scale); of the smallest step, of
        `rising`; a share of the labels, of `fewer_labels`.
    p_support, p_contradict: corrected for all that the study tests; NaN where there is none.
    gap: the distance of the effect from what would settle it, in its unit; NaN where none is known.
    note: what the reader should know of it.
    """

    part: Part
    effect: Interval | None
    p_support: float = math.nan
    p_contradict: float = math.nan
    ruling: Ruling = Ruling.INCONCLUSIVE
    gap: float = math.nan
    note: str = ""

    @property
    def replicates_to_decide(self) -> int | None:
        """In all, for one comparison alone, if effect and noise stay as they are.

        None where that is not known, above 1,000, or where test clips and not replicates are too few.
        """
        if math.isnan(self.gap) or not isinstance(self.effect, Comparison) or math.isnan(self.effect.low):
            return None
        left = self.gap**2 - (SURE * self.effect.clip_error) ** 2
        return pairs_to_decide(math.sqrt(left), self.effect.deviation) if left > 0 else None


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
    before_runs: bool | None  # whether that was before the first of its runs; None: not known

    @property
    def ruling(self) -> Ruling:
        rulings = {evidence.ruling for evidence in self.evidence}
        if Ruling.CONTRADICTED in rulings:
            return Ruling.CONTRADICTED
        return Ruling.SUPPORTED if rulings == {Ruling.SUPPORTED} else Ruling.INCONCLUSIVE

    @property
    def replicates_to_decide(self) -> int | None:
        """In all, for every part that is open; None where that cannot be said."""
        needed = [e.replicates_to_decide for e in self.evidence if e.ruling is Ruling.INCONCLUSIVE]
        known = [n for n in needed if n is not None]
        return max(known) if known and len(known) == len(needed) else None


# Statistics: from arrays to rulings


def judge_greater(part: Greater, found: Comparison) -> Evidence:
    """By the difference of `of` less `than`."""
    p_value = found.p_against(part.margin)
    return _judged(
        part,
        found,
        p_support=_one_way(p_value, found.mean > part.margin),
        p_contradict=_one_way(p_value, found.mean < part.margin),
        gap=abs(found.mean - part.margin),
    )


def judge_equivalent(part: Equivalent, found: Comparison) -> Evidence:
    """By the difference of `of` less `than`."""
    end = math.copysign(part.margin, found.mean)
    return _judged(
        part,
        found,
        p_support=found.p_outside(part.margin),
        p_contradict=_one_way(found.p_against(end), abs(found.mean) > part.margin),
        gap=abs(abs(found.mean) - part.margin),
    )


def judge_rising(part: Rising, steps: Sequence[Comparison]) -> Evidence:
    """By the difference at every step to the next level: the least certain one decides for all.

    A test over all levels together, such as Page's, is significant where one step is large, whatever the
    others do.
    """
    judged = [
        judge_greater(Greater(of=(part.regime,), than=(part.regime,), margin=part.margin), step)
        for step in steps
    ]
    least = max(range(len(steps)), key=lambda i: np.nan_to_num(judged[i].p_support, nan=2.0))
    return replace(
        judged[least],
        part=part,
        p_contradict=min(1.0, len(steps) * min(one.p_contradict for one in judged)),
        note=f"step {least + 1} of {len(steps)}, the least certain",
    )


def _judged(part: Part, found: Comparison, *, p_support: float, p_contradict: float, gap: float) -> Evidence:
    if found.n > 1 and found.standard_error == 0:
        note = "all replicates have the same difference, which leaves their spread unknown"
        return Evidence(part=part, effect=found, note=note)
    return Evidence(part=part, effect=found, p_support=p_support, p_contradict=p_contradict, gap=gap)


def rule(claims: Sequence[Sequence[Evidence]]) -> list[tuple[Evidence, ...]]:
    """The evidence of all claims that one study tests, with corrected p values, and ruled on."""
    supports = [max((e.p_support for e in parts), default=math.nan) for parts in claims]
    supports = [
        math.nan if any(math.isnan(e.p_support) for e in parts) else found
        for parts, found in zip(claims, supports, strict=True)
    ]
    contradicts = [
        min(1.0, len(known) * min(known)) if known else math.nan
        for known in ([e.p_contradict for e in parts if not math.isnan(e.p_contradict)] for parts in claims)
    ]
    ruled = []
    factors = zip(claims, _factors(supports), _factors(contradicts), strict=True)
    for parts, support_factor, contradict_factor in factors:
        known = sum(not math.isnan(e.p_contradict) for e in parts)
        ruled.append(tuple(_ruled(e, support_factor, known * contradict_factor) for e in parts))
    return ruled


def _ruled(evidence: Evidence, support_factor: float, contradict_factor: float) -> Evidence:
    if math.isnan(evidence.p_support):
        return evidence  # by its interval, or not at all
    support = min(1.0, evidence.p_support * support_factor)
    contradict = min(1.0, evidence.p_contradict * contradict_factor)
    ruling = Ruling.INCONCLUSIVE
    if contradict < ERROR_RATE:
        ruling = Ruling.CONTRADICTED
    elif support < ERROR_RATE:
        ruling = Ruling.SUPPORTED
    return replace(evidence, p_support=support, p_contradict=contradict, ruling=ruling)


def _factors(p_values: Sequence[float]) -> list[float]:
    """By what Holm's method multiplies each; those that are NaN are no tests."""
    tested = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    factors = [float(max(1, len(tested)))] * len(p_values)
    if tested:
        for i, adjusted in zip(tested, holm([p_values[i] for i in tested]), strict=True):
            if 0 < adjusted < 1:
                factors[i] = float(adjusted) / p_values[i]
    return factors


def _one_way(p_value: float, is_that_way: bool) -> float:
    """A two-sided p value, for a finding in one direction."""
    return p_value if is_that_way or math.isnan(p_value) else 1.0


# A study's table


@dataclass
class Trials:
    """The finished trials of a study, each arm at its best tuned setting."""

    record: StudyRecord
    done: pd.DataFrame
    predictions: Predictions
    used: set[str] = field(default_factory=set)  # runs behind what was asked for

    def __post_init__(self) -> None:
        self.done = self.done.assign(fold=pd.to_numeric(self.done["fold"]).fillna(-1).astype(int))

    def levels(self, regime: str) -> list[Any]:
        """That the study has, finished or not; numbers rising, others in the order of the file."""
        if regime not in self.record.regimes:
            raise NotTested(f"the study has no regime {regime!r}; it has {', '.join(self.record.regimes)}")
        if len(self.record.axes) > 1:
            raise NotTested(f"the study varies more than one setting: {', '.join(self.record.axes)}")
        if not self.record.axes:
            return [None]
        levels = self.record.levels
        return sorted(levels) if all(map(_is_number, levels)) else levels

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


def _setting(base: dict[str, Any], path: str) -> Any:
    value: Any = base
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NotTested(f"the preset sets no {path}")
        value = value[name]
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


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
    notes = [f"{lacking} replicates lack a trial"] if lacking else []
    differences = pd.Series(scaled(values.to_numpy()) @ signs, index=values.index)
    clips = trials.predictions.shared_clips(key for arm in keys for key in arm)
    if clips is None:
        raise NotTested("predictions that it needs were deleted; the study's command makes them again")
    if len(differences) == 1:
        return paired_comparison([0.0], differences), "; ".join(notes)
    if (values.index.get_level_values("fold") >= 0).any():
        notes.append("test folds, whose training sets overlap, are the replicates")
        by_fold = differences.groupby(level="fold").mean()
        return fold_comparison(by_fold, FOLD_OVERLAP), "; ".join(notes)
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


def examine(trials: Trials, part: Part, table: pd.DataFrame) -> Evidence:
    """One part, before it is ruled on; a part that cannot be tested says why."""
    try:
        match part:
            case Greater():
                return _examine_greater(trials, part)
            case Equivalent():
                of, than = _sides(part, trials.resolve([*part.of, *part.than])[0])
                found, note = compare(trials, of, than)
                return _with_note(judge_equivalent(part, found), note)
            case Rising():
                levels = trials.levels(part.regime)
                if len(levels) < 3:
                    raise NotTested(f"to rise with every level takes three, here are {len(levels)}")
                found_at = [
                    compare(trials, [(part.regime, after)], [(part.regime, before)])
                    for before, after in itertools.pairwise(levels)
                ]
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
        p_support=min(1.0, len(judged) * surest.p_support),
        p_contradict=max(one.p_contradict for one in judged),
    )


def _sides(part: Greater | Equivalent, way: Sequence[tuple[str, Any]]) -> tuple[list[Any], list[Any]]:
    return list(way[: len(part.of)]), list(way[len(part.of) :])


def _any_of(part: Greater, way: Sequence[tuple[str, Any]]) -> Any:
    names = [*part.of, *part.than]
    return next(level for name, (_, level) in zip(names, way, strict=True) if name.endswith("/any"))


def _with_note(evidence: Evidence, note: str) -> Evidence:
    return replace(evidence, note="; ".join(filter(None, (evidence.note, note))))


def _examine_labels(trials: Trials, part: FewerLabels, table: pd.DataFrame) -> Evidence:
    record = trials.record
    try:
        curves = study_curves(record, table)
    except NoCurves as error:
        raise NotTested(str(error)) from None
    if {len(curves.scratch_labels), len(curves.pretrained_labels)} != {len(record.levels)}:
        raise NotTested("some label counts have no finished trial")
    trials.used |= set(trials.done["run_id"])
    found = label_reduction(
        curves.scratch_labels,
        curves.scratch,
        curves.pretrained_labels,
        curves.pretrained,
        share=part.share,
    )
    low, high = found.reduction_low, found.reduction_high
    ruling = Ruling.INCONCLUSIVE
    if low >= part.at_least:
        ruling = Ruling.SUPPORTED
    elif high < part.at_least:
        ruling = Ruling.CONTRADICTED
    notes = ["over replicates alone, and not corrected for other tests"]
    if found.reduction is None:
        notes.insert(0, f"{found.reach} within the label counts measured")
    if curves.left_out:
        notes.append(f"{len(curves.left_out)} replicates lack a trial")
    if (trials.done["fold"] >= 0).any():
        notes.append(
            "test folds, whose training sets overlap, count as independent: the interval is too narrow"
        )
    mean = math.nan if found.reduction is None else found.reduction
    effect = Interval(mean=mean, low=low, high=high, n=found.n)
    return Evidence(part=part, effect=effect, ruling=ruling, note="; ".join(notes))


def study_verdicts(record: StudyRecord, table: pd.DataFrame, predictions: Predictions) -> list[Verdict]:
    """On every claim that a study tests, and that was defined when it ran."""
    done = table[table.state == "complete"] if len(table) else table
    if not len(done) or record.search:  # what a search chose is no even sample
        return []
    best = best_tuned(record, done)
    claims = {name: read_entered(record.entered[name]) for name in record.claims if name in record.entered}
    found: list[list[Evidence]] = []
    used: list[tuple[str, ...]] = []
    for claim in claims.values():
        trials = Trials(record, best, predictions)
        found.append([examine(trials, part, table) for part in claim.parts])
        used.append(tuple(sorted(trials.used)))
    return [
        Verdict(
            claim_id=name,
            claim=claim,
            record=record,
            evidence=evidence,
            runs=runs,
            scale=scale_of(record, done),
            since=record.entered[name]["since"],
            changed=bool(record.entered[name]["earlier"]),
            before_runs=_set_before(record.entered[name]["since"], best[best["run_id"].isin(runs)]),
        )
        for (name, claim), evidence, runs in zip(claims.items(), rule(found), used, strict=True)
    ]


def _set_before(since: str, runs: pd.DataFrame) -> bool | None:
    """Whether a claim stood before the first of these runs began."""
    if "began" not in runs or not len(runs):
        return None
    return datetime.datetime.fromisoformat(since).timestamp() * 1000 <= float(runs["began"].min())


def scale_of(record: StudyRecord, done: pd.DataFrame) -> str:
    """In words, for a verdict holds at no other."""
    parts = [f"preset {record.preset}"]
    if "parameters" in done:
        parts.append(f"{done['parameters'].max() / 1e6:.2f} M parameters")
    if "labelled_clips" in done:
        parts.append(f"{done['labelled_clips'].max():,.0f} labelled clips")
    if "pool_hours" in done:
        parts.append(f"{done['pool_hours'].max():.1f} h of pre-training audio")
    return ", ".join(parts)


def all_verdicts(records: Sequence[StudyRecord], root: Path) -> list[Verdict]:
    """On every claim that these studies below `root` test."""
    stages = StoredStages(Places.read(root).store())
    found = []
    for record in records:
        table = trial_table(record, root)
        found += study_verdicts(record, table, Predictions(stages, record.metric))
    return found


# Words


def describe_part(part: Part) -> str:
    """What must be so."""
    match part:
        case Greater():
            sides = " + ".join(part.of), " + ".join(part.than)
            logs = ", in logarithms" if part.scale == "log" else ""
            more = f" by more than {part.margin:g}" if part.margin > 0 else ""
            less = f" - {-part.margin:g}" if part.margin < 0 else ""
            return f"{sides[0]} > {sides[1]}{less}{more}{logs}"
        case Equivalent():
            return f"{' + '.join(part.of)} = {' + '.join(part.than)} within {part.margin:g}"
        case Rising():
            more = f" by more than {part.margin:g}" if part.margin else ""
            return f"{part.regime} rises with every level{more}"
        case FewerLabels():
            return f"{part.at_least:.0%} fewer labels or more, at {part.share:.0%} of scratch's score"


def describe_effect(evidence: Evidence) -> str:
    """Estimate and interval."""
    effect = evidence.effect
    if effect is None:
        return "-"
    form = ".0%" if isinstance(evidence.part, FewerLabels) else "+.3f"
    text = "-" if math.isnan(effect.mean) else format(effect.mean, form)
    if math.isnan(effect.low):
        return f"{text} (no interval)"
    low, high = ("no bound" if math.isinf(end) else format(end, form) for end in (effect.low, effect.high))
    return f"{text} ({low} to {high})"


def describe_need(verdict: Verdict) -> str:
    """How many replicates would decide what is open; empty where that cannot be said."""
    if verdict.ruling is not Ruling.INCONCLUSIVE:
        return ""
    needed = verdict.replicates_to_decide
    have = max((e.effect.n for e in verdict.evidence if e.effect is not None), default=0)
    if needed is None:
        return ""
    if needed <= have:
        return f"By their noise {have} replicates would decide it, were it the study's only test"
    return (
        f"About {needed - have} more replicates would decide each part alone, if effects and noise stay as "
        "they are"
    )


def describe_setting(verdict: Verdict) -> str:
    """Since when the claim has stood as it does, and whether that was before the runs."""
    day = verdict.since[:10]
    when = {True: ", before its runs", False: ", after the first of its runs", None: ""}[verdict.before_runs]
    return f"set on {day}{when}{'; changed since it was first set' if verdict.changed else ''}"


def describe(verdict: Verdict) -> str:
    lines = [
        f"{verdict.claim_id} ({verdict.claim.where}): {verdict.ruling.upper()}",
        f"  {verdict.claim.says}",
        *([f"  tested as: {verdict.claim.tested_as}"] if verdict.claim.tested_as else []),
        f"  at this scale: {verdict.scale}; {describe_setting(verdict)}",
    ]
    for evidence in verdict.evidence:
        line = f"  - {evidence.ruling}: {describe_part(evidence.part)}: {describe_effect(evidence)}"
        line += f", n = {evidence.effect.n}" if evidence.effect else ""
        lines.append(line + (f" [{evidence.note}]" if evidence.note else ""))
    need = describe_need(verdict)
    return "\n".join([*lines, f"  {need}"] if need else lines)


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row a part."""
    rows = []
    for verdict in verdicts:
        for evidence in verdict.evidence:
            effect = evidence.effect
            rows.append(
                {
                    "study": verdict.record.id,
                    "claim": verdict.claim_id,
                    "verdict": str(verdict.ruling),
                    "part": describe_part(evidence.part),
                    "part_verdict": str(evidence.ruling),
                    "effect": effect.mean if effect else math.nan,
                    "low": effect.low if effect else math.nan,
                    "high": effect.high if effect else math.nan,
                    "n": effect.n if effect else 0,
                    "p_support": evidence.p_support,
                    "p_contradict": evidence.p_contradict,
                    "replicates_to_decide": evidence.replicates_to_decide,
                    "note": evidence.note,
                    "scale": verdict.scale,
                    "set_on": verdict.since,
                    "set_before_runs": verdict.before_runs,
                    "digest": verdict.record.entered[verdict.claim_id]["digest"],
                    "runs": " ".join(verdict.runs),
                }
            )
    return pd.DataFrame(rows)


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when there was a verdict, of whatever kind; 2 when there was nothing to judge."""
    options = _parser().parse_args(arguments)
    try:
        records = select_studies(studies(options.root), options.studies, options.root)
    except UnknownStudy as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = all_verdicts(records, options.root)
    if not verdicts:
        print(
            f"no finished study below {options.root} tests a claim; run one first: make study",
            file=sys.stderr,
        )
        return 2
    study = ""
    for verdict in verdicts:
        if verdict.record.id != study:
            study = verdict.record.id
            print(f"{study}: {verdict.record.question}\n")
        print(describe(verdict), end="\n\n")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "claims.csv"
    verdict_table(verdicts).to_csv(path, index=False)
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Say what the data say of the paper's claims.")
    parser.add_argument("studies", nargs="*", help="names or ids; every study if none is given")
    parser.add_argument("--root", type=Path, default=Path("mlruns"), help="default: mlruns")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="default: figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
