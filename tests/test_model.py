"""The model is the paper's: parameter counts, agreement with torchaudio, and indifference to padding."""

import dataclasses

import pytest
import torch
from torchaudio.models import Conformer as ReferenceConformer

from workbench.config import FrontEndConfig, ModelConfig
from workbench.model.conformer import Conformer, MaskedBatchNorm, SelfAttention
from workbench.model.depthwise import DepthwiseConv
from workbench.model.dropout import Dropout
from workbench.model.encoder import Encoder, num_parameters, padding_mask
from workbench.model.heads import Classifier
from workbench.settings import ConfigError

from .torchaudio_weights import copy_into_layer

TINY = ModelConfig(num_blocks=2, width=32, num_heads=4, ffn_dim=64, dropout=0.0)
LARGE = ModelConfig(width=768, num_heads=12)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (ModelConfig(), 18.43),
        (LARGE, 88.13),
        (dataclasses.replace(LARGE, num_blocks=8), 58.91),
        (dataclasses.replace(LARGE, num_blocks=16), 117.35),
        (dataclasses.replace(LARGE, num_blocks=20), 146.57),
    ],
    ids=["cf_S", "cf_L", "8 blocks", "16 blocks", "20 blocks"],
)
def test_parameter_counts_are_the_papers(model, millions):
    assert num_parameters(FrontEndConfig(), model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_stack_agrees_with_torchaudio(training, heads):
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_blocks=3, num_heads=heads, first_kernel=15, kernel=15)
    ours = Conformer(config).train(training)
    reference = ReferenceConformer(
        config.width, heads, config.ffn_dim, 3, 15, dropout=0.0, convolution_first=True
    ).train(training)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # the defaults leave biases at zero
    for block, layer in zip(ours.blocks, reference.conformer_layers, strict=True):
        copy_into_layer(block, layer)
    x = torch.randn(3, 50, config.width)
    expected, _ = reference(x, torch.full((3,), 50))
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "kernel"), [(50, 15), (4, 7), (1, 3), (9, 1)])
def test_the_depthwise_convolution_is_torchs(length, kernel):
    torch.manual_seed(0)
    conv = DepthwiseConv(6, kernel).double()
    x = torch.randn(3, length, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, length, 6, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    expected = torch.nn.Conv1d.forward(conv, x.transpose(1, 2)).transpose(1, 2)
    found = conv(x)
    torch.testing.assert_close(found, expected)
    wanted = (x, *conv.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, upstream),
        torch.autograd.grad(expected, wanted, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_first_block_has_its_own_kernel():
    kernels = [block.convolution.depthwise.kernel_size[0] for block in Conformer(ModelConfig()).blocks]
    assert kernels == [31] + [15] * 11


def test_every_dropout_of_a_block_has_the_settings_probability():
    dropouts = [
        m for m in Conformer(dataclasses.replace(TINY, dropout=0.3)).modules() if isinstance(m, Dropout)
    ]
    assert len(dropouts) == 2 * 7
    assert {m.p for m in dropouts} == {0.3}


@pytest.mark.parametrize("pooling", ["mean", "linear_softmax"])
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(pooling):
    """From waveform to logits, whatever lies in the padding."""
    torch.manual_seed(0)
    encoder = Encoder(FrontEndConfig(), TINY).eval()
    classifier = Classifier(TINY.width, 5, pooling=pooling, output_dropout=0.0).eval()
    samples = [16_000, 40_000, 23_456]
    waveforms = [0.1 * torch.randn(n) for n in samples]
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    lengths = torch.tensor(samples) // (320 * 4)

    def logits(waveform, lengths):
        latents = encoder.latents(encoder.front_end(waveform))
        padding = padding_mask(lengths, latents.shape[1], latents.device)
        return classifier(encoder.context(latents, padding), padding)

    together = logits(batch, lengths)
    for i, waveform in enumerate(waveforms):
        alone = logits(waveform[None], lengths[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_padding_enters_no_batch_statistics():
    """Training mode: what is in the padding changes neither outputs, running statistics nor gradients."""
    torch.manual_seed(0)
    x = torch.randn(3, 40, TINY.width)
    lengths = torch.tensor([40, 17, 3])
    padding = padding_mask(lengths, 40, x.device)
    results = []
    for fill in (0.0, 1e3):
        torch.manual_seed(1)
        model = Conformer(TINY).train()
        out = model(x.masked_fill(padding[..., None], fill), padding)
        out[~padding].square().sum().backward()
        running = torch.cat([b.convolution.batch_norm.running_mean for b in model.blocks])
        results.append((out[~padding], running, model.blocks[0].convolution.expand.weight.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_masked_batch_norm_is_batch_norm_over_the_valid_positions():
    torch.manual_seed(0)
    x = torch.randn(4, 30, 8) * 3 + 1
    padding = padding_mask(torch.tensor([30, 12, 7, 1]), 30, x.device)
    ours, reference = MaskedBatchNorm(8), torch.nn.BatchNorm1d(8)
    torch.testing.assert_close(ours(x, padding)[~padding], reference(x[~padding]))
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)
    torch.testing.assert_close(ours.eval()(x, padding)[~padding], reference.eval()(x[~padding]))


@pytest.mark.parametrize("padded", [False, True])
def test_activations_that_are_computed_again_change_nothing(padded):
    """Neither outputs, gradients nor running statistics; dropout draws the same masks again."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Conformer(dataclasses.replace(TINY, dropout=0.2, recompute=recompute)).train()
        x = torch.randn(3, 20, TINY.width, requires_grad=True)
        padding = padding_mask(torch.tensor([20, 9, 3]), 20, x.device) if padded else None
        out = model(x, padding)
        out.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((out, x.grad, gradients, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_dropout_keeps_the_mean_and_drops_the_share():
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    dropped = Dropout(0.1)(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.002)
    assert len(dropped.unique()) == 2
    # Each element by itself: neighbours share a random word, and must not share their fate.
    kept = (dropped[:, :1000] != 0).float()
    for lag in (1, 2, 3, 4):
        pairs = (kept[:, :-lag] * kept[:, lag:]).mean().item()
        assert pairs == pytest.approx(0.81, abs=0.003)
    assert torch.equal(Dropout(0.1).eval()(x), x)


def test_dropout_scales_gradients_as_it_scales_values():
    x = torch.ones(64, 64, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 1), (0.1, 0)])
def test_attention_that_drops_nothing_is_torchs_in_training_too(monkeypatch, dropout, expected):
    """Which keeps no weights (B, H, T, T); those that are dropped on a CPU are drawn here."""
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*arguments, **settings):
        calls.append(settings)
        return kernel(*arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    SelfAttention(ModelConfig(width=8, num_heads=2, dropout=dropout)).train()(torch.randn(2, 5, 8))
    assert len(calls) == expected


def test_attention_with_dropout_has_the_expectation_of_attention_without():
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_blocks=1, dropout=0.2)
    attention = Conformer(config).blocks[0].attention
    x = torch.randn(2, 10, config.width)
    padding = padding_mask(torch.tensor([10, 6]), 10, x.device)
    attention.eval()
    expected = attention(x, padding)
    attention.train()
    with torch.no_grad():
        mean = torch.stack([attention(x, padding) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0.05)


def test_masked_latents_are_hidden_from_the_context():
    torch.manual_seed(0)
    encoder = Encoder(FrontEndConfig(), TINY).eval()
    latents = torch.randn(2, 20, 256)
    masked = torch.zeros(2, 20, dtype=torch.bool)
    masked[:, 5:9] = True
    other = latents.clone()
    other[masked] = 7.0
    torch.testing.assert_close(encoder.context(latents, None, masked), encoder.context(other, None, masked))


def test_linear_softmax_pooling_is_the_papers_formula():
    torch.manual_seed(0)
    head = Classifier(8, 3, pooling="linear_softmax", output_dropout=0.0)
    context = torch.randn(2, 11, 8)
    p = torch.sigmoid(context @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(torch.sigmoid(head(context)), (p**2).sum(1) / p.sum(1))


@pytest.mark.parametrize("bias", [-30.0, -14.0, 14.0])
def test_a_class_that_is_all_but_ruled_out_still_learns_and_is_ranked(bias):
    """What is missed with certainty, or believed against all, has a gradient."""
    torch.manual_seed(0)
    head = Classifier(8, 1, pooling="linear_softmax", output_dropout=0.0)
    head.linear.bias.data.fill_(bias)
    context = torch.randn(4, 11, 8)
    logits = head(context)
    assert bias > 0 or logits.unique().numel() == 4  # near 1 float32 has steps of 6e-8
    assert (logits - bias).abs().max() < 3
    (gradient,) = torch.autograd.grad(logits.sum(), head.linear.bias)
    assert 1.0 < gradient < 5.0  # each of four rises about as the bias does


@pytest.mark.parametrize("pooling", ["mean", "linear_softmax"])
def test_logits_are_not_rounded_where_the_network_computes_in_bf16(pooling):
    """Else clips tie in their score, and what ties is judged as a miss."""
    torch.manual_seed(0)
    head = Classifier(8, 3, pooling=pooling, output_dropout=0.0)
    head.linear.bias.data.fill_(6.0)
    context = torch.randn(50, 11, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = head(context)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(context.float()))
    assert found.unique().numel() == found.numel()


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ({"num_heads": 5}, "num_heads", "does not divide"),
        ({"kernel": 14}, "kernel", "must be odd"),
        ({"first_kernel": 30}, "first_kernel", "29 or 31"),
        ({"dropout": 1.0}, "dropout", "[0, 1)"),
        ({"width": 0}, "width", "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, path, words):
    with pytest.raises(ConfigError) as error:
        ModelConfig(**settings)
    assert error.value.path == path
    assert words in error.value.message


def _signature(config):
    """All that a setting can change of an encoder's structure."""
    encoder = Encoder(FrontEndConfig(), config)
    shapes = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    heads = [block.attention.num_heads for block in encoder.conformer.blocks]
    return repr(encoder), shapes, heads


@pytest.mark.parametrize("field", dataclasses.fields(ModelConfig), ids=lambda field: field.name)
def test_every_model_setting_reaches_the_model(field):
    others = {"width": 64, "num_heads": 8, "kernel": 5, "first_kernel": 7, "dropout": 0.3}
    other = others.get(field.name, getattr(TINY, field.name) + 1)
    changed = dataclasses.replace(TINY, **{field.name: other})
    assert _signature(changed) != _signature(TINY)
