"""Floating-point operations of an update, counted from its shapes.

Matrix products, convolutions and attention, a multiply-add as two; the backward pass computes twice what the
forward pass does, once where the input needs no gradient. Norms, activations and the front end are left out.
"""

from __future__ import annotations

from workbench.config import ContrastiveConfig, ModelConfig, TrialConfig
from workbench.settings import TrainingKind


def update_flops(config: TrialConfig, kind: TrainingKind, num_classes: int = 0) -> float:
    """Of one update with clips of `config.data.clip_seconds`, all of it computed once."""
    model, length = config.model, config.num_latents
    features = 2 * length * config.front_end.num_mels * model.frames_per_latent * model.latent_dim
    context = 2 * length * model.latent_dim * model.width + _conformer(model, length)
    if kind == "pretrain":
        assert config.pretraining is not None
        assert isinstance(config.pretraining.objective, ContrastiveConfig)
        masked = max(2, int(config.pretraining.objective.mask_fraction * length + 0.5))
        loss = 2 * masked * model.width * model.latent_dim + 2 * masked**2 * model.latent_dim
        return config.pretraining.batch_size * (2 * features + 3 * (context + loss))
    settings = config.finetuning
    passes = settings.batch_size * settings.versions
    places = length if settings.pooling == "linear_softmax" else 1
    classifier = 2 * places * model.width * num_classes
    if settings.freeze_encoder:
        return passes * (features + context + 2 * classifier)
    return passes * (2 * features + 3 * (context + classifier))


def _conformer(model: ModelConfig, length: int) -> float:
    """One clip, forward."""
    width = model.width
    feed_forward = 2 * (2 * 2 * length * width * model.ffn_dim)
    attention = 2 * length * width * 4 * width + 2 * 2 * length**2 * width
    pointwise = 2 * length * width * 3 * width
    kernels = model.first_kernel + (model.num_blocks - 1) * model.kernel
    return model.num_blocks * (feed_forward + attention + pointwise) + 2 * length * width * kernels
