"""Augmentation of whole batches, on the device (paper 4.1).

Every function takes a CPU generator: the draws are small, and the same on every device, which copies them
without being waited for.
B clips, S samples, F frames, M mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.devices import onto


def jitter(waveform: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Shift each clip by up to +-`max_shift` samples, zeros moving in: (B, S) -> (B, S)."""
    if max_shift == 0:
        return waveform
    batch, samples = waveform.shape
    start = torch.randint(0, 2 * max_shift + 1, (batch,), generator=generator)
    windows = nn.functional.pad(waveform, (max_shift, max_shift)).unfold(1, samples, 1)
    return windows[torch.arange(batch, device=waveform.device), onto(waveform.device, start)]


def time_mask(log_mel: Tensor, frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Zero (the mean, after standardisation) one interval a clip: (B, F, M) -> (B, F, M).

    `frames` (B,) CPU int64 are the valid frames of each clip; the interval is uniform in length up to
    `share` of them, and lies within them. No frequency band is masked: it works badly with mixup.
    """
    if share == 0:
        return log_mel
    draws = torch.rand(2, len(frames), generator=generator)
    length = (draws[0] * share * frames).long()
    start = (draws[1] * (frames - length + 1)).long()
    index = torch.arange(log_mel.shape[1])
    masked = (index >= start[:, None]) & (index < (start + length)[:, None])
    return log_mel.masked_fill(onto(log_mel.device, masked)[..., None], 0.0)


def mixup(log_mel: Tensor, concentration: float | None, generator: torch.Generator) -> Tensor:
    """Mix each clip with another of the batch, itself dominant: (B, F, M) -> (B, F, M).

    alpha ~ Beta(concentration, concentration), forced to alpha >= 1 - alpha, so each clip keeps its labels
    (equation 2).
    """
    if concentration is None:
        return log_mel
    batch = len(log_mel)
    partner = torch.randperm(batch, generator=generator)
    alpha = _beta(concentration, batch, generator)
    alpha = onto(log_mel.device, torch.maximum(alpha, 1 - alpha).to(log_mel.dtype))[:, None, None]
    return alpha * log_mel + (1 - alpha) * log_mel[onto(log_mel.device, partner)]


def _beta(concentration: float, count: int, generator: torch.Generator) -> Tensor:
    # From two gammas: torch.distributions takes no generator.
    shape = torch.full((2, count), concentration, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).clamp_min(1e-30)
    return first / (first + second)


def gain_and_shift(
    log_mel: Tensor, std: Tensor, gain_db: float, mel_shift: int, generator: torch.Generator
) -> Tensor:
    """Random gain and random shift along the mel axis, one each a clip: (B, F, M) -> (B, F, M).

    `std` (M,) is the standardisation's: a gain is a constant before it. A shift repeats the edge band.
    """
    batch, _, bands = log_mel.shape
    if gain_db > 0:
        gain = (torch.rand(batch, generator=generator) * 2 - 1) * gain_db
        nats = gain * (torch.log(torch.tensor(10.0)) / 10)  # the log-mel is of power
        log_mel = log_mel + onto(log_mel.device, nats.to(log_mel.dtype))[:, None, None] / std
    if mel_shift > 0:
        shift = torch.randint(-mel_shift, mel_shift + 1, (batch, 1), generator=generator)
        source = onto(log_mel.device, (torch.arange(bands) - shift).clamp(0, bands - 1))
        log_mel = log_mel.gather(2, source[:, None, :].expand_as(log_mel))
    return log_mel
