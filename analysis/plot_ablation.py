"""Figures of studies: `python analysis/plot_ablation.py [study ...]`.

Without arguments every study found is drawn: test metric against level, a line a regime, each replicate a
point, and a 95 % interval of the mean. Beside each figure (PNG and PDF) lies its table (CSV).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analysis.command import run
from analysis.completeness import Completeness
from analysis.estimators import mean_interval
from analysis.replicates import by_replicate, with_fold_numbers
from workbench.study.record import StudyRecord
from workbench.study.results import arms, best_tuned, trial_table

# Okabe and Ito's palette, told apart by the colour-blind; the markers tell them apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")

AXIS_NAMES = {
    "regime": "regime",
    "settings": "settings",
    "model.num_heads": "attention heads",
    "model.num_blocks": "conformer blocks",
    "data.label_fraction": "labelled clips",
    "data.pool_clips": "pre-training clips",
    "pool.hours": "pre-training audio / hours",
    "pretraining.steps": "pre-training updates",
    "finetuning.steps": "fine-tuning updates",
    "finetuning.batch_size": "batch size / clips",
    "finetuning.optimiser.peak_lr": "peak learning rate",
    "finetuning.output_dropout": "dropout on the encoder's output",
    "finetuning.freeze_encoder": "frozen encoder",
    "finetuning.schedule.kind": "learning-rate schedule",
    "finetuning.schedule.warmup": "share of warm-up",
    "finetuning.schedule.hold": "share of hold",
    "model.width": "width",
}
LONG_NAMES = 50  # characters along an axis, before they run into each other
METRIC_NAMES = {
    "mAP": "test mAP",
    "macro_auc": "test macro AUC",
    "d_prime": "test d′",
    "lwlrap": "test lwlrap",
    "accuracy": "test accuracy",
}


def main(arguments: list[str] | None = None) -> int:
    """0 when figures were drawn, 2 when there was nothing to draw."""
    return run(_draw, arguments, "Draw the figures of studies.")


def _draw(options: argparse.Namespace, records: list[StudyRecord]) -> int:
    drawn = 0
    for record in records:
        table = trial_table(record, options.root)
        if not len(table) or not (table.state == "complete").any():
            print(f"{record.id}: no finished trial, no figure", file=sys.stderr)
            continue
        for path in draw_study(record, table, options.output):
            print(path)
        drawn += 1
    if not drawn:
        print(f"nothing to draw below {options.root}: run a study first", file=sys.stderr)
        return 2
    return 0


def draw_study(record: StudyRecord, table: pd.DataFrame, output: Path) -> list[Path]:
    """Write `<id>.png`, `.pdf` and `.csv` (every trial) and `<id>-levels.csv` (what the figure shows)."""
    output.mkdir(parents=True, exist_ok=True)
    done = table[table.state == "complete"]
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1)
    figure, ax = plt.subplots(figsize=(5.4, 4.0), layout="constrained")
    summary = draw_search(ax, record, done) if record.search else draw_levels(ax, record, done)
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="outside lower center",  # where it hides no data
        ncols=3,
        title=legend_title(record, summary),
        title_fontsize="small",
        frameon=False,
    )
    ax.set_title(study_title(record, table), loc="left", fontsize="medium")
    paths = [output / f"{record.id}.{ending}" for ending in ("png", "pdf", "csv")]
    figure.savefig(paths[0], dpi=200)
    figure.savefig(paths[1])
    plt.close(figure)
    table.drop(columns=["run_id", "began", "seconds"]).to_csv(paths[2], index=False)
    paths.append(output / f"{record.id}-levels.csv")
    summary.assign(trials=Completeness.of(record, table).share).to_csv(paths[3], index=False)
    return paths


def study_title(record: StudyRecord, table: pd.DataFrame) -> str:
    """Its id, and on a second line what of it is missing."""
    completeness = Completeness.of(record, table)
    return record.id if completeness.is_whole else f"{record.id}\n{completeness}"


def level_summary(record: StudyRecord, done: pd.DataFrame) -> pd.DataFrame:
    """Mean of the test metric, its 95 % interval and n of each arm, from one trial a replicate."""
    metric = f"test/{record.metric}"
    rows = []
    for group, values in done.groupby(arms(record), dropna=False, sort=False):
        scores, overlap = by_replicate(_scores(values, metric))
        interval = mean_interval(scores, overlap=overlap)
        names = dict(zip(arms(record), group, strict=True))
        names |= {path: values[path].iloc[0] for path in record.tuned}
        clips = values["labelled_clips"].mean()
        rows.append(
            names
            | {
                "labelled_clips": clips,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
            }
        )
    summary = pd.DataFrame(rows)
    order = {regime: place for place, regime in enumerate(record.regimes)}
    numeric = [axis for axis in record.axes if all(map(is_number, summary[axis]))]
    return summary.sort_values(
        ["regime", *numeric], key=lambda c: c.map(order) if c.name == "regime" else c, ignore_index=True
    )


def _scores(values: pd.DataFrame, metric: str) -> pd.Series:
    """One value for each (seed, fold)."""
    return with_fold_numbers(values).groupby(["seed", "fold"])[metric].mean()


def _axis(record: StudyRecord) -> str:
    """What goes along the figure: the first axis, or the regimes where nothing else varies."""
    return record.axes[0] if record.axes else "regime"


def _lines(record: StudyRecord) -> list[str]:
    """What tells lines apart."""
    return [column for column in arms(record) if column != _axis(record)]


def draw_levels(ax: Axes, record: StudyRecord, done: pd.DataFrame) -> pd.DataFrame:
    """Draw metric against level into `ax`, each arm at its best tuned setting; returns what it shows."""
    done = best_tuned(record, done)
    summary = level_summary(record, done)
    metric = f"test/{record.metric}"
    axis = _axis(record)
    numeric = all(is_number(value) for value in done[axis])
    amount, name, form = _amount(record, done)
    if amount:
        positions = done.groupby(axis)[amount].mean().to_dict()
    elif numeric:
        positions = {value: value for value in done[axis]}
    else:
        positions = {value: place for place, value in enumerate(dict.fromkeys(summary[axis]))}
    logarithmic = bool(amount) or (numeric and _spans_decades(positions.values()))
    columns = _lines(record)
    lines = list(summary.groupby(columns, dropna=False, sort=False)) if columns else [((), summary)]
    for i, (line, rows) in enumerate(lines):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        shift = _shift(i, len(lines), list(positions.values()), logarithmic)
        x = shift(np.array([positions[value] for value in rows[axis]]))
        order = np.argsort(x)
        mean, low, high = (rows[c].to_numpy()[order] for c in ("mean", "low", "high"))
        ax.errorbar(
            x[order],
            mean,
            yerr=[mean - low, high - mean],  # of one replicate NaN, and no bar
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
            linewidth=1.5,
            linestyle=("-", "--", ":")[i // len(COLOURS) % 3] if record.axes else "none",
            label=_name(columns, line) or "mean",
            zorder=3,
        )
        chosen = done
        for column, value in zip(columns, line, strict=True):
            chosen = chosen[chosen[column] == value]
        beside = _shift(i, len(lines), list(positions.values()), logarithmic, aside=0.6)
        for level, trials in chosen.groupby(axis, sort=False):
            scores, _ = by_replicate(_scores(trials, metric))
            points = beside(np.full(len(scores), float(positions[level])))
            ax.scatter(points, scores, edgecolors=colour, facecolors="none", marker=marker, s=12)
    _dress(ax, record, positions, logarithmic, name, form)
    return summary


def _amount(record: StudyRecord, done: pd.DataFrame) -> tuple[str, str, str]:
    """The column that says how much a level of the axis is, its name and format; or none, the axis's."""
    axis = _axis(record)
    if axis == "data.label_fraction":
        return "labelled_clips", AXIS_NAMES[axis], ",.0f"
    if axis == "data.pool_clips" and "pool_hours" in done:
        return "pool_hours", AXIS_NAMES["pool.hours"], ".2g"
    return "", AXIS_NAMES.get(axis, axis), ""


def _dress(ax: Axes, record: StudyRecord, positions: dict, logarithmic: bool, name: str, form: str) -> None:
    if logarithmic:
        ax.set_xscale("log")
    places = sorted(set(positions.values()))
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    names = {place: value for value, place in positions.items()}
    numbered = all(map(is_number, names.values()))
    ax.set_xticklabels([format(p, form) if form else short(names[p]) for p in places])
    if not numbered and max(len(str(name)) for name in names.values()) * len(places) > LONG_NAMES:
        ax.tick_params("x", labelrotation=20)
    if len(places) == 1:
        ax.set_xlim(0.5 * places[0] - 0.5, 1.5 * places[0] + 0.5)  # else lines that are moved aside fill it
    ax.set_xlabel(name)
    ax.set_ylabel(METRIC_NAMES[record.metric])


def legend_title(record: StudyRecord, summary: pd.DataFrame) -> str:
    """What the marks of a figure are, and how many trials are behind each."""
    if record.search:
        return f"n = {len(summary)} finished trials; chosen adaptively, so no evidence for one level"
    smallest, largest = int(summary["n"].min()), int(summary["n"].max())
    count = str(smallest) if smallest == largest else f"{smallest} to {largest}"
    interval = "bars: 95 % interval of the mean over them" if largest > 1 else "one replicate, no interval"
    interval += ", none of one replicate" if smallest == 1 < largest else ""
    tuned = ", ".join(AXIS_NAMES.get(path, path) for path in record.tuned)
    choice = f"\neach arm at its best {tuned}, by validation" if tuned else ""
    return f"n = {count} replicates, each a small mark; {interval}{choice}"


def draw_search(ax: Axes, record: StudyRecord, done: pd.DataFrame) -> pd.DataFrame:
    """Validation score of each trial in the order they were proposed, and the best so far."""
    metric = f"validation/{record.metric}"
    ordered = done.sort_values("number")
    best = ordered[metric].cummax()
    ax.scatter(ordered["number"], ordered[metric], color=COLOURS[0], s=16, label="trial")
    ax.step(ordered["number"], best, where="post", color=COLOURS[1], label="best so far")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trial")
    ax.set_ylabel(METRIC_NAMES[record.metric].replace("test", "validation"))
    return ordered[["number", *record.axes, metric]].assign(best=best)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _spans_decades(values) -> bool:  # type: ignore[no-untyped-def]
    values = list(values)
    return min(values) > 0 and max(values) / min(values) >= 8


def _shift(  # type: ignore[no-untyped-def]
    index: int, count: int, places: list[float], logarithmic: bool, aside: float = 0.0
):
    """Move a line a little sideways, and its points `aside` of it, so that nothing hides the rest."""
    offset = index - (count - 1) / 2 + aside
    if logarithmic:
        return lambda x: x * 1.06**offset
    width = (max(places) - min(places)) or 1.0
    return lambda x: x + 0.024 * width * offset


def arm_name(record: StudyRecord, values: Iterable[object]) -> str:
    """Of an arm, by the values of `arms(record)`."""
    return _name(arms(record), values)


def _name(columns: Iterable[str], values: Iterable[object]) -> str:
    """The regime, and every other value with its setting's name."""
    return ", ".join(
        str(value) if column == "regime" else f"{column.rsplit('.', 1)[-1]} {short(value)}"
        for column, value in zip(columns, values, strict=True)
    )


def short(value: object) -> str:
    """A level, as figures name it."""
    return f"{value:g}" if is_number(value) else str(value)


if __name__ == "__main__":
    sys.exit(main())
