"""Span masks and the contrastive task, against their definitions."""

import math
import typing

import pytest
import torch

from workbench.config import ContrastiveConfig, ObjectiveConfig
from workbench.training.masking import masked_positions, span_mask
from workbench.training.objectives import OBJECTIVES, Contrastive, collapse_metrics


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _runs(row):
    """Lengths of the runs of True."""
    edges = torch.diff(
        row.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int)
    )
    return (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]


@pytest.mark.parametrize(("length", "span"), [(125, 10), (40, 2), (40, 3), (7, 10), (3, 2), (2, 1)])
def test_mask_hides_the_share_in_spans(length, span):
    lengths = torch.full((200,), length)
    masked = span_mask(lengths, length, fraction=0.3, span=span, generator=_generator())
    expected = max(2, math.floor(0.3 * length + 0.5))
    assert (masked.sum(1) == expected).all()
    for row in masked:
        # Spans may touch, so a run is made of whole spans, one of the row's being the shorter remainder.
        remainder = expected % span
        odd = [int(r) % span for r in _runs(row) if int(r) % span]
        assert odd in ([], [remainder])


def test_mask_is_uniform_over_places():
    lengths = torch.full((40_000,), 40)
    share = span_mask(lengths, 40, fraction=0.3, span=2, generator=_generator()).float().mean(0)
    middle = share[4:-4]
    assert middle.min() > 0.28
    assert middle.max() < 0.32


def test_mask_stays_inside_each_clip_and_needs_two_latents():
    lengths = torch.tensor([40, 11, 2, 1])
    masked = span_mask(lengths, 40, fraction=0.3, span=3, generator=_generator())
    assert masked.sum(1).tolist() == [12, 3, 2, 0]
    assert not masked[torch.arange(40) >= lengths[:, None]].any()


def test_masked_positions_lists_them():
    masked = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    index, valid = masked_positions(masked)
    assert index[0].tolist() == [1, 2, 4]
    assert index[1][valid[1]].tolist() == [0]


def _loss(objective, latents, context, masked, seed=0):
    hidden = objective.ask(masked, _generator(seed))
    return objective.loss(latents, context, torch.nn.Identity(), hidden)


def _by_definition(latents, context, masked, temperature):
    """Equation (1), one masked latent at a time, with every other one as a distractor."""
    losses, right = [], []
    for z, c, m in zip(latents, context, masked, strict=True):
        places = m.nonzero()[:, 0].tolist()
        for t in places:
            if len(places) < 2:
                continue
            similar = {u: torch.cosine_similarity(c[t], z[u], dim=0) / temperature for u in places}
            total = sum(torch.exp(similar[u]) for u in places)
            losses.append(-torch.log(torch.exp(similar[t]) / total))
            right.append(all(similar[t] > similar[u] for u in places if u != t))
    return torch.stack(losses).mean(), sum(right) / len(right)


def test_loss_with_all_distractors_is_the_definition():
    torch.manual_seed(0)
    latents, context = torch.randn(3, 20, 16), torch.randn(3, 20, 16)
    lengths = torch.tensor([20, 9, 5])
    masked = span_mask(lengths, 20, fraction=0.3, span=2, generator=_generator())
    masked[2] = False
    masked[2, 1] = True  # a clip with one masked latent has no distractor, and is not asked
    objective = Contrastive(ContrastiveConfig(num_distractors=None, temperature=0.2))
    loss, metrics = _loss(objective, latents, context, masked)
    expected, accuracy = _by_definition(latents, context, masked, 0.2)
    torch.testing.assert_close(loss, expected)
    assert metrics["contrastive_accuracy"].item() == pytest.approx(accuracy)


def test_distractors_are_the_other_masked_latents_uniformly():
    objective = Contrastive(ContrastiveConfig(num_distractors=100))
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [True] + [False] * 5])
    total = torch.zeros(3, 6, 6)
    for seed in range(200):
        draws = objective._draws(valid, _generator(seed))
        assert (draws.diagonal(dim1=1, dim2=2) == 0).all(), "the positive itself"
        assert (draws[0].sum(1) == 100).all()
        assert (draws[1, :3, :3].sum(1) == 100).all()
        assert draws[1, :, 3:].sum() == 0, "latents that are not masked"
        assert draws[2].sum() == 0, "no others to draw from"
        total += draws
    share = total[0] / total[0].sum(1, keepdim=True)
    off_diagonal = share[~torch.eye(6, dtype=torch.bool)]
    assert off_diagonal.min() > 0.19
    assert off_diagonal.max() < 0.21


def test_sampled_distractors_count_as_often_as_they_are_drawn():
    """The loss from counts equals the loss over the K + 1 candidates written out."""
    torch.manual_seed(1)
    latents, context = torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    masked = torch.zeros(1, 12, dtype=torch.bool)
    masked[0, 3:9] = True
    objective = Contrastive(ContrastiveConfig(num_distractors=7, temperature=0.1))
    loss, _ = _loss(objective, latents, context, masked, seed=5)
    draws = objective._draws(torch.ones(1, 6, dtype=torch.bool), _generator(5))[0]
    expected = []
    for i in range(6):
        candidates = [i] + [j for j in range(6) for _ in range(int(draws[i, j]))]
        assert len(candidates) == 8
        scores = torch.stack(
            [torch.cosine_similarity(context[0, 3 + i], latents[0, 3 + j], dim=0) / 0.1 for j in candidates]
        )
        expected.append(-scores.log_softmax(0)[0])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_a_perfect_context_wins_and_a_collapse_shows():
    torch.manual_seed(0)
    latents = torch.randn(4, 30, 32)
    masked = span_mask(torch.full((4,), 30), 30, fraction=0.3, span=2, generator=_generator())
    objective = Contrastive(ContrastiveConfig())
    _, perfect = _loss(objective, latents, latents, masked)
    assert perfect["contrastive_accuracy"] == 1.0
    constant = torch.ones(4, 30, 32)
    loss, collapsed = _loss(objective, constant, constant, masked)
    assert collapsed["contrastive_accuracy"] == 0.0
    assert loss.item() == pytest.approx(math.log(101), rel=1e-4)


def test_only_masked_latents_move_the_loss():
    torch.manual_seed(0)
    latents = torch.randn(2, 20, 8, requires_grad=True)
    context = torch.randn(2, 20, 8, requires_grad=True)
    masked = span_mask(torch.full((2,), 20), 20, fraction=0.3, span=2, generator=_generator())
    _loss(Contrastive(ContrastiveConfig(num_distractors=None)), latents, context, masked)[0].backward()
    for tensor in (latents, context):
        moved = tensor.grad.abs().sum(2) > 0
        assert torch.equal(moved, masked)


def test_collapse_metrics():
    torch.manual_seed(0)
    spread = collapse_metrics(torch.randn(20_000, 16) * 3)
    assert spread["latent_std"].item() == pytest.approx(3, rel=0.02)
    assert spread["latent_effective_rank"].item() == pytest.approx(16, rel=0.02)
    line = collapse_metrics(torch.randn(1000, 1) * torch.randn(1, 16))
    assert line["latent_effective_rank"].item() == pytest.approx(1, rel=0.01)
    point = collapse_metrics(torch.ones(100, 16))
    assert point["latent_std"].item() == pytest.approx(0, abs=1e-6)


def test_collapse_metrics_of_what_diverged_are_no_numbers():
    found = collapse_metrics(torch.tensor([[math.inf, 1.0], [1.0, 2.0]]))
    assert torch.isnan(found["latent_effective_rank"])


# --- the contract that every objective keeps ----------------------------------------------------------------


def test_every_objective_of_the_configuration_is_there():
    assert set(typing.get_args(ObjectiveConfig) or [ObjectiveConfig]) == set(OBJECTIVES)


@pytest.fixture(params=list(OBJECTIVES), ids=lambda config: config.__name__)
def objective(request):
    return OBJECTIVES[request.param](request.param())


def test_an_objective_hides_within_each_clip_by_its_generator_alone(objective):
    lengths = torch.tensor([40, 25, 12])
    hidden = objective.hide(lengths, 40, _generator(3))
    assert hidden.masked.shape == (3, 40)
    assert hidden.masked.any(1).all()
    assert not hidden.masked[torch.arange(40) >= lengths[:, None]].any()
    torch.rand(5)
    again, other = (objective.hide(lengths, 40, _generator(seed)) for seed in (3, 4))
    assert all(map(torch.equal, hidden, again))
    assert not torch.equal(hidden.masked, other.masked)


def test_an_objectives_loss_moves_the_encoder_and_ignores_padding(objective):
    torch.manual_seed(0)
    into_latents = torch.nn.Linear(6, 8)
    lengths = torch.tensor([30, 12])
    hidden = objective.hide(lengths, 30, _generator())
    latents, context = torch.randn(2, 30, 8), torch.randn(2, 30, 6, requires_grad=True)
    loss, metrics = objective.loss(latents, context, into_latents, hidden)
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    loss.backward()
    assert context.grad.abs().sum() > 0
    assert into_latents.weight.grad.abs().sum() > 0
    spoiled = latents.clone()
    spoiled[1, 12:] = 1e6
    again, _ = objective.loss(spoiled, context, into_latents, hidden)
    torch.testing.assert_close(again, loss)
