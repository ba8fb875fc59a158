"""Fine-tuning: the encoder and a classifier learn from labelled clips (paper 4).

B clips, S samples, F frames, M mel bands, T latents, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench import processes
from workbench.audio.augment import Draws, draw_versions, jitter, mixup, time_mask
from workbench.config import TrialConfig
from workbench.data.clips import ClipSet, Splits
from workbench.devices import onto, rows_of
from workbench.model.encoder import Encoder, padding_mask
from workbench.model.heads import Classifier
from workbench.random_streams import derive, numpy_stream, torch_stream
from workbench.training import metrics as clip_metrics
from workbench.training.batches import BalancedClasses, BatchOrder, ShuffledEpochs, neighbours
from workbench.training.loop import Course, Diverged, Run, Stopped, Validation
from workbench.training.objectives import Metrics
from workbench.training.pack import pack_key, train_together
from workbench.training.pretrain import autocast_for, crop_samples, latent_samples, num_latents

STAGE: Literal["finetune"] = "finetune"


class ClipModel(nn.Module):
    """Encoder and classifier: log-mel (B, F, M) -> logits (B, C)."""

    def __init__(self, encoder: Encoder, classifier: Classifier, *, freeze_encoder: bool) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not freeze_encoder)
        encoder.mask_vector.requires_grad_(False)  # no latent is masked, and none predicted
        encoder.out_of_context.requires_grad_(False)
        self.classifier = classifier
        self.freeze_encoder = freeze_encoder

    def forward(self, log_mel: Tensor, padding: Tensor | None = None) -> Tensor:
        """`padding` (B, T) is True beyond a clip's latents."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            latents = self.encoder.latents(log_mel)  # (B, T, 256)
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


class Heard(NamedTuple):
    """Of a batch, on the device; of several processes' only this one's clips.

    Two versions of each clip where consistency is asked for.
    """

    log_mel: Tensor  # (B or 2 B, F, M)
    padding: Tensor | None  # (B or 2 B, T)
    targets: Tensor  # (B, C)


class Finetuning:
    """The task of `config.finetuning` on the labelled clips."""

    stage = STAGE

    def __init__(self, config: TrialConfig, splits: Splits, encoder: Encoder, device: torch.device) -> None:
        self.config, self.settings = config, config.finetuning
        self.clips, self.single_label, self.device = splits.train, splits.single_label, device
        self.model = new_clip_model(config, encoder, len(splits.classes)).to(device).train()
        self._order = batch_order(config, splits.train)
        self._longest = crop_samples(config, STAGE)
        self._autocast = autocast_for(config, device)
        self.compile = config.compile
        self.pack_key = pack_key(config, STAGE)

    def hear(self, step: int) -> Heard:
        generator = torch_stream(self.config.seed, STAGE, "augment", step)
        versions = self.settings.versions
        chosen = self._order.batch(step)
        batch = len(chosen)
        samples = torch.from_numpy(self.clips.cropped(chosen, self._longest).astype(np.int64))  # (B,)
        frames = samples // self.config.front_end.hop_samples
        draws = draw_versions(self.settings.augmentation, frames, versions, generator)
        own = processes.own_rows(batch, self.settings.accumulation)
        rows = torch.cat([own + batch * version for version in range(versions)])
        log_mel = self._augmented(step, chosen, draws, rows)
        lengths = num_latents(self.config, samples).repeat(versions)
        padding = padding_mask(lengths, self.model.encoder.num_latents(log_mel), self.device)
        targets = onto(self.device, torch.from_numpy(self.clips.labels.matrix(chosen[own])).float())
        return Heard(log_mel, rows_of(padding, rows), targets)

    def _augmented(self, step: int, chosen: np.ndarray, draws: Draws, rows: Tensor) -> Tensor:
        """Log-mels (R, F, M) of these rows of the draws; those that are mixed into them are heard, too."""
        heard = rows if draws.partner is None else torch.cat([rows, draws.partner[rows]]).unique()
        clip, place = (heard % len(chosen)).unique(return_inverse=True)
        waveform, _ = self.clips.read(
            chosen,
            min_samples=latent_samples(self.config),
            max_samples=self._longest,
            generator=numpy_stream(self.config.seed, STAGE, "crop", step),
            rows=clip.numpy(),
        )
        waveform = jitter(rows_of(onto(self.device, waveform), place), rows_of(draws.shift, heard))
        log_mel = time_mask(self.model.encoder.front_end(waveform), rows_of(draws.masked, heard))
        if draws.partner is None or draws.weight is None:
            return log_mel
        own, partner = (torch.searchsorted(heard, each) for each in (rows, draws.partner[rows]))
        return mixup(rows_of(log_mel, own), rows_of(log_mel, partner), draws.weight[rows])

    def loss(self, heard: Heard) -> tuple[Tensor, Metrics]:
        with self._autocast():
            logits = self.model(heard.log_mel, heard.padding)  # (B, C)
        return _loss(logits, heard.targets, self.single_label, self.settings.consistency_weight)

    def share(self, part: Heard, whole: Heard) -> Tensor:
        return part.targets.new_full((), len(part.targets) / len(whole.targets))

    def watch(self, heard: Heard) -> Metrics:
        return {}


def finetune(config: TrialConfig, splits: Splits, encoder: Encoder, run: Run) -> Finetuned:
    """Train `encoder` (changed in place) and a new classifier on the labelled clips. Raises Diverged."""
    course = _course(config, splits, encoder, run)
    return _finetuned(course, run.train(course))


def finetune_together(
    trials: Sequence[tuple[TrialConfig, Splits, Encoder, Run]],
) -> list[Finetuned | Diverged | Stopped]:
    """`finetune` of each (config, splits, encoder, run), as one pack; what ends one is in its place."""
    courses = [_course(*trial) for trial in trials]
    return [
        end if isinstance(end, Diverged | Stopped) else _finetuned(course, end)
        for course, end in zip(courses, train_together(courses), strict=True)
    ]


def _course(config: TrialConfig, splits: Splits, encoder: Encoder, run: Run) -> Course[Finetuning]:
    settings = config.finetuning
    task = Finetuning(config, splits, encoder, run.device)
    points = np.linspace(0, settings.steps, settings.num_evaluations + 1)[1:].round().astype(int)
    validation = Validation(
        score=lambda: score(config, task.model, splits.validation, run.device, "validation")[0],
        after=frozenset(points.tolist()),
        select=f"validation/{config.data.metric}",
    )
    return Course(task, settings, seed=config.seed, run=run, validation=validation)


def _finetuned(course: Course[Finetuning], history: list[dict[str, float]]) -> Finetuned:
    assert course.validation is not None
    select = course.validation.select
    best = max((row for row in history if select in row), key=lambda row: row[select])
    values = {name: value for name, value in best.items() if name.startswith("validation/")}
    return Finetuned(course.task.model, history, values | {"best_step": best["step"]})


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
    """KL(p || q) + KL(q || p) of predictions from logits (B, C), mean over clips (and C, if multi-label)."""
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
    scores = torch.zeros(len(clips), clips.labels.num_classes, device=device)
    batches = neighbours(clips.length)
    for begin, end in batches[processes.rank() :: processes.count()]:
        waveform, samples = clips.read(np.arange(begin, end), min_samples=latent_samples(config))
        with autocast():
            log_mel = model.encoder.front_end(onto(device, waveform))
            lengths = num_latents(config, samples)
            logits = model(log_mel, padding_mask(lengths, model.encoder.num_latents(log_mel), device))
        scores[begin:end] = logits.softmax(-1) if config.data.single_label else logits.sigmoid()
    model.train(was_training)
    return processes.total(scores).cpu().numpy()


def score(
    config: TrialConfig, model: ClipModel, clips: ClipSet, device: torch.device, split: str
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics, named `split/...`, and the scores (N, C) behind them. Raises FloatingPointError."""
    scores = predict(config, model, clips, device)
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the model's {split} scores are not finite")
    values = clip_metrics.summarise(scores, clips.labels.matrix(), single_label=config.data.single_label)
    return {f"{split}/{name}": float(value) for name, value in values.items()}, scores
