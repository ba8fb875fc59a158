"""Folders in the layout of ESC-50 (Piczak 2015): `meta/esc50.csv` and `audio/`.

Decoded once to 16 kHz mono int16, one flat file and an index; memory-mapped afterwards. The published folds
keep all takes of one source recording together.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from workbench.audio.decode import UnreadableAudio, decode
from workbench.config import SAMPLE_RATE, Esc50Data
from workbench.data import corpus, synthesis
from workbench.data.clips import ClipSet, DataError, Extent, Splits, labelled_subset
from workbench.data.labels import Labels
from workbench.random_streams import numpy_stream
from workbench.settings import digest

NUM_FOLDS = 5
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")
DECODING_VERSION = 1  # raised when the same file would decode to other samples
ABSENT = "is not there"


def fingerprint(config: Esc50Data) -> str:
    """That of the rows and the bytes of their files, and of the embedded corpus that joins the pool."""
    files = digest([DECODING_VERSION, _content(config, _rows(config))])
    return f"{files}+{synthesis.fingerprint(_recipe(config))[:16]}" if config.corpus_clips else files


def load(config: Esc50Data, root: Path, seed: int, report: Callable[[str], None], fingerprint: str) -> Splits:
    folder = _folder(root, fingerprint)
    if not folder.exists():
        rows = _rows(config)
        report(f"{config.root}: decoding {len(rows)} recordings to {folder}, once")
        _prepare(config, rows, folder)
    index = json.loads((folder / "index.json").read_text())
    if index["unreadable"] and not config.skip_unreadable:
        raise DataError(_unreadable(config, index["unreadable"]))
    if not index["clips"]:
        raise DataError(f"{config.root}: not one of its recordings can be read")
    clips = _open(folder, index["clips"])
    folds = np.array([clip["fold"] for clip in index["clips"]])
    validation_fold = _validation_fold(config)
    train = clips.take(np.flatnonzero((folds != config.test_fold) & (folds != validation_fold)))
    pool = train.unlabelled()
    if config.corpus_clips:
        parts = {"pool": config.corpus_clips}
        pool = pool + corpus.load_parts(_recipe(config), parts, root, report)[0].unlabelled()
    return Splits(
        pool=pool,
        train=labelled_subset(train, config.label_fraction, numpy_stream(seed, "labels")),
        validation=clips.take(np.flatnonzero(folds == validation_fold)),
        test=clips.take(np.flatnonzero(folds == config.test_fold)),
        classes=_classes(index["clips"]),
        single_label=True,
        fingerprint=fingerprint,
        left_out=tuple(index["unreadable"]),
    )


def extent(config: Esc50Data, root: Path, fingerprint: str) -> Extent:
    rows = _rows(config)
    per_fold = Counter(int(row["fold"]) for row in rows)
    validation, test = per_fold[_validation_fold(config)], per_fold[config.test_fold]
    recordings = len(rows) - validation - test
    seconds = _mean_seconds(config, rows)
    clips = 0 if _folder(root, fingerprint).exists() else len(rows)
    unprepared = round(clips * seconds * SAMPLE_RATE * 2)
    lengths = [(min(seconds, config.clip_seconds), float(recordings))]
    if config.corpus_clips:
        recipe, parts = _recipe(config), {"pool": config.corpus_clips}
        missing = corpus.num_missing_clips(recipe, parts, root)
        clips += missing
        unprepared += missing * corpus.clip_bytes(recipe)
        lengths.append((min(config.corpus_clip_seconds, config.clip_seconds), float(config.corpus_clips)))
    return Extent(
        pool_clips=recordings + config.corpus_clips,
        pool_lengths=tuple((length, count / (recordings + config.corpus_clips)) for length, count in lengths),
        validation_clips=validation,
        test_clips=test,
        evaluated_seconds=seconds,
        num_classes=len({row["target"] for row in rows}),
        unprepared_clips=clips,
        unprepared_bytes=unprepared,
    )


def _mean_seconds(config: Esc50Data, rows: list[dict[str, str]]) -> float:
    """Of some recordings, by their headers; those that have none to read are not counted."""
    seconds = []
    for row in rows[:: max(1, len(rows) // 20)]:
        with contextlib.suppress(soundfile.LibsndfileError):
            seconds.append(soundfile.info(str(_audio_file(config, row))).duration)
    return round(sum(seconds) / len(seconds), 1) if any(seconds) else config.clip_seconds


def _folder(root: Path, fingerprint: str) -> Path:
    return root / f"esc50-{fingerprint[:16]}"


def _validation_fold(config: Esc50Data) -> int:
    return config.test_fold % NUM_FOLDS + 1


def _recipe(config: Esc50Data) -> synthesis.Recipe:
    return synthesis.Recipe(clip_seconds=config.corpus_clip_seconds)


def _table(config: Esc50Data) -> Path:
    return Path(config.root) / "meta" / "esc50.csv"


def _rows(config: Esc50Data) -> list[dict[str, str]]:
    """The rows of the table, checked, by file name; DataError names the file and the line."""
    table = _table(config)
    if not table.is_file():
        raise DataError(
            f"{table}: not there. data.root must be a folder with meta/esc50.csv and audio/, is "
            f"{config.root!r} (seen from {Path.cwd()}); give yours with --set data.root=FOLDER"
        )
    rows = []
    line_of: dict[str, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: has no column {', '.join(missing)}; needs {', '.join(COLUMNS)}")
            for row in reader:
                line, name = reader.line_num, row["filename"]
                _check_row(table, line, row)
                if line_of.setdefault(name, line) != line:
                    raise DataError(f"{table}, line {line}: {name} is in line {line_of[name]} too")
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no table of comma-separated UTF-8 text ({error})") from None
    if config.subset == "esc10":
        rows = [row for row in rows if row["esc10"] == "True"]
    if not rows:
        raise DataError(f"{table}: has no rows of {config.subset}")
    _check_folds(table, rows)
    return sorted(rows, key=lambda row: row["filename"])


def _check_row(table: Path, line: int, row: dict[str, str]) -> None:
    absent = [name for name in COLUMNS if row[name] is None]
    if absent:
        raise DataError(f"{table}, line {line}: has no {absent[0]}; is the line cut short?")
    if row["fold"] not in {str(fold) for fold in range(1, NUM_FOLDS + 1)}:
        raise DataError(f"{table}, line {line}: fold must be 1 to {NUM_FOLDS}, is {row['fold']!r}")
    if not row["target"].isdecimal():
        raise DataError(f"{table}, line {line}: target must be a class number, is {row['target']!r}")
    name = row["filename"]
    if not name or Path(name).name != name or name in {".", ".."}:
        raise DataError(f"{table}, line {line}: filename must be a name inside audio/, is {name!r}")


def _check_folds(table: Path, rows: Iterable[dict[str, str]]) -> None:
    fold_of: dict[str, str] = {}
    for row in rows:
        fold = fold_of.setdefault(row["src_file"], row["fold"])
        if fold != row["fold"]:
            raise DataError(
                f"{table}: takes of source recording {row['src_file']} are in folds {fold} and "
                f"{row['fold']}; all must be in one, or training hears what the test asks"
            )


def _audio_file(config: Esc50Data, row: dict[str, str]) -> Path:
    return Path(config.root) / "audio" / row["filename"]


def _content(config: Esc50Data, rows: list[dict[str, str]]) -> list[list[str]]:
    """Each row's labels and the hash of its file."""
    content = []
    for row in rows:
        path = _audio_file(config, row)
        bytes_hash = _sha256(path, path.stat().st_mtime_ns) if path.is_file() else ABSENT
        content.append([*(row[name] for name in COLUMNS), bytes_hash])
    return content


@functools.cache
def _sha256(path: Path, modified: int) -> str:
    """Of a file as it was at that time: the folds of a study share their files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepare(config: Esc50Data, rows: list[dict[str, str]], folder: Path) -> None:
    """Decode every file; publish samples and index by one rename."""

    def attempt(row: dict[str, str]) -> np.ndarray | UnreadableAudio:
        path = _audio_file(config, row)
        try:
            return decode(path) if path.is_file() else UnreadableAudio(ABSENT)
        except UnreadableAudio as error:
            return error

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    clips, unreadable, start = [], {}, 0
    try:
        with ThreadPoolExecutor() as pool, (aside / "samples.int16").open("wb") as file:
            for row, samples in zip(rows, pool.map(attempt, rows), strict=True):
                if isinstance(samples, UnreadableAudio):
                    unreadable[row["filename"]] = str(samples)
                    continue
                samples.astype("<i2").tofile(file)
                clips.append(
                    {
                        "file": row["filename"],
                        "recording": row["src_file"],
                        "fold": int(row["fold"]),
                        "target": int(row["target"]),
                        "category": row["category"],
                        "start": start,
                        "length": len(samples),
                    }
                )
                start += len(samples)
        (aside / "index.json").write_text(json.dumps({"clips": clips, "unreadable": unreadable}))
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not folder.exists():  # else another process was faster, with the same content
            raise


def _unreadable(config: Esc50Data, reasons: dict[str, str]) -> str:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(reasons.items()))
    return (
        f"{config.root}: {len(reasons)} files cannot be used\n{listed}\n"
        "Mend them, or go on without them with --set data.skip_unreadable=true"
    )


def _classes(clips: list[dict]) -> tuple[str, ...]:
    names = {clip["target"]: clip["category"] for clip in clips}
    return tuple(names[target] for target in sorted(names))


def _open(folder: Path, clips: list[dict]) -> ClipSet:
    targets = np.array([clip["target"] for clip in clips])
    return ClipSet(
        sources=(np.memmap(folder / "samples.int16", "<i2", mode="r"),),
        source=np.zeros(len(clips), np.int64),
        start=np.array([clip["start"] for clip in clips]),
        length=np.array([clip["length"] for clip in clips]),
        labels=Labels.of_matrix(targets[:, None] == np.unique(targets)[None, :]),
        names=np.array([clip["recording"] for clip in clips]),
    )
