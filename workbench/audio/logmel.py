"""Waveform -> standardised log-mel spectrogram, on the device (paper 2.2).

B clips, S samples, F frames, M mel bands.
"""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

from workbench.config import SAMPLE_RATE, FrontEndConfig

CPU_CHUNK = 4  # clips at a time on a CPU: their spectra stay in its cache, three times as fast
FLOOR = 1e-5  # added to the mel power: digital silence stays finite, 16-bit rounding noise stays below


class LogMel(nn.Module):
    """Log-mel front end with one mean and one standard deviation a band, set once from data.

    Frame f is centred on the f-th hop, and samples outside of the clip count as zero. So a clip gives the
    same frames alone as in a zero-padded batch (a reflected edge would not).
    """

    window: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        window = config.window_samples
        with torch.device("cpu"):  # also where only shapes are wanted: torchaudio checks the values
            filters = torchaudio.functional.melscale_fbanks(
                n_freqs=window // 2 + 1,
                f_min=0.0,
                f_max=SAMPLE_RATE / 2,
                n_mels=config.num_mels,
                sample_rate=SAMPLE_RATE,
            )
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("mean", torch.zeros(config.num_mels))
        self.register_buffer("std", torch.ones(config.num_mels))

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.config.hop_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) int16, or float in [-1, 1], -> (B, F, M), F = S // hop."""
        return (self.log_mel(waveform) - self.mean) / self.std

    def log_mel(self, waveform: Tensor) -> Tensor:
        """The same before standardisation: (B, S) -> (B, F, M)."""
        if waveform.dtype == torch.int16:
            waveform = waveform.float() / 32768.0
        chunk = CPU_CHUNK if waveform.device.type == "cpu" else len(waveform)
        with torch.autocast(waveform.device.type, enabled=False):  # powers span more than bf16 tells apart
            return torch.cat([self._log_mel(part) for part in waveform.split(chunk)])

    def _log_mel(self, waveform: Tensor) -> Tensor:
        window, hop = self.config.window_samples, self.config.hop_samples
        frames = self.num_frames(waveform.shape[1])
        left = (window - hop) // 2
        right = max(0, (frames - 1) * hop + window - left - waveform.shape[1])
        padded = nn.functional.pad(waveform, (left, right))
        framed = padded.unfold(1, window, hop)[:, :frames] * self.window  # (B, F, window)
        spectrum = torch.fft.rfft(framed)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, F, window // 2 + 1)
        return torch.log(power @ self.filters + FLOOR)

    @torch.no_grad()
    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, (M,) each, in units of the log-mel."""
        self.mean.copy_(mean)
        self.std.copy_(std)
