"""Clips: int16 audio in memory-mapped arrays, and where in them each clip lies.

N clips, B clips of a batch, S samples.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.config import SAMPLE_RATE
from workbench.data.kept import kept
from workbench.data.labels import ORDER_VERSION, Labels, nested_order

NAMES_AT_ONCE = 1 << 16
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, its bits as if drawn


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the rule and the remedy."""


class Samples(Protocol):
    """An array of int16, or what opens one when it is first asked."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class RemoteSamples(ABC):
    """Samples on another machine: those of a batch are asked for together, or each would be waited for."""

    @abstractmethod
    def fetch(self, parts: Sequence[tuple[RemoteSamples, slice]]) -> list[np.ndarray]:
        """Of this one, and of others of its kind. Raises DataError."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        return self.fetch([(self, part)])[0]


class Names:
    """Text of N clips, some of a larger set's: it is looked up when it is asked for, and never copied."""

    def __init__(self, every: np.ndarray, which: np.ndarray) -> None:
        """`which` (N,) of `every` they are."""
        self._every, self._which = every, which

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __getitem__(self, part: slice, /) -> np.ndarray:
        return self._every[self._which[part]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def tolist(self) -> list[str]:
        names: list[str] = self[:].tolist()
        return names

    def take(self, indices: np.ndarray | slice) -> Names:
        return Names(self._every, self._which[indices])


@dataclass(frozen=True)
class ClipSet:
    """N clips. Taking some of them, or joining two sets, copies no audio."""

    sources: tuple[Samples, ...]  # flat; memory-mapped, or remote
    source: np.ndarray  # (N,) which of `sources`
    start: np.ndarray  # (N,) first sample in it
    length: np.ndarray  # (N,) samples
    labels: Labels
    names: np.ndarray | Names  # (N,) text that identifies the recording, for overlap checks and reports

    def __len__(self) -> int:
        return len(self.source)

    def __add__(self, other: ClipSet) -> ClipSet:
        """Both, this one first; they must agree in their classes."""
        return ClipSet(
            sources=self.sources + other.sources,
            source=np.concatenate([self.source, other.source + len(self.sources)]),
            start=np.concatenate([self.start, other.start]),
            length=np.concatenate([self.length, other.length]),
            labels=self.labels + other.labels,
            names=np.concatenate([np.asarray(self.names), np.asarray(other.names)]),
        )

    def take(self, indices: np.ndarray | slice) -> ClipSet:
        """The clips at `indices`, in that order; a slice shares the index, too."""
        return ClipSet(
            sources=self.sources,
            source=self.source[indices],
            start=self.start[indices],
            length=self.length[indices],
            labels=self.labels.take(indices),
            names=_taken(self.names, indices),
        )

    def unlabelled(self) -> ClipSet:
        """The same audio, C = 0."""
        return ClipSet(self.sources, self.source, self.start, self.length, self.labels.none(), self.names)

    @property
    def hours(self) -> float:
        return float(self.length.sum()) / SAMPLE_RATE / 3600

    def read(
        self,
        indices: np.ndarray,
        *,
        min_samples: int = 0,
        max_samples: int | None = None,
        generator: np.random.Generator | None = None,
        rows: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) int16, zero-padded to the longest, and to `min_samples`; their lengths (B,) int64.

        A clip longer than `max_samples` is cropped, at a place drawn from `generator` or, without one, at
        its start. `rows` (R,) are those of a batch to read: the waveforms are (R, S), as in the whole batch,
        and the lengths still all clips'.
        """
        lengths = self.cropped(indices, max_samples)
        offsets = np.zeros_like(lengths)
        if generator is not None and max_samples is not None:
            offsets = generator.integers(0, self.length[indices] - lengths + 1)
        begins = self.start[indices] + offsets
        read = slice(None) if rows is None else rows
        parts = [
            (self.sources[source], slice(begin, begin + length))
            for source, begin, length in zip(
                self.source[indices][read], begins[read], lengths[read], strict=True
            )
        ]
        waveform = np.zeros((len(parts), max(min_samples, int(lengths.max()))), np.int16)
        for row, samples in enumerate(_read(parts)):
            waveform[row, : len(samples)] = samples
        return torch.from_numpy(waveform), torch.from_numpy(lengths.astype(np.int64))

    def cropped(self, indices: np.ndarray, max_samples: int | None) -> np.ndarray:
        """(B,) samples of clips, none longer than that."""
        lengths = self.length[indices]
        return lengths if max_samples is None else np.minimum(lengths, max_samples)


def _taken(names: np.ndarray | Names, indices: np.ndarray | slice) -> np.ndarray | Names:
    if isinstance(names, Names):
        return names.take(indices)
    return names[indices] if isinstance(indices, slice) else Names(names, indices)


def _read(parts: Sequence[tuple[Samples, slice]]) -> Iterator[np.ndarray]:
    remote = [(samples, part) for samples, part in parts if isinstance(samples, RemoteSamples)]
    fetched = iter(remote[0][0].fetch(remote) if remote else ())
    for samples, part in parts:
        yield next(fetched) if isinstance(samples, RemoteSamples) else samples[part]


@dataclass(frozen=True)
class Splits:
    """What a trial trains and is judged on. No recording is in two of train, validation and test,
    and none of validation and test is in the pool."""

    pool: ClipSet  # unlabelled, for pre-training
    train: ClipSet  # the labelled subset
    validation: ClipSet
    test: ClipSet
    classes: tuple[str, ...]
    single_label: bool
    fingerprint: str
    left_out: tuple[str, ...] = ()  # unreadable files, when told to go on without them
    judged_by: np.ndarray = field(  # digests of validation and test clips; of the embedded corpus none
        default_factory=lambda: np.empty(0, np.uint64)
    )

    def __post_init__(self) -> None:
        parts = {
            "pool": self.pool,
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        for name, part in parts.items():
            if len(part) == 0:
                raise DataError(f"the {name} split is empty")
        hashes = {name: np.sort(_hashes(part.names)) for name, part in parts.items()}
        for first, second in itertools.combinations(parts, 2):
            if (first, second) == ("pool", "train"):
                continue  # pre-training may hear the labelled clips: it does not see their labels
            if not _share_any(hashes[first], hashes[second]):
                continue
            shared = np.intersect1d(parts[first].names, parts[second].names)
            if len(shared):  # else different names had the same hash
                raise DataError(
                    f"{len(shared)} recordings are in both {first} and {second}, the first is {shared[0]}"
                )


def _hashes(names: np.ndarray | Names) -> np.ndarray:
    """A number of each name (N,) uint64, equal for equal ones: millions of texts take seconds to compare."""
    parts = []
    for begin in range(0, len(names), NAMES_AT_ONCE):
        characters = np.ascontiguousarray(names[begin : begin + NAMES_AT_ONCE])
        characters = characters.view(np.uint32).reshape(len(characters), -1)  # 0 behind the end of a name
        parts.append(characters @ np.cumprod(np.full(characters.shape[1], HASH_FACTOR, np.uint64)))
    return np.concatenate(parts)


def _share_any(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether a number is in both; they are sorted, and not empty."""
    few, many = sorted((first, second), key=len)
    place = np.searchsorted(many, few)
    return bool((many[np.minimum(place, len(many) - 1)] == few).any())


@dataclass(frozen=True)
class Extent:
    """How much there is of everything, known before any audio is prepared: a study's cost follows."""

    pool_clips: int
    pool_lengths: tuple[tuple[float, float], ...]  # seconds of a training crop, and its share of the pool
    validation_clips: int
    test_clips: int
    evaluated_seconds: float  # of a validation or test clip, on average
    num_classes: int
    unprepared_clips: int  # still to be made, or decoded
    unprepared_bytes: int


def labelled_subset(
    clips: ClipSet, fraction: float, generator: np.random.Generator, root: Path | None = None
) -> ClipSet:
    """The first `fraction` of the nested order, at least one clip; which they are is kept below `root`."""
    count = max(1, round(fraction * len(clips)))
    drawn_with = generator.bit_generator.state

    def find() -> np.ndarray:
        order = nested_order(clips.labels, generator)
        return np.fromiter(itertools.islice(order, count), np.int64, count)

    def about() -> list[Any]:
        return ["nested order", ORDER_VERSION, clips.labels.digest(), drawn_with, count]

    return clips.take(find() if root is None else kept(root, about, count, find))
