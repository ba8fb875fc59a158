"""Which classes clips have, kept as lists: of 527 classes a clip of AudioSet has two.

N clips, C classes, P pairs of a clip and a class that it has.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

ORDER_VERSION = 1  # raised when `nested_order` gives another: orders are kept
DUE_AT_ONCE = 256  # rows of `_due` that are computed together


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

    def digest(self) -> str:
        """SHA-256 of what they say, in hexadecimal."""
        found = hashlib.sha256(str((len(self), self.num_classes)).encode())
        found.update(self.counts().astype("<u2").tobytes())
        found.update(self.pairs()[1].astype("<u2").tobytes())
        return found.hexdigest()

    def matrix(self, indices: np.ndarray | None = None) -> np.ndarray:
        """(N, C) uint8, 1 where a clip has a class; or (B, C) of the clips at `indices`."""
        if indices is not None:
            return self.take(indices).matrix()
        matrix = np.zeros((len(self), self.num_classes), np.uint8)
        matrix[self.pairs()] = 1
        return matrix

    def _positions(self, indices: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Where in `classes` the lists of those clips are, one after the other."""
        positions = np.arange(counts.sum())
        positions += np.repeat(self.offsets[:-1][indices] - (np.cumsum(counts) - counts), counts)
        return positions


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def nested_order(labels: Labels, generator: np.random.Generator) -> Iterator[int]:
    """The clips in an order whose every beginning is stratified.

    The first n clips are the labelled subset of size n, so smaller subsets lie inside larger ones. At each
    step the class that is furthest behind its share gives the next clip; clips without any label come last.
    """
    count, num_classes = len(labels), labels.num_classes
    shuffled = generator.permutation(count)
    queues = _queues(labels, shuffled)
    share = np.bincount(labels.pairs()[1], minlength=num_classes) / count
    ties = generator.permutation(num_classes) * 1e-9
    ties[share == 0] = -np.inf  # a class that has no clip to give is never the furthest behind
    num_waiting = int((share > 0).sum())
    taken, behind, used = np.zeros(num_classes), np.empty(num_classes), bytearray(count)
    # Elements of a memoryview are plain numbers, at a third of the time: there may be millions of steps.
    offsets, classes = np.ascontiguousarray(labels.offsets).data, np.ascontiguousarray(labels.classes).data
    counted = taken.data
    for due in _due(share):
        following = None
        while num_waiting and following is None:
            np.subtract(due, taken, out=behind)
            np.add(behind, ties, out=behind)
            chosen = behind.argmax()
            following = next((clip for clip in queues[chosen] if not used[clip]), None)
            if following is None:
                ties[chosen] = -np.inf
                num_waiting -= 1
        if following is None:
            break
        used[following] = True
        for label in classes[offsets[following] : offsets[following + 1]]:
            counted[label] += 1
        yield following
    yield from shuffled[~np.frombuffer(used, bool)[shuffled]].tolist()


def _queues(labels: Labels, shuffled: np.ndarray) -> list[Iterator[int]]:
    """The clips of each class, in the order of `shuffled`."""
    place, label = labels.take(shuffled).pairs()
    by_class = shuffled[place[np.argsort(label, kind="stable")]]
    ends = np.cumsum(np.bincount(label, minlength=labels.num_classes))
    return [iter(queue.data) for queue in np.split(by_class, ends[:-1])]


def _due(share: np.ndarray) -> Iterator[np.ndarray]:
    """How many clips of each class there should be among the first, the first two, and so on."""
    for begin in itertools.count(1, DUE_AT_ONCE):
        yield from np.multiply.outer(np.arange(begin, begin + DUE_AT_ONCE), share)
