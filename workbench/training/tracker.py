"""Where the training loop reports to."""

from __future__ import annotations

from typing import Protocol


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
