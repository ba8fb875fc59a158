"""The training core: importable with torch, torchaudio, soundfile and numpy alone."""
