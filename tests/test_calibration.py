"""Update times and memory as they are measured, kept and learned from; devices as they are."""

import dataclasses
import re
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from workbench.config import TrialConfig
from workbench.places import Places
from workbench.settings import ConfigError
from workbench.study import calibration, cost
from workbench.study.calibration import Calibration, Job, Rates, _extrapolated
from workbench.study.cost import CostModel, cost_of
from workbench.study.device import Device
from workbench.study.plan import Planner

from .small_plan import FakeModel
from .variants import variants


def test_rates_are_kept_and_found_again(tmp_path, study):
    config = study.trials()[0].config
    extent = FakeModel().extent(config.data)
    jobs = [Job("pretrain", config, extent), Job("finetune", config, extent)]
    device = Device("cpu", threads=1, concurrency=1, num_gpus=0)
    said = []
    measured = Calibration(tmp_path, device)
    measured.measure([*jobs, *jobs], said.append)
    assert said[0].startswith("measuring 2 kinds of update")
    for job in jobs:
        rates = measured.rates(job)
        assert rates.update_seconds > 0
        assert 1e8 < rates.bytes < 5e9
        assert rates.measured_batch == job.batch == 16
    assert 0 < measured.rates(jobs[1]).heard_clip_seconds < measured.rates(jobs[1]).update_seconds
    again = Calibration(tmp_path, device)
    again.measure(jobs, lambda line: pytest.fail("measured again"))
    assert again.rates(jobs[0]) == measured.rates(jobs[0])
    other = Calibration(tmp_path, dataclasses.replace(device, threads=2))
    with pytest.raises(KeyError):
        other.rates(jobs[0])


def test_an_estimate_learns_from_what_was_run(planned, tmp_path, data_root):
    """Were every stage to take three times what was expected, so would the next estimate be."""
    places = dataclasses.replace(Places.read(tmp_path), data=data_root)
    device = Device("cpu", threads=1, concurrency=1, num_gpus=0)
    long = [  # long enough to learn from
        Planner().plan(dataclasses.replace(item.trial, config=_longer(item.trial.config))) for item in planned
    ]
    model = CostModel(places, device, Planner())
    model.prepare(long, lambda line: None)
    before = cost_of(long, lambda stage: False, model).computing_seconds
    took = {
        stage: 3 * model.seconds(item.trial.config)[stage.kind]
        for item in long
        for stage in item.stages.all()
    }
    model.learn(long, took)
    after = cost_of(long, lambda stage: False, CostModel(places, device, Planner())).computing_seconds
    assert after == pytest.approx(3 * before, rel=0.05)


def _longer(config):
    steps = {"steps": 20_000}
    first = config.pretraining and dataclasses.replace(config.pretraining, **steps)
    second = dataclasses.replace(config.finetuning, **steps)
    return dataclasses.replace(config, pretraining=first, finetuning=second)


# What has no part in the length of an update.
WEIGHTLESS = {
    "pretrain": r"seed|model\.dropout|data\.(?!clip_seconds)|finetuning\.|"
    r"pretraining\.(steps|gain_db|mel_shift|optimiser|schedule)",
    "finetune": r"seed|model\.dropout|data\.(?!clip_seconds)|pretraining\.|finetuning\."
    r"(steps|class_balanced|num_evaluations|augmentation|optimiser|schedule|output_dropout|consistency_weight)",
}


@pytest.mark.parametrize("kind", WEIGHTLESS)
def test_a_shape_is_whatever_decides_an_updates_length(kind):
    trial = TrialConfig()
    extent = FakeModel().extent(trial.data)
    own = Job(kind, trial, extent).key
    found = {path: Job(kind, changed, extent).key == own for path, changed in variants(trial)}
    assert found == {path: bool(re.match(WEIGHTLESS[kind], path)) for path in found}


def test_a_shape_is_of_an_update_and_of_whether_there_is_dropout_or_consistency(study, with_changes):
    config = study.trials()[0].config
    extent = FakeModel().extent(config.data)
    for kind, stage in (("pretrain", "pretraining"), ("finetune", "finetuning")):
        smaller = Job(kind, with_changes(config, {f"{stage}.batch_size": 4}), extent)
        twice = with_changes(config, {f"{stage}.batch_size": 8, f"{stage}.accumulation": 2})
        assert Job(kind, twice, extent).key != smaller.key, "an update is two micro-batches of four"
    for path in ("model.dropout", "finetuning.consistency_weight"):
        rates = (with_changes(config, {path: rate}) for rate in (0.0, 0.1, 0.2))
        without, little, more = (Job("finetune", changed, extent).key for changed in rates)
        assert without != little == more


def test_what_a_search_comes_upon_is_reckoned_by_the_nearest_that_was_measured(
    planned, tmp_path, data_root, with_changes
):
    places = dataclasses.replace(Places.read(tmp_path), data=data_root)
    model = CostModel(places, Device("cpu", threads=1, concurrency=1, num_gpus=0), Planner())
    config = planned[0].trial.config
    assert set(model.seconds(config).values()) <= {0.0, cost.TRIAL_SECONDS}, "all was found: nothing measured"
    model = CostModel(places, model.device, Planner())
    model.prepare(planned, lambda line: None)
    larger = with_changes(config, {"finetuning.batch_size": 4 * config.finetuning.batch_size})
    seconds, expected = model.seconds(larger), model.seconds(config)
    assert seconds["pretrain"] == expected["pretrain"]
    assert seconds["finetune"] > 2 * expected["finetune"]
    assert model.trial_bytes(larger) >= model.trial_bytes(config)
    assert model.pack_size(larger, "finetune") == 1
    assert not model.is_extrapolated(larger)


class _Failing:
    """A pool of which no process comes to an end of its work."""

    error = BrokenProcessPool("A process in the process pool was terminated abruptly")

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, *work):
        future = Future()
        future.set_exception(self.error)
        return future


@pytest.mark.parametrize("error", [_Failing.error, torch.OutOfMemoryError("CUDA out of memory.\nMore")])
def test_measuring_that_runs_out_of_memory_says_what_needs_less(study, tmp_path, monkeypatch, error):
    monkeypatch.setattr(_Failing, "error", error)
    monkeypatch.setattr(calibration, "spawned_pool", _Failing)
    config = study.trials()[0].config
    job = Job("finetune", config, FakeModel().extent(config.data))
    device = Device("cpu", threads=1, concurrency=3, num_gpus=0)
    with pytest.raises(
        ConfigError,
        match=r"resources\.concurrency: is 3, .* for lack of memory perhaps",
    ):
        Calibration(tmp_path, device).measure([job], lambda line: None)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({2: 1.1}, (1, 1.0)),  # a device that is busy with one
        ({2: 0.6, 4: 0.4, 8: 0.39}, (4, 0.4)),  # the last gains too little for its memory
        ({2: 0.5, 4: 0.25, 8: 0.125}, (8, 0.125)),  # 16 would not fit
    ],
)
def test_a_pack_grows_as_long_as_the_device_gains(study, monkeypatch, seconds, best):
    monkeypatch.setattr(
        calibration, "_time_updates", lambda job, batch, device, limit, num_trials: seconds[num_trials]
    )
    config = study.trials()[0].config
    job = Job("finetune", config, FakeModel().extent(config.data))
    alone = Rates(1.0, 0.1, 0.1, bytes=1, measured_batch=job.batch)
    room = 9 / calibration.MEMORY_SHARE  # for packs of 8
    found = calibration._with_pack(alone, job, torch.device("cpu"), room)
    assert (found.pack, found.packed_update_seconds) == best


@pytest.mark.parametrize(("fitting", "best"), [(1, (1, 1.0)), (2, (2, 0.6))])
def test_a_pack_that_cannot_be_measured_is_told_of(study, monkeypatch, fitting, best, tmp_path):
    def seconds(job, batch, device, limit, num_trials):
        if num_trials > fitting:
            raise torch.OutOfMemoryError("no room for it\nand much else")
        return 0.6

    monkeypatch.setattr(calibration, "_time_updates", seconds)
    job = Job("finetune", study.trials()[0].config, FakeModel().extent(None))
    alone = Rates(1.0, 0.1, 0.1, bytes=1, measured_batch=job.batch)
    found = calibration._with_pack(alone, job, torch.device("cpu"), 1e9)
    assert (found.pack, found.packed_update_seconds) == best
    monkeypatch.setattr(calibration, "_measure_together", lambda jobs, device, with_packs: [found])
    monkeypatch.setattr(Device, "name", "a GPU")
    said = []
    Calibration(tmp_path, Device("cuda", 1, 1, 1)).measure([job], said.append)
    most = "one by one" if fitting == 1 else "at most 2 together"
    expected = f"a pack of {2 * fitting} ends in OutOfMemoryError: no room for it"
    assert said[1] == f"such trials train {most} (finetune): {expected}"


def test_no_pack_is_measured_for_trials_that_are_to_train_one_by_one(study, planned, monkeypatch, tmp_path):
    """And where it was not, a study that packs measures it."""
    monkeypatch.setattr(Device, "name", "a GPU")
    monkeypatch.setattr(CostModel, "extent", FakeModel().extent)
    asked = []

    def measure(jobs, device, with_packs):
        asked.append(with_packs)
        return [
            Rates(1.0, 0.1, 0.1, 1, job.batch, 4 if with_packs else None, 0.25 if with_packs else 0.0)
            for job in jobs
        ]

    monkeypatch.setattr(calibration, "_measure_together", measure)
    places, device = Places.read(tmp_path), Device("cuda", 1, 1, 1)
    config = planned[0].trial.config
    sizes = []
    for pack in (1, None, 1, None):
        model = CostModel(places, device, Planner(), pack=pack)
        model.prepare(planned, lambda line: None)
        sizes.append(model.pack_size(config, "finetune"))
    assert asked == [False, True]
    assert sizes == [1, 4, 1, 4]


@pytest.mark.parametrize(("room", "measured"), [(950e6, 2), (1_000e6, 8), (1_400e6, 32), (1e12, 64)])
def test_memory_grows_with_the_batch_and_what_the_process_takes_anyway_does_not(
    study, monkeypatch, with_changes, room, measured
):
    """However few of the batches could be measured."""
    at_rest, of_a_clip, sizes = 900 * 10**6, 10 * 10**6, []
    monkeypatch.setattr(calibration, "_time_updates", lambda job, batch, *_: sizes.append(batch) or 0.01)
    monkeypatch.setattr(calibration, "_forget_peak", lambda device: at_rest)
    monkeypatch.setattr(calibration, "_peak_memory", lambda device: at_rest + of_a_clip * sizes[-1])
    config = with_changes(study.trials()[0].config, {"finetuning.batch_size": 64})
    job = Job("finetune", config, FakeModel().extent(config.data))
    rates = calibration._measure_job(job, torch.device("cpu"), room / calibration.MEMORY_SHARE)
    assert rates.bytes == at_rest + of_a_clip * 64
    assert rates.measured_batch == sizes[-1] == measured


def test_what_leads_up_to_a_trials_micro_batch_is_not_compiled(study, with_changes):
    config = with_changes(study.trials()[0].config, {"compile": True})
    job = Job("pretrain", config, FakeModel().extent(config.data))
    assert calibration._for_timing(job, job.batch, seed=0).compile
    assert not calibration._for_timing(job, job.batch // 4, seed=0).compile


def test_a_batch_that_is_too_large_is_extrapolated():
    assert _extrapolated([(2, 1.0)], 8) == 4.0
    assert _extrapolated([(2, 1.0), (8, 2.5)], 64) == pytest.approx(2.5 + 56 * 0.25)
    assert _extrapolated([(2, 1.0), (8, 0.9)], 64) == 0.9, "never less than what was measured"
    assert _extrapolated([(2, 1.0), (8, 2.5)], 8) == 2.5
