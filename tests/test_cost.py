"""A plan's cost: stages shared count once, workers are kept busy, what cannot fit is refused."""

import contextlib
import dataclasses
import json
import types
from pathlib import Path

import pytest

from workbench.data import fingerprint
from workbench.places import Places
from workbench.settings import ConfigError
from workbench.study import cost
from workbench.study.__main__ import main
from workbench.study.cost import Cost, cost_of, makespan, refuse_what_cannot_fit
from workbench.study.device import Device
from workbench.study.plan import print_trials

from .small_plan import FakeModel, seconds_of


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
    seconds = makespan(planned, lambda stage: False, seconds_of, workers)
    total = 2 * 100 + 12 * 11
    assert seconds >= max(total / workers, 100 + 11)
    assert seconds <= total / workers + 100 + 11
    if workers == 1:
        assert seconds == total
    if workers == 20:
        assert seconds == 100 + 11, "the two pre-trainings at once, then every fine-tuning at once"


def test_a_shared_pretraining_begins_before_longer_trials_that_nothing_waits_for(planned):
    pretrained = [item for item in planned if item.trial.regime == "pretrained" and item.trial.seed == 0]
    scratch = [item for item in planned if item.trial.regime == "scratch"][:4]
    seconds = {"pretrain": 8.0, "finetune": 1.0, "evaluate": 0.0}

    def work(config):
        return seconds if config.pretraining is not None else {"finetune": 10.0, "evaluate": 0.0}

    took = makespan([*scratch, *pretrained], lambda stage: False, work, 2)
    assert took == 9 + 10 + 10, "the longest trials first would leave a worker idle beside the pre-training"


# --- what cannot fit ----------------------------------------------------------------------------------------

SMALL = Cost(60, 50, 50, 80, 1e6, 2e6, 2e6, 1e6, 0, False, 1)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"device_bytes": 1e15}, "resources.concurrency", "are free; run fewer at once"),
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


@pytest.mark.parametrize(
    ("kind", "concurrency", "gpus", "machines", "processes", "free", "fits"),
    [
        ("cuda", 1, 4, 1, 1, 4e8, False),  # the others' memory is of no use to it
        ("cuda", 4, 4, 1, 1, 6e8, True),
        ("cuda", 5, 4, 1, 1, 6e8, False),  # two share a GPU
        ("cuda", 2, 4, 1, 2, 3e8, True),  # a trial's batches are shared by two GPUs
        ("cpu", 2, 0, 2, 1, 1.8e9, True),
        ("cpu", 4, 0, 2, 1, 1.8e9, False),
    ],
)
def test_what_is_at_once_on_one_device_must_fit_there(
    planned, tmp_path, monkeypatch, kind, concurrency, gpus, machines, processes, free, fits
):
    device = Device(kind, 1, concurrency, gpus, num_machines=machines, processes=processes)
    model = FakeModel(device=device)
    monkeypatch.setattr(cost, "free_memory", lambda kind: free)
    found = cost_of(planned, lambda stage: False, model)
    refused = contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="GB each, and")
    with refused:
        refuse_what_cannot_fit(found, model, Places.read(tmp_path))


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


def test_a_dry_run_numbers_trials_as_the_command_for_one_does(planned):
    """Also where some before them have failed."""
    lines = []
    print_trials(planned, planned[2:], lambda stage: False, lines.append)
    assert [int(line[:4]) for line in lines] == list(range(len(planned)))
    assert [line.endswith("failed before") for line in lines] == [True] * 2 + [False] * (len(planned) - 2)


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


@pytest.mark.parametrize(
    ("expected", "judgement"),
    [(110.0, "10% too long"), (80.0, "20% too short"), (100.4, "right")],
)
def test_the_estimate_is_judged(tmp_path, capsys, expected, judgement):
    from rich.console import Console

    from workbench.study.run import _judge_estimate

    _judge_estimate(dataclasses.replace(SMALL, wall_seconds=expected), 100.0, tmp_path, Console())
    assert f"the estimate was {judgement}\n" in capsys.readouterr().out
    row = json.loads((tmp_path / "estimates.jsonl").read_text())
    assert row == {"expected_seconds": expected, "seconds": 100.0}
