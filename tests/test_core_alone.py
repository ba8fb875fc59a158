"""The training core needs torch, torchaudio, soundfile and numpy, and nothing of the study's machinery."""

import subprocess
import sys

SCRIPT = """
import sys

OTHERS = {"ray", "optuna", "mlflow", "yaml", "rich", "safetensors", "matplotlib", "seaborn"}
OTHERS |= {"pandas", "scipy"}


class Refuse:
    # pandas and scipy are only watched: torch itself asks whether they are there.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OTHERS - {"pandas", "scipy"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
        return None


sys.meta_path.insert(0, Refuse())

from pathlib import Path
from workbench.config import CorpusData, FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
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

print("imported", sorted(OTHERS & set(sys.modules)))
"""


def test_a_step_of_each_stage_runs_without_ray_optuna_and_mlflow(data_root):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data_root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []", done.stdout
