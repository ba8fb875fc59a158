"""Where the trials of a study run, how many at once, and in how much memory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from workbench.hardware import device_name
from workbench.settings import ConfigError, digest
from workbench.study.definition import Resources


@dataclass(frozen=True)
class Device:
    """Where trials run, and how many at once: rates hold for that alone."""

    kind: str  # "cpu", "cuda"
    threads: int  # of torch, a trial
    concurrency: int
    num_gpus: int
    num_machines: int = 1  # of a cluster; they are taken to be like this one
    processes: int = 1  # that share a trial; rates are measured with one, and corrected by what trials took

    @classmethod
    def of(cls, resources: Resources) -> Device:
        """What `resources` come to on this machine. Raises ConfigError."""
        gpus = 0 if resources.device == "cpu" or not torch.cuda.is_available() else torch.cuda.device_count()
        if resources.device == "cuda" and not gpus:
            raise ConfigError("resources.device", "is cuda, and torch finds no GPU here; use auto or cpu")
        if gpus and resources.processes > gpus:
            raise ConfigError(
                "resources.processes",
                f"is {resources.processes}, and each takes a GPU, of which torch finds {gpus} here; "
                f"use at most {gpus}, or resources.device=cpu",
            )
        there = gpus or len(os.sched_getaffinity(0)) // resources.threads
        concurrency = resources.concurrency or max(1, there // resources.processes)
        kind = "cuda" if gpus else "cpu"
        return cls(kind, resources.threads, concurrency, gpus, processes=resources.processes)

    @property
    def name(self) -> str:
        if self.kind == "cuda":
            return device_name(self.kind)
        return f"{device_name(self.kind)}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def at_once_here(self) -> int:
        """Trials at once on a GPU, or on this machine's processor: they share its caches and memory."""
        return math.ceil(self.concurrency / (self.num_gpus or self.num_machines))

    @property
    def key(self) -> str:
        """The same for devices whose rates are the same."""
        content = [self.name, self.kind, self.threads, self.at_once_here, torch.__version__]
        content += [self.processes] if self.processes > 1 else []
        return digest(content)[:16]


def free_memory(device_kind: str) -> int:
    """Bytes that new processes may take: of the GPU, or of this machine and its control groups."""
    if device_kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    for group in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        limit = group / "memory.max"
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            free = min(free, int(text) - _bytes_in_use(group))
    return free


def _control_groups(own: Path, root: Path) -> list[Path]:
    """This process's, such as a container's or a batch system's job, and all above it; `own` says which."""
    lines = own.read_text().splitlines() if own.exists() else []
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    group = root / name.strip("/")
    return [group, *(above for above in group.parents if above.is_relative_to(root))]


def _bytes_in_use(control_group: Path) -> int:
    """Without copies of files that are given up when memory is asked for, as after an installation."""
    statistics = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
    return int((control_group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
