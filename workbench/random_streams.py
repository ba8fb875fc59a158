"""Named random streams: each random choice has a seed of its own, derived from the trial's.

A stream is a pure function of the seed and its name, so that arms of a study share what they should (label
subset, data order), and a resumed step draws what it would have drawn. What is chosen for a batch after its
clips and crops (augmentation, masks, distractors) shares a stream: an augmentation that is off draws nothing,
and shifts what is drawn after it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream `name`."""
    content = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *name))


def torch_stream(seed: int, *name: str | int) -> torch.Generator:
    """On the CPU, whatever the device: the same draws everywhere."""
    return torch.Generator().manual_seed(derive(seed, *name))
