"""Clips of noise, where only what hearing them costs is asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from workbench.config import SAMPLE_RATE
from workbench.data.clips import ClipSet, Splits
from workbench.data.labels import Labels


def noise_clips(count: int, seconds: ArrayLike, num_classes: int, name: str = "pool") -> ClipSet:
    """`count` clips of so many seconds, one number or one each; all of the same noise, labelled in turn."""
    samples = np.round(np.asarray(seconds, dtype=float) * SAMPLE_RATE).astype(int)
    lengths = np.array(np.broadcast_to(samples, count))
    noise = np.random.default_rng(0).integers(-3000, 3000, int(lengths.max()), dtype=np.int16)
    return ClipSet(
        sources=(noise,),
        source=np.zeros(count, int),
        start=np.zeros(count, int),
        length=lengths,
        labels=Labels.of_lists([[clip % num_classes] for clip in range(count)], num_classes),
        names=np.array([f"{name}/{i}" for i in range(count)]),
    )


def noise_splits(
    count: int, seconds: float, evaluated_seconds: float, num_classes: int, *, single_label: bool = False
) -> Splits:
    """`count` clips to train on, with labels and without; two for validation, two for a test."""
    return Splits(
        pool=noise_clips(count, seconds, num_classes).unlabelled(),
        train=noise_clips(count, seconds, num_classes, "train"),
        validation=noise_clips(2, evaluated_seconds, num_classes, "validation"),
        test=noise_clips(2, evaluated_seconds, num_classes, "test"),
        classes=tuple(map(str, range(num_classes))),
        single_label=single_label,
        fingerprint="noise",
    )
