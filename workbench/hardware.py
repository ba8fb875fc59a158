"""What this machine is, and how much of its memory this process has held."""

from __future__ import annotations

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


def resident_bytes(*, peak: bool = False) -> int:
    """Memory of this process; its peak is not getrusage's, which begins with the parent's."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: memory is measured on Linux")
