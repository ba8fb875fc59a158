"""Span masks over latents (paper 2.2; span length as in wav2vec 2.0).

B clips, T latents, N spans.
"""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(
    lengths: Tensor, total: int, *, fraction: float, span: int, generator: torch.Generator
) -> Tensor:
    """(B, total) True where hidden: exactly round(fraction x length) latents of each clip, at least two.

    Hidden latents come in spans of `span` that do not overlap, one of them shorter where the count wants
    it, uniform over all such placements. Two is the least that leaves a distractor; a clip of fewer than
    two latents is not masked at all. `lengths` (B,) int64 on the CPU.
    """
    batch = len(lengths)
    target = (fraction * lengths + 0.5).long().clamp_min(2)
    target = torch.where(lengths < 2, 0, target)
    num_spans = -(-target // span)  # (B,)
    most = int(num_spans.max())
    if most == 0:
        return torch.zeros(batch, total, dtype=torch.bool)

    # Span lengths (B, N): all `span` but one that takes the remainder, at a random place in the row.
    column = torch.arange(most)
    present = column < num_spans[:, None]
    remainder = target - (num_spans - 1) * span
    short = (torch.rand(batch, generator=generator) * num_spans).long()
    sizes = torch.where(column == short[:, None], remainder[:, None], span) * present

    # Shrink every span to one slot, draw distinct slots, and let the spans grow back.
    num_slots = lengths - target + num_spans
    priority = torch.rand(batch, total, generator=generator)
    priority[torch.arange(total) >= num_slots[:, None]] = -1.0
    slots = priority.topk(most).indices
    slots = torch.where(present, slots, total).sort(dim=1).values
    starts = slots + (sizes - present.long()).cumsum(1) - (sizes - present.long())

    edges = torch.zeros(batch, total + 1, dtype=torch.int64)
    edges.scatter_add_(1, torch.where(present, starts, total), present.long())
    edges.scatter_add_(1, torch.where(present, starts + sizes, total), -present.long())
    return edges[:, :total].cumsum(1) > 0


def masked_positions(masked: Tensor) -> tuple[Tensor, Tensor]:
    """Where each clip is masked: (B, T) -> index (B, M) and valid (B, M), M the most of any clip.

    All on the CPU. Clips with fewer are filled up with positions that `valid` denies.
    """
    counts = masked.sum(1)
    most = int(counts.max())
    index = masked.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    return index, torch.arange(most) < counts[:, None]
