"""How fast clips come from disk into batches, beside torch's DataLoader over the same file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from workbench.bench.timing import Compared, in_turn
from workbench.config import SAMPLE_RATE
from workbench.data.clips import ClipSet
from workbench.data.labels import Labels
from workbench.training.batches import ShuffledEpochs

FILE_BYTES = 400_000_000  # of audio; a machine's page cache holds it, as it holds a small corpus


def measure_feed(clip_seconds: float, batch_size: int, rounds: int) -> Compared:
    """Seconds a clip, read in random order."""
    samples = round(clip_seconds * SAMPLE_RATE)
    count = max(2 * batch_size, FILE_BYTES // (2 * samples))
    with tempfile.TemporaryDirectory() as folder:
        clips = _written(Path(folder) / "audio.npy", count, samples)
        loader = DataLoader(_PlainClips(clips), batch_size, shuffle=True)
        order = ShuffledEpochs(count, batch_size, seed=0, stage="bench")
        num_batches = count // batch_size

        def ours() -> float:
            began = time.perf_counter()
            for step in range(num_batches):
                clips.read(order.batch(step), max_samples=samples)
            return (time.perf_counter() - began) / (num_batches * batch_size)

        def plain() -> float:
            began = time.perf_counter()
            heard = sum(len(batch) for batch in loader)
            return (time.perf_counter() - began) / heard

        return in_turn(ours, plain, rounds)


def _written(path: Path, count: int, samples: int) -> ClipSet:
    """`count` clips of noise, memory-mapped from `path`."""
    noise = np.random.default_rng(0).integers(-3000, 3000, samples, dtype=np.int16)
    np.save(path, np.tile(noise, count))
    return ClipSet(
        sources=(np.load(path, mmap_mode="r"),),
        source=np.zeros(count, int),
        start=np.arange(count) * samples,
        length=np.full(count, samples),
        labels=Labels.of_lists([[]] * count, 0),
        names=np.array([str(i) for i in range(count)]),
    )


class _PlainClips(Dataset[torch.Tensor]):
    """A clip at a time, as float."""

    def __init__(self, clips: ClipSet) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> torch.Tensor:
        start, length = self._clips.start[index], self._clips.length[index]
        return torch.from_numpy(self._clips.sources[0][start : start + length].copy())
