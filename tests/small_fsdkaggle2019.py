"""Small copies of FSDKaggle2019: six classes, a few clips in each of its sets."""

import csv

from .small_datasets import sound_file, write_lines

VOCABULARY = ("Bark", "Bathtub_(filling_or_washing)", "Hi-hat", "Meow", "Run", "Zipper_(clothing)")
SETS = {  # its tables' names and columns
    "train_curated": ("fname", "labels", "freesound_id", "license"),
    "train_noisy": ("fname", "labels", "flickr_video_URL", "license"),
    "test": ("fname", "labels", "usage", "freesound_id", "license"),
}


def rows_of(name, count):
    """Clips of one label and of two."""
    rows = []
    for i in range(count):
        labels = [VOCABULARY[i % 6], VOCABULARY[(i + 2) % 6]][: 1 + i % 2]
        row = {
            "fname": f"{sorted(SETS).index(name)}{i:07x}.wav",
            "labels": ",".join(labels),
            "license": "CC0",
        }
        row["freesound_id"] = f"{name}-{i}"
        row["flickr_video_URL"] = f"http://www.flickr.com/videos/{i}@N00/{i}/"
        row["usage"] = "Private" if i % 4 else "Public"
        rows.append(row)
    return rows


def write_tables(root, rows, **options):
    """`rows` by set."""
    for name, columns in SETS.items():
        write_lines(table_of(root, name), columns, rows[name], **options)
    with (root / "FSDKaggle2019.meta" / "vocabulary.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(enumerate(VOCABULARY))


def table_of(root, name):
    return root / "FSDKaggle2019.meta" / f"{name}_post_competition.csv"


def folder_of(root, name):
    return root / f"FSDKaggle2019.audio_{name}"


def write_fsdkaggle2019(root):
    """Its rows, by set."""
    rows = {"train_curated": rows_of("train_curated", 36), "train_noisy": rows_of("train_noisy", 30)}
    rows["test"] = rows_of("test", 12)
    write_tables(root, rows)
    for start, (name, clips) in enumerate(rows.items()):
        folder_of(root, name).mkdir()
        for i, row in enumerate(clips):
            (folder_of(root, name) / row["fname"]).write_bytes(sound_file("wav", 44_100, 100 * start + i))
    return rows
