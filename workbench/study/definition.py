"""What a study is, with its levels or search space, regimes, seeds and folds; and what its trials are.

A trial's values are laid over the study's base by dotted path, in the order regime, level, seed and fold;
then the whole trial is validated.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import yaml

from workbench.config import TrialConfig
from workbench.random_streams import numpy_stream
from workbench.settings import ConfigError, digest, from_dict, identity, to_dict
from workbench.study.claims import Claim
from workbench.study.search import Choice, Search, Winner

# Settings that cannot change a result, or say where the same data lie.
PLACEMENT = ("resources", "data.root", "pool.root", "model.recompute", "compile")
SECTIONS = ("model", "pretraining", "finetuning")  # of a preset
CONFIRM_SEEDS = "search.confirm_seeds"
UNPRUNED = 4  # trials of a search that a median is made of before it ends others
MOST_REFUSED = 1000  # random points of a space that cannot be run, in a row, before the space is refused
SETTINGS, DEFAULT, FOUND = "settings", "default", "found"  # a confirmation's axis, and its levels


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What running takes; no result depends on it beyond rounding."""

    concurrency: int | None = None  # trials at once; None: as many as there are cores, or GPUs, for
    threads: int = 1  # of torch, a trial
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = 1  # that share a trial's batches, each with a GPU, or so many threads, of its own
    pack: int | None = None  # trials trained as one; None: on a GPU as many as it gains from, else 1

    def __post_init__(self) -> None:
        for name in ("concurrency", "threads", "processes", "pack"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"must be at least 1, is {value}")
        if self.processes > 1 and (self.pack or 1) > 1:
            raise ConfigError("pack", f"must be 1 where {self.processes} processes share a trial")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a study."""

    level: dict[str, Any]  # dotted path -> value, what is tuned included; the first is the axis of the figure
    regime: str
    seed: int
    fold: int | None
    config: TrialConfig

    @property
    def coordinates(self) -> dict[str, Any]:
        """Where it stands in its study, as JSON."""
        return {"level": self.level, "regime": self.regime, "seed": self.seed, "fold": self.fold}

    @property
    def label(self) -> str:
        parts = [f"{path.rsplit('.', 1)[-1]}={value}" for path, value in self.level.items()]
        parts += [self.regime, f"seed {self.seed}"]
        return "  ".join(parts + ([f"fold {self.fold}"] if self.fold is not None else []))


@dataclass(frozen=True, kw_only=True)
class StudyBase:
    """What every study has; the same file with the same preset and settings gives the same one."""

    name: str
    question: str
    claims: dict[str, Claim | None]  # by their ids; None where no claims.yaml lies beside the study
    preset: str
    overrides: dict[str, Any]  # from the command line
    has_pool: bool  # without them
    base: dict[str, Any]  # a whole trial, before regime, level, seed and fold
    axes: tuple[str, ...]  # the dotted paths that the study is about
    regimes: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    metric: str
    resources: Resources

    @property
    def id(self) -> str:
        """Name and preset, and a hash of the command line's settings, and of what is the study's own."""
        without = (*PLACEMENT, CONFIRM_SEEDS)  # with more seeds the same search goes on, and its confirmation
        brings_pool = {"pool.root"} if not self.has_pool else set()
        overrides = {
            path: value
            for path, value in self.overrides.items()
            if path in brings_pool or not path.startswith(without)
        }
        parts: list[Any] = [overrides] if overrides else []
        parts += self._parts_of_id()
        suffix = f"-{digest(parts)[:8]}" if parts else ""
        return f"{self.name}-{self.preset}{suffix}"

    def _parts_of_id(self) -> list[Any]:
        raise NotImplementedError

    def trial(self, regime: str, level: Mapping[str, Any], seed: int, fold: int | None = None) -> Trial:
        """The trial at that point, validated whole. Raises ConfigError."""
        raw = copy.deepcopy(self.base)
        for path, value in self._changes(regime, level).items():
            set_path(raw, path, value)
        raw["seed"] = seed
        if fold is not None:
            if "test_fold" in raw["data"]:
                raise ConfigError("data.test_fold", "is one of `folds`; name it there, not as a setting")
            set_path(raw, "data.test_fold", fold)
        config = from_dict(TrialConfig, raw)
        of_level = {path: shown(level[path]) for path in self._told_apart_by() if path in level}
        return Trial(level=of_level, regime=regime, seed=seed, fold=fold, config=config)

    def _changes(self, regime: str, level: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial lays over the base, by dotted path."""
        return {**self.regimes[regime], **level}

    def _told_apart_by(self) -> tuple[str, ...]:
        """Dotted paths."""
        return self.axes


@dataclass(frozen=True, kw_only=True)
class GridStudy(StudyBase):
    """Every level in every regime, with every seed and fold."""

    levels: tuple[dict[str, Any], ...]
    tuned: tuple[str, ...]  # the dotted paths that each arm chooses for itself, on validation data
    confirms: Winner | None = None  # what a search has found, and this study runs again

    def trials(self) -> list[Trial]:
        """Every trial, seed by seed, so that whole replicates come in first."""
        return [
            self.trial(regime, level, seed, fold)
            for seed in self.seeds
            for fold in self.folds
            for level in self.levels
            for regime in self.regimes
        ]

    def _parts_of_id(self) -> list[Any]:
        return [] if self.confirms is None else [self.confirms.search, self.confirms.point]

    def _changes(self, regime: str, level: Mapping[str, Any]) -> dict[str, Any]:
        changes = super()._changes(regime, level)
        if self.confirms is not None:
            del changes[SETTINGS]  # tells the levels apart, and sets nothing
        return changes

    def _told_apart_by(self) -> tuple[str, ...]:
        return (*self.axes, *self.tuned)


@dataclass(frozen=True, kw_only=True)
class SearchStudy(StudyBase):
    """Trials that are proposed one after the other, each by the scores of those before.

    All in its one regime, with one seed and fold.
    """

    search: Search

    def trial_at(self, point: Mapping[str, Any]) -> Trial:
        """The trial at a point of the space; without a point, of the study's own settings."""
        return self.trial(next(iter(self.regimes)), point, self.seeds[0], self.folds[0])

    def corners(self) -> list[Trial]:
        """The extremes of the space, one setting at a time: what cannot be run shows early."""
        low = {path: values[0] for path, values in self._extremes().items()}
        points = [low] + [
            {**low, path: value} for path, values in self._extremes().items() for value in values[1:]
        ]
        return [self.trial_at(point) for point in points]

    def random_trials(self) -> list[Trial]:
        """As many trials as there will be, at random points of the space: what it will cost, roughly.

        The median pruner gives up about half of what it judges, most of it at the first validation.
        """
        points = itertools.islice(self._random_points(), self.search.num_trials)
        trials = [self.trial_at(point) for point in points]
        if self.search.pruner == "median":
            trials[UNPRUNED + 1 :: 2] = map(_given_up, trials[UNPRUNED + 1 :: 2])
        return trials

    def is_default(self, point: Mapping[str, Any]) -> bool:
        """Whether a point of the space is what the study sets anyway."""
        return bool(identity(self.trial_at(point).config) == identity(self.trial_at({}).config))

    def confirmation(self, point: Mapping[str, Any], number: int | None = None) -> GridStudy:
        """The grid that runs the winner again, beside the study's own settings, on fresh seeds.

        Its scores took no part in the choice. `number` is the winner's in the search.
        """
        shared = {field.name: getattr(self, field.name) for field in fields(StudyBase)}
        changed = {
            "name": f"{self.name}_confirmed",
            "question": f"Does what {self.name} found do better than the settings it set out from?",
            "axes": (SETTINGS,),
            "seeds": self.search.confirm_seeds,
        }
        return GridStudy(
            **{**shared, **changed},
            levels=({SETTINGS: DEFAULT}, {SETTINGS: FOUND, **point}),
            tuned=(),
            confirms=Winner(search=self.id, number=number, point=dict(point)),
        )

    def likely_confirmation(self) -> GridStudy:
        """The confirmation of a random point: what it will cost, roughly."""
        return self.confirmation(next(self._random_points()))

    def _parts_of_id(self) -> list[Any]:
        # What it has learned holds for its space, base, place and score alone.
        of_space = [to_dict(self.search.space), _without_placement(self.base), self.regimes]
        return [*of_space, list(self.seeds), list(self.folds), self.metric]

    def _random_points(self) -> Iterator[dict[str, Any]]:
        generator = numpy_stream(self.search.seed, "plan")
        refused = 0
        while True:
            point = {path: space.draw(generator) for path, space in self.search.space.items()}
            try:
                self.trial_at(point)
            except ConfigError:  # settings that cannot stand together; the search passes them over, too
                refused += 1
                if refused == MOST_REFUSED:
                    raise
                continue
            refused = 0
            yield point

    def _extremes(self) -> dict[str, tuple[Any, ...]]:
        return {
            path: d.values if isinstance(d, Choice) else (d.low, d.largest)
            for path, d in self.search.space.items()
        }


Study = GridStudy | SearchStudy


def _given_up(trial: Trial) -> Trial:
    """One that takes as long as this trial does to its first validation."""
    settings = trial.config.finetuning
    steps = max(1, settings.steps // settings.num_evaluations)
    shorter = replace(settings, steps=steps, num_evaluations=1)
    return replace(trial, config=replace(trial.config, finetuning=shorter))


def _without_placement(base: dict[str, Any]) -> dict[str, Any]:
    kept = copy.deepcopy(base)
    for path in PLACEMENT:
        *parents, last = path.split(".")
        node: Any = kept
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    return kept


def shown(value: Any) -> Any:
    """A level's value for tables and figures: numbers and text as they are, anything else as short text."""
    if isinstance(value, Mapping) and set(value) == {"kind"}:
        return value["kind"]
    if value is None or isinstance(value, Mapping | list):
        return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return value


def set_path(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries.

    Raises ConfigError where the way leads through a value, or a section would lose the preset's other values.
    """
    *parents, last = path.split(".")
    node = raw
    for depth, key in enumerate(parents):
        child = node.setdefault(key, {})
        if child is None:
            raise ConfigError(
                path, f"{'.'.join(parents[: depth + 1])} is null here; set it whole, or leave its parts alone"
            )
        if not isinstance(child, dict):
            raise ConfigError(path, f"{'.'.join(parents[: depth + 1])} is {child!r}, and has no parts")
        node = child
    if path in SECTIONS and isinstance(value, Mapping) and isinstance(node.get(last), Mapping):
        parts = ", ".join(f"{path}.{name}" for name in value)
        raise ConfigError(
            path, f"would put aside all else that the preset says of it; set its parts: {parts}"
        )
    node[last] = copy.deepcopy(value)
