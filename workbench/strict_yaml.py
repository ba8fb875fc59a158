"""YAML read safely and strictly: numbers as people write them, keys once, nothing but JSON's types."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from workbench.settings import ConfigError


def read_value(text: str, path: str) -> Any:
    """One value, such as a command line's. Raises ConfigError, yaml.YAMLError."""
    return _json(yaml.load(text, Loader=_Loader), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ConfigError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError("", f"is not there; studies are {_listed(path.parent)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("", f"cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError("", f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError("", f"must hold a mapping of settings, holds {content!r}")
    _json(content, "")
    return content


def _json(value: Any, path: str) -> Any:
    """`value`, if it is made of numbers, text, lists and mappings. Raises ConfigError."""
    if isinstance(value, dict):
        for key, item in value.items():
            _json(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _json(item, f"{path}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(path, f"must be finite, is {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise ConfigError(path, f"must be a number or text, is {value!r}")
    return value


def _listed(folder: Path) -> str:
    return ", ".join(map(str, sorted(folder.glob("*.yaml")))) or f"not in {folder} either"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-6 is a number (YAML 1.1 wants 2.0e-6) and a key stands once."""


# YAML 1.1 takes 010 for 8, 1:30 for 90, and 2024-02-30 for a date that is none: here they are text.
_NOT_AS_WRITTEN = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_AS_WRITTEN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping_once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError("", f"keys are text, and line {line} has {key_node.value!r} as one")
        if key in seen:
            raise ConfigError(str(key), f"stands twice in one mapping, again on line {line}")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)
