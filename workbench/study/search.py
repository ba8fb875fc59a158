"""A search as a study file writes it: where to look for each setting, how, and what it has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.settings import ConfigError


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A number between `low` and `high`, in the logarithm if `log`, in multiples of `step` if given."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step, None)

    def draw(self, generator: np.random.Generator) -> float:
        if self.log:
            return float(np.exp(generator.uniform(np.log(self.low), np.log(self.high))))
        value = float(generator.uniform(self.low, self.high))
        return value if self.step is None else self._at_step(value)

    @property
    def largest(self) -> float:
        """That can be drawn: `high`, or the last step below it."""
        return self.high if self.step is None else self._at_step(self.high)

    def _at_step(self, value: float) -> float:
        assert self.step is not None
        return self.low + (value - self.low) // self.step * self.step


@dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    kind: Literal["integer"] = "integer"
    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step, 1)

    def draw(self, generator: np.random.Generator) -> int:
        if self.log:
            return round(float(np.exp(generator.uniform(np.log(self.low), np.log(self.high)))))
        return self.low + int(generator.integers((self.high - self.low) // self.step + 1)) * self.step

    @property
    def largest(self) -> int:
        """That can be drawn: `high`, or the last step below it."""
        return self.low + (self.high - self.low) // self.step * self.step


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of `values`."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("values", "must not be empty")

    def draw(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]


Distribution = Uniform | Integer | Choice


@dataclass(frozen=True, kw_only=True)
class Search:
    """An Optuna search on the validation metric."""

    space: dict[str, Distribution]  # dotted path -> where to look
    num_trials: int
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    pruner: Literal["none", "median", "successive_halving"] = "none"
    seed: int = 0
    confirm_seeds: tuple[int, ...] = ()  # on which the winner is run again, beside the study's own settings

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise ConfigError("num_trials", f"must be at least 1, is {self.num_trials}")
        if not self.space:
            raise ConfigError("space", "must name at least one setting")
        refuse_repeats("confirm_seeds", self.confirm_seeds)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """What a search has found."""

    search: str  # its id
    number: int | None  # of its trial; None for a stand-in
    point: dict[str, Any]  # dotted path -> value


def refuse_repeats(name: str, values: Sequence[int]) -> None:
    if len(set(values)) != len(values):
        raise ConfigError(name, f"must not repeat, are {list(values)}")


def _check_range(low: float, high: float, log: bool, step: float | None, unset: float | None) -> None:
    if step is not None and step <= 0:
        raise ConfigError("step", f"must be greater than 0, is {step}")
    if log and step != unset:
        raise ConfigError("step", "cannot stand beside log; leave one out")
    if low > high:
        raise ConfigError("low", f"must not exceed high ({high}), is {low}")
    if log and low <= 0:
        raise ConfigError("low", f"must be greater than 0 where log is true, is {low}")
