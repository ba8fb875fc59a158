"""What pre-training asks of the encoder.

An objective hides part of the latents, and scores the context at the hidden places. Entered in
`OBJECTIVES` under its config's type.

B clips, T latents, M masked latents of a clip, L latent dimension, K distractors.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from workbench import processes
from workbench.config import ContrastiveConfig, ObjectiveConfig
from workbench.training.masking import masked_positions, span_mask

Metrics = dict[str, Tensor]  # scalars, still on the device


class Hidden(NamedTuple):
    """What an objective hides of B clips, and the draws that its loss takes; on the CPU until moved."""

    masked: Tensor  # (B, T) bool: True where hidden
    places: Tensor  # (B, M) the hidden latents of each clip
    valid: Tensor  # (B, M) bool: False where a clip has fewer than M
    draws: Tensor  # (B, M, M) how often latent j is a distractor of latent i


class Objective(Protocol):
    """`hide` of a batch, then of it or its parts the encoder's context and `loss`."""

    def hide(self, lengths: Tensor, total: int, generator: torch.Generator) -> Hidden:
        """Of B clips of `total` latents, of which `lengths` (B,) are valid; every draw is made here."""

    def loss(
        self, latents: Tensor, context: Tensor, into_latents: nn.Module, hidden: Hidden
    ) -> tuple[Tensor, Metrics]:
        """Scalar loss and metrics from latents (B, T, L) and context (B, T, D).

        `into_latents` takes D to L, so that it need only run where the objective looks.
        """

    def share(self, part: Hidden, whole: Hidden) -> Tensor:
        """What part of the whole, over all processes, a part's loss is the mean of: a scalar."""


class Contrastive:
    """Which of the masked latents of this clip is the one at this place? (equation 1)

    Distractors are uniform, with replacement, over the other masked latents of the clip; the targets are
    continuous, without a quantiser, and carry gradients. All candidates of a clip come from one matrix
    product: a latent drawn n times counts n times in the denominator.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        self.config = config

    def hide(self, lengths: Tensor, total: int, generator: torch.Generator) -> Hidden:
        masked = span_mask(
            lengths,
            total,
            fraction=self.config.mask_fraction,
            span=self.config.mask_span,
            generator=generator,
        )
        return self.ask(masked, generator)

    def ask(self, masked: Tensor, generator: torch.Generator) -> Hidden:
        """The task at the latents (B, T) that are masked."""
        places, valid = masked_positions(masked)
        return Hidden(masked, places, valid, self._draws(valid, generator))

    def loss(
        self, latents: Tensor, context: Tensor, into_latents: nn.Module, hidden: Hidden
    ) -> tuple[Tensor, Metrics]:
        predicted = into_latents(_at(context, hidden.places)).float()  # (B, M, L)
        targets = _at(latents, hidden.places).float()
        with torch.autocast(latents.device.type, enabled=False):  # a cosine over 0.1 needs float32
            similarity = nn.functional.normalize(predicted, dim=-1) @ (
                nn.functional.normalize(targets, dim=-1).transpose(1, 2) / self.config.temperature
            )  # (B, M, M); the diagonal is the positive's
            return _candidate_loss(similarity, hidden.draws, hidden.valid)

    def share(self, part: Hidden, whole: Hidden) -> Tensor:
        of_part, of_whole = (processes.total(_asked(x.draws, x.valid).sum()) for x in (part, whole))
        return of_part / of_whole.clamp_min(1)

    def _draws(self, valid: Tensor, generator: torch.Generator) -> Tensor:
        """How often latent j is a distractor of latent i: valid (B, M) -> (B, M, M) float, CPU."""
        batch, most = valid.shape
        others = valid[:, None, :] & valid[:, :, None] & ~torch.eye(most, dtype=torch.bool)
        count = self.config.num_distractors
        if count is None:
            return others.float()
        # The valid come first in each row, so "the others of i" are 0..n-1 without i.
        num_others = valid.sum(1)[:, None, None] - 1
        drawn = (torch.rand(batch, most, count, generator=generator) * num_others).long()
        drawn = drawn.clamp_min(0)  # a clip without any others; `others` removes it below
        drawn += drawn >= torch.arange(most)[None, :, None]
        draws = torch.zeros(batch, most, most + 1)  # one column more for i = M - 1 of such a clip
        draws.scatter_add_(2, drawn, torch.ones(drawn.shape))
        return draws[:, :, :most] * others


def _candidate_loss(similarity: Tensor, draws: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
    """Mean over masked latents that have a distractor: -log of the positive's share of the candidates."""
    asked = _asked(draws, valid)
    positive = similarity.diagonal(dim1=1, dim2=2)
    distractors = similarity + torch.log(draws)  # log 0 = -inf: not a candidate
    scores = torch.cat([positive[..., None], distractors], dim=2).masked_fill(~asked[..., None], 0.0)
    losses = scores.logsumexp(2) - scores[..., 0]
    count = processes.mean(asked.sum().float()).clamp_min(1)  # so that the mean of losses is over all latents
    loss = (losses * asked).sum() / count
    with torch.no_grad():
        # Strictly above every distractor: a collapse, where all are equal, counts as wrong.
        is_best = ((positive[..., None] > similarity) | (draws == 0)).all(2)
        accuracy = (is_best & asked).sum() / count
    return loss, {"loss": loss.detach(), "contrastive_accuracy": accuracy}


def _asked(draws: Tensor, valid: Tensor) -> Tensor:
    """(B, M) True for a masked latent that has a distractor."""
    return valid & (draws.sum(2) > 0)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each clip: (B, T, D), (B, M) -> (B, M, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


OBJECTIVES: dict[type, type[Objective]] = {ContrastiveConfig: Contrastive}


def build_objective(config: ObjectiveConfig) -> Objective:
    return OBJECTIVES[type(config)](config)  # type: ignore[call-arg]


@torch.no_grad()
def collapse_metrics(latents: Tensor) -> Metrics:
    """What shows a collapse, from latents (N, L): their standard deviation, and their effective rank.

    The effective rank is exp(entropy) of the covariance's normalised spectrum (Roy and Vetterli 2007), L at
    most.
    """
    count = processes.mean(torch.tensor(float(len(latents)), device=latents.device))
    centred = latents.float() - processes.mean(latents.float().sum(0)) / count
    covariance = processes.mean(centred.T @ centred) / count
    finite = covariance.isfinite().all()  # else eigvalsh would raise: it is the loss that tells a divergence
    spectrum = torch.linalg.eigvalsh(torch.where(finite, covariance, 0.0)).clamp_min(0)
    share = spectrum / spectrum.sum().clamp_min(1e-30)
    entropy = -torch.special.xlogy(share, share).sum()
    return {
        "latent_std": covariance.diagonal().clamp_min(0).sqrt().mean(),
        "latent_effective_rank": torch.where(finite, entropy.exp(), torch.nan),
    }
