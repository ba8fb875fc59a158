"""Saved encoders that others can use: a folder of weights, settings and a model card.

`python -m workbench.export` writes it from a finished stage; `load_encoder` reads it, and needs torch,
torchaudio and safetensors only.
"""

from workbench.export.saved import load_classifier, load_encoder

__all__ = ["load_classifier", "load_encoder"]
