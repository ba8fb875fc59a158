"""Every dataset keeps one contract; then what is particular to the embedded corpus."""

import dataclasses
import multiprocessing
import re
import shutil
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch

from workbench.data import DATASETS, corpus, fingerprint, load_splits, make_ready
from workbench.data.clips import DataError
from workbench.data.prepared import sha256
from workbench.data_config import (
    AudioSetData,
    CorpusData,
    DataConfig,
    Dcase2019Data,
    Esc50Data,
    FolderData,
    FsdKaggle2019Data,
    Kinetics700Data,
    MagnaTagATuneData,
)
from workbench.training.metrics import summarise

from .small_audioset import write_audioset
from .small_datasets import identity_of, no_report, parts_of, quiet, write_esc50
from .small_dcase2019 import write_dcase2019
from .small_folder import write_folder
from .small_fsdkaggle2019 import write_fsdkaggle2019
from .small_kinetics700 import write_kinetics700
from .small_magnatagatune import write_magnatagatune

# --- the contract ---------------------------------------------------------------------------------


def _small_corpus(folder):
    return CorpusData(clip_seconds=1.0, pool_clips=60, labelled_clips=120, validation_clips=20, test_clips=30)


def _small_esc50(folder):
    root = folder / "ESC-50"
    write_esc50(root)
    return Esc50Data(root=str(root), clip_seconds=0.5)


def _small_audioset(folder):
    write_audioset(folder / "audioset")
    return AudioSetData(root=str(folder / "audioset"), subset="full", clip_seconds=0.5, validation_share=0.2)


def _small_folder(folder):
    write_folder(folder / "mine")
    return FolderData(root=str(folder / "mine"), clip_seconds=0.25)


def _small_fsdkaggle2019(folder):
    write_fsdkaggle2019(folder / "fsd")
    return FsdKaggle2019Data(root=str(folder / "fsd"), clip_seconds=0.5, validation_share=0.2)


def _small_dcase2019(folder):
    write_dcase2019(folder / "tau")
    return Dcase2019Data(root=str(folder / "tau"), clip_seconds=0.5, validation_share=0.2)


def _small_magnatagatune(folder):
    write_magnatagatune(folder / "mtt")
    return MagnaTagATuneData(root=str(folder / "mtt"), clip_seconds=0.5)


def _small_kinetics700(folder):
    write_kinetics700(folder / "kinetics700")
    return Kinetics700Data(root=str(folder / "kinetics700"), clip_seconds=0.5, validation_share=0.2)


SMALL = {  # folder of its audio, if it has any -> config
    "corpus": _small_corpus,
    "esc50": _small_esc50,
    "audioset": _small_audioset,
    "folder": _small_folder,
    "fsdkaggle2019": _small_fsdkaggle2019,
    "dcase2019": _small_dcase2019,
    "magnatagatune": _small_magnatagatune,
    "kinetics700": _small_kinetics700,
}


def test_every_kind_of_data_is_a_dataset_that_keeps_the_contract():
    assert {kind().kind for kind in typing.get_args(DataConfig)} == set(DATASETS) == set(SMALL)


class Case:
    """A dataset with a small config, prepared once."""

    def __init__(self, make, folder):
        self.make = make
        self.config = make(folder)
        self.root = folder / "prepared"
        self.load(report=quiet)

    def load(self, seed=0, report=no_report, **changes):
        return load_splits(dataclasses.replace(self.config, **changes), self.root, seed, report)


@pytest.fixture(scope="module", params=sorted(DATASETS))
def dataset(request, tmp_path_factory):
    kind = request.param
    if kind not in SMALL:
        pytest.fail(f"the dataset {kind!r} has no small config for this suite; enter one in SMALL")
    return Case(SMALL[kind], tmp_path_factory.mktemp(kind))


def test_splits_are_there_and_apart(dataset):
    splits = dataset.load()
    recordings = {name: set(part.names.tolist()) for name, part in parts_of(splits).items()}
    assert all(recordings.values())
    assert not recordings["train"] & recordings["validation"]
    assert not recordings["train"] & recordings["test"]
    assert not recordings["validation"] & recordings["test"]
    assert not recordings["pool"] & (recordings["validation"] | recordings["test"])
    assert splits.left_out == ()


def test_no_waveform_is_on_two_sides(dataset):
    """Names could lie; the samples cannot."""
    waveforms = {}
    for name, part in parts_of(dataset.load()).items():
        waveform, length = part.read(np.arange(len(part)))
        waveforms[name] = {w[:n].numpy().tobytes() for w, n in zip(waveform, length, strict=True)}
    for judged in ("validation", "test"):
        assert not waveforms[judged] & (waveforms["pool"] | waveforms["train"])
    assert not waveforms["validation"] & waveforms["test"]


def test_labels_say_which_classes_a_clip_has(dataset):
    splits = dataset.load()
    for part in (splits.train, splits.validation, splits.test):
        labels = part.labels.matrix()
        assert labels.shape == (len(part), len(splits.classes))
        assert np.isin(labels, (0, 1)).all()
        assert labels.any(axis=1).all()
        if splits.single_label:
            assert (labels.sum(axis=1) == 1).all()
    assert splits.train.labels.matrix().any(axis=0).all()
    assert len(set(splits.classes)) == len(splits.classes)
    assert splits.pool.labels.matrix().shape == (len(splits.pool), 0)


def test_the_metric_is_one_that_its_clips_have(dataset):
    splits = dataset.load()
    assert splits.single_label == (dataset.config.metric == "accuracy")
    targets = splits.validation.labels.matrix()
    scores = np.random.default_rng(0).random(targets.shape)
    found = summarise(scores, targets, single_label=splits.single_label)
    assert np.isfinite(found[dataset.config.metric])


def test_the_seed_draws_the_labelled_subset(dataset):
    subset = identity_of(dataset.load(seed=1, label_fraction=0.5).train)
    assert len(set(subset)) == len(subset)
    assert identity_of(dataset.load(seed=1, label_fraction=0.5).train) == subset
    assert set(identity_of(dataset.load(seed=2, label_fraction=0.5).train)) != set(subset)


def test_labelled_subsets_are_nested_and_as_large_as_asked(dataset):
    whole = identity_of(dataset.load().train)
    last = set()
    for fraction in (0.01, 0.25, 0.5, 1.0):
        subset = set(identity_of(dataset.load(label_fraction=fraction).train))
        assert len(subset) == max(1, round(fraction * len(whole)))
        assert last <= subset
        last = subset
    assert last == set(whole)


def test_only_the_labelled_subset_depends_on_seed_and_fraction(dataset):
    expected, splits = dataset.load(), dataset.load(seed=5, label_fraction=0.25)
    for name in ("pool", "validation", "test"):
        first, second = getattr(expected, name), getattr(splits, name)
        assert identity_of(first) == identity_of(second)
        np.testing.assert_array_equal(first.labels.matrix(), second.labels.matrix())
    assert (splits.classes, splits.fingerprint) == (expected.classes, expected.fingerprint)


def test_labels_stay_with_their_clips(dataset):
    def labels(seed):
        train = dataset.load(seed=seed).train
        return dict(zip(identity_of(train), train.labels.matrix().tolist(), strict=True))

    assert labels(3) == labels(0)


def test_the_fingerprint_says_what_not_where_nor_how_much(dataset, tmp_path):
    expected = fingerprint(dataset.config)
    assert re.fullmatch("[0-9a-f]{64}", expected)
    assert fingerprint(dataset.config) == expected == dataset.load().fingerprint
    assert fingerprint(dataset.make(tmp_path)) == expected
    assert fingerprint(dataclasses.replace(dataset.config, label_fraction=0.1)) == expected


def test_what_was_prepared_once_is_not_prepared_again(dataset):
    before = sorted(path for path in dataset.root.rglob("*"))
    stamps = [path.stat().st_mtime_ns for path in before]
    dataset.load(report=no_report)
    after = sorted(path for path in dataset.root.rglob("*"))
    assert after == before
    assert [path.stat().st_mtime_ns for path in after] == stamps
    assert not [path for path in after if path.suffix == ".tmp"]


def test_reading_pads_and_crops(dataset):
    clips = dataset.load().test
    indices = np.array([3, 0, 3])
    waveform, length = clips.read(indices)
    assert (waveform.dtype, length.dtype) == (torch.int16, torch.int64)
    assert waveform.shape == (3, clips.length[indices].max())
    np.testing.assert_array_equal(length, clips.length[indices])
    assert not waveform[torch.arange(waveform.shape[1]) >= length[:, None]].any()
    assert waveform.any(dim=1).all()
    cropped, length = clips.read(indices, max_samples=1_000)
    assert torch.equal(cropped, waveform[:, :1_000])
    assert length.tolist() == [1_000] * 3


# --- the embedded corpus --------------------------------------------------------------------------


def test_a_larger_pool_begins_with_the_smaller(tmp_path):
    """Across a file's end, and without making the first file again."""
    recipe = corpus.synthesis.Recipe(clip_seconds=1.0)
    reports = []
    small = corpus.load_parts(recipe, {"pool": 100}, tmp_path, reports.append)[0]
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("pool-000000*"))]
    large = corpus.load_parts(recipe, {"pool": 200}, tmp_path, reports.append)[0]
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("pool-000000*"))] == before
    assert len(reports) == 2
    assert (len(small), len(large)) == (100, 200)
    assert large.names[:100].tolist() == small.names.tolist()
    np.testing.assert_array_equal(large.labels.matrix()[:100], small.labels.matrix())
    assert torch.equal(large.read(np.arange(100))[0], small.read(np.arange(100))[0])
    for i in (0, 127, 128, 199):
        waveform, labels = corpus.synthesis.synthesise(recipe, "pool", i)
        np.testing.assert_array_equal(large.read(np.array([i]))[0][0], waveform)
        np.testing.assert_array_equal(large.labels.matrix()[i], labels)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    load_splits(_small_corpus(root), root, 0, quiet)
    return root


@pytest.fixture
def made(made_once, tmp_path, monkeypatch):
    """A corpus to spoil: its config, and where it lies; what is made anew is made by this process."""
    monkeypatch.setattr(corpus.os, "sched_getaffinity", lambda pid: {0})  # others take seconds to start
    shutil.copytree(made_once, tmp_path / "made")
    return _small_corpus(tmp_path), tmp_path / "made"


@pytest.mark.parametrize("which", ["pool-000000.npy", "labelled-000000.labels.npy"])
@pytest.mark.parametrize("bytes_left", [0, 200])
def test_a_file_of_the_corpus_that_a_copy_left_short_is_named(made, which, bytes_left):
    config, root = made
    (path,) = root.glob(f"corpus-*/{which}")
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(DataError, match=rf"{which}: is damaged .* delete it, and the same command makes it"):
        load_splits(config, root, 0, quiet)
    path.unlink()
    (path.parent / which.replace(".labels", "")).unlink(missing_ok=True)
    load_splits(config, root, 0, quiet)


def _make_ready(config, root):
    """What is told of it."""
    reports = []
    make_ready(config, None, root, 0, reports.append, (fingerprint(config), None))
    return reports


def _with_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["pool-000000.npy", "labelled-000000.labels.npy"])
def test_a_file_of_the_corpus_with_a_flipped_bit_is_made_again(made, which):
    config, root = made
    (path,) = root.glob(f"corpus-*/{which}")
    written = path.read_bytes()
    _with_a_flipped_bit(path)
    damaged, making = _make_ready(config, root)
    assert damaged == f"{path}: is not as it was written, and is made again"
    assert making.startswith("embedded corpus: making 128 clips")
    assert path.read_bytes() == written
    assert _make_ready(config, root) == []


def test_so_is_one_of_those_that_join_recordings(pristine, tmp_path):
    config = Esc50Data(root=str(pristine[0]), corpus_clips=10, corpus_clip_seconds=1.0)
    _make_ready(config, tmp_path)
    _with_a_flipped_bit(next(tmp_path.glob("corpus-*/pool-000000.npy")))
    assert len(_make_ready(config, tmp_path)) == 2


def test_the_corpus_is_read_once_for_all_trials_of_a_launch(made, monkeypatch):
    (config, root), read = made, []
    monkeypatch.setattr(corpus, "sha256", lambda path: read.append(path.name) or sha256(path))
    for clips in (60, 30):
        _make_ready(dataclasses.replace(config, pool_clips=clips), root)
    assert len(read) == len(set(read)) == 8


def test_clips_without_checksums_are_made_anew(made):
    """Those of before there were any may be damaged."""
    config, root = made
    (checksums,) = root.glob("corpus-*/test-000000.sha256")
    expected = checksums.read_text()
    checksums.unlink()
    _with_a_flipped_bit(checksums.with_name("test-000000.npy"))
    assert DATASETS["corpus"].extent(config, root, fingerprint(config)).unprepared_clips == 128
    load_splits(config, root, 0, quiet)
    assert checksums.read_text() == expected
    for line in expected.splitlines():
        digest, name = line.split()
        assert sha256(checksums.with_name(name)) == digest


def test_what_a_kill_left_half_written_is_removed_when_clips_are_made(made):
    config, root = made
    (path,) = root.glob("corpus-*/pool-000000.npy")
    path.unlink()
    path.with_name("pool-000000.npy.0123.tmp").write_bytes(b"half")
    load_splits(config, root, 0, quiet)
    assert path.exists()
    assert not list(root.rglob("*.tmp"))


def test_a_script_that_is_not_guarded_does_not_wait_for_itself(tmp_path):
    """The processes that make the corpus import it, and would make the corpus, too."""
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys; from pathlib import Path; from workbench import data\n"
        "from workbench.data_config import CorpusData\n"
        "data.load_splits(CorpusData(clip_seconds=1.0, pool_clips=500), Path(sys.argv[1]), 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=100
    )
    assert ended.returncode == 1
    assert "__main__" in ended.stderr


def test_the_corpus_leaves_nothing_on_a_full_disk_and_says_which(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus.os, "fsync", full)
        patch.setattr(corpus.os, "sched_getaffinity", lambda pid: {0})  # in this process
        with pytest.raises(OSError, match=r"corpus-\w+: .*No space left on device; make room there"):
            load_splits(_small_corpus(tmp_path), tmp_path, 0, quiet)
    assert not list(tmp_path.rglob("*.tmp"))
    load_splits(_small_corpus(tmp_path), tmp_path, 0, quiet)


def test_clip_counts_are_not_in_the_corpus_fingerprint_and_the_recipe_is():
    config = _small_corpus(None)
    counts = {"pool_clips": 1, "labelled_clips": 2, "validation_clips": 3, "test_clips": 4}
    assert fingerprint(dataclasses.replace(config, **counts)) == fingerprint(config)
    for change in ({"clip_seconds": 1.5}, {"max_events": 3}, {"recipe_seed": 1}):
        assert fingerprint(dataclasses.replace(config, **change)) != fingerprint(config)


def _load_at_once(barrier, results, config, root):
    """In a process of its own."""
    barrier.wait(timeout=60)
    splits = load_splits(config, root, 0, quiet)
    waveforms = [part.read(np.arange(len(part)))[0].numpy() for part in parts_of(splits).values()]
    results.put([int(np.abs(waveform.astype(np.int64)).sum()) for waveform in waveforms])


def test_two_processes_may_prepare_the_same_data_at_once(pristine, tmp_path):
    """Two trials begin together on an empty cache; recordings and the embedded corpus in one."""
    config = Esc50Data(root=str(pristine[0]), corpus_clips=100, corpus_clip_seconds=1.0)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, results, config, tmp_path / "prepared")
    processes = [context.Process(target=_load_at_once, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sums[0] == sums[1]
    assert not list(tmp_path.rglob("*.tmp"))
    load_splits(config, tmp_path / "prepared", 0, no_report)
