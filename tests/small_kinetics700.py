"""Small copies of Kinetics-700, with the sound already extracted from the videos."""

import csv

from .small_audioset import write_clip

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
LABELS = ("abseiling", "massaging person's head", "zumba")


def write_kinetics700_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def kinetics700_rows(split, count):
    return [
        {
            "label": LABELS[number % len(LABELS)],
            "youtube_id": f"{'-_a9'[number % 4]}{split[:4]:4}{number:06d}".replace(" ", "_"),
            "time_start": str(3 * number),
            "time_end": str(3 * number + 10),
            "split": split,
        }
        for number in range(count)
    ]


def clip_name(row):
    return f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"


def write_kinetics700(root, train=24, validate=9, suffix=".flac"):
    """In folders by split and label; the rows of both tables."""
    rows = {"train": kinetics700_rows("train", train), "validate": kinetics700_rows("validate", validate)}
    for split, of_split in rows.items():
        write_kinetics700_table(root / f"{split}.csv", of_split)
        for number, row in enumerate(of_split):
            folder = root / split / row["label"].replace(" ", "_")
            write_clip(folder / f"{clip_name(row)}{suffix}", 1000 * len(split) + number)
    return rows
