"""The folder of a saved encoder: what is in it, and how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from workbench.config import SAMPLE_RATE, FrontEndConfig, ModelConfig
from workbench.model.encoder import Encoder
from workbench.model.heads import Classifier
from workbench.settings import ConfigError, TrainingKind, from_dict, identity
from workbench.training.checkpoint import load_tensors, save_tensors

# Raised when the same files come to be read differently, also by a new setting of front end or model.
FORMAT = 1

SETTINGS = "settings.json"
ENCODER = "encoder.safetensors"
CLASSIFIER = "classifier.safetensors"
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The head of a fine-tuned stage."""

    pooling: Literal["linear_softmax", "mean"]
    single_label: bool  # then logits are for a softmax, else for a sigmoid each
    num_classes: int
    classes: tuple[str, ...] | None  # in the order of the logits; None: the stage did not keep them


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The stage that the weights are of, and what they were trained on."""

    stage: TrainingKind
    id: str
    version: int
    finished: str  # ISO 8601
    parent: str | None  # the pre-training that a fine-tuning began from; None: from random weights
    seed: int
    precision: str
    data: dict[str, Any] | None  # None: of a pre-training on a pool of its own, which knows of no other
    data_fingerprint: str | None
    pretraining: dict[str, Any] | None  # of the stage or its parent; None: there was none, or it was deleted
    pool_hours: float | None  # of audio for pre-training; None: no stage kept it
    finetuning: dict[str, Any] | None
    labelled_clips: int | None
    metrics: dict[str, float]
    pool: dict[str, Any] | None = None  # of its own, for pre-training
    pool_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class SavedSettings:
    """`settings.json`."""

    format: int
    sample_rate: int  # Hz
    front_end: FrontEndConfig
    model: ModelConfig
    classifier: ClassifierSettings | None
    origin: Origin


def load_encoder(folder: Path | str) -> Encoder:
    """The encoder in `folder`, on the CPU and in evaluation mode. Raises ConfigError.

    `encoder.context(encoder.latents(encoder.front_end(waveform)))` is the context (B, T, D) of a waveform
    (B, S) at 16 kHz, float in [-1, 1] or int16.
    """
    settings = read_settings(folder)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(settings.front_end, settings.model)
    _load_weights(encoder, Path(folder) / ENCODER, settings)
    return encoder.eval()


def load_classifier(folder: Path | str) -> Classifier:
    """The classifier on top: context (B, T, D) -> logits (B, C), in evaluation mode. Raises ConfigError."""
    settings = read_settings(folder)
    if settings.classifier is None:
        raise ConfigError(str(folder), "has no classifier: its encoder was pre-trained only")
    with torch.random.fork_rng(devices=[]):
        classifier = new_classifier(settings.model, settings.classifier)
    _load_weights(classifier, Path(folder) / CLASSIFIER, settings)
    return classifier.eval()


def new_classifier(model: ModelConfig, settings: ClassifierSettings) -> Classifier:
    """With random weights, and without the dropout that it was trained with."""
    return Classifier(model.width, settings.num_classes, pooling=settings.pooling, output_dropout=0.0)


def read_settings(folder: Path | str) -> SavedSettings:
    """`settings.json` of `folder`, strictly. Raises ConfigError."""
    path = Path(folder) / SETTINGS
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            str(path), "is not there; name a folder that python -m workbench.export wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot be read ({error}); export the encoder again") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"{path}: format",
            f"must be {FORMAT}, is {found!r}; read it with the workbench that wrote it, or export it again",
        )
    try:
        return _checked(raw)
    except ConfigError as error:
        raise error.below(str(path)) from None


def _checked(raw: dict[str, Any]) -> SavedSettings:
    settings = from_dict(SavedSettings, raw)
    if settings.sample_rate != SAMPLE_RATE:
        raise ConfigError("sample_rate", f"must be {SAMPLE_RATE}, is {settings.sample_rate}")
    for name in ("front_end", "model"):
        # A default in place of a missing setting, such as the number of heads, would be another model.
        missing = identity(getattr(settings, name)).keys() - raw[name].keys()
        if missing:
            raise ConfigError(name, f"lacks {', '.join(sorted(missing))}; export the encoder again")
    return settings


def save_weights(module: nn.Module, path: Path, stage_id: str) -> None:
    """The weights and running statistics of `module`, marked as those of a stage."""
    save_tensors(path, module.state_dict(), {"stage": stage_id})
    path.chmod(0o644)  # safetensors writes for the owner alone; here the folder says who may read


def _load_weights(module: nn.Module, path: Path, settings: SavedSettings) -> None:
    """Every tensor of `module`, no more and no less. Raises ConfigError."""
    try:
        tensors, facts = load_tensors(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error}); export the encoder again") from None
    if facts != {"stage": settings.origin.id}:
        raise ConfigError(
            str(path), f"is not of the stage that {SETTINGS} names, {settings.origin.id}; export it again"
        )
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        raise ConfigError(
            str(path),
            f"does not fit {SETTINGS}: {len(wrong)} tensors differ, the first is {wrong[0]} "
            f"({_described(found.get(wrong[0]))}, expected {_described(expected.get(wrong[0]))})",
        )
    module.load_state_dict(tensors)


def _described(shape: torch.Size | None) -> str:
    return "none" if shape is None else f"shape {tuple(shape)}"
