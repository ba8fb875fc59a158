"""The page's part on the labels that pre-training saves, in the layout of the paper's Table 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.completeness import Completeness
from analysis.contrasts import setting_at
from analysis.findings import Findings
from analysis.label_curves import (
    PRETRAINED,
    SCRATCH,
    Curves,
    NoCurves,
    is_suitable,
    level_table,
    study_curves,
    study_reductions,
)
from analysis.label_efficiency import checks, draw_efficiency, marks, reading
from analysis.plot_ablation import AXIS_NAMES, METRIC_NAMES
from analysis.report_figures import new_figure, svg_of
from analysis.report_pairs import pairs_of
from analysis.report_tables import TABLE_1
from analysis.words import p_words
from workbench.study.record import StudyRecord

Cell = tuple[str, str]  # a value, and its interval or nothing


def label_parts(found: Sequence[Findings]) -> list[dict[str, Any]]:
    """For the page, of each study that compares scratch with pre-trained over label counts."""
    return [
        _label_part(study) | {"longer": _longer(study, found)} for study in found if is_suitable(study.record)
    ]


COMPARED = ("finetuning.pooling", "finetuning.batch_size", "finetuning.optimiser.peak_lr")


def _longer(of_labels: Findings, found: Sequence[Findings]) -> list[str]:
    """What more updates give training from scratch, by studies of the same task that vary nothing else."""
    return [
        f"{pair.of:,} updates in place of {pair.than:,} for training from scratch "
        f"({study.done['labelled_clips'].max():,.0f} labels, {study.record.id}): {pair.difference}"
        for study in found
        if study.record.axes == ["finetuning.steps"] and _is_scratch_of_the_task(study, of_labels)
        for pair in pairs_of(study)
    ]


def _is_scratch_of_the_task(study: Findings, other: Findings) -> bool:
    """And trained as there: where the other tries several rates, at one of these."""
    record, of_other = study.record, other.record
    same = (record.preset, record.metric) == (of_other.preset, of_other.metric) and all(
        record.base.get(part) == of_other.base.get(part) for part in ("data", "model")
    )
    trained_alike = all(_tried(study, path) <= _tried(other, path) for path in COMPARED)
    return same and trained_alike and record.base.get("pretraining") is None


def _tried(study: Findings, path: str) -> set[Any]:
    return set(study.done[path]) if path in study.done else {setting_at(study.record.base, path)}


def paper_table() -> dict[str, list[str]]:
    """The paper's Table 1 as text."""
    return {
        name: [value if isinstance(value, str) else "-" if value is None else f"{value:.3f}" for value in row]
        for name, row in TABLE_1.items()
    }


def _label_part(study: Findings) -> dict[str, Any]:
    record = study.record
    completeness = Completeness.of(record, study.table)
    part = {"study": record.id, "half_run": "" if completeness.is_whole else str(completeness), "refused": ""}
    try:
        curves = study_curves(record, study.table, study.predictions)
    except NoCurves as error:
        return part | {"refused": str(error).removeprefix(f"{record.id}: ")}
    levels, found = level_table(curves), study_reductions(record, curves)
    figure, (ax,) = new_figure(height=4.6)
    draw_efficiency(ax, record, levels, curves, found)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return part | {
        "metric": METRIC_NAMES[record.metric],
        "intervals": _intervals(curves),
        "marks": marks(curves),
        "missing": ", ".join(curves.missing),
        "left_out": ", ".join(curves.left_out),
        "tuned": _tuning_note(record),
        "counts": [f"{count:,.0f}" for count in levels["labels"]],
        "rows": _rows(levels),
        "readings": [
            (f"{_share(item.share)} ({item.score:.3f}): {reading(item)}", checks(item)) for item in found
        ],
        "svg": svg_of(figure),
    }


def _intervals(curves: Curves) -> str:
    n = len(curves.replicates)
    if n == 1:
        return "of one replicate, which gives no interval."
    return (
        f"mean and 95 % interval over n = {n} replicates; of the difference and of the labels over "
        f"{curves.over}; p of the difference, corrected for the label counts (Holm)."
    )


def _rows(levels: pd.DataFrame) -> list[tuple[str, list[Cell]]]:
    """A row an arm, a cell a label count."""
    return [
        ("from scratch", _cells(levels, SCRATCH)),
        ("pre-trained", _cells(levels, PRETRAINED)),
        ("difference", _cells(levels, "difference", "+.3f")),
        ("p", [(p_words(p), "") for p in levels["p_holm"]]),
    ]


def _cells(levels: pd.DataFrame, name: str, form: str = ".3f") -> list[Cell]:
    cells = []
    for _, row in levels.iterrows():
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        value = "-" if math.isnan(row[name]) else format(row[name], form)
        cells.append((value, "" if math.isnan(low) else f"{low:{form}} to {high:{form}}"))
    return cells


def _share(share: float) -> str:
    return "the score of scratch with most labels" if share == 1 else f"{share:.0%} of it"


def _tuning_note(record: StudyRecord) -> str:
    names = ", ".join(AXIS_NAMES.get(path, path) for path in record.tuned)
    return f"Each arm at its best {names}, by validation." if names else ""
