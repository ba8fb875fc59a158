"""`python -m workbench.store ls | show ID | gc | verify`: what is kept, why, and what may go."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from workbench.commands import INTERRUPTED
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError
from workbench.store import StageBusy
from workbench.store.local import Entry, Reference, Store

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
NEEDED = "needed by studies (--forget STUDY or --force lets it go)"
NEEDED_NOW = "a study has come to need it"
YOUNG = "used since --older-than"
BUSY = "a process is at it"
SHOWN_KEY = 12  # digits; `show` takes any beginning that is unique


def main(arguments: list[str] | None = None) -> int:
    """0; 1 when `verify` finds damage; 2 when nothing could be done."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    root = str(options.root.resolve())
    try:
        store = Places.read(options.root).store()
        match options.command:
            case "ls":
                return _ls(store, root, console)
            case "show":
                return _show(store, options.id, root, console)
            case "verify":
                return _verify(store, console)
            case _:
                return _gc(store, options, root, console)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where results are kept")
    parser = argparse.ArgumentParser(prog="python -m workbench.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", parents=[common], help="every stage: what it is, its size, who needs it")
    show = commands.add_parser("show", parents=[common], help="one stage, whole")
    show.add_argument("id", help="its id, or the beginning of it")
    commands.add_parser("verify", parents=[common], help="compare every stage with its checksums")
    gc = commands.add_parser(
        "gc",
        parents=[common],
        help="delete what no study needs",
        description="Delete what no study needs: all of it, or what is older, or what is over a size.",
    )
    gc.add_argument("--older-than", metavar="DAYS", type=float, help="since last of use")
    gc.add_argument("--max-size", metavar="SIZE", help="such as 20GB: the longest unused go until it fits")
    gc.add_argument(
        "--forget",
        metavar="STUDY",
        action="append",
        default=[],
        help="this study, by its name in ls, needs nothing",
    )
    gc.add_argument("--force", action="store_true", help="also what studies need")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and delete nothing")
    return parser


def _ls(store: Store, root: str, console: Console) -> int:
    entries, references = store.entries(), store.references()
    if not entries:
        console.print(f"{store.location}: no stages yet", markup=False)
        return 0
    table = Table(box=None, pad_edge=False)
    for column, justify in (("stage", "left"), ("id", "left"), ("what", "left"), ("took", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column, justify in (("size", "right"), ("last used", "left"), ("needed by", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for entry in entries:
        seconds = f"{entry.facts['seconds']:.0f} s" if entry.facts and entry.finished else ""
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        is_needed = entry.finished or entry.unfinished
        needed = _names(references.get(entry.key, ()), root) if is_needed else ""
        table.add_row(
            entry.kind, entry.key[:SHOWN_KEY], _what(entry), seconds, _size(entry.bytes), used, needed or "-"
        )
    Console(highlight=False, width=None if console.is_terminal else 200).print(table)
    size = _size(sum(entry.bytes for entry in entries))
    console.print(f"{len(entries)} stages, {size} in {store.location}", markup=False)
    return 0


def _names(references: Iterable[Reference], root: str) -> str:
    return ", ".join(sorted(reference.name(root) for reference in references))


def _what(entry: Entry) -> str:
    """A stage in a few words."""
    if not entry.finished:
        ending = entry.name.split(".", 1)[1]
        return "unfinished attempt" if entry.unfinished else f"set aside ({ending.split('-')[0]})"
    if entry.facts is None:
        return f"damaged: {entry.fault}"
    settings, parents = entry.facts["settings"], entry.facts["parents"]
    model = settings["model"]
    words = [f"{model['num_blocks']} blocks of {model['width']}, {model['num_heads']} heads"]
    if entry.kind == "evaluate":
        figures = {k: v for k, v in entry.facts["metrics"].items() if k in ("test/mAP", "test/accuracy")}
        words = [f"of {parents[0][:SHOWN_KEY]}", *(f"{name} {value:.3f}" for name, value in figures.items())]
    elif entry.kind == "finetune":
        words += [f"{settings['finetuning']['steps']} updates", f"{entry.facts['labelled_clips']} labels"]
        words += [f"from {parents[0][:SHOWN_KEY]}" if parents else "from scratch"]
    else:
        words += [f"{settings['pretraining']['steps']} updates"]
    return ", ".join([*words, f"seed {settings['seed']}"])


def _show(store: Store, name: str, root: str, console: Console) -> int:
    entry = store.find(name)
    needed = _names(store.references().get(entry.key, ()), root) or "no study"
    children = [e for e in store.entries() if e.facts and entry.key in e.facts["parents"]]
    console.print(f"{entry.name}\n{_what(entry)}; {_size(entry.bytes)}; needed by {needed}", markup=False)
    for child in children:
        console.print(f"read by {child.kind} {child.key[:SHOWN_KEY]}: {_what(child)}", markup=False)
    damage = store.damage(entry)
    console.print(f"damaged: {damage}" if damage else "its files are what was written", markup=False)
    if entry.facts is not None:
        console.print(json.dumps(entry.facts, indent=1), markup=False)
    return 0


def _verify(store: Store, console: Console) -> int:
    finished = [entry for entry in store.entries() if entry.finished]
    damaged = 0
    for entry in finished:
        damage = store.damage(entry)
        if damage:
            damaged += 1
            console.print(f"{entry.name}: {damage}", markup=False)
    console.print(f"{len(finished)} stages verified, {damaged} damaged", markup=False)
    if damaged:
        console.print("a damaged stage is set aside and built again when a study next asks for it")
    return 1 if damaged else 0


def _gc(store: Store, options: argparse.Namespace, root: str, console: Console) -> int:
    limit = None if options.max_size is None else _bytes(options.max_size)
    references = store.references()
    known = {reference.name(root): reference for studies in references.values() for reference in studies}
    for study in options.forget:
        if study not in known:
            raise ConfigError(
                "--forget", f"no study {study!r}; there are {', '.join(sorted(known)) or 'none'}"
            )
    forgotten = {known[study] for study in options.forget}
    if not options.dry_run:
        for reference in forgotten:
            store.forget(reference)
    entries = sorted(store.entries(), key=lambda entry: entry.used)
    left = total = sum(entry.bytes for entry in entries)
    kept: dict[str, int] = defaultdict(int)  # why -> bytes
    for entry in entries:
        if limit is not None and left <= limit:
            break
        reason = _kept_for(entry, store, references, forgotten, options)
        if reason is None:
            left -= entry.bytes
            console.print(f"{'would go' if options.dry_run else 'deleted'}: {entry.name}", markup=False)
        else:
            kept[reason] += entry.bytes
            if reason in (BUSY, NEEDED_NOW):
                console.print(f"kept: {entry.name}, {reason}", markup=False)
    done = "would be freed" if options.dry_run else "freed"
    console.print(f"{_size(total - left)} {done}, {_size(left)} left", markup=False)
    if limit is not None and left > limit:
        why = "; ".join(f"{_size(count)}: {reason}" for reason, count in kept.items())
        console.print(f"more than {_size(limit)} is kept: {why}", markup=False)
    return 0


def _kept_for(
    entry: Entry,
    store: Store,
    references: dict[str, set[Reference]],
    forgotten: set[Reference],
    options: argparse.Namespace,
) -> str | None:
    """Why it does not go; None: it is deleted, or would be."""
    goes_anyway = options.force or not (entry.finished or entry.unfinished)

    def may_go(needed: dict[str, set[Reference]]) -> bool:
        return goes_anyway or not needed.get(entry.key, set()) - forgotten

    if not may_go(references):
        return NEEDED
    if options.older_than is not None and time.time() - entry.used < options.older_than * 86400:
        return YOUNG
    if options.dry_run:
        return None
    try:  # a study may have come to need it meanwhile
        return None if store.remove(entry, lambda: may_go(store.references())) else NEEDED_NOW
    except StageBusy:
        return BUSY


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?B)", text.strip().upper())
    if not match:
        raise ConfigError("--max-size", f"must be a size such as 500MB or 20GB, is {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
