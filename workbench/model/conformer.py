"""Conformer blocks in the paper's order: convolution before self-attention, no positional encoding (2.2).

B clips, T latents, D width, H heads. `padding` (B, T) is True where a latent is padding, or None when no
clip has any. Padded positions never reach a valid one: they are zeros to the convolution, unseen by the
attention and absent from the batch statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench import processes
from workbench.config import ModelConfig
from workbench.model.depthwise import DepthwiseConv
from workbench.model.dropout import Dropout, is_packed, masks_by_words

# Whether a block runs again, in the backward pass: running statistics must not count it twice.
_recomputing: ContextVar[bool] = ContextVar("_recomputing", default=False)


@contextlib.contextmanager
def _recomputation() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


@torch.compiler.assume_constant_result  # what is compiled is never computed again
def _is_recomputing() -> bool:
    return _recomputing.get()


def _both_passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _recomputation()


class Conformer(nn.Module):
    """`num_blocks` conformer blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = config.recompute
        kernels = [config.first_kernel] + [config.kernel] * (config.num_blocks - 1)
        self.blocks = nn.ModuleList(ConformerBlock(config, kernel) for kernel in kernels)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, padding, use_reentrant=False, context_fn=_both_passes)
            else:
                x = block(x, padding)
        return x

    def extra_repr(self) -> str:
        return f"recompute={self.recompute}"


class ConformerBlock(nn.Module):
    """Half-step feed-forward, convolution, self-attention, half-step feed-forward, layer norm."""

    def __init__(self, config: ModelConfig, kernel: int) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(config)
        self.convolution = ConvolutionModule(config, kernel)
        self.attention = SelfAttention(config)
        self.feed_forward_out = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.convolution(x, padding)
        x = x + self.attention(x, padding)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.norm(x)


class FeedForward(nn.Sequential):
    """(B, T, D) -> (B, T, D) through `ffn_dim`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.ffn_dim),
            nn.SiLU(),
            Dropout(config.dropout),
            nn.Linear(config.ffn_dim, config.width),
            Dropout(config.dropout),
        )


class ConvolutionModule(nn.Module):
    """Pointwise, gated, depthwise over time, batch norm, pointwise."""

    def __init__(self, config: ModelConfig, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 2 * config.width)
        self.depthwise = DepthwiseConv(config.width, kernel)
        self.batch_norm = MaskedBatchNorm(config.width)
        self.project = nn.Linear(config.width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = nn.functional.glu(self.expand(self.norm(x)), dim=-1)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x = nn.functional.silu(self.batch_norm(self.depthwise(x), padding))
        return self.dropout(self.project(x))


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over (B, T) for each of D channels, and over all processes.

    Padded positions enter no statistics, and a block that is computed again not twice.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training or (padding is None and processes.count() == 1):
            flat = x.flatten(0, 1)
            if not (self.training and _is_recomputing()):
                return super().forward(flat).view_as(x)
            spent = self.running_mean.clone(), self.running_var.clone()  # the first pass moved the real ones
            again = nn.functional.batch_norm(
                flat, *spent, self.weight, self.bias, training=True, eps=self.eps
            )
            return again.view_as(x)
        assert self.momentum is not None
        valid = x.new_ones(*x.shape[:2], 1) if padding is None else (~padding)[..., None].to(x.dtype)
        count = processes.total(valid.sum())
        mean = processes.total((x * valid).sum((0, 1))) / count
        variance = processes.total(((x - mean).square() * valid).sum((0, 1))) / count
        if not _is_recomputing():
            with torch.no_grad():
                unbiased = variance * count / (count - 1).clamp_min(1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)
        self.weight_dropout = Dropout(config.dropout)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, length, width = x.shape
        heads = self.query_key_value(self.norm(x)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        seen = None if padding is None else ~padding[:, None, None, :]
        attended = self._attend(query, key, value, seen)
        return self.dropout(self.project(attended.transpose(1, 2).reshape(batch, length, width)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        num_weights = query.numel() // query.shape[-1] * key.shape[-2]
        p = self.weight_dropout.p if self.training else 0.0
        if not (is_packed() or (p > 0 and masks_by_words(query.device, num_weights))):
            return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=p)
        # torch's own draws dropout slowly on a CPU, and cannot draw it for the trials of a pack.
        weights = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)  # (B, H, T, T)
        if seen is not None:
            weights = weights.masked_fill(~seen, -torch.inf)
        return self.weight_dropout(weights.softmax(-1)) @ value
