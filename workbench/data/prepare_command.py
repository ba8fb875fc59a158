"""`python -m workbench.data prepare NAME --root DIR`, and `verify FOLDER`: recordings, ready for studies."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from workbench.commands import INTERRUPTED, python_command
from workbench.data import LAYOUTS
from workbench.data.clips import DataError
from workbench.data.display import Display
from workbench.data.listing import Listing
from workbench.data.prepare import prepare
from workbench.data.prepared import FAULTS, REMARKS, Header, is_of_a_set, is_prepared, open_prepared, verify
from workbench.places import DEFAULT_ROOT

SHOWN_FAULTS = 10
# What is wrong with a file; other faults stand in a table, or are of names.
OF_A_FILE = re.compile(
    r"(?<!\.csv): (is not there|has no sound track|holds NaN or infinity|is empty|"
    r"was changed while it was read|cannot be (?:decoded|read)(?= \())(?: \(.*\))?$"
)


def add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand; its `run(options)` is in the parsed options."""
    parser = commands.add_parser(
        "prepare",
        help="decode a copy of a published set, once",
        description="Check a copy of a published set, decode every file to 16 kHz mono, and write it as "
        "shards with an index, for data.root. The same command goes on where it stopped.",
    )
    names = ", ".join(sorted(LAYOUTS))
    parser.add_argument("name", metavar="NAME", choices=sorted(LAYOUTS), help=names)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="the copy")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help=f"written there (default: {DEFAULT_ROOT}/data/NAME)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each CPU core)")
    parser.add_argument("--strict", action="store_true", help="refuse a copy with any fault")
    parser.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace) -> int:
    """0 when the set is there; raises DataError or OSError when it is not."""
    console = Console(highlight=False, soft_wrap=True)
    if options.workers is not None and options.workers < 1:
        raise DataError(f"--workers must be at least 1, is {options.workers}")
    if not options.root.is_dir():
        raise DataError(f"{options.root}: not there; --root must be a copy of {LAYOUTS[options.name].title}")
    folder = options.to or DEFAULT_ROOT / "data" / options.name
    if is_prepared(folder):
        _refuse_other(folder, options)
        console.print(
            f"{folder}: is there, whole, and was not compared with {options.root}; "
            "delete it to prepare it again",
            markup=False,
        )
        describe(folder, console)
        return 0
    if folder.exists() and not all(map(is_of_a_set, folder.iterdir())):
        raise DataError(f"{folder}: holds other things; name another folder with --to")
    listing, table_faults = _read(options.name, options.root)
    console.print(
        f"{options.root}: {len(listing.rows):,} clips of {len(listing.classes)} classes, for {folder}",
        markup=False,
    )
    try:
        with Display(console, unit="clips") as display:
            prepare(
                options.name,
                listing,
                options.root,
                folder,
                table_faults=table_faults,
                workers=options.workers,
                strict=options.strict,
                progress=lambda done, total: display("decoded", done, total),
            )
    except KeyboardInterrupt:
        words = [python_command(), "-m", "workbench.data", "prepare", options.name]
        words += ["--root", str(options.root), "--to", str(folder), *(["--strict"] if options.strict else [])]
        print(f"\nInterrupted. What is decoded is kept; to go on:\n  {shlex.join(words)}", file=sys.stderr)
        return INTERRUPTED
    describe(folder, console)
    return 0


def _refuse_other(folder: Path, options: argparse.Namespace) -> None:
    """Raises DataError where what is prepared there is not what is asked for."""
    prepared = open_prepared(folder)
    if prepared.header.layout != options.name:
        raise DataError(
            f"{folder}: is a prepared {prepared.header.layout}, not {options.name}; "
            "name another folder with --to"
        )
    faults = prepared.lines(FAULTS)
    if options.strict and faults:
        raise DataError(
            "\n".join(
                [
                    f"{folder}: was prepared without --strict, of a copy that has {len(faults)} faults; mend "
                    "them, delete the folder and prepare it again",
                    *_beginning(faults),
                ]
            )
        )


def _read(name: str, root: Path) -> tuple[Listing, list[str]]:
    """What the tables say, and what is wrong with them. Raises DataError with it where no clip is left."""
    faults: list[str] = []
    try:
        return LAYOUTS[name].read(root, lambda where, reason: faults.append(f"{where}: {reason}")), faults
    except DataError as error:
        faults.sort(
            key=lambda fault: ", line " in fault
        )  # a whole table's first: it may be the cause of its lines'
        raise DataError("\n".join([str(error), *_beginning(faults)])) from None


def _beginning(lines: list[str]) -> list[str]:
    """What is shown of `lines`, indented."""
    shown = [f"  {line}" for line in lines[:SHOWN_FAULTS]]
    return shown + [f"  and {len(lines) - SHOWN_FAULTS:,} more"] * (len(lines) > SHOWN_FAULTS)


def describe(folder: Path, console: Console) -> None:
    """What a prepared set is, and what was wrong with its copy."""
    prepared = open_prepared(folder)
    header = prepared.header
    console.print(_summary(header), markup=False)
    layout = LAYOUTS.get(header.layout)
    if layout is not None and (unlike := layout.unlike_published(header)):
        console.print(f"not as published: {', '.join(unlike)}", markup=False)
    faults, counts = by_reason(prepared.lines(FAULTS))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    remarks = prepared.lines(REMARKS)
    for head, lines, name in (
        (f"{len(faults):,} left out ({reasons})", faults, FAULTS),
        (f"{len(remarks):,} remarks", remarks, REMARKS),
    ):
        for line in [f"{head}, all in {folder / name}:", *_beginning(lines)] if lines else []:
            console.print(line, markup=False)
    setting = "pool" if header.layout == "pool" else "data"
    console.print(f"to train on it: --set {setting}.root={shlex.quote(str(folder))}", markup=False)


def by_reason(faults: list[str]) -> tuple[list[str], Counter[str]]:
    """Lines of `FAULTS`, the rarest reason's first, and how many have each.

    A few files that cannot be read must not drown in thousands of clips that were not downloaded.
    """
    reasons = [_reason(line) for line in faults]
    counts = Counter(reasons)
    order = sorted(range(len(faults)), key=lambda number: (counts[reasons[number]], reasons[number]))
    return [faults[number] for number in order], counts


def _reason(fault: str) -> str:
    if found := OF_A_FILE.search(fault):
        return found[1]
    return "in the tables" if ".csv" in fault else "in the names of files"


def _summary(header: Header) -> str:
    splits = ", ".join(f"{name} {count:,}" for name, count in header.splits.items())
    kind = "one class a clip" if header.single_label else "several classes a clip"
    clips = f"{header.num_clips:,} clips, {header.hours:,.2f} hours, {decimal(2 * header.samples)}"
    return "\n".join(
        [
            f"{header.layout}: {clips}; {len(header.classes)} classes, {kind}",
            f"splits: {splits}",
            f"fingerprint: {header.fingerprint}",
        ]
    )


def add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand; its `run(options)` is in the parsed options."""
    parser = commands.add_parser("verify", help="compare a prepared set with its checksums")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a prepared set")
    parser.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """0 when all is as it was written, 1 when not."""
    damaged = verify(options.folder)
    for line in damaged:
        print(line)
    if damaged:
        print(f"{options.folder}: {len(damaged)} files are not sound; delete the folder and prepare it again")
        return 1
    print(f"{options.folder}: all files are as they were written")
    return 0
