"""The one training loop: steps, accumulates, clips, validates, logs, saves and resumes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from workbench import processes
from workbench.config import FinetuningConfig, OptimiserConfig, PretrainingConfig
from workbench.random_streams import derive
from workbench.training.ahead import Ahead
from workbench.training.checkpoint import TrainingState, optimiser_state, restore_optimiser
from workbench.training.compiled import compiled, compiler_errors
from workbench.training.objectives import Metrics
from workbench.training.schedule import learning_rate_scale
from workbench.training.tracker import SilentTracker, Tracker

LOG_POINTS = 50  # of a training run
AGREE_EVERY = 10  # updates of a trial on several GPUs: to agree, all that was enqueued must be waited for
SAVE_SECONDS = 30.0  # between checkpoints: what a kill can cost

HeardT = TypeVar("HeardT")


class Task(Protocol[HeardT]):
    """What a stage trains, and by which loss.

    An update's random choices are all made in `hear`, for the whole batch, but for dropout; `loss` is a
    function of the model's tensors and of what was heard. The tensors of what is heard begin with the clips,
    so that parts of it can be taken; of several processes each hears its own (`processes.own_rows`).
    """

    @property
    def stage(self) -> str:
        """Its name."""

    @property
    def model(self) -> nn.Module:
        """Trained in place."""

    @property
    def compile(self) -> bool:
        """Whether its loss is to be compiled."""

    @property
    def pack_key(self) -> str | None:
        """The same for tasks that can train together; None for one that can with none."""

    def hear(self, step: int) -> HeardT:
        """The batch of an update, or of several processes this one's part of it; on the device."""

    def loss(self, heard: HeardT) -> tuple[Tensor, Metrics]:
        """Scalar loss of a batch, or of a part of one, and metrics: means."""

    def share(self, part: HeardT, whole: HeardT) -> Tensor:
        """What part of the whole, over all processes, a part's loss is the mean of: a scalar."""

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
            f"{stage}: the loss was no longer finite by update {step}; last seen: {seen}. "
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
    should_stop: Callable[[], bool] = lambda: False  # asked after every update; on several GPUs, some
    train: Callable[[Course[Any]], list[dict[str, float]]] = field(default_factory=lambda: train)
    shared_by: int = 1  # trials that this one trains with: its seconds are its part
    earlier_seconds: float = 0.0  # set: spent before the checkpoint that was resumed from


TaskT = TypeVar("TaskT", bound=Task[Any])


class Course(Generic[TaskT]):
    """One training from its first update, or its checkpoint, to its last: what surrounds the updates.

    Logs, validates, keeps the model at its best, saves, stops. Every draw depends on the seed and the step
    alone, so that a run that resumes gives the same weights and history as one that was never stopped.
    """

    def __init__(
        self,
        task: TaskT,
        config: PretrainingConfig | FinetuningConfig,
        *,
        seed: int,
        run: Run,
        validation: Validation | None = None,
    ) -> None:
        """Takes the model and the history of the run's checkpoint, if there is one."""
        self.task, self.config, self.run = task, config, run
        self.validation, self._seed = validation, seed
        self._began = self._saved_at = time.monotonic()
        self._state = TrainingState(step=0, model={}, optimiser={}, history=[])
        if run.checkpoint is not None and run.checkpoint.exists():
            self._state = TrainingState.load(run.checkpoint)
            task.model.load_state_dict(self._state.model)
            run.earlier_seconds = self._state.seconds
        self._log_every = max(1, config.steps // LOG_POINTS)
        self._window = _on_device(self._state.window, run.device)

    @property
    def history(self) -> list[dict[str, float]]:
        """A row a log point, and one a validation."""
        return self._state.history

    @property
    def optimiser_state(self) -> dict[str, dict[str, Tensor]]:
        """Of the checkpoint, by parameter."""
        return self._state.optimiser

    @property
    def step(self) -> int:
        """Updates done."""
        return self._state.step

    @property
    def ended(self) -> bool:
        return self.step == self.config.steps

    @property
    def lr(self) -> float:
        """Of the coming update."""
        scale = learning_rate_scale(self.config.schedule, self.step, self.config.steps)
        return self.config.optimiser.peak_lr * scale

    @property
    def dropout_seed(self) -> int:
        """Of the coming update."""
        return derive(self._seed, self.task.stage, "dropout", self.step)

    @property
    def logging(self) -> bool:
        """Whether the coming update ends at a log point."""
        done = self.step + 1
        return done % self._log_every == 0 or done == self.config.steps

    def updated(
        self,
        metrics: Metrics,
        grad_norm: Tensor,
        optimiser_state: Callable[[], dict[str, dict[str, Tensor]]],
    ) -> None:
        """After an update with these metrics. Raises Diverged, Stopped."""
        task, run, state, stage = self.task, self.run, self._state, self.task.stage
        logging, lr = self.logging, self.lr
        state.step += 1
        self._window.append(metrics)
        run.tracker.progress(stage, state.step, self.config.steps)
        if logging:
            row = _mean_of(self._window) | {"lr": lr, "grad_norm": float(grad_norm)}
            self._window = []
            if not all(map(_finite, row.values())):
                raise self._diverged()
            self._note(row)
        if self.validation is not None and state.step in self.validation.after:
            self._validate(self.validation)
        if self.ended:
            if state.best is not None:
                task.model.load_state_dict(state.best)
            return
        stopping = self._agreed(run.should_stop)
        if run.checkpoint is not None and (stopping or self._agreed(self._is_due)):
            self._save(run.checkpoint, optimiser_state)
        if stopping:
            raise Stopped(stage, state.step)

    def _agreed(self, wish: Callable[[], bool]) -> bool:
        """What process 0 wishes."""
        if processes.count() > 1 and self.run.device.type == "cuda" and self.step % AGREE_EVERY:
            return False
        return processes.agreed(wish(), self.run.device)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.run.save_seconds

    def _save(self, path: Path, optimiser_state: Callable[[], dict[str, dict[str, Tensor]]]) -> None:
        """By process 0; the metrics of all. Raises Diverged: what can no longer end well replaces nothing."""
        state = self._state
        window = _on_host(self._window)
        if not all(_finite(value) for row in window for value in row.values()):
            raise self._diverged()
        if processes.rank() == 0:
            state.model = self.task.model.state_dict()
            state.optimiser = optimiser_state()
            state.window = window
            elapsed = time.monotonic() - self._began
            state.seconds = self.run.earlier_seconds + elapsed / self.run.shared_by
            state.save(path)
        self._saved_at = time.monotonic()

    def _validate(self, validation: Validation) -> None:
        state, select = self._state, validation.select
        try:
            row = validation.score()
        except FloatingPointError:
            raise self._diverged() from None
        best_so_far = max((r[select] for r in self.history if select in r), default=float("-inf"))
        if state.best is None or row[select] > best_so_far:
            state.best = {name: t.detach().clone() for name, t in self.task.model.state_dict().items()}
        self._note(row)

    def _note(self, row: dict[str, float]) -> None:
        self.history.append({"step": self.step, **row})
        self.run.tracker.log(self.task.stage, self.step, row)

    def _diverged(self) -> Diverged:
        return Diverged(self.task.stage, self.step, self.history[-1] if self.history else {})


def train(course: Course[Any]) -> list[dict[str, float]]:
    """Train the task's model in place; returns the history.

    With a validation the model ends as it was at its best (the first time, in a tie). Raises Diverged when
    the loss, or the validation's scores, are not finite; Stopped, once a checkpoint is saved, when told to;
    ConfigError where the update is to be compiled and cannot be.
    """
    with compiler_errors() if course.task.compile else nullcontext():
        return _train(course)


def _train(course: Course[Any]) -> list[dict[str, float]]:
    task, config = course.task, course.config
    named = trainable(task.model)
    optimiser = build_optimiser(list(named.values()), config.optimiser)
    restore_optimiser(optimiser, named, course.optimiser_state)
    max_norm = config.optimiser.max_grad_norm or float("inf")
    loss_of: nn.Module = compiled(LossOf(task)) if task.compile else LossOf(task)
    if processes.count() > 1:
        loss_of = DistributedDataParallel(loss_of, broadcast_buffers=False)
    with Ahead(task.hear, range(course.step, config.steps), course.run.device) as ahead:
        while not course.ended:
            for group in optimiser.param_groups:
                group["lr"] = course.lr
            torch.manual_seed(course.dropout_seed + processes.rank())  # masks are each process's own
            heard = ahead.of(course.step)
            found: list[tuple[Metrics, Tensor]] = []
            for number, (part, share) in enumerate(micro_batches(course, heard), start=1):
                with _gradients_kept(loss_of) if number < config.accumulation else nullcontext():
                    loss, metrics = loss_of(part)
                    (loss * share).backward()
                found.append((metrics, share))
            metrics = sum_of_parts(found)
            if course.logging:
                metrics |= task.watch(heard)
            norm = nn.utils.clip_grad_norm_(named.values(), max_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            course.updated(metrics, norm, lambda: optimiser_state(optimiser, named))
    return course.history


def micro_batches(course: Course[Any], heard: HeardT) -> Iterator[tuple[HeardT, Tensor]]:
    """The parts of a batch, each with its share: weighted by it, their losses add up to the whole's."""
    count = course.config.accumulation
    if count == 1:
        yield heard, torch.ones((), device=course.run.device)
        return
    for number in range(count):
        part = tree_map(functools.partial(_every_nth, number, count), heard)
        yield part, course.task.share(part, heard)


def _every_nth(first: int, step: int, value: Any) -> Any:
    """Of a tensor's clips; two versions of each, one after the other, keep their order."""
    return value[first::step] if isinstance(value, Tensor) else value


def sum_of_parts(found: Sequence[tuple[Metrics, Tensor]]) -> Metrics:
    """Metrics of a batch, from those of its parts and their shares."""
    if len(found) == 1:
        return found[0][0]
    return {name: torch.stack([part[name] * share for part, share in found]).sum() for name in found[0][0]}


class LossOf(nn.Module):
    """A task's loss as a module's forward: what can be distributed, or given other tensors."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, heard: Any) -> tuple[Tensor, Metrics]:
        return self._task.loss(heard)


def _gradients_kept(loss_of: nn.Module) -> AbstractContextManager[None]:
    """Before the last micro-batch of an update gradients stay in their process."""
    if isinstance(loss_of, DistributedDataParallel):
        return loss_of.no_sync()
    return nullcontext()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


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
    """Mean of each metric over the updates that report it, and over all processes."""
    names = sorted({name for metrics in window for name in metrics})
    means = [torch.stack([m[name].float() for m in window if name in m]).mean() for name in names]
    return dict(zip(names, processes.mean(torch.stack(means)).tolist(), strict=True))


def _on_host(window: list[Metrics]) -> list[dict[str, float]]:
    """Each metric's mean over all processes: one copy for all, for each would be waited for."""
    values = [value.float() for metrics in window for value in metrics.values()]
    if not values:
        return []
    found = iter(processes.mean(torch.stack(values)).tolist())
    return [{name: next(found) for name in metrics} for metrics in window]


def _on_device(window: list[dict[str, float]], device: torch.device) -> list[Metrics]:
    values = [value for metrics in window for value in metrics.values()]
    if not values:
        return []
    found = iter(torch.tensor(values, device=device).unbind())
    return [{name: next(found) for name in metrics} for metrics in window]


def _finite(value: float) -> bool:
    return value - value == 0.0
