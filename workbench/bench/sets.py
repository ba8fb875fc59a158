"""What sets of AudioSet's size cost: `python -m workbench.bench.sets`.

Resampling beside torchaudio's; preparation beside one process that does the same file by file; an index
of two million clips beside the same table in pandas; its class-balanced batches beside torch's sampler; the
splits of a trial on it, when its seed is new and when it is not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import soundfile
import torch
import torchaudio

from workbench.audio.decode import Resampler, decode
from workbench.data import load_splits
from workbench.data.audioset import BALANCED, EVAL, UNBALANCED
from workbench.data.labels import Labels
from workbench.data.listing import Listing, Row
from workbench.data.prepare import prepare
from workbench.data.prepared import (
    COLUMNS,
    FAULTS,
    FORMAT,
    Header,
    open_prepared,
    sha256,
    shard_path,
    write_columns,
)
from workbench.data_config import AudioSetData
from workbench.hardware import private_bytes, resident_bytes
from workbench.training.batches import BalancedClasses

CLIP_SECONDS, RATE = 10.0, 44_100
NUM_CLASSES, CLASSES_A_CLIP = 527, 2  # as AudioSet's
BATCH, NUM_BATCHES = 64, 2_000
FINGERPRINT = "0" * 64  # of an index that was made of no recordings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workbench.bench.sets", description=__doc__)
    parser.add_argument("--files", type=int, default=512, help="to prepare, and four times as many")
    parser.add_argument("--clips", type=int, default=2_000_000, help="of the index")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _resampling(options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        _preparation(Path(folder), options.files, options.rounds)
        _index(Path(folder), options.clips, options.rounds)


# --- resampling ---------------------------------------------------------------------------------------------


def _resampling(rounds: int) -> None:
    """Time, and what is left of tones: one that is to stay, and one that must go, or is heard at 7 kHz."""
    times = np.arange(round(CLIP_SECONDS * RATE)) / RATE
    tones = [np.sin(2 * np.pi * hertz * times).astype(np.float32) for hertz in (7_500, 9_000)]

    def by_torchaudio(samples: np.ndarray, rate: int) -> np.ndarray:
        return torchaudio.functional.resample(torch.from_numpy(samples), rate, 16_000).numpy()

    def by_soxr(samples: np.ndarray, rate: int) -> np.ndarray:
        return Resampler(rate)(samples, last=True)

    for name, work in (("soxr", by_soxr), ("torchaudio", by_torchaudio)):
        seconds = [_seconds(partial(work, tones[0], RATE)) for _ in range(rounds + 1)][1:]
        levels = [20 * np.log10(work(tone, RATE)[1_000:-1_000].std() * np.sqrt(2) + 1e-12) for tone in tones]
        print(
            f"resample {RATE / 1000} to 16 kHz by {name}: {1e3 * statistics.median(seconds):.2f} ms for "
            f"{CLIP_SECONDS:.0f} s; of a tone at 7.5 kHz {levels[0]:.1f} dB are left, at 9 kHz "
            f"{levels[1]:.0f} dB"
        )


# --- preparation --------------------------------------------------------------------------------------------


def _preparation(folder: Path, files: int, rounds: int) -> None:
    """Files of noise; the larger set has the same ones four times, under other names."""
    copy = folder / "copy"
    copy.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(CLIP_SECONDS * RATE))
    soundfile.write(copy / "first.wav", noise, RATE)
    for number in range(4 * files):
        (copy / f"{number:06d}.wav").hardlink_to(copy / "first.wav")
    audio = files * CLIP_SECONDS
    ours, plain, peaks = [], [], []
    for number in range(rounds):
        with _peak() as peak:
            ours.append(audio / _seconds(partial(_prepare, copy, files, folder / f"set {number}")))
        peaks.append(peak[0])
        plain.append(audio / _seconds(partial(_one_by_one, copy, files, folder)))
    with _peak() as peak:
        _prepare(copy, 4 * files, folder / "large")
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    print(
        f"prepare {files} clips of {CLIP_SECONDS:.0f} s, {RATE / 1000} kHz wav: "
        f"{statistics.median(ours):,.0f} times real time, file by file in one process "
        f"{statistics.median(plain):,.0f} (ratio {ratio:.2f})"
    )
    print(
        f"memory of all its processes: {statistics.median(peaks) / 1e9:.2f} GB; for four times as many clips "
        f"{peak[0] / 1e9:.2f} GB"
    )


def _prepare(copy: Path, files: int, folder: Path) -> None:
    rows = [Row(f"{number:06d}.wav", str(number), "train", (0,)) for number in range(files)]
    prepare("noise", Listing(("noise",), single_label=True, rows=rows), copy, folder)


def _one_by_one(copy: Path, files: int, folder: Path) -> None:
    for number in range(files):
        np.save(folder / "clip.npy", decode(copy / f"{number:06d}.wav"))


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most bytes that are this process's and its children's own at a time, from when it is left on."""
    found, ended = [0], threading.Event()

    def watch() -> None:
        family = psutil.Process()
        while not ended.wait(0.05):
            total = 0
            for process in [family, *family.children(recursive=True)]:
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:  # it has just ended
                    continue
            found[0] = max(found[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


# --- the index ----------------------------------------------------------------------------------------------


def _index(folder: Path, clips: int, rounds: int) -> None:
    _write_index(folder / "index", folder / "table.csv", clips)
    works = {"ours": _open, "plain": _read_table, "first": _load, "again": _load}
    figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in works}
    for seed in range(rounds):
        for name, work in works.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                figures[name].append(pool.submit(work, folder, seed).result())
    median = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    (seconds, grown, batches), (table_seconds, table_grown, table_batches) = median["ours"], median["plain"]
    print(
        f"index of {clips:,} clips: open in {seconds:.2f} s, {grown / 1e6:.0f} MB a process with a sampler; "
        f"in pandas {table_seconds:.2f} s, {table_grown / 1e6:.0f} MB"
    )
    print(
        f"class-balanced batches of {BATCH}: {batches:,.0f} a second; torch's weighted sampler "
        f"{table_batches:,.0f} (ratio {batches / table_batches:.1f})"
    )
    (first, first_own, first_grown), (again, again_own, again_grown) = median["first"], median["again"]
    print(
        f"splits of a trial on {clips:,} clips: in {again:.2f} s ({again_own:.2f} s of processor time), "
        f"{again_grown / 1e6:.0f} MB of a process's own; of a seed that is new in {first:.1f} s "
        f"({first_own:.1f} s), {first_grown / 1e6:.0f} MB"
    )


def _write_index(folder: Path, table: Path, clips: int) -> None:
    """What `prepare` would write of so many clips of AudioSet, without their audio; and as a table."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    popularity = 1 / np.arange(1, NUM_CLASSES + 1)
    classes = generator.choice(NUM_CLASSES, (clips, CLASSES_A_CLIP), p=popularity / popularity.sum())
    classes[:, 1] = (classes[:, 0] + 1 + classes[:, 1] % (NUM_CLASSES - 1)) % NUM_CLASSES
    classes.sort(axis=1)
    names = np.char.add("Y", np.arange(clips).astype("U10"))
    samples, shards = round(CLIP_SECONDS * 16_000), -(-clips // 256)
    place = np.arange(clips)
    ends = [clips // 100, clips // 50, clips]  # of the splits, about as large as AudioSet's
    columns: dict[str, np.ndarray] = {
        "shard": (place // 256).astype(np.uint32),
        "start": place % 256 * samples,
        "length": np.full(clips, samples),
        "split": np.searchsorted(ends, place, side="right").astype(np.uint8),
        "recording": names,
        "digest": place.astype(np.uint64),
        "offsets": CLASSES_A_CLIP * np.arange(clips + 1),
        "classes": classes.reshape(-1).astype(np.uint16),
    }
    write_columns(folder, columns)
    (folder / FAULTS).touch()
    Header(
        format=FORMAT,
        layout="audioset",
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        single_label=False,
        splits=dict(zip((BALANCED, EVAL, UNBALANCED), np.diff(ends, prepend=0).tolist(), strict=True)),
        samples=clips * samples,
        fingerprint=FINGERPRINT,
        shards=shards,
        sha256={shard_path(folder, number).name: "0" * 64 for number in range(shards)}
        | {f"{name}.npy": sha256(folder / f"{name}.npy") for name in COLUMNS},
    ).write(folder)
    pd.DataFrame({"file": names, "first": classes[:, 0], "second": classes[:, 1]}).to_csv(table, index=False)


def _open(folder: Path, seed: int) -> tuple[float, int, float]:
    """In a process of its own: seconds, bytes, batches a second."""
    before, began = resident_bytes(), time.perf_counter()
    clips = open_prepared(folder / "index").clips
    seconds = time.perf_counter() - began
    order = BalancedClasses(clips.labels, BATCH, seed, "bench")
    rate = NUM_BATCHES / _seconds(lambda: [order.batch(step) for step in range(NUM_BATCHES)])
    return seconds, resident_bytes() - before, rate


def _load(folder: Path, seed: int) -> tuple[float, float, int]:
    """What a trial does, in a process of its own: seconds, the processor's, and bytes that are not shared."""
    config = AudioSetData(root=str(folder / "index"), subset="full")
    before, began, began_own = private_bytes(), time.perf_counter(), time.process_time()
    splits = load_splits(config, folder / "root", seed, fingerprint=FINGERPRINT)
    seconds, own = time.perf_counter() - began, time.process_time() - began_own
    assert len(splits.classes) == NUM_CLASSES
    return seconds, own, private_bytes() - before


def _read_table(folder: Path, seed: int) -> tuple[float, int, float]:
    before, began = resident_bytes(), time.perf_counter()
    table = pd.read_csv(folder / "table.csv")
    seconds = time.perf_counter() - began
    labels = Labels.of_lists(table[["first", "second"]].to_numpy().tolist(), NUM_CLASSES)
    share = 1 / np.maximum(1, np.bincount(labels.pairs()[1], minlength=NUM_CLASSES))
    weights = (share[table["first"]] + share[table["second"]]).tolist()
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.utils.data.WeightedRandomSampler(weights, BATCH * 200, generator=generator)
    batches = torch.utils.data.BatchSampler(sampler, BATCH, drop_last=True)
    rate = 200 / _seconds(lambda: list(batches))
    return seconds, resident_bytes() - before, rate


if __name__ == "__main__":
    main()
