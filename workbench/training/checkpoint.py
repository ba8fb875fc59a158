"""Tensors and their facts in one safetensors file, written aside and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# safetensors is imported where it is used: the training core stands without it as long as nothing is saved.


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
    """Write `tensors`, with JSON `facts` in the header; the file is there whole or not at all.

    Raises OSError, also for a full disk, for which safetensors has an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(content, aside, metadata={"facts": json.dumps(facts)})
    except SafetensorError as error:
        raise OSError(f"{aside} cannot be written: {error}") from error
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What `save_tensors` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["facts"])


@dataclass
class TrainingState:
    """All that the next update depends on: random draws are functions of the step, and need no state."""

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, dict[str, Tensor]]  # parameter name -> AdamW's state of it
    history: list[dict[str, float]]
    window: list[dict[str, float]] = field(default_factory=list)  # since the last row of the history
    best: dict[str, Tensor] | None = None  # model at the best evaluation
    seconds: float = 0.0  # that training took so far: of a pack, this trial's part

    def save(self, path: Path) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        for name, state in self.optimiser.items():
            tensors |= {f"optimiser/{key}/{name}": tensor for key, tensor in state.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in (self.best or {}).items()}
        facts = {
            "step": self.step,
            "history": self.history,
            "window": self.window,
            "seconds": self.seconds,
        }
        save_tensors(path, tensors, facts)

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """What `save` wrote. Raises OSError for anything else."""
        from safetensors import SafetensorError

        try:
            return cls._load(path)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OSError(
                f"{path} is no checkpoint of this version ({error}); delete it, and its training begins anew"
            ) from error

    @classmethod
    def _load(cls, path: Path) -> TrainingState:
        tensors, facts = load_tensors(path)
        model: dict[str, Tensor] = {}
        best: dict[str, Tensor] = {}
        optimiser: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, name = key.split("/", 1)
            if part == "optimiser":
                state, name = name.split("/", 1)
                optimiser.setdefault(name, {})[state] = tensor
            else:
                (model if part == "model" else best)[name] = tensor
        return cls(
            step=facts["step"],
            model=model,
            optimiser=optimiser,
            history=facts["history"],
            window=facts["window"],
            best=best or None,
            seconds=facts["seconds"],
        )


def optimiser_state(
    optimiser: torch.optim.Optimizer, named: Mapping[str, torch.nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """Its state by parameter name, for the parameters that have received an update."""
    return {
        name: dict(optimiser.state[parameter])
        for name, parameter in named.items()
        if optimiser.state.get(parameter)
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    named: Mapping[str, torch.nn.Parameter],
    state: Mapping[str, dict[str, Tensor]],
) -> None:
    for name, tensors in state.items():
        parameter = named[name]
        optimiser.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in tensors.items()}
