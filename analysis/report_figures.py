"""The report's own figures: panels beside each other, tuning budgets, training curves, importance."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.estimators import expected_best
from analysis.plot_ablation import (
    AXIS_NAMES,
    COLOURS,
    MARKERS,
    METRIC_NAMES,
    arm_name,
    draw_levels,
    is_number,
    legend_title,
    short,
    study_title,
)
from analysis.stored import StoredStages
from workbench.settings import digest
from workbench.study.record import StudyRecord
from workbench.study.results import arms, best_tuned


def new_figure(columns: int = 1, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """Panels in a row, in the report's style."""
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.0)
    width = {1: 4.6, 2: 8.4}.get(columns, 10.8)
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, axes[0]


def svg_of(figure: Figure) -> str:
    """Inline SVG without names that two figures on a page would share; the same for the same figure."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "workbench"}):  # else names are drawn by chance
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    own = f"f{digest(svg)[:8]}"
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", svg)


def draw_panels(panels: Sequence[tuple[str, StudyRecord, pd.DataFrame]]) -> Figure:
    """Studies, with their trials, as the panels of one figure; each with its letter in the paper."""
    figure, axes = new_figure(len(panels), height=4.2)
    for ax, (letter, record, table) in zip(axes, panels, strict=True):
        summary = draw_levels(ax, record, table[table.state == "complete"])
        ax.set_title(f"({letter}) {study_title(record, table)}", loc="left", fontsize="medium")
        title = legend_title(record, summary).replace("; ", "\n")
        ax.legend(
            title=title,
            title_fontsize="small",
            fontsize="small",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.18),
            ncols=2,
            frameon=False,
        )
    return figure


def budget_table(record: StudyRecord, done: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: the settings tried, the one chosen on validation data, and the expected best of k."""
    metric = f"validation/{record.metric}"
    chosen = best_tuned(record, done)
    rows = []
    for arm, trials in done.groupby(arms(record), dropna=False, sort=False):
        points = trials.groupby(record.tuned, dropna=False)[metric].mean()
        same = chosen
        for column, value in zip(arms(record), arm, strict=True):
            same = same[same[column] == value]
        rows.append(
            {
                "arm": arm_name(record, arm),
                "regime": arm[0],
                "tried": len(points),
                "chosen": ", ".join(_chosen(same[path].iloc[0], trials[path]) for path in record.tuned),
                "expected": expected_best(points.to_numpy()),
            }
        )
    return pd.DataFrame(rows)


def _chosen(value: object, tried: pd.Series) -> str:
    """A tuned value; marked at an end of what was tried, beyond which a better one may lie."""
    if not all(map(is_number, tried)) or tried.nunique() == 1:
        return short(value)
    ends = {tried.min(): " (smallest tried)", tried.max(): " (largest tried)"}
    return short(value) + ends.get(value, "")


def draw_budget(record: StudyRecord, done: pd.DataFrame) -> Figure:
    """Expected best validation score of each arm as its tuning budget grows.

    A panel a regime where there are more arms than colours.
    """
    table = budget_table(record, done)
    panels = [table]
    if len(table) > len(COLOURS):
        panels = [
            rows.iloc[first : first + len(COLOURS)]
            for _, rows in table.groupby("regime", sort=False)
            for first in range(0, len(rows), len(COLOURS))
        ]
    figure, axes = new_figure(len(panels), height=4.0)
    for ax, rows in zip(axes, panels, strict=True):
        for (_, row), colour, marker in zip(rows.iterrows(), COLOURS, MARKERS, strict=False):
            ax.plot(
                np.arange(1, row["tried"] + 1),
                row["expected"],
                color=colour,
                marker=marker,
                label=row["arm"],
            )
        ax.set_xticks(range(1, int(table["tried"].max()) + 1))
        ax.set_xlabel("settings tried")
        ax.set_ylabel(f"expected best {METRIC_NAMES[record.metric].replace('test', 'validation')}")
        _legend_below(ax, columns=2 if len(panels) == 1 else 1)
    return figure


def _legend_below(ax: Axes, columns: int = 2) -> None:
    """Where it hides no data, and belongs to its panel alone."""
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns, frameon=False)


def training_curves(record: StudyRecord, done: pd.DataFrame, stages: StoredStages) -> pd.DataFrame:
    """Histories of the shown trials: `arm`, `seed`, `fold`, `stage`, `key`, `step`, `metric`, `value`.

    `key` is of the stage: arms may share their pre-training.
    """
    wanted = {
        "pretrain": ["contrastive_accuracy"],
        "finetune": [f"validation/{record.metric}"],
    }
    rows = []
    for _, trial in best_tuned(record, done).iterrows():
        history = stages.history(trial["key"])
        keys = {facts["kind"]: facts["key"] for facts in stages.lineage(trial["key"])}
        for stage, metrics in wanted.items():
            for metric in metrics:
                if not len(history) or metric not in history:
                    continue
                part = history[(history["stage"] == stage) & history[metric].notna()]
                rows.append(
                    pd.DataFrame(
                        {
                            "arm": arm_name(record, [trial[column] for column in arms(record)]),
                            "seed": trial["seed"],
                            "fold": trial["fold"],
                            "stage": stage,
                            "key": keys[stage],
                            "step": part["step"],
                            "metric": metric,
                            "value": part[metric],
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def draw_curves(record: StudyRecord, curves: pd.DataFrame) -> Figure:
    """Pre-training's accuracy and fine-tuning's validation score over updates: means over replicates.

    A line a pre-training, which several arms may share.
    """
    panels = [
        ("contrastive_accuracy", "contrastive accuracy", "pre-training updates"),
        (
            f"validation/{record.metric}",
            METRIC_NAMES[record.metric].replace("test", "validation"),
            "fine-tuning updates",
        ),
    ]
    panels = [panel for panel in panels if (curves["metric"] == panel[0]).any()]
    figure, axes = new_figure(len(panels), height=4.4)
    for ax, (metric, name, over) in zip(axes, panels, strict=True):
        lines = _lines_of(curves[curves["metric"] == metric])
        for i, (line, rows) in enumerate(lines.items()):
            mean = rows.groupby("step")["value"].mean()
            ax.plot(
                mean.index,
                mean,
                color=COLOURS[i % len(COLOURS)],
                linestyle=("-", "--", ":")[i // len(COLOURS) % 3],
                label=line,
            )
        ax.set_xlabel(over)
        ax.set_ylabel(name)
        _legend_below(ax)
    figure.suptitle(f"means over n = {_replicates(curves)} replicates", fontsize="small")
    return figure


def _replicates(curves: pd.DataFrame) -> str:
    """Of an arm: its folds, or else its seeds."""
    which = "seed" if curves["fold"].isna().all() else "fold"
    counts = curves.groupby("arm")[which].nunique()
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def _lines_of(shown: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is drawn as one line, by its name: an arm, or several whose stages are the same."""
    sharing: dict[frozenset[str], list[str]] = {}
    for arm, rows in shown.groupby("arm", sort=False):
        sharing.setdefault(frozenset(rows["key"]), []).append(str(arm))
    names = [_common_name(arms_of) for arms_of in sharing.values()]
    if len(set(names)) < len(names):
        names = [_together(arms_of) for arms_of in sharing.values()]
    return {
        name: shown[shown["arm"] == arms_of[0]] for name, arms_of in zip(names, sharing.values(), strict=True)
    }


def _common_name(names: Sequence[str]) -> str:
    """Of arms: what their names have in common, or all of them."""
    first, *others = [name.split(", ") for name in names]
    common = [part for part in first if all(part in other for other in others)]
    return ", ".join(common) or _together(names)


def _together(names: Sequence[str]) -> str:
    return " = ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def late_gain(curves: pd.DataFrame, share: float = 0.25) -> pd.DataFrame:
    """How much the best validation score still rose at the end, by arm: `gain`, from `since` to `updates`.

    Since the last evaluation that was made before the last `share` of the updates. Never below 0, and far
    above it where the arm was still learning when it stopped. The learning rate falls towards the end, so
    that a small gain is no proof that longer training would give none.
    """
    shown = curves[curves["stage"] == "finetune"]
    rows = []
    for arm, of_arm in shown.groupby("arm", sort=False):
        gains, since = [], 0
        updates = int(of_arm["step"].max())
        for _, one in of_arm.groupby(["seed", "fold"], dropna=False):
            early = one[one["step"] <= (1 - share) * updates]
            if len(early):
                gains.append(one["value"].max() - early["value"].max())
                since = int(early["step"].max())
        if gains:
            rows.append({"arm": arm, "gain": float(np.mean(gains)), "since": since, "updates": updates})
    return pd.DataFrame(rows)


def draw_importance(importance: Mapping[str, float]) -> Figure:
    """Share of the variance of the validation score that each setting of a search explains."""
    ordered = sorted(importance.items(), key=lambda item: item[1])
    figure, (ax,) = new_figure(height=0.4 * len(ordered) + 1.0)
    names = [AXIS_NAMES.get(path, path) for path, _ in ordered]
    ax.barh(names, [value for _, value in ordered], color=COLOURS[0])
    ax.set_xlabel("share of the variance (fANOVA)")
    ax.set_xlim(0, 1)
    return figure
