"""Stages by content: what was trained before is found, not trained again.

A stage's key is a hash of all that can change its result: its settings, its version, its data's
fingerprint and its parents' keys. A finished stage is the folder `<root>/<kind>/<key>`, published by one
rename, with `stage.json` (settings, parents, seconds, checksums) beside its files.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.settings import digest

FACTS = "stage.json"
CHECKPOINT = "checkpoint.safetensors"  # in a stage's working folder; never published


@dataclass(frozen=True)
class Stage:
    """What a stage would compute."""

    kind: str  # "pretrain", "finetune"
    version: int  # raised when the same settings come to mean another result
    settings: Any  # JSON
    parents: tuple[str, ...] = ()  # keys of the stages it reads

    @property
    def key(self) -> str:
        return digest([self.kind, self.version, self.settings, list(self.parents)])


class Store:
    """Finished stages below `root`, safe for any number of processes of one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, stage: Stage) -> Path:
        return self.root / stage.kind / stage.key

    def has(self, stage: Stage) -> bool:
        return (self.path(stage) / FACTS).exists()

    def facts(self, stage: Stage) -> dict[str, Any]:
        """What `stage.json` says of a finished stage."""
        facts: dict[str, Any] = json.loads((self.path(stage) / FACTS).read_text())
        return facts

    def obtain(self, stage: Stage, build: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder of the finished stage; `build` is called if it is not there, or is damaged.

        `build(folder)` writes its files and returns facts for `stage.json`. The folder outlives a kill, so
        a checkpoint in it is found by the next attempt. Only one process builds a stage; others that ask
        for it wait. A damaged stage is set aside as `<key>.damaged-<time>`.
        """
        final = self.path(stage)
        with self._lock(stage):
            if final.exists():
                damage = _damage(final)
                if damage is None:
                    return final
                aside = final.with_name(f"{final.name}.damaged-{time.time_ns()}")
                final.rename(aside)
                print(f"{final}: {damage}; set aside as {aside.name}, built again", flush=True)
            work = final.with_name(f"{final.name}.work")
            work.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            facts = build(work)
            for leftover in (CHECKPOINT, f"{CHECKPOINT}.*.tmp"):  # the latter of a kill while saving
                for path in work.glob(leftover):
                    path.unlink()
            _write_facts(work, stage, facts, time.monotonic() - began)
            work.rename(final)
            return final

    @contextlib.contextmanager
    def _lock(self, stage: Stage) -> Iterator[None]:
        """Held by one process at a time, and let go by the kernel if that process dies."""
        path = self.root / "locks" / f"{stage.kind}-{stage.key[:24]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def discard_work(self, stage: Stage) -> None:
        """Forget an unfinished attempt, checkpoint and all."""
        shutil.rmtree(self.path(stage).with_name(f"{stage.key}.work"), ignore_errors=True)


def _write_facts(folder: Path, stage: Stage, facts: dict[str, Any], seconds: float) -> None:
    import torch

    content = {
        "kind": stage.kind,
        "key": stage.key,
        "version": stage.version,
        "settings": stage.settings,
        "parents": list(stage.parents),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),  # of the last attempt, where there were several
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
        **facts,
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    aside = folder / f"{FACTS}.tmp"
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / FACTS)


def _damage(folder: Path) -> str | None:
    """What is wrong with a finished stage, or None."""
    try:
        expected = json.loads((folder / FACTS).read_text())["sha256"]
    except (OSError, ValueError, KeyError):
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
