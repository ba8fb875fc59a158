"""Each setting reaches the training; the defaults are the paper's."""

import dataclasses

import pytest
import torch

from workbench.config import Cosine, FinetuningConfig
from workbench.training.loop import Run
from workbench.training.pretrain import pretrain

from .trained import finetuned

PRETRAINING_CHANGES = {
    "batch_size": 8,
    "accumulation": 2,
    "gain_db": 6.0,
    "mel_shift": 2,
    "objective.mask_fraction": 0.5,
    "objective.mask_span": 3,
    "objective.num_distractors": 5,
    "objective.temperature": 0.5,
    "optimiser.peak_lr": 1e-3,
    "optimiser.betas": (0.5, 0.9),
    "optimiser.weight_decay": 0.5,
    "optimiser.max_grad_norm": 1e-3,
    "schedule": Cosine(warmup=0.1),
}
FINETUNING_CHANGES = {
    "batch_size": 8,
    "accumulation": 2,
    "pooling": "mean",
    "freeze_encoder": True,
    "output_dropout": 0.5,
    "consistency_weight": 2.0,
    "class_balanced": True,
    "augmentation.jitter_samples": 0,
    "augmentation.time_mask": 0.0,
    "augmentation.mixup": None,
    "optimiser.peak_lr": 1e-3,
    "optimiser.betas": (0.5, 0.9),
    "optimiser.weight_decay": 0.5,
    "optimiser.max_grad_norm": 1e-3,
    "schedule": Cosine(warmup=0.1),
    "num_evaluations": 4,
}


def _leaves(settings, path=""):
    """Dotted paths of the settings; a schedule is one of them, whole."""
    for field in dataclasses.fields(settings):
        value, here = getattr(settings, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value) and field.name != "schedule":
            yield from _leaves(value, f"{here}.")
        else:
            yield here


def test_the_lists_of_settings_are_whole(tiny_trial):
    besides = {"steps", "objective.kind"}  # the former is the length of the others' histories
    assert set(_leaves(tiny_trial.pretraining)) - besides == set(PRETRAINING_CHANGES)
    assert set(_leaves(tiny_trial.finetuning)) - besides == set(FINETUNING_CHANGES)


def _differ(one, other):
    return any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("path", PRETRAINING_CHANGES)
def test_every_pretraining_setting_reaches_the_weights(tiny_trial, tiny_splits, with_changes, path):
    base = with_changes(tiny_trial, {"pretraining.steps": 4})
    changed = with_changes(base, {f"pretraining.{path}": PRETRAINING_CHANGES[path]})
    one, other = (pretrain(trial, tiny_splits.pool, Run()).encoder.state_dict() for trial in (base, changed))
    assert _differ(one, other)


@pytest.mark.parametrize("path", FINETUNING_CHANGES)
def test_every_finetuning_setting_reaches_the_training(tiny_trial, tiny_splits, with_changes, path):
    base = with_changes(tiny_trial, {"finetuning.steps": 4})
    changed = with_changes(base, {f"finetuning.{path}": FINETUNING_CHANGES[path]})
    one, other = (finetuned(trial, tiny_splits) for trial in (base, changed))
    if path == "num_evaluations":  # the best of more moments may be the same
        assert one.history != other.history
    else:
        assert _differ(one.model.state_dict(), other.model.state_dict())


def test_the_default_finetuning_is_the_papers():
    paper = FinetuningConfig()
    assert paper.consistency_weight == 2.0
    assert (paper.schedule.warmup, paper.schedule.hold) == (0.3, 0.3)
    assert paper.augmentation.jitter_samples == 200
    assert paper.augmentation.time_mask == 0.2
    assert paper.augmentation.mixup == 0.5
