"""What the data say of the paper's claims: `python analysis/claims.py [study ...]`.

Each claim that a study tests is supported, contradicted or inconclusive, at the scale of that study and no
other (`analysis/rulings.py` has the rules); with effects, 95 % intervals, and how many more seeds would
decide (`analysis/needs.py`). Printed, and written as CSV.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.command import run
from analysis.contrasts import ORDINALS, level_words
from analysis.estimators import Comparison
from analysis.findings import Findings
from analysis.rulings import ERROR_RATE, Evidence
from analysis.stored import StoredStages
from analysis.verdicts import Verdict
from analysis.words import counted
from workbench.places import Places
from workbench.study.claims import Equivalent, FewerLabels, Greater, Part, Rising
from workbench.study.record import StudyRecord
from workbench.study.results import runs_link


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
    """Estimate and interval; of what must lie within a margin, also the interval that then lies there."""
    effect = evidence.effect
    if effect is None:
        return "-"
    form = ".0%" if isinstance(evidence.part, FewerLabels) else "+.3f"
    text = "-" if math.isnan(effect.mean) else format(effect.mean, form)
    if math.isnan(effect.low):
        return f"{text} (no interval)"
    low, high = ("no bound" if math.isinf(end) else format(end, form) for end in (effect.low, effect.high))
    judging = ""
    if isinstance(evidence.part, Equivalent) and isinstance(effect, Comparison):
        ends = effect.ends(1 - 2 * ERROR_RATE)
        judging = f"; {1 - 2 * ERROR_RATE:.0%}: {ends[0]:{form}} to {ends[1]:{form}}"
    return f"{text} ({low} to {high}{judging})"


SHOWN_OF_HASH = 12  # characters; the CSV has all
WHEN = {True: ", before its runs", False: ", after the first of its runs", None: ""}


def describe_setting(verdict: Verdict) -> str:
    """Since when the claim and its trials have been as they are, and whether before the runs; its hash."""
    text = f"set on {verdict.since[:10]}{WHEN[verdict.before_runs]}"
    text += f"; its hash is {_digest(verdict)[:SHOWN_OF_HASH]}"
    if verdict.changed:
        text += "; changed since it was first set"
    if verdict.trials_changed and verdict.trials_since:
        when = WHEN[verdict.trials_before_runs]
        text += f"; its trials (settings or seeds) were changed on {verdict.trials_since[:10]}{when}"
    return text


def _digest(verdict: Verdict) -> str:
    return str(verdict.record.entered[verdict.claim_id]["digest"])


def link_of(verdict: Verdict, root: Path) -> str:
    """Where MLflow compares the runs that it rests on; empty where there are none."""
    return runs_link(verdict.record, verdict.runs, root) if verdict.runs else ""


def describe_levels(verdict: Verdict) -> str:
    """What its parts' words for levels stand for; empty where they use none."""
    compared = [part for part in verdict.claim.parts if isinstance(part, Greater | Equivalent)]
    used = {name.partition("/")[2] for part in compared for name in (*part.of, *part.than)}
    words = level_words(verdict.record) if used & {*ORDINALS, "last", "base"} else ""
    return f"{verdict.record.axes[0].rsplit('.', 1)[-1]}: {words}" if words else ""


def describe(verdict: Verdict, link: str = "") -> str:
    """`link` is to its runs."""
    levels = describe_levels(verdict)
    lines = [
        f"{verdict.claim_id} ({verdict.claim.where}): {verdict.ruling.upper()}",
        f"  {verdict.claim.says}",
        *([f"  tested as: {verdict.claim.tested_as}"] if verdict.claim.tested_as else []),
        f"  at this scale: {verdict.scale}; {describe_setting(verdict)}",
        *([f"  levels of {levels}"] if levels else []),
        *([f"  unfinished: {verdict.note}"] if verdict.note else []),
    ]
    for evidence in verdict.evidence:
        line = f"  - {evidence.ruling}: {describe_part(evidence.part)}: {describe_effect(evidence)}"
        line += f", n = {evidence.effect.n}" if evidence.effect else ""
        beside = [evidence.note, f"to decide: {evidence.need}" if evidence.need else ""]
        lines.append(line + "".join(f" [{text}]" for text in beside if text))
    lines += [f"  {verdict.need}"] if verdict.need else []
    lines += [f"  {counted(len(verdict.runs), 'run')}: {link}"] if link else []
    return "\n".join(lines)


def verdict_table(verdicts: Sequence[Verdict], root: Path) -> pd.DataFrame:
    """A row a part; `root` is where the studies' results are."""
    rows = []
    for verdict in verdicts:
        link = link_of(verdict, root)
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
                    "need": evidence.need,
                    "note": evidence.note,
                    "study_note": verdict.note,
                    "scale": verdict.scale,
                    "set_on": verdict.since,
                    "set_before_runs": verdict.before_runs,
                    "trials_set_on": verdict.trials_since,
                    "trials_changed": verdict.trials_changed,
                    "trials_set_before_runs": verdict.trials_before_runs,
                    "digest": _digest(verdict),
                    "runs": " ".join(verdict.runs),
                    "link": link,
                }
            )
    return pd.DataFrame(rows)


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when there was a verdict, of whatever kind; 2 when there was nothing to judge."""
    return run(_judge, arguments, "Say what the data say of the paper's claims.")


def _judge(options: argparse.Namespace, records: list[StudyRecord]) -> int:
    stages = StoredStages(Places.read(options.root).store())
    found = [Findings.read(record, options.root, stages) for record in records]
    for line in (line for study in found for line in study.unread):
        print(line, file=sys.stderr)
    verdicts = [verdict for study in found for verdict in study.verdicts]
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
        print(describe(verdict, link_of(verdict, options.root)), end="\n\n")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "claims.csv"
    verdict_table(verdicts, options.root).to_csv(path, index=False)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
