"""A trial as its stages: pre-training, fine-tuning, evaluation; each found in the store, or run into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from workbench import processes
from workbench.config import TrialConfig
from workbench.data import load_pool, load_splits
from workbench.model.encoder import Encoder, num_parameters
from workbench.settings import StageKind, identity
from workbench.store import CHECKPOINT, Build, DamagedFacts, Stage, Store
from workbench.training.checkpoint import load_tensors, save_tensors
from workbench.training.finetune import finetune, new_clip_model, score
from workbench.training.loop import Diverged, Run
from workbench.training.pretrain import computed_in, new_encoder, pretrain
from workbench.training.rendezvous import Rendezvous
from workbench.training.tracker import Tracker

# Raised when the same settings come to give another result; a test compares with golden results.
VERSIONS: dict[StageKind, int] = {"pretrain": 4, "finetune": 5, "evaluate": 2}

WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.safetensors"  # test scores and targets, (N, C) each
HISTORY = "history.jsonl"  # one row a log point

T = TypeVar("T")


@dataclass(frozen=True)
class TrialStages:
    """The stages of one trial; the last one's key is the trial's."""

    pretrain: Stage | None
    finetune: Stage
    evaluate: Stage

    @property
    def key(self) -> str:
        return self.evaluate.key

    def all(self) -> list[Stage]:
        """In the order in which they run."""
        return [stage for stage in (self.pretrain, self.finetune, self.evaluate) if stage is not None]

    def missing(self, has: Callable[[Stage], bool]) -> list[Stage]:
        """Those after the last that is there: what only that one needed may be gone."""
        missing: list[Stage] = []
        for stage in reversed(self.all()):
            if has(stage):
                break
            missing.insert(0, stage)
        return missing


def stages_of(config: TrialConfig, data_fingerprint: str, pool_fingerprint: str | None = None) -> TrialStages:
    """What `config` would compute on data, and a pool if it has one, of those fingerprints.

    A pre-training on a pool does not know of the data: one serves every labelled set. What is trained from
    scratch depends on the pool too, by the statistics of its log-mels.
    """
    if (config.pool is None) != (pool_fingerprint is None):
        raise ValueError("a trial with a pool needs its fingerprint, and one without has none")
    pool = {"pool_fingerprint": pool_fingerprint, "pool": identity(config.pool)} if config.pool else {}

    def stage(kind: StageKind, parent: Stage | None, **settings: Any) -> Stage:
        data = {"data_fingerprint": data_fingerprint, "data": identity(config.data, kind)}
        shared = {
            **(pool if kind == "pretrain" and pool else data | pool),
            "front_end": identity(config.front_end),
            "model": identity(config.model),
            "seed": config.seed,
            "precision": config.precision,
        }
        return Stage(kind, VERSIONS[kind], shared | settings, (parent.key,) if parent else ())

    first = None
    if config.pretraining is not None:
        first = stage("pretrain", None, pretraining=identity(config.pretraining))
    second = stage("finetune", first, finetuning=identity(config.finetuning))
    return TrialStages(first, second, stage("evaluate", second))


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial says; all of it is in its stages' folders."""

    metrics: dict[str, float]  # validation/..., test/...
    history: list[dict[str, Any]]  # rows with "stage" and "step"
    facts: dict[str, Any]


def run_trial(
    config: TrialConfig,
    data_fingerprint: str,
    pool_fingerprint: str | None = None,
    *,
    store: Store,
    data_root: Path,
    device: torch.device,
    tracker: Tracker,
    report: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
    wait: bool = True,
    meeting: Rendezvous | None = None,
) -> TrialResult:
    """Obtain the stages of a trial. Raises Diverged, DataError, Stopped; with `wait=False`, StageBusy.

    In a thread of `meeting` it trains together with the other trials there. Several processes may call it
    for one trial, on a store in a folder that all of them see.
    """
    stages = stages_of(config, data_fingerprint, pool_fingerprint)
    splits = _Lazily(lambda: load_splits(config.data, data_root, config.seed, report, data_fingerprint))
    pool = _Lazily(
        lambda: (
            splits.get().pool
            if config.pool is None
            else load_pool(config.pool, data_root, report, pool_fingerprint).clips
        )
    )
    placed = {"device": device.type, "computed_in": computed_in(config, device)}

    def run_in(folder: Path) -> Run:
        checkpoint = folder / CHECKPOINT
        run = Run(device=device, tracker=tracker, checkpoint=checkpoint, should_stop=should_stop)
        if meeting is not None:
            run.train, run.shared_by = meeting.train, meeting.num_trials
        return run

    def build_encoder(folder: Path) -> dict[str, Any]:
        run = run_in(folder)
        result = pretrain(config, pool.get(), run)
        _write(folder, result.encoder, result.history)
        metrics = {f"pretrain/{name}": value for name, value in result.history[-1].items()}
        return {
            "metrics": metrics,
            "pool_hours": pool.get().hours,
            **_spent(run),
            **placed,
        }

    def build_classifier(folder: Path) -> dict[str, Any]:
        if stages.pretrain is None:
            encoder = new_encoder(config, pool.get(), device)
        else:
            encoder = Encoder(config.front_end, config.model).to(device)
            encoder.load_state_dict(_weights(store.fetch(stages.pretrain)))
        run = run_in(folder)
        result = finetune(config, splits.get(), encoder, run)
        _write(folder, result.model, result.history)
        return {
            "metrics": result.validation,
            "classes": list(splits.get().classes),
            "labelled_clips": len(splits.get().train),
            "pool_hours": pool.get().hours,
            **_spent(run),
            **placed,
        }

    def build_figures(folder: Path) -> dict[str, Any]:
        test = splits.get().test
        encoder = Encoder(config.front_end, config.model)
        model = new_clip_model(config, encoder, len(splits.get().classes))
        model.load_state_dict(_weights(store.fetch(stages.finetune)))
        metrics, scores = score(config, model.to(device), test, device, "test")
        targets = torch.from_numpy(test.labels.matrix())
        if processes.rank() == 0:
            save_tensors(folder / PREDICTIONS, {"scores": torch.from_numpy(scores), "targets": targets})
        return {
            "metrics": metrics,
            "parameters": num_parameters(config.front_end, config.model),
            "left_out": list(splits.get().left_out),
            **placed,
        }

    build = {"pretrain": build_encoder, "finetune": build_classifier, "evaluate": build_figures}
    for stage in _to_obtain(stages, store, device):
        _obtain(store, stage, build[stage.kind], device, wait=wait)
    return read_result(stages, store)


def _to_obtain(stages: TrialStages, store: Store, device: torch.device) -> list[Stage]:
    """What is missing, or the last stage, as process 0 sees it: meanwhile another trial may publish."""
    mine = len(stages.missing(store.is_sound)) or 1 if processes.rank() == 0 else 0
    count = processes.total(torch.tensor(float(mine), device=device))
    return stages.all()[-int(count) :]


def _obtain(store: Store, stage: Stage, build: Build, device: torch.device, *, wait: bool) -> None:
    """By all processes of a trial: the first one holds the stage and writes it, the others train with it."""
    if processes.rank() > 0:
        if processes.agreed(False, device):
            build(store.work(stage))
        processes.agreed(False, device)  # until it is published
        return
    is_built = False

    def build_with_the_others(folder: Path) -> dict[str, Any]:
        nonlocal is_built
        is_built = processes.agreed(True, device)
        return build(folder)

    store.obtain(stage, build_with_the_others, wait=wait, hopeless=(Diverged,))
    if not is_built:
        processes.agreed(False, device)
    processes.agreed(True, device)


def _spent(run: Run) -> dict[str, float]:
    """What the store is told of a stage's time: what came before, and how many shared the rest."""
    return {"earlier_seconds": run.earlier_seconds, "shared_by": run.shared_by}


def read_result(stages: TrialStages, store: Store) -> TrialResult:
    """The result of a trial that has ended; without what is gone or damaged of the stages before its last."""
    facts: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    history = []
    for stage in stages.all():
        try:
            found = store.facts(stage)
        except (OSError, DamagedFacts):
            continue
        metrics |= found["metrics"] if stage is not stages.pretrain else {}
        facts |= found
        rows = [json.loads(line) for line in (store.read(stage, HISTORY) or b"").splitlines()]
        history += [{"stage": stage.kind, **row} for row in rows]
    return TrialResult(metrics, history, facts)


class _Lazily(Generic[T]):
    """Data, read when first asked for: a trial whose stages are there needs none."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value: T | None = None

    def get(self) -> T:
        if self._value is None:
            self._value = self._make()
        return self._value


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / WEIGHTS)[0]


def _write(folder: Path, model: torch.nn.Module, history: list[dict[str, float]]) -> None:
    """By the first process of a trial."""
    if processes.rank() == 0:
        save_tensors(folder / WEIGHTS, model.state_dict())
        (folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in history))
