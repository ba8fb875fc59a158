"""Pre-training: the encoder learns from unlabelled clips (paper 2).

B clips, S samples, F frames, M mel bands, T latents, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench import processes
from workbench.audio.augment import draw_gain, draw_mel_shift, gain, mel_shift
from workbench.audio.logmel import LogMel
from workbench.config import SAMPLE_RATE, TrialConfig
from workbench.data.clips import ClipSet
from workbench.devices import onto, rows_of
from workbench.model.encoder import Encoder, padding_mask
from workbench.random_streams import derive, numpy_stream, torch_stream
from workbench.settings import StageKind
from workbench.training.batches import ShuffledEpochs, neighbours
from workbench.training.loop import Course, Diverged, Run, Stopped
from workbench.training.objectives import Hidden, Metrics, build_objective, collapse_metrics
from workbench.training.pack import pack_key, train_together

STAGE: Literal["pretrain"] = "pretrain"
# Heard for the standardisation of the log-mel: so many clips, and of a longer recording its first minute.
STATISTICS_CLIPS = 512
STATISTICS_SAMPLES = 60 * SAMPLE_RATE


@dataclass
class Pretrained:
    """What pre-training leaves: the encoder, and one row of metrics a log point."""

    encoder: Encoder
    history: list[dict[str, float]]


class Heard(NamedTuple):
    """Of a batch, on the device; of several processes' only this one's clips."""

    log_mel: Tensor  # (B, F, M)
    padding: Tensor | None  # (B, T)
    hidden: Hidden


class Pretraining:
    """The task of `config.pretraining` on `pool`."""

    stage = STAGE

    def __init__(self, config: TrialConfig, pool: ClipSet, device: torch.device) -> None:
        assert config.pretraining is not None, "a trial from scratch has no pre-training"
        self.config, self.settings = config, config.pretraining
        self.pool, self.device = pool, device
        self.model = new_encoder(config, pool, device).train()
        self._objective = build_objective(self.settings.objective)
        self._order = ShuffledEpochs(len(pool), self.settings.batch_size, config.seed, STAGE)
        self._autocast = autocast_for(config, device)
        self.compile = config.compile
        self.pack_key = pack_key(config, STAGE)

    def hear(self, step: int) -> Heard:
        crop = numpy_stream(self.config.seed, STAGE, "crop", step)
        generator = torch_stream(self.config.seed, STAGE, "augment", step)
        shortest, longest = latent_samples(self.config), crop_samples(self.config, STAGE)
        batch = self.settings.batch_size
        own = processes.own_rows(batch, self.settings.accumulation)
        waveform, samples = self.pool.read(
            self._order.batch(step),
            min_samples=shortest,
            max_samples=longest,
            generator=crop,
            rows=own.numpy(),
        )
        lengths = num_latents(self.config, samples)
        front_end = self.model.front_end
        log_mel = front_end(onto(self.device, waveform))  # (B, F, M)
        decibels = draw_gain(batch, self.settings.gain_db, generator)
        bands = draw_mel_shift(batch, self.settings.mel_shift, generator)
        log_mel = gain(log_mel, front_end.std, rows_of(decibels, own))
        log_mel = mel_shift(log_mel, rows_of(bands, own))
        total = self.model.num_latents(log_mel)
        hidden = self._objective.hide(lengths, total, generator)
        hidden = Hidden(*(onto(self.device, rows_of(tensor, own)) for tensor in hidden))
        padding = padding_mask(lengths, total, self.device)  # of all: if any is padded, all say so
        return Heard(log_mel, rows_of(padding, own), hidden)

    def loss(self, heard: Heard) -> tuple[Tensor, Metrics]:
        encoder = self.model
        with self._autocast():
            latents = encoder.latents(heard.log_mel)  # (B, T, 256)
            context = encoder.context(latents, heard.padding, heard.hidden.masked)  # (B, T, D)
            return self._objective.loss(latents, context, encoder.out_of_context, heard.hidden)

    def share(self, part: Heard, whole: Heard) -> Tensor:
        return self._objective.share(part.hidden, whole.hidden)

    @torch.no_grad()
    def watch(self, heard: Heard) -> Metrics:
        with self._autocast():
            latents = self.model.latents(heard.log_mel)
        valid = latents.flatten(0, 1) if heard.padding is None else latents[~heard.padding]
        return collapse_metrics(valid)


def pretrain(config: TrialConfig, pool: ClipSet, run: Run) -> Pretrained:
    """Train an encoder on `pool` by the objective of `config.pretraining`. Raises Diverged."""
    task = Pretraining(config, pool, run.device)
    history = run.train(Course(task, task.settings, seed=config.seed, run=run))
    return Pretrained(task.model, history)


def pretrain_together(
    trials: Sequence[tuple[TrialConfig, ClipSet, Run]],
) -> list[Pretrained | Diverged | Stopped]:
    """`pretrain` of each (config, pool, run), as one pack; what ends one is returned in its place."""
    tasks = [Pretraining(config, pool, run.device) for config, pool, run in trials]
    courses = [
        Course(task, task.settings, seed=config.seed, run=run)
        for task, (config, _, run) in zip(tasks, trials, strict=True)
    ]
    return [
        end if isinstance(end, Diverged | Stopped) else Pretrained(task.model, end)
        for task, end in zip(tasks, train_together(courses), strict=True)
    ]


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
    shortest = front_end.config.hop_samples
    count = 0
    total, squares = torch.zeros(2, front_end.config.num_mels, dtype=torch.float64)
    for begin, end in neighbours(np.minimum(pool.length[chosen], STATISTICS_SAMPLES)):
        waveforms, samples = pool.read(
            chosen[begin:end], min_samples=shortest, max_samples=STATISTICS_SAMPLES
        )
        for waveform, length in zip(waveforms, samples.clamp_min(shortest).tolist(), strict=True):
            frames = front_end.log_mel(waveform[None, :length])[0].double()
            count += len(frames)
            total += frames.sum(0)
            squares += frames.square().sum(0)
    mean = total / count
    variance = (squares - count * mean.square()) / max(1, count - 1)
    return mean, variance.clamp_min(1e-6).sqrt()


def crop_samples(config: TrialConfig, stage: StageKind) -> int:
    """Samples of a clip that a stage trains on; longer recordings are cropped to it."""
    return round(config.trained_on(stage).clip_seconds * SAMPLE_RATE)


def latent_samples(config: TrialConfig) -> int:
    """Samples of a latent; a clip that is shorter is filled up with silence."""
    return config.front_end.hop_samples * config.model.frames_per_latent


def num_latents(config: TrialConfig, samples: Tensor) -> Tensor:
    """Valid latents (B,) of clips of that many samples, one at least."""
    return (samples // latent_samples(config)).clamp_min(1)


def computed_in(config: TrialConfig, device: torch.device) -> str:
    """What the network computes in: bf16 where it is asked for and the device has it, else float32.

    GPUs before Ampere emulate it, and take longer for it than for float32.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if config.precision == "bf16" and has_bf16 else "float32"


def autocast_for(config: TrialConfig, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which the network runs in the precision of `computed_in`."""
    if computed_in(config, device) == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
