"""A straightforward implementation of both stages on `torchaudio.models.Conformer`, to hold the core against.

What most would write first: `torch.nn.Dropout`, a tensor of all candidates in the contrastive loss, the last
linear over every latent, `MelSpectrogram`, AdamW as it comes. Data reading, augmentation, masks and the
classifier's pooling are the core's own.

B clips, S samples, F frames, T latents, M of a clip masked, D width, L latent dimension, K distractors.
"""

from __future__ import annotations

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from workbench.audio import augment
from workbench.audio.logmel import FLOOR
from workbench.config import SAMPLE_RATE, ContrastiveConfig, FrontEndConfig, ModelConfig, TrialConfig
from workbench.data.clips import ClipSet
from workbench.model.heads import LEAST, MOST
from workbench.random_streams import torch_stream
from workbench.settings import TrainingKind
from workbench.training.finetune import symmetric_divergence
from workbench.training.masking import span_mask
from workbench.training.pretrain import autocast_for


class PlainEncoder(nn.Module):
    """Log-mel -> latents -> context, for clips of one length."""

    mean: Tensor
    std: Tensor

    def __init__(self, front_end: FrontEndConfig, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pad = (front_end.window_samples - front_end.hop_samples) // 2
        self.spectrogram = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE,
            n_fft=front_end.window_samples,
            hop_length=front_end.hop_samples,
            n_mels=front_end.num_mels,
            center=False,
        )
        self.register_buffer("mean", torch.zeros(front_end.num_mels))
        self.register_buffer("std", torch.ones(front_end.num_mels))
        self.features = nn.Linear(front_end.num_mels * config.frames_per_latent, config.latent_dim)
        self.mask_vector = nn.Parameter(torch.rand(config.latent_dim))
        self.into_context = nn.Linear(config.latent_dim, config.width)
        self.first = self._conformer(1, config.first_kernel)
        self.rest = self._conformer(config.num_blocks - 1, config.kernel) if config.num_blocks > 1 else None
        self.out_of_context = nn.Linear(config.width, config.latent_dim)

    def _conformer(self, num_layers: int, kernel: int) -> torchaudio.models.Conformer:
        return torchaudio.models.Conformer(
            input_dim=self.config.width,
            num_heads=self.config.num_heads,
            ffn_dim=self.config.ffn_dim,
            num_layers=num_layers,
            depthwise_conv_kernel_size=kernel,
            dropout=self.config.dropout,
            convolution_first=True,
        )

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, S) int16 -> (B, F, mels)."""
        padded = nn.functional.pad(waveform.float() / 32768.0, (self.pad, self.pad))
        log_mel = torch.log(self.spectrogram(padded) + FLOOR).transpose(1, 2)
        return (log_mel - self.mean) / self.std

    def latents(self, log_mel: Tensor) -> Tensor:
        """(B, F, mels) -> (B, T, L)."""
        batch, frames, bands = log_mel.shape
        stack = self.config.frames_per_latent
        length = frames // stack
        return self.features(log_mel[:, : length * stack].reshape(batch, length, stack * bands))

    def context(self, latents: Tensor) -> Tensor:
        """(B, T, L) -> (B, T, D)."""
        x = self.into_context(latents)
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        x, _ = self.first(x, lengths)
        if self.rest is not None:
            x, _ = self.rest(x, lengths)
        return x


class PlainClassifier(nn.Module):
    """Output dropout, linear in the network's precision, and the core's two poolings."""

    def __init__(self, config: TrialConfig, num_classes: int) -> None:
        super().__init__()
        self.pooling = config.finetuning.pooling
        self.dropout = nn.Dropout(config.finetuning.output_dropout)
        self.linear = nn.Linear(config.model.width, num_classes)

    def forward(self, context: Tensor) -> Tensor:
        """(B, T, D) -> logits (B, C)."""
        context = self.dropout(context)
        if self.pooling == "mean":
            return self.linear(context.mean(1)).float()
        probability = torch.sigmoid(self.linear(context).float())
        pooled = probability.square().sum(1) / probability.sum(1).clamp_min(LEAST)
        return torch.logit(pooled.clamp(LEAST, MOST))


def contrastive_loss(predicted: Tensor, targets: Tensor, distractors: Tensor, temperature: float) -> Tensor:
    """Equation 1 by a tensor of candidates: (B, M, L), (B, M, L), indices into the M (B, M, K) -> scalar."""
    batch, masked, _ = targets.shape
    clip = torch.arange(batch, device=targets.device)[:, None, None]
    candidates = torch.cat([targets[:, :, None], targets[clip, distractors]], dim=2)  # (B, M, 1 + K, L)
    scores = nn.functional.cosine_similarity(predicted[:, :, None], candidates, dim=-1) / temperature
    right = torch.zeros(batch * masked, dtype=torch.int64, device=scores.device)
    return nn.functional.cross_entropy(scores.flatten(0, 1), right)


def draw_distractors(batch: int, masked: int, count: int | None) -> Tensor:
    """(B, M, K) of the other M - 1; all of them where `count` is None."""
    if count is None:
        others = torch.arange(masked - 1).expand(batch, masked, masked - 1)
    else:
        others = torch.randint(0, masked - 1, (batch, masked, count))
    return others + (others >= torch.arange(masked)[None, :, None])


class PlainTraining:
    """One stage: `update(step)` trains on a batch of `clips`, all of one length."""

    def __init__(self, config: TrialConfig, kind: TrainingKind, clips: ClipSet, device: torch.device) -> None:
        self.config, self.kind, self.clips, self.device = config, kind, clips, device
        settings = config.training(kind)
        self.batch_size, self.optimiser_config = settings.batch_size, settings.optimiser
        self.encoder = PlainEncoder(config.front_end, config.model).to(device).train()
        self.classifier = PlainClassifier(config, clips.labels.num_classes).to(device).train()
        self.parameters = [*self.encoder.parameters(), *self.classifier.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=self.optimiser_config.peak_lr,
            betas=self.optimiser_config.betas,
            weight_decay=self.optimiser_config.weight_decay,
        )
        self.autocast = autocast_for(config, device)

    def update(self, step: int) -> None:
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size) % len(self.clips)
        waveform, samples = self.clips.read(indices)
        generator = torch_stream(step)
        waveform = waveform.to(self.device)
        with self.autocast():
            if self.kind == "pretrain":
                loss = self.pretraining_loss(waveform, generator)
            else:
                targets = torch.from_numpy(self.clips.labels.matrix(indices)).float().to(self.device)
                loss = self.finetuning_loss(waveform, samples, targets, generator)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.optimiser_config.max_grad_norm or float("inf"))
        self.optimiser.step()

    def pretraining_loss(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        settings = self.config.pretraining
        assert settings is not None
        objective = settings.objective
        assert isinstance(objective, ContrastiveConfig)
        log_mel = self.encoder.log_mel(waveform)
        batch = len(waveform)
        decibels = augment.draw_gain(batch, settings.gain_db, generator)
        bands = augment.draw_mel_shift(batch, settings.mel_shift, generator)
        log_mel = augment.mel_shift(augment.gain(log_mel, self.encoder.std, decibels), bands)
        latents = self.encoder.latents(log_mel)
        length, latent_dim = latents.shape[1:]
        hidden = span_mask(
            torch.full((batch,), length),
            length,
            fraction=objective.mask_fraction,
            span=objective.mask_span,
            generator=generator,
        ).to(self.device)
        seen = torch.where(hidden[..., None], self.encoder.mask_vector.to(latents.dtype), latents)
        predicted = self.encoder.out_of_context(self.encoder.context(seen))  # (B, T, L)
        predicted, targets = (x[hidden].view(batch, -1, latent_dim).float() for x in (predicted, latents))
        distractors = draw_distractors(batch, targets.shape[1], objective.num_distractors).to(self.device)
        return contrastive_loss(predicted, targets, distractors, objective.temperature)

    def finetuning_loss(
        self, waveform: Tensor, samples: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Tensor:
        settings, augmentation = self.config.finetuning, self.config.finetuning.augmentation
        frames = samples // self.config.front_end.hop_samples
        logits = []
        for _ in range(settings.versions):
            draws = augment.draw_versions(augmentation, frames, 1, generator)
            log_mel = self.encoder.log_mel(augment.jitter(waveform, draws.shift))
            log_mel = augment.time_mask(log_mel, draws.masked)
            if draws.partner is not None and draws.weight is not None:
                log_mel = augment.mixup(log_mel, log_mel[draws.partner], draws.weight)
            logits.append(self.classifier(self.encoder.context(self.encoder.latents(log_mel))))
        losses = [nn.functional.binary_cross_entropy_with_logits(each, targets) for each in logits]
        loss = torch.stack(losses).mean()
        if len(logits) == 2:
            loss = loss + settings.consistency_weight * symmetric_divergence(*logits, single_label=False)
        return loss
