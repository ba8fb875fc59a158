"""The encoder: log-mel -> latents -> context (paper 2.2, Figure 1a).

B clips, F frames, M mel bands, R frames a latent, T = F // R latents, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.audio.logmel import LogMel
from workbench.config import FrontEndConfig, ModelConfig
from workbench.devices import onto
from workbench.model.conformer import Conformer


class Encoder(nn.Module):
    """Front end, feature encoder and context encoder, with the vector that stands in for masked latents."""

    def __init__(self, front_end: FrontEndConfig, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = LogMel(front_end)
        self.features = nn.Linear(front_end.num_mels * config.frames_per_latent, config.latent_dim)
        self.mask_vector = nn.Parameter(torch.empty(config.latent_dim).uniform_())
        self.into_context = nn.Linear(config.latent_dim, config.width)
        self.conformer = Conformer(config)
        # Back to the latents' space; only the contrastive task uses it.
        self.out_of_context = nn.Linear(config.width, config.latent_dim)

    def latents(self, log_mel: Tensor) -> Tensor:
        """Feature encoder: (B, F, M) -> z (B, T, latent_dim); frames beyond the last whole R are dropped."""
        batch, _, bands = log_mel.shape
        stack = self.config.frames_per_latent
        length = self.num_latents(log_mel)
        return self.features(log_mel[:, : length * stack].reshape(batch, length, stack * bands))

    def num_latents(self, log_mel: Tensor) -> int:
        """T of (B, F, M)."""
        return log_mel.shape[1] // self.config.frames_per_latent

    def context(self, latents: Tensor, padding: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Context encoder up to the last block: (B, T, latent_dim) -> (B, T, D).

        `padding`, `masked` (B, T): True where a latent is padding, or is hidden from the context.
        """
        if masked is not None:
            latents = torch.where(masked[..., None], self.mask_vector.to(latents.dtype), latents)
        return self.conformer(self.into_context(latents), padding)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def num_parameters(front_end: FrontEndConfig, config: ModelConfig) -> int:
    """Parameters of the encoder, without building its weights."""
    with torch.device("meta"):
        return Encoder(front_end, config).num_parameters()


def padding_mask(lengths: Tensor, total: int, device: torch.device) -> Tensor | None:
    """(B, total) True beyond each of `lengths` (B,) on the CPU; None when nothing is padded.

    `lengths` stays on the CPU so that the question does not wait for the device.
    """
    if bool((lengths >= total).all()):
        return None
    return onto(device, torch.arange(total) >= lengths[:, None])
