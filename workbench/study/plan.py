"""What a study would run: its trials, their stages, and which of these are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench import data
from workbench.config import DataConfig, TrialConfig
from workbench.model.encoder import num_parameters
from workbench.stages import TrialStages, stages_of
from workbench.store import Store
from workbench.study.definition import Trial


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with the stages that its result comes from; its key is that of the last."""

    trial: Trial
    stages: TrialStages
    data_fingerprint: str

    @property
    def key(self) -> str:
        return self.stages.key


class Planner:
    """Plans trials; asks for the fingerprint of the same data once."""

    def __init__(self) -> None:
        self._fingerprints: dict[DataConfig, str] = {}

    def plan(self, trial: Trial) -> PlannedTrial:
        """Raises DataError when the data are not there."""
        config = trial.config.data
        if config not in self._fingerprints:
            self._fingerprints[config] = data.fingerprint(config)
        fingerprint = self._fingerprints[config]
        return PlannedTrial(trial, stages_of(trial.config, fingerprint), fingerprint)


def place(trial: Trial) -> dict[str, Any]:
    """Where a trial stands in its study, as JSON."""
    return {
        "level": trial.level,
        "regime": trial.regime,
        "seed": trial.seed,
        "fold": trial.fold,
    }


def work_of(config: TrialConfig) -> dict[str, int]:
    """Clips that each stage trains on: a measure of its length."""
    settings = config.finetuning
    versions = 2 if settings.consistency_weight > 0 else 1
    work = {"finetune": settings.steps * settings.batch_size * versions}
    if config.pretraining is not None:
        work["pretrain"] = config.pretraining.steps * config.pretraining.batch_size
    return work


def print_plan(planned: Sequence[PlannedTrial], store: Store, write: Callable[[str], None]) -> None:
    """Every trial with its parameter count and stages; a stage that several share is marked."""
    seen: dict[str, int] = {}
    to_train = {"pretrain": 0, "finetune": 0}
    for number, item in enumerate(planned):
        config = item.trial.config
        words = []
        for stage in filter(None, (item.stages.pretrain, item.stages.finetune)):
            if stage.key in seen:
                state = f"of trial {seen[stage.key]}"
            elif store.has(stage):
                state = "found"
            else:
                state = "to train"
                to_train[stage.kind] += 1
            seen.setdefault(stage.key, number)
            words.append(f"{stage.kind} {stage.key[:8]} ({state})")
        if item.stages.pretrain is None:
            words.insert(0, "from scratch")
        parameters = num_parameters(config.front_end, config.model)
        write(f"{number:4d}  {item.trial.label}  {parameters / 1e6:.2f} M parameters  {', '.join(words)}")
    write(
        f"{len(planned)} trials; to train: {to_train['pretrain']} pre-trainings, "
        f"{to_train['finetune']} fine-tunings"
    )
