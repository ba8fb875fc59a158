"""Trials trained together, beside one trial at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.bench.flops import Kind
from workbench.bench.step import core_seconds
from workbench.bench.timing import Compared, in_turn
from workbench.config import TrialConfig


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
            lambda: core_seconds(config, kind, device, updates, num_trials),
            lambda: core_seconds(config, kind, device, updates),
            rounds,
        ),
    )
