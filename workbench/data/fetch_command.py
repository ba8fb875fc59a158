"""`python -m workbench.data fetch NAME --root DIR`: a published dataset, downloaded, compared and unpacked.

DIR/NAME.download keeps the files as published, DIR/NAME is the set. It appears when all of it is there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from workbench.commands import INTERRUPTED, python_command
from workbench.data.clips import DataError
from workbench.data.display import Display
from workbench.data.fetch import RemoteFile, fetch, only_one, set_aside, with_record
from workbench.data.sources import SOURCES, Source
from workbench.data.unpack import DamagedArchive, Unpacker, group_parts
from workbench.settings import digest

FACTS = "fetched.json"  # in a set's folder: what it was made of


def add_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand; its `run(options)` is in the parsed options."""
    parser = commands.add_parser(
        "fetch",
        help="download a published dataset",
        description="Download a published dataset, compare it with its checksums, and unpack it. The same "
        "command goes on where it stopped, and repeats nothing.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="the folder for datasets: the set is DIR/NAME"
    )
    parser.add_argument("--list", action="store_true", help="the sets, their sizes and licences")
    parser.set_defaults(run=run_fetch)


def run_fetch(options: argparse.Namespace) -> int:
    """0 when the set is there; raises DataError or OSError when it is not."""
    console = Console(highlight=False, soft_wrap=True)
    if options.list:
        print_sources(SOURCES, console)
        return 0
    if options.name is None or options.root is None:
        raise DataError("fetch needs a set and a folder: fetch NAME --root DIR; --list shows the sets")
    if options.name not in SOURCES:
        raise DataError(f"no set {options.name!r} is known; there are {', '.join(SOURCES)}")
    try:
        with Display(console) as display:
            fetch_set(options.name, SOURCES[options.name], options.root, display.line, display)
    except KeyboardInterrupt:
        words = [python_command(), "-m", "workbench.data", "fetch", options.name, "--root", str(options.root)]
        print(f"\nInterrupted. What is downloaded is kept; to go on:\n  {shlex.join(words)}", file=sys.stderr)
        return INTERRUPTED
    return 0


def print_sources(sources: Mapping[str, Source], console: Console) -> None:
    """A line for each."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "what", "download", "licence"):
        table.add_column(column)
    for name, source in sources.items():
        table.add_row(name, source.title, _extent(source.files), source.licence)
    Console(highlight=False, width=None if console.is_terminal else 200).print(table)


def fetch_set(
    name: str,
    source: Source,
    root: Path,
    report: Callable[[str], None] = print,
    show: Callable[[str, int, int | None], None] = lambda name, done, total: None,
) -> Path:
    """The folder of the set, `root/name`: made if it is not there, from `root/name.download`.

    `show` is told of a file's name, the bytes done and those in all. Raises DataError or OSError.
    """
    final = root / name
    downloads = root / f"{name}.download"
    _describe(name, source, report)
    if (final / FACTS).is_file():
        report(f"{final}: is there, whole; delete it to fetch it again")
        return final
    if final.exists():
        raise DataError(f"{final}: is there, and not made by fetch; move it away, or name another --root")
    if not source.files:
        raise DataError(f"{name}: cannot be downloaded; {source.bring}")
    with only_one(downloads):
        free = decimal(shutil.disk_usage(root).free)
        report(f"{free} are free in {root}; what is unpacked takes as much again, or more")
        files = with_record(source.files, source.record, report) if source.record else source.files
        if source.record:
            report(f"download: {_extent(files)}, by {source.record}")
        checksums = fetch(files, downloads, report, show)
        try:
            _unpack(name, [downloads / file.name for file in files], checksums, root, report, show)
        except DamagedArchive as damaged:
            names = {path.name for path in damaged.parts}
            if asides := set_aside([file for file in files if file.name in names], downloads):
                raise DataError(
                    f"{damaged}; set aside as {', '.join(asides)}. The same command downloads it again"
                ) from None
            raise
        facts = {
            "set": name,
            "page": source.page,
            "licence": source.licence,
            "terms": source.terms,
            "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "files": {file.name: {"url": file.url, "checksum": checksums[file.name]} for file in files},
        }
        _publish(_aside(root, name, checksums), final, facts)
    report(f"{final}: done; {downloads} is not needed any more, and may be deleted")
    return final


def _describe(name: str, source: Source, report: Callable[[str], None]) -> None:
    report(f"{name}: {source.title}")
    report(f"page: {source.page}")
    report(f"licence: {source.licence}; {source.terms}")
    report(f"download: {_extent(source.files)}")
    report(f"checksums: {source.checksums}")
    if source.bring:
        report(f"to bring: {source.bring}")


def _extent(files: Sequence[RemoteFile]) -> str:
    """How much there is to download, as far as it is known."""
    if not files:
        return "none"
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    sizes = [file.size for file in files if file.size is not None]
    return f"{count}, {decimal(sum(sizes)) if len(sizes) == len(files) else 'size not known beforehand'}"


def _aside(root: Path, name: str, checksums: Mapping[str, str]) -> Path:
    """Where the set is put together, of these very files: an attempt from others is not gone on with."""
    return root / f"{name}.unpacking-{digest(checksums)[:12]}"


def _unpack(
    name: str,
    paths: Sequence[Path],
    checksums: Mapping[str, str],
    root: Path,
    report: Callable[[str], None],
    show: Callable[[str, int, int | None], None],
) -> None:
    aside = _aside(root, name, checksums)
    for stale in root.glob(f"{name}.unpacking-*"):
        if not stale.name.startswith(aside.name):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    unpacker = Unpacker(aside, show)
    archives, files = group_parts(paths)
    for parts in archives:
        report(f"{parts[-1].name}: unpacking")
        unpacker.unpack(parts)
    for path in files:
        unpacker.add(path)


def _publish(aside: Path, final: Path, facts: Mapping[str, object]) -> None:
    """By one rename; where everything lies in one folder, that folder is the set."""
    inside = [path for path in aside.iterdir() if path.name != FACTS]
    folder = inside[0] if len(inside) == 1 and inside[0].is_dir() else aside
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    os.sync()  # else a power cut could leave a set that is there, of empty files
    folder.rename(final)
    if folder != aside:
        aside.rmdir()
