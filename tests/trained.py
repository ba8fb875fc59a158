"""Fine-tuning from an encoder that knows nothing, which most tests of it begin with."""

import torch

from workbench.training.finetune import finetune
from workbench.training.loop import Run
from workbench.training.pretrain import new_encoder


def finetuned(trial, splits, run=None):
    return finetune(trial, splits, new_encoder(trial, splits.pool, torch.device("cpu")), run or Run())
