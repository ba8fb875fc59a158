"""What the data say of the paper's claims: `python analysis/claims.py [study ...]`.

Each claim that a study tests is supported, contradicted or inconclusive, at the scale of that study and no
other; with effects, 95 % intervals, and how many more replicates would decide. Printed, and written as CSV.

A part is decided by p values that Holm's method corrects for all parts that the study tests. `greater` is
supported where the difference is above 0, and contradicted where it is below the margin (a real one that is
too small to matter is no support); `equivalent` where it lies within, or beyond, the margin; `rising` where
Page's test rises without a step back, or where the slope is below the margin. A claim is supported where all
of its parts are, and contradicted where any is.
"""

from __future__ import annotations

import argparse
import enum
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
    holm,
    monotonic_trend,
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

    effect: of a difference, in the metric's unit (of its logarithm on that scale); a level, of `rising`; a
        share of the labels, of `fewer_labels`.
    p_support, p_contradict: corrected for the parts of the study; NaN where the interval alone decides.
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
        """In all, if effect and noise stay as they are; None where that is not known, or above 1,000."""
        if math.isnan(self.gap) or not isinstance(self.effect, Comparison) or math.isnan(self.effect.low):
            return None
        return pairs_to_decide(self.gap, self.effect.deviation)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one claim, by one study."""

    claim_id: str
    claim: Claim
    record: StudyRecord
    evidence: tuple[Evidence, ...]
    runs: tuple[str, ...]  # of MLflow, that it rests on
    scale: str  # of what was run
    since: str  # when the study was first run with the claim as it stands
    changed: bool  # whether it was run with another wording before

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
    return Evidence(
        part=part,
        effect=found,
        p_support=_one_way(found.p_value, found.mean > 0),
        p_contradict=_one_way(found.p_against(part.margin), found.mean < part.margin),
        gap=max(found.mean, part.margin - found.mean),
    )


def judge_equivalent(part: Equivalent, found: Comparison) -> Evidence:
    """By the difference of `of` less `than`."""
    end = math.copysign(part.margin, found.mean)
    return Evidence(
        part=part,
        effect=found,
        p_support=found.p_outside(part.margin),
        p_contradict=_one_way(found.p_against(end), abs(found.mean) > part.margin),
        gap=abs(abs(found.mean) - part.margin),
    )


def judge_rising(part: Rising, scores: FloatArray) -> Evidence:
    """By `scores` (n, levels). Raises NotTested for fewer than three levels."""
    if scores.shape[1] < 3:
        raise NotTested(f"a trend needs three levels, here are {scores.shape[1]}")
    if len(scores) < 2:
        return Evidence(part=part, effect=None, note="one replicate shows no trend")
    trend = monotonic_trend(scores)
    place = np.arange(scores.shape[1]) - (scores.shape[1] - 1) / 2
    slopes = scores @ place / (place @ place)
    found = paired_comparison(np.zeros(len(slopes)), slopes)
    rising = trend.direction > 0 and not trend.reversals
    return Evidence(
        part=part,
        effect=found,
        p_support=_one_way(trend.p_value, rising),
        p_contradict=_one_way(found.p_against(part.margin), found.mean < part.margin),
        gap=max(found.mean, part.margin - found.mean),
        note="" if not trend.reversals else "the means take a step back",
    )


def rule(evidence: Sequence[Evidence]) -> list[Evidence]:
    """All parts that one study tests, with their p values corrected for each other, and ruled on."""
    tested = [i for i, e in enumerate(evidence) if not math.isnan(e.p_support)]
    ruled = list(evidence)
    if not tested:
        return ruled
    support = holm([evidence[i].p_support for i in tested])
    contradict = holm([evidence[i].p_contradict for i in tested])
    for i, for_it, against in zip(tested, support, contradict, strict=True):
        ruling = Ruling.INCONCLUSIVE
        if against < ERROR_RATE:
            ruling = Ruling.CONTRADICTED
        elif for_it < ERROR_RATE:
            ruling = Ruling.SUPPORTED
        ruled[i] = replace(evidence[i], p_support=float(for_it), p_contradict=float(against), ruling=ruling)
    return ruled


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
        """Of the study's axis, in the order of the file: numbers rising."""
        if regime not in self.record.regimes:
            raise NotTested(f"the study has no regime {regime!r}; it has {', '.join(self.record.regimes)}")
        if len(self.record.axes) > 1:
            raise NotTested(f"the study varies more than one setting: {', '.join(self.record.axes)}")
        rows = self.done[self.done["regime"] == regime]
        if not len(rows):
            raise NotTested(f"no trial of {regime} has finished")
        if not self.record.axes:
            return [None]
        values = list(dict.fromkeys(rows.sort_values("number")[self.record.axes[0]]))
        return sorted(values) if all(_is_number(value) for value in values) else values

    def scores(self, arms_of_part: Sequence[tuple[str, Any]]) -> tuple[FloatArray, list[list[str]], int]:
        """Test scores (n, arms) of the replicates that have all arms, their keys, and how many lack one."""
        columns = []
        for regime, level in arms_of_part:
            rows = self.done[self.done["regime"] == regime]
            if self.record.axes:
                rows = rows[rows[self.record.axes[0]] == level]
            columns.append(rows.set_index(["seed", "fold"]))
        complete = columns[0].index
        every = complete
        for rows in columns[1:]:
            complete, every = complete.intersection(rows.index), every.union(rows.index)
        if not len(complete):
            raise NotTested("no replicate has finished in all of its arms")
        metric = f"test/{self.record.metric}"
        chosen = [rows.loc[complete] for rows in columns]
        self.used |= {run for rows in chosen for run in rows["run_id"]}
        values = np.stack([rows[metric].to_numpy(float) for rows in chosen], axis=1)
        return values, [list(rows["key"]) for rows in chosen], len(every) - len(complete)

    def resolve(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        """(regime, level) of each `regime/level`. Raises NotTested."""
        split = [name.partition("/")[::2] for name in names]
        found = [None if word == "best" else self._level(regime, word) for regime, word in split]
        named = [level for (_, word), level in zip(split, found, strict=True) if word != "best"]
        return [
            (regime, self._best(regime, named) if word == "best" else level)
            for (regime, word), level in zip(split, found, strict=True)
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
            value = _setting(self.record.base, self.record.axes[0])
            if value not in levels:
                raise NotTested(f"the preset's own {self.record.axes[0]}, {value}, is not among the levels")
            return value
        by_text = {str(level).lower(): level for level in levels}
        if word.lower() not in by_text:
            raise NotTested(f"{regime} has no level {word!r}; it has {', '.join(map(str, levels))}")
        return by_text[word.lower()]

    def _best(self, regime: str, named: Sequence[Any]) -> Any:
        """By validation, of the levels that are not named."""
        axis = self.record.axes[0]
        rows = self.done[(self.done["regime"] == regime) & ~self.done[axis].isin(named)]
        if not len(rows):
            raise NotTested(f"{regime} has no further level")
        return rows.groupby(axis)[f"validation/{self.record.metric}"].mean().idxmax()


def _setting(base: dict[str, Any], path: str) -> Any:
    value: Any = base
    for name in path.split("."):
        value = value[name]
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def contrast(trials: Trials, part: Greater | Equivalent) -> tuple[Comparison, str]:
    """Of the arms of a part: over replicates, and over test clips where all were judged on the same."""
    names = [*part.of, *part.than]
    chosen = trials.resolve(names)
    if sorted(map(repr, chosen[: len(part.of)])) == sorted(map(repr, chosen[len(part.of) :])):
        raise NotTested("both sides are the same arm")
    values, keys, lacking = trials.scores(chosen)
    signs = np.array([1.0] * len(part.of) + [-1.0] * len(part.than))
    scale: Callable[[FloatArray], FloatArray] = np.asarray
    if isinstance(part, Greater) and part.scale == "log":
        if (values <= 0).any():
            raise NotTested("a score of 0 has no logarithm")
        scale = np.log
    notes = [f"{lacking} replicates lack a trial"] if lacking else []
    notes += [
        f"{name} is {level}" for name, (_, level) in zip(names, chosen, strict=True) if name.endswith("/best")
    ]
    differences = scale(values) @ signs
    clips = trials.predictions.shared_clips(key for arm in keys for key in arm)
    if clips and len(values) > 1:
        redrawn = np.stack(
            [
                sum(
                    sign * scale(trials.predictions.resampled(arm[r]))
                    for sign, arm in zip(signs, keys, strict=True)
                )
                for r in range(len(values))
            ],
            axis=1,
        )
        return crossed_comparison(differences, redrawn, clips), "; ".join(notes)
    if len(values) > 1:
        notes.append("over replicates alone: each has its own test clips, or its predictions are gone")
    return paired_comparison(np.zeros(len(differences)), differences), "; ".join(notes)


def examine(trials: Trials, part: Part, table: pd.DataFrame) -> Evidence:
    """One part, before it is ruled on; a part that cannot be tested says why."""
    try:
        match part:
            case Greater():
                found, note = contrast(trials, part)
                return replace(judge_greater(part, found), note=note)
            case Equivalent():
                found, note = contrast(trials, part)
                return replace(judge_equivalent(part, found), note=note)
            case Rising():
                levels = [(part.regime, level) for level in trials.levels(part.regime)]
                return judge_rising(part, trials.scores(levels)[0])
            case FewerLabels():
                trials.used |= set(trials.done["run_id"])
                return _examine_labels(trials.record, part, table)
    except NotTested as error:
        return Evidence(part=part, effect=None, note=f"not tested: {error}")


def _examine_labels(record: StudyRecord, part: FewerLabels, table: pd.DataFrame) -> Evidence:
    try:
        curves = study_curves(record, table)
    except NoCurves as error:
        raise NotTested(str(error)) from None
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
    mean = math.nan if found.reduction is None else found.reduction
    note = "" if found.reduction is not None else f"{found.reach} within the label counts measured"
    return Evidence(
        part=part, effect=Interval(mean=mean, low=low, high=high, n=found.n), ruling=ruling, note=note
    )


def study_verdicts(record: StudyRecord, table: pd.DataFrame, predictions: Predictions) -> list[Verdict]:
    """On every claim that a study tests, and that was defined when it ran."""
    done = table[table.state == "complete"] if len(table) else table
    if not len(done) or record.search:  # what a search chose is no even sample
        return []
    best = best_tuned(record, done)
    claims = {name: read_entered(entry) for name, entry in record.entered.items()}
    found: list[Evidence] = []
    runs: list[tuple[str, ...]] = []
    for claim in claims.values():
        trials = Trials(record, best, predictions)
        found += [examine(trials, part, table) for part in claim.parts]
        runs.append(tuple(sorted(trials.used)))
    ruled = iter(rule(found))
    return [
        Verdict(
            claim_id=name,
            claim=claim,
            record=record,
            evidence=tuple(next(ruled) for _ in claim.parts),
            runs=used,
            scale=scale_of(record, done),
            since=record.entered[name]["since"],
            changed=bool(record.entered[name]["earlier"]),
        )
        for (name, claim), used in zip(claims.items(), runs, strict=True)
    ]


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
            return f"{sides[0]} > {sides[1]}{logs} (matters from {part.margin:g})"
        case Equivalent():
            return f"{' + '.join(part.of)} = {' + '.join(part.than)} within {part.margin:g}"
        case Rising():
            return f"{part.regime} rises with every level (matters from {part.margin:g} a level)"
        case FewerLabels():
            return f"{part.at_least:.0%} fewer labels or more, at {part.share:.0%} of scratch's score"


def describe_effect(evidence: Evidence) -> str:
    effect = evidence.effect
    if effect is None:
        return "-"
    form = ".0%" if isinstance(evidence.part, FewerLabels) else "+.3f"
    text = "-" if math.isnan(effect.mean) else format(effect.mean, form)
    if math.isnan(effect.low):
        return f"{text} (n = {effect.n}, no interval)"
    low, high = ("no bound" if math.isinf(end) else format(end, form) for end in (effect.low, effect.high))
    return f"{text} ({low} to {high}; n = {effect.n})"


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
    return f"About {needed - have} more replicates would decide it, if effects and noise stay as they are"


def describe(verdict: Verdict) -> str:
    lines = [
        f"{verdict.claim_id} ({verdict.claim.where}): {verdict.ruling.upper()}",
        f"  {verdict.claim.says}",
        f"  at this scale: {verdict.scale}; set on {verdict.since}"
        + (", with other margins before" if verdict.changed else ""),
    ]
    for evidence in verdict.evidence:
        line = f"  - {evidence.ruling}: {describe_part(evidence.part)}: {describe_effect(evidence)}"
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
                    "digest": verdict.claim.digest,
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
