"""Two ways of doing the same, timed in turn: what disturbs the machine disturbs both."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from workbench.hardware import resident_bytes


@dataclass(frozen=True)
class Compared:
    """Seconds of ours and of the plain way, a round each."""

    ours: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Ours, median."""
        return statistics.median(self.ours)

    @property
    def plain_seconds(self) -> float:
        return statistics.median(self.plain)

    @property
    def ratio(self) -> float:
        """How many times as long the plain way takes: the median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(p / o for o, p in zip(self.ours, self.plain, strict=True))


def in_turn(ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> Compared:
    """Each returns its seconds; they begin by turns, and the first round is not counted."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        both = [(found[0], ours), (found[1], plain)]
        for seconds, work in both if number % 2 else reversed(both):
            seconds.append(work())
    return Compared(tuple(found[0][1:]), tuple(found[1][1:]))


def peak_bytes(device: torch.device, work: Callable[..., object], *arguments: Any) -> int:
    """The most memory that `work(*arguments)` holds at a time, of the GPU or of a process of its own."""
    if device.type != "cuda":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak_here, torch.get_num_threads(), work, arguments).result()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work(*arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_here(threads: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    torch.set_num_threads(threads)
    before = resident_bytes()
    work(*arguments)
    return resident_bytes(peak=True) - before
