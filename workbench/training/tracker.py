"""Where the training loop reports to."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import Protocol

import torch


class Tracker(Protocol):
    """Receives progress and metrics; only the loop calls it.

    It may raise to end the training; what the loop has saved stays.
    """

    def progress(self, stage: str, step: int, steps: int) -> None:
        """After every update."""

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a log point or an evaluation, after `step` updates."""


class SilentTracker:
    """Keeps nothing."""

    def progress(self, stage: str, step: int, steps: int) -> None:
        pass

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        pass


class UpdateClock(SilentTracker):
    """Times updates, the first `warm_up` apart; `enough` is a run's `should_stop`.

    A GPU is waited for at both ends only: an update may begin while the last one is still computed.
    """

    def __init__(
        self, device: torch.device, *, updates: int, seconds: float = math.inf, warm_up: int = 2
    ) -> None:
        """Enough is after so many updates, or so many seconds and an update."""
        self._device, self._updates, self._seconds, self._warm_up = device, updates, seconds, warm_up
        self._times: list[float] = []
        self._ended = False

    def progress(self, stage: str, step: int, steps: int) -> None:
        if len(self._times) == self._warm_up - 1:
            self._wait()
        self._times.append(time.perf_counter())

    def enough(self) -> bool:
        timed = len(self._times) - self._warm_up
        spent = timed >= 1 and self._times[-1] - self._times[self._warm_up - 1] >= self._seconds
        if timed < self._updates and not spent:
            return False
        self._wait()
        self._times[-1] = time.perf_counter()
        self._ended = True
        return True

    def has_ended(self) -> bool:
        """Whether enough was enough, for what is trained beside."""
        return self._ended

    def update_seconds(self) -> float:
        """Of one update: the median, on a GPU the mean."""
        after = self._times[self._warm_up - 1 :]
        if self._device.type == "cuda":
            return (after[-1] - after[0]) / (len(after) - 1)
        return statistics.median(late - early for early, late in itertools.pairwise(after))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
