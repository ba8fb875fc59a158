"""`python -m workbench.data inspect FOLDER`: a prepared set in numbers, and as a sheet of spectrograms."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.audio.logmel import LogMel
from workbench.config import SAMPLE_RATE, FrontEndConfig
from workbench.data.clips import DataError
from workbench.data.prepare_command import describe
from workbench.data.prepared import FILES, Prepared, open_prepared

SHEET_CLIPS = 20
SHEET_SECONDS = 10.0
SHOWN_DUPLICATES, SHOWN_ALIKE = 5, 4  # groups, and clips of a group
SHEET_ENDINGS = (".png", ".pdf", ".svg", ".jpg")
BAR = 30  # characters of the longest bar


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand; its `run(options)` is in the parsed options."""
    parser = commands.add_parser("inspect", help="what is in a prepared set")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a prepared set")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="spectrograms (default: figures/<folder's name>.png)"
    )
    parser.set_defaults(run=run_inspect)


def run_inspect(options: argparse.Namespace) -> int:
    """Prints, and draws the sheet. Raises DataError or OSError."""
    sheet = options.sheet or Path("figures") / f"{options.folder.resolve().name}.png"
    if sheet.suffix.lower() not in SHEET_ENDINGS:
        raise DataError(f"--sheet: must end in one of {', '.join(SHEET_ENDINGS)}, is {sheet}")
    console = Console(highlight=False, soft_wrap=True)
    prepared = open_prepared(options.folder)
    describe(options.folder, console)
    seconds = prepared.clips.length / SAMPLE_RATE
    shortest, median, longest = np.quantile(seconds, (0, 0.5, 1))
    console.print(f"a clip is {shortest:.2f} to {longest:.2f} s long, {median:.2f} s in the median")
    console.print(_histogram(prepared))
    for line in duplicates(prepared):
        console.print(line, markup=False)
    draw_sheet(prepared, sheet)
    console.print(f"spectrograms: {sheet}", markup=False)
    return 0


def _histogram(prepared: Prepared) -> Table:
    """Clips of each class, the most frequent first."""
    header = prepared.header
    counts = np.bincount(prepared.clips.labels.pairs()[1], minlength=len(header.classes))
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("clips", justify="right")
    table.add_column("")
    for label in np.argsort(-counts, kind="stable"):
        bar = "█" * round(BAR * counts[label] / max(1, counts.max()))
        table.add_row(escape(header.classes[label]), f"{counts[label]:,}", bar)
    return table


def duplicates(prepared: Prepared) -> list[str]:
    """Clips that sound the same, those that are in two splits first."""
    digest = np.asarray(prepared.digest)
    _, group, counts = np.unique(digest, return_inverse=True, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if not len(twice):
        return ["no two clips sound the same"]
    members = np.flatnonzero(counts[group] > 1)
    members = members[np.argsort(group[members], kind="stable")]
    groups = np.split(members, np.flatnonzero(np.diff(group[members])) + 1)
    across = [clips for clips in groups if len(set(prepared.split[clips].tolist())) > 1]
    files = prepared.lines(FILES)
    lines = [
        f"{len(members):,} clips sound the same as another, {len(across):,} of their groups in two splits"
    ]
    for clips in sorted(groups, key=lambda clips: len(set(prepared.split[clips].tolist())) == 1)[
        :SHOWN_DUPLICATES
    ]:
        more = f" and {len(clips) - SHOWN_ALIKE:,} more" if len(clips) > SHOWN_ALIKE else ""
        lines.append("  " + " = ".join(files[clip] for clip in clips[:SHOWN_ALIKE]) + more)
    return lines


def draw_sheet(prepared: Prepared, path: Path) -> None:
    """Log-mel spectrograms of clips of as many classes as there is room for, each with its classes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    chosen = _of_many_classes(prepared)
    columns = 4
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(12, 1.9 * rows + 0.6), layout="constrained", squeeze=False
    )
    front_end = LogMel(FrontEndConfig())
    hop_seconds = front_end.config.hop_ms / 1000
    for axis, clip in zip(axes.flat, chosen, strict=False):
        waveform, _ = prepared.clips.read(
            np.array([clip]),
            min_samples=front_end.config.hop_samples,
            max_samples=round(SHEET_SECONDS * SAMPLE_RATE),
        )
        log_mel = front_end.log_mel(waveform)[0].T.numpy()
        extent = (0.0, log_mel.shape[1] * hop_seconds, 0.5, log_mel.shape[0] + 0.5)
        axis.imshow(log_mel, origin="lower", aspect="auto", cmap="magma", extent=extent)
        labels = np.flatnonzero(prepared.clips.labels.matrix(np.array([clip]))[0])
        names = ", ".join(prepared.header.classes[label] for label in labels) or "no label"
        axis.set_title(names if len(names) < 40 else f"{names[:38]} …", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(chosen) :]:
        axis.set_axis_off()
    figure.supxlabel("time / s", fontsize=9)
    figure.supylabel("mel band", fontsize=9)
    figure.suptitle(
        f"{prepared.header.layout}: {len(chosen)} of {prepared.header.num_clips:,} clips", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _of_many_classes(prepared: Prepared) -> list[int]:
    """The first clip of each class, then others, evenly spread."""
    clip, label = prepared.clips.labels.pairs()
    _, first = np.unique(label, return_index=True)
    count = min(SHEET_CLIPS, prepared.header.num_clips)
    spread = np.linspace(0, prepared.header.num_clips - 1, count).astype(int)
    classes = (
        clip[first][np.linspace(0, len(first) - 1, min(count, len(first))).astype(int)] if len(first) else []
    )
    return list(dict.fromkeys([*(int(c) for c in classes), *(int(c) for c in spread)]))[:count]
