"""The embedded corpus: `synthesis` says what a clip is, this keeps them on disk.

Clips are kept in files of `CLIPS_PER_FILE`, by recipe and part (pool, labelled, validation, test). A larger
part only adds files, and a clip never depends on how many there are. Each file, its labels and the checksums
of both are made together: where one of the three is missing, all are made.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import numpy as np

from workbench.child_processes import spawned_pool
from workbench.config import SAMPLE_RATE
from workbench.data import synthesis
from workbench.data.clips import ClipSet, DataError, Extent, Splits, labelled_subset
from workbench.data.disk import npy, publish, writing
from workbench.data.exclusive import exclusive
from workbench.data.labels import Labels
from workbench.data.prepared import sha256
from workbench.data_config import CorpusData
from workbench.random_streams import numpy_stream

CLIPS_PER_FILE = 128
FEW_FILES = 4  # fewer are made in this process: another one costs more

Job = tuple[synthesis.Recipe, Path, str, int]  # a file: folder, part, number
Run = Callable[[Callable[[Job], None], list[Job]], Iterable[None]]  # `map`, in whatever processes


def fingerprint(config: CorpusData) -> str:
    """That of the recipe and its version: clips follow from it."""
    return synthesis.fingerprint(_recipe(config))


def load(
    config: CorpusData, root: Path, seed: int, report: Callable[[str], None], fingerprint: str
) -> Splits:
    pool, labelled, validation, test = load_parts(_recipe(config), _parts(config), root, report)
    return Splits(
        pool=pool.unlabelled(),
        train=labelled_subset(labelled, config.label_fraction, numpy_stream(seed, "labels")),
        validation=validation,
        test=test,
        classes=synthesis.CLASSES,
        single_label=False,
        fingerprint=fingerprint,
    )


def check(config: CorpusData, root: Path, report: Callable[[str], None]) -> None:
    """Remove what is not as it was written: `load` makes it again."""
    check_parts(_recipe(config), _parts(config), root, report)


def extent(config: CorpusData, root: Path, fingerprint: str) -> Extent:
    recipe = _recipe(config)
    missing = num_missing_clips(recipe, _parts(config), root)
    return Extent(
        pool_clips=config.pool_clips,
        pool_lengths=((config.clip_seconds, 1.0),),
        validation_clips=config.validation_clips,
        test_clips=config.test_clips,
        evaluated_seconds=config.clip_seconds,
        num_classes=len(synthesis.CLASSES),
        unprepared_clips=missing,
        unprepared_bytes=missing * clip_bytes(recipe),
    )


def clip_bytes(recipe: synthesis.Recipe) -> int:
    return round(recipe.clip_seconds * SAMPLE_RATE) * 2 + len(synthesis.CLASSES)


def _parts(config: CorpusData) -> dict[str, int]:
    return {
        "pool": config.pool_clips,
        "labelled": config.labelled_clips,
        "validation": config.validation_clips,
        "test": config.test_clips,
    }


def num_missing_clips(recipe: synthesis.Recipe, parts: dict[str, int], root: Path) -> int:
    """Clips that `load_parts` would make."""
    folder, there = _folder(recipe, root), Counter[str]()
    for path in folder.glob("*-*.sha256"):  # what is there, for millions of files may be asked for
        part, number = path.stem.split("-")
        wanted = int(number) < _num_files(parts.get(part, 0))
        there[part] += wanted and _is_there(folder, part, int(number))
    return sum(_num_files(count) - there[part] for part, count in parts.items()) * CLIPS_PER_FILE


def _num_files(clips: int) -> int:
    return -(-clips // CLIPS_PER_FILE)


def check_parts(
    recipe: synthesis.Recipe, parts: dict[str, int], root: Path, report: Callable[[str], None]
) -> None:
    """Remove files of these parts that are not as they were written: `load_parts` makes them again.

    A gigabyte takes two seconds, and is read once in a process.
    """
    for _, folder, part, number in _jobs(recipe, parts, _folder(recipe, root)):
        if not _is_there(folder, part, number):
            continue
        with contextlib.suppress(FileNotFoundError):  # another study has removed it meanwhile
            expected = _checksum_file(folder, part, number).read_text(errors="replace").splitlines()
            for path in (_waveform_file(folder, part, number), _label_file(folder, part, number)):
                if _checksum(_sha256_once(path), path) not in expected:
                    report(f"{path}: is not as it was written, and is made again")
                    path.unlink()


def _sha256_once(path: Path) -> str:
    """The trials of a study share their files; one that was changed meanwhile is another file."""
    return _sha256_of(path, path.stat().st_ctime_ns)


@functools.cache
def _sha256_of(path: Path, changed: int) -> str:
    return sha256(path)


def load_parts(
    recipe: synthesis.Recipe, parts: dict[str, int], root: Path, report: Callable[[str], None]
) -> list[ClipSet]:
    """The first clips of each part, as many as `parts` says, made in parallel where they are missing."""
    folder = _folder(recipe, root)
    if missing := _missing(recipe, parts, folder):
        # Processes first: those of a script that is not guarded run it again, and would wait for the lock.
        with _makers(len(missing)) as run, exclusive(folder, wait=True), writing(folder):
            _make_missing(recipe, parts, folder, run, report)
    return [_open_part(folder, part, count) for part, count in parts.items()]


@contextlib.contextmanager
def _makers(num_files: int) -> Iterator[Run]:
    """What makes so many files."""
    workers = min(len(os.sched_getaffinity(0)), num_files)
    if workers == 1 or num_files < FEW_FILES:
        yield map
        return
    with spawned_pool(workers, threads=1) as pool:
        yield pool.map


def _make_missing(
    recipe: synthesis.Recipe, parts: dict[str, int], folder: Path, run: Run, report: Callable[[str], None]
) -> None:
    for left in folder.glob("*.tmp"):  # of a kill
        left.unlink(missing_ok=True)
    jobs = _missing(recipe, parts, folder)
    if not jobs:  # whoever was waited for has made them
        return
    report(f"embedded corpus: making {len(jobs) * CLIPS_PER_FILE} clips in {folder}, once")
    try:
        for done, _ in enumerate(run(_make_file, jobs), start=1):
            if len(jobs) >= FEW_FILES and done % max(1, len(jobs) // 5) == 0:
                report(f"embedded corpus: {done} of {len(jobs)} files")
    except BrokenProcessPool:
        raise DataError(
            f"embedded corpus: a process that makes it in {folder} died; memory may be short. "
            "The same command goes on"
        ) from None


def _folder(recipe: synthesis.Recipe, root: Path) -> Path:
    return root / f"corpus-{synthesis.fingerprint(recipe)[:16]}"


def _jobs(recipe: synthesis.Recipe, parts: dict[str, int], folder: Path) -> list[Job]:
    """A file each."""
    return [
        (recipe, folder, part, number) for part, count in parts.items() for number in range(_num_files(count))
    ]


def _missing(recipe: synthesis.Recipe, parts: dict[str, int], folder: Path) -> list[Job]:
    return [job for job in _jobs(recipe, parts, folder) if not _is_there(*job[1:])]


def _is_there(folder: Path, part: str, number: int) -> bool:
    files = (_waveform_file, _label_file, _checksum_file)
    return all(file(folder, part, number).exists() for file in files)


def _recipe(config: CorpusData) -> synthesis.Recipe:
    return synthesis.Recipe(
        clip_seconds=config.clip_seconds, max_events=config.max_events, seed=config.recipe_seed
    )


def _waveform_file(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:06d}.npy"


def _label_file(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:06d}.labels.npy"


def _checksum_file(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:06d}.sha256"


def _checksum(digest: str, path: Path) -> str:
    """A line of a checksum file: `sha256sum --check` reads it, too."""
    return f"{digest}  {path.name}"


def _make_file(job: Job) -> None:
    recipe, folder, part, number = job
    indices = range(number * CLIPS_PER_FILE, (number + 1) * CLIPS_PER_FILE)
    waveforms, labels = zip(*(synthesis.synthesise(recipe, part, i) for i in indices), strict=True)
    content = {
        _label_file(folder, part, number): npy(np.stack(labels)),
        _waveform_file(folder, part, number): npy(np.stack(waveforms)),
    }
    checksums = [_checksum(hashlib.sha256(array).hexdigest(), path) for path, array in content.items()]
    content[_checksum_file(folder, part, number)] = "".join(f"{line}\n" for line in checksums).encode()
    for path, written in content.items():
        publish(written, path)


def _open_part(folder: Path, part: str, count: int) -> ClipSet:
    numbers = range(_num_files(count))
    waveforms = [_load(_waveform_file(folder, part, n), mmap_mode="r") for n in numbers]
    labels = [_load(_label_file(folder, part, n)) for n in numbers]
    samples = waveforms[0].shape[1]
    index = np.arange(count)
    return ClipSet(
        sources=tuple(array.reshape(-1) for array in waveforms),
        source=index // CLIPS_PER_FILE,
        start=(index % CLIPS_PER_FILE) * samples,
        length=np.full(count, samples),
        labels=Labels.of_matrix(np.concatenate(labels)[:count]),
        names=np.array([f"{part}/{i}" for i in index]),
    )


def _load(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Raises DataError for a file that a copy, or a power cut, has left short."""
    try:
        return np.asanyarray(np.load(path, mmap_mode=mmap_mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: is damaged ({error}); delete it, and the same command makes it again"
        ) from error
