"""An encoder's ONNX graph: the same context as torch's, whatever the sounds' number and length."""

import importlib.util

import pytest
import torch

from workbench.config import SAMPLE_RATE, FrontEndConfig, ModelConfig
from workbench.export import onnx_graph
from workbench.export.__main__ import main
from workbench.export.onnx_graph import PACKAGES, WaveformEncoder, largest_difference, write_onnx
from workbench.model.depthwise import DepthwiseConv
from workbench.model.encoder import Encoder
from workbench.settings import ConfigError

MODEL = ModelConfig(num_blocks=1, width=16, num_heads=2, ffn_dim=16, latent_dim=16, first_kernel=5)
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra onnx)")


def _encoder(**front_end):
    torch.manual_seed(0)
    encoder = Encoder(FrontEndConfig(**front_end), MODEL).eval()
    bands = encoder.front_end.config.num_mels
    encoder.front_end.standardise_by(torch.linspace(-6.0, -2.0, bands), torch.linspace(1.0, 3.0, bands))
    return encoder


def _noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """An encoder, and its graph."""
    encoder, path = _encoder(), tmp_path_factory.mktemp("graph") / "encoder.onnx"
    assert write_onnx(encoder, path, "a stage") <= onnx_graph.TOLERANCE
    return encoder, path


@torch.no_grad()
@pytest.mark.parametrize(
    "front_end", [{}, {"window_ms": 25.0, "hop_ms": 10.0, "num_mels": 40}, {"hop_ms": 64.0}]
)
@pytest.mark.parametrize("samples", [5_000, 16_000, 17_777])
def test_the_exported_front_end_is_that_of_training(front_end, samples):
    encoder = _encoder(**front_end)
    found = WaveformEncoder(encoder)._log_mel(_noise(3, samples))
    expected = encoder.front_end(_noise(3, samples))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-5)


def test_an_exported_graph_has_the_convolutions_that_runtimes_know():
    convolution, x = DepthwiseConv(8, 5), _noise(2, 20, 8)
    exported = torch.export.export(convolution, (x,))
    assert any("conv1d" in str(node.target) for node in exported.graph.nodes)
    assert torch.allclose(exported.module()(x), convolution(x), atol=1e-6)


@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1_280), (3, 1_281), (1, 48_000), (4, 20_479), (2, 30 * SAMPLE_RATE)])
def test_a_graph_gives_the_context_of_torch_at_any_shape(graph, shape):
    import onnxruntime

    encoder, path = graph
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"waveform": _noise(*shape).numpy()})
    expected = encoder.context(encoder.latents(encoder.front_end(_noise(*shape))))
    assert found.shape == (shape[0], shape[1] // 1_280, 16)
    assert abs(torch.from_numpy(found) - expected).max() < 1e-5


@needs_onnx
def test_a_graph_says_of_which_stage_it_is(graph):
    import onnx

    found = onnx.load(graph[1])
    assert {entry.key: entry.value for entry in found.metadata_props}["stage"] == "a stage"
    assert [value.name for value in found.graph.input] == ["waveform"]
    assert [value.name for value in found.graph.output] == ["context"]
    assert not any(path.suffix == ".data" for path in graph[1].parent.iterdir())


@needs_onnx
def test_the_check_sees_another_encoder(graph):
    encoder, path = graph
    assert largest_difference(encoder, path) < 1e-5
    other = _encoder()
    with torch.no_grad():
        other.conformer.blocks[0].attention.project.bias[0] += 0.01
    assert largest_difference(other, path) > onnx_graph.TOLERANCE


@needs_onnx
def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "FLOOR", 1e-3)
    with pytest.raises(ConfigError, match=r"differ from torch's by .* more than 1e-04"):
        write_onnx(_encoder(), tmp_path / "encoder.onnx", "a stage")


def test_without_its_packages_nothing_is_written_and_they_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["3cfe", "--root", str(tmp_path), "--to", str(tmp_path / "saved"), "--onnx"]) == 2
    assert "--onnx: needs onnxruntime: python -m pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
