"""Trials of the same shapes, trained together: each weight of all of them is one tensor.

A small model leaves a device idle between its kernels; stacked, as many trials share every kernel. Each
keeps its own data, schedule, random streams, history and checkpoint, and its result is that of training it
alone, to within rounding. One that diverges, stops or ends leaves the others as they are.

P trials of the pack, N weights of a trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from workbench.config import TrialConfig
from workbench.devices import onto
from workbench.model.dropout import drawn_by
from workbench.settings import StageKind, digest, identity
from workbench.training.ahead import Ahead
from workbench.training.compiled import compiled, compiler_errors
from workbench.training.loop import Course, Diverged, LossOf, Stopped, micro_batches, sum_of_parts, trainable
from workbench.training.objectives import Metrics

EPSILON = 1e-8  # AdamW's, as torch has it
ALIGNMENT = 16  # weights: each tensor begins where vectors of numbers may


End = list[dict[str, float]] | Diverged | Stopped  # a history, or what ended it early


def train_together(courses: Sequence[Course[Any]]) -> list[End]:
    """Of each its history, or what ended it; the models of all are trained in place.

    The courses' models, batches and losses are of the same shapes and settings, but for: seeds, data,
    augmentation, learning rates, schedules, weight decay, clipping, number of updates and dropout
    probabilities (none of them zero, or all). Raises ValueError where tensors cannot be stacked, ConfigError
    where updates are to be compiled and cannot be.
    """
    with compiler_errors() if courses[0].task.compile else contextlib.nullcontext():
        return _train_together(courses)


def _train_together(courses: Sequence[Course[Any]]) -> list[End]:
    found: dict[int, End] = {}
    left = {number: course for number, course in enumerate(courses) if not course.ended}
    found |= {number: course.history for number, course in enumerate(courses) if course.ended}
    states = [course.optimiser_state for course in courses]
    while left:
        pack = Pack(list(left.values()), [states[number] for number in left])
        found |= _until_one_ends(pack, left)
        states = [pack.optimiser_state(list(left).index(n)) if n in left else {} for n in range(len(courses))]
        left = {number: course for number, course in left.items() if number not in found}
    return [found[number] for number in range(len(courses))]


def _until_one_ends(pack: Pack, left: dict[int, Course[Any]]) -> dict[int, End]:
    """Update all of the pack, whose numbers `left` gives; those that ended with the last update, and how."""
    found: dict[int, End] = {}
    with contextlib.ExitStack() as stack:
        ahead = [
            stack.enter_context(Ahead(c.task.hear, range(c.step, c.config.steps), c.run.device))
            for c in left.values()
        ]
        while not found:
            heard = [each.of(c.step) for each, c in zip(ahead, left.values(), strict=True)]
            metrics, norms = pack.update(heard)
            for row, (number, course) in enumerate(left.items()):
                try:
                    course.updated(metrics[row], norms[row], functools.partial(pack.optimiser_state, row))
                except (Diverged, Stopped) as end:
                    found[number] = end
                else:
                    found |= {number: course.history} if course.ended else {}
    return found


def pack_key(config: TrialConfig, kind: StageKind) -> str | None:
    """The same for stages that can train together; None for one that can with none."""
    clips = config.trained_on(kind)
    if kind == "evaluate" or config.model.recompute or not clips.of_one_length:
        return None
    model = dataclasses.replace(config.model, dropout=0.5 if config.model.dropout else 0.0)
    content: dict[str, Any] = {
        "kind": kind,
        "front_end": identity(config.front_end),
        "model": identity(model),
        "precision": config.precision,
        "compile": config.compile,
        "clip_seconds": clips.clip_seconds,
    }
    if kind == "pretrain":
        assert config.pretraining is not None
        content["batch"] = [config.pretraining.batch_size, config.pretraining.accumulation]
        content["objective"] = identity(config.pretraining.objective)
    else:
        settings = config.finetuning
        content["batch"] = [settings.batch_size, settings.accumulation]
        content["loss"] = [settings.pooling, settings.freeze_encoder, settings.consistency_weight]
        content["output_dropout"] = settings.output_dropout > 0
        content["data"] = config.data.kind
    return digest(content)


class Pack:
    """P models as one. While it lives, each model's tensors are views of it: to look at, not to replace."""

    def __init__(
        self, courses: Sequence[Course[Any]], states: Sequence[dict[str, dict[str, Tensor]]]
    ) -> None:
        """`states` are AdamW's, by parameter; empty of a training that has not begun."""
        self._courses = courses
        self._device = courses[0].run.device
        self._loss = LossOf(courses[0].task)
        self._losses = compiled(self._loss_of_each) if courses[0].task.compile else self._loss_of_each
        models = [course.task.model for course in courses]
        named = [trainable(model) for model in models]
        self._spans = _spans(named[0])
        size = max(end for _, end in self._spans.values())
        # AdamW runs over all weights of all trials at once: (P, N) each.
        self._weights, self._gradients, self._mean, self._square = (
            torch.zeros(len(courses), size, device=self._device) for _ in range(4)
        )
        self._decayed = torch.zeros(size, device=self._device)  # 1 where the loss depends on a weight
        self._parameters: dict[str, Tensor] = {}
        for name, (begin, end) in self._spans.items():
            shape = (len(courses), *named[0][name].shape)
            stacked = self._weights[:, begin:end].view(shape)
            for row, parameters in enumerate(named):
                stacked[row].copy_(parameters[name].detach())
                parameters[name].data = stacked[row]
                state = states[row].get(name)
                if state:
                    self._mean[row, begin:end] = state["exp_avg"].flatten()
                    self._square[row, begin:end] = state["exp_avg_sq"].flatten()
            self._parameters[name] = stacked.detach().requires_grad_()
        self._used: set[str] = set()  # what the loss depends on: AdamW leaves the rest alone
        self._others = _stack_others(models)
        self._generators = [torch.Generator(self._device) for _ in courses]

    def update(self, heard: Sequence[Any]) -> tuple[list[Metrics], Tensor]:
        """One update of each, from its batch: its metrics, and the norms (P,) of the gradients."""
        courses = self._courses
        for generator, course in zip(self._generators, courses, strict=True):
            generator.manual_seed(course.dropout_seed)
        self._gradients.zero_()
        found: list[list[tuple[Metrics, Tensor]]] = [[] for _ in courses]
        for parts in zip(*map(micro_batches, courses, heard), strict=True):
            with drawn_by(self._generators):
                losses, metrics = self._losses(
                    self._parameters, self._others, _stacked([part for part, _ in parts])
                )
            self._backward((losses * torch.stack([share for _, share in parts])).sum())
            for row, (_, share) in enumerate(parts):
                found[row].append(({name: values[row] for name, values in metrics.items()}, share))
        every = [
            sum_of_parts(own) | (course.task.watch(batch) if course.logging else {})
            for own, course, batch in zip(found, courses, heard, strict=True)
        ]
        norms = self._clip()
        self._adamw()
        return every, norms

    def optimiser_state(self, row: int) -> dict[str, dict[str, Tensor]]:
        """Of one trial, as AdamW keeps it."""
        step = torch.tensor(float(self._courses[row].step))
        model = trainable(self._courses[row].task.model)
        return {
            name: {
                "step": step.clone(),
                "exp_avg": self._mean[row, begin:end].view(model[name].shape).clone(),
                "exp_avg_sq": self._square[row, begin:end].view(model[name].shape).clone(),
            }
            for name, (begin, end) in self._spans.items()
            if name in self._used
        }

    def _backward(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        found = {
            name: gradient
            for name, gradient in zip(self._parameters, gradients, strict=True)
            if gradient is not None
        }
        if found.keys() - self._used:
            self._used |= found.keys()
            for name in self._used:
                self._decayed[slice(*self._spans[name])] = 1.0
        places = [
            self._gradients[:, slice(*self._spans[name])].view(gradient.shape)
            for name, gradient in found.items()
        ]
        torch._foreach_add_(places, list(found.values()))

    def _loss_of_each(
        self, parameters: dict[str, Tensor], others: dict[str, Tensor], heard: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(P,) each."""

        def of_member(
            parameters: dict[str, Tensor], others: dict[str, Tensor], heard: Any
        ) -> tuple[Tensor, Metrics]:
            return functional_call(self._loss, _below_model(parameters | others), (heard,))

        dims = tree_map(lambda value: 0 if isinstance(value, Tensor) else None, heard)
        return torch.vmap(of_member, in_dims=(0, 0, dims))(parameters, others, heard)

    def _clip(self) -> Tensor:
        norms = torch.linalg.vector_norm(self._gradients, dim=1)
        most = self._per_trial([c.config.optimiser.max_grad_norm or float("inf") for c in self._courses])
        self._gradients.mul_((most / (norms[:, None] + 1e-6)).clamp_max(1.0))
        return norms

    @torch.no_grad()
    def _adamw(self) -> None:
        """Adam with decoupled weight decay, each trial with its own rates and count of updates."""
        settings = [course.config.optimiser for course in self._courses]
        done = [course.step + 1 for course in self._courses]
        first = [1 - s.betas[0] for s in settings]
        second = [1 - s.betas[1] for s in settings]
        rates = [course.lr for course in self._courses]
        decay = self._per_trial([lr * s.weight_decay for lr, s in zip(rates, settings, strict=True)])
        self._weights.mul_(1 - decay * self._decayed)
        self._mean.lerp_(self._gradients, self._per_trial(first).expand_as(self._mean))
        self._square.lerp_(self._gradients.square(), self._per_trial(second).expand_as(self._square))
        first_correction = [1 - (1 - b) ** n for b, n in zip(first, done, strict=True)]
        second_correction = [(1 - (1 - b) ** n) ** 0.5 for b, n in zip(second, done, strict=True)]
        size = [lr / c for lr, c in zip(rates, first_correction, strict=True)]
        denominator = self._square.sqrt().div_(self._per_trial(second_correction)).add_(EPSILON)
        self._weights.sub_((self._mean * self._per_trial(size)).div_(denominator))

    def _per_trial(self, values: list[float]) -> Tensor:
        """(P, 1)."""
        return onto(self._device, torch.tensor(values, dtype=torch.float32))[:, None]


def _below_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _spans(parameters: dict[str, nn.Parameter]) -> dict[str, tuple[int, int]]:
    """Where each lies among N."""
    spans, begin = {}, 0
    for name, parameter in parameters.items():
        spans[name] = (begin, begin + parameter.numel())
        begin += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return spans


def _stack_others(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Buffers and frozen parameters, (P, ...) each, of which the models' become views."""
    others = [
        {name: value for name, value in model.named_parameters() if not value.requires_grad}
        | dict(model.named_buffers())
        for model in models
    ]
    stacked = {name: torch.stack([each[name].detach() for each in others]) for name in others[0]}
    for row, each in enumerate(others):
        for name, value in each.items():
            value.data = stacked[name][row]
    return stacked


def _stacked(heard: Sequence[Any]) -> Any:
    """What each hears, as one of (P, ...) tensors."""

    def stack(*values: Any) -> Any:
        if all(value is None for value in values):
            return None
        if any(value is None or value.shape != values[0].shape for value in values):
            raise ValueError("trials of one pack hear batches of one shape")
        return torch.stack(values)

    return tree_map(stack, *heard)
