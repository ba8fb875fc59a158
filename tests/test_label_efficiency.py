"""Studies give the curves that are in them, and the command says and writes what they show."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from analysis import command, label_efficiency
from analysis.bench_coverage import SHAPES
from analysis.estimators import holm
from analysis.label_curves import NoCurves, level_table, study_curves, study_reductions
from analysis.label_efficiency import describe, main, study_figure
from analysis.label_reduction import label_reduction
from analysis.replicates import FOLD_OVERLAP
from workbench.study.record import StudyRecord

from .simulated_studies import NoPredictions

LABELS = np.array([120, 240, 480, 960, 1920])


def _noisy(n: int) -> tuple[np.ndarray, np.ndarray]:
    return SHAPES["quick"].draw(n, np.random.default_rng(0))


def _record(**changes: object) -> StudyRecord:
    values = {
        "id": "label_fraction-quick-1234",
        "name": "label_fraction",
        "preset": "quick",
        "question": "",
        "claims": [],
        "entered": {},
        "base": {},
        "axes": ["data.label_fraction"],
        "tuned": [],
        "regimes": ["pretrained", "scratch"],
        "metric": "mAP",
        "search": False,
        "command": "",
        "folder": Path(),
    }
    return StudyRecord(**(values | changes))


def _table(n: int = 3) -> pd.DataFrame:
    """As `trial_table` has it, in no particular order."""
    scratch, pretrained = _noisy(n)
    rows = [
        {
            "number": 0,
            "state": "complete",
            "data.label_fraction": labels / 1920,
            "finetuning.steps": 100 + labels,
            "regime": regime,
            "seed": seed,
            "fold": None,
            "labelled_clips": float(labels),
            "key": f"{regime} {seed} {column}",
            "test/mAP": scores[seed, column],
        }
        for regime, scores in (("scratch", scratch), ("pretrained", pretrained))
        for seed in range(n)
        for column, labels in enumerate(LABELS)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)
    return table.assign(number=range(len(table)))


def test_a_table_gives_the_curves_that_are_in_it() -> None:
    scratch, pretrained = _noisy(3)
    curves = study_curves(_record(), _table(), NoPredictions())
    assert curves.scratch == pytest.approx(scratch)
    assert curves.pretrained == pytest.approx(pretrained)
    assert curves.scratch_labels.tolist() == LABELS.tolist()
    assert curves.replicates == ["seed 0", "seed 1", "seed 2"]
    exact, nearly = study_reductions(_record(), curves)
    assert exact == label_reduction(LABELS, scratch, LABELS, pretrained)
    assert nearly.labels < exact.labels
    levels = level_table(curves)
    assert levels["difference"].to_numpy() == pytest.approx((pretrained - scratch).mean(axis=0))
    assert (levels["p_holm"] >= levels["p"]).all()


def test_a_seed_without_all_trials_is_left_out_and_named() -> None:
    table = _table()
    table.loc[(table["seed"] == 1) & (table["regime"] == "scratch") & (table.index % 2 == 0), "state"] = (
        "failed"
    )
    curves = study_curves(_record(), table, NoPredictions())
    assert curves.replicates == ["seed 0", "seed 2"]
    assert curves.left_out == ["seed 1"]
    text = describe(_record(), curves, level_table(curves), study_reductions(_record(), curves))
    assert "left out, for lack of a trial: seed 1" in text


def test_levels_that_lack_all_trials_are_named_and_no_other_becomes_the_reference() -> None:
    table, record = _table(), _record(levels=[labels / 1920 for labels in LABELS])
    assert study_curves(record, table, NoPredictions()).missing == []
    of_scratch = table["regime"] == "scratch"
    curves = study_curves(record, table[of_scratch | (table["labelled_clips"] != 480)], NoPredictions())
    assert curves.missing == ["pretrained with 0.25 of the labels"]
    text = describe(record, curves, level_table(curves), study_reductions(record, curves))
    assert "not finished at all, so that curves are coarser there: pretrained with 0.25 of" in text
    table.loc[of_scratch & (table["labelled_clips"] == 1920), "state"] = "failed"
    with pytest.raises(NoCurves, match="scratch has no finished trial with 1 of the labels"):
        study_curves(record, table, NoPredictions())


def test_folds_are_replicates_that_are_not_independent() -> None:
    """Whatever seeds they are run with: their training clips stay the same."""
    of_seeds = study_curves(_record(), _table(), NoPredictions())
    table = pd.concat([_table().assign(fold=lambda t: t["seed"] + 1, seed=seed) for seed in (0, 1)])
    of_folds = study_curves(_record(), table, NoPredictions())
    assert of_folds.replicates == ["fold 1", "fold 2", "fold 3"]
    np.testing.assert_array_equal(of_folds.scratch, of_seeds.scratch)
    wider = np.sqrt(1 + 3 * FOLD_OVERLAP)
    ours, plain = level_table(of_folds), level_table(of_seeds)
    for name in ("scratch", "pretrained", "difference"):
        half, plain_half = (t[f"{name}_high"] - t[name] for t in (ours, plain))
        np.testing.assert_allclose(half, wider * plain_half)
    assert (ours["p"] > plain["p"]).all()
    for one, other in zip(
        study_reductions(_record(), of_folds), study_reductions(_record(), of_seeds), strict=True
    ):
        assert one.labels == other.labels
        assert one.labels_low <= other.labels_low
        assert one.labels_high >= other.labels_high
        assert (one.labels_low, one.labels_high) != (other.labels_low, other.labels_high)


@pytest.mark.parametrize("replicates", ["seeds", "folds", "one"])
def test_all_words_of_the_figure_are_within_it(replicates: str) -> None:
    table = _table(1 if replicates == "one" else 3)
    if replicates == "folds":
        table = table.assign(fold=table["seed"] + 1, seed=0)
    record = _record()
    curves = study_curves(record, table, NoPredictions())
    figure = study_figure(record, table, curves, level_table(curves), study_reductions(record, curves))
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        extent = text.get_window_extent()
        assert not text.get_text() or (extent.x0 >= 0 and extent.x1 <= figure.bbox.x1), text.get_text()
    plt.close(figure)


class SharedClips(NoPredictions):
    """Of trials that 200 clips moved as they moved all of their arm, by their keys; or that were deleted."""

    def __init__(self, clips: int | None = 200) -> None:
        self.clips = clips

    def shared_clips(self, keys: Iterable[str]) -> int | None:
        assert len(set(keys)) == 30
        return self.clips

    def resampled(self, key: str) -> np.ndarray:
        regime, _, column = key.split()
        which = {"scratch": 0, "pretrained": 1}[regime], int(column)
        return 0.5 + 0.05 * np.random.default_rng(which).normal(size=300)


def test_test_clips_that_all_trials_share_are_in_the_intervals() -> None:
    record, table = _record(), _table()
    own, shared = study_curves(record, table, NoPredictions()), study_curves(record, table, SharedClips())
    assert (own.over, shared.over) == ("replicates alone", "replicates and 200 test clips")
    assert shared.draws is not None
    assert shared.draws.pretrained[:, 2, 4] == pytest.approx(SharedClips().resampled("pretrained 2 4"))
    assert shared.draws.scratch[:, 0, 1] == pytest.approx(SharedClips().resampled("scratch 0 1"))
    of_own, of_shared = level_table(own), level_table(shared)
    assert (of_shared["difference"] == of_own["difference"]).all()
    assert (of_shared["difference_high"] > of_own["difference_high"] + 0.05).all()
    assert (of_shared["p"] > of_own["p"]).all()
    for one, other in zip(study_reductions(record, shared), study_reductions(record, own), strict=True):
        assert one.labels == other.labels
        assert one.labels_low < other.labels_low
    text = describe(record, shared, of_shared, study_reductions(record, shared))
    assert "intervals of differences, and of the labels, are over replicates and 200 test clips" in text
    with pytest.raises(NoCurves, match="predictions that intervals need were deleted"):
        study_curves(record, table, SharedClips(None))


def test_a_metric_that_few_test_clips_leave_undefined_gives_no_curves() -> None:
    class Undefined(SharedClips):
        def resampled(self, key: str) -> np.ndarray:
            return np.where(np.arange(300) == 7, np.nan, super().resampled(key))

    with pytest.raises(NoCurves, match="10 test clips are too few, for mAP is not defined on every redraw"):
        study_curves(_record(), _table(), Undefined(10))


def test_differences_that_are_all_the_same_have_no_p_value() -> None:
    """Accuracy on few clips moves in steps, and may by chance move alike in all replicates."""
    table = _table()
    table.loc[table["labelled_clips"] == 480, "test/mAP"] = 0.5
    table.loc[(table["labelled_clips"] == 480) & (table["regime"] == "pretrained"), "test/mAP"] = 0.75
    levels = level_table(study_curves(_record(), table, NoPredictions())).set_index("labels")
    assert levels.loc[480, "difference"] == 0.25
    assert levels.loc[480, ["difference_low", "difference_high", "p", "p_holm"]].isna().all()
    others = levels.drop(480)
    np.testing.assert_array_equal(others["p_holm"], holm(others["p"]))


def test_tables_without_two_curves_are_refused() -> None:
    table = _table()
    for unfit, message in (
        (pd.DataFrame(), "no finished trial"),
        (table.assign(state="failed"), "no finished trial"),
        (table[table["regime"] == "scratch"], "no seed has finished"),
        (table[table["labelled_clips"] == 120], "two or more"),
        (pd.concat([table, table]), "several trials"),
        (table.assign(labelled_clips=3.0), "are 3 labelled clips each"),
    ):
        with pytest.raises(NoCurves, match=message):
            study_curves(_record(), unfit, NoPredictions())
    with pytest.raises(NoCurves, match="does not vary"):
        study_curves(_record(regimes=["full"]), table, NoPredictions())


@pytest.fixture
def found_studies(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[StudyRecord, pd.DataFrame]]:
    """What the command finds: the test enters records and their tables."""
    there: dict[str, tuple[StudyRecord, pd.DataFrame]] = {}
    monkeypatch.setattr(command, "studies", lambda root: [record for record, _ in there.values()])
    monkeypatch.setattr(label_efficiency, "trial_table", lambda record, root: there[record.id][1])
    monkeypatch.setattr(label_efficiency, "Predictions", lambda stages, metric: NoPredictions())
    return there


def test_the_command_prints_and_writes(found_studies, tmp_path: Path, capsys) -> None:
    record = _record()
    found_studies[record.id] = (record, _table())
    other = _record(id="heads-quick-1", name="heads", axes=["model.num_heads"], regimes=["full"])
    found_studies[other.id] = (other, pd.DataFrame())
    assert main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "label_fraction-quick-1234: test mAP, n = 3 (seed 0, seed 1, seed 2)" in printed
    assert "exact match" in printed
    assert "97% of it" in printed
    assert "95 % interval:" in printed
    stem = "label_fraction-quick-1234-label-efficiency"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}{end}" for end in (".png", ".pdf", "-labels.csv", "-reduction.csv")
    }
    assert pd.read_csv(tmp_path / f"{stem}-labels.csv")["labels"].tolist() == LABELS.tolist()
    reductions = pd.read_csv(tmp_path / f"{stem}-reduction.csv")
    assert reductions["share"].tolist() == [1.0, 0.97]
    assert (reductions["reduction_low"].fillna(-9) < reductions["reduction"]).all()


@pytest.mark.parametrize("replicates", [1, 3])
@pytest.mark.parametrize("offset", [-0.5, 0.5])
def test_curves_that_never_meet_are_reported_as_such(
    found_studies, tmp_path: Path, capsys, offset: float, replicates: int
) -> None:
    table = _table(replicates)
    table.loc[table["regime"] == "pretrained", "test/mAP"] += offset
    found_studies["label_fraction"] = (_record(id="label_fraction"), table)
    assert main(["label_fraction", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert ("not reached" if offset < 0 else "fewer than 120") in printed
    assert ("one replicate gives no interval" in printed) == (replicates == 1)
    reductions = pd.read_csv(tmp_path / "label_fraction-label-efficiency-reduction.csv")
    assert reductions["reduction"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "varies data.label_fraction"),
        (["nosuch"], "no study nosuch below mlruns; there: heads-quick-1"),
        (["heads"], "heads-quick-1: does not vary"),
    ],
)
def test_nothing_to_estimate_is_said_in_one_line(
    found_studies, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    heads = _record(id="heads-quick-1", name="heads", axes=["model.num_heads"], regimes=["full"])
    found_studies["heads-quick-1"] = (heads, pd.DataFrame())
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not list(tmp_path.iterdir())
