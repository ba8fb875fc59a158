"""How long an update takes: the stages themselves, on whatever clips, stopped after a few updates."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Sequence

import torch

from workbench.config import TrialConfig
from workbench.data.clips import Splits
from workbench.settings import TrainingKind
from workbench.training.finetune import finetune, finetune_together
from workbench.training.loop import Run, Stopped
from workbench.training.pretrain import new_encoder, pretrain, pretrain_together
from workbench.training.tracker import SilentTracker


class UpdateClock(SilentTracker):
    """Times updates, the first `warm_up` apart; `enough` is a run's `should_stop`.

    A GPU is waited for at both ends only: an update may begin while the last one is still computed.
    """

    def __init__(
        self, device: torch.device, *, updates: int, seconds: float = math.inf, warm_up: int = 2
    ) -> None:
        """Enough is after so many updates, or so many seconds and an update."""
        self.device, self._updates, self._seconds, self._warm_up = device, updates, seconds, warm_up
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
        if self.device.type == "cuda":
            return (after[-1] - after[0]) / (len(after) - 1)
        return statistics.median(late - early for early, late in itertools.pairwise(after))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def time_updates(
    kind: TrainingKind, trials: Sequence[TrialConfig], splits: Splits, clock: UpdateClock
) -> float:
    """Seconds of an update of each of `trials`, trained together until the clock has enough; one, alone."""
    # The first is the clock's: one update of it is one of all.
    runs = [Run(device=clock.device, tracker=clock, should_stop=clock.enough)]
    runs += [Run(device=clock.device, should_stop=clock.has_ended) for _ in trials[1:]]
    with contextlib.suppress(Stopped):
        if kind == "pretrain":
            pretraining = [(trial, splits.pool, run) for trial, run in zip(trials, runs, strict=True)]
            if len(trials) == 1:
                pretrain(*pretraining[0])
            else:
                pretrain_together(pretraining)
        else:
            finetuning = [
                (trial, splits, new_encoder(trial, splits.pool, clock.device), run)
                for trial, run in zip(trials, runs, strict=True)
            ]
            if len(trials) == 1:
                finetune(*finetuning[0])
            else:
                finetune_together(finetuning)
    return clock.update_seconds() / len(trials)
