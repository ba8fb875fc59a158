"""A store at an fsspec URL, such as `s3://bucket/stages`: no locks and no renames, so leases and an order.

A stage is uploaded file by file, `stage.json` last: it is there when that is. Who builds a stage holds a
lease, a small file that is renewed while it works; one not renewed for a minute is of a process that died.
Files are worked on, and read, in a cache folder of each machine; checkpoints are uploaded beside the
renewals, so that another machine can go on from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from workbench.settings import STAGES, ConfigError, digest
from workbench.store.local import Build, Entry, Errors, Reference, Store, entry_of
from workbench.store.stage import (
    CHECKPOINT,
    FACTS,
    DamagedFacts,
    Stage,
    StageBusy,
    damage_of,
    is_published,
)

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0  # must exceed the difference of the machines' clocks by far
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Lease:
    """Who is at a stage. One that cannot be read, half written or cut off so, has no owner, and runs out."""

    owner: str
    renewed: float  # Unix time

    @property
    def is_stale(self) -> bool:
        return time.time() - self.renewed > LEASE_SECONDS


class RemoteStore(Store):
    """Finished stages at a URL that every machine reaches."""

    def __init__(
        self, location: str, report: Callable[[str], None] = print, cache: Path | None = None
    ) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        super().__init__(cache or home / "workbench" / digest(location)[:16], report)
        self._location = location.rstrip("/")
        try:
            files, self._base = fsspec.core.url_to_fs(self._location)
        except (ImportError, ValueError) as error:  # its package is not installed, or no such protocol
            raise ConfigError("store", f"{self._location} cannot be opened: {error}") from None
        self._files = _Files(files, self._location)
        self._known: set[str] = set()  # keys seen finished: asked for again and again by a ledger
        self._owned: dict[str, str] = {}  # leases -> as whom they were taken
        self._unreadable: dict[str, float] = {}  # leases -> since when, where the file system does not say

    @property
    def location(self) -> str:
        return self._location

    def _remote(self, *parts: str) -> str:
        return "/".join((self._base.rstrip("/"), *parts))

    # --- one stage ----------------------------------------------------------------------------------------

    def has(self, stage: Stage) -> bool:
        if stage.key not in self._known and self._exists(stage.kind, stage.key, FACTS):
            self._known.add(stage.key)
        return stage.key in self._known

    def is_sound(self, stage: Stage) -> bool:
        return self._exists(stage.kind, stage.key, FACTS) and self._damage(stage) is None

    def _damage(self, stage: Stage) -> str | None:
        """Of one that is there. What this machine has of it may be whole all the same."""
        try:
            self.facts(stage)
        except DamagedFacts as error:
            return str(error)
        return damage_of(self.fetch(stage))

    def _read(self, stage: Stage, name: str) -> bytes:
        """Alone: its weights are not wanted for its curves."""
        content: bytes = self._files.cat_file(self._remote(stage.kind, stage.key, name))
        return content

    def fetch(self, stage: Stage) -> Path:
        """The stage's folder in this machine's cache, downloaded if it is not there or damaged there."""
        final, aside = self.path(stage), self.root / stage.kind / f"{stage.key}.download"
        # By one process of this machine: another may be reading what is there by then.
        with self._locked(f"fetch-{stage.key[:24]}", wait=True):
            if damage_of(final) is None:
                return final
            shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
            aside.mkdir(parents=True)
            for path in self._files.ls(self._remote(stage.kind, stage.key), detail=False):
                self._files.get_file(path, str(aside / Path(path).name))
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
        return final

    def obtain(self, stage: Stage, build: Build, *, wait: bool = True, hopeless: Errors = ()) -> Path:
        if self.is_sound(stage):
            return self.path(stage)
        name = f"{stage.kind}-{stage.key[:24]}"
        with self._locked(name, wait=wait), self._leased(name, wait=wait):
            if self._exists(stage.kind, stage.key, FACTS):
                damage = self._damage(stage)
                if damage is None:
                    return self.path(stage)
                self._set_aside(stage, damage)
            work = self._attempt(stage, build, hopeless)
            if self.is_sound(stage):  # published by another, while this process was suspended
                self._discard_work(stage)
                return self.path(stage)
            self._publish(stage, work)
            final = self.path(stage)
            shutil.rmtree(final, ignore_errors=True)
            self._finish(work, final)
            return final

    def is_busy(self, stage: Stage) -> bool:
        return self._is_leased(f"{stage.kind}-{stage.key[:24]}")

    def _note_begin(self, stage: Stage, work: Path) -> None:
        """Nothing: files at a URL cannot be appended to."""

    def _build(self, stage: Stage, build: Build, work: Path) -> None:
        self._pull_checkpoint(stage)
        upload = self._uploads(stage)
        try:
            with _meanwhile(upload):
                super()._build(stage, build, work)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to hear of
                upload()  # what was saved as it stopped: another machine may go on
            raise

    def _discard_work(self, stage: Stage) -> None:
        super()._discard_work(stage)
        self._remove_folder(stage.kind, f"{stage.key}.work")

    def _set_aside(self, stage: Stage, damage: str) -> None:
        self._known.discard(stage.key)
        aside = f"{stage.key}.damaged-{time.time_ns()}"
        source = self._remote(stage.kind, stage.key)
        self._files.mv(source, self._remote(stage.kind, aside), recursive=True)
        shutil.rmtree(self.path(stage), ignore_errors=True)
        self.report(f"{source}: {damage}; set aside as {aside}, built again")

    def _publish(self, stage: Stage, work: Path) -> None:
        """From the working folder: an attempt whose upload fails still has its checkpoint."""
        target = self._remote(stage.kind, stage.key)
        self._files.makedirs(target, exist_ok=True)
        for path in sorted(filter(is_published, work.iterdir()), key=lambda path: path.name == FACTS):
            self._files.put_file(str(path), f"{target}/{path.name}")
        self._remove_folder(stage.kind, f"{stage.key}.work")

    def _exists(self, *parts: str) -> bool:
        self._files.invalidate_cache()
        return bool(self._files.exists(self._remote(*parts)))

    def _remove_folder(self, *parts: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._remote(*parts), recursive=True)

    # --- leases -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _leased(self, name: str, *, wait: bool) -> Iterator[None]:
        owner = uuid.uuid4().hex
        self._files.makedirs(self._remote("locks"), exist_ok=True)
        while not self._take_lease(name, owner):
            if not wait:
                raise StageBusy(f"another process is at {name}")
            time.sleep(POLL_SECONDS)
        self._owned[name] = owner
        try:
            with _meanwhile(lambda: self._renew(name, owner)):
                yield
        finally:
            del self._owned[name]
            self._release(name, owner)

    def _take_lease(self, name: str, owner: str) -> bool:
        try:
            with self._files.open(self._remote("locks", name), "xb") as file:
                file.write(_content(owner))
            return True
        except FileExistsError:
            lease = self._read_lease(name)
            if lease is None:  # let go just now; asked for again, it is there for one alone
                return False
        except (ValueError, NotImplementedError):  # a file system without exclusive creation
            lease = self._read_lease(name)
        if lease is not None and not lease.is_stale:
            return False
        # Of those who write at once, the last is the owner.
        self._files.pipe_file(self._remote("locks", name), _content(owner))
        time.sleep(POLL_SECONDS)
        lease = self._read_lease(name)
        return lease is not None and lease.owner == owner

    def _is_leased(self, name: str) -> bool:
        lease = self._read_lease(name)
        return lease is not None and not lease.is_stale

    def _read_lease(self, name: str) -> Lease | None:
        self._files.invalidate_cache()
        try:
            said = json.loads(self._files.cat_file(self._remote("locks", name)))
            lease = Lease(said["owner"], float(said["renewed"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return self._unreadable_lease(name)
        self._unreadable.pop(name, None)
        return lease

    def _unreadable_lease(self, name: str) -> Lease | None:
        try:
            written = _modified(self._files.info(self._remote("locks", name)))
        except FileNotFoundError:
            return None
        return Lease("", written or self._unreadable.setdefault(name, time.time()))

    def _renew(self, name: str, owner: str) -> None:
        """Unless it ran out, this process being suspended, and another has taken it."""
        lease = self._read_lease(name)
        if lease is None:
            self._take_lease(name, owner)
        elif lease.owner in (owner, ""):
            self._files.pipe_file(self._remote("locks", name), _content(owner))

    def _is_lost(self, name: str) -> bool:
        """Whether another is at what this process holds a lease of."""
        lease = self._read_lease(name)
        return lease is not None and lease.owner not in (self._owned.get(name), "")

    def _release(self, name: str, owner: str) -> None:
        lease = self._read_lease(name)
        if lease is not None and lease.owner == owner:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._remote("locks", name))

    # --- checkpoints --------------------------------------------------------------------------------------

    def _uploads(self, stage: Stage) -> Callable[[], None]:
        """What uploads the stage's checkpoint, if there is a newer one each time that it is called."""
        uploaded = 0.0

        def upload() -> None:
            nonlocal uploaded
            uploaded = self._push_checkpoint(stage, uploaded)

        return upload

    def _push_checkpoint(self, stage: Stage, uploaded: float) -> float:
        path = self.work(stage) / CHECKPOINT
        try:
            written = path.stat().st_mtime
            if written > uploaded and not self._is_lost(f"{stage.kind}-{stage.key[:24]}"):
                target = self._remote(stage.kind, f"{stage.key}.work")
                self._files.makedirs(target, exist_ok=True)
                self._files.put_file(str(path), f"{target}/{CHECKPOINT}.part")
                self._files.mv(f"{target}/{CHECKPOINT}.part", f"{target}/{CHECKPOINT}")
            return written
        except FileNotFoundError:  # none yet, or the stage has just been finished
            return uploaded

    def _pull_checkpoint(self, stage: Stage) -> None:
        """What an earlier attempt, on whatever machine, uploaded last, unless this machine's is newer."""
        path = self.work(stage) / CHECKPOINT
        source = self._remote(stage.kind, f"{stage.key}.work", CHECKPOINT)
        if not self._exists(stage.kind, f"{stage.key}.work", CHECKPOINT):
            return
        if not path.exists() or path.stat().st_mtime < _modified(self._files.info(source)):
            aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            self._files.get_file(source, str(aside))
            aside.replace(path)

    # --- all of them --------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        self._files.invalidate_cache()
        found = []
        for kind in STAGES:
            if not self._files.exists(self._remote(kind)):
                continue
            for folder in sorted(self._files.ls(self._remote(kind), detail=False)):
                found.append(self._remote_entry(kind, folder))
        return found

    def _remote_entry(self, kind: str, folder: str) -> Entry:
        name = folder.rstrip("/").rsplit("/", 1)[-1]
        files = self._files.find(folder, detail=True)
        return entry_of(
            f"{kind}/{name}",
            sum(int(info.get("size") or 0) for info in files.values()),
            max((_modified(info) for info in files.values()), default=0.0),
            lambda: self._files.cat_file(f"{folder}/{FACTS}"),
        )

    def damage(self, entry: Entry) -> str | None:
        folder = self.root / "verified" / entry.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in self._files.ls(self._remote(*entry.name.split("/")), detail=False):
            self._files.get_file(path, str(folder / Path(path).name))
        damage = damage_of(folder)
        shutil.rmtree(folder)
        return damage

    def remove(self, entry: Entry, may_go: Callable[[], bool] = lambda: True) -> bool:
        with self._leased(f"{entry.kind}-{entry.key[:24]}", wait=False):
            if not may_go():
                return False
            with contextlib.suppress(FileNotFoundError):  # first: without it, the stage is not there
                self._files.rm_file(self._remote(*entry.name.split("/"), FACTS))
            self._remove_folder(*entry.name.split("/"))
            shutil.rmtree(self.root / entry.name, ignore_errors=True)
        return True

    # --- who needs them -----------------------------------------------------------------------------------

    def refer(self, study: str, root: str, keys: Iterable[str]) -> None:
        self._files.makedirs(self._remote("studies"), exist_ok=True)
        reference = Reference(study, root)
        content = json.dumps({**reference.content, "keys": sorted(keys)})
        self._files.pipe_file(self._remote("studies", reference.file), content.encode())

    def _references(self) -> Iterator[tuple[str, bytes]]:
        self._files.invalidate_cache()
        if self._files.exists(self._remote("studies")):
            for path in self._files.ls(self._remote("studies"), detail=False):
                yield path, self._files.cat_file(path)

    def _remove_reference(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)


class _Files:
    """An fsspec file system whose errors are OSError: object stores have errors of their own."""

    def __init__(self, files: Any, location: str) -> None:
        self._files, self._location = files, location

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._files, name)

        def told(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except (OSError, ValueError, NotImplementedError):
                raise
            except Exception as error:
                raise OSError(f"{self._location}: {type(error).__name__}: {error}") from error

        return told


@contextlib.contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """`act` again and again, in a thread of its own: a lease must not run out while a checkpoint is uploaded.

    At the end it waits for an `act` under way, which may otherwise undo what is done next.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # a store that is away for a moment
                act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _content(owner: str) -> bytes:
    """Of a lease that is renewed now."""
    return json.dumps({"owner": owner, "renewed": time.time()}).encode()


def _modified(info: dict[str, Any]) -> float:
    """Of a file, as a Unix time: file systems name it differently."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if value is not None:
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    return 0.0
