"""Augmentation of whole batches, on the device (paper 4.1): first what is drawn, then what is done.

Draws are small, made on the CPU, and the same on every device, which copies them without being waited for.
Each is of every clip of a batch: a process that hears some of them takes theirs. What is off draws nothing:
its draw is None, and does nothing.
B clips, S samples, F frames, M mel bands.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.config import AugmentationConfig
from workbench.devices import onto


class Draws(NamedTuple):
    """Of the versions of a batch's clips that fine-tuning hears, all of one after all of another: N rows."""

    shift: Tensor | None  # (N,), see `draw_jitter`
    masked: Tensor | None  # (N, 2), see `draw_time_mask`
    partner: Tensor | None  # (N,) rows, and (N,) weights, see `draw_mixup`
    weight: Tensor | None


def draw_versions(
    config: AugmentationConfig, frames: Tensor, versions: int, generator: torch.Generator
) -> Draws:
    """`frames` (B,) CPU int64 are the valid ones of each clip; clips mix with those of their own version."""
    batch = len(frames)
    shift = draw_jitter(versions * batch, config.jitter_samples, generator)
    masked = draw_time_mask(frames.repeat(versions), config.time_mask, generator)
    if config.mixup is None:
        return Draws(shift, masked, None, None)
    drawn = [draw_mixup(batch, config.mixup, generator) for _ in range(versions)]
    partner = torch.cat([rows + batch * version for version, (rows, _) in enumerate(drawn)])
    return Draws(shift, masked, partner, torch.cat([weight for _, weight in drawn]))


def draw_jitter(batch: int, max_shift: int, generator: torch.Generator) -> Tensor | None:
    """(B,) samples by which each clip is shifted to the left, up to +-`max_shift`."""
    if max_shift == 0:
        return None
    return torch.randint(0, 2 * max_shift + 1, (batch,), generator=generator) - max_shift


def jitter(waveform: Tensor, shift: Tensor | None) -> Tensor:
    """Each clip shifted, zeros moving in: (B, S) -> (B, S)."""
    if shift is None:
        return waveform
    samples, most = waveform.shape[1], int(shift.abs().max())
    windows = nn.functional.pad(waveform, (most, most)).unfold(1, samples, 1)
    return windows[torch.arange(len(waveform), device=waveform.device), onto(waveform.device, shift + most)]


def draw_time_mask(frames: Tensor, share: float, generator: torch.Generator) -> Tensor | None:
    """(B, 2) frames, from and to, of one interval a clip.

    `frames` (B,) CPU int64 are the valid ones of each clip; the interval is uniform in length up to `share`
    of them, and lies within them.
    """
    if share == 0:
        return None
    draws = torch.rand(2, len(frames), generator=generator)
    length = (draws[0] * share * frames).long()
    start = (draws[1] * (frames - length + 1)).long()
    return torch.stack([start, start + length], dim=1)


def time_mask(log_mel: Tensor, masked: Tensor | None) -> Tensor:
    """Zero (the mean, after standardisation) one interval a clip, of (B, 2): (B, F, M) -> (B, F, M).

    No frequency band is masked: it works badly with mixup.
    """
    if masked is None:
        return log_mel
    index = torch.arange(log_mel.shape[1])
    hidden = (index >= masked[:, :1]) & (index < masked[:, 1:])
    return log_mel.masked_fill(onto(log_mel.device, hidden)[..., None], 0.0)


def draw_mixup(batch: int, concentration: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B,) with which clip of the batch each is mixed, each once; and (B,) its own weight.

    alpha ~ Beta(concentration, concentration), forced to alpha >= 1 - alpha, so each clip keeps its labels
    (equation 2).
    """
    partner = torch.randperm(batch, generator=generator)
    alpha = _beta(concentration, batch, generator)
    return partner, torch.maximum(alpha, 1 - alpha)


def mixup(log_mel: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Each clip, with its `weight` (B,), and another: (B, F, M), (B, F, M) -> (B, F, M)."""
    alpha = onto(log_mel.device, weight.to(log_mel.dtype))[:, None, None]
    return alpha * log_mel + (1 - alpha) * partner


def _beta(concentration: float, count: int, generator: torch.Generator) -> Tensor:
    # From two gammas: torch.distributions takes no generator.
    shape = torch.full((2, count), concentration, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).clamp_min(1e-30)
    return first / (first + second)


def draw_gain(batch: int, gain_db: float, generator: torch.Generator) -> Tensor | None:
    """(B,) dB, up to +-`gain_db`."""
    if gain_db == 0:
        return None
    return (torch.rand(batch, generator=generator) * 2 - 1) * gain_db


def gain(log_mel: Tensor, std: Tensor, decibels: Tensor | None) -> Tensor:
    """Each clip louder by (B,) dB: (B, F, M) -> (B, F, M).

    `std` (M,) is the standardisation's: a gain is a constant before it.
    """
    if decibels is None:
        return log_mel
    nats = decibels * (torch.log(torch.tensor(10.0)) / 10)  # the log-mel is of power
    return log_mel + onto(log_mel.device, nats.to(log_mel.dtype))[:, None, None] / std


def draw_mel_shift(batch: int, max_shift: int, generator: torch.Generator) -> Tensor | None:
    """(B,) bands, up to +-`max_shift`."""
    if max_shift == 0:
        return None
    return torch.randint(-max_shift, max_shift + 1, (batch,), generator=generator)


def mel_shift(log_mel: Tensor, shift: Tensor | None) -> Tensor:
    """Each clip moved up by (B,) bands, the edge band repeated: (B, F, M) -> (B, F, M)."""
    if shift is None:
        return log_mel
    bands = log_mel.shape[2]
    source = onto(log_mel.device, (torch.arange(bands) - shift[:, None]).clamp(0, bands - 1))
    return log_mel.gather(2, source[:, None, :].expand_as(log_mel))
