"""The benchmark's rival computes the same; its operations are counted as torch counts them."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from workbench.bench import __main__ as bench
from workbench.bench import machinery, sets, sharing, step
from workbench.bench.flops import update_flops
from workbench.bench.plain import PlainTraining, contrastive_loss, draw_distractors
from workbench.bench.shapes import SHAPES, sized
from workbench.bench.step import StepFigures
from workbench.bench.timing import Compared, in_turn
from workbench.config import TrialConfig
from workbench.data.noise import noise_clips, noise_splits
from workbench.settings import from_dict
from workbench.store import Store
from workbench.study.study_file import read_preset
from workbench.training.finetune import finetune, new_clip_model
from workbench.training.loop import Run, Stopped
from workbench.training.objectives import Contrastive
from workbench.training.pretrain import new_encoder, pretrain
from workbench.training.timing import UpdateClock

from .torchaudio_weights import copy_into_layer

CPU = torch.device("cpu")
TINY = sized(SHAPES["quick"], 4)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_the_presets(name):
    preset = from_dict(TrialConfig, read_preset(name)[0])
    shape = SHAPES[name]
    assert (shape.model, shape.front_end, shape.precision) == (
        preset.model,
        preset.front_end,
        preset.precision,
    )
    assert shape.data.clip_seconds == preset.data.clip_seconds
    for stage, fields in {
        "pretraining": ("batch_size", "objective", "gain_db", "mel_shift"),
        "finetuning": ("batch_size", "pooling", "consistency_weight", "augmentation"),
    }.items():
        for field in fields:
            assert getattr(getattr(shape, stage), field) == getattr(getattr(preset, stage), field), field


def _without_chance(config):
    """No dropout and no augmentation: both losses then depend on the weights alone."""
    plain = dataclasses.replace(config.finetuning.augmentation, jitter_samples=0, time_mask=0.0, mixup=None)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        pretraining=dataclasses.replace(config.pretraining, gain_db=0.0, mel_shift=0),
        finetuning=dataclasses.replace(config.finetuning, augmentation=plain),
    )


def _same_weights(config, kind, clips):
    """The rival and the core's model, with the core's weights."""
    rival = PlainTraining(config, kind, clips, CPU)
    encoder = new_encoder(config, clips.unlabelled(), CPU).train()
    model = new_clip_model(config, encoder, clips.labels.num_classes)
    layers = [*rival.encoder.first.conformer_layers, *rival.encoder.rest.conformer_layers]
    for block, layer in zip(encoder.conformer.blocks, layers, strict=True):
        copy_into_layer(block, layer)
    for name in ("features", "into_context", "out_of_context"):
        getattr(rival.encoder, name).load_state_dict(getattr(encoder, name).state_dict())
    rival.encoder.mask_vector.data.copy_(encoder.mask_vector.data)
    rival.encoder.mean, rival.encoder.std = encoder.front_end.mean, encoder.front_end.std
    rival.classifier.linear.load_state_dict(model.classifier.linear.state_dict())
    return rival, model


def test_the_rivals_finetuning_loss_is_the_cores():
    config = _without_chance(TINY)
    clips = noise_clips(4, config.data.clip_seconds, 3)
    rival, model = _same_weights(config, "finetune", clips)
    waveform, samples = clips.read(np.arange(4))
    targets = torch.from_numpy(clips.labels.matrix()).float()
    expected = rival.finetuning_loss(waveform, samples, targets, torch.Generator())
    logits = model(model.encoder.front_end(waveform))
    ours = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_rivals_pretraining_loss_is_the_cores():
    config = _without_chance(TINY)
    clips = noise_clips(4, config.data.clip_seconds, 3)
    rival, model = _same_weights(config, "pretrain", clips)
    encoder = model.encoder
    waveform, _ = clips.read(np.arange(4))
    expected = rival.pretraining_loss(waveform, torch.Generator().manual_seed(5))
    objective = Contrastive(config.pretraining.objective)
    generator = torch.Generator().manual_seed(5)
    latents = encoder.latents(encoder.front_end(waveform))
    hidden = objective.hide(torch.full((4,), config.num_latents), config.num_latents, generator)
    context = encoder.context(latents, None, hidden.masked)
    ours, _ = objective.loss(latents, context, encoder.out_of_context, hidden)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_distractors_are_the_others():
    every = draw_distractors(2, 5, None)
    for place in range(5):
        assert every[0, place].tolist() == [i for i in range(5) if i != place]
    some = draw_distractors(3, 5, 200)
    assert some.shape == (3, 5, 200)
    assert not (some == torch.arange(5)[None, :, None]).any()
    assert set(some.unique().tolist()) == {0, 1, 2, 3, 4}


def test_a_candidate_like_its_target_costs_least():
    targets = torch.eye(4)[None]
    distractors = draw_distractors(1, 4, None)
    right = contrastive_loss(targets, targets, distractors, 0.1)
    wrong = contrastive_loss(targets.flip(1), targets, distractors, 0.1)
    assert right < 0.001
    assert wrong > 5


def _counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["quick", "cf_small"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_operations_are_those_that_torch_counts(name, kind):
    """Of an update of ours; the depthwise convolution is no matrix product there, the front end's is one."""
    whole = sized(SHAPES[name], 2)  # with dropout: attention is then products of matrices, which torch counts
    config = dataclasses.replace(whole, model=dataclasses.replace(whole.model, num_blocks=2))
    length = config.data.clip_seconds
    splits = noise_splits(2, length, length, 7)

    def run(updates):
        clock = UpdateClock(CPU, updates=updates, warm_up=0)
        stopped_early = Run(tracker=clock, should_stop=clock.enough)  # before the first log point
        with contextlib.suppress(Stopped):
            if kind == "pretrain":
                pretrain(config, splits.pool, stopped_early)
            else:
                finetune(config, splits, new_encoder(config, splits.pool, CPU), stopped_early)

    counted = _counted(lambda: run(2)) - _counted(lambda: run(1))
    front_end = new_encoder(config, splits.pool, CPU).front_end
    waveform, _ = splits.train.read(np.arange(2))
    versions = 2 if kind == "finetune" and config.finetuning.consistency_weight > 0 else 1
    counted -= versions * _counted(lambda: front_end(waveform))
    latents, width = config.num_latents, config.model.width
    depthwise = 2 * versions * 3 * 2 * latents * width * (31 + 15)
    assert update_flops(config, kind, 7) - depthwise == pytest.approx(counted, rel=1e-3)


def test_sets_are_measured_beside_what_others_do(capsys):
    sets.main(["--files", "3", "--clips", "1000", "--rounds", "1"])
    said = capsys.readouterr().out.splitlines()
    for line, words in zip(
        said,
        ("soxr", "torchaudio", "prepare 3", "memory", "1,000 clips", "batches", "splits of a trial"),
        strict=True,
    ):
        assert words in line


def test_what_fails_is_told_of_and_the_rest_is_kept(monkeypatch, capsys, tmp_path):
    """A device that cannot hold one shape, and can train no pack; figures are kept row by row."""
    kept = []

    def packed(config, kind, device, *, num_trials, updates, rounds):
        kept.append(json.loads(path.read_text()))
        if num_trials > 2:
            raise RuntimeError("a kernel that takes no stacked weights")
        return Compared((0.5,), (1.0,))

    def measured(config, kind, device, *, updates, rounds):
        if kind == "pretrain":
            raise torch.OutOfMemoryError("tried to allocate 160 GiB")
        return StepFigures(4, Compared((1.0,), (3.0,)), 0.1, 1e9, 10, 20)

    monkeypatch.setattr(bench, "measure_packed", packed)
    monkeypatch.setattr(bench, "measure_step", measured)
    monkeypatch.setattr(bench, "measure_feed", lambda *arguments: Compared((1e-3,), (2e-3,)))
    path = tmp_path / "figures.json"
    assert bench.main(["step", "packed", "feed", "--shape", "quick", "--json", str(path)]) == 1
    figures = json.loads(path.read_text())
    assert [row.get("ratio", row.get("error")) for row in figures["step"]] == ["out of memory", 3.0]
    apart = "RuntimeError: a kernel that takes no stacked weights"
    assert [row.get("ratio", row.get("error")) for row in figures["packed"]] == [2.0, apart] * 2
    assert figures["feed"][0]["times_the_step"] == pytest.approx(1000 / 4)
    assert [len(each.get("packed", [])) for each in kept] == [0, 1, 2, 3]
    printed = capsys.readouterr().out
    assert all(reason in printed for reason in ("out of memory", apart))
    assert bench.main(["feed", "--shape", "quick"]) == 0


def test_the_front_end_is_measured_by_itself(capsys, tmp_path):
    path = tmp_path / "figures.json"
    arguments = ["front_end", "--shape", "quick", "--batch", "2", "--rounds", "1", "--json", str(path)]
    assert bench.main(arguments) == 0
    rows = json.loads(path.read_text())["front_end"]
    assert [row["stage"] for row in rows] == ["pretrain", "finetune"]
    for row in rows:
        assert row["clips_per_second"] == pytest.approx(2 / row["ours"][0])
        assert row["plain_clips_per_second"] == pytest.approx(2 / row["plain"][0])
        assert row["ratio"] == pytest.approx(row["plain"][0] / row["ours"][0])
    lines = capsys.readouterr().out.splitlines()
    assert sum(" quick " in line and f"{rows[0]['ratio']:.2f}" in line for line in lines) >= 1


def test_a_reference_that_fails_leaves_the_cores_figures(monkeypatch, capsys, tmp_path):
    """At cf_L the core's update may fit a GPU that the reference's does not."""

    def runs_out(*arguments):
        raise torch.OutOfMemoryError("tried to allocate 160 GiB")

    monkeypatch.setattr(bench, "matrix_flops", lambda device, kind: 1e9)
    monkeypatch.setattr(step, "front_end_seconds", lambda *arguments: 0.5)
    monkeypatch.setattr(step, "core_seconds", lambda *arguments: 2.0)
    monkeypatch.setattr(step, "plain_seconds", runs_out)
    monkeypatch.setattr(step, "peak_bytes", lambda device, work, *arguments: work(*arguments) and 7)
    path = tmp_path / "figures.json"
    arguments = ["step", "--shape", "quick", "--batch", "4", "--rounds", "1", "--json", str(path)]
    assert bench.main(arguments) == 1
    for row in json.loads(path.read_text())["step"]:
        assert (row["clips_per_second"], row["bytes"]) == (2.0, 7)
        assert row["plain_error"] == "out of memory"
        assert row["ratio"] is row["plain_clips_per_second"] is row["plain_bytes"] is None
        assert "error" not in row
    lines = [line for line in capsys.readouterr().out.splitlines() if "quick" in line]
    assert all("2.0" in line and "out of memory" in line for line in lines)
    assert len(lines) == 2


def test_the_machinerys_figures_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(machinery, "ray_started", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(machinery, "_ours", lambda trials: 0.3)
    monkeypatch.setattr(machinery, "_stock", lambda trials, number: 0.1)
    path = tmp_path / "figures.json"
    assert bench.main(["machinery", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["machinery"]
    assert row["ratios"] == pytest.approx([3.0] * machinery.ROUNDS)


def test_ratios_are_of_rounds():
    assert Compared(ours=(1.0, 2.0, 4.0), plain=(2.0, 2.0, 40.0)).ratio == 2.0
    calls = []
    found = in_turn(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 3.0, rounds=3)
    assert found == Compared((1.0,) * 3, (3.0,) * 3)
    assert "".join(calls) in ("baabbaab", "abbaabba")  # each begins half of the rounds
    fails = in_turn(lambda: 1.0, lambda: 1 / 0, rounds=3)
    assert (fails.ours, fails.plain, fails.ratio) == ((1.0,) * 3, (), None)
    assert fails.plain_error == "ZeroDivisionError: division by zero"


# --- sharing ------------------------------------------------------------------------------------------------


@pytest.fixture
def reported(planned, tmp_path, capsys):
    """`reported(again=..., resumed=...)`: status and lines, of stages that each took one unit of work."""

    def build(folder):
        return {"metrics": {"loss": 1.0}, "work": 1.0}

    def resume(folder):
        return {"metrics": {"loss": 1.0}}

    def reported(*, again=(), resumed=()):
        shared = Store(tmp_path / "shared")
        stores = [Store(tmp_path / str(number)) for number in range(len(planned))]
        for item, store in zip(planned, stores, strict=True):
            for stage in item.stages.all():
                store.obtain(stage, build)
                shared.obtain(stage, resume if stage in resumed else build)
        for stage in again:
            shutil.rmtree(shared.path(stage))
            shared.obtain(stage, build)
        walls = {sharing.SHARED: 1.0, sharing.OPAQUE: 1.0}
        status = sharing._report(planned, shared, stores, 1.0, walls, "work", Console(soft_wrap=True))
        return status, capsys.readouterr().out

    return reported


def test_a_stage_that_was_computed_twice_is_counted_though_it_has_one_folder(reported, planned):
    status, printed = reported()
    assert status == 0
    assert "stages computed twice: 0" in printed
    assert "left out" not in printed
    status, printed = reported(again=[planned[0].stages.evaluate])
    assert status == 1
    assert "stages computed twice: 1" in printed


def test_the_seconds_of_a_stage_that_was_resumed_are_left_out_and_it_is_said(reported, planned):
    status, printed = reported(resumed=[planned[0].stages.evaluate])
    assert status == 0
    assert "left out of compute: 1, cut off and resumed" in printed
