"""Fine-tuning: the encoder and a classifier learn from labelled clips (paper 4).

B clips, S samples, F frames, M mel bands, T latents, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench.audio.augment import jitter, mixup, time_mask
from workbench.config import TrialConfig
from workbench.data.clips import ClipSet, Splits
from workbench.model.encoder import Encoder, padding_mask
from workbench.model.heads import Classifier
from workbench.random_streams import derive, numpy_stream, torch_stream
from workbench.training import metrics as clip_metrics
from workbench.training.batches import BalancedClasses, BatchOrder, ShuffledEpochs
from workbench.training.loop import Run, train
from workbench.training.objectives import Metrics
from workbench.training.pretrain import autocast_for, crop_samples, num_latents

STAGE = "finetune"
EVALUATION_BATCH = 64  # clips


class ClipModel(nn.Module):
    """Encoder and classifier: log-mel (B, F, M) -> logits (B, C)."""

    def __init__(self, encoder: Encoder, classifier: Classifier, *, freeze_encoder: bool) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not freeze_encoder)
        self.classifier = classifier
        self.freeze_encoder = freeze_encoder

    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """`lengths` (B,) are the valid latents, on the CPU."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            latents = self.encoder.latents(log_mel)  # (B, T, 256)
            padding = padding_mask(lengths, latents.shape[1], latents.device)
            context = self.encoder.context(latents, padding)  # (B, T, D)
        return self.classifier(context, padding)  # (B, C)

    def train(self, mode: bool = True) -> ClipModel:
        """A frozen encoder keeps its batch statistics, and has no dropout."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self


@dataclass
class Finetuned:
    """The model at its best validation score, and that score."""

    model: ClipModel
    history: list[dict[str, float]]
    validation: dict[str, float]


def finetune(config: TrialConfig, splits: Splits, encoder: Encoder, run: Run) -> Finetuned:
    """Train `encoder` (changed in place) and a new classifier on the labelled clips. Raises Diverged."""
    settings = config.finetuning
    augmentation = settings.augmentation
    clips = splits.train
    model = new_clip_model(config, encoder, len(splits.classes)).to(run.device).train()
    order = batch_order(config, clips)
    autocast = autocast_for(config, run.device)
    versions = 2 if settings.consistency_weight > 0 else 1

    def losses(step: int, logging: bool) -> Iterator[tuple[Tensor, Metrics]]:
        indices = order.batch(step)
        crop = numpy_stream(config.seed, STAGE, "crop", step)
        generator = torch_stream(config.seed, STAGE, "augment", step)
        for part in np.array_split(indices, settings.accumulation):
            waveform, samples = clips.read(part, max_samples=crop_samples(config), generator=crop)
            waveform = waveform.to(run.device).repeat(versions, 1)  # every version augmented anew
            frames = (samples // config.front_end.hop_samples).repeat(versions)
            lengths = num_latents(config, samples).repeat(versions)
            targets = torch.from_numpy(clips.labels[part]).float().to(run.device)
            with autocast():
                waveform = jitter(waveform, augmentation.jitter_samples, generator)
                log_mel = encoder.front_end(waveform)  # (B, F, M)
                log_mel = time_mask(log_mel, frames, augmentation.time_mask, generator)
                log_mel = torch.cat(
                    [mixup(version, augmentation.mixup, generator) for version in log_mel.chunk(versions)]
                )
                logits = model(log_mel, lengths)  # (B, C)
            yield _loss(logits, targets, splits.single_label, settings.consistency_weight)

    select = "validation/accuracy" if splits.single_label else "validation/mAP"

    def evaluate() -> dict[str, float]:
        return score(config, model, splits.validation, run.device, "validation")[0]

    points = np.linspace(0, settings.steps, settings.num_evaluations + 1)[1:].round().astype(int)
    history = train(
        model,
        losses,
        settings,
        stage=STAGE,
        seed=config.seed,
        run=run,
        evaluate=evaluate,
        evaluate_after=frozenset(points.tolist()),
        select=select,
    )
    best = max((row for row in history if select in row), key=lambda row: row[select])
    validation = {name: value for name, value in best.items() if name.startswith("validation/")}
    return Finetuned(model, history, validation | {"best_step": best["step"]})


def new_clip_model(config: TrialConfig, encoder: Encoder, num_classes: int) -> ClipModel:
    """With an untrained classifier, whose weights depend on the seed alone: arms are compared in pairs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "classifier"))
        classifier = Classifier(
            config.model.width,
            num_classes,
            pooling=config.finetuning.pooling,
            output_dropout=config.finetuning.output_dropout,
        )
    return ClipModel(encoder, classifier, freeze_encoder=config.finetuning.freeze_encoder)


def batch_order(config: TrialConfig, clips: ClipSet) -> BatchOrder:
    settings = config.finetuning
    if settings.class_balanced:
        return BalancedClasses(clips.labels, settings.batch_size, config.seed, STAGE)
    return ShuffledEpochs(len(clips), settings.batch_size, config.seed, STAGE)


def _loss(
    logits: Tensor, targets: Tensor, single_label: bool, consistency_weight: float
) -> tuple[Tensor, Metrics]:
    """Classification loss, and the consistency of two versions where `logits` hold two (paper 4.2).

    Cross-entropy and the divergence of two softmaxes for single-label targets (B, C) one-hot; binary
    cross-entropy and the divergence of C Bernoulli variables, means over classes, for multi-label ones.
    """
    versions = logits.chunk(len(logits) // len(targets))
    every = targets.repeat(len(versions), 1)
    if single_label:
        loss = nn.functional.cross_entropy(logits, every)
    else:
        loss = nn.functional.binary_cross_entropy_with_logits(logits, every)
    metrics = {"classification_loss": loss.detach()}
    if len(versions) == 2:
        divergence = symmetric_divergence(*versions, single_label=single_label)
        loss = loss + consistency_weight * divergence
        metrics["consistency_loss"] = divergence.detach()
    return loss, metrics | {"loss": loss.detach()}


def symmetric_divergence(first: Tensor, second: Tensor, *, single_label: bool) -> Tensor:
    """KL(p || q) + KL(q || p) of predictions from logits (B, C), mean over clips."""
    if single_label:
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
    return ((torch.sigmoid(first) - torch.sigmoid(second)) * (first - second)).mean()


@torch.no_grad()
def predict(config: TrialConfig, model: ClipModel, clips: ClipSet, device: torch.device) -> np.ndarray:
    """Probabilities (N, C) of whole clips, in their order, without augmentation."""
    was_training = model.training
    model.eval()
    autocast = autocast_for(config, device)
    scores = []
    for begin in range(0, len(clips), EVALUATION_BATCH):
        waveform, samples = clips.read(np.arange(begin, min(begin + EVALUATION_BATCH, len(clips))))
        with autocast():
            log_mel = model.encoder.front_end(waveform.to(device))
            logits = model(log_mel, num_latents(config, samples))
        scores.append(logits.softmax(-1) if config.data.single_label else logits.sigmoid())
    model.train(was_training)
    return torch.cat(scores).cpu().numpy()


def score(
    config: TrialConfig, model: ClipModel, clips: ClipSet, device: torch.device, split: str
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics, named `split/...`, and the scores (N, C) behind them. Raises FloatingPointError."""
    scores = predict(config, model, clips, device)
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the model's {split} scores are not finite")
    values = clip_metrics.summarise(scores, clips.labels, single_label=config.data.single_label)
    return {f"{split}/{name}": float(value) for name, value in values.items()}, scores
