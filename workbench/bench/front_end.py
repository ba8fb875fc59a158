"""The front end by itself: from the waveforms of an update to augmented log-mels, beside a plain one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workbench.audio import augment
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
    batch, versions = config.training(kind).batch_size, config.finetuning.versions
    waveform, samples = noise_clips(batch, config.data.clip_seconds, num_classes=1).read(np.arange(batch))
    waveform = waveform.to(device)
    frames = samples // config.front_end.hop_samples
    generator = torch.Generator().manual_seed(0)

    def hear_unlabelled() -> None:
        assert config.pretraining is not None
        decibels = augment.draw_gain(batch, config.pretraining.gain_db, generator)
        bands = augment.draw_mel_shift(batch, config.pretraining.mel_shift, generator)
        augment.mel_shift(augment.gain(log_mel(waveform), std, decibels), bands)

    def hear_labelled() -> None:
        draws = augment.draw_versions(config.finetuning.augmentation, frames, versions, generator)
        heard = log_mel(augment.jitter(waveform.repeat(versions, 1), draws.shift))
        heard = augment.time_mask(heard, draws.masked)
        if draws.partner is not None and draws.weight is not None:
            augment.mixup(heard, heard[draws.partner], draws.weight)

    hear = hear_unlabelled if kind == "pretrain" else hear_labelled
    seconds = []
    for _ in range(updates + 1):
        _wait_for(device)
        began = time.perf_counter()
        hear()
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first is slower


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
