"""What sharing stages saves: `python -m workbench.bench.sharing [studies/label_fraction.yaml]`.

Runs a study twice on this machine, as many trials at once: as the workbench runs it, and as opaque trials, as
a tuner has them that knows nothing of stages: each with a store of its own, no machinery around it. The two
take turns, seed by seed, and in which comes first, for the machine may become slower or faster meanwhile; the
same stages show by how much. Results must be the same to the last bit. Compute is what the stages themselves
took: seconds of the processor, or of the GPU's clock.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from workbench.child_processes import spawned_pool
from workbench.config import TrialConfig
from workbench.data.clips import DataError
from workbench.places import DEFAULT_ROOT, Places
from workbench.settings import ConfigError, from_dict, to_dict
from workbench.stages import read_result, run_trial
from workbench.store import Entry, Store
from workbench.study.cost import CostModel, Plan, cost_of, duration
from workbench.study.definition import SearchStudy, Study
from workbench.study.device import Device
from workbench.study.plan import PlannedTrial, Planner
from workbench.study.run import run_study
from workbench.study.study_file import load_study
from workbench.training.tracker import SilentTracker

SHARED, OPAQUE = "with the store", "as opaque trials"


def main(arguments: list[str] | None = None) -> int:
    """0; 1 when results differ, or a stage was computed twice; 2 for a wrong study."""
    parser = argparse.ArgumentParser(description="A study with shared stages, and as opaque trials.")
    parser.add_argument("study", type=Path, nargs="?", default=Path("studies/label_fraction.yaml"))
    parser.add_argument("--preset")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--data", type=Path, default=DEFAULT_ROOT / "data", help="audio made before")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        study = load_study(options.study, preset=options.preset, assignments=tuple(options.assignments))
        if isinstance(study, SearchStudy):
            raise ConfigError(
                "search", f"{options.study} chooses its trials by their results; expected a study of levels"
            )
        planned = Planner().plan_study(study)
        device = Device.of(study.resources)
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f"{study.id}: {len(planned)} trials, {device.concurrency} at once, on {device.name}")
    with tempfile.TemporaryDirectory() as folder:
        places = _places(Path(folder), options.data)
        stores = [Store(Path(folder) / "opaque" / str(number)) for number in range(len(planned))]
        model = CostModel(places, device, Planner())
        model.prepare(planned, console.print)
        cost = cost_of(planned, lambda stage: False, model)
        console.print(f"with the store: about {duration(cost.wall_seconds)}")
        walls = {SHARED: 0.0, OPAQUE: 0.0}
        for turn, seed in enumerate(study.seeds):
            replicate = replace(study, seeds=(seed,))
            chosen = [i for i, item in enumerate(planned) if item.trial.seed == seed]
            for way in (SHARED, OPAQUE) if turn % 2 == 0 else (OPAQUE, SHARED):
                began = time.perf_counter()
                if way == SHARED:
                    _run_shared(replicate, [planned[i] for i in chosen], places, model)
                else:
                    _run_opaquely([(planned[i], stores[i]) for i in chosen], places.data, device)
                seconds = time.perf_counter() - began
                walls[way] += seconds
                console.print(f"seed {seed}, {way}: {len(chosen)} trials in {duration(seconds)}")
        repeated = cost.alone_seconds - cost.once_seconds
        measure = "cpu_seconds" if device.kind == "cpu" else "seconds"
        return _report(planned, places.store(), stores, repeated, walls, measure, console)


def _places(folder: Path, data: Path) -> Places:
    root = folder / "shared"
    root.mkdir()
    data.mkdir(parents=True, exist_ok=True)
    (root / "places.yaml").write_text(f"data: {data.resolve()}\n")
    return Places.read(root)


def _run_shared(study: Study, planned: list[PlannedTrial], places: Places, model: CostModel) -> None:
    """As the workbench runs it."""
    cost = cost_of(planned, lambda stage: False, model)
    quiet = Console(file=io.StringIO())
    run_study(study, places, Plan(planned, model, cost, cost), command="", to_go_on="", console=quiet)


def _run_opaquely(trials: list[tuple[PlannedTrial, Store]], data: Path, device: Device) -> None:
    """Every trial by itself, the longest first, in its own store."""
    order = sorted(trials, key=lambda trial: -trial[0].trial.config.finetuning.steps)
    with spawned_pool(device.concurrency) as pool:
        waiting = [
            pool.submit(
                _train,
                to_dict(planned.trial.config),
                planned.data_fingerprint,
                planned.pool_fingerprint,
                store,
                data,
                device,
            )
            for planned, store in order
        ]
        for future in as_completed(waiting):
            future.result()


def _train(
    raw: object, fingerprint: str, pool_fingerprint: str | None, store: Store, data: Path, device: Device
) -> None:
    torch.set_num_threads(device.threads)
    run_trial(
        from_dict(TrialConfig, raw),
        fingerprint,
        pool_fingerprint,
        store=store,
        data_root=data,
        device=torch.device(device.kind),
        tracker=SilentTracker(),
        report=lambda line: None,
    )


def _report(
    planned: list[PlannedTrial],
    shared: Store,
    stores: list[Store],
    expected: float,
    walls: dict[str, float],
    measure: str,
    console: Console,
) -> int:
    computed: dict[str, list[dict[str, Any]]] = defaultdict(list)  # stage key -> facts, each time
    differing = 0
    for item, store in zip(planned, stores, strict=True):
        for stage in item.stages.all():
            computed[stage.key].append(store.facts(stage))
        differing += read_result(item.stages, store).metrics != read_result(item.stages, shared).metrics
    entries = [entry for entry in shared.entries() if entry.finished and entry.key in computed]
    timed = _timed(entries, computed, measure)
    took = {entry.key: [facts[measure] for facts in computed[entry.key]] for entry in timed}
    once = sum(entry.facts[measure] for entry in timed if entry.facts)
    opaque = sum(map(sum, took.values()))
    repeated = sum(statistics.fmean(times) * (len(times) - 1) for times in took.values())
    saved = opaque - once
    twice = sum(count - 1 for store in (shared, *stores) for count in store.builds().values())
    console.print(f"{'':24s}{'stages':>8s}{'compute':>12s}{'wall':>10s}")
    console.print(f"{SHARED:24s}{len(entries):8d}{once:10.0f} s{walls[SHARED]:8.0f} s")
    console.print(f"{OPAQUE:24s}{sum(map(len, computed.values())):8d}{opaque:10.0f} s{walls[OPAQUE]:8.0f} s")
    console.print(f"ratio of compute {opaque / once:.2f}, of wall time {walls[OPAQUE] / walls[SHARED]:.2f}")
    console.print(f"saved: {saved:.0f} s of computing, {saved / opaque:.0%} of the whole")
    if untimed := len(entries) - len(timed):
        console.print(f"left out of compute: {untimed}, cut off and resumed")
    for what, seconds in (("by opaque trials", repeated), ("in the plan", expected)):
        of_it = f"; saved of it {saved / seconds:.0%}" if seconds else ": its trials share no stage"
        console.print(f"repeated {what}: {seconds:.0f} s{of_it}")
    console.print(f"the same stages, in the study beside by themselves: {_beside(timed, took, measure)}")
    console.print(
        f"trials whose metrics differ: {differing} of {len(planned)}; stages computed twice: {twice}"
    )
    return 1 if differing or twice else 0


def _timed(entries: list[Entry], computed: dict[str, list[dict[str, Any]]], measure: str) -> list[Entry]:
    """Those whose seconds are known each time: of one that was resumed, another process spent a part."""
    return [e for e in entries if all(measure in facts for facts in (e.facts or {}, *computed[e.key]))]


def _beside(entries: list[Entry], took: dict[str, list[float]], measure: str) -> str:
    """How many times as much each kind of stage took with the store: what of the rest no sharing explains."""
    ours: dict[str, float] = defaultdict(float)
    alone: dict[str, float] = defaultdict(float)
    for entry in entries:
        if entry.facts:
            ours[entry.kind] += entry.facts[measure]
            alone[entry.kind] += statistics.fmean(took[entry.key])
    return ", ".join(f"{kind} {ours[kind] / alone[kind]:.2f} times" for kind in sorted(ours))


if __name__ == "__main__":
    sys.exit(main())
