"""Context (B, T, D) -> logits (B, C) (paper 4).

B clips, T latents, D width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from workbench.model.dropout import Dropout

LEAST = 1e-18  # a probability whose square float32 still tells from nothing
MOST = 1 - 2**-24  # the last one below 1


class Classifier(nn.Module):
    """Output dropout, then one of the paper's two ways from latents to a clip.

    `linear_softmax`: a linear layer and sigmoid on every latent, p, pooled as sum(p^2) / sum(p) (AudioSet).
    `mean`: mean over the latents, then linear (all other tasks).
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        pooling: Literal["linear_softmax", "mean"],
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = Dropout(output_dropout)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, context: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) -> logits (B, C), float32; `padding` (B, T) takes no part."""
        context = self.dropout(context).float()
        valid = None if padding is None else (~padding)[..., None].float()
        # In bf16 a 64th is lost of a logit of 2 to 4: clips would tie, and a tie counts as a miss.
        with torch.autocast(context.device.type, enabled=False):
            if self.pooling == "mean":
                return self.linear(_mean(context, valid))
            probability = torch.sigmoid(self.linear(context))  # (B, T, C)
        if valid is not None:
            probability = probability * valid
        pooled = probability.square().sum(1) / probability.sum(1).clamp_min(LEAST)
        return torch.logit(pooled.clamp(LEAST, MOST))


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return x.mean(1)
    return (x * valid).sum(1) / valid.sum(1)
