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
    """Seconds of ours and of the plain way, a round each; none of a plain way that failed."""

    ours: tuple[float, ...]
    plain: tuple[float, ...]
    plain_error: str | None = None

    @property
    def seconds(self) -> float:
        """Ours, median."""
        return statistics.median(self.ours)

    @property
    def plain_seconds(self) -> float | None:
        return statistics.median(self.plain) if self.plain else None

    @property
    def ratio(self) -> float | None:
        """How many times as long the plain way takes: the median of the rounds' ratios."""
        return statistics.median(self.ratios) if self.plain else None

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(p / o for o, p in zip(self.ours, self.plain, strict=True)) if self.plain else ()


def in_turn(ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> Compared:
    """Each returns its seconds; they begin by turns, and the first round is not counted.

    Where the plain way fails, ours is measured by itself: it may fit a device that the other does not.
    """
    own: list[float] = []
    plain_ones: list[float] = []
    error: str | None = None

    def take_own() -> None:
        own.append(ours())

    def take_plain() -> None:
        nonlocal error
        error = error or failure(lambda: plain_ones.append(plain()))

    for number in range(rounds + 1):
        both = (take_own, take_plain)
        for take in both if number % 2 else reversed(both):
            take()
    return Compared(tuple(own[1:]), () if error else tuple(plain_ones[1:]), error)


def failure(work: Callable[[], object]) -> str | None:
    """Why `work` fails, as for want of memory, which is given back; None where it does not."""
    try:
        work()
        return None
    except Exception as error:
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
        first_line = next(iter(str(error).strip().splitlines()), "")
        reason = "out of memory" if lacking else f"{type(error).__name__}: {first_line}"
    gc.collect()  # only now: the error held what was being measured
    torch.cuda.empty_cache()
    return reason


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
