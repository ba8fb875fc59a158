"""Every dataset keeps one contract; then what is particular to each, and what both are built from."""

import csv
import dataclasses
import functools
import io
import math
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from workbench.config import SAMPLE_RATE, CorpusData, Esc50Data
from workbench.data import DATASETS, corpus, fingerprint, load_splits
from workbench.data.clips import ClipSet, DataError, Splits, labelled_subset, nested_order

ESC10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "esc10"
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
CATEGORIES = {0: ("dog", True), 17: ("rain", False), 40: ("helicopter", True)}
FORMATS = (("wav", 44_100), ("flac", 16_000), ("ogg", 22_050), ("mp3", 44_100), ("wav", 8_000))


def _quiet(text):
    """For `report`."""


def _no_report(text):
    pytest.fail(f"prepared again: {text}")


# --- a small copy of ESC-50 -----------------------------------------------------------------------


@functools.cache  # the same bytes in every copy; an encoder gives each Ogg stream a number by chance
def _sound_file(extension, rate, number):
    """Noise of about half a second."""
    generator, file = np.random.default_rng(number), io.BytesIO()
    samples = 0.1 * generator.standard_normal(round(rate * generator.uniform(0.4, 0.6)))
    soundfile.write(file, samples, rate, format=extension.upper())
    return file.getvalue()


def write_esc50(root, takes="AB"):
    """Three classes in five folds, two recordings each; the first recording has every one of `takes`."""
    formats = [f for f in FORMATS if f[0].upper() in soundfile.available_formats()]
    (root / "audio").mkdir(parents=True)
    rows = []
    for fold in range(1, 6):
        for target, (category, in_esc10) in CATEGORIES.items():
            for recording in range(2):
                source = 1000 * fold + 10 * target + recording
                for take in takes if recording == 0 else takes[:1]:
                    extension, rate = formats[len(rows) % len(formats)]
                    name = f"{fold}-{source}-{take}-{target}.{extension}"
                    (root / "audio" / name).write_bytes(_sound_file(extension, rate, len(rows)))
                    values = (name, fold, target, category, in_esc10, source, take)
                    rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    write_table(root, rows)
    return rows


def write_table(root, rows, columns=COLUMNS, encoding="utf-8", newline="\n"):
    (root / "meta").mkdir(exist_ok=True)
    with (root / "meta" / "esc50.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("esc50") / "ESC-50"
    return root, write_esc50(root)


@pytest.fixture
def esc50(pristine, tmp_path):
    """A copy to spoil, and its rows."""
    root = tmp_path / "ESC-50"
    shutil.copytree(pristine[0], root)
    return root, [dict(row) for row in pristine[1]]


# --- the contract ---------------------------------------------------------------------------------


def _small_corpus(folder):
    return CorpusData(clip_seconds=1.0, pool_clips=60, labelled_clips=120, validation_clips=20, test_clips=30)


def _small_esc50(folder):
    root = folder / "ESC-50"
    write_esc50(root)
    return Esc50Data(root=str(root), clip_seconds=0.5)


SMALL = {"corpus": _small_corpus, "esc50": _small_esc50}  # folder of its audio, if it has any -> config


class Case:
    """A dataset with a small config, prepared once."""

    def __init__(self, make, folder):
        self.make = make
        self.config = make(folder)
        self.root = folder / "prepared"
        self.load(report=_quiet)

    def load(self, seed=0, report=_no_report, **changes):
        return load_splits(dataclasses.replace(self.config, **changes), self.root, seed, report)


@pytest.fixture(scope="module", params=sorted(DATASETS))
def dataset(request, tmp_path_factory):
    kind = request.param
    if kind not in SMALL:
        pytest.fail(f"the dataset {kind!r} has no small config for this suite; enter one in SMALL")
    return Case(SMALL[kind], tmp_path_factory.mktemp(kind))


def _parts(splits):
    return {name: getattr(splits, name) for name in ("pool", "train", "validation", "test")}


def _identity(clips):
    """Which clips, in which order; a recording may have several."""
    return list(zip(clips.names.tolist(), clips.source.tolist(), clips.start.tolist(), strict=True))


def test_splits_are_there_and_apart(dataset):
    splits = dataset.load()
    recordings = {name: set(part.names.tolist()) for name, part in _parts(splits).items()}
    assert all(recordings.values())
    assert not recordings["train"] & recordings["validation"]
    assert not recordings["train"] & recordings["test"]
    assert not recordings["validation"] & recordings["test"]
    assert not recordings["pool"] & (recordings["validation"] | recordings["test"])
    assert splits.left_out == ()


def test_no_waveform_is_on_two_sides(dataset):
    """Names could lie; the samples cannot."""
    waveforms = {}
    for name, part in _parts(dataset.load()).items():
        waveform, length = part.read(np.arange(len(part)))
        waveforms[name] = {w[:n].numpy().tobytes() for w, n in zip(waveform, length, strict=True)}
    for judged in ("validation", "test"):
        assert not waveforms[judged] & (waveforms["pool"] | waveforms["train"])
    assert not waveforms["validation"] & waveforms["test"]


def test_labels_say_which_classes_a_clip_has(dataset):
    splits = dataset.load()
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels.shape == (len(part), len(splits.classes))
        assert np.isin(part.labels, (0, 1)).all()
        assert part.labels.any(axis=1).all()
        if splits.single_label:
            assert (part.labels.sum(axis=1) == 1).all()
    assert splits.train.labels.any(axis=0).all()
    assert len(set(splits.classes)) == len(splits.classes)
    assert splits.pool.labels.shape == (len(splits.pool), 0)


def test_the_seed_draws_the_labelled_subset(dataset):
    subset = _identity(dataset.load(seed=1, label_fraction=0.5).train)
    assert len(set(subset)) == len(subset)
    assert _identity(dataset.load(seed=1, label_fraction=0.5).train) == subset
    assert set(_identity(dataset.load(seed=2, label_fraction=0.5).train)) != set(subset)


def test_labelled_subsets_are_nested_and_as_large_as_asked(dataset):
    whole = _identity(dataset.load().train)
    last = set()
    for fraction in (0.01, 0.25, 0.5, 1.0):
        subset = set(_identity(dataset.load(label_fraction=fraction).train))
        assert len(subset) == max(1, round(fraction * len(whole)))
        assert last <= subset
        last = subset
    assert last == set(whole)


def test_only_the_labelled_subset_depends_on_seed_and_fraction(dataset):
    expected, splits = dataset.load(), dataset.load(seed=5, label_fraction=0.25)
    for name in ("pool", "validation", "test"):
        first, second = getattr(expected, name), getattr(splits, name)
        assert _identity(first) == _identity(second)
        np.testing.assert_array_equal(first.labels, second.labels)
    assert (splits.classes, splits.fingerprint) == (expected.classes, expected.fingerprint)


def test_labels_stay_with_their_clips(dataset):
    def labels(seed):
        train = dataset.load(seed=seed).train
        return dict(zip(_identity(train), train.labels.tolist(), strict=True))

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
    dataset.load(report=_no_report)
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
    np.testing.assert_array_equal(large.labels[:100], small.labels)
    assert torch.equal(large.read(np.arange(100))[0], small.read(np.arange(100))[0])
    for i in (0, 127, 128, 199):
        waveform, labels = corpus.synthesis.synthesise(recipe, "pool", i)
        np.testing.assert_array_equal(large.read(np.array([i]))[0][0], waveform)
        np.testing.assert_array_equal(large.labels[i], labels)


def test_clip_counts_are_not_in_the_corpus_fingerprint_and_the_recipe_is():
    config = _small_corpus(None)
    counts = {"pool_clips": 1, "labelled_clips": 2, "validation_clips": 3, "test_clips": 4}
    assert fingerprint(dataclasses.replace(config, **counts)) == fingerprint(config)
    for change in ({"clip_seconds": 1.5}, {"max_events": 3}, {"recipe_seed": 1}):
        assert fingerprint(dataclasses.replace(config, **change)) != fingerprint(config)


def _load_at_once(barrier, results, config, root):
    """In a process of its own."""
    barrier.wait(timeout=60)
    splits = load_splits(config, root, 0, _quiet)
    waveforms = [part.read(np.arange(len(part)))[0].numpy() for part in _parts(splits).values()]
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
    load_splits(config, tmp_path / "prepared", 0, _no_report)


# --- ESC-50 ---------------------------------------------------------------------------------------


def _load(root, folder, report=_quiet, **changes):
    return load_splits(Esc50Data(root=str(root), **changes), folder / "prepared", 0, report)


@pytest.mark.parametrize("test_fold", [1, 2, 3, 4, 5])
def test_folds_are_tested_validated_and_trained_as_published(pristine, test_fold, tmp_path_factory):
    root, rows = pristine
    splits = _load(root, tmp_path_factory.getbasetemp() / "folds", test_fold=test_fold)
    fold_of = {row["src_file"]: int(row["fold"]) for row in rows}
    folds = {name: {fold_of[recording] for recording in part.names} for name, part in _parts(splits).items()}
    validation_fold = test_fold % 5 + 1
    training_folds = {1, 2, 3, 4, 5} - {test_fold, validation_fold}
    assert folds == {
        "pool": training_folds,
        "train": training_folds,
        "validation": {validation_fold},
        "test": {test_fold},
    }
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (27, 9, 9)


def test_clips_are_their_files_at_16_khz_with_their_labels(pristine, tmp_path):
    root, rows = pristine
    splits = _load(root, tmp_path)
    assert splits.classes == ("dog", "rain", "helicopter")  # by target number
    expected = [row for row in rows if row["fold"] == "1"]
    expected.sort(key=lambda row: row["filename"])
    assert splits.test.names.tolist() == [row["src_file"] for row in expected]
    for i, row in enumerate(expected):
        info = soundfile.info(root / "audio" / row["filename"])
        assert splits.test.length[i] == math.ceil(info.frames * SAMPLE_RATE / info.samplerate)
        assert splits.classes[splits.test.labels[i].argmax()] == row["category"]
        level = splits.test.read(np.array([i]))[0].double().std() / 32767
        assert 0.04 < level < 0.12  # noise of 0.1, less what lies above 8 kHz


def test_the_pool_takes_in_clips_of_the_embedded_corpus(pristine, tmp_path):
    splits = _load(pristine[0], tmp_path, corpus_clips=10, corpus_clip_seconds=1.0)
    assert len(splits.pool) == len(splits.train) + 10
    assert splits.pool.labels.shape == (37, 0)
    waveform, length = splits.pool.read(np.array([0, 36]))
    assert length[1] == SAMPLE_RATE
    made, _ = corpus.synthesis.synthesise(corpus.synthesis.Recipe(clip_seconds=1.0), "pool", 9)
    np.testing.assert_array_equal(waveform[1, :SAMPLE_RATE], made)
    plain = Esc50Data(root=str(pristine[0]))
    assert fingerprint(dataclasses.replace(plain, corpus_clips=10)) != fingerprint(plain)


def test_esc10_is_a_column_of_the_table(pristine, tmp_path):
    splits = _load(pristine[0], tmp_path, subset="esc10")
    assert splits.classes == ("dog", "helicopter")
    assert (len(splits.train), len(splits.test)) == (18, 6)
    assert splits.fingerprint != fingerprint(Esc50Data(root=str(pristine[0])))


def _spoil(root, rows):
    """One file for each way not to be audio: their names."""
    names = [row["filename"] for row in rows]
    wavs = [name for name in names if name.endswith(".wav")]
    audio = root / "audio"
    (audio / names[2]).write_bytes(b"not audio at all" * 100)
    (audio / names[7]).write_bytes(b"")
    (audio / wavs[5]).write_bytes((audio / wavs[5]).read_bytes()[:20])
    soundfile.write(audio / wavs[6], np.zeros(0), 44_100)
    soundfile.write(audio / wavs[7], np.full(8_000, np.nan, np.float32), 44_100, subtype="FLOAT")
    (audio / names[-1]).unlink()
    spoilt = {names[2], names[7], *wavs[5:8], names[-1]}
    assert len(spoilt) == 6
    return spoilt


def test_every_unusable_file_is_named_at_once(esc50, tmp_path):
    root, rows = esc50
    spoilt = _spoil(root, rows)
    for _ in range(2):  # from the files, then from what was found out
        with pytest.raises(DataError) as error:
            _load(root, tmp_path)
        message = str(error.value)
        assert {row["filename"] for row in rows if row["filename"] in message} == spoilt
        assert "6 files" in message
        for reason in ("cannot be decoded", "is empty", "NaN", "is not there"):
            assert reason in message
        assert "data.skip_unreadable" in message


def test_unusable_files_can_be_left_out(esc50, tmp_path):
    root, rows = esc50
    spoilt = _spoil(root, rows)
    splits = _load(root, tmp_path, skip_unreadable=True)
    assert set(splits.left_out) == spoilt
    assert sum(len(part) for name, part in _parts(splits).items() if name != "pool") == len(rows) - 6
    left_out_of_test = [r for r in rows if r["filename"] in spoilt and r["fold"] == "1"]
    assert len(splits.test) == 9 - len(left_out_of_test)
    assert splits.fingerprint == fingerprint(Esc50Data(root=str(root), skip_unreadable=True))
    assert splits.left_out == _load(root, tmp_path, _no_report, skip_unreadable=True).left_out


def test_a_folder_without_one_usable_file_is_refused(esc50, tmp_path):
    root, _ = esc50
    shutil.rmtree(root / "audio")
    with pytest.raises(DataError, match="not one of its recordings"):
        _load(root, tmp_path, skip_unreadable=True)
    with pytest.raises(DataError, match="45 files"):
        _load(root, tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("fold", "0"),
        ("fold", "6"),
        ("fold", "x"),
        ("fold", ""),
        ("target", "dog"),
        ("target", "-1"),
        ("target", "1.5"),
        ("target", ""),
        ("filename", "../x.wav"),
        ("filename", "/abs.wav"),
        ("filename", "sub/x.wav"),
        ("filename", ".."),
        ("filename", "."),
        ("filename", ""),
    ],
)
def test_a_row_that_cannot_be_is_named_by_its_line(esc50, column, value, tmp_path):
    root, rows = esc50
    rows[4][column] = value
    write_table(root, rows)
    with pytest.raises(DataError, match=r"esc50\.csv, line 6: ") as error:
        _load(root, tmp_path)
    assert column in str(error.value)
    assert repr(value) in str(error.value)


def test_a_line_is_counted_as_an_editor_counts(esc50, tmp_path):
    """Also behind an empty one."""
    root, rows = esc50
    rows[4]["fold"] = "9"
    write_table(root, rows)
    table = root / "meta" / "esc50.csv"
    header, rest = table.read_text().split("\n", 1)
    table.write_text(f"{header}\n\n{rest}")
    with pytest.raises(DataError, match="line 7: fold"):
        _load(root, tmp_path)


def test_a_row_that_is_cut_short_is_refused(esc50, tmp_path):
    table = esc50[0] / "meta" / "esc50.csv"
    table.write_text(table.read_text() + "1-99-A-0.wav,1,0\n")
    with pytest.raises(DataError, match="line 47"):
        _load(esc50[0], tmp_path)


@pytest.mark.parametrize("column", ["filename", "fold", "target", "category", "esc10", "src_file"])
def test_a_missing_column_is_named(esc50, column, tmp_path):
    root, rows = esc50
    write_table(root, rows, [name for name in COLUMNS if name != column])
    with pytest.raises(DataError, match=rf"esc50\.csv: has no column {column}"):
        _load(root, tmp_path)


def test_the_take_is_not_needed(esc50, tmp_path):
    root, rows = esc50
    write_table(root, rows, [name for name in COLUMNS if name != "take"])
    assert len(_load(root, tmp_path).test) == 9


def test_takes_of_one_recording_in_two_folds_are_refused(esc50, tmp_path):
    """Training would hear what the test asks."""
    root, rows = esc50
    assert rows[0]["src_file"] == rows[1]["src_file"]
    rows[1]["fold"] = "3"
    write_table(root, rows)
    with pytest.raises(DataError, match=r"esc50\.csv") as error:
        _load(root, tmp_path)
    assert f"source recording {rows[0]['src_file']} are in folds 1 and 3" in str(error.value)


def test_one_file_in_two_rows_is_refused(esc50, tmp_path):
    """Under another recording's name it could stand on both sides of a split."""
    root, rows = esc50
    rows[20]["filename"] = rows[0]["filename"]
    write_table(root, rows)
    with pytest.raises(DataError, match=r"line 22: .*line 2") as error:
        _load(root, tmp_path)
    assert rows[0]["filename"] in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_from_a_spreadsheet_reads_the_same(esc50, encoding, newline, pristine):
    root, rows = esc50
    write_table(root, rows, encoding=encoding, newline=newline)
    assert fingerprint(Esc50Data(root=str(root))) == fingerprint(Esc50Data(root=str(pristine[0])))


def test_the_order_of_the_rows_means_nothing(esc50, pristine, tmp_path):
    """Each prepared by itself, so neither takes the other's order."""
    root, rows = esc50
    write_table(root, rows[::-1])
    ours = _load(root, tmp_path / "reversed", label_fraction=0.5)
    published = _load(pristine[0], tmp_path / "published", label_fraction=0.5)
    assert ours.fingerprint == published.fingerprint
    for first, second in zip(_parts(ours).values(), _parts(published).values(), strict=True):
        assert _identity(first) == _identity(second)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00filename\x80", b"", b"\x00" * 100])
def test_a_table_that_is_no_table_is_refused(esc50, content, tmp_path):
    table = esc50[0] / "meta" / "esc50.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(table))):
        _load(esc50[0], tmp_path)


def test_a_table_without_rows_is_refused(esc50, tmp_path):
    write_table(esc50[0], [])
    with pytest.raises(DataError, match="no rows of esc50"):
        _load(esc50[0], tmp_path)


def test_a_missing_folder_is_refused_with_the_setting_that_names_it(tmp_path):
    for use in (fingerprint, lambda config: load_splits(config, tmp_path, 0, _quiet)):
        with pytest.raises(DataError, match=r"data\.root") as error:
            use(Esc50Data(root=str(tmp_path / "nowhere")))
        assert str(tmp_path / "nowhere") in str(error.value)


def test_one_byte_is_another_dataset(esc50, tmp_path):
    root, rows = esc50
    config = Esc50Data(root=str(root))
    first = _load(root, tmp_path)
    path = root / "audio" / next(row["filename"] for row in rows if row["filename"].endswith("wav"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(config) != first.fingerprint
    reports = []
    assert _load(root, tmp_path, reports.append).fingerprint == fingerprint(config)
    assert len(reports) == 1  # decoded anew, not taken from before


@pytest.mark.parametrize("column", ["target", "category", "src_file"])
def test_another_label_is_another_dataset(esc50, column):
    root, rows = esc50
    before = fingerprint(Esc50Data(root=str(root)))
    rows[0][column] = rows[1][column] = "99"  # both takes
    write_table(root, rows)
    assert fingerprint(Esc50Data(root=str(root))) != before


@pytest.mark.skipif(not ESC10.is_dir(), reason="needs a copy of ESC-10 beside the checkout")
def test_esc10_itself_loads(tmp_path):
    splits = load_splits(Esc50Data(root=str(ESC10)), tmp_path, 0, _quiet)
    assert len(splits.classes) == 10
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (240, 80, 80)
    for part in (splits.train, splits.validation, splits.test):
        assert len(set(part.labels.sum(axis=0).tolist())) == 1  # as many clips of each class
        assert 3.5 < part.length.min() / SAMPLE_RATE < part.length.max() / SAMPLE_RATE < 7.5


# --- clips and splits -----------------------------------------------------------------------------


def _clips(names, samples=10, labels=None):
    """Clips of `samples` each; sample s of clip i is 100 i + s."""
    count = len(names)
    flat = (100 * np.arange(count)[:, None] + np.arange(samples)).astype(np.int16).reshape(-1)
    return ClipSet(
        sources=(flat,),
        source=np.zeros(count, np.int64),
        start=np.arange(count) * samples,
        length=np.full(count, samples),
        labels=np.ones((count, 1), np.uint8) if labels is None else labels,
        names=np.array(names, dtype=str),
    )


def test_a_crop_is_drawn_from_the_whole_clip():
    clips = _clips(["a", "b"])
    waveform, length = clips.read(np.repeat([0, 1], 200), max_samples=4, generator=np.random.default_rng(0))
    begin = waveform[:, 0] - 100 * torch.arange(2).repeat_interleave(200)
    assert set(begin.tolist()) == set(range(7))
    assert torch.equal(waveform, waveform[:, :1] + torch.arange(4))
    assert (length == 4).all()


def test_a_clip_that_is_shorter_than_the_crop_is_left_whole():
    clips = _clips(["a", "b"])
    clips = dataclasses.replace(clips, length=np.array([10, 3]))
    waveform, length = clips.read(np.array([0, 1]), max_samples=6, generator=np.random.default_rng(0))
    assert length.tolist() == [6, 3]
    assert waveform[1].tolist() == [100, 101, 102, 0, 0, 0]


def test_joined_and_taken_clips_keep_their_audio():
    joined = _clips(["a", "b"]) + _clips(["c", "d", "e"], samples=5)
    assert joined.names.tolist() == list("abcde")
    taken = joined.take(np.array([4, 1]))
    assert taken.names.tolist() == ["e", "b"]
    waveform, length = taken.read(np.array([0, 1]))
    assert length.tolist() == [5, 10]
    assert waveform[0].tolist() == [200, 201, 202, 203, 204, 0, 0, 0, 0, 0]
    assert waveform[1].tolist() == list(range(100, 110))
    assert joined.hours == pytest.approx(35 / SAMPLE_RATE / 3600)
    assert joined.unlabelled().labels.shape == (5, 0)


def _splits(**changes):
    parts = {"pool": "ab", "train": "ab", "validation": "cd", "test": "ef"} | changes
    clips = {name: _clips(list(names)) for name, names in parts.items()}
    return Splits(**clips, classes=("x",), single_label=True, fingerprint="")


def test_the_pool_may_hold_what_is_trained_on():
    _splits(pool="ab", train="bg")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
        ("pool", "validation"),
        ("pool", "test"),
    ],
)
def test_a_recording_on_two_sides_is_refused_by_name(first, second):
    apart = {"pool": "ab", "train": "gh", "validation": "cd", "test": "ef"}
    shared = apart[first][-1]
    with pytest.raises(DataError, match=f"in both {first} and {second}.* {shared}$"):
        _splits(**apart | {second: "z" + shared})


@pytest.mark.parametrize("name", ["pool", "train", "validation", "test"])
def test_an_empty_split_is_refused_by_name(name):
    with pytest.raises(DataError, match=f"{name} split is empty"):
        _splits(**{name: ""})


def _skewed_labels(count=1_000, num_classes=10, unlabelled=0):
    """Multi-label, from half of the clips down to one in a hundred."""
    generator = np.random.default_rng(1)
    share = 0.5 * 0.02 ** (np.arange(num_classes) / (num_classes - 1))
    labels = (generator.random((count, num_classes)) < share).astype(np.uint8)
    silent = ~labels.any(axis=1)
    labels[silent, generator.integers(0, num_classes, silent.sum())] = 1
    labels[generator.permutation(count)[:unlabelled]] = 0
    return labels


def test_nested_order_is_a_permutation_of_its_own_per_seed():
    labels = _skewed_labels()
    order = nested_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(len(labels)))
    np.testing.assert_array_equal(nested_order(labels, np.random.default_rng(0)), order)
    assert not np.array_equal(nested_order(labels, np.random.default_rng(1)), order)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_beginning_of_the_nested_order_is_stratified(seed):
    """A class has its share at every length, to 1 % of the clips; by chance it would miss by twice that."""
    labels = _skewed_labels()
    due = np.arange(1, len(labels) + 1)[:, None] * labels.mean(axis=0)

    def missed(order):
        return labels[order].cumsum(axis=0) - due

    ours = missed(nested_order(labels, np.random.default_rng(seed)))
    chance = missed(np.random.default_rng(seed).permutation(len(labels)))
    assert np.abs(ours).max() <= 10
    assert np.sqrt(np.square(ours).mean()) < 0.5 * np.sqrt(np.square(chance).mean())


def test_a_single_label_beginning_is_stratified_to_the_clip():
    labels = np.eye(10, dtype=np.uint8).repeat(40, axis=0)
    taken = labels[nested_order(labels, np.random.default_rng(0))].cumsum(axis=0)
    due = np.arange(1, 401)[:, None] / 10
    assert np.abs(taken - due).max() < 1
    assert (taken[39] == 4).all()


def test_clips_without_labels_come_last():
    labels = _skewed_labels(unlabelled=100)
    order = nested_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(len(labels)))
    assert labels[order[:-100]].any(axis=1).all()
    assert not labels[order[-100:]].any()


def test_a_subset_has_at_least_one_clip():
    clips = _clips(list("abc"))
    assert len(labelled_subset(clips, 0.01, np.random.default_rng(0))) == 1
    assert len(labelled_subset(clips, 1.0, np.random.default_rng(0))) == 3
