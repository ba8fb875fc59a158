"""Tensors on their way to a device."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """Moved; a GPU copies from pinned memory, and is not waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@overload
def rows_of(values: Tensor, rows: Tensor) -> Tensor: ...
@overload
def rows_of(values: None, rows: Tensor) -> None: ...
@overload
def rows_of(values: Tensor | None, rows: Tensor) -> Tensor | None: ...
def rows_of(values: Tensor | None, rows: Tensor) -> Tensor | None:
    """Of values (N, ...) those at `rows` (R,), which are on the CPU; where they are all, there is no copy."""
    if values is None or (len(rows) == len(values) and torch.equal(rows, torch.arange(len(rows)))):
        return values
    return values[onto(values.device, rows)]
