"""Depthwise convolution over time that is quick on a CPU.

B clips, T latents, D channels, K taps; P trials of a pack.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DepthwiseConv(nn.Conv1d):
    """Each channel by a kernel of its own, zeros around: (B, T, D) -> (B, T, D).

    On a CPU torch takes 2.4 times as long as one multiply-add of the whole batch a tap
    (`docs/performance.md`), which needs no transposed copies either. A compiled update has torch's: to a
    compiler the taps are as many operations, and torch 2.11 drops the gradients of such a function there.
    """

    def __init__(self, width: int, kernel: int) -> None:
        """`kernel` is odd."""
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # or exporting: it runs elsewhere
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        assert self.bias is not None
        return _TapByTap.apply(x, self.weight[:, 0].t(), self.bias)[0]


class _TapByTap(torch.autograd.Function):
    """(B, T, D), taps (K, D), bias (D,) -> (B, T, D), and the padded input; or all of them P times."""

    @staticmethod
    def forward(x: Tensor, taps: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        padded = _pad(x, taps.shape[-2])
        return _correlate(padded, taps, x.shape[-2]).add_(bias[..., None, None, :]), padded

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
        padded, taps = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x = _correlate(_pad(gradient, taps.shape[-2]), taps.flip(-2), gradient.shape[-2])
        if gradient.ndim == 3:
            return to_x, _taps_gradient(padded, gradient, len(taps)), gradient.sum((0, 1))
        to_taps = [_taps_gradient(*pair, taps.shape[-2]) for pair in zip(padded, gradient, strict=True)]
        return to_x, torch.stack(to_taps), gradient.sum((1, 2))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, taps: Tensor, bias: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        every = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((x, taps, bias), in_dims, strict=True)
        ]
        return _TapByTap.apply(*every), (0, 0)


def _pad(x: Tensor, num_taps: int) -> Tensor:
    return nn.functional.pad(x, (0, 0, num_taps // 2, num_taps // 2))


def _correlate(padded: Tensor, taps: Tensor, length: int) -> Tensor:
    """(..., B, T + K - 1, D) with (..., K, D) -> (..., B, T, D)."""
    taps = taps[..., None, None, :]  # (..., K, 1, 1, D)
    out = padded[..., :length, :] * taps[..., 0, :, :, :]
    for place in range(1, taps.shape[-4]):
        out.addcmul_(padded[..., place : place + length, :], taps[..., place, :, :, :])
    return out


def _taps_gradient(padded: Tensor, gradient: Tensor, num_taps: int) -> Tensor:
    """(K, D) from (B, T + K - 1, D) and (B, T, D)."""
    batch, length, width = gradient.shape
    # Clip by clip: what is added up, (K, T, D), stays in the cache.
    every = gradient.new_zeros(num_taps, length, width)
    for clip in range(batch):
        windows = padded[clip].as_strided(every.shape, (width, width, 1), padded[clip].storage_offset())
        every.addcmul_(gradient[clip], windows)
    return every.sum(1)
