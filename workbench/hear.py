"""The interface of HEAR 2021 (hearbenchmark.com/hear-api.html) over a folder that `workbench.export` wrote.

B sounds of S samples, F frames, M mel bands, R frames a latent, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from workbench.config import SAMPLE_RATE
from workbench.export import load_encoder
from workbench.model.encoder import Encoder
from workbench.settings import ConfigError

# Of as many sounds as go through the encoder at once: a batch of any size then takes no more memory than one
# sound of the 20 minutes that the rules ask for.
LATENTS_AT_ONCE = 1 << 14


class Model(nn.Module):
    """An encoder with the attributes that HEAR asks for. It stays in evaluation mode."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate = SAMPLE_RATE
        self.scene_embedding_size = encoder.config.width
        self.timestamp_embedding_size = encoder.config.width
        self.eval()

    def train(self, mode: bool = True) -> Model:
        """Embeddings are those of a fixed encoder: dropout and batch statistics never come on."""
        return super().train(False)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, F, M) -> context (B, F // R, D)."""
        return self.encoder.context(self.encoder.latents(log_mel))

    def log_mels(self, audio: Tensor) -> Iterator[Tensor]:
        """(B, S) -> log-mels (b, F, M) of some sounds after the other, F >= R, on the model's device."""
        front_end = self.encoder.front_end
        shortest = front_end.config.hop_samples * self.encoder.config.frames_per_latent
        at_once = max(1, LATENTS_AT_ONCE // max(1, audio.shape[1] // shortest))
        for sounds in audio.split(at_once):
            sounds = sounds.to(front_end.mean.device, torch.float32)
            yield front_end(nn.functional.pad(sounds, (0, max(0, shortest - audio.shape[1]))))


def load_model(model_file_path: str = "") -> Model:
    """The encoder in the folder `model_file_path`, on the CPU. Raises ConfigError."""
    if not model_file_path:
        raise ConfigError(
            "model_file_path", "is needed, for workbench has no weights of its own: name an exported folder"
        )
    return Model(load_encoder(model_file_path))


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Embeddings (B, F - R + 1, D) of (B, S), and the times of their middles (B, F - R + 1) in milliseconds.

    `audio` is float in [-1, 1] at `model.sample_rate`; both results are float32 on the model's device. The
    encoder gives one vector each R frames. The R passes that begin a frame apart give, between them, one a
    frame, each computed as in training. A sound shorter than R frames is filled up with silence.
    """
    _check(audio)
    stack = model.encoder.config.frames_per_latent
    embeddings = torch.cat([_of_every_frame(model, log_mel, stack) for log_mel in model.log_mels(audio)])
    hop = model.encoder.front_end.config.hop_ms
    times = hop * (torch.arange(embeddings.shape[1], device=embeddings.device) + stack / 2)
    return embeddings, times.float().repeat(len(audio), 1)


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """Embeddings (B, D) of (B, S): the means over time of one pass, float32 on the model's device."""
    _check(audio)
    return torch.cat([model(log_mel).mean(1) for log_mel in model.log_mels(audio)])


def _of_every_frame(model: Model, log_mel: Tensor, stack: int) -> Tensor:
    """(B, F, M) -> (B, F - R + 1, D): that of the R frames from each frame on."""
    sounds, frames, _ = log_mel.shape
    count = frames - stack + 1
    embeddings = log_mel.new_empty(sounds, count, model.timestamp_embedding_size)
    for first in range(min(stack, count)):
        embeddings[:, first::stack] = model(log_mel[:, first:])
    return embeddings


def _check(audio: Tensor) -> None:
    if audio.ndim != 2 or not audio.is_floating_point() or 0 in audio.shape:
        raise ValueError(
            "audio must be float samples in [-1, 1] of shape (n_sounds, n_samples), neither of them 0, "
            f"is {audio.dtype} of shape {tuple(audio.shape)}"
        )
