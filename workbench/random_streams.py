"""Named random streams: each random choice has a seed of its own, derived from the trial's.

A stream is a pure function of the seed and its name, so a choice never shifts another, arms of a study
share what they should (label subset, data order), and a resumed step draws what it would have drawn.
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
