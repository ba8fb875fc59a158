"""Learning rates over a training, as the paper and the field define them."""

import typing

import pytest

from workbench.config import Constant, Cosine, ScheduleConfig, Step, ThreeStage, WarmupLinear
from workbench.training.schedule import learning_rate_scale


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (WarmupLinear(warmup=0.1), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 1 / 90}),
        (ThreeStage(), {0: 1 / 30, 29: 1.0, 30: 1.0, 59: 1.0, 79: 0.1, 99: 0.01}),
        (Constant(), {0: 1.0, 99: 1.0}),
        (Constant(warmup=0.5), {24: 0.5, 50: 1.0}),
        (Cosine(warmup=0.0), {0: 1.0, 50: 0.5, 99: 0.00025}),
        (Step(milestones=(0.5, 0.75)), {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_schedules(schedule, expected):
    for step, scale in expected.items():
        assert learning_rate_scale(schedule, step, 100) == pytest.approx(scale, abs=2e-5), step


@pytest.mark.parametrize("schedule", [kind() for kind in typing.get_args(ScheduleConfig)])
@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
def test_schedules_stay_between_nothing_and_the_peak(schedule, steps):
    scales = [learning_rate_scale(schedule, step, steps) for step in range(steps)]
    assert all(0 <= scale <= 1 for scale in scales)
    assert max(scales) > 0
