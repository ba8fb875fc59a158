"""A store in a folder that every process sees: a disk, or a network file system with locks."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.files import write_json
from workbench.settings import STAGES, ConfigError, digest
from workbench.store.stage import (
    CHECKPOINT,
    FACTS,
    DamagedFacts,
    Stage,
    StageBusy,
    damage_of,
    is_published,
    read_facts,
    write_facts,
)

BUILDS = "builds.jsonl"  # in a store's folder: a line for each build that has begun
LOCK_SECONDS = 0.5  # tried for; somebody may be looking whether the lock is free

Build = Callable[[Path], dict[str, Any]]  # writes a stage's files into a folder, returns facts of it
Errors = tuple[type[Exception], ...]


@dataclass(frozen=True)
class Entry:
    """A finished stage, or what is left of one that was set aside or given up."""

    name: str  # below the store: <kind>/<key>, or with an ending
    bytes: int
    used: float  # when it was finished or last asked for, as a Unix time
    facts: dict[str, Any] | None  # None: there is no `stage.json`, or not as it was written
    fault: str = ""  # what is wrong with it then

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def key(self) -> str:
        return self.name.split("/")[1].split(".")[0]

    @property
    def finished(self) -> bool:
        return "." not in self.name

    @property
    def unfinished(self) -> bool:
        """An attempt that was stopped, and can be gone on with."""
        return self.name.endswith(".work")


@dataclass(frozen=True, order=True)
class Reference:
    """A study, of the results in `root`, that needs a stage; others may run the same study elsewhere."""

    study: str
    root: str

    @property
    def file(self) -> str:
        return f"{self.study}-{digest(self.root)[:12]}.json"

    @property
    def content(self) -> dict[str, Any]:
        return {"study": self.study, "root": self.root}

    def name(self, root: str) -> str:
        """What it is called where one works on the results in `root`."""
        return self.study if self.root == root else f"{self.study}@{self.root}"


class Store:
    """Finished stages below `root`, safe for any number of processes that see the folder."""

    def __init__(self, root: Path | str, report: Callable[[str], None] = print) -> None:
        """`report` is told of damage."""
        self.root = Path(root)
        self.report = report

    @property
    def location(self) -> str:
        """What `open_store` opens it by, on any machine."""
        return str(self.root.resolve())

    # --- one stage ----------------------------------------------------------------------------------------

    def path(self, stage: Stage) -> Path:
        return self.root / stage.kind / stage.key

    def has(self, stage: Stage) -> bool:
        return (self.path(stage) / FACTS).exists()

    def is_sound(self, stage: Stage) -> bool:
        """Whether it is there as it was written."""
        return self.has(stage) and damage_of(self.fetch(stage)) is None

    def facts(self, stage: Stage) -> dict[str, Any]:
        """What `stage.json` says of a finished stage. Raises FileNotFoundError, DamagedFacts."""
        return read_facts(self._read(stage, FACTS), stage.kind, stage.key)

    def read(self, stage: Stage, name: str) -> bytes | None:
        """One file of a finished stage; None where it has none such, or another than was written."""
        try:
            checksum = self.facts(stage)["sha256"][name]
            content = self._read(stage, name)
        except (FileNotFoundError, KeyError, DamagedFacts):
            return None
        return content if hashlib.sha256(content).hexdigest() == checksum else None

    def _read(self, stage: Stage, name: str) -> bytes:
        return (self.path(stage) / name).read_bytes()

    def fetch(self, stage: Stage) -> Path:
        """The folder of a finished stage, on this machine."""
        with contextlib.suppress(OSError):  # a store that is read only still serves
            os.utime(self.path(stage) / FACTS)  # `gc` goes by when a stage was last of use
        return self.path(stage)

    def obtain(self, stage: Stage, build: Build, *, wait: bool = True, hopeless: Errors = ()) -> Path:
        """The folder of the finished stage; `build` is called if it is not there, or is damaged.

        `build(folder)` writes its files and returns facts for `stage.json`; of them `earlier_seconds` are
        its part of what was spent before a kill, and `shared_by` stages were built at once. The folder
        outlives a kill, so a checkpoint in it is found by the next attempt. Only one process builds a
        stage; another that asks for it waits, or has StageBusy raised with `wait=False`. After one of the
        errors `hopeless` of `build` the checkpoint would only lead there again, and the folder is removed.
        A damaged stage is set aside as `<key>.damaged-<time>`.
        """
        if self.is_sound(stage):  # no lock: it may lie where nothing can be written
            return self.path(stage)
        final = self.path(stage)
        with self._locked(f"{stage.kind}-{stage.key[:24]}", wait=wait):
            if final.exists():
                damage = damage_of(final)
                if damage is None:
                    return self.fetch(stage)
                aside = final.with_name(f"{final.name}.damaged-{time.time_ns()}")
                final.rename(aside)
                self.report(f"{final}: {damage}; set aside as {aside.name}, built again")
            work = self._attempt(stage, build, hopeless)
            self._finish(work, final)
            return final

    def work(self, stage: Stage) -> Path:
        """Where an unfinished attempt keeps its checkpoint."""
        return self.root / stage.kind / f"{stage.key}.work"

    def is_busy(self, stage: Stage) -> bool:
        """Whether a process is at this stage."""
        path = self._lock_file(f"{stage.kind}-{stage.key[:24]}")
        if not path.exists():
            return False
        try:
            with self._locked(path.name, wait=False, patience=0.0):
                return False
        except StageBusy:
            return True

    def _attempt(self, stage: Stage, build: Build, hopeless: Errors) -> Path:
        work = self.work(stage)
        if damage_of(work) is None:  # whole: a kill came before it was published
            return work
        work.mkdir(parents=True, exist_ok=True)
        self._note_begin(stage, work)
        try:
            self._build(stage, build, work)
        except hopeless:
            self._discard_work(stage)  # here, where nobody else can have begun anew
            raise
        return work

    def _note_begin(self, stage: Stage, work: Path) -> None:
        """A line of its own: that no stage was computed twice cannot be seen by folders, one for each key."""
        begin = {
            "kind": stage.kind,
            "key": stage.key,
            "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "resumed": (work / CHECKPOINT).exists(),
        }
        with (self.root / BUILDS).open("ab", buffering=0) as file:  # appended by one write each
            file.write(json.dumps(begin).encode() + b"\n")

    def _discard_work(self, stage: Stage) -> None:
        shutil.rmtree(self.work(stage), ignore_errors=True)

    def _build(self, stage: Stage, build: Build, work: Path) -> None:
        began, processing = time.monotonic(), time.process_time()
        facts = dict(build(work))
        earlier, shared_by = facts.pop("earlier_seconds", 0.0), facts.pop("shared_by", 1)
        if not earlier:  # else it was another process that spent the rest
            facts["cpu_seconds"] = round((time.process_time() - processing) / shared_by, 3)
        write_facts(work, stage, facts, (time.monotonic() - began) / shared_by + earlier)

    def _finish(self, work: Path, final: Path) -> None:
        """The checkpoint goes last of all: a kill while checksums are taken must not cost the training."""
        for path in list(work.iterdir()):
            if not is_published(path):
                path.unlink()
        work.rename(final)

    def _lock_file(self, name: str) -> Path:
        return self.root / "locks" / name

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool, patience: float = LOCK_SECONDS) -> Iterator[None]:
        """Held by one process at a time, and let go by the kernel if that process dies."""
        path = self._lock_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise StageBusy(f"another process is at {name}") from None
                    time.sleep(0.05)
            yield

    # --- all of them --------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every finished stage, and every folder set aside or given up, by kind in the order of stages."""
        folders = [f for kind in STAGES for f in sorted((self.root / kind).glob("*")) if f.is_dir()]
        return [entry for folder in folders if (entry := self._entry(folder)) is not None]

    def find(self, beginning: str) -> Entry:
        """The finished stage whose key begins so. Raises ConfigError when there is none, or several."""
        found = [entry for entry in self.entries() if entry.key.startswith(beginning) and entry.finished]
        if len(found) != 1:
            what = "no stage begins" if not found else f"{len(found)} stages begin"
            raise ConfigError(beginning, f"{what} with this id; python -m workbench.store ls shows them")
        return found[0]

    def _entry(self, folder: Path) -> Entry | None:
        """None: it is gone meanwhile, published or deleted by another process."""
        known = [_status(path) for path in (folder, *folder.rglob("*"))]
        there = [status for status in known if status is not None]
        if known[0] is None:
            return None
        return entry_of(
            f"{folder.parent.name}/{folder.name}",
            sum(status.st_size for status in there if not stat.S_ISDIR(status.st_mode)),
            max(status.st_mtime for status in there),
            lambda: (folder / FACTS).read_bytes(),
        )

    def damage(self, entry: Entry) -> str | None:
        """What is wrong with a finished stage, by its id and its checksums; None: nothing."""
        return damage_of(self.root / entry.name)

    def remove(self, entry: Entry, may_go: Callable[[], bool] = lambda: True) -> bool:
        """Delete it if it still may go, which is asked while no process can be at it; whether it is gone.

        Raises StageBusy while one is.
        """
        folder = self.root / entry.name
        with self._locked(f"{entry.kind}-{entry.key[:24]}", wait=False):
            if not may_go():
                return False
            doomed = folder.with_name(f"{entry.key}.removed")  # never a stage with half its files
            with contextlib.suppress(FileNotFoundError):  # gone already
                folder.rename(doomed)
                shutil.rmtree(doomed)
        return True

    def builds(self) -> dict[str, int]:
        """Stage key -> how many builds of it have begun from nothing, and not from a checkpoint.

        Empty of a store at a URL, where nothing is noted.
        """
        path = self.root / BUILDS
        lines = path.read_text().splitlines() if path.exists() else []
        begins = [json.loads(line) for line in lines]
        return dict(Counter(begin["key"] for begin in begins if not begin["resumed"]))

    # --- who needs them -----------------------------------------------------------------------------------

    def refer(self, study: str, root: str, keys: Iterable[str]) -> None:
        """Enter that a study, of the results in `root`, needs these stages."""
        reference = Reference(study, root)
        path = self.root / "studies" / reference.file
        content = {**reference.content, "keys": sorted(keys)}
        try:
            is_entered = json.loads(path.read_bytes()) == content
        except (FileNotFoundError, ValueError):  # none, or one that cannot be read
            is_entered = False
        if not is_entered:
            write_json(path, content)

    def forget(self, reference: Reference) -> None:
        """What this study needs may go."""
        for path, content in self._references():
            if _read_reference(path, content)[0] == reference:
                self._remove_reference(path)

    def references(self) -> dict[str, set[Reference]]:
        """Stage key -> studies that need it. Raises ConfigError for a file that does not say."""
        needed: dict[str, set[Reference]] = {}
        for path, content in self._references():
            reference, keys = _read_reference(path, content)
            for key in keys:
                needed.setdefault(key, set()).add(reference)
        return needed

    def _references(self) -> Iterator[tuple[str, bytes]]:
        """Path and content of each file that says what a study needs; older ones have other names."""
        for path in sorted((self.root / "studies").glob("*.json")):
            yield str(path), path.read_bytes()

    def _remove_reference(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)


def entry_of(name: str, num_bytes: int, used: float, read: Callable[[], bytes]) -> Entry:
    """Of the folder of that name; `read` gives the content of its `stage.json`."""
    entry = Entry(name, num_bytes, used, None)
    try:
        return replace(entry, facts=read_facts(read(), entry.kind, entry.key))
    except DamagedFacts as error:
        return replace(entry, fault=str(error))
    except OSError:
        return replace(entry, fault=f"{FACTS} cannot be read")


def _read_reference(path: str, content: bytes) -> tuple[Reference, list[str]]:
    """A study, and the keys of the stages that it needs."""
    try:
        said = json.loads(content)
        texts = [said["study"], said["root"], *said["keys"]]
        if not isinstance(said["keys"], list) or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            path,
            "must say which stages a study needs (study, root, keys), and does not; the study's command "
            "writes it anew, and if it is deleted, nothing is kept for the study",
        ) from None
    return Reference(said["study"], said["root"]), said["keys"]


def _status(path: Path) -> os.stat_result | None:
    """None where there is none any more: somebody may be at what is looked at."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
