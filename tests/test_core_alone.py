"""The training core needs torch, torchaudio, soundfile and numpy, and nothing of the study's machinery."""

import json

import pytest

from .run_alone import run_alone

STAGES = """
from pathlib import Path
from workbench.config import FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData
from workbench.data import load_splits
from workbench.training.finetune import finetune, score
from workbench.training.loop import Run
from workbench.training.pretrain import pretrain

trial = TrialConfig(
    data=CorpusData(clip_seconds=1.6, pool_clips=16, labelled_clips=16, validation_clips=16, test_clips=16),
    model=ModelConfig(num_blocks=1, width=16, num_heads=2, ffn_dim=16),
    pretraining=PretrainingConfig(steps=1, batch_size=8),
    finetuning=FinetuningConfig(steps=1, batch_size=8, num_evaluations=1),
)
splits = load_splits(trial.data, Path(sys.argv[1]), trial.seed)
pretrained = pretrain(trial, splits.pool, Run())
model = finetune(trial, splits, pretrained.encoder, Run()).model
assert 0 < score(trial, model, splits.test, Run().device, "test")[0]["test/mAP"] <= 1

"""

BENCHMARK = """
from workbench.bench import feed
from workbench.bench.__main__ import main

feed.FILE_BYTES = 1_000_000
main(["--shape", "quick", "--batch", "2", "--rounds", "1", "--threads", "1", "--json", sys.argv[2]])
"""


def test_a_step_of_each_stage_runs_without_ray_optuna_and_mlflow(data_root):
    run_alone(STAGES, data_root)


@pytest.mark.slow
def test_the_benchmark_runs_without_them_and_keeps_its_figures(tmp_path):
    printed = run_alone(BENCHMARK, tmp_path, tmp_path / "figures.json")
    assert "machinery: left out" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["stage"] for row in figures["step"]] == ["pretrain", "finetune"]
    assert [(row["stage"], row["trials"]) for row in figures["packed"]] == [
        (stage, trials) for stage in ("pretrain", "finetune") for trials in (2, 4)
    ]
    for row in [*figures["step"], *figures["packed"], *figures["feed"]]:
        assert row["ratio"] == pytest.approx(row["plain"][0] / row["ours"][0])
        assert f"{row['ratio']:.2f}" in printed
    for row in figures["step"]:
        assert 0 < row["front_end_share"] < 1
        assert 0 < row["share_of_peak"] < 1
        assert min(row["bytes"], row["plain_bytes"]) > 0
