"""Dropout whose mask is cheap to draw on a CPU, and that each trial of a pack draws for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

# Elements. Up to here what a mask of words moves beside torch's own, some 10 bytes an element, takes a GPU no
# longer than to launch a kernel.
SMALL = 2**20

# Of the trials that are trained together, in their order.
_pack: ContextVar[Sequence[torch.Generator] | None] = ContextVar("_pack", default=None)


@contextlib.contextmanager
def drawn_by(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within, under `torch.vmap` over a pack's tensors, each trial's masks come from its own generator."""
    token = _pack.set(generators)
    try:
        yield
    finally:
        _pack.reset(token)


@torch.compiler.assume_constant_result  # a pack's update is compiled apart from that of a trial alone
def is_packed() -> bool:
    """Whether this is one of the trials that are trained together."""
    return _pack.get() is not None


def masks_by_words(device: torch.device, count: int) -> bool:
    """Whether masks of so many elements, of one trial, are drawn here; else torch's kernels draw their own.

    Drawn here, a trial's masks are the same alone and in a pack. A large tensor on a GPU is masked in one
    pass by torch, or in many by what it compiles, unless it is a pack's: their numbers cannot be had.
    """
    if device.type == "cpu" or is_packed():
        return True
    return not torch.compiler.is_compiling() and count <= SMALL


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
        if not masks_by_words(x.device, x.numel()):
            return nn.functional.dropout(x, self.p)
        if is_packed() or torch.compiler.is_compiling():
            numbers = _random_numbers(x.detach())
        else:
            numbers = _draw(x.numel(), x.device, None).view(x.shape)
            if x.device.type == "cpu":
                # The same by fewer passes: a comparison writes floats sooner than truth values.
                mask = torch.empty_like(x, requires_grad=False)
                torch.ge(numbers, self.threshold, out=mask)
                return x * mask.mul_(self.scale)
        return x * ((numbers >= self.threshold) * self.scale.to(x.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p}"


# An operator, which a compiler leaves as it is: a compiled update draws the masks of the plain one. What is
# to be masked is its argument, so that the draws of a network keep their order.
@torch.library.custom_op(
    "workbench::random_numbers", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _random_numbers(x: Tensor) -> Tensor:
    """int16 of that shape, every bit random; of a pack's (P, ...), each trial's by its own generator."""
    generators = _pack.get()
    if generators is None:
        return _draw(x.numel(), x.device, None).view(x.shape)
    each = x.numel() // len(generators)
    return torch.stack([_draw(each, x.device, generator) for generator in generators]).view(x.shape)


@_random_numbers.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int16)


@_random_numbers.register_vmap
def _(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
    return _random_numbers(x.movedim(in_dims[0], 0)), 0


def _draw(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(count,) int16, every bit random."""
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count]
