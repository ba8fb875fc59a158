"""How fast the core is on this device: `python -m workbench.bench [PART ...] [--shape SHAPE ...]`.

Parts: `front_end` (log-mels and augmentation), `step` (updates of both stages, the front end's share,
memory), `packed` (trials trained together, beside one at a time; at quick's shape), `feed` (clips from disk)
and `machinery` (what a study adds to a trial; needs ray, optuna and mlflow, the others torch alone). Each
figure stands beside a plain reference from the same run, in turn with it; ratios are medians of the rounds.
What fails, as for want of memory, is told of, and the rest is measured: also a core whose reference does not
fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from workbench.bench.ceiling import matrix_flops
from workbench.bench.feed import measure_feed
from workbench.bench.front_end import measure_front_end
from workbench.bench.packed import measure_packed
from workbench.bench.shapes import CPU_BATCH, SHAPES, sized
from workbench.bench.step import measure_step
from workbench.bench.timing import Compared, failure
from workbench.config import TrialConfig
from workbench.hardware import device_name
from workbench.settings import TrainingKind
from workbench.training.pretrain import computed_in

PARTS = ("front_end", "step", "packed", "feed", "machinery")
PACKS = {"cpu": (2, 4), "cuda": (2, 4, 8, 16)}  # trials
KINDS: tuple[TrainingKind, ...] = ("pretrain", "finetune")
# Updates a round: what takes a second or two.
UPDATES = {"cpu": {"quick": 10, "cf_small": 1, "cf_large": 1}, "cuda": dict.fromkeys(SHAPES, 20)}


Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """0; 1 where something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.bench", description="How fast the core is on this device."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: quick, cf_small; all on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--threads", type=int, help="of torch on a CPU; default: as many as cores")
    parser.add_argument(
        "--batch", type=int, help=f"clips; default: the preset's, {CPU_BATCH} of 10 s on a CPU"
    )
    parser.add_argument("--compile", action="store_true", help="the step compiled, too (`compile: true`)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures go there, too")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; valid: {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, and torch finds no GPU here")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: {options.json.parent} is no folder")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    parts = options.parts or PARTS
    shapes = options.shape or (list(SHAPES) if device.type == "cuda" else ["quick", "cf_small"])

    figures: dict[str, Any] = {"device": _device(device), "rounds": options.rounds}
    print(_describe(figures["device"]))
    ways = (False, True) if options.compile else (False,)
    steps: list[Row] = []
    rows_of = {
        "front_end": _front_ends(shapes, device, options.batch, options.rounds),
        "step": _steps(shapes, device, options.batch, options.rounds, figures["device"], ways),
        "packed": _packed(device, options.batch, options.rounds),
        "feed": _feeds(shapes, options.rounds, steps),
        "machinery": _machinery(),
    }
    for part in (part for part in PARTS if part in parts):
        rows = figures[part] = steps if part == "step" else []
        for row in rows_of[part]:
            rows.append(row)
            if options.json:  # at once: what is measured stays, whatever becomes of the rest
                options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(row.get("error") or row.get("plain_error") for part in parts for row in figures[part]))


def _measured(name: str, about: Row, measure: Callable[[], Row]) -> Row:
    """`about` with what `measure` finds, or with its error, which is printed."""
    found: Row = {}
    reason = failure(lambda: found.update(measure()))
    if reason is None:
        return about | found
    print(f"{name:27s} {reason}", flush=True)
    return about | {"error": reason}


def _device(device: torch.device) -> dict[str, Any]:
    ceilings = {name: matrix_flops(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    return {
        "name": device_name(device.type),
        "kind": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "matrix_flops": ceilings,
    }


def _describe(device: dict[str, Any]) -> str:
    threads = f", {device['threads']} threads" if device["threads"] else ""
    ceilings = ", ".join(
        f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in device["matrix_flops"].items()
    )
    return f"{device['name']}{threads}, torch {device['torch']}; matrix products: {ceilings}"


def _front_ends(shapes: list[str], device: torch.device, batch: int | None, rounds: int) -> Iterator[Row]:
    print(f"\n{'front end':27s} {'clips':>5s} {'clips/s':>8s} {'plain':>8s} {'ratio':>6s} {'of rounds':>13s}")
    for shape, kind in itertools.product(shapes, KINDS):
        clips = batch or _default_batch(SHAPES[shape], kind, device)
        config, updates = sized(SHAPES[shape], clips), UPDATES[device.type]["quick"]
        measure = functools.partial(_front_end, config, kind, device, updates, rounds)
        name = f"{kind} {shape}"
        row = _measured(name, {"shape": shape, "stage": kind, "clips": clips}, measure)
        if "error" not in row:
            beside = _beside(row, row["plain_clips_per_second"], "8.1f")
            print(f"{name:27s} {clips:5d} {row['clips_per_second']:8.1f} {beside}", flush=True)
        yield row


def _front_end(
    config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int, rounds: int
) -> Row:
    found = measure_front_end(config, kind, device, updates=updates, rounds=rounds)
    batch = config.training(kind).batch_size
    return {
        "clips_per_second": batch / found.seconds,
        "plain_clips_per_second": _rate(batch, found.plain_seconds),
        **_ratio(found),
    }


def _steps(
    shapes: list[str],
    device: torch.device,
    batch: int | None,
    rounds: int,
    about: Row,
    compiled: tuple[bool, ...],
) -> Iterator[Row]:
    print(
        f"\n{'step':27s} {'clips':>5s} {'clips/s':>8s} {'plain':>8s} {'ratio':>6s} {'of rounds':>13s} "
        f"{'front end':>9s} {'GFLOP/s':>8s} {'of peak':>7s} {'memory':>8s} {'plain':>8s}"
    )
    for shape, kind, compile in itertools.product(shapes, KINDS, compiled):
        config = dataclasses.replace(SHAPES[shape], compile=compile)
        clips = batch or _default_batch(config, kind, device)
        precision = {"bf16": "bfloat16"}.get(computed_in(config, device), "float32")
        name = f"{kind} {shape}{' compiled' if compile else ''}"
        updates = UPDATES[device.type][shape]
        row = _measured(
            name,
            {"shape": shape, "stage": kind, "compiled": compile, "clips": clips},
            functools.partial(
                _step, sized(config, clips), kind, device, updates, rounds, about["matrix_flops"][precision]
            ),
        )
        if "error" not in row:
            print(_step_line(name, row), flush=True)
        yield row


def _default_batch(config: TrialConfig, kind: TrainingKind, device: torch.device) -> int:
    whole = config.training(kind).batch_size
    return min(whole, CPU_BATCH) if device.type == "cpu" and config.data.clip_seconds >= 10 else whole


def _step(
    config: TrialConfig, kind: TrainingKind, device: torch.device, updates: int, rounds: int, ceiling: float
) -> Row:
    found = measure_step(config, kind, device, updates=updates, rounds=rounds)
    return {
        "clips_per_second": found.clips_per_second,
        "plain_clips_per_second": _rate(found.batch_size, found.seconds.plain_seconds),
        **_ratio(found.seconds),
        "plain_error": found.plain_error,
        "front_end_share": found.front_end_seconds / found.seconds.seconds,
        "flops_per_second": found.flops_per_second,
        "share_of_peak": found.flops_per_second / ceiling,
        "bytes": found.bytes,
        "plain_bytes": found.plain_bytes,
    }


def _ratio(found: Compared) -> dict[str, Any]:
    return {"ratio": found.ratio, "ratios": list(found.ratios), **dataclasses.asdict(found)}


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if seconds else None


def _step_line(name: str, row: Row) -> str:
    plain_bytes = f"{row['plain_bytes'] / 1e9:5.2f} GB" if row["plain_bytes"] else "       -"
    return (
        f"{name:27s} {row['clips']:5d} {row['clips_per_second']:8.1f} "
        f"{_beside(row, row['plain_clips_per_second'], '8.1f')} "
        f"{row['front_end_share']:9.1%} {row['flops_per_second'] / 1e9:8.1f} {row['share_of_peak']:7.1%} "
        f"{row['bytes'] / 1e9:5.2f} GB {plain_bytes}"
    )


def _beside(row: Row, plain: float | None, form: str) -> str:
    """The plain way's rate, the ratio and its range; where it failed, why."""
    if plain is None:
        return f"{'-':>8s} {row['plain_error']:>20s}"
    return f"{plain:{form}} {row['ratio']:6.2f} {_range(row['ratios']):>13s}"


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _packed(device: torch.device, batch: int | None, rounds: int) -> Iterator[Row]:
    heads = f"{'trials':>6s} {'updates/s':>9s} {'apart':>8s} {'ratio':>6s} {'of rounds':>13s}"
    print(f"\n{'packed, quick':20s} {heads}")
    updates = UPDATES[device.type]["quick"]
    for kind, num_trials in itertools.product(KINDS, PACKS[device.type]):
        config = sized(SHAPES["quick"], batch or SHAPES["quick"].training(kind).batch_size)
        measure = functools.partial(_pack, config, kind, device, num_trials, updates, rounds)
        row = _measured(f"{kind:20s} {num_trials:6d}", {"stage": kind, "trials": num_trials}, measure)
        if "error" not in row:
            print(
                f"{kind:20s} {num_trials:6d} {1 / median(row['ours']):9.1f} "
                f"{_beside(row, 1 / median(row['plain']) if row['plain'] else None, '8.1f')}",
                flush=True,
            )
        yield row


def _pack(
    config: TrialConfig, kind: TrainingKind, device: torch.device, num_trials: int, updates: int, rounds: int
) -> Row:
    return _ratio(measure_packed(config, kind, device, num_trials=num_trials, updates=updates, rounds=rounds))


def _feeds(shapes: list[str], rounds: int, steps: list[Row]) -> Iterator[Row]:
    print(
        f"\n{'feed':20s} {'clips':>5s} {'clips/s':>8s} {'plain':>8s} {'ratio':>6s} {'of rounds':>13s}  "
        "times the step"
    )
    for shape in shapes:
        batch = SHAPES[shape].training("pretrain").batch_size
        measured = [s["clips_per_second"] for s in steps if s["shape"] == shape and "error" not in s]
        seconds = SHAPES[shape].data.clip_seconds
        row = _measured(
            f"{shape:20s} {batch:5d}",
            {"shape": shape, "clips": batch},
            functools.partial(_feed, seconds, batch, rounds, max(measured, default=None)),
        )
        if "error" not in row:
            times = f"{row['times_the_step']:.1f}" if row["times_the_step"] else "-"
            print(
                f"{shape:20s} {batch:5d} {row['clips_per_second']:8.0f} "
                f"{_beside(row, row['plain_clips_per_second'], '8.0f')}  {times}",
                flush=True,
            )
        yield row


def _feed(clip_seconds: float, batch: int, rounds: int, step: float | None) -> Row:
    """`step` in clips a second."""
    found = measure_feed(clip_seconds, batch, rounds)
    return {
        "clips_per_second": 1 / found.seconds,
        "plain_clips_per_second": _rate(1, found.plain_seconds),
        **_ratio(found),
        "times_the_step": 1 / found.seconds / step if step else None,
    }


def _machinery() -> Iterator[Row]:
    try:
        from workbench.bench import machinery
    except ModuleNotFoundError as error:
        print(f"\nmachinery: left out, {error.name} is not installed")
        return
    print()
    row = _measured("machinery", {"trials": machinery.TRIALS}, machinery.measure)
    if "error" not in row:
        machinery.show(row)
    yield row


if __name__ == "__main__":
    sys.exit(main())
