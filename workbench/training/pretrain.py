"""Pre-training: the encoder learns from unlabelled clips (paper 2).

B clips, S samples, F frames, M mel bands, T latents, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.audio.augment import gain_and_shift
from workbench.audio.logmel import LogMel
from workbench.config import SAMPLE_RATE, TrialConfig
from workbench.data.clips import ClipSet
from workbench.model.encoder import Encoder, padding_mask
from workbench.random_streams import derive, numpy_stream, torch_stream
from workbench.training.batches import ShuffledEpochs
from workbench.training.loop import Run, train
from workbench.training.objectives import Metrics, build_objective, collapse_metrics

STAGE = "pretrain"
STATISTICS_CLIPS = 512  # heard for the standardisation of the log-mel


@dataclass
class Pretrained:
    """What pre-training leaves: the encoder, and one row of metrics a log point."""

    encoder: Encoder
    history: list[dict[str, float]]


def pretrain(config: TrialConfig, pool: ClipSet, run: Run) -> Pretrained:
    """Train an encoder on `pool` by the objective of `config.pretraining`. Raises Diverged."""
    settings = config.pretraining
    assert settings is not None, "a trial from scratch has no pre-training"
    encoder = new_encoder(config, pool, run.device).train()
    objective = build_objective(settings.objective)
    order = ShuffledEpochs(len(pool), settings.batch_size, config.seed, STAGE)
    autocast = autocast_for(config, run.device)

    def losses(step: int, logging: bool) -> Iterator[tuple[Tensor, Metrics]]:
        indices = order.batch(step)
        crop = numpy_stream(config.seed, STAGE, "crop", step)
        generator = torch_stream(config.seed, STAGE, "augment", step)
        for part in np.array_split(indices, settings.accumulation):
            waveform, samples = pool.read(part, max_samples=crop_samples(config), generator=crop)
            lengths = num_latents(config, samples)
            with autocast():
                log_mel = encoder.front_end(waveform.to(run.device))  # (B, F, M)
                log_mel = gain_and_shift(
                    log_mel,
                    encoder.front_end.std,
                    settings.gain_db,
                    settings.mel_shift,
                    generator,
                )
                latents = encoder.latents(log_mel)  # (B, T, 256)
                padding = padding_mask(lengths, latents.shape[1], run.device)
                hidden = objective.hide(lengths, latents.shape[1], generator)
                context = encoder.context(latents, padding, hidden.to(run.device))  # (B, T, D)
                loss, metrics = objective.loss(latents, context, encoder.out_of_context, hidden, generator)
            if logging:
                valid = latents.flatten(0, 1) if padding is None else latents[~padding]
                metrics |= collapse_metrics(valid)
            yield loss, metrics

    history = train(encoder, losses, settings, stage=STAGE, seed=config.seed, run=run)
    return Pretrained(encoder, history)


def new_encoder(config: TrialConfig, pool: ClipSet, device: torch.device) -> Encoder:
    """An untrained encoder: weights from the seed, log-mel statistics from the pool.

    From-scratch training uses it too, so that both arms of a comparison hear the same spectrograms.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "encoder"))
        encoder = Encoder(config.front_end, config.model)
    encoder.front_end.standardise_by(*_statistics(encoder.front_end, pool))
    return encoder.to(device)


@torch.no_grad()
def _statistics(front_end: LogMel, pool: ClipSet) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (M,) of each log-mel band over clips spread evenly through the pool."""
    chosen = np.unique(np.linspace(0, len(pool) - 1, STATISTICS_CLIPS).round().astype(int))
    frames = []
    for index in chosen:
        waveform, _ = pool.read(np.array([index]))
        frames.append(front_end.log_mel(waveform)[0])
    every = torch.cat(frames).double()
    return every.mean(0), every.std(0).clamp_min(1e-3)


def crop_samples(config: TrialConfig) -> int:
    """Samples of a training clip; longer recordings are cropped to it."""
    return round(config.data.clip_seconds * SAMPLE_RATE)


def num_latents(config: TrialConfig, samples: Tensor) -> Tensor:
    """Valid latents (B,) of clips of that many samples, one at least."""
    per_latent = config.front_end.hop_samples * config.model.frames_per_latent
    return (samples // per_latent).clamp_min(1)


def computed_in(config: TrialConfig, device: torch.device) -> str:
    """What the network computes in: bf16 where it is asked for and the device has it, else float32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if config.precision == "bf16" and has_bf16 else "float32"


def autocast_for(config: TrialConfig, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which the network runs in the precision of `computed_in`."""
    if computed_in(config, device) == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
