"""An encoder as an ONNX graph, from waveform to context, and how far that is from torch.

B sounds of S samples, F frames, T latents, D width.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.audio.logmel import FLOOR
from workbench.model.encoder import Encoder
from workbench.settings import ConfigError

ONNX = "encoder.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
REMEDY = "nothing was exported; leave --onnx out, or try other versions of " + ", ".join(PACKAGES)
TOLERANCE = 1e-4  # largest absolute difference from torch; the context is layer-normed, of order 1

# What is compared: sounds, and their samples in latents.
CHECKED = ((1, 1.0), (1, 1.5), (5, 7.01), (2, 125.0))


class WaveformEncoder(nn.Module):
    """The encoder and its front end as one module whose graph holds for every B and S.

    The spectrum is a convolution with the windowed Fourier basis: that of `LogMel` is made clip by clip,
    in place, and by complex numbers, which no exported graph can follow.
    """

    basis: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        window = encoder.front_end.window
        spectra = torch.fft.rfft(torch.eye(len(window), dtype=torch.float64))  # (window, K)
        waves = torch.cat([spectra.real, spectra.imag], dim=1).t()  # (2 K, window)
        self.register_buffer("basis", (waves * window.double())[:, None].float())

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) float32 in [-1, 1] -> context (B, T, D)."""
        return self.encoder.context(self.encoder.latents(self._log_mel(waveform)))

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, F, M), as `LogMel.forward`."""
        front_end = self.encoder.front_end
        window, hop = front_end.config.window_samples, front_end.config.hop_samples
        left = (window - hop) // 2
        padded = nn.functional.pad(waveform, (left, window - hop - left))
        real, imaginary = nn.functional.conv1d(padded[:, None], self.basis, stride=hop).chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2)  # (B, F, K)
        return ((power @ front_end.filters + FLOOR).log() - front_end.mean) / front_end.std


def require_packages() -> None:
    """Raises ConfigError where ONNX cannot be written or checked."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError("--onnx", f"needs {', '.join(missing)}: python -m pip install {' '.join(PACKAGES)}")


def write_onnx(encoder: Encoder, path: Path, stage_id: str) -> float:
    """Write the graph, and compare onnxruntime's results with torch's; the largest absolute difference.

    `waveform` (B, S) -> `context` (B, T, D). Raises ConfigError when the difference exceeds TOLERANCE, or the
    exporter or onnxruntime fails.
    """
    try:
        _write(encoder, path, stage_id)
        difference = largest_difference(encoder, path)
    except (ConfigError, OSError):
        raise
    except Exception as error:  # theirs have no common class
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "--onnx", f"the exporter failed ({type(error).__name__}: {reason}), so {REMEDY}"
        ) from error
    if not difference <= TOLERANCE:  # also where it is not a number
        raise ConfigError(
            "--onnx",
            f"onnxruntime's results differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}, so "
            f"{REMEDY}",
        )
    return difference


def _write(encoder: Encoder, path: Path, stage_id: str) -> None:
    latent = _samples_per_latent(encoder)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples")}
    with torch.no_grad(), _without_the_exporters_chatter():
        program = torch.onnx.export(
            WaveformEncoder(encoder).eval(),
            (torch.zeros(2, 3 * latent + 1),),
            dynamo=True,
            dynamic_shapes=(dimensions,),
            input_names=["waveform"],
            output_names=["context"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["stage"] = stage_id
    program.save(path)


@torch.no_grad()
def largest_difference(encoder: Encoder, path: Path) -> float:
    """Of the graph's context from `encoder`'s over all CHECKED shapes, on noise from silent to full scale."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for sounds, latents in CHECKED:
        samples = round(latents * _samples_per_latent(encoder))
        loudness = torch.linspace(1.0, 0.0, sounds)[:, None]
        waveform = loudness * (torch.rand(sounds, samples, generator=generator) * 2 - 1)
        expected = encoder.context(encoder.latents(encoder.front_end(waveform)))
        found = torch.from_numpy(session.run(["context"], {"waveform": waveform.numpy()})[0])
        if found.shape != expected.shape:
            raise ConfigError(
                "--onnx", f"the graph gives shape {tuple(found.shape)}, torch gives {tuple(expected.shape)}"
            )
        differences.append((found - expected).abs().max())
    return float(torch.stack(differences).max())


def _samples_per_latent(encoder: Encoder) -> int:
    return encoder.front_end.config.hop_samples * encoder.config.frames_per_latent


@contextlib.contextmanager
def _without_the_exporters_chatter() -> Iterator[None]:
    """It warns of itself, and of packages that it would like."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
