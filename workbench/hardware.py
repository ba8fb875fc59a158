"""What this machine is, and how much of its memory this process holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
from pathlib import Path

import torch


def device_name(kind: str) -> str:
    """Of the GPU, or of the processor."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


M_ARENA_MAX = -8  # of glibc's mallopt


def one_memory_arena() -> None:
    """What a thread has freed serves the next one; call before there are others.

    glibc gives threads arenas of their own, and every trial of a worker runs in a new thread: what the
    trials leave in them would add up.
    """
    with contextlib.suppress(AttributeError):  # another C library, without arenas
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def forget_peak() -> int:
    """Give back what is free, and let the peak begin anew: the bytes that are still resident."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where it may not be, the peak stays: too much, never too little
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def resident_bytes(*, peak: bool = False) -> int:
    """Memory of this process; its peak is not getrusage's, which begins with the parent's."""
    return _bytes_of("VmHWM" if peak else "VmRSS")


def private_bytes() -> int:
    """Memory of this process, without the files that it has mapped: other processes share those."""
    return _bytes_of("RssAnon")


def _bytes_of(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: memory is measured on Linux")
