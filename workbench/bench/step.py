"""Updates of both stages by the core, beside the plain reference."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass

import torch

from workbench.bench.flops import update_flops
from workbench.bench.front_end import front_end_seconds
from workbench.bench.plain import PlainTraining
from workbench.bench.timing import Compared, failure, in_turn, peak_bytes
from workbench.config import TrialConfig
from workbench.data.noise import noise_clips, noise_splits
from workbench.settings import TrainingKind
from workbench.training.timing import UpdateClock, time_updates

NUM_CLASSES = 12  # the embedded corpus's


@dataclass(frozen=True)
class StepFigures:
    """One stage at one shape; seconds are of an update of `batch_size` clips.

    Where the plain reference fails, `plain_error` says why, and what is its own is missing.
    """

    batch_size: int
    seconds: Compared
    front_end_seconds: float  # and augmentation, of the core
    flops: float  # of an update
    bytes: int
    plain_bytes: int | None
    plain_error: str | None = None

    @property
    def clips_per_second(self) -> float:
        return self.batch_size / self.seconds.seconds

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds.seconds


def measure_step(
    config: TrialConfig, kind: TrainingKind, device: torch.device, *, updates: int, rounds: int
) -> StepFigures:
    """`updates` a round; on a GPU of one batch each before it is waited for."""
    batch = config.training(kind).batch_size
    seconds = in_turn(
        lambda: core_seconds(config, kind, device, updates),
        lambda: plain_seconds(config, kind, device, updates),
        rounds,
    )
    plain_bytes: list[int] = []

    def weigh_plain() -> None:
        plain_bytes.append(peak_bytes(device, plain_seconds, config, kind, device, 1))

    plain_error = seconds.plain_error or failure(weigh_plain)
    return StepFigures(
        batch_size=batch,
        seconds=seconds,
        front_end_seconds=front_end_seconds(config, kind, device, max(3, updates)),
        flops=update_flops(config, kind, NUM_CLASSES),
        bytes=peak_bytes(device, core_seconds, config, kind, device, 1),
        plain_bytes=next(iter(plain_bytes), None),
        plain_error=plain_error,
    )


def core_seconds(
    config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int, num_trials: int = 1
) -> float:
    """Of an update of one trial: `pretrain` or `finetune` themselves; several are seeds of it, packed."""
    length = config.data.clip_seconds
    splits = noise_splits(2 * config.training(kind).batch_size, length, length, NUM_CLASSES)
    trials = [dataclasses.replace(config, seed=seed) for seed in range(num_trials)]
    return time_updates(kind, trials, splits, UpdateClock(device, updates=updates))


def plain_seconds(config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int) -> float:
    clock = UpdateClock(device, updates=updates)
    clips = noise_clips(2 * config.training(kind).batch_size, config.data.clip_seconds, NUM_CLASSES)
    training = PlainTraining(config, kind, clips, device)
    step = 0
    while not clock.enough():
        training.update(step)
        step += 1
        clock.progress(kind, step, step)
    del training
    gc.collect()
    return clock.update_seconds()
