"""The front end by itself: from the waveforms of an update to augmented log-mels, beside a plain one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workbench.audio.augment import (
    draw_gain,
    draw_mel_shift,
    draw_versions,
    gain,
    jitter,
    mel_shift,
    mixup,
    time_mask,
)
from workbench.bench.plain import PlainEncoder
from workbench.bench.timing import Compared, in_turn
from workbench.config import TrialConfig
from workbench.data.noise import noise_clips
from workbench.settings import TrainingKind
from workbench.training.pretrain import new_encoder

LogMel = Callable[[Tensor], Tensor]  # (B, S) -> (B, F, M)


def measure_front_end(
    config: TrialConfig, kind: TrainingKind, device: torch.device, *, updates: int, rounds: int
) -> Compared:
    """Seconds of a batch; `updates` of them a round. The plain one is torchaudio's, augmented alike."""
    plain = PlainEncoder(config.front_end, config.model).to(device)
    return in_turn(
        lambda: front_end_seconds(config, kind, device, updates),
        lambda: _seconds(config, kind, device, updates, plain.log_mel, plain.std),
        rounds,
    )


def front_end_seconds(config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int) -> float:
    """Of a batch, by the core: the median of `updates`."""
    pool = noise_clips(1, config.data.clip_seconds, num_classes=1).unlabelled()
    front_end = new_encoder(config, pool, device).front_end
    return _seconds(config, kind, device, updates, front_end, front_end.std)


@torch.no_grad()
def _seconds(
    config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int, log_mel: LogMel, std: Tensor
) -> float:
    batch = config.training(kind).batch_size
    waveform, samples = noise_clips(batch, config.data.clip_seconds, num_classes=1).read(np.arange(batch))
    waveform = waveform.to(device)
    frames = samples // config.front_end.hop_samples
    generator = torch.Generator().manual_seed(0)
    hear = _for_pretraining if kind == "pretrain" else _for_finetuning
    seconds = []
    for _ in range(updates + 1):
        _wait_for(device)
        began = time.perf_counter()
        hear(config, waveform, frames, log_mel, std, generator)
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first is slower


def _for_pretraining(
    config: TrialConfig,
    waveform: Tensor,
    frames: Tensor,
    log_mel: LogMel,
    std: Tensor,
    generator: torch.Generator,
) -> Tensor:
    assert config.pretraining is not None
    decibels = draw_gain(len(waveform), config.pretraining.gain_db, generator)
    bands = draw_mel_shift(len(waveform), config.pretraining.mel_shift, generator)
    return mel_shift(gain(log_mel(waveform), std, decibels), bands)


def _for_finetuning(
    config: TrialConfig,
    waveform: Tensor,
    frames: Tensor,
    log_mel: LogMel,
    std: Tensor,
    generator: torch.Generator,
) -> Tensor:
    versions = config.finetuning.versions
    draws = draw_versions(config.finetuning.augmentation, frames, versions, generator)
    heard = log_mel(jitter(waveform.repeat(versions, 1), draws.shift))
    heard = time_mask(heard, draws.masked)
    if draws.partner is None or draws.weight is None:
        return heard
    return mixup(heard, heard[draws.partner], draws.weight)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
