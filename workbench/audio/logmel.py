"""Waveform -> standardised log-mel spectrogram, on the device (paper 2.2).

B clips, S samples, F frames, M mel bands.
"""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

from workbench.config import SAMPLE_RATE, FrontEndConfig

# Clips at a time: their spectra stay in a CPU's cache, and take 0.5 GB of a GPU for clips of 10 s.
CHUNK = {"cpu": 2, "cuda": 64}
MEL_GROUPS = 4  # parts of the mel bands, each multiplied with the frequencies that it hears alone
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
            self._groups = _groups(filters)
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("mean", torch.zeros(config.num_mels))
        self.register_buffer("std", torch.ones(config.num_mels))

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.config.hop_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) int16, or float in [-1, 1], -> (B, F, M), F = S // hop; no gradient to the waveform."""
        return self.log_mel(waveform).sub_(self.mean).div_(self.std)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """The same before standardisation: (B, S) -> (B, F, M)."""
        batch, samples = waveform.shape
        window, hop, frames = self.config.window_samples, self.config.hop_samples, self.num_frames(samples)
        left = (window - hop) // 2
        right = max(0, (frames - 1) * hop + window - left - samples)
        chunk = min(batch, CHUNK.get(waveform.device.type, batch))
        # Kept from chunk to chunk: asking for it anew takes about a tenth of the front end, on a CPU.
        padded = waveform.new_zeros(chunk, left + samples + right, dtype=torch.float32)
        framed = waveform.new_empty(chunk, frames, window, dtype=torch.float32)
        power = waveform.new_empty(batch, frames, self.config.num_mels, dtype=torch.float32)
        full_scale = 1.0 if waveform.is_floating_point() else 32768.0
        scaled_window = self.window / full_scale
        with torch.autocast(waveform.device.type, enabled=False):  # powers span more than bf16 tells apart
            for part, of_part in zip(waveform.split(chunk), power.split(chunk), strict=True):
                clips = slice(len(part))
                padded[clips, left : left + samples] = part  # between zeros that stay
                torch.mul(padded[clips].unfold(1, window, hop)[:, :frames], scaled_window, out=framed[clips])
                self._mel_power(framed[clips], out=of_part)
        return power.add_(FLOOR).log_()

    def _mel_power(self, framed: Tensor, out: Tensor) -> None:
        """(B, F, window) -> (B, F, M)."""
        squares = torch.view_as_real(torch.fft.rfft(framed)).square_()
        power = (squares[..., 0] + squares[..., 1]).flatten(0, 1)  # (B F, window // 2 + 1)
        of_frames = out.view(len(power), -1)
        for frequencies, bands in self._groups:
            torch.mm(power[:, frequencies], self.filters[frequencies, bands], out=of_frames[:, bands])

    @torch.no_grad()
    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, (M,) each, in units of the log-mel."""
        self.mean.copy_(mean)
        self.std.copy_(std)


def _groups(filters: Tensor) -> list[tuple[slice, slice]]:
    """(frequencies, mel bands) of blocks that hold all of `filters` (frequencies, M) that is not zero."""
    groups = []
    for bands in torch.arange(filters.shape[1]).chunk(MEL_GROUPS):
        mels = slice(int(bands[0]), int(bands[-1]) + 1)
        heard = filters[:, mels].any(1).nonzero()[:, 0]
        groups.append((slice(int(heard[0]), int(heard[-1]) + 1) if len(heard) else slice(0, 0), mels))
    return groups
