"""File -> waveform (B, S) -> log-mel spectrogram (B, F, M), and augmentation on the way."""
