"""MagnaTagATune's layout: the most frequent tags, split by folder."""

import itertools
import re

import pytest

from workbench.data import fingerprint, load_splits
from workbench.data.clips import DataError
from workbench.data_config import MagnaTagATuneData

from .small_datasets import parts_of, quiet, read_leniently
from .small_magnatagatune import FOLDERS, FREQUENT, RARE, row_of, write_magnatagatune, write_table

# Clips in each folder, and those with one of the 50 tags: counted in metadata/magnatagatune.json.gz of
# p-lambda/jukemir. Three of them are empty files, in 6, 8 and 9, with such tags.
IN_FOLDER = (1108, 1543, 1562, 1238, 2421, 1604, 1788, 1163, 1144, 1773, 1417, 1948, 1825, 1677, 1547, 2105)
TAGGED = (914, 1260, 1250, 1024, 1953, 1269, 1491, 933, 907, 1467, 1148, 1634, 1529, 1339, 1270, 1723)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("mtt") / "copy"
    return root, write_magnatagatune(root)


@pytest.fixture
def tables(copy, tmp_path):
    """The table without its audio; whoever changes a row has one of their own."""
    rows = [dict(row) for row in copy[1]]
    write_table(tmp_path, rows)
    return tmp_path, rows


def test_clips_are_split_by_folder_and_have_their_tags(copy, tmp_path):
    root, rows = copy
    splits = load_splits(MagnaTagATuneData(root=str(root)), tmp_path, 0, quiet)
    folders = {name: {song[0] for song in part.names} for name, part in parts_of(splits).items()}
    assert folders == {
        "pool": set("0123456789ab"),
        "train": set("0123456789ab"),
        "validation": {"c"},
        "test": set("def"),
    }
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 2, 6)
    tagged = [row for row in rows if any(row[tag] == "1" for tag in FREQUENT)]
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        found = [{splits.classes[n] for n in marked.nonzero()[0]} for marked in part.labels.matrix()]
        expected = [
            (re.sub(r"-\d+-\d+\.mp3$", "", row["mp3_path"]), [tag for tag in FREQUENT if row[tag] == "1"])
            for row in tagged
            if row["mp3_path"][0] in folders[name]
        ]
        assert sorted(zip(part.names, map(sorted, found), strict=True)) == sorted(expected)


def test_classes_are_the_most_frequent_tags(copy):
    listing, faults = read_leniently("magnatagatune", copy[0])
    assert not faults
    assert set(listing.classes) == set(FREQUENT)
    counts = {tag: sum(row[tag] == "1" for row in copy[1]) for tag in FREQUENT}
    assert len(set(counts.values())) > 1
    assert list(listing.classes) == sorted(FREQUENT, key=lambda tag: (-counts[tag], tag))


def test_a_tag_that_becomes_frequent_takes_the_place_of_the_rarest(tables):
    root, rows = tables
    last = read_leniently("magnatagatune", root)[0].classes[-1]
    for row in rows[:12]:
        row[RARE[1]] = "1"
    write_table(root, rows)
    listing, _ = read_leniently("magnatagatune", root)
    assert listing.classes[0] == RARE[1]
    assert set(listing.classes) == {*FREQUENT, RARE[1]} - {last}


def test_a_full_size_table_gives_the_papers_15247_training_clips(tmp_path):
    """The table has 15,250: it does not say that three files are empty."""
    tags = itertools.cycle(FREQUENT)
    rows = []
    for folder, clips, tagged in zip(FOLDERS, IN_FOLDER, TAGGED, strict=True):
        for clip in range(clips):
            chosen = {next(tags)} if clip < tagged else {RARE[0]} if clip % 50 == 0 else set()
            file = f"{folder}/song_{clip // 9}-{29 * clip}-{29 * clip + 29}.mp3"
            rows.append(row_of(len(rows), file, chosen))
    assert len(rows) == 25_863
    write_table(tmp_path, rows)
    listing, faults = read_leniently("magnatagatune", tmp_path)
    assert not faults
    counts = {"train": 15_247 + 3, "validation": 1529, "test": 4332}
    assert {split: sum(row.split == split for row in listing.rows) for split in counts} == counts
    assert len(listing.rows) == sum(counts.values())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("mp3_path", "g/band-album-01-song-0-29.mp3", "mp3_path must be FOLDER/SONG-START-END.mp3"),
        ("mp3_path", "0/band-album-01-song.mp3", "mp3_path must be"),
        ("mp3_path", "0/../../band-0-29.mp3", "mp3_path must be"),
        ("mp3_path", "/0/band-0-29.mp3", "mp3_path must be"),
        ("mp3_path", "", "mp3_path must be"),
        ("mp3_path", "0/band-album-00-song-0-29.mp3", "is in line 2 too"),
        ("tag 07", "2", "tag 07 must be 0 or 1, is '2'"),
        ("tag 07", "", "tag 07 must be 0 or 1, is ''"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_the_others_stay(tables, column, value, reason):
    root, rows = tables
    before, _ = read_leniently("magnatagatune", root)
    rows[3][column] = value
    write_table(root, rows)
    listing, [(where, why)] = read_leniently("magnatagatune", root)
    assert where == f"{root / 'annotations_final.csv'}, line 5"
    assert reason in why
    assert {row.file for row in before.rows} - {row.file for row in listing.rows} == {
        "1/band-album-01-song-0-29.mp3"
    }


def test_a_line_that_is_cut_short_is_named(tables):
    root, rows = tables
    table = root / "annotations_final.csv"
    table.write_text(table.read_text() + "99\t0\t1\n")
    listing, [(where, why)] = read_leniently("magnatagatune", root)
    assert where == f"{table}, line {len(rows) + 2}"
    assert "has no mp3_path" in why
    assert len(listing.rows) == 32


def test_files_that_are_empty_as_published_are_named_and_can_be_left_out(copy, tmp_path):
    root = tmp_path / "copy"
    rows = write_magnatagatune(root)
    (root / rows[0]["mp3_path"]).write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(rows[0]["mp3_path"])):
        load_splits(MagnaTagATuneData(root=str(root)), tmp_path / "prepared", 0, quiet)
    config = MagnaTagATuneData(root=str(root), skip_unreadable=True)
    splits = load_splits(config, tmp_path / "prepared", 0, quiet)
    assert splits.left_out == (rows[0]["mp3_path"],)
    assert len(splits.train) == 23


def test_too_few_tags_are_named(tables):
    root, rows = tables
    write_table(root, rows, ("clip_id", *FREQUENT[:40], "mp3_path"))
    listing, [(where, why)] = read_leniently("magnatagatune", root)
    assert where == str(root / "annotations_final.csv")
    assert "clips of 40 tags alone; needs 50" in why
    assert len(listing.classes) == 40


def test_a_missing_column_stops_a_study(tables):
    root, rows = tables
    write_table(root, rows, ("clip_id", *FREQUENT))
    with pytest.raises(DataError, match="has no column mp3_path"):
        fingerprint(MagnaTagATuneData(root=str(root)))


def test_the_order_and_the_form_of_lines_and_columns_mean_nothing(tables):
    root, rows = tables
    config = MagnaTagATuneData(root=str(root))
    before = fingerprint(config)
    columns = ("mp3_path", *reversed(FREQUENT), *RARE, "clip_id")
    write_table(root, rows[::-1], columns, newline="\r\n", encoding="utf-8-sig")
    assert fingerprint(config) == before


def test_a_table_without_tags_is_refused(tables):
    write_table(tables[0], [])
    with pytest.raises(DataError, match="has no clip with a tag"):
        read_leniently("magnatagatune", tables[0])
