"""The table at a study's end: levels x regimes, mean and spread over replicates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from workbench.study.results import StudyRecord


def print_summary(record: StudyRecord, table: pd.DataFrame, root: Path, console: Console) -> None:
    """Test metric by level and regime, the failed trials with their reasons, and what to do next."""
    done = table[table.state == "complete"] if len(table) else table
    if len(done):
        if record.search:
            _print_search(record, done, console)
        else:
            _print_grid(record, done, console)
    if len(table):
        failed = table[table.state == "failed"]
        console.print(f"{len(failed)} of {len(table)} trials failed", markup=False)
        for row in failed.itertuples():
            console.print(f"  {row.number}: {row.reason}", markup=False)
    mlruns = "" if root == Path("mlruns") else f" MLRUNS={root}"
    option = "" if root == Path("mlruns") else f" --root {root}"
    console.print(
        f"\ncompare the runs:  make ui{mlruns}\n"
        f"draw the figure:   python analysis/plot_ablation.py {record.id}{option}",
        markup=False,
    )


def _print_grid(record: StudyRecord, done: pd.DataFrame, console: Console) -> None:
    metric = f"test/{record.metric}"
    shown = Table(
        title=f"{record.id}: test {record.metric}, mean ± standard deviation (replicates)",
        title_justify="left",
    )
    axes = record.axes or ["regime"]
    for axis in record.axes:
        shown.add_column(axis, justify="right")
    for regime in record.regimes:
        shown.add_column(regime, justify="right")
    levels = done[record.axes].drop_duplicates() if record.axes else pd.DataFrame([{}])
    for _, level in (
        levels.sort_values(axes[:1] if record.axes else []).iterrows()
        if len(record.axes)
        else levels.iterrows()
    ):
        cells = [f"{level[axis]:g}" if _number(level[axis]) else str(level[axis]) for axis in record.axes]
        for regime in record.regimes:
            chosen = done[done.regime == regime]
            for axis in record.axes:
                chosen = chosen[chosen[axis] == level[axis]]
            cells.append(_cell(chosen[metric]))
        shown.add_row(*cells)
    console.print(shown)


def _print_search(record: StudyRecord, done: pd.DataFrame, console: Console) -> None:
    """The best by validation; its test figure is of one seed, chosen among many, and no evidence."""
    metric = f"validation/{record.metric}"
    best = done.sort_values(metric, ascending=False).head(5)
    shown = Table(title=f"{record.id}: best by {metric}", title_justify="left")
    for column in ("number", *record.axes, metric):
        shown.add_column(column, justify="right")
    for _, row in best.iterrows():
        values = [row["number"], *(row[axis] for axis in record.axes), row[metric]]
        shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    console.print(shown)


def _cell(values: pd.Series) -> str:
    if not len(values):
        return "-"
    if len(values) == 1:
        return f"{values.iloc[0]:.3f} (1)"
    return f"{values.mean():.3f} ± {values.std():.3f} ({len(values)})"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
