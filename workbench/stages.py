"""A trial as its two stages, pre-training and fine-tuning, each found in the store or run into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.config import TrialConfig
from workbench.data import load_splits
from workbench.data.clips import Splits
from workbench.model.encoder import Encoder, num_parameters
from workbench.settings import identity
from workbench.store import CHECKPOINT, Stage, Store
from workbench.training.checkpoint import load_tensors, save_tensors
from workbench.training.finetune import finetune
from workbench.training.loop import Diverged, Run
from workbench.training.pretrain import computed_in, new_encoder, pretrain
from workbench.training.tracker import Tracker

PRETRAIN_VERSION = 1  # raised when the same settings come to give another encoder
FINETUNE_VERSION = 1

WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.safetensors"  # test scores and targets, (N, C) each
HISTORY = "history.jsonl"  # one row a log point


@dataclass(frozen=True)
class TrialStages:
    """The stages of one trial; the second's key is the trial's."""

    pretrain: Stage | None
    finetune: Stage

    @property
    def key(self) -> str:
        return self.finetune.key


def stages_of(config: TrialConfig, data_fingerprint: str) -> TrialStages:
    """What `config` would compute on data of that fingerprint."""
    shared = {
        "data_fingerprint": data_fingerprint,
        "front_end": identity(config.front_end),
        "model": identity(config.model),
        "seed": config.seed,
        "precision": config.precision,
    }
    first = None
    if config.pretraining is not None:
        settings = shared | {
            "data": identity(config.data, of_pool=True),
            "pretraining": identity(config.pretraining),
        }
        first = Stage("pretrain", PRETRAIN_VERSION, settings)
    settings = shared | {
        "data": identity(config.data),
        "finetuning": identity(config.finetuning),
    }
    parents = (first.key,) if first else ()
    return TrialStages(first, Stage("finetune", FINETUNE_VERSION, settings, parents))


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial says; all of it is in its stages' folders."""

    metrics: dict[str, float]  # validation/..., test/...
    history: list[dict[str, Any]]  # rows with "stage" and "step"
    facts: dict[str, Any]


def run_trial(
    config: TrialConfig,
    data_fingerprint: str,
    *,
    store: Store,
    data_root: Path,
    device: torch.device,
    tracker: Tracker,
    report: Callable[[str], None] = print,
) -> TrialResult:
    """Obtain both stages of a trial. Raises Diverged, DataError."""
    stages = stages_of(config, data_fingerprint)
    splits = _Lazily(lambda: load_splits(config.data, data_root, config.seed, report, data_fingerprint))

    placed = {"device": device.type, "computed_in": computed_in(config, device)}

    def build_encoder(folder: Path) -> dict[str, Any]:
        run = Run(device=device, tracker=tracker, checkpoint=folder / CHECKPOINT)
        result = pretrain(config, splits.get().pool, run)
        save_tensors(folder / WEIGHTS, result.encoder.state_dict())
        _write_history(folder, result.history)
        return {"metrics": {f"pretrain/{k}": v for k, v in result.history[-1].items()}, **placed}

    def build_classifier(folder: Path) -> dict[str, Any]:
        encoder = new_encoder(config, splits.get().pool, device)
        if stages.pretrain is not None:
            _load_encoder(encoder, store.obtain(stages.pretrain, build_encoder))
        run = Run(device=device, tracker=tracker, checkpoint=folder / CHECKPOINT)
        result = finetune(config, splits.get(), encoder, run)
        save_tensors(folder / WEIGHTS, result.model.state_dict())
        scores = torch.from_numpy(result.test_scores)
        targets = torch.from_numpy(splits.get().test.labels)
        save_tensors(folder / PREDICTIONS, {"scores": scores, "targets": targets})
        _write_history(folder, result.history)
        return {
            "metrics": result.validation | result.test,
            "labelled_clips": len(splits.get().train),
            "pool_hours": splits.get().pool.hours,
            "parameters": num_parameters(config.front_end, config.model),
            "left_out": list(splits.get().left_out),
            **placed,
        }

    stage = stages.finetune
    try:
        if stages.pretrain is not None and not store.has(stages.finetune):
            # Here, not when fine-tuning asks for it: each stage's seconds are its own.
            stage = stages.pretrain
            store.obtain(stage, build_encoder)
        stage = stages.finetune
        store.obtain(stage, build_classifier)
    except Diverged:
        store.discard_work(stage)  # its checkpoint would only diverge again
        raise
    return read_result(stages, store)


def read_result(stages: TrialStages, store: Store) -> TrialResult:
    """The result of a trial whose stages are finished."""
    facts = store.facts(stages.finetune)
    history = []
    for stage in filter(None, (stages.pretrain, stages.finetune)):
        path = store.path(stage) / HISTORY
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            history += [{"stage": stage.kind, **row} for row in rows]
    return TrialResult(facts["metrics"], history, facts)


class _Lazily:
    """Splits, read when first asked for: a trial whose stages are both there needs no data."""

    def __init__(self, make: Callable[[], Splits]) -> None:
        self._make = make
        self._value: Splits | None = None

    def get(self) -> Splits:
        if self._value is None:
            self._value = self._make()
        return self._value


def _load_encoder(encoder: Encoder, folder: Path) -> None:
    tensors, _ = load_tensors(folder / WEIGHTS)
    encoder.load_state_dict(tensors)


def _write_history(folder: Path, history: list[dict[str, float]]) -> None:
    (folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in history))
