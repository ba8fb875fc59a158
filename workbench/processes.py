"""Several processes that train one model, each on its part of every batch; alone, all of this does nothing.

Started by torchrun, or whatever else has called `torch.distributed.init_process_group`. An update is that of
one process with the joint batch: batch norm, losses, metrics and validation are over all, and every process
draws what concerns the whole batch. Dropout masks are each process's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as with_gradient
from torch import Tensor
from torch.utils._pytree import tree_map


def count() -> int:
    """Of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process; 0 is the one that writes and reports."""
    return dist.get_rank() if count() > 1 else 0


def own_part(heard: Any) -> Any:
    """Of a micro-batch, whose tensors begin with the clips: every `count()`th clip. Raises ValueError."""
    if count() == 1:
        return heard

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if len(value) % count():
            raise ValueError(f"a micro-batch of {len(value)} clips cannot be shared by {count()} processes")
        return value[rank() :: count()]

    return tree_map(part, heard)


def total(values: Tensor) -> Tensor:
    """Over all processes, with gradients."""
    return with_gradient.all_reduce(values) if count() > 1 else values


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """Over all processes, without gradients."""
    if count() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / count()


def agreed(wish: bool, device: torch.device) -> bool:
    """What process 0 wishes."""
    if count() == 1:
        return wish
    told = torch.tensor([float(wish)], device=device)
    dist.broadcast(told, src=0)
    return bool(told.item())
