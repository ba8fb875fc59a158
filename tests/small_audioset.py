"""Small copies of AudioSet, in the layout of Google's tables."""

from pathlib import Path

import numpy as np
import soundfile

CLASSES = {  # by mid
    "/m/09x0r": "Speech",
    "/m/05zppz": "Male speech, man speaking",
    "/t/dd00088": "Gush",
    "/m/04rlf": "Music",
}
SPLITS = {"eval": "eval", "balanced train": "balanced_train", "unbalanced train": "unbalanced_train"}
NAMINGS = (  # of a video, start and end in seconds
    "Y{0}.wav",
    "{0}.flac",
    "{0}_{1:.3f}.wav",
    "{0}_{1:.0f}.mp3",
    "Y{0}_{1:.3f}_{2:.3f}.wav",
    "{0}_{1:.0f}_{2:.0f}.ogg",
    "{0}_{1:06.0f}_{2:06.0f}.wav",
    "{0}_{1:.1f}-{2:.1f}.ogg",
    "{0}_{1:.0f}000_{2:.0f}000.flac",
)


def segments(counts):
    """Of so many clips of each split: split, video, start in seconds and mids."""
    mids, rows = list(CLASSES), []
    for split, count in counts.items():
        for number in range(count):
            video = f"{'-_Yaz9'[number % 6]}{SPLITS[split][:3]}{number:07d}"
            labels = {mids[number % len(mids)], mids[number // 2 % len(mids)]}
            rows.append((split, video, 10.0 * (number % 7), sorted(labels)))
    return rows


def write_tables(root, rows, classes=CLASSES):
    """As they are published: comments first, the header among them; a space behind each comma."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [f'{index},{mid},"{name}"' for index, (mid, name) in enumerate(classes.items())]
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *lines, ""]))
    for split, name in SPLITS.items():
        of_split = [row for row in rows if row[0] == split]
        lines = [
            "# Segments csv created Sun Mar  5 10:54:31 2017",
            f"# num_ytids={len(of_split)}, num_segs={len(of_split)}, num_unique_labels={len(classes)}",
            "# YTID, start_seconds, end_seconds, positive_labels",
        ]
        lines += [
            f'{video}, {start:.3f}, {start + 10:.3f}, "{",".join(labels)}"'
            for _, video, start, labels in of_split
        ]
        (root / f"{name}_segments.csv").write_text("\n".join([*lines, ""]))


def write_clip(path, number):
    """Noise of about half a second, of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    samples = 0.1 * generator.standard_normal(round(16_000 * generator.uniform(0.4, 0.6)))
    soundfile.write(path, samples, 16_000)


def write_audioset(root, counts=None, naming="Y{0}.wav"):
    """A folder a split; the rows, as `segments` gives them."""
    rows = segments(counts or {"eval": 8, "balanced train": 16, "unbalanced train": 24})
    write_tables(root, rows)
    for number, (split, video, start, _) in enumerate(rows):
        write_clip(Path(root) / f"{SPLITS[split]}_segments" / naming.format(video, start, start + 10), number)
    return rows
