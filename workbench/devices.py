"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """Moved; a GPU copies from pinned memory, and is not waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
