"""Which clips make the batch of a step, a function of the seed and the step; or one that is only listened to.

N clips, B clips of a batch, C classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from workbench.config import SAMPLE_RATE
from workbench.data.labels import Labels
from workbench.random_streams import numpy_stream

HEARD_CLIPS = 64  # of a batch
HEARD_SECONDS = 64 * 60.0  # of a batch with its padding: a recording of an hour is heard almost alone


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


def neighbours(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Batches of whole clips of `lengths` samples (N,), from and to: each is padded to its longest clip."""
    waiting = [
        (begin, min(begin + HEARD_CLIPS, len(lengths))) for begin in range(0, len(lengths), HEARD_CLIPS)
    ][::-1]
    batches = []
    while waiting:
        begin, end = waiting.pop()
        samples = (end - begin) * int(lengths[begin:end].max())
        if end - begin == 1 or samples <= HEARD_SECONDS * SAMPLE_RATE:
            batches.append((begin, end))
        else:
            middle = (begin + end) // 2
            waiting += [(middle, end), (begin, middle)]
    return batches
