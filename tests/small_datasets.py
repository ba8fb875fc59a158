"""Small copies of ESC-50, and what tests ask of splits."""

import csv
import functools
import io

import numpy as np
import pytest
import soundfile

from workbench.data import LAYOUTS

COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
CATEGORIES = {0: ("dog", True), 17: ("rain", False), 40: ("helicopter", True)}
FORMATS = (("wav", 44_100), ("flac", 16_000), ("ogg", 22_050), ("mp3", 44_100), ("wav", 8_000))


def quiet(text):
    """For `report`."""


def no_report(text):
    pytest.fail(f"prepared again: {text}")


@functools.cache  # the same bytes in every copy; an encoder gives each Ogg stream a number by chance
def sound_file(extension, rate, number, channels=1):
    """The bytes of one with noise of about half a second."""
    generator, file = np.random.default_rng(number), io.BytesIO()
    frames = round(rate * generator.uniform(0.4, 0.6))
    samples = 0.1 * generator.standard_normal(frames if channels == 1 else (frames, channels))
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
                    (root / "audio" / name).write_bytes(sound_file(extension, rate, len(rows)))
                    values = (name, fold, target, category, in_esc10, source, take)
                    rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    write_table(root, rows)
    return rows


def write_lines(path, columns, rows, delimiter=",", encoding="utf-8", newline="\n"):
    """A table of these columns of `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(
            file, columns, extrasaction="ignore", lineterminator=newline, delimiter=delimiter
        )
        writer.writeheader()
        writer.writerows(rows)


def write_table(root, rows, columns=COLUMNS, encoding="utf-8", newline="\n"):
    write_lines(root / "meta" / "esc50.csv", columns, rows, encoding=encoding, newline=newline)


def parts_of(splits):
    return {name: getattr(splits, name) for name in ("pool", "train", "validation", "test")}


def identity_of(clips):
    """Which clips, in which order; a recording may have several."""
    return list(zip(clips.names.tolist(), clips.source.tolist(), clips.start.tolist(), strict=True))


def read_leniently(layout, root):
    """What the copy's tables list, and what is wrong with them."""
    faults = []
    listing = LAYOUTS[layout].read(root, lambda where, reason: faults.append((where, reason)))
    return listing, faults


def labels_by_name(splits, part):
    """The names of the classes of each clip, by that of its recording; each recording has one clip."""
    clips = getattr(splits, part)
    classes = np.array(splits.classes)
    assert len(set(clips.names.tolist())) == len(clips)
    marked = clips.labels.matrix() == 1
    return {name: set(classes[row]) for name, row in zip(clips.names.tolist(), marked, strict=True)}
