"""What a plan costs: time with and without shared stages, memory, disk; and what cannot fit is refused."""

from __future__ import annotations

import heapq
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench import data
from workbench.config import TrialConfig
from workbench.data import synthesis
from workbench.data.clips import Extent
from workbench.data_config import DataConfig, PoolData
from workbench.model.encoder import num_parameters
from workbench.places import Places
from workbench.settings import ConfigError, StageKind
from workbench.store import Stage
from workbench.study.calibration import Calibration, Job, Rates
from workbench.study.device import Device, free_memory
from workbench.study.plan import PlannedTrial, Planner, most_urgent, work_to_do
from workbench.training.pack import pack_key

START_SECONDS = 12.0  # Ray, MLflow and the first workers, on two cores; with few short trials it shows
TRIAL_SECONDS = 0.5  # between the end of one trial and the next one's first update
SHARED_BYTES = 1.2e9  # the driver and Ray's own processes
WORKER_BYTES = 0.2e9  # what Ray adds to a process that trains
STAGE_BYTES = 40_000  # history and facts
LEARNING_SECONDS = 20.0  # of training that correct a calibration; less is mostly what surrounds it
MAKING_CLIPS = 4  # made to see how long the others will take


class CostModel:
    """Seconds and bytes of trials on this device, by its calibration."""

    def __init__(self, places: Places, device: Device, planner: Planner, *, pack: int | None = None) -> None:
        """`pack` is how many trials train together; None: as many as the device gains from."""
        self.device = device
        self._pack = pack
        self._places = places
        self._planner = planner
        self._calibration = Calibration(places.root / "calibration", device)
        self._prepared: dict[str, Job] = {}
        self._extents: dict[DataConfig | PoolData, Extent] = {}
        self._seconds: dict[TrialConfig, dict[str, float]] = {}

    def prepare(self, planned: Sequence[PlannedTrial], report: Callable[[str], None]) -> None:
        """Measure what was never measured on this device."""
        jobs = [job for item in planned for job in self._jobs(item.trial.config)]
        packs = self._pack != 1 and self.device.processes == 1
        self._calibration.measure(jobs, report, with_packs=packs)
        self._prepared |= {job.key: job for job in jobs}

    def _rates(self, job: Job) -> Rates:
        """Of a shape that a search came upon since: by the nearest batch that was measured for its plan.

        Nothing was measured where every stage was found: what is found takes no time.
        """
        if self._calibration.has(job):
            return self._calibration.rates(job)
        alike = [other for other in self._prepared.values() if other.kind == job.kind]
        if not alike:
            return Rates(0.0, 0.0, 0.0, 0, job.batch)
        nearest = min(alike, key=lambda other: abs(math.log(other.batch / job.batch)))
        rates, times = self._calibration.rates(nearest), job.settings.batch_size / nearest.settings.batch_size
        return replace(
            rates,
            update_seconds=rates.update_seconds * times,
            packed_update_seconds=rates.packed_update_seconds * times,
            bytes=round(rates.bytes * job.batch / nearest.batch),
            measured_batch=job.batch,
        )

    def seconds(self, config: TrialConfig) -> Mapping[str, float]:
        """Of each stage of a trial, with the device's number of trials at once."""
        if config not in self._seconds:
            self._seconds[config] = self._stage_seconds(config)
        return self._seconds[config]

    def pack_size(self, config: TrialConfig, kind: StageKind) -> int:
        """How many trials had best train this stage together."""
        if pack_key(config, kind) is None or self.device.processes > 1:
            return 1
        if self._pack is not None:
            return self._pack
        rates = next(self._rates(job) for job in self._jobs(config) if job.kind == kind)
        return rates.pack or 1

    def _update_seconds(self, config: TrialConfig, kind: StageKind, rates: Rates) -> float:
        if self.pack_size(config, kind) > 1 and rates.pack is not None:
            return rates.packed_update_seconds
        return rates.update_seconds

    def _stage_seconds(self, config: TrialConfig) -> dict[str, float]:
        extent = self.extent(config)
        *first, second = self._jobs(config)
        rates = self._rates(second)
        settings = config.finetuning
        heard = settings.num_evaluations * extent.validation_clips
        seconds = {
            "finetune": (rates.statistics_seconds if config.pretraining is None else 0.0)
            + settings.steps * self._update_seconds(config, "finetune", rates)
            + heard * rates.heard_clip_seconds,
            "evaluate": extent.test_clips * rates.heard_clip_seconds + TRIAL_SECONDS,
        }
        if config.pretraining is not None:
            rates = self._rates(first[0])
            each = self._update_seconds(config, "pretrain", rates)
            seconds["pretrain"] = rates.statistics_seconds + config.pretraining.steps * each
        return seconds

    def learn(self, planned: Iterable[PlannedTrial], took: Mapping[Stage, float]) -> None:
        """Correct the calibration by the seconds that stages really took."""
        jobs: dict[str, Job] = {}
        expected: dict[str, float] = {}
        real: dict[str, float] = {}
        trial_of = {stage: item.trial.config for item in planned for stage in item.stages.all()}
        for stage, config in trial_of.items():
            for job in self._jobs(config):
                if job.kind == stage.kind and stage in took and self._calibration.has(job):
                    jobs[job.key] = job
                    expected[job.key] = expected.get(job.key, 0.0) + self.seconds(config)[stage.kind]
                    real[job.key] = real.get(job.key, 0.0) + took[stage]
        for key, job in jobs.items():
            if expected[key] >= LEARNING_SECONDS:
                self._calibration.learn(job, real[key] / expected[key])
        self._seconds.clear()

    def is_extrapolated(self, config: TrialConfig) -> bool:
        """Whether a batch was too large to be measured here."""
        return any(self._rates(job).measured_batch < job.batch for job in self._jobs(config))

    def trial_bytes(self, config: TrialConfig) -> float:
        """Peak memory of a process that trains such a trial, or a pack of them; or of its GPU."""
        peak = max(self._rates(job).bytes * self.pack_size(config, job.kind) for job in self._jobs(config))
        several = self.device.processes if self.device.processes > 1 else 0  # beside their worker
        return peak + (WORKER_BYTES * (1 + several) if self.device.kind == "cpu" else 0)

    def stage_bytes(self, config: TrialConfig) -> dict[str, float]:
        """What each finished stage takes on disk."""
        extent = self.extent(config)
        weights = 4.0 * num_parameters(config.front_end, config.model)
        return {
            "pretrain": weights + STAGE_BYTES,
            "finetune": weights + STAGE_BYTES,
            "evaluate": 5.0 * extent.test_clips * extent.num_classes + STAGE_BYTES / 10,
        }

    def checkpoint_bytes(self, config: TrialConfig) -> float:
        """Of a worker: model, its best version, and two moments of each weight, beside the previous one.

        Each trial of a pack has its own.
        """
        together = max(self.pack_size(config, job.kind) for job in self._jobs(config))
        return together * 2 * 4 * 4.0 * num_parameters(config.front_end, config.model)

    def extent(self, config: TrialConfig) -> Extent:
        """Of what a trial hears, all of it."""
        extent = self.extent_of(config.data)
        if config.pool is None:
            return extent
        pool = self.extent_of(config.pool)
        return replace(extent, pool_clips=pool.pool_clips, pool_lengths=pool.pool_lengths)

    def extent_of(self, config: DataConfig | PoolData) -> Extent:
        if config not in self._extents:
            fingerprint = self._planner.fingerprint(config)
            self._extents[config] = data.extent(config, self._places.data, fingerprint)
        return self._extents[config]

    def _jobs(self, config: TrialConfig) -> list[Job]:
        extent = self.extent(config)
        second = Job("finetune", config, extent)
        return [Job("pretrain", config, extent), second] if config.pretraining is not None else [second]


@dataclass(frozen=True)
class Cost:
    """Of one plan, or of several together."""

    wall_seconds: float  # with as many trials at once as the device takes
    computing_seconds: float  # of the stages that are missing
    once_seconds: float  # of every stage, once, had none been found
    alone_seconds: float  # of every trial by itself: each with its own pre-training
    trial_bytes: float  # memory of the largest trial
    memory_bytes: float  # at most, of everything at once
    device_bytes: float  # at most, of what is at once on one GPU, or on one machine's processor
    disk_bytes: float  # added
    data_bytes: float  # of them, of audio
    extrapolated: bool  # from batches smaller than the trials'
    pack: int  # trials that train as one, at most


@dataclass(frozen=True)
class Plan:
    """What there is to run, and what it takes."""

    planned: Sequence[PlannedTrial]
    model: CostModel
    cost: Cost
    in_all: Cost  # with the trials that will confirm what a search finds


def cost_of(planned: Sequence[PlannedTrial], has: Callable[[Stage], bool], model: CostModel) -> Cost:
    """What these trials cost, in the order in which they would be run."""
    if not planned:
        return Cost(0, 0, 0, 0, 0, 0, 0, 0, 0, False, 1)
    missing = work_to_do(planned, has, model.seconds)
    once = work_to_do(planned, lambda stage: False, model.seconds)
    alone = sum(
        model.seconds(item.trial.config)[stage.kind] for item in planned for stage in item.stages.all()
    )
    configs = {item.trial.config for item in planned}
    unprepared: dict[str, Extent] = {}  # of the same data the largest part, which holds the others
    for item in planned:
        for part, fingerprint in (
            (item.trial.config.data, item.data_fingerprint),
            (item.trial.config.pool, item.pool_fingerprint),
        ):
            if part is not None and fingerprint is not None:
                extent = model.extent_of(part)
                known = unprepared.setdefault(fingerprint, extent)
                unprepared[fingerprint] = max(known, extent, key=lambda e: e.unprepared_bytes)
    making = sum(_making_seconds(extent) for extent in unprepared.values()) if missing else 0.0
    at_once = model.device.concurrency
    heaviest = sorted((model.trial_bytes(item.trial.config) for item in planned), reverse=True)[:at_once]
    shared, on_gpus = (SHARED_BYTES, 1) if model.device.kind == "cpu" else (0.0, model.device.processes)
    # Each stage with the disk of its kind; a study's audio once.
    on_disk = work_to_do(planned, has, model.stage_bytes)
    checkpoints = at_once * max(model.checkpoint_bytes(config) for config in configs)
    audio = sum(extent.unprepared_bytes for extent in unprepared.values())
    wall = makespan(planned, has, model.seconds, at_once)
    return Cost(
        wall_seconds=wall + making + START_SECONDS if missing else 0.0,
        computing_seconds=sum(missing.values()),
        once_seconds=sum(once.values()),
        alone_seconds=alone,
        trial_bytes=heaviest[0],
        memory_bytes=sum(heaviest) + shared,
        device_bytes=sum(heaviest[: model.device.at_once_here]) / on_gpus + shared,
        disk_bytes=sum(on_disk.values()) + audio + (checkpoints if missing else 0.0),
        data_bytes=audio,
        extrapolated=any(model.is_extrapolated(config) for config in configs),
        pack=max(
            model.pack_size(item.trial.config, stage.kind) for item in planned for stage in item.stages.all()
        ),
    )


def _making_seconds(extent: Extent) -> float:
    """Of data that are not there yet, by the time that a few clips of the embedded corpus take."""
    if not extent.unprepared_clips:
        return 0.0
    recipe = synthesis.Recipe(clip_seconds=max(1.0, extent.evaluated_seconds))
    began = time.perf_counter()
    for index in range(MAKING_CLIPS):
        synthesis.synthesise(recipe, "timing", index)
    each = (time.perf_counter() - began) / MAKING_CLIPS
    return each * extent.unprepared_clips / len(os.sched_getaffinity(0))


def makespan(
    planned: Sequence[PlannedTrial],
    has: Callable[[Stage], bool],
    work: Callable[[TrialConfig], Mapping[str, float]],
    workers: int,
) -> float:
    """Seconds until the last trial ends: the most urgent first, none waiting at a worker."""
    pending = list(planned)
    finished_at: dict[Stage, float] = {}  # of stages that a trial is at, or is past
    free = [0.0] * workers
    end = now = 0.0

    def there(stage: Stage) -> bool:
        return has(stage) or finished_at.get(stage, float("inf")) <= now

    while pending:
        now = max(now, heapq.heappop(free))
        ready = [i for i in pending if not any(s in finished_at for s in i.stages.missing(there)[:1])]
        if not ready:  # until the next stage is finished
            heapq.heappush(free, min(at for at in finished_at.values() if at > now))
            continue
        chosen = most_urgent(ready, there, work)
        pending.remove(chosen)
        done = now
        for stage in chosen.stages.missing(there):
            done += work(chosen.trial.config)[stage.kind]
            finished_at[stage] = done
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def refuse_what_cannot_fit(cost: Cost, model: CostModel, places: Places) -> None:
    """Raises ConfigError, saying what to change."""
    device = model.device
    free = free_memory(device.kind)
    if cost.device_bytes > free:
        devices = device.num_gpus or device.num_machines
        where = "" if devices == 1 else " on a GPU" if device.num_gpus else " on a machine"
        fewer = f"run fewer at once (--set resources.concurrency={devices}), or "
        raise ConfigError(
            "resources.concurrency",
            f"{device.at_once_here} trials at once{where} would take {gigabytes(cost.device_bytes)} of "
            f"memory, {gigabytes(cost.trial_bytes)} each, and {gigabytes(free)} are free; "
            + (fewer if device.at_once_here > 1 else "")
            + "cut the batch by pretraining.accumulation and finetuning.accumulation, compute activations "
            "again (--set model.recompute=true), or take a smaller preset",
        )
    stages = nearest_folder(places.store().root)  # where they are computed; those of a URL, too
    audio = nearest_folder(places.data)
    written = {stages: cost.disk_bytes - cost.data_bytes}
    disk_of = {folder.stat().st_dev: folder for folder in (audio, stages)}
    same = disk_of[audio.stat().st_dev]
    written[same] = written.get(same, 0.0) + cost.data_bytes
    for folder, needed in written.items():
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ConfigError(
                "--root",
                f"the study would write {gigabytes(needed)} below {folder}, and {gigabytes(free)} are left "
                "there; name another folder (--root, or store and data in its places.yaml), make room "
                "(python -m workbench.store gc), or ask for less data (data.pool_clips, data.clip_seconds)",
            )


def nearest_folder(path: Path) -> Path:
    """`path`, or the first folder above it that exists."""
    path = path.resolve()
    return path if path.exists() else nearest_folder(path.parent)


def print_cost(cost: Cost, model: CostModel, write: Callable[[str], None]) -> None:
    device = model.device
    at_once = f"{device.concurrency} trial{'s' if device.concurrency > 1 else ''} at once"
    if cost.computing_seconds:
        write(
            f"cost on {device.name}, {at_once}: about {duration(cost.wall_seconds)} "
            f"({duration(cost.computing_seconds)} of computing)"
        )
    if cost.once_seconds:
        times = cost.alone_seconds / cost.once_seconds
        write(
            f"sharing: every stage once is {duration(cost.once_seconds)} of computing, every trial by "
            f"itself {duration(cost.alone_seconds)}, {times:.1f} times as much"
        )
    if cost.computing_seconds:
        write(
            f"memory: {gigabytes(cost.trial_bytes)} a trial, {gigabytes(cost.memory_bytes)} in all; "
            f"disk: {gigabytes(cost.disk_bytes)}"
        )
    if cost.pack > 1:
        write(f"packs: up to {cost.pack} trials of the same shapes train as one")
    if cost.extrapolated:
        write("some batches are too large to be measured here; their cost is extrapolated from smaller ones")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 200 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"
