"""YAML -> Study.

A study file names its question, a preset (`workbench/presets/*.yaml`) as the base of every trial, and what
varies. Values are laid over each other by dotted path, in the order preset, study and command line, then
what tells trials apart.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from workbench.config import TrialConfig
from workbench.settings import ConfigError, digest, from_dict, identity, to_dict
from workbench.strict_yaml import read_value, read_yaml
from workbench.study.claims import FILE as CLAIMS_FILE
from workbench.study.claims import Claim, claims_beside
from workbench.study.definition import (
    CONFIRM_SEEDS,
    GridStudy,
    Resources,
    SearchStudy,
    Study,
    Trial,
    set_path,
)
from workbench.study.search import Search, refuse_repeats

PRESETS = Path(__file__).parent.parent / "presets"
TRIAL_KEYS = tuple(f.name for f in fields(TrialConfig))


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study as it is written."""

    question: str
    name: str | None = None  # the file's name, without its ending, if not given
    claims: tuple[str, ...] = ()  # that it tests, by their ids in claims.yaml
    preset: str = "quick"
    settings: dict[str, Any] = None  # type: ignore[assignment]  # dotted path -> value, for every trial
    vary: Any = None  # {dotted path: [values]} is a grid; [{dotted path: value, ...}, ...] are points
    tune: Any = None  # {dotted path: [values]}: what each arm chooses for itself, on validation data
    search: Search | None = None
    regimes: Any = None  # names from the preset, or {name: {dotted path: value}}
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = ()  # test folds: then they are the replicates, and their seeds are averaged
    metric: Literal["mAP", "macro_auc", "d_prime", "lwlrap", "accuracy"] = "mAP"
    resources: Resources = field(default_factory=Resources)
    presets: dict[str, Any] = None  # type: ignore[assignment]  # preset -> what it changes in this file


def load_study(path: Path, *, preset: str | None = None, assignments: tuple[str, ...] = ()) -> Study:
    """Read, resolve and validate a study file. Raises ConfigError; its path starts with the file's."""
    try:
        raw = read_yaml(path)
        overrides = dict(_assignment(text) for text in assignments)
        return _resolve(path, raw, preset, overrides)
    except ConfigError as error:
        where = f"{path}: {error.path}" if error.path else str(path)
        raise ConfigError(where, error.message) from None


def _resolve(path: Path, raw: dict[str, Any], preset: str | None, overrides: dict[str, Any]) -> Study:
    raw = copy.deepcopy(raw)
    for dotted in overrides:
        if dotted.split(".")[0] in ("preset", "presets"):
            raise ConfigError("--set", f"{dotted} cannot be set here; choose a preset by --preset")
    chosen = preset or raw.get("preset", "quick")
    if not isinstance(chosen, str):
        raise ConfigError("preset", f"must be one of {', '.join(_preset_names())}, is {chosen!r}")
    for key, value in _variant(raw.get("presets"), chosen).items():
        _lay_over(raw, key, value)
    raw["preset"] = chosen
    for dotted, value in overrides.items():
        if dotted.split(".")[0] not in TRIAL_KEYS:
            set_path(raw, dotted, value)
    file = from_dict(StudyFile, raw)
    base, preset_regimes = read_preset(chosen)
    for dotted, value in (file.settings or {}).items():
        set_path(base, dotted, value)
    levels, axes, tuned = _levels(file)
    regimes = _regimes(file, preset_regimes)
    varied = _varied(levels, regimes, file)
    has_pool = base.get("pool") is not None or any(path.split(".")[0] == "pool" for path in varied)
    for dotted, value in overrides.items():
        if dotted.split(".")[0] in TRIAL_KEYS:
            _refuse_varied(dotted, varied)
            set_path(base, dotted, value)
    shared: dict[str, Any] = {
        "name": file.name or path.stem,
        "question": " ".join(file.question.split()),
        "claims": _claims(path, file),
        "preset": chosen,
        "overrides": overrides,
        "has_pool": has_pool,
        "base": base,
        "axes": axes,
        "regimes": regimes,
        "seeds": file.seeds,
        "folds": file.folds or (None,),
        "metric": file.metric,
        "resources": file.resources,
    }
    study: Study
    if file.search is None:
        study = GridStudy(**shared, levels=levels, tuned=tuned)
    else:
        study = SearchStudy(**shared, search=file.search)
    _check(study, file)
    return study


def _claims(path: Path, file: StudyFile) -> dict[str, Claim | None]:
    known = claims_beside(path)
    for name in file.claims:
        if known is not None and name not in known:
            raise ConfigError(
                "claims", f"{path.with_name(CLAIMS_FILE)} has no claim {name!r}; it has {', '.join(known)}"
            )
    return {name: known[name] if known is not None else None for name in file.claims}


def _variant(variants: Any, chosen: str) -> Mapping[str, Any]:
    """What the file changes of itself for the chosen preset; every variant is checked."""
    if variants is None:
        return {}
    if not isinstance(variants, Mapping):
        raise ConfigError("presets", f"must be {{preset: changes}}, is {variants!r}")
    keys = [f.name for f in fields(StudyFile) if f.name not in ("presets", "preset", "name")]
    for name, changes in variants.items():
        if name not in _preset_names():
            raise ConfigError(f"presets.{name}", f"no such preset; there are {', '.join(_preset_names())}")
        if not isinstance(changes, Mapping):
            raise ConfigError(f"presets.{name}", f"must be a mapping of this file's keys, is {changes!r}")
        for key in changes:
            if key not in keys:
                raise ConfigError(f"presets.{name}.{key}", f"unknown key; valid: {', '.join(keys)}")
    return variants.get(chosen, {})


def _check(study: Study, file: StudyFile) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", study.name):
        raise ConfigError("name", f"may hold letters, digits, - and _, is {study.name!r}")
    for name in ("seeds", "folds"):
        refuse_repeats(name, getattr(file, name))
    if not study.seeds:
        raise ConfigError("seeds", "must name at least one seed")
    if isinstance(study, SearchStudy):
        _check_search(study, file)
        trials = study.corners() + _compared_with(study)
    else:
        trials = study.trials()
    if study.metric == "accuracy" and not all(t.config.data.single_label for t in trials):
        raise ConfigError("metric", "accuracy needs single-label data, and these clips have several labels")
    if isinstance(study, GridStudy):
        _refuse_same(trials)
    refuse_unshared(trials, study.resources.processes)
    for trial in trials:
        if trial.config.data.single_label and trial.config.finetuning.pooling != "mean":
            raise ConfigError(
                "finetuning.pooling",
                "linear_softmax gives each class a probability of its own; single-label data need mean",
            )


def _check_search(study: SearchStudy, file: StudyFile) -> None:
    if len(study.regimes) * len(study.seeds) * len(study.folds) != 1:
        raise ConfigError(
            "search",
            "goes over one regime, one seed and one fold (run what it finds on others); here are "
            f"{len(study.regimes)} regimes, {len(study.seeds)} seeds, {len(study.folds)} folds",
        )
    for name in ("vary", "tune"):
        if getattr(file, name) is not None:
            raise ConfigError(name, "cannot stand beside search; put its paths into search.space")
    if (study.resources.pack or 1) > 1:
        raise ConfigError(
            "resources.pack",
            "must be 1 in a search, which trains its trials one by one: a pruner may end any of them",
        )


def refuse_unshared(trials: list[Trial], processes: int) -> None:
    """The processes of a trial share each micro-batch evenly. Raises ConfigError."""
    for trial in trials:
        stages = {"pretraining": trial.config.pretraining, "finetuning": trial.config.finetuning}
        for stage, settings in stages.items():
            if settings is not None and settings.micro_batch % processes:
                raise ConfigError(
                    "resources.processes",
                    f"must divide {stage}.batch_size / {stage}.accumulation, which is "
                    f"{settings.micro_batch} in {trial.label!r}; is {processes}",
                )


def _compared_with(study: SearchStudy) -> list[Trial]:
    """The trials of the study's own settings that the search's winner will be compared with."""
    seeds = study.search.confirm_seeds
    used = sorted(set(seeds) & set(study.seeds))
    if used:
        raise ConfigError(
            CONFIRM_SEEDS,
            f"must be fresh, and on {', '.join(map(str, used))} the search chooses its winner; name others",
        )
    regime = next(iter(study.regimes))
    try:
        return [study.trial(regime, {}, seed, study.folds[0]) for seed in seeds]
    except ConfigError as error:
        raise ConfigError(
            error.path,
            f"{error.message} (in the study's own settings, with which {CONFIRM_SEEDS} compares the winner: "
            "put a value that can be run into settings)",
        ) from None


def _refuse_same(trials: list[Trial]) -> None:
    """Two trials that are the same are a mistake: a level that a regime overrules, or the reverse."""
    labels: dict[str, str] = {}
    for trial in trials:
        config = trial.config
        places = to_dict(config.data).get("root"), config.pool and config.pool.root  # may be other audio
        key = digest([identity(config), *places])
        if key in labels:
            raise ConfigError(
                "vary", f"two trials have the same settings: {labels[key]!r} and {trial.label!r}"
            )
        labels[key] = trial.label


def _levels(file: StudyFile) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...], tuple[str, ...]]:
    """The levels, the paths that the study is about, and those that each of its arms tunes."""
    if file.search is not None:
        return ({},), tuple(file.search.space), ()
    points, axes = _points(file.vary)
    if file.tune is None:
        return points, axes, ()
    if not isinstance(file.tune, Mapping):
        raise ConfigError("tune", f"must be {{path: [values]}}, is {file.tune!r}")
    choices = _grid("tune", file.tune)
    for path in file.tune:
        if any(path in point for point in points):
            raise ConfigError(f"tune.{path}", "is varied, too; a study either compares a setting or tunes it")
    return tuple({**p, **c} for p in points for c in choices), axes, tuple(file.tune)


def _points(vary: Any) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    if vary is None:
        return ({},), ()
    if isinstance(vary, Mapping):
        return _grid("vary", vary), tuple(vary)
    if not isinstance(vary, list) or not vary or not all(isinstance(p, Mapping) for p in vary):
        raise ConfigError("vary", "must be {path: [values]} or [{path: value, ...}, ...]")
    first = next(iter(vary[0]), None)
    for i, point in enumerate(vary):
        if next(iter(point), None) != first:
            raise ConfigError(f"vary[{i}]", f"must begin with {first}, as the first point does")
    if first is None or len({digest(point[first]) for point in vary}) != len(vary):
        raise ConfigError("vary", f"points must differ in their first path, {first}")
    return tuple(dict(point) for point in vary), (first,)


def _grid(key: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    for path, choices in values.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{key}.{path}", f"must be a list of values, is {choices!r}")
        if len(choices) != len({digest(value) for value in choices}):
            raise ConfigError(f"{key}.{path}", f"must not repeat a value, is {choices}")
    return tuple(dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))


def _regimes(file: StudyFile, of_preset: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    chosen = file.regimes
    if chosen is None:
        return {"all": {}}
    if isinstance(chosen, Mapping) and chosen:
        for name, values in chosen.items():
            if not isinstance(values, Mapping):
                raise ConfigError(f"regimes.{name}", f"must be {{path: value}}, is {values!r}")
        return {str(name): dict(values) for name, values in chosen.items()}
    if not isinstance(chosen, list) or not chosen:
        raise ConfigError("regimes", f"must be a list of names or a mapping, is {chosen!r}")
    for name in chosen:
        if not isinstance(name, str) or name not in of_preset:
            raise ConfigError(
                "regimes",
                f"preset {file.preset} has no regime {name!r}; it has {', '.join(of_preset)}",
            )
    return {name: of_preset[name] for name in chosen}


def _varied(
    levels: tuple[dict[str, Any], ...], regimes: dict[str, dict[str, Any]], file: StudyFile
) -> set[str]:
    """Dotted paths that the study sets for each trial itself."""
    found = {path for changes in (*levels, *regimes.values()) for path in changes}
    found |= set(file.search.space) if file.search else set()
    if "seed" in found | set(file.settings or ()):
        raise ConfigError("seed", "is no setting; name it in `seeds`")
    return found | {"seed"} | ({"data.test_fold"} if file.folds else set())


def _refuse_varied(dotted: str, varied: set[str]) -> None:
    for path in varied:
        if f"{dotted}.".startswith(f"{path}."):
            raise ConfigError(
                dotted, f"the study sets {path} for each trial itself; change it in the study file"
            )


def _lay_over(raw: dict[str, Any], key: str, value: Any) -> None:
    """A study's own settings for a preset: `settings` are merged, everything else is replaced."""
    if key == "settings" and isinstance(raw.get(key), Mapping) and isinstance(value, Mapping):
        raw[key] = {**raw[key], **value}
    else:
        raw[key] = value


def read_preset(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A preset's trial, complete, and its regimes."""
    if name not in _preset_names():
        raise ConfigError("preset", f"must be one of {', '.join(_preset_names())}, is {name!r}")
    raw = read_yaml(PRESETS / f"{name}.yaml")
    for key in raw:
        if key not in ("trial", "regimes"):
            raise ConfigError(f"preset {name}: {key}", "unknown key; valid: trial, regimes")
    trial = to_dict(from_dict(TrialConfig, raw.get("trial", {}), f"preset {name}: trial"))
    if trial["pool"] is None:  # so that its parts can be set, and a search is found by what it was
        del trial["pool"]
    return trial, raw.get("regimes", {})


def _preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _assignment(text: str) -> tuple[str, Any]:
    """`a.b=value` from the command line; the value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError("--set", f"must be dotted.path=value, is {text!r}")
    try:
        return path.strip(), read_value(value, path)
    except yaml.YAMLError as error:
        raise ConfigError("--set", f"{path}: not YAML ({error})") from None
