"""Several processes that train one model, each on its part of every batch; alone, all of this does nothing.

Started by torchrun, or whatever else has called `torch.distributed.init_process_group`. An update is that of
one process with the joint batch: batch norm, losses, metrics and validation are over all. Every process draws
what concerns the whole batch, and hears its own clips of it. Dropout masks are each process's own.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.settings import ConfigError

MEETING = "WORKBENCH_MEETING"  # a file
PATIENCE = datetime.timedelta(days=1)  # of processes that wait for the one that decodes the data


def as_one_of(rank: int, count: int, meeting: Path) -> dict[str, str]:
    """The environment of a process that meets the others on this machine, by a file: no port is opened."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    return loopback | place | {MEETING: str(meeting)}


def join(kind: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """This process's device; where it is one of several, it meets the others first. Raises ConfigError."""
    device = _own_device(kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        backend = "nccl" if device.type == "cuda" else "gloo"
        meeting = os.environ.get(MEETING)  # else torchrun says where
        where = f"file://{meeting}" if meeting else "env://"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, where, PATIENCE, rank=rank, world_size=size)
    return device


def _own_device(kind: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The CPU, or the GPU of this process's number on its machine."""
    gpus = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    place = int(os.environ.get("LOCAL_RANK", 0))
    if not gpus and kind != "cuda":
        return torch.device("cpu")
    if place >= gpus:
        raise ConfigError(
            "resources.device",
            f"process {place + 1} of this machine finds no GPU of its own, torch sees {gpus}; start no more "
            f"processes than GPUs, or use cpu",
        )
    return torch.device("cuda", place)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process; 0 is the one that writes and reports."""
    return dist.get_rank() if count() > 1 else 0


def own_rows(batch: int, micro_batches: int) -> Tensor:
    """Which clips of a batch are this process's, in their order: an even part of each micro-batch.

    A micro-batch is each `micro_batches`th clip, of the batch as of a process's part. Raises ValueError.
    """
    if batch % (micro_batches * count()):
        clips = batch // micro_batches
        raise ValueError(f"a micro-batch of {clips} clips cannot be shared by {count()} processes")
    place = torch.arange(batch)
    return place[place // micro_batches % count() == rank()]


def total(values: Tensor) -> Tensor:
    """Over all processes, with gradients."""
    return _total(values) if count() > 1 else values


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """Over all processes, without gradients."""
    return total(values) / count() if count() > 1 else values


# An operator, for torch 2.11 compiles its own all-reduce without its gradient.
@torch.library.custom_op("workbench::total", mutates_args=())
def _total(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


@_total.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


_total.register_autograd(lambda context, gradient: _total(gradient))


def agreed(wish: bool, device: torch.device) -> bool:
    """What process 0 wishes."""
    if count() == 1:
        return wish
    told = torch.tensor([float(wish)], device=device)
    dist.broadcast(told, src=0)
    return bool(told.item())
