"""Dropout whose mask is cheap to draw on a CPU, and that each trial of a pack draws for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

# Of the trials that are trained together: each one's generator, and which of them a value belongs to.
_pack: ContextVar[tuple[Sequence[torch.Generator], Tensor] | None] = ContextVar("_pack", default=None)


@contextlib.contextmanager
def drawn_by(generators: Sequence[torch.Generator], member: Tensor) -> Iterator[None]:
    """Within `torch.vmap` over `member`, masks come from `generators[member]`, as they would outside."""
    token = _pack.set((generators, member))
    try:
        yield
    finally:
        _pack.reset(token)


def is_packed() -> bool:
    """Whether this is one of the trials that are trained together."""
    return _pack.get() is not None


class Dropout(nn.Module):
    """Inverted dropout; the same distribution as `torch.nn.Dropout` to within 2^-16 in `p`.

    On a CPU torch draws one Bernoulli variate an element, at 5 ns each: up to a third of a training step.
    Here one 64-bit random word gives the mask of four elements.
    """

    threshold: Tensor
    scale: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        dropped = round(p * 65536)  # of all 16-bit numbers
        # Tensors, for trials that are trained together may differ in them.
        self.register_buffer("threshold", torch.tensor(dropped - 32768), persistent=False)
        self.register_buffer("scale", torch.tensor(65536 / max(65536 - dropped, 1)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.p == 0:
            return x
        pack = _pack.get()
        if pack is not None:
            numbers = _DrawnByMember.apply(pack[1], pack[0], x.numel())
        elif x.device.type == "cpu":
            numbers = _draw(x.numel(), x.device, None)
        else:
            return nn.functional.dropout(x, self.p)
        keep = numbers.view(x.shape) >= self.threshold
        return x * (keep * self.scale.to(x.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _draw(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(count,) int16, every bit random."""
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count]


class _DrawnByMember(torch.autograd.Function):
    """(count,) int16 for one member; under vmap (K, count), each row by its member's generator."""

    @staticmethod
    def forward(member: Tensor, generators: Sequence[torch.Generator], count: int) -> Tensor:
        return _draw(count, member.device, generators[int(member)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        member: Tensor,
        generators: Sequence[torch.Generator],
        count: int,
    ) -> tuple[Tensor, int]:
        return torch.stack([_draw(count, member.device, g) for g in generators]), 0
