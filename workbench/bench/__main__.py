"""How fast the core is on this device: `python -m workbench.bench [PART ...] [--shape SHAPE ...]`.

Parts: `step` (updates of both stages, the front end's share, memory), `packed` (trials trained together,
beside one at a time; at quick's shape), `feed` (clips from disk) and `machinery` (what a study adds to a
trial; needs ray, optuna and mlflow, the others torch alone). Each figure stands beside a plain reference
from the same run, in turn with it; ratios are medians of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch

from workbench.bench.ceiling import matrix_flops
from workbench.bench.feed import measure_feed
from workbench.bench.flops import Kind
from workbench.bench.packed import measure_packed
from workbench.bench.shapes import CPU_BATCH, SHAPES, batch_of, sized
from workbench.bench.step import StepFigures, measure_step
from workbench.bench.timing import Compared
from workbench.config import TrialConfig
from workbench.hardware import device_name
from workbench.training.pretrain import computed_in

PARTS = ("step", "packed", "feed", "machinery")
PACKS = {"cpu": (2, 4), "cuda": (2, 4, 8, 16)}  # trials
KINDS: tuple[Kind, ...] = ("pretrain", "finetune")
# Updates a round: what takes a second or two.
UPDATES = {"cpu": {"quick": 10, "cf_small": 1, "cf_large": 1}, "cuda": dict.fromkeys(SHAPES, 20)}


def main(arguments: list[str] | None = None) -> None:
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
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    parts = options.parts or PARTS
    shapes = options.shape or (list(SHAPES) if device.type == "cuda" else ["quick", "cf_small"])

    figures: dict[str, Any] = {"device": _device(device), "rounds": options.rounds}
    print(_describe(figures["device"]))
    if "step" in parts:
        ways = (False, True) if options.compile else (False,)
        figures["step"] = _steps(shapes, device, options.batch, options.rounds, figures["device"], ways)
    if "packed" in parts:
        figures["packed"] = _packed(device, options.batch, options.rounds)
    if "feed" in parts:
        figures["feed"] = _feeds(shapes, options.rounds, figures.get("step", []))
    if "machinery" in parts:
        try:
            from workbench.bench import machinery
        except ModuleNotFoundError as error:
            print(f"\nmachinery: left out, {error.name} is not installed")
        else:
            print()
            machinery.main([])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


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


def _steps(
    shapes: list[str],
    device: torch.device,
    batch: int | None,
    rounds: int,
    about: dict[str, Any],
    compiled: tuple[bool, ...],
) -> list[dict[str, Any]]:
    print(
        f"\n{'step':27s} {'clips':>5s} {'clips/s':>8s} {'plain':>8s} {'ratio':>6s} {'of rounds':>13s} "
        f"{'front end':>9s} {'GFLOP/s':>8s} {'of peak':>7s} {'memory':>8s} {'plain':>8s}"
    )
    rows = []
    for shape, kind, compile in itertools.product(shapes, KINDS, compiled):
        config = dataclasses.replace(SHAPES[shape], compile=compile)
        clips = batch or _default_batch(config, kind, device)
        found = measure_step(
            sized(config, clips), kind, device, updates=UPDATES[device.type][shape], rounds=rounds
        )
        precision = {"bf16": "bfloat16"}.get(computed_in(config, device), "float32")
        rows.append(_step_row(shape, compile, found, about["matrix_flops"][precision]))
        print(_step_line(rows[-1]), flush=True)
    return rows


def _default_batch(config: TrialConfig, kind: Kind, device: torch.device) -> int:
    whole = batch_of(config, kind)
    return min(whole, CPU_BATCH) if device.type == "cpu" and config.data.clip_seconds >= 10 else whole


def _step_row(shape: str, compiled: bool, found: StepFigures, ceiling: float) -> dict[str, Any]:
    return {
        "shape": shape,
        "stage": found.kind,
        "compiled": compiled,
        "clips": found.batch_size,
        "clips_per_second": found.clips_per_second,
        "plain_clips_per_second": found.batch_size / found.seconds.plain_seconds,
        **_ratio(found.seconds),
        "front_end_share": found.front_end_seconds / found.seconds.seconds,
        "flops_per_second": found.flops_per_second,
        "share_of_peak": found.flops_per_second / ceiling,
        "bytes": found.bytes,
        "plain_bytes": found.plain_bytes,
    }


def _ratio(found: Compared) -> dict[str, Any]:
    return {"ratio": found.ratio, "ratios": list(found.ratios), **dataclasses.asdict(found)}


def _step_line(row: dict[str, Any]) -> str:
    name = f"{row['stage']} {row['shape']}{' compiled' if row['compiled'] else ''}"
    return (
        f"{name:27s} {row['clips']:5d} {row['clips_per_second']:8.1f} "
        f"{row['plain_clips_per_second']:8.1f} {row['ratio']:6.2f} {_range(row['ratios']):>13s} "
        f"{row['front_end_share']:9.1%} {row['flops_per_second'] / 1e9:8.1f} {row['share_of_peak']:7.1%} "
        f"{row['bytes'] / 1e9:5.2f} GB {row['plain_bytes'] / 1e9:5.2f} GB"
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _packed(device: torch.device, batch: int | None, rounds: int) -> list[dict[str, Any]]:
    heads = f"{'trials':>6s} {'updates/s':>9s} {'apart':>8s} {'ratio':>6s} {'of rounds':>13s}"
    print(f"\n{'packed, quick':20s} {heads}")
    rows = []
    for kind in KINDS:
        for num_trials in PACKS[device.type]:
            config = sized(SHAPES["quick"], batch or batch_of(SHAPES["quick"], kind))
            updates = UPDATES[device.type]["quick"]
            found = measure_packed(
                config, kind, device, num_trials=num_trials, updates=updates, rounds=rounds
            ).seconds
            rows.append({"stage": kind, "trials": num_trials, **_ratio(found)})
            print(
                f"{kind:20s} {num_trials:6d} {1 / found.seconds:9.1f} {1 / found.plain_seconds:8.1f} "
                f"{found.ratio:6.2f} {_range(list(found.ratios)):>13s}",
                flush=True,
            )
    return rows


def _feeds(shapes: list[str], rounds: int, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    print(
        f"\n{'feed':20s} {'clips':>5s} {'clips/s':>8s} {'plain':>8s} {'ratio':>6s} {'of rounds':>13s}  "
        "times the step"
    )
    rows = []
    for shape in shapes:
        batch = batch_of(SHAPES[shape], "pretrain")
        found = measure_feed(SHAPES[shape].data.clip_seconds, batch, rounds)
        fastest = max((s["clips_per_second"] for s in steps if s["shape"] == shape), default=None)
        rows.append(
            {
                "shape": shape,
                "clips": batch,
                "clips_per_second": 1 / found.seconds,
                "plain_clips_per_second": 1 / found.plain_seconds,
                **_ratio(found),
                "times_the_step": 1 / found.seconds / fastest if fastest else None,
            }
        )
        times = f"{rows[-1]['times_the_step']:.1f}" if fastest else "-"
        print(
            f"{shape:20s} {batch:5d} {1 / found.seconds:8.0f} {1 / found.plain_seconds:8.0f} "
            f"{found.ratio:6.2f} {_range(list(found.ratios)):>13s}  {times}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
