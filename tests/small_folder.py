"""Small folders of recordings with labels, as their owners keep them."""

import csv

import numpy as np
import soundfile

COLUMNS = ("file", "labels", "split", "recording")


def write_sound(path, number, seconds=0.5, rate=16_000):
    """Noise, another for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(round(rate * seconds)), rate)


def folder_rows(clips=40):
    """Three classes, every fourth clip of two; every tenth for validation, the next one for the test."""
    names = ("rain", "dog bark", "wind")
    split_of = {0: "validation", 1: "test", 5: "validation", 6: "test"}
    return [
        {
            "file": f"audio/{number:03d}.{'flac' if number % 3 else 'wav'}",
            "labels": names[number % 3] + (f"; {names[(number + 1) % 3]}" if number % 4 == 0 else ""),
            "split": split_of.get(number % 10, "train"),
            "recording": f"take {number // 2}" if number % 10 in (2, 3) else "",
        }
        for number in range(clips)
    ]


def write_table(root, rows, columns=COLUMNS, encoding="utf-8", newline="\n"):
    root.mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)


def write_folder(root, clips=40):
    """`labels.csv` and its audio; the rows."""
    rows = folder_rows(clips)
    for number, row in enumerate(rows):
        write_sound(root / row["file"], number)
    write_table(root, rows)
    return rows
