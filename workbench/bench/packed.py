"""Trials trained together, beside one trial at a time."""

from __future__ import annotations

import torch

from workbench.bench.step import core_seconds
from workbench.bench.timing import Compared, in_turn
from workbench.config import TrialConfig
from workbench.settings import TrainingKind


def measure_packed(
    config: TrialConfig,
    kind: TrainingKind,
    device: torch.device,
    *,
    num_trials: int,
    updates: int,
    rounds: int,
) -> Compared:
    """Seconds of an update of one of so many trials, which differ in their seeds: in a pack, and alone."""
    return in_turn(
        lambda: core_seconds(config, kind, device, updates, num_trials),
        lambda: core_seconds(config, kind, device, updates),
        rounds,
    )
