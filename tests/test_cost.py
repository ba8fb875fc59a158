"""A plan's cost: stages shared count once, workers are kept busy, what cannot fit is refused."""

import dataclasses
import itertools
import json
import math
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.estimators import crossed_comparison
from workbench.data import fingerprint
from workbench.data.clips import Extent
from workbench.places import Places
from workbench.settings import ConfigError
from workbench.study import calibration, cost
from workbench.study.__main__ import main
from workbench.study.calibration import Calibration, Device, Job, Rates, _bytes_in_use, _extrapolated
from workbench.study.claims import read_claims
from workbench.study.cost import Cost, CostModel, cost_of, makespan, refuse_what_cannot_fit
from workbench.study.definition import Resources
from workbench.study.noise import compared_regimes, earlier_deviation, paired_deviation
from workbench.study.plan import Planner
from workbench.study.power import detectable_difference
from workbench.study.study_file import load_study

from .simulated_studies import FOLDER, a_record

STUDY = """
question: What does it cost?
preset: smoke
vary: {data.label_fraction: [0.25, 0.5, 1.0]}
regimes: {pretrained: {}, scratch: {pretraining: null}}
seeds: [0, 1]
"""
SECONDS = {"pretrain": 100.0, "finetune": 10.0, "evaluate": 1.0}


def _work(config):
    return {kind: s for kind, s in SECONDS.items() if kind != "pretrain" or config.pretraining is not None}


class FakeModel:
    """Costs that are known."""

    device = Device("cpu", threads=1, concurrency=2, num_gpus=0)

    def __init__(self, unprepared=0):
        self.unprepared = unprepared

    seconds = staticmethod(_work)

    def trial_bytes(self, config):
        return 5e8

    def stage_bytes(self, config):
        return {"pretrain": 1e6, "finetune": 1e6, "evaluate": 1e3}

    def checkpoint_bytes(self, config):
        return 4e6

    def is_extrapolated(self, config):
        return False

    def pack_size(self, config, kind):
        return 1

    def extent(self, config):
        return Extent(256, ((1.6, 1.0),), 8, 8, 1.6, 12, 0, self.unprepared)

    extent_of = extent


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def planned(study):
    return Planner().plan_study(study)


def test_a_shared_stage_counts_once(planned):
    cost = cost_of(planned, lambda stage: False, FakeModel())
    assert cost.computing_seconds == cost.once_seconds == 2 * 100 + 12 * 11
    assert cost.alone_seconds == 6 * 100 + 12 * 11
    found = {planned[0].stages.pretrain}
    again = cost_of(planned, lambda stage: stage in found, FakeModel())
    assert again.computing_seconds == cost.computing_seconds - 100
    assert again.once_seconds == cost.once_seconds
    assert cost.memory_bytes == pytest.approx(2 * 5e8 + 1.2e9)


def test_nothing_left_costs_nothing(planned):
    cost = cost_of(planned, lambda stage: True, FakeModel())
    assert cost.wall_seconds == cost.computing_seconds == cost.disk_bytes == 0


def test_the_same_data_are_counted_once(planned):
    cost = cost_of(planned, lambda stage: False, FakeModel(unprepared=7_000_000_000))
    assert 7e9 < cost.disk_bytes < 7.1e9


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
def test_the_makespan_lies_between_its_bounds(planned, workers):
    seconds = makespan(planned, lambda stage: False, _work, workers)
    total = 2 * 100 + 12 * 11
    assert seconds >= max(total / workers, 100 + 11)
    assert seconds <= total / workers + 100 + 11
    if workers == 1:
        assert seconds == total
    if workers == 20:
        assert seconds == 100 + 11, "the two pre-trainings at once, then every fine-tuning at once"


# --- what cannot fit ----------------------------------------------------------------------------------------

SMALL = Cost(60, 50, 50, 80, 1e6, 2e6, 1e6, 0, False, 1)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"memory_bytes": 1e15}, "resources.concurrency", "are free; run fewer at once"),
        ({"disk_bytes": 1e18}, "--root", "workbench.store gc"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_to_change(tmp_path, change, path, words):
    places = Places.read(tmp_path / "not" / "there")
    refuse_what_cannot_fit(SMALL, FakeModel(), places)
    with pytest.raises(ConfigError) as error:
        refuse_what_cannot_fit(dataclasses.replace(SMALL, **change), FakeModel(), places)
    assert error.value.path == path
    assert words in str(error.value)


def test_audio_and_stages_on_other_disks_must_fit_there(tmp_path, monkeypatch):
    elsewhere = Path("/dev/shm")
    if not elsewhere.exists() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, /dev/shm")
    (tmp_path / "places.yaml").write_text(f"data: {elsewhere}\n")
    places = Places.read(tmp_path)
    free = {elsewhere: 5e9, tmp_path: 3e9}
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free[path]))
    refuse_what_cannot_fit(dataclasses.replace(SMALL, disk_bytes=7e9, data_bytes=4.5e9), FakeModel(), places)
    for audio, where in ((6e9, elsewhere), (3e9, tmp_path)):
        with pytest.raises(ConfigError, match=f"below {where}"):
            refuse_what_cannot_fit(
                dataclasses.replace(SMALL, disk_bytes=7e9, data_bytes=audio), FakeModel(), places
            )


@pytest.fixture
def root(tmp_path, data_root, calibration):
    root = tmp_path / "mlruns"
    root.mkdir()
    (root / "data").symlink_to(data_root)
    (root / "calibration").symlink_to(calibration)
    return root


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.pool_clips=500000000", "the study would write"),
        ("pretraining.batch_size=2000000", "trials at once would take"),
    ],
)
def test_a_study_that_cannot_fit_is_refused_before_it_starts(root, capsys, setting, words):
    status = main(["studies/smoke.yaml", "--root", str(root), "--set", setting])
    assert status == 2
    assert words in capsys.readouterr().err
    assert not (root / "optuna.db").exists()


def test_a_dry_run_plans_what_cannot_fit_and_says_so(root, capsys):
    arguments = ["--root", str(root), "--set", "data.pool_clips=500000000", "--dry-run"]
    assert main(["studies/smoke.yaml", *arguments]) == 2
    printed = capsys.readouterr()
    assert "sharing: every stage once" in printed.out
    assert "the study would write" in printed.err


def test_a_dry_run_of_several_studies_counts_what_they_share(root, tmp_path, capsys):
    """A study whose every stage is another's costs nothing more."""
    same = tmp_path / "same.yaml"
    same.write_text("question: Again?\npreset: smoke\nvary: {model.num_heads: [1]}\nregimes: [full]\n")
    assert main(["studies/smoke.yaml", str(same), "--root", str(root), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "all 2 studies together\n9 trials; to run: 4 pre-trainings, 8 fine-tunings" in printed


def test_a_dry_run_goes_on_past_a_study_whose_data_are_not_here(root, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(
        "{question: 'Where?', preset: smoke, regimes: [full], vary: {model.num_heads: [1]}, "
        "metric: accuracy, settings: {data: {kind: esc50, root: nowhere}, finetuning.pooling: mean}}"
    )
    files = [str(elsewhere), "studies/smoke.yaml", "studies/smoke.yaml"]
    assert main([*files, "--root", str(root), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "cannot be planned: its data are not here" in printed.out
    assert "all 2 studies together" in printed.out
    assert "elsewhere-smoke: nowhere: not there. data.root must be a copy" in printed.err


def test_the_plan_of_a_search_counts_what_confirms_its_winner(root, tmp_path, capsys):
    path = tmp_path / "searching.yaml"
    space = "{finetuning.output_dropout: {kind: uniform, low: 0.1, high: 0.5}}"
    search = f"search: {{num_trials: 3, space: {space}, confirm_seeds: [1, 2]}}"
    path.write_text(f"question: Which?\npreset: smoke\nsettings: {{model.num_heads: 1}}\n{search}\n")
    assert main([str(path), "--root", str(root), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "7 trials; to run: 3 pre-trainings, 7 fine-tunings, 7 evaluations" in printed
    assert "4 of them run the winner again beside the study's own settings, on seeds 1, 2" in printed
    assert "seeds: 2 pairs of trials" in printed


# --- calibration --------------------------------------------------------------------------------------------


def test_copies_of_files_are_no_memory_in_use(tmp_path):
    """They are given up when memory is asked for: after an installation they may be most of it."""
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 6000\ninactive_file 5500\nactive_file 500\n")
    assert _bytes_in_use(tmp_path) == 1_500


def test_update_times_are_measured_with_as_many_as_share_a_gpu():
    def at_once(**places):
        return Device(threads=1, **places).at_once_here

    assert at_once(kind="cuda", concurrency=8, num_gpus=8) == 1
    assert at_once(kind="cuda", concurrency=16, num_gpus=8, num_machines=2) == 2
    assert at_once(kind="cpu", concurrency=8, num_gpus=0) == 8


def test_rates_are_kept_and_found_again(tmp_path, study, monkeypatch):
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
        assert 1e-4 < rates.update_seconds < 1
        assert 1e8 < rates.bytes < 5e9
        assert rates.measured_batch == job.batch == 16
    assert 1e-6 < measured.rates(jobs[1]).heard_clip_seconds < 0.1
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


def test_a_shape_is_what_decides_an_updates_length(study, with_changes):
    config = study.trials()[0].config
    extent = FakeModel().extent(config.data)
    jobs = {kind: Job(kind, config, extent).key for kind in ("pretrain", "finetune")}
    same = {
        "seed": 9,
        "finetuning.optimiser.peak_lr": 0.5,
        "finetuning.steps": 77,
        "data.label_fraction": 0.1,
    }
    for path, value in same.items():
        changed = with_changes(config, {path: value})
        assert {kind: Job(kind, changed, extent).key for kind in jobs} == jobs, path
    for path, value in {"model.num_heads": 4, "data.clip_seconds": 2.0, "compile": True}.items():
        changed = with_changes(config, {path: value})
        assert all(Job(kind, changed, extent).key != jobs[kind] for kind in jobs), path
    for kind, path in (("pretrain", "pretraining.batch_size"), ("finetune", "finetuning.batch_size")):
        assert Job(kind, with_changes(config, {path: 4}), extent).key != jobs[kind]


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
    monkeypatch.setattr(calibration.Device, "name", "a GPU")
    said = []
    Calibration(tmp_path, Device("cuda", 1, 1, 1)).measure([job], said.append)
    most = "one by one" if fitting == 1 else "at most 2 together"
    expected = f"a pack of {2 * fitting} ends in OutOfMemoryError: no room for it"
    assert said[1] == f"such trials train {most} (finetune): {expected}"


def test_no_pack_is_measured_for_trials_that_are_to_train_one_by_one(study, planned, monkeypatch, tmp_path):
    """And where it was not, a study that packs measures it."""
    monkeypatch.setattr(calibration.Device, "name", "a GPU")
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


def test_resources_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="no GPU"):
        Device.of(Resources(device="cuda"))


def test_a_trial_has_no_more_processes_than_there_are_gpus(monkeypatch):
    """Ray would wait for the others for ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Device.of(Resources(processes=2)).concurrency == 1
    with pytest.raises(
        ConfigError, match=r"resources\.processes: is 3, .*, of which torch finds 2 here; use at most 2"
    ):
        Device.of(Resources(processes=3))
    assert Device.of(Resources(processes=3, device="cpu")).kind == "cpu"


def test_extents_are_those_of_the_splits(tiny_trial, tiny_splits, data_root, tmp_path):
    from workbench import data

    extent = data.extent(tiny_trial.data, data_root, fingerprint(tiny_trial.data))
    assert extent.pool_clips == len(tiny_splits.pool)
    assert extent.validation_clips == len(tiny_splits.validation)
    assert extent.test_clips == len(tiny_splits.test)
    assert extent.num_classes == len(tiny_splits.classes)
    assert extent.evaluated_seconds == tiny_splits.test.length.mean() / 16_000
    assert (extent.unprepared_clips, extent.unprepared_bytes) == (0, 0)
    elsewhere = data.extent(tiny_trial.data, tmp_path, fingerprint(tiny_trial.data))
    on_disk = sum(path.stat().st_size for path in data_root.glob("corpus-*/*"))
    assert elsewhere.unprepared_clips == 640
    assert elsewhere.unprepared_bytes <= on_disk * 1.01


# --- what the seeds can show --------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [3, 5, 12])
def test_the_detectable_difference_is_found_four_times_in_five(pairs):
    effect = detectable_difference(pairs, deviation=2.0)
    differences = np.random.default_rng(0).normal(effect, 2.0, (20_000, pairs))
    found = stats.ttest_1samp(differences, 0.0, axis=1)
    assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.015)


def test_one_seed_shows_nothing():
    assert detectable_difference(1) == math.inf


def test_the_noise_of_pairs_is_taken_from_earlier_results(study, tmp_path):
    assert earlier_deviation(study, tmp_path) is None
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(400):
        shared = generator.normal(0, 10)  # of the seed: gone in a pair's difference
        for level in (1, 2):
            rows.append(
                {
                    "number": 0, "state": "complete", "reason": "", "level": level, "regime": "full",
                    "seed": seed, "fold": None, "test/mAP": shared + level + generator.normal(0, 0.5),
                }
            )  # fmt: skip
    for name, preset in (("other-study-smoke", "smoke"), ("smoke-quick", "quick")):
        folder = tmp_path / name
        folder.mkdir()
        record = a_record(id=name, preset=preset, regimes=["full"])
        definition = {key: value for key, value in vars(record).items() if key != "folder"}
        (folder / "study.json").write_text(json.dumps(definition))
        pd.DataFrame(rows).to_csv(folder / "trials.csv", index=False)
    deviation, name = earlier_deviation(study, tmp_path)
    assert name == "other-study-smoke"
    assert deviation == pytest.approx(0.5 * math.sqrt(2), rel=0.1)


def test_the_noise_is_that_of_the_regimes_that_the_claims_compare():
    """Not of label counts, whose scores have nothing in common; at each arm's best rate, by fold."""
    generator = np.random.default_rng(0)
    rows = []
    for seed, fold in itertools.product(range(2), range(200)):
        for level in (1, 2):
            shared = generator.normal(0, 10)
            for regime, rate in itertools.product(("scratch", "pretrained"), (1e-3, 2e-3)):
                score = shared + generator.normal(0, 0.5)
                rows.append(
                    {
                        "state": "complete", "level": level, "rate": rate, "regime": regime, "seed": seed,
                        "fold": fold, "test/mAP": score, "validation/mAP": rate,
                    }
                )  # fmt: skip
    record = a_record(regimes=["scratch", "pretrained"], tuned=["rate"])
    regimes = compared_regimes([read_claims(FOLDER / "claims.yaml")["two-thirds"]])
    assert regimes == {frozenset({"scratch", "pretrained"})}
    deviation, freedom = paired_deviation(record, pd.DataFrame(rows), regimes)
    assert deviation == pytest.approx(0.5, rel=0.1)  # root two for the pair, and for two seeds a fold
    assert freedom == 2 * 199


def test_folds_and_clips_make_the_detectable_difference_larger():
    """As the intervals of verdicts have it: a true difference of that size is found four times in five."""
    plain = detectable_difference(5, 0.01)
    assert detectable_difference(5, 0.01, overlap=1 / 3) == pytest.approx(plain * math.sqrt(1 + 5 / 3))
    generator = np.random.default_rng(0)
    effect = detectable_difference(4, 0.01, clip_error=0.005)
    found = 0
    for _ in range(1000):
        clips = generator.normal(0, 0.005, (100, 1)) * np.ones((1, 4))
        differences = effect + generator.normal(0, 0.005) + generator.normal(0, 0.01, 4)
        found += crossed_comparison(differences, clips, 1000).low > 0
    assert found / 1000 == pytest.approx(0.8, abs=0.05)
    assert detectable_difference(1000, 0.01, clip_error=0.005) > 2.8 * 0.005


def test_the_estimate_is_judged(tmp_path, capsys):
    from rich.console import Console

    from workbench.study.run import _judge_estimate

    _judge_estimate(dataclasses.replace(SMALL, wall_seconds=110.0), 100.0, tmp_path, Console())
    assert "the estimate was 10% too long" in capsys.readouterr().out
    row = json.loads((tmp_path / "estimates.jsonl").read_text())
    assert row == {"expected_seconds": 110.0, "seconds": 100.0}
