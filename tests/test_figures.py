"""What figures show is what the table holds: no bar without an interval, hours, a line a pre-training."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.plot_ablation import COLOURS, draw_levels, level_summary
from analysis.report_figures import _lines_of, draw_budget, draw_curves

from .simulated_studies import FOLDER, a_record, rows_of, simulated


def _axes():
    return Figure().subplots()


def _bars(ax):
    """Lengths of the error bars that are drawn."""
    segments = [segment for drawn in ax.containers for segment in drawn.lines[2][0].get_segments()]
    return [end - start for ((_, start), (_, end)) in (s for s in segments if len(s) == 2) if end >= start]


def test_one_replicate_has_no_bar_and_several_have_their_interval():
    record = a_record()
    alone = rows_of([(1, 0, 0.5), (2, 0, 0.6)]).assign(labelled_clips=480.0)
    ax = _axes()
    draw_levels(ax, record, alone)
    assert _bars(ax) == []
    assert len(ax.containers) == 1
    several = rows_of([(1, 0, 0.5), (2, 0, 0.6), (2, 1, 0.7)]).assign(labelled_clips=480.0)
    ax = _axes()
    summary = draw_levels(ax, record, several)
    whole = summary[summary["n"] == 2].iloc[0]
    assert _bars(ax) == pytest.approx([whole["high"] - whole["low"]])


def test_folds_are_drawn_as_the_replicates_that_are_counted():
    rows = [(1, seed, 0.5 + 0.01 * seed + 0.1 * fold) for seed in (0, 1) for fold in (1, 2, 3)]
    table = rows_of(rows).assign(labelled_clips=480.0, fold=[fold for _ in (0, 1) for fold in (1, 2, 3)])
    ax = _axes()
    draw_levels(ax, a_record(), table)
    marks = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) > 1])[:, 1]
    assert sorted(marks) == pytest.approx([0.605, 0.705, 0.805])
    assert level_summary(a_record(), table)["n"].tolist() == [3]


def test_the_amount_of_pretraining_audio_is_in_hours():
    record, table = simulated(FOLDER / "pretrain_data.yaml", "quick", lambda trial: 0.5 + 0.01 * trial.seed)
    table["pool_hours"] = table["data.pool_clips"] * 3.2 / 3600
    ax = _axes()
    draw_levels(ax, record, table)
    assert ax.get_xlabel() == "pre-training audio / hours"
    assert [float(label.get_text()) for label in ax.get_xticklabels()] == pytest.approx(
        sorted(set(table["pool_hours"])), rel=0.05
    )


def test_arms_of_one_pretraining_are_one_line_of_it():
    rows = [
        {"arm": f"{regime}, num_heads {heads}", "seed": 0, "fold": None, "stage": stage, "step": step}
        | {"key": f"{heads}" if stage == "pretrain" else f"{regime}{heads}"}
        | {"metric": {"pretrain": "contrastive_accuracy", "finetune": "validation/mAP"}[stage]}
        | {"value": step / 10}
        for regime in ("full", "balanced")
        for heads in (1, 4)
        for stage in ("pretrain", "finetune")
        for step in (1, 2)
    ]
    before, after = draw_curves(a_record(), pd.DataFrame(rows)).axes
    assert [text.get_text() for text in before.get_legend().get_texts()] == ["num_heads 1", "num_heads 4"]
    assert len(after.get_lines()) == 4


def test_no_two_arms_of_a_budget_panel_look_alike():
    record, table = simulated(
        FOLDER / "label_fraction.yaml", "quick", lambda t: 10 * t.config.finetuning.optimiser.peak_lr
    )
    arms = table.groupby(["regime", "data.label_fraction"]).ngroups
    assert arms > len(COLOURS)
    panels = draw_budget(record, table).axes
    assert sum(len(ax.get_lines()) for ax in panels) == arms
    for ax in panels:
        looks = {(line.get_color(), line.get_marker()) for line in ax.get_lines()}
        assert len(looks) == len(ax.get_lines())


def test_a_line_that_many_arms_share_has_a_short_name():
    arms = [f"{regime}, batch_size {size}" for regime in ("full", "balanced") for size in (8, 32, 128)]
    curves = pd.DataFrame({"arm": arms, "key": "the same pre-training"})
    assert list(_lines_of(curves)) == ["full, batch_size 8 and 5 more"]
    assert list(_lines_of(curves[:2])) == ["full"]
    assert list(_lines_of(curves[::3])) == ["batch_size 8"]
