"""What the device can do at best: matrix products of its own, timed."""

from __future__ import annotations

import time

import torch

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
SECONDS = 0.3  # a size


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some square sizes."""
    return max(_of_size(device, dtype, size) for size in SIZES[device.type])


def _of_size(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    best, began = 0.0, time.perf_counter()
    repeats = 1 if device.type == "cpu" else 20
    while best == 0.0 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best
