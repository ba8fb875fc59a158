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
CHECKSUM = "facts_sha256"  # in `stage.json`: of all else that it says
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


class DamagedFacts(ValueError):
    """A `stage.json` that does not say what was written of its stage; the message says what is wrong."""


def is_published(path: Path) -> bool:
    """Whether a file of a working folder belongs to the stage, and not to the attempt alone."""
    return path.name != CHECKPOINT and path.suffix != ".tmp"  # the latter of a kill while writing


def write_facts(folder: Path, stage: Stage, facts: dict[str, Any], seconds: float) -> None:
    """`stage.json` of a finished stage: what it is, with checksums of that and of every file beside it."""
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
    write_json(folder / FACTS, with_checksum(content))


def with_checksum(facts: dict[str, Any]) -> dict[str, Any]:
    """What `stage.json` says, with its checksum."""
    return {**facts, CHECKSUM: _sha256_of_facts(facts)}


def read_facts(content: bytes, kind: str, key: str) -> dict[str, Any]:
    """The content of the `stage.json` of this stage. Raises DamagedFacts unless it is what was written."""
    try:
        facts = json.loads(content)
    except ValueError:
        raise DamagedFacts(f"{FACTS} cannot be read") from None
    if not isinstance(facts, dict) or CHECKSUM not in facts:
        raise DamagedFacts(f"{FACTS} has no checksum of what it says")
    if facts[CHECKSUM] != _sha256_of_facts(facts):
        raise DamagedFacts(f"{FACTS} is not what was written")
    stage = Stage(facts["kind"], facts["version"], facts["settings"], tuple(facts["parents"]))
    if (stage.kind, stage.key) != (kind, key):
        raise DamagedFacts(f"{FACTS} is of another stage, {stage.kind}/{stage.key}")
    return facts


def damage_of(folder: Path) -> str | None:
    """What is wrong with a finished stage's folder, `<kind>/<key>` with any ending, or None."""
    try:
        facts = read_facts((folder / FACTS).read_bytes(), folder.parent.name, folder.name.split(".")[0])
    except DamagedFacts as error:
        return str(error)
    except OSError:
        return f"{FACTS} cannot be read"
    for name, checksum in facts["sha256"].items():
        try:
            if _sha256(folder / name) != checksum:
                return f"{name} is not what was written"
        except (FileNotFoundError, IsADirectoryError):  # or `gc` has come in between
            return f"{name} is missing"
    return None


def _sha256_of_facts(facts: dict[str, Any]) -> str:
    said = {name: value for name, value in facts.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()  # metrics may be NaN


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
