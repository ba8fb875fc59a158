"""Settings as frozen dataclasses: strictly from dictionaries, and back; what is part of their identity.

Standard library only. A field marked `placement()` says where things are or how fast they go, and cannot
change a result; it takes no part in `identity`. One marked `heard_from(stage, ...)` cannot change what an
earlier stage computes.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar


class ConfigError(ValueError):
    """A setting that cannot be used: `path` is its dotted path, the message says rule, value and remedy."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message

    def below(self, parent: str) -> ConfigError:
        """The same error seen from one level further out."""
        return ConfigError(f"{parent}.{self.path}" if self.path else parent, self.message)

    def __reduce__(self) -> Any:
        """From a process that measures to the one that tells."""
        return ConfigError, (self.path, self.message)


def require(holds: bool, path: str, message: str) -> None:
    """Raises ConfigError unless `holds`."""
    if not holds:
        raise ConfigError(path, message)


def positive(settings: Any, *names: str) -> None:
    """Requires these fields to exceed 0."""
    for name in names:
        value = getattr(settings, name)
        require(value > 0, name, f"must be greater than 0, is {value}")


def fraction(settings: Any, *names: str, zero: bool = True, one: bool = False) -> None:
    """Requires these fields to lie between 0 and 1, the ends included as said."""
    for name in names:
        value = getattr(settings, name)
        low = value >= 0 if zero else value > 0
        high = value <= 1 if one else value < 1
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        require(low and high, name, f"must lie in {interval}, is {value}")


def placement(default: Any) -> Any:
    """A field that cannot change a result and stays out of `identity`."""
    return field(default=default, metadata={"identity": False})


STAGES = ("pretrain", "finetune", "evaluate")  # in the order in which they run

StageKind = Literal["pretrain", "finetune", "evaluate"]
TrainingKind = Literal["pretrain", "finetune"]


def heard_from(stage: StageKind, default: Any) -> Any:
    """A field of a data config that cannot change what the stages before `stage` compute."""
    return field(default=default, metadata={"heard_from": stage})


T = TypeVar("T")


def to_dict(settings: Any) -> Any:
    """Nested dictionaries and lists, ready for JSON or YAML."""
    if dataclasses.is_dataclass(settings):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, tuple | list):
        return [to_dict(item) for item in settings]
    if isinstance(settings, Mapping):
        return {key: to_dict(value) for key, value in settings.items()}
    return settings


def identity(settings: Any, of: StageKind = "evaluate") -> Any:
    """`to_dict` without the fields that cannot change what stage `of` computes."""
    if dataclasses.is_dataclass(settings):
        return {
            f.name: identity(getattr(settings, f.name), of)
            for f in dataclasses.fields(settings)
            if f.metadata.get("identity", True)
            and STAGES.index(f.metadata.get("heard_from", "pretrain")) <= STAGES.index(of)
        }
    return to_dict(settings)


def digest(content: Any) -> str:
    """SHA-256, in hexadecimal, of any JSON content; the same for the same content everywhere."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def from_dict(cls: type[T], raw: Any, path: str = "") -> T:
    """`raw` as an instance of the dataclass `cls`, strictly.

    Raises ConfigError, with the dotted path, for an unknown key (naming the valid ones), a value of
    another type, and whatever the types themselves refuse.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(path, f"must be a mapping of settings, is {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(_join(path, str(key)), f"unknown key; {hint}valid: {', '.join(fields)}")
    for name, f in fields.items():
        missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if missing and name not in raw:
            raise ConfigError(_join(path, name), "is required")
    values = {key: _convert(hints[key], value, _join(path, key)) for key, value in raw.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise (error.below(path) if path else error) from None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, path)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise ConfigError(path, f"must be one of {', '.join(map(str, arguments))}, is {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"must be a mapping, is {value!r}")
        return {str(k): _convert(arguments[1], v, _join(path, str(k))) for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(path, f"must be {_NAMES.get(kind, str(kind))}, is {value!r}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(path, f"must be finite, is {value}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, path)
    if not all(dataclasses.is_dataclass(option) for option in options):
        for option in options:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
        raise ConfigError(path, f"is {value!r}, which none of the accepted types takes")
    by_kind = {_kind(option): option for option in options}
    if not isinstance(value, Mapping) or str(value.get("kind")) not in by_kind:
        found = repr(value.get("kind")) if isinstance(value, Mapping) else repr(value)
        where = _join(path, "kind") if isinstance(value, Mapping) else path
        raise ConfigError(where, f"must name one of {', '.join(by_kind)}, is {found}")
    return from_dict(by_kind[value["kind"]], value, path)


def _kind(cls: Any) -> str:
    return str(typing.get_args(typing.get_type_hints(cls)["kind"])[0])


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(path, f"must be a list, is {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(path, f"must hold {len(arguments)} values, holds {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))
