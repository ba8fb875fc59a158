"""Context (B, T, D) -> logits (B, C) (paper 4).

B clips, T latents, D width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from workbench.model.dropout import Dropout


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
        context = self.dropout(context)
        valid = None if padding is None else (~padding)[..., None].float()
        if self.pooling == "mean":
            return self.linear(_mean(context, valid)).float()
        probability = torch.sigmoid(self.linear(context).float())  # (B, T, C)
        if valid is not None:
            probability = probability * valid
        total = probability.sum(1)
        pooled = probability.square().sum(1) / total.clamp_min(1e-12)
        return torch.logit(pooled, eps=1e-6)


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return x.mean(1)
    return (x * valid).sum(1) / valid.sum(1)
