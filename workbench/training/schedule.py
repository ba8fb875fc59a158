"""Learning-rate schedules: share of the updates done -> share of the peak."""

from __future__ import annotations

import math

from workbench.config import Constant, Cosine, ScheduleConfig, Step, ThreeStage, WarmupLinear


def learning_rate_scale(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Multiplier of the peak at update `step` of `steps`, counted from 0; in [0, 1].

    Warm-up rises linearly, and its last update runs at the peak.
    """
    warmup_steps = round(schedule.warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)  # of what follows the warm-up
    match schedule:
        case Constant():
            return 1.0
        case WarmupLinear():
            return 1.0 - done
        case Cosine():
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case Step():
            passed = sum(step >= milestone * steps for milestone in schedule.milestones)
            return schedule.factor**passed
        case ThreeStage():
            hold_end = round((schedule.warmup + schedule.hold) * steps)
            if step < hold_end:
                return 1.0
            return float(schedule.final_scale ** ((step - hold_end + 1) / max(1, steps - hold_end)))
