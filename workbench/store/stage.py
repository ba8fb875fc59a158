"""What a stage would compute, and its folder: `stage.json` beside the files that it vouches for."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.code_version import code_commit
from workbench.files import write_json
from workbench.settings import StageKind, digest

FACTS = "stage.json"
CHECKPOINT = "checkpoint.safetensors"  # in a stage's working folder; never published


@dataclass(frozen=True)
class Stage:
    """What a stage would compute."""

    kind: StageKind
    version: int  # raised when the same settings come to mean another result
    settings: Any  # JSON
    parents: tuple[str, ...] = ()  # keys of the stages it reads

    @functools.cached_property
    def key(self) -> str:
        return digest([self.kind, self.version, self.settings, list(self.parents)])

    def __hash__(self) -> int:
        return hash(self.key)


class StageBusy(RuntimeError):
    """Another process is at this stage."""


def is_published(path: Path) -> bool:
    """Whether a file of a working folder belongs to the stage, and not to the attempt alone."""
    return path.name != CHECKPOINT and path.suffix != ".tmp"  # the latter of a kill while writing


def write_facts(folder: Path, stage: Stage, facts: dict[str, Any], seconds: float) -> None:
    """`stage.json` of a finished stage: what it is, and checksums of every file that is published with it."""
    import torch

    files = [path for path in sorted(folder.iterdir()) if path.name != FACTS and is_published(path)]

    content = {
        "kind": stage.kind,
        "key": stage.key,
        "version": stage.version,
        "settings": stage.settings,
        "parents": list(stage.parents),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "commit": code_commit(),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
        **facts,
        "sha256": {path.name: _sha256(path) for path in files},
    }
    write_json(folder / FACTS, content)


def damage_of(folder: Path) -> str | None:
    """What is wrong with a finished stage's folder, or None."""
    try:
        expected = json.loads((folder / FACTS).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FACTS} cannot be read"
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != checksum:
            return f"{name} is not what was written"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
