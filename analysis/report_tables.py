"""The report's tables as CSV and LaTeX: verdicts, every arm, and the layout of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.claims import describe_effect, describe_part, verdict_table
from analysis.findings import Findings
from analysis.label_curves import PRETRAINED, SCRATCH, level_table
from analysis.plot_ablation import arm_name, level_summary
from analysis.verdicts import Verdict
from analysis.words import p_words
from workbench.study.results import arms, best_tuned, fingerprints

# Test mAP of cf_L on AudioSet; None where the paper has no number.
TABLE_1: dict[str, list[Any]] = {
    "counts": ["20k", "60k", "200k", "600k", "1.9 M"],
    "scratch": [0.138, None, None, None, 0.366],
    "pretrained": [0.276, 0.305, 0.337, 0.356, 0.415],
}


HEARD = ["data", "pool"]  # fingerprints, for which a printed page has no room
UNKNOWN = ("low", "high", "n", "trials")  # of the paper's


def write_tables(found: Sequence[Findings], output: Path, root: Path) -> list[Path]:
    """`report-verdicts`, `report-levels`, `report-table1`, each as CSV and LaTeX, of results below `root`."""
    verdicts = [verdict for study in found for verdict in study.verdicts]
    tables = {
        "verdicts": verdict_table(verdicts, root),
        "levels": _all_levels(found),
        "table1": _side_by_side(found),
    }
    paths = []
    for name, table in tables.items():
        if not len(table):
            continue
        paths += [output / f"report-{name}.csv", output / f"report-{name}.tex"]
        table.to_csv(paths[-2], index=False)
        narrow = _narrow(verdicts) if name == "verdicts" else table.drop(columns=HEARD, errors="ignore")
        paths[-1].write_text(_latex(narrow))
    return paths


def _narrow(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """What of the verdicts a printed page has room for; the CSV has the rest."""
    return pd.DataFrame(
        {
            "study": _with(verdict.record.id, verdict.note),
            "claim": _with(verdict.claim_id, "set after its runs" if verdict.before_runs is False else ""),
            "what must be so": describe_part(evidence.part),
            "verdict": str(evidence.ruling),
            "effect": describe_effect(evidence),
            "n": evidence.effect.n if evidence.effect else 0,
            "p for": p_words(evidence.p_support),
            "p against": p_words(evidence.p_contradict),
        }
        for verdict in verdicts
        for evidence in verdict.evidence
    )


def _with(name: str, note: str) -> str:
    return f"{name} ({note})" if note else name


WRAPPED = {"study": "2cm", "claim": "1.6cm", "what must be so": "3.6cm", "effect": "2.4cm"}  # columns


def _latex(table: pd.DataFrame) -> str:
    """With sentences wrapped, and LaTeX's own characters escaped."""
    formats = [
        rf"p{{{WRAPPED[name]}}}" if name in WRAPPED else "r" if is_numeric_dtype(table[name]) else "l"
        for name in table
    ]
    escaped = table.map(_for_latex)
    escaped.columns = [_for_latex(column) for column in table.columns]
    return str(
        escaped.to_latex(
            index=False,
            na_rep="-",
            float_format="%.3f",
            longtable=len(table) > 30,
            column_format="".join(formats),
        )
    )


LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def _for_latex(value: object) -> object:
    return (
        value.translate({ord(character): text for character, text in LATEX.items()})
        if isinstance(value, str)
        else value
    )


def _all_levels(found: Sequence[Findings]) -> pd.DataFrame:
    """Every arm of every study."""
    rows = []
    for study in found:
        if study.record.search or not len(study.done):
            continue
        summary = level_summary(study.record, best_tuned(study.record, study.done))
        heard = fingerprints(study.done)
        for _, row in summary.iterrows():
            name = arm_name(study.record, [row[column] for column in arms(study.record)])
            scores = {column: row[column] for column in ("mean", "low", "high", "n")}
            study_of = {"study": study.record.id, "trials": study.completeness.share}
            rows.append(study_of | {"arm": name, "metric": study.record.metric} | scores | heard)
    return pd.DataFrame(rows)


def _side_by_side(found: Sequence[Findings]) -> pd.DataFrame:
    """The paper's Table 1 and what was measured in its layout, a row an arm and size."""
    rows = [
        {"source": "paper", "arm": arm, "labels": count, "score": score} | dict.fromkeys(UNKNOWN)
        for arm in (SCRATCH, PRETRAINED)
        for count, score in zip(TABLE_1["counts"], TABLE_1[arm], strict=True)
        if score is not None
    ]
    measured = []
    for study in found:
        if study.curves is None:
            continue
        levels = level_table(study.curves)
        measured += [
            {
                "source": study.record.id,
                "arm": arm,
                "labels": f"{row['labels']:.0f}",
                "score": row[arm],
                "low": row[f"{arm}_low"],
                "high": row[f"{arm}_high"],
                "n": row["n"],
                "trials": study.completeness.share,
            }
            for arm in (SCRATCH, PRETRAINED)
            for _, row in levels.iterrows()
        ]
    return pd.DataFrame(measured + rows).astype({"n": "Int64"}) if measured else pd.DataFrame()
