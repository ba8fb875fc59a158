"""What is quick for millions of clips gives what the plain way gives, to the bit; tried on small indices."""

import hashlib

import numpy as np
import pytest

from workbench.data import clips as clips_module
from workbench.data import kept, load_splits
from workbench.data.clips import Splits
from workbench.data.labels import Labels
from workbench.data.prepared import COLUMNS, FAULTS, FORMAT, Header, sha256, write_columns
from workbench.data_config import AudioSetData, Esc50Data, FolderData
from workbench.random_streams import numpy_stream

from .small_datasets import no_report, parts_of

NUM_CLASSES = 9
SPLITS = {
    "audioset": ("balanced train", "eval", "unbalanced train"),
    "esc50": tuple(f"fold {fold}" for fold in range(1, 6)),
    "folder": ("all",),
}


def _write_index(folder, layout, seed, clips=400):
    """Clips of 0 to 4 classes, some of them rare, one of none; recordings of several takes."""
    generator = np.random.default_rng(seed)
    splits = SPLITS[layout]
    split = np.sort(generator.integers(0, len(splits), clips)).astype(np.uint8)
    takes = generator.integers(0, 150, clips)
    share = 0.5 * 0.01 ** (np.arange(NUM_CLASSES) / (NUM_CLASSES - 1))
    share[4] = 0
    matrix = generator.random((clips, NUM_CLASSES)) < share
    labels = Labels.of_matrix(matrix)
    columns = {
        "shard": generator.integers(0, 3, clips).astype(np.uint32),
        "start": generator.integers(0, 10**6, clips),
        "length": generator.integers(1, 10**5, clips),
        "split": split,
        "recording": np.array([f"é{take}" * (1 + take % 3) + f"/{s}" for take, s in np.c_[takes, split]]),
        "digest": generator.integers(0, 2**63, clips).astype(np.uint64),
        "offsets": labels.offsets,
        "classes": labels.classes,
    }
    folder.mkdir()
    write_columns(folder, columns)
    (folder / FAULTS).write_text("")
    Header(
        format=FORMAT,
        layout=layout,
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        single_label=layout == "esc50",
        splits={name: int((split == number).sum()) for number, name in enumerate(splits)},
        samples=int(columns["length"].sum()),
        fingerprint="0" * 64,
        shards=3,
        sha256={f"{name}.npy": sha256(folder / f"{name}.npy") for name in COLUMNS},
    ).write(folder)
    return columns | {"matrix": matrix}


def _plain_chance(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _plain_sides(config, columns):
    """Train, validation and test, clip by clip."""
    of = np.array([SPLITS[config.kind][number] for number in columns["split"]])
    chance = np.array([_plain_chance(name) for name in columns["recording"]])
    if config.kind == "audioset":
        trained = np.isin(of, ["balanced train", "unbalanced train"][: 1 + (config.subset == "full")])
        held, test = trained & (chance < config.validation_share), of == "eval"
        sides = trained & ~held, held, test
    elif config.kind == "esc50":
        test, held = (of == f"fold {fold}" for fold in (config.test_fold, config.test_fold % 5 + 1))
        sides = ~held & ~test, held, test
    else:
        test, other = chance < config.test_share, chance < config.validation_share + config.test_share
        sides = ~other, other & ~test, test
    return [np.flatnonzero(side) for side in sides]


def _plain_order(matrix, generator):
    """The class that is furthest behind its share gives the next of its clips."""
    count, num_classes = matrix.shape
    shuffled = generator.permutation(count).tolist()
    ties = generator.permutation(num_classes) * 1e-9
    share = matrix.sum(axis=0) / count
    queues = [[clip for clip in shuffled if matrix[clip, label]] for label in range(num_classes)]
    taken, order = np.zeros(num_classes), []
    while any(queues):
        behind = (len(order) + 1) * share - taken + ties
        behind[[not queue for queue in queues]] = -np.inf
        clip = queues[int(np.argmax(behind))][0]
        order.append(clip)
        taken[matrix[clip]] += 1
        queues = [[other for other in queue if other != clip] for queue in queues]
    return order + [clip for clip in shuffled if not matrix[clip].any()]


def _load(config, root):
    return load_splits(config, root, 5, no_report)


CONFIGS = {
    "all of the balanced": lambda root: AudioSetData(root=root, validation_share=0.3),
    "some of the full": lambda root: AudioSetData(root=root, subset="full", label_fraction=0.4),
    "folds": lambda root: Esc50Data(root=root, test_fold=5, label_fraction=0.5),
    "held out twice": lambda root: FolderData(root=root, test_share=0.2),
    "one clip": lambda root: FolderData(root=root, label_fraction=0.001),
}


@pytest.mark.parametrize("kept_from", [1, 10**6])
@pytest.mark.parametrize("name", CONFIGS)
def test_splits_are_those_of_the_plain_way(name, kept_from, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "KEPT_FROM", kept_from)
    for seed in range(3):
        config = CONFIGS[name](str(tmp_path / f"index {seed}"))
        columns = _write_index(tmp_path / f"index {seed}", config.kind, seed)
        train, validation, test = _plain_sides(config, columns)
        order = _plain_order(columns["matrix"][train], numpy_stream(5, "labels"))
        labelled = train[order[: max(1, round(config.label_fraction * len(train)))]]
        expected = {"pool": train, "train": labelled, "validation": validation, "test": test}
        for _ in range(2):  # found, and found again where it was kept
            splits = _load(config, tmp_path / "root")
            for part, clips in parts_of(splits).items():
                which = expected[part]
                for field, column in (("source", "shard"), ("start", "start"), ("length", "length")):
                    np.testing.assert_array_equal(getattr(clips, field), columns[column][which])
                assert clips.names.tolist() == list(clips.names) == columns["recording"][which].tolist()
                matrix = columns["matrix"][which] if part != "pool" else np.empty((len(which), 0))
                np.testing.assert_array_equal(clips.labels.matrix(), matrix)
            judged = np.concatenate([validation, test])
            np.testing.assert_array_equal(splits.judged_by, columns["digest"][judged])


def _same(first, second):
    return all(
        a.names.tolist() == b.names.tolist() and a.start.tolist() == b.start.tolist()
        for a, b in zip(parts_of(first).values(), parts_of(second).values(), strict=True)
    )


def test_what_is_kept_is_not_found_again(tmp_path, monkeypatch):
    _write_index(tmp_path / "index", "audioset", 0)
    config = AudioSetData(root=str(tmp_path / "index"), subset="full")
    monkeypatch.setattr(kept, "KEPT_FROM", 1)
    first = _load(config, tmp_path / "root")

    def again(*arguments):
        raise AssertionError("is found again")

    monkeypatch.setattr(clips_module, "nested_order", again)
    monkeypatch.setattr("workbench.data.recordings.chance_of", again)
    assert _same(_load(config, tmp_path / "root"), first)
    for other in ({"label_fraction": 0.5}, {"subset": "balanced"}):
        with pytest.raises(AssertionError, match="is found again"):
            _load(AudioSetData(**{"root": config.root, "subset": "full"} | other), tmp_path / "root")
    with pytest.raises(AssertionError, match="is found again"):
        load_splits(config, tmp_path / "root", 6, no_report)


def test_what_is_kept_may_be_damaged_or_not_written(tmp_path, monkeypatch):
    _write_index(tmp_path / "index", "audioset", 0)
    config = AudioSetData(root=str(tmp_path / "index"), subset="full")
    plain = _load(config, tmp_path / "root")
    assert not (tmp_path / "root").exists()  # of few clips nothing is kept
    monkeypatch.setattr(kept, "KEPT_FROM", 1)
    for damaged in (bytes, lambda whole: whole[:200], lambda whole: b"", lambda whole: whole[:-1] + b"?"):
        assert _same(_load(config, tmp_path / "root"), plain)
        files = sorted((tmp_path / "root").iterdir())
        assert len(files) == 2
        for file in files:
            file.write_bytes(damaged(file.read_bytes()))
    assert _same(_load(config, tmp_path / "root"), plain)
    (tmp_path / "file").touch()
    assert _same(_load(config, tmp_path / "file"), plain)


def _clips(names):
    count = len(names)
    zeros = np.zeros(count, np.int64)
    labels = Labels.of_lists([[0]] * count, 1)
    return clips_module.ClipSet((np.zeros(1, np.int16),), zeros, zeros, zeros + 1, labels, np.array(names))


def _splits(train, validation):
    parts = {"pool": _clips(train), "train": _clips(train), "validation": _clips(validation)}
    return Splits(**parts, test=_clips(["t"]), classes=("x",), single_label=True, fingerprint="")


@pytest.mark.parametrize("all_alike", [False, True], ids=["their hashes", "hashes that are all alike"])
def test_recordings_on_two_sides_are_found_by(all_alike, monkeypatch):
    """Texts of any width; the hash only says where to look."""
    if all_alike:
        monkeypatch.setattr(clips_module, "_hashes", lambda names: np.zeros(len(names), np.uint64))
    _splits(["a", "b", "ab"], ["c", "a much longer name", "ba"])
    with pytest.raises(clips_module.DataError, match=r"^2 recordings are in both pool and validation.* ab$"):
        _splits(["b", "ab", "b"], ["c", "a much longer name", "b", "ab"])
