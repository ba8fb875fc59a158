"""How many labels pre-training saves: `python analysis/label_efficiency.py [study ...]`.

Scores of scratch and of pre-trained, their paired differences at each label count, and the labels with which
the pre-trained arm reaches what scratch reaches with its most. Printed, and written as CSV and figure (PNG
and PDF). `analysis/label_curves.py` says which studies have them.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.command import run
from analysis.completeness import Completeness
from analysis.label_curves import (
    AXIS,
    PRETRAINED,
    SCRATCH,
    Curves,
    NoCurves,
    is_suitable,
    level_table,
    reduction_table,
    study_curves,
    study_reductions,
)
from analysis.label_reduction import LabelReduction, Reach, monotone
from analysis.plot_ablation import COLOURS, MARKERS, METRIC_NAMES, study_title
from analysis.predictions import Predictions
from analysis.stored import StoredStages
from analysis.words import p_words
from workbench.places import Places
from workbench.study.record import StudyRecord
from workbench.study.results import trial_table

LINE_OF_FIGURE = 80  # letters below the figure, from edge to edge

# Words


def describe(record: StudyRecord, curves: Curves, levels: pd.DataFrame, found: list[LabelReduction]) -> str:
    """The plain table that the command prints."""
    n = len(curves.replicates)
    lines = [f"{record.id}: {METRIC_NAMES[record.metric]}, n = {n} ({', '.join(curves.replicates)})"]
    if curves.left_out:
        lines.append(f"left out, for lack of a trial: {', '.join(curves.left_out)}")
    if curves.missing:
        lines.append(f"not finished at all, so that curves are coarser there: {', '.join(curves.missing)}")
    if n == 1:
        lines.append("one replicate gives no interval")
    else:
        lines.append(f"intervals of differences, and of the labels, are over {curves.over}")
    lines += [
        "",
        f"{'labels':>9}  {'scratch':>8}  {'pretrained':>10}  {'difference':>10}  "
        f"{'95 % interval':<18}  p (Holm)",
    ]
    for row in levels.to_dict("records"):
        low, high = row["difference_low"], row["difference_high"]
        between = "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
        lines.append(
            f"{row['labels']:9,.0f}  {_number(row[SCRATCH]):>8}  {_number(row[PRETRAINED]):>10}  "
            f"{_number(row['difference'], '+.3f'):>10}  {between:<18}  {p_words(row['p_holm'])}"
        )
    most = found[0].scratch_labels
    lines += ["", f"labels that reach the score of scratch with {most:,.0f}, and how many fewer they are:"]
    for item in found:
        name = "exact match" if item.share == 1 else f"{item.share:.0%} of it"
        lines.append(f"  {name} ({item.score:.3f}): {reading(item)}")
        lines.append(f"    for comparison: {checks(item)}")
    return "\n".join(lines)


def checks(found: LabelReduction) -> str:
    """Labels by other curves; and those of scratch itself, where these are fewer than the reduction is of."""
    words = [
        f"smooth curve {_labels(found.smooth_labels)}",
        f"power law {_labels(found.power_law_labels)}",
    ]
    if found.own_labels is not None and found.own_labels < 0.995 * found.reference_labels:
        words.append(f"scratch itself {_labels(found.own_labels)}")
    return ", ".join(words)


def reading(found: LabelReduction) -> str:
    """A reduction in words, with its interval."""
    if found.reach is Reach.NOT_REACHED:
        text = f"not reached with {found.largest:,.0f}, the most measured"
    elif found.reach is Reach.BELOW_RANGE:
        least = 1 - found.smallest / found.reference_labels
        text = f"fewer than {found.smallest:,.0f}, the fewest measured: more than {least:.0%} fewer"
    else:
        text = f"{_labels(found.labels)}: {_fewer(found.reduction)}"
    if found.has_levelled_off and found.reach is not Reach.NOT_REACHED:
        text += f" than the {found.reference_labels:,.0f} at which scratch levels off"
    if math.isnan(found.labels_low):
        return text
    low = f"below {found.smallest:,.0f}" if found.labels_low == 0 else f"{found.labels_low:,.0f}"
    high = f"above {found.largest:,.0f}" if found.labels_high == math.inf else f"{found.labels_high:,.0f}"
    return f"{text} (95 % interval: {low} to {high} labels; {_bounds(found)})"


def _bounds(found: LabelReduction) -> str:
    """The reduction's interval; where it is open the range measured gives no bound."""
    if found.labels_low == 0 and found.labels_high == math.inf:
        return "no bound on either side"
    if found.labels_high == math.inf:
        return f"at most {_fewer(found.reduction_high)}"
    if found.labels_low == 0:
        return f"at least {_fewer(found.reduction_low)}"
    return f"{found.reduction_low:.0%} to {found.reduction_high:.0%} fewer"


def _fewer(reduction: float | None) -> str:
    assert reduction is not None
    return f"{reduction:.0%} fewer" if reduction >= 0 else f"{-reduction:.0%} more"


def _labels(count: float | None) -> str:
    return "none within the range" if count is None else f"{count:,.0f}"


def _number(value: float, form: str = ".3f") -> str:
    return "-" if math.isnan(value) else format(value, form)


# The figure


def draw_efficiency(
    ax: Axes, record: StudyRecord, levels: pd.DataFrame, curves: Curves, found: list[LabelReduction]
) -> Axes:
    """Both curves over log labels, and at each score to reach a line from pre-trained to scratch."""
    arms = (
        (PRETRAINED, curves.pretrained_labels, curves.pretrained),
        (SCRATCH, curves.scratch_labels, curves.scratch),
    )
    for i, (name, counts, scores) in enumerate(arms):
        colour, marker = COLOURS[i], MARKERS[i]
        ax.plot(counts, monotone(scores)[0], color=colour, linewidth=1.5, zorder=3)
        shown = levels[levels[name].notna()]
        error = [shown[name] - shown[f"{name}_low"], shown[f"{name}_high"] - shown[name]]
        ax.errorbar(
            shown["labels"],
            shown[name],
            yerr=error,
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
            linestyle="none",
            label={PRETRAINED: "pre-trained", SCRATCH: "from scratch"}[name],
            zorder=4,
        )
        beside = np.broadcast_to(counts * (1.05 if i else 1 / 1.05), scores.shape)
        ax.scatter(beside, scores, edgecolors=colour, facecolors="none", marker=marker, s=12, zorder=4)
    for item, style in zip(found, ("-", "--"), strict=False):
        _draw_reading(ax, item, style)
    ax.set_xscale("log")
    places = sorted({*curves.scratch_labels, *curves.pretrained_labels})
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{p:,.0f}" for p in places])
    ax.set_xlabel("labelled clips")
    ax.set_ylabel(METRIC_NAMES[record.metric])
    return ax


def marks(curves: Curves) -> str:
    """What the figure shows."""
    n = len(curves.replicates)
    if n == 1:
        return "lines: scores made monotone; ◆ labels needed; n = 1 replicate, no interval"
    return (
        f"lines: means made monotone; n = {n} replicates, each a small mark; "
        f"bars: 95 % intervals of the mean over replicates, and of the labels needed (◆) over {curves.over}"
    )


def _draw_reading(ax: Axes, item: LabelReduction, style: str) -> None:
    """The score as a thin line; on it the interval as a bar, arrows where it is open, and the estimate."""
    name = "score of scratch" if item.share == 1 else f"{item.share:.0%} of it"
    name += f": {_fewer(item.reduction) if item.reach is Reach.REACHED else item.reach}"
    if not math.isnan(item.labels_low):
        name += f" ({_bounds(item)})"
    ax.axhline(item.score, color="0.35", linewidth=0.9, linestyle=style, label=name, zorder=1)
    if not math.isnan(item.labels_low):
        low, high = max(item.labels_low, item.smallest), min(item.labels_high, item.largest)
        ax.plot(
            [low, high],
            [item.score] * 2,
            color="0.25",
            linewidth=4,
            alpha=0.35,
            zorder=2,
            solid_capstyle="butt",
        )
        # An arrow stands beside the range, where it hides no data.
        ends = ((low, item.labels_low == 0, "<", 1 / 1.13), (high, item.labels_high == math.inf, ">", 1.13))
        for end, is_open, arrow, aside in ends:
            x, marker = (end * aside, arrow) if is_open else (end, "|")
            ax.plot(x, item.score, color="0.25", marker=marker, markersize=8, zorder=5)
    if item.labels is not None:
        ax.plot(item.labels, item.score, color="black", marker="D", markersize=5, zorder=6)


def write_study(
    record: StudyRecord,
    table: pd.DataFrame,
    curves: Curves,
    levels: pd.DataFrame,
    found: list[LabelReduction],
    output: Path,
) -> list[Path]:
    """Write `<id>-label-efficiency.png` and `.pdf`, `-labels.csv` (a row a count) and `-reduction.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    figure = study_figure(record, table, curves, levels, found)
    stem = f"{record.id}-label-efficiency"
    paths = [output / f"{stem}{end}" for end in (".png", ".pdf", "-labels.csv", "-reduction.csv")]
    figure.savefig(paths[0], dpi=200)
    figure.savefig(paths[1])
    plt.close(figure)
    trials = Completeness.of(record, table).share
    levels.assign(trials=trials).to_csv(paths[2], index=False)
    reduction_table(found).assign(trials=trials).to_csv(paths[3], index=False)
    return paths


def study_figure(
    record: StudyRecord,
    table: pd.DataFrame,
    curves: Curves,
    levels: pd.DataFrame,
    found: list[LabelReduction],
) -> Figure:
    """`draw_efficiency`, with a title, and what its marks are."""
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1)
    figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    draw_efficiency(ax, record, levels, curves, found)
    ax.set_title(study_title(record, table), loc="left", fontsize="medium")
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        title=textwrap.fill(marks(curves), LINE_OF_FIGURE),
        title_fontsize="small",
        frameon=False,
    )
    return figure


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when a reduction was estimated, or found not to be reached; 2 when there was nothing to estimate."""
    return run(_estimate, arguments, "Estimate how many labels pre-training saves.")


def _estimate(options: argparse.Namespace, records: list[StudyRecord]) -> int:
    if not options.studies:
        records = [r for r in records if is_suitable(r)]
    stages = StoredStages(Places.read(options.root).store())
    estimated = 0
    for record in records:
        table = trial_table(record, options.root)
        try:
            curves = study_curves(record, table, Predictions(stages, record.metric))
        except NoCurves as error:
            print(error, file=sys.stderr)
            continue
        levels, found = level_table(curves), study_reductions(record, curves)
        print(describe(record, curves, levels, found))
        completeness = Completeness.of(record, table)
        print("" if completeness.is_whole else f"half-run: {completeness}\n")
        for path in write_study(record, table, curves, levels, found, options.output):
            print(path)
        estimated += 1
    if not records:
        print(
            f"no study below {options.root} varies {AXIS} in the regimes {SCRATCH} and {PRETRAINED}; "
            "run one first: make study STUDY=studies/label_fraction.yaml",
            file=sys.stderr,
        )
    return 0 if estimated else 2


if __name__ == "__main__":
    sys.exit(main())
