"""Trials trained together, beside one trial at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from workbench.bench.flops import Kind
from workbench.bench.shapes import batch_of
from workbench.bench.step import NUM_CLASSES, core_seconds
from workbench.bench.timing import Compared, in_turn
from workbench.config import TrialConfig
from workbench.data.noise import noise_clips, noise_splits
from workbench.training.finetune import finetune_together
from workbench.training.loop import Run
from workbench.training.pretrain import new_encoder, pretrain_together
from workbench.training.tracker import UpdateClock


@dataclass(frozen=True)
class PackedFigures:
    """Seconds of an update of one trial: in a pack of `num_trials`, and alone."""

    kind: Kind
    num_trials: int
    seconds: Compared


def measure_packed(
    config: TrialConfig, kind: Kind, device: torch.device, *, num_trials: int, updates: int, rounds: int
) -> PackedFigures:
    """Seeds of one trial."""
    return PackedFigures(
        kind,
        num_trials,
        in_turn(
            lambda: _packed_seconds(config, kind, device, num_trials, updates),
            lambda: core_seconds(config, kind, device, updates),
            rounds,
        ),
    )


def _packed_seconds(
    config: TrialConfig, kind: Kind, device: torch.device, num_trials: int, updates: int
) -> float:
    clock = UpdateClock(device, updates=updates)
    # The first of the pack is the clock's: one update of it is one of all.
    runs = [Run(device=device, tracker=clock, should_stop=clock.enough)]
    runs += [Run(device=device, should_stop=clock.has_ended) for _ in range(1, num_trials)]
    trials = [dataclasses.replace(config, seed=seed) for seed in range(num_trials)]
    length, batch = config.data.clip_seconds, batch_of(config, kind)
    if kind == "pretrain":
        pool = noise_clips(2 * batch, length, NUM_CLASSES).unlabelled()
        pretrain_together([(trial, pool, run) for trial, run in zip(trials, runs, strict=True)])
    else:
        splits = noise_splits(2 * batch, length, length, NUM_CLASSES)
        encoders = [new_encoder(trial, splits.pool, device) for trial in trials]
        finetune_together(
            [
                (trial, splits, encoder, run)
                for trial, encoder, run in zip(trials, encoders, runs, strict=True)
            ]
        )
    return clock.update_seconds() / num_trials
