"""What is read out of a study's table."""

import types
from pathlib import Path

import pandas as pd
import pytest

from analysis.plot_ablation import level_summary
from workbench.study.record import StudyRecord
from workbench.study.results import _row, _without_scores, best_tuned

RATE = "finetuning.optimiser.peak_lr"


@pytest.fixture
def record():
    return StudyRecord(
        id="schedules-quick",
        name="schedules",
        preset="quick",
        question="",
        claims=[],
        entered={},
        base={},
        axes=["schedule"],
        tuned=[RATE],
        regimes=["all"],
        metric="mAP",
        search=False,
        command="",
        folder=Path(),
    )


def _table(scores):
    """{(schedule, rate): [(validation, test) of each seed]}"""
    return pd.DataFrame(
        {
            "schedule": schedule,
            RATE: rate,
            "regime": "all",
            "seed": seed,
            "fold": None,
            "labelled_clips": 10.0,
            "validation/mAP": validation,
            "test/mAP": test,
        }
        for (schedule, rate), pairs in scores.items()
        for seed, (validation, test) in enumerate(pairs)
    )


SCORES = {
    ("cosine", 1e-3): [(0.5, 0.9), (0.6, 0.9)],  # the best test scores, which must not count
    ("cosine", 2e-3): [(0.7, 0.6), (0.8, 0.7)],
    ("step", 1e-3): [(0.9, 0.5), (0.3, 0.4)],
    ("step", 2e-3): [(0.5, 0.8), (0.5, 0.8)],  # worse on average than 0.9 and 0.3
}


def _chosen(record, table):
    return {(row.schedule, row[RATE]) for _, row in best_tuned(record, table).iterrows()}


def test_each_arm_is_shown_at_its_best_by_validation(record):
    assert _chosen(record, _table(SCORES)) == {("cosine", 2e-3), ("step", 1e-3)}
    summary = level_summary(record, best_tuned(record, _table(SCORES)))
    assert dict(zip(summary["schedule"], summary["mean"], strict=True)) == pytest.approx(
        {"cosine": 0.65, "step": 0.45}
    )
    assert summary["n"].tolist() == [2, 2]


def test_test_scores_take_no_part_in_the_choice(record):
    table = _table(SCORES)
    assert _chosen(record, table.assign(**{"test/mAP": -table["test/mAP"]})) == _chosen(record, table)


def test_a_setting_that_lacks_a_replicate_is_not_chosen_for_its_luck(record):
    few = SCORES | {("step", 4e-3): [(0.99, 0.99)]}
    assert _chosen(record, _table(few)) == {("cosine", 2e-3), ("step", 1e-3)}


def test_without_tuning_all_trials_stay(record):
    untuned = StudyRecord(**(vars(record) | {"axes": ["schedule", RATE], "tuned": []}))
    assert len(best_tuned(untuned, _table(SCORES))) == 8


def test_a_trial_without_a_score_has_failed(record):
    """Such as a macro AUC where every test clip has the class: no mean is to hold it."""
    table = _table(SCORES).assign(state="complete", reason="")
    table.loc[0, "test/mAP"] = float("nan")
    table.loc[5, "validation/mAP"] = float("nan")
    told = _without_scores(record, table)
    assert told.index[told["state"] == "failed"].tolist() == [0, 5]
    assert "mAP is not defined" in told["reason"][0]
    assert set(told["reason"].drop([0, 5])) == {""}
    without = table.drop(columns=["test/mAP"])
    assert set(_without_scores(record, without)["state"]) == {"failed"}


def _run(**tags):
    shared = {"number": "3", "state": "complete", "key": "k", "data": "0123", "level": '{"schedule": "step"}'}
    shared |= {"regime": '"all"', "seed": "0", "fold": "null"}
    tags = {f"workbench.{name}": value for name, value in (shared | tags).items()}
    data = types.SimpleNamespace(tags=tags, metrics={"test/mAP": 0.5})
    info = types.SimpleNamespace(start_time=0, end_time=1000, run_id="r")
    return types.SimpleNamespace(data=data, info=info)


def test_a_row_has_the_fingerprints_of_its_data_and_of_its_pool(record):
    row = _row(_run(pool="4567"), record, None)
    assert (row["data"], row["pool"]) == ("0123", "4567")
    assert _row(_run(), record, None)["pool"] == ""
