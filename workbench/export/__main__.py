"""`python -m workbench.export STAGE_ID --to FOLDER [--onnx]`: an encoder that others can use."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from workbench.commands import INTERRUPTED
from workbench.export.card import model_card
from workbench.export.onnx_graph import ONNX, TOLERANCE, require_packages, write_onnx
from workbench.export.saved import CARD, CLASSIFIER, ENCODER, SETTINGS, save_weights
from workbench.export.source import Source, read_source
from workbench.files import write_json
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError, identity


def main(arguments: list[str] | None = None) -> int:
    """0; 2 when nothing could be exported, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if options.onnx:
            require_packages()
        source = read_source(Places.read(options.root).store(), options.id)
        with _published(options.to) as folder:
            checked = _write(source, folder, onnx=options.onnx)
        print(f"{options.to}: {_described(source)}")
        if checked is not None:
            print(f"{ONNX}: {checked}")
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was exported.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.export",
        description="Write the encoder of a finished pre-training or fine-tuning into a folder of its own.",
    )
    parser.add_argument("id", help="the stage's id, or the beginning of it; python -m workbench.store ls")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where results are kept")
    parser.add_argument("--onnx", action="store_true", help="also as an ONNX graph, checked against torch")
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


def _write(source: Source, folder: Path, *, onnx: bool) -> str | None:
    """Every file of the folder; what the check of the ONNX graph found, where one is asked for."""
    stage_id, checked = source.settings.origin.id, None
    save_weights(source.encoder, folder / ENCODER, stage_id)
    if source.classifier is not None:
        save_weights(source.classifier, folder / CLASSIFIER, stage_id)
    if onnx:
        difference = write_onnx(source.encoder, folder / ONNX, stage_id)
        checked = f"within {difference:.1e} of torch on the CPU, {TOLERANCE:.0e} allowed"
    write_json(folder / SETTINGS, identity(source.settings))
    (folder / CARD).write_text(model_card(source, checked), encoding="utf-8")
    return checked


def _described(source: Source) -> str:
    origin = source.settings.origin
    return f"encoder of {origin.stage} {origin.id[:12]}, {source.encoder.num_parameters():,} parameters"


if __name__ == "__main__":
    sys.exit(main())
