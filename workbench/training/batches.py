"""Which clips make the batch of a step: pure functions of the seed and the step.

N clips, B clips of a batch, C classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from workbench.data.labels import Labels
from workbench.random_streams import numpy_stream


class BatchOrder(Protocol):
    def batch(self, step: int) -> np.ndarray:
        """(B,) indices of clips."""


class ShuffledEpochs:
    """Every clip once an epoch, in a new order each; a batch may end one epoch and begin the next."""

    def __init__(self, num_clips: int, batch_size: int, seed: int, stage: str) -> None:
        self.num_clips, self.batch_size = num_clips, batch_size
        self.seed, self.stage = seed, stage
        self._epoch = (-1, np.empty(0, np.int64))

    def batch(self, step: int) -> np.ndarray:
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, offset = np.divmod(position, self.num_clips)
        chosen = [self._order(int(e))[offset[epoch == e]] for e in np.unique(epoch)]
        return np.concatenate(chosen)

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            generator = numpy_stream(self.seed, self.stage, "order", epoch)
            self._epoch = (epoch, generator.permutation(self.num_clips))
        return self._epoch[1]


class BalancedClasses:
    """A class, uniformly, then one of its clips, uniformly: the paper's data balancing (4.1)."""

    def __init__(self, labels: Labels, batch_size: int, seed: int, stage: str) -> None:
        """Classes without a clip are not drawn."""
        self.batch_size, self.seed, self.stage = batch_size, seed, stage
        clip, label = labels.pairs()
        order = np.argsort(label, kind="stable")
        self._clips = clip[order]  # by class
        classes, self._begin, self._count = np.unique(label[order], return_index=True, return_counts=True)
        self._num_classes = len(classes)

    def batch(self, step: int) -> np.ndarray:
        generator = numpy_stream(self.seed, self.stage, "order", step)
        label = generator.integers(0, self._num_classes, self.batch_size)
        return self._clips[self._begin[label] + generator.integers(0, self._count[label])]
