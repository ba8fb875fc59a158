"""The presets' shapes, without YAML, so that torch alone measures them."""

from __future__ import annotations

import dataclasses
from typing import Any

from workbench.config import ContrastiveConfig, FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData

_PAPER = TrialConfig(
    data=CorpusData(clip_seconds=10.0, max_events=4),
    pretraining=PretrainingConfig(batch_size=64),
    finetuning=FinetuningConfig(batch_size=64, pooling="linear_softmax", consistency_weight=2.0),
    precision="bf16",
)

SHAPES = {
    "quick": TrialConfig(
        data=CorpusData(clip_seconds=3.2),
        model=ModelConfig(num_blocks=3, width=64, num_heads=4, ffn_dim=256),
        pretraining=PretrainingConfig(
            batch_size=64,
            objective=ContrastiveConfig(mask_span=2, num_distractors=None),
            gain_db=6.0,
            mel_shift=2,
        ),
        finetuning=FinetuningConfig(batch_size=32, pooling="linear_softmax", consistency_weight=0.0),
    ),
    "cf_small": _PAPER,
    "cf_large": dataclasses.replace(
        _PAPER,
        model=ModelConfig(width=768, num_heads=12),
        pretraining=PretrainingConfig(batch_size=640),
    ),
}
CPU_BATCH = 4  # clips of 10 s: more would take minutes a round


def sized(config: TrialConfig, batch_size: int, accumulation: int = 1) -> TrialConfig:
    """The same trial with that batch in both stages, and updates without end."""
    assert config.pretraining is not None
    changes: dict[str, Any] = {"batch_size": batch_size, "accumulation": accumulation, "steps": 10_000}
    return dataclasses.replace(
        config,
        pretraining=dataclasses.replace(config.pretraining, **changes),
        finetuning=dataclasses.replace(config.finetuning, num_evaluations=1, **changes),
    )
