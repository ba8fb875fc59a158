"""The one training loop: steps, accumulates, clips, evaluates, logs, saves and resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from workbench.config import FinetuningConfig, OptimiserConfig, PretrainingConfig
from workbench.random_streams import derive
from workbench.training.checkpoint import TrainingState, optimiser_state, restore_optimiser
from workbench.training.objectives import Metrics
from workbench.training.schedule import learning_rate_scale
from workbench.training.tracker import SilentTracker, Tracker

LOG_POINTS = 50  # of a training run
SAVE_SECONDS = 30.0  # between checkpoints: what a kill can cost

HeardT = TypeVar("HeardT")


class Task(Protocol[HeardT]):
    """What a stage trains, and by which loss.

    An update's random choices are all made in `hear`, but for dropout; `loss` is a function of the model's
    tensors and of what was heard.
    """

    stage: str

    @property
    def model(self) -> nn.Module:
        """Trained in place."""

    def hear(self, step: int) -> Iterator[HeardT]:
        """The micro-batches of an update, on the device."""

    def loss(self, heard: HeardT) -> tuple[Tensor, Metrics]:
        """Scalar loss of a micro-batch, and metrics."""

    def watch(self, heard: HeardT) -> Metrics:
        """What is worth knowing at a log point beside the loss's metrics."""


@dataclass(frozen=True)
class Validation:
    """`score` after each number of updates in `after`; the model is kept where metric `select` is highest."""

    score: Callable[[], dict[str, float]]  # may raise FloatingPointError
    after: frozenset[int]
    select: str


class Diverged(RuntimeError):
    """The loss is no longer finite; `last` holds the metrics of the last log point where it was."""

    def __init__(self, stage: str, step: int, last: dict[str, float]) -> None:
        seen = ", ".join(f"{name} {value:.4g}" for name, value in last.items()) or "nothing yet"
        super().__init__(
            f"{stage}: the loss is not finite at update {step}; last seen: {seen}. "
            f"A lower peak_lr or a longer warm-up may help"
        )
        self.stage = stage
        self.step = step
        self.last = last


class Stopped(RuntimeError):
    """Told to stop; a checkpoint, where one is kept, holds what was done."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(f"{stage}: stopped after update {step}")


@dataclass(kw_only=True)
class Run:
    """How a training run is watched, kept and stopped."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tracker: Tracker = field(default_factory=SilentTracker)
    checkpoint: Path | None = None  # resumed from if it is there
    save_seconds: float = SAVE_SECONDS
    should_stop: Callable[[], bool] = lambda: False  # asked after every update
    earlier_seconds: float = 0.0  # set: spent before the checkpoint that was resumed from


def train(
    task: Task[Any],
    config: PretrainingConfig | FinetuningConfig,
    *,
    seed: int,
    run: Run,
    validation: Validation | None = None,
) -> list[dict[str, float]]:
    """Train the task's model in place for `config.steps` updates; returns the history, one row a log point.

    With `validation` the model ends as it was at its best (the first time, in a tie). Every draw depends on
    the seed and the step alone, so a run that resumes from its checkpoint gives the same weights and history
    as one that was never stopped. Raises Diverged when the loss is not finite, or the validation's scores are
    not; Stopped, once a checkpoint is saved, when the run is told to.
    """
    began = time.monotonic()
    model, stage = task.model, task.stage
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = build_optimiser(list(named.values()), config.optimiser)
    state = TrainingState(step=0, model={}, optimiser={}, history=[])
    if run.checkpoint is not None and run.checkpoint.exists():
        state = TrainingState.load(run.checkpoint)
        model.load_state_dict(state.model)
        restore_optimiser(optimiser, named, state.optimiser)
        run.earlier_seconds = state.seconds
    history = state.history
    log_every = max(1, config.steps // LOG_POINTS)
    window = [
        {name: torch.tensor(value, device=run.device) for name, value in row.items()} for row in state.window
    ]
    saved_at = time.monotonic()

    for step in range(state.step, config.steps):
        done = step + 1
        logging = done % log_every == 0 or done == config.steps
        lr = config.optimiser.peak_lr * learning_rate_scale(config.schedule, step, config.steps)
        for group in optimiser.param_groups:
            group["lr"] = lr
        torch.manual_seed(derive(seed, stage, "dropout", step))
        for heard in task.hear(step):
            loss, metrics = task.loss(heard)
            (loss / config.accumulation).backward()
            window.append(metrics | task.watch(heard) if logging else metrics)
        norm = nn.utils.clip_grad_norm_(named.values(), config.optimiser.max_grad_norm or float("inf"))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

        run.tracker.progress(stage, done, config.steps)
        if logging:
            row = _mean_of(window) | {"lr": lr, "grad_norm": float(norm)}
            window = []
            if not all(map(_finite, row.values())):
                raise Diverged(stage, done, history[-1] if history else {})
            history.append({"step": done, **row})
            run.tracker.log(stage, done, row)
        if validation is not None and done in validation.after:
            try:
                row = validation.score()
            except FloatingPointError:
                raise Diverged(stage, done, history[-1] if history else {}) from None
            if state.best is None or row[validation.select] > _best_so_far(history, validation.select):
                state.best = {name: t.detach().clone() for name, t in model.state_dict().items()}
                state.best_step = done
            history.append({"step": done, **row})
            run.tracker.log(stage, done, row)
        if done == config.steps:
            break
        stopping = run.should_stop()
        if run.checkpoint is not None and (stopping or time.monotonic() - saved_at >= run.save_seconds):
            state.step = done
            state.model = model.state_dict()
            state.optimiser = optimiser_state(optimiser, named)
            state.window = [{name: float(value) for name, value in m.items()} for m in window]
            state.seconds = run.earlier_seconds + time.monotonic() - began
            state.save(run.checkpoint)
            saved_at = time.monotonic()
        if stopping:
            raise Stopped(stage, done)

    if state.best is not None:
        model.load_state_dict(state.best)
    return history


def build_optimiser(parameters: list[nn.Parameter], config: OptimiserConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, as the framework of wav2vec 2.0 has it."""
    return torch.optim.AdamW(
        parameters,
        lr=config.peak_lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights; on a CPU it takes a sixth of the separate ones' time
    )


def _mean_of(window: list[Metrics]) -> dict[str, float]:
    """Mean of each metric over the micro-batches that report it; one wait for the device."""
    names = {name for metrics in window for name in metrics}
    return {
        name: float(torch.stack([m[name].float() for m in window if name in m]).mean())
        for name in sorted(names)
    }


def _finite(value: float) -> bool:
    return value - value == 0.0


def _best_so_far(history: list[dict[str, float]], select: str) -> float:
    return max((row[select] for row in history if select in row), default=float("-inf"))
