"""How long an update takes on this device and what memory it needs: measured once a shape, and kept.

The training code itself is timed, on noise, in as many processes at once as the study will run. A batch that
this machine cannot hold, or not soon, is extrapolated from smaller ones.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.child_processes import spawned_pool
from workbench.config import FinetuningConfig, PretrainingConfig, TrialConfig
from workbench.data.clips import ClipSet, Extent
from workbench.data.noise import noise_clips, noise_splits
from workbench.files import write_json
from workbench.hardware import forget_peak, resident_bytes
from workbench.settings import ConfigError, TrainingKind, digest, from_dict, identity, to_dict
from workbench.study.device import Device, free_memory
from workbench.training.batches import HEARD_CLIPS
from workbench.training.finetune import new_clip_model, predict
from workbench.training.pack import pack_key
from workbench.training.pretrain import STATISTICS_CLIPS, new_encoder
from workbench.training.timing import UpdateClock, time_updates

FORMAT = 4  # of what is kept; older measurements are made again
TIMED_SECONDS, TIMED_UPDATES = 2.5, 20  # whichever is over first, after the first two updates
RUNG = 4  # from one batch size tried to the next
RUNG_SECONDS = 2.0  # an update that is expected to take longer is extrapolated to
MEMORY_SHARE = 0.4  # of what is free: more is extrapolated to
PACK_GAIN = 0.95  # of the time of a pack half as large: a larger one must take less


@dataclass(frozen=True)
class Rates:
    """What one shape costs on one device, with the study's number of trials at once."""

    update_seconds: float
    heard_clip_seconds: float  # to evaluate a clip; of fine-tuning alone
    statistics_seconds: float  # before training: the log-mel statistics
    bytes: int  # peak memory of the process that trains one trial; on a GPU, of the GPU
    measured_batch: int  # less than the batch where that was extrapolated
    pack: int | None = None  # trials that a GPU had best train together; None: not measured, as on a CPU
    packed_update_seconds: float = 0.0  # of one trial of such a pack
    pack_error: str = ""  # why no larger one could be measured


@dataclass(frozen=True)
class Job:
    """A shape: what of a trial decides how long an update takes."""

    kind: TrainingKind
    config: TrialConfig
    extent: Extent

    @property
    def batch(self) -> int:
        """Clips of a micro-batch."""
        return self.settings.micro_batch

    @property
    def settings(self) -> PretrainingConfig | FinetuningConfig:
        return self.config.training(self.kind)

    @property
    def key(self) -> str:
        config, extent = self.config, self.extent
        dropout = 0.1 if config.model.dropout else 0.0  # whatever its rate, a mask takes as long
        content = {
            "kind": self.kind,
            "front_end": identity(config.front_end),
            "model": identity(dataclasses.replace(config.model, dropout=dropout)),
            "recompute": config.model.recompute,
            "precision": config.precision,
            "batch": self.batch,
            "accumulation": self.settings.accumulation,
            "clip_seconds": config.trained_on(self.kind).clip_seconds,
            "compile": config.compile,
        }
        if self.kind == "pretrain":
            assert config.pretraining is not None
            content["objective"] = identity(config.pretraining.objective)
            content["pool"] = [[seconds, round(share, 2)] for seconds, share in extent.pool_lengths]
        else:
            settings = config.finetuning
            content["pooling"] = settings.pooling
            content["freeze_encoder"] = settings.freeze_encoder
            content["consistency"] = settings.versions > 1
            content["num_classes"] = extent.num_classes
            content["evaluated_seconds"] = extent.evaluated_seconds
        return digest(content)


class Calibration:
    """The rates of a device, kept in a folder: `<device>.json`, by shape."""

    def __init__(self, folder: Path, device: Device) -> None:
        self._path = folder / f"{digest([FORMAT, device.key])[:16]}.json"
        self._device = device
        self._rates: dict[str, Rates] = {}
        self._read()

    def has(self, job: Job) -> bool:
        return job.key in self._rates

    def rates(self, job: Job) -> Rates:
        return self._rates[job.key]

    def measure(self, jobs: Iterable[Job], report: Callable[[str], None], *, with_packs: bool = True) -> None:
        """Measure the jobs that were never measured on this device; on a GPU also how many gain by a pack."""
        with_packs = with_packs and self._device.kind == "cuda"
        missing = list({job.key: job for job in jobs if not self._is_measured(job, with_packs)}.values())
        if not missing:
            return
        report(f"measuring {len(missing)} kinds of update on this device ({self._device.name}), once")
        measured = _measure_together(missing, self._device, with_packs)
        self._keep({job.key: rates for job, rates in zip(missing, measured, strict=True)})
        for job, rates in zip(missing, measured, strict=True):
            if rates.pack_error:
                most = "train one by one" if rates.pack == 1 else f"train at most {rates.pack} together"
                report(f"such trials {most} ({job.kind}): {rates.pack_error}")

    def _is_measured(self, job: Job, with_packs: bool) -> bool:
        rates = self._rates.get(job.key)
        return rates is not None and (rates.pack is not None or not with_packs)

    def learn(self, job: Job, factor: float) -> None:
        """A study's own stages took this much longer than expected: the next estimate knows."""
        rates = self._rates[job.key]
        self._keep(
            {
                job.key: dataclasses.replace(
                    rates,
                    update_seconds=rates.update_seconds * factor,
                    packed_update_seconds=rates.packed_update_seconds * factor,
                    heard_clip_seconds=rates.heard_clip_seconds * factor,
                    statistics_seconds=rates.statistics_seconds * factor,
                )
            }
        )

    def _keep(self, rates: dict[str, Rates]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()  # another study may have measured meanwhile
            self._rates |= rates
            device = dataclasses.asdict(self._device) | {"name": self._device.name}
            shapes = {key: dataclasses.asdict(each) for key, each in self._rates.items()}
            write_json(self._path, {"device": device, "rates": shapes})

    def _read(self) -> None:
        if self._path.exists():
            rates = json.loads(self._path.read_text())["rates"]
            self._rates |= {key: Rates(**values) for key, values in rates.items()}


def _measure_together(jobs: list[Job], device: Device, with_packs: bool) -> list[Rates]:
    """In as many processes as there will be trials at once: they share caches and memory."""
    at_once = device.at_once_here
    free = free_memory(device.kind) / at_once
    work = [(to_dict(job.config), job.kind, dataclasses.asdict(job.extent)) for job in jobs]
    with spawned_pool(at_once) as pool:
        try:
            futures = [pool.submit(_measure, work, device, free, with_packs) for _ in range(at_once)]
            columns = zip(*(future.result() for future in futures), strict=True)
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise ConfigError(
                "resources.concurrency",
                f"is {device.concurrency}, and measuring so many trials at once has ended, for lack of "
                f"memory perhaps ({_first_line(error)}); run fewer (--set resources.concurrency=1), end what "
                "else takes memory, or take a smaller preset",
            ) from error
        return [_combined(column) for column in columns]


def _combined(same: tuple[Rates, ...]) -> Rates:
    """Of several processes: the mean of times, the most of memory."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(rates, name) for rates in same)

    return Rates(
        mean("update_seconds"),
        mean("heard_clip_seconds"),
        mean("statistics_seconds"),
        max(rates.bytes for rates in same),
        min(rates.measured_batch for rates in same),
        min((rates.pack for rates in same if rates.pack is not None), default=None),
        mean("packed_update_seconds"),
        next((rates.pack_error for rates in same if rates.pack_error), ""),
    )


# --- in a process of its own --------------------------------------------------------------------------------


def _measure(work: list[tuple[Any, Any, Any]], device: Device, free: float, with_packs: bool) -> list[Rates]:
    torch.set_num_threads(device.threads)
    jobs = [Job(kind, from_dict(TrialConfig, raw), Extent(**extent)) for raw, kind, extent in work]
    place = torch.device(device.kind)
    _time_updates(jobs[0], min(2, jobs[0].batch), place, seconds=0)  # what is loaded at first is no batch's
    rates = [_measure_job(job, place, free) for job in jobs]
    if not with_packs:
        return rates
    return [_with_pack(each, job, place, free) for each, job in zip(rates, jobs, strict=True)]


def _measure_job(job: Job, device: torch.device, free: float) -> Rates:
    """Batches of 2, 8, 32 ... clips up to the trial's own, as far as time and memory allow."""
    at_rest = _forget_peak(device)
    batch = min(2, job.batch)
    rungs: list[tuple[int, float, int]] = []  # batch, seconds of an update, bytes that it takes
    while True:
        whole = batch == job.batch
        seconds = _time_updates(job, batch, device, TIMED_SECONDS if whole else TIMED_SECONDS / 10)
        rungs.append((batch, seconds, _peak_memory(device) - at_rest))
        following = min(batch * RUNG, job.batch)
        if whole or not _affordable(rungs, following, MEMORY_SHARE * free - at_rest):
            break
        batch = following
    seconds = _extrapolated([(b, s) for b, s, _ in rungs], job.batch)
    return Rates(
        update_seconds=seconds * job.settings.accumulation,
        heard_clip_seconds=_time_evaluation(job, device) if job.kind == "finetune" else 0.0,
        statistics_seconds=_time_statistics(job, device),
        bytes=at_rest + int(_extrapolated([(b, m) for b, _, m in rungs], job.batch)),
        measured_batch=rungs[-1][0],
    )


def _with_pack(alone: Rates, job: Job, device: torch.device, free: float) -> Rates:
    """With the pack that suits best: twice as many trials as long as that gains, fits, and can be done."""
    alone = dataclasses.replace(alone, pack=1, packed_update_seconds=alone.update_seconds)
    if pack_key(job.config, job.kind) is None or alone.measured_batch < job.batch:
        return alone
    best, best_seconds, error = 1, alone.update_seconds, ""
    while 2 * best * alone.bytes < MEMORY_SHARE * free:
        try:
            seconds = _time_updates(job, job.batch, device, TIMED_SECONDS / 2, 2 * best)
        except (
            RuntimeError,
            ValueError,
        ) as found:  # out of memory, or what cannot be done with stacked weights
            error = f"a pack of {2 * best} ends in {type(found).__name__}: {_first_line(found)}"
            break
        seconds *= job.settings.accumulation
        if seconds > PACK_GAIN * best_seconds:
            break
        best, best_seconds = 2 * best, seconds
    return dataclasses.replace(alone, pack=best, packed_update_seconds=best_seconds, pack_error=error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _affordable(rungs: list[tuple[int, float, int]], batch: int, room: float) -> bool:
    last, seconds, _ = rungs[-1]
    memory = _extrapolated([(b, m) for b, _, m in rungs], batch)
    return seconds * batch / last < RUNG_SECONDS and memory < room


def _extrapolated(points: list[tuple[int, float]], batch: int) -> float:
    """The last point if it is of that batch; else on the line through the last two, or in proportion."""
    (last, value) = points[-1]
    if last == batch or not value:
        return value
    if len(points) == 1:
        return value * batch / last
    (before, earlier) = points[-2]
    slope = max(value - earlier, 0.0) / (last - before)
    return value + slope * (batch - last)


def _time_updates(job: Job, batch: int, device: torch.device, seconds: float, num_trials: int = 1) -> float:
    """Of an update of one trial with that micro-batch; several are seeds of it, trained together."""
    trials = [_for_timing(job, batch, seed) for seed in range(num_trials)]
    splits = noise_splits(
        2 * batch,
        job.config.data.clip_seconds,
        job.extent.evaluated_seconds,
        job.extent.num_classes,
        single_label=job.config.data.single_label,
    )
    # Fine-tuning hears of the pool only what its log-mel statistics take: timed by itself.
    splits = dataclasses.replace(splits, pool=_pool(job, 2 * batch if job.kind == "pretrain" else 2))
    clock = UpdateClock(device, updates=TIMED_UPDATES, seconds=seconds)
    return time_updates(job.kind, trials, splits, clock)


def _for_timing(job: Job, batch: int, seed: int) -> TrialConfig:
    """The job's trial with that micro-batch, without accumulation or end.

    Smaller micro-batches than its own only lead up to it, and are not worth compiling.
    """
    sized: dict[str, Any] = {"batch_size": batch, "accumulation": 1, "steps": 10_000}
    config = dataclasses.replace(job.config, seed=seed, compile=job.config.compile and batch == job.batch)
    if job.kind == "pretrain":
        assert config.pretraining is not None
        return dataclasses.replace(config, pretraining=dataclasses.replace(config.pretraining, **sized))
    tuning = dataclasses.replace(config.finetuning, num_evaluations=1, **sized)
    return dataclasses.replace(config, finetuning=tuning)


def _time_evaluation(job: Job, device: torch.device) -> float:
    """Seconds a clip."""
    clips = noise_clips(HEARD_CLIPS, job.extent.evaluated_seconds, job.extent.num_classes)
    encoder = new_encoder(job.config, _pool(job, 2), device)
    model = new_clip_model(job.config, encoder, job.extent.num_classes).to(device)
    few = clips.take(np.arange(4))
    began = time.perf_counter()
    predict(job.config, model, few, device)
    if (time.perf_counter() - began) * HEARD_CLIPS / len(few) > RUNG_SECONDS:
        return (time.perf_counter() - began) / len(few)
    began = time.perf_counter()
    predict(job.config, model, clips, device)
    return (time.perf_counter() - began) / len(clips)


def _time_statistics(job: Job, device: torch.device) -> float:
    """Seconds of a new encoder, whose statistics hear so many clips."""
    heard = min(STATISTICS_CLIPS, job.extent.pool_clips)
    few = min(32, heard)
    pool = _pool(job, few)
    began = time.perf_counter()
    new_encoder(job.config, pool, device)
    return (time.perf_counter() - began) * heard / few


def _forget_peak(device: torch.device) -> int:
    """Bytes that are held where nothing is trained."""
    if device.type != "cuda":
        return forget_peak()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_reserved())


def _peak_memory(device: torch.device) -> int:
    return int(torch.cuda.max_memory_reserved()) if device.type == "cuda" else resident_bytes(peak=True)


def _pool(job: Job, count: int) -> ClipSet:
    """Noise, with the lengths of the pool in their shares."""
    lengths = [seconds for seconds, _ in job.extent.pool_lengths]
    shares = [share for _, share in job.extent.pool_lengths]
    edges = np.cumsum(shares) / sum(shares) * count
    seconds = np.array(lengths)[np.searchsorted(edges, np.arange(count) + 0.5).clip(max=len(lengths) - 1)]
    return noise_clips(count, seconds, job.extent.num_classes).unlabelled()
