"""Which classes clips have, kept as lists: of 527 classes a clip of AudioSet has two.

N clips, C classes, P pairs of a clip and a class that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Labels:
    """Clip i has the classes `classes[offsets[i]:offsets[i + 1]]`, ascending."""

    offsets: np.ndarray  # (N + 1,)
    classes: np.ndarray  # (P,), or longer where these are some clips' of a larger set
    num_classes: int

    @classmethod
    def of_matrix(cls, matrix: np.ndarray) -> Labels:
        """From (N, C): a clip has the classes in which it is not zero."""
        clip, label = np.nonzero(matrix)
        counts = np.bincount(clip, minlength=len(matrix))
        return cls(_offsets(counts), label.astype(np.uint16), matrix.shape[1])

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]], num_classes: int) -> Labels:
        """From the classes of each clip."""
        counts = np.array([len(one) for one in lists], dtype=np.int64)
        classes = np.array([label for one in lists for label in sorted(one)], dtype=np.uint16)
        return cls(_offsets(counts), classes, num_classes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __add__(self, other: Labels) -> Labels:
        """Of both sets' clips, this one's first. Raises ValueError where their classes are not as many."""
        if self.num_classes != other.num_classes:
            raise ValueError(f"{self.num_classes} classes and {other.num_classes} are not the same")
        counts = np.concatenate([self.counts(), other.counts()])
        return Labels(_offsets(counts), np.concatenate([self.pairs()[1], other.pairs()[1]]), self.num_classes)

    def take(self, indices: np.ndarray | slice) -> Labels:
        """Those of the clips at `indices`, in that order; a slice copies nothing."""
        if isinstance(indices, slice):
            begin, end, step = indices.indices(len(self))
            if step == 1:
                return Labels(self.offsets[begin : max(begin, end) + 1], self.classes, self.num_classes)
            indices = np.arange(begin, end, step)
        counts = self.counts()[indices]
        return Labels(_offsets(counts), self.classes[self._positions(indices, counts)], self.num_classes)

    def none(self) -> Labels:
        """Of the same clips, C = 0."""
        return Labels(np.zeros(len(self) + 1, np.int64), self.classes[:0], 0)

    def counts(self) -> np.ndarray:
        """(N,) classes of each clip."""
        return np.diff(self.offsets).astype(np.int64)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Clips (P,) and their classes (P,), clip by clip."""
        return np.repeat(np.arange(len(self)), self.counts()), self.classes[
            self.offsets[0] : self.offsets[-1]
        ]

    def matrix(self, indices: np.ndarray | None = None) -> np.ndarray:
        """(N, C) uint8, 1 where a clip has a class; or (B, C) of the clips at `indices`."""
        if indices is not None:
            return self.take(indices).matrix()
        matrix = np.zeros((len(self), self.num_classes), np.uint8)
        matrix[self.pairs()] = 1
        return matrix

    def _positions(self, indices: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Where in `classes` the lists of those clips are, one after the other."""
        begins = np.repeat(self.offsets[:-1][indices], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return begins + within


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def nested_order(labels: Labels, generator: np.random.Generator) -> Iterator[int]:
    """The clips in an order whose every beginning is stratified.

    The first n clips are the labelled subset of size n, so smaller subsets lie inside larger ones. At each
    step the class that is furthest behind its share gives the next clip; clips without any label come last.
    """
    count, num_classes = len(labels), labels.num_classes
    shuffled = generator.permutation(count)
    place = np.empty(count, np.int64)
    place[shuffled] = np.arange(count)
    clip, label = labels.pairs()
    by_class = clip[np.lexsort((place[clip], label))]
    sizes = np.bincount(label, minlength=num_classes)
    queues = [iter(queue) for queue in np.split(by_class, np.cumsum(sizes)[:-1])]
    share = sizes / count
    ties = generator.permutation(num_classes) * 1e-9
    taken = np.zeros(num_classes)
    used = np.zeros(count, bool)
    exhausted = share == 0
    num_given = 0
    while not exhausted.all():
        behind = (num_given + 1) * share - taken + ties
        behind[exhausted] = -np.inf
        chosen = int(np.argmax(behind))
        following = next((int(i) for i in queues[chosen] if not used[i]), None)
        if following is None:
            exhausted[chosen] = True
            continue
        used[following] = True
        taken[labels.classes[labels.offsets[following] : labels.offsets[following + 1]]] += 1
        num_given += 1
        yield following
    yield from (int(i) for i in shuffled if not used[i])
