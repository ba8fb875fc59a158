"""`python -m workbench.export STAGE_ID --to FOLDER`: an encoder that others can use."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from workbench.export.card import model_card
from workbench.export.saved import CARD, CLASSIFIER, ENCODER, SETTINGS, save_weights
from workbench.export.source import Source, read_source
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError, identity
from workbench.store.stage import write_json


def main(arguments: list[str] | None = None) -> int:
    """0; 2 when nothing could be exported."""
    options = _parser().parse_args(arguments)
    try:
        with _published(options.to) as folder:
            source = read_source(Places.read(options.root).store(), options.id)
            _write(source, folder)
        print(f"{options.to}: {_described(source)}")
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.export",
        description="Write the encoder of a finished pre-training or fine-tuning into a folder of its own.",
    )
    parser.add_argument("id", help="the stage's id, or the beginning of it; python -m workbench.store ls")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where results are kept")
    return parser


@contextlib.contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end: there whole, or not at all."""
    if os.path.lexists(folder):
        raise ConfigError("--to", f"{folder} is there already, and nothing is overwritten; name a new folder")
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(source: Source, folder: Path) -> None:
    stage_id = source.settings.origin.id
    save_weights(source.encoder, folder / ENCODER, stage_id)
    if source.classifier is not None:
        save_weights(source.classifier, folder / CLASSIFIER, stage_id)
    write_json(folder / SETTINGS, identity(source.settings))
    (folder / CARD).write_text(model_card(source), encoding="utf-8")


def _described(source: Source) -> str:
    origin = source.settings.origin
    return f"encoder of {origin.stage} {origin.id[:12]}, {source.encoder.num_parameters():,} parameters"


if __name__ == "__main__":
    sys.exit(main())
