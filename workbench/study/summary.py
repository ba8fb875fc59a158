"""The table at a study's end: levels x regimes, mean and spread over replicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from workbench.commands import analysis_command, ui_command
from workbench.places import Places
from workbench.study.definition import DEFAULT, FOUND
from workbench.study.record import StudyRecord
from workbench.study.results import best_tuned, fingerprints


def print_summary(record: StudyRecord, table: pd.DataFrame, root: Path, console: Console) -> None:
    """Test metric by level and regime, the failed trials with their reasons, and what to do next."""
    done = table[table.state == "complete"] if len(table) else table
    if len(done):
        if record.search:
            _print_search(record, done, console)
        else:
            _print_grid(record, done, console)
        heard = ", ".join(f"{name} {found}" for name, found in fingerprints(done).items() if found != "-")
        console.print(f"fingerprints: {heard}", markup=False)
    if len(table):
        failed = table[table.state == "failed"]
        console.print(f"{len(failed)} of {len(table)} trials failed", markup=False)
        for row in failed.itertuples():
            console.print(f"  {row.number}: {row.reason}", markup=False)
    server = Places.read(root).mlflow_uri
    where = server if server.startswith("http") else ui_command(root)
    console.print(f"\ncompare the runs:  {where}", markup=False)
    console.print(f"draw the figure:   {analysis_command('plot_ablation', record.id, root)}", markup=False)
    if record.claims:
        console.print(f"judge the claims:  {analysis_command('claims', record.id, root)}", markup=False)


def _print_grid(record: StudyRecord, done: pd.DataFrame, console: Console) -> None:
    done = best_tuned(record, done)
    shown = Table(
        title=f"{record.id}: test {record.metric}, mean ± standard deviation (replicates)",
        title_justify="left",
    )
    for column in (*record.axes, *record.regimes):
        shown.add_column(column, justify="right")
    cells: dict[tuple[Any, ...], dict[str, str]] = {}  # level -> regime -> text
    metric, arm = f"test/{record.metric}", [*record.axes, "regime"]
    if done["fold"].notna().all():  # folds are the replicates, whatever seeds they are run with
        done = done.groupby([*arm, "fold"], dropna=False, sort=False)[metric].mean().reset_index()
    groups = done.groupby(arm, dropna=False)[metric]
    for (*place, regime), values in groups:
        cells.setdefault(tuple(place), {})[str(regime)] = _cell(values)
    for level, by_regime in cells.items():
        shown.add_row(*map(_text, level), *(by_regime.get(regime, "-") for regime in record.regimes))
    console.print(shown)
    if record.tuned:
        console.print(
            f"each at its best {', '.join(record.tuned)} by validation/{record.metric}", markup=False
        )
    if record.confirms:
        console.print(
            f"{FOUND}: the winner of {record.confirms}, on seeds that took no part in choosing it; "
            f"{DEFAULT}: the study's own settings",
            markup=False,
        )


def _print_search(record: StudyRecord, done: pd.DataFrame, console: Console) -> None:
    """The best by validation; their test figures are of one seed, chosen among many, and no evidence."""
    metric = f"validation/{record.metric}"
    best = done.sort_values(metric, ascending=False, kind="stable").head(5)
    shown = Table(title=f"{record.id}: best by {metric}", title_justify="left")
    for column in ("number", *record.axes, metric):
        shown.add_column(column.rsplit(".", 1)[-1], justify="right")  # whole paths of all leave no room
    for row in best[["number", *record.axes, metric]].itertuples(index=False):
        shown.add_row(*map(_text, row))
    console.print(shown)
    remedy = "name search.confirm_seeds, on which the winner is run again"
    if record.confirm_seeds:
        remedy = f"the winner is run again on seeds {', '.join(map(str, record.confirm_seeds))}"
    console.print(f"these scores chose the winner, and are not to be reported: {remedy}", markup=False)


def _cell(values: pd.Series) -> str:
    if not len(values):
        return "-"
    if len(values) == 1:
        return f"{values.iloc[0]:.3f} (1)"
    return f"{values.mean():.3f} ± {values.std():.3f} ({len(values)})"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
