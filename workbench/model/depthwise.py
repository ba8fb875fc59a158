"""Depthwise convolution over time that is quick on a CPU.

B clips, T latents, D channels, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DepthwiseConv(nn.Conv1d):
    """Each channel by a kernel of its own, zeros around: (B, T, D) -> (B, T, D).

    On a CPU torch takes 2.4 times as long as one multiply-add of the whole batch a tap
    (`docs/performance.md`), which needs no transposed copies either.
    """

    def __init__(self, width: int, kernel: int) -> None:
        """`kernel` is odd."""
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if x.device.type != "cpu":
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        assert self.bias is not None
        return _TapByTap.apply(x, self.weight, self.bias)


class _TapByTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps = weight[:, 0].t().contiguous()  # (K, D)
        padded = _pad(x, len(taps))
        ctx.save_for_backward(padded, taps)
        return _correlate(padded, taps, x.shape[1]).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded, taps = ctx.saved_tensors
        batch, length, width = gradient.shape
        gradient = gradient.contiguous()
        to_x = _correlate(_pad(gradient, len(taps)), taps.flip(0), length)
        # Clip by clip: what is added up, (K, T, D), stays in the cache.
        every = gradient.new_zeros(len(taps), length, width)
        for clip in range(batch):
            windows = padded[clip].as_strided(every.shape, (width, width, 1), padded[clip].storage_offset())
            every.addcmul_(gradient[clip], windows)
        return to_x, every.sum(1).t()[:, None], gradient.sum((0, 1))


def _pad(x: Tensor, num_taps: int) -> Tensor:
    return nn.functional.pad(x, (0, 0, num_taps // 2, num_taps // 2))


def _correlate(padded: Tensor, taps: Tensor, length: int) -> Tensor:
    """(B, T + K - 1, D) with (K, D) -> (B, T, D)."""
    out = padded[:, :length] * taps[0]
    for place in range(1, len(taps)):
        out.addcmul_(padded[:, place : place + length], taps[place])
    return out
