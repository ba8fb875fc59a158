"""Training learns, keeps the best weights, ends where it diverges, and is the sum of its parts."""

import contextlib
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.config import OptimiserConfig, WarmupLinear
from workbench.data_config import CorpusData
from workbench.model.conformer import MaskedBatchNorm
from workbench.training import finetune as finetune_module
from workbench.training import loop
from workbench.training import pretrain as pretrain_module
from workbench.training.finetune import Finetuning, _loss, finetune, predict, score, symmetric_divergence
from workbench.training.loop import Course, Diverged, Run, Stopped
from workbench.training.metrics import average_precision
from workbench.training.pretrain import Pretraining, computed_in, new_encoder, pretrain

from .trained import finetuned
from .trained_alike import assert_identical_weights, assert_same_weights

CPU = torch.device("cpu")


def test_clips_shorter_than_a_frame_train_and_are_judged(tiny_trial, tiny_splits):
    """Where nothing else is in their batch, too: they are filled up with silence."""

    def shortened(clips):
        return dataclasses.replace(clips, length=np.full(len(clips), 100))

    parts = {name: shortened(getattr(tiny_splits, name)) for name in ("pool", "train", "validation", "test")}
    splits = dataclasses.replace(tiny_splits, **parts)
    pretrain(tiny_trial, splits.pool, Run())
    model = finetuned(tiny_trial, splits).model
    probabilities = predict(tiny_trial, model, splits.test, CPU)
    assert probabilities.shape == (len(splits.test), len(splits.classes))
    assert np.isfinite(probabilities).all()


# --- it learns ----------------------------------------------------------------------------------------------


def test_pretraining_learns_the_task(tiny_trial, tiny_splits, with_changes):
    trial = with_changes(tiny_trial, {"pretraining.steps": 250})
    history = pretrain(trial, tiny_splits.pool, Run()).history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    # 6 of 20 latents are masked, so chance is 1 in 6.
    assert history[-1]["contrastive_accuracy"] > 0.3
    assert history[-1]["latent_std"] > 0.05
    assert history[-1]["latent_effective_rank"] > 2


def test_finetuning_fits_its_clips_and_beats_chance_on_others(tiny_trial, tiny_splits, with_changes):
    changes = {
        "finetuning.steps": 400,
        "finetuning.augmentation.mixup": None,
        "finetuning.augmentation.time_mask": 0.0,
        "model.dropout": 0.0,
        "model.width": 32,
        "finetuning.optimiser.peak_lr": 5e-3,
    }
    trial = with_changes(tiny_trial, changes)
    result = finetuned(trial, tiny_splits)
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    chance = tiny_splits.test.labels.matrix().mean()
    test, _ = score(trial, result.model, tiny_splits.test, CPU, "test")
    assert test["test/mAP"] > 1.3 * chance
    seen = predict(trial, result.model, tiny_splits.train, CPU)
    assert np.nanmean(average_precision(seen, tiny_splits.train.labels.matrix())) > 0.6


# --- it ends well -------------------------------------------------------------------------------------------


def test_a_diverging_run_ends_with_what_it_last_saw(tiny_trial, tiny_splits, with_changes):
    changes = {
        "pretraining.optimiser": OptimiserConfig(peak_lr=1e12, max_grad_norm=None),
        "pretraining.schedule": WarmupLinear(warmup=0.3),
    }
    with pytest.raises(Diverged) as error:
        pretrain(with_changes(tiny_trial, changes), tiny_splits.pool, Run())
    assert error.value.stage == "pretrain"
    assert error.value.step > 1
    assert math.isfinite(error.value.last["loss"])
    assert "peak_lr" in str(error.value)


@pytest.mark.parametrize("metric", ["lwlrap", "macro_auc"])
def test_the_weights_that_are_kept_are_the_best_by_the_metric_of_their_data(
    tiny_trial, tiny_splits, with_changes, monkeypatch, metric
):
    monkeypatch.setattr(CorpusData, "metric", metric)
    trial = with_changes(tiny_trial, {"finetuning.num_evaluations": 10})
    result = finetuned(trial, tiny_splits)
    name = f"validation/{metric}"
    best = max(row[name] for row in result.history if name in row)
    assert result.validation[name] == best
    of_weights, _ = score(trial, result.model, tiny_splits.validation, CPU, "validation")
    assert of_weights[name] == pytest.approx(best)


def test_the_best_weights_by_validation_are_kept(tiny_trial, tiny_splits, with_changes):
    trial = with_changes(tiny_trial, {"finetuning.num_evaluations": 10})
    result = finetuned(trial, tiny_splits)
    scores = {row["step"]: row["validation/mAP"] for row in result.history if "validation/mAP" in row}
    assert len(scores) == 10
    assert result.validation["validation/mAP"] == max(scores.values())
    assert scores[result.validation["best_step"]] == max(scores.values())
    again = predict(trial, result.model, tiny_splits.validation, CPU)
    mean = np.nanmean(average_precision(again, tiny_splits.validation.labels.matrix()))
    assert mean == pytest.approx(max(scores.values()))


def _padded(splits):
    """Every second clip half as long."""

    def shorter(clips):
        every_second = np.arange(len(clips)) % 2
        return dataclasses.replace(clips, length=clips.length // (1 + every_second))

    return dataclasses.replace(splits, pool=shorter(splits.pool), train=shorter(splits.train))


class _Transfers(TorchDispatchMode):
    """Notes each operation that would have a GPU waited for: one of mixed devices, or a blocking copy."""

    def __init__(self):
        super().__init__()
        self.copies, self.waits = 0, []

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        settings = settings or {}
        tensors = [leaf for leaf in tree_leaves((arguments, settings)) if isinstance(leaf, torch.Tensor)]
        if operation is torch.ops.aten._to_copy.default:
            moved = tensors[0].device != settings.get("device", tensors[0].device)
            self.copies += moved
            if moved and not settings.get("non_blocking"):
                self.waits.append(operation)
        elif len({tensor.device for tensor in tensors if tensor.dim()}) > 1:
            self.waits.append(operation)
        return operation(*arguments, **settings)


def test_no_device_is_waited_for_while_a_batch_is_prepared(
    tiny_trial, tiny_splits, with_changes, monkeypatch
):
    """By a device that holds no data, in the place of a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda kind, enabled: contextlib.nullcontext())
    changes = {"pretraining.gain_db": 3.0, "pretraining.mel_shift": 1, "finetuning.consistency_weight": 1.0}
    trial, place = with_changes(tiny_trial, changes), torch.device("meta")
    splits = _padded(tiny_splits)
    tasks = [
        Pretraining(trial, splits.pool, place),
        Finetuning(trial, splits, new_encoder(trial, tiny_splits.pool, CPU), place),
    ]
    for task in tasks:
        with _Transfers() as transfers:
            heard = task.hear(0)
        assert heard.log_mel.device == heard.padding.device == place
        assert not transfers.waits
        assert transfers.copies >= 8  # clips, draws, padding


@pytest.mark.parametrize(("kind", "asked"), [("cpu", 20), ("cuda", 2)])
def test_several_gpus_agree_on_stopping_now_and_then(tiny_trial, tiny_splits, monkeypatch, kind, asked):
    """It makes each wait for its device; a processor is not ahead of itself."""
    monkeypatch.setattr(loop.processes, "count", lambda: 2)
    monkeypatch.setattr(loop.processes, "mean", lambda values: values)
    wishes = []
    monkeypatch.setattr(loop.processes, "agreed", lambda wish, device: wishes.append(wish) or wish)
    task = Pretraining(tiny_trial, tiny_splits.pool, CPU)
    run = Run(device=torch.device(kind), should_stop=lambda: len(wishes) == asked - 1)
    course = Course(task, task.settings, seed=0, run=run)

    def train():
        while True:
            course.updated({"loss": torch.ones(())}, torch.ones(()), dict)

    with pytest.raises(Stopped, match="after update 20"):
        train()


# --- its parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [10**6, 16_000])
def test_log_mels_are_standardised_by_all_clips_each_by_its_beginning(
    tiny_trial, tiny_splits, monkeypatch, most
):
    monkeypatch.setattr(pretrain_module, "STATISTICS_SAMPLES", most)
    pool = tiny_splits.pool
    front_end = new_encoder(tiny_trial, pool, CPU).front_end
    heard = [pool.read(np.array([clip]))[0][:, :most] for clip in range(len(pool))]
    frames = torch.cat([front_end.log_mel(waveform)[0] for waveform in heard]).double()
    torch.testing.assert_close(front_end.mean, frames.mean(0).float())
    torch.testing.assert_close(front_end.std, frames.std(0).float())


def test_log_mels_of_a_large_pool_are_standardised_by_clips_of_all_its_parts(
    tiny_trial, tiny_splits, monkeypatch
):
    monkeypatch.setattr(pretrain_module, "STATISTICS_CLIPS", 3)
    pool = tiny_splits.pool.take(np.arange(9))
    chosen = pool.take(np.array([0, 4, 8]))
    of_all, of_chosen = (new_encoder(tiny_trial, clips, CPU).front_end for clips in (pool, chosen))
    assert torch.equal(of_all.mean, of_chosen.mean)
    assert torch.equal(of_all.std, of_chosen.std)


def test_silence_is_standardised_by_a_deviation_that_is_not_zero(tiny_trial, tiny_splits):
    source = np.zeros(16_000, np.int16)
    pool = dataclasses.replace(
        tiny_splits.pool,
        sources=(source,),
        source=np.zeros(len(tiny_splits.pool), int),
        start=np.zeros(len(tiny_splits.pool), int),
        length=np.full(len(tiny_splits.pool), 160),
    )
    assert (new_encoder(tiny_trial, pool, CPU).front_end.std == 1e-3).all()


def _assert_same_trainings(one, other, first, second):
    """Histories, then models."""
    assert all("grad_norm" in row for row in one if "loss" in row)  # Adam hides a constant factor
    for row, its in zip(one, other, strict=True):
        assert row == pytest.approx(its, rel=1e-4, abs=1e-5)
    assert_same_weights(first.state_dict(), second.state_dict(), tolerance=1e-5)


def test_fine_tuning_by_parts_is_that_of_the_whole_batch(tiny_trial, tiny_splits, with_changes):
    """Without batch statistics and dropout, which see the parts; with every augmentation."""
    changes = {
        "model.dropout": 0.0,
        "finetuning.steps": 5,
        "finetuning.freeze_encoder": True,
        "finetuning.consistency_weight": 2.0,
    }
    trial, splits = with_changes(tiny_trial, changes), _padded(tiny_splits)
    augmentation = trial.finetuning.augmentation
    assert all((augmentation.mixup, augmentation.time_mask, augmentation.jitter_samples))
    whole = finetuned(trial, splits)
    parts = finetuned(with_changes(trial, {"finetuning.accumulation": 4}), splits)
    _assert_same_trainings(whole.history, parts.history, whole.model, parts.model)


def test_pre_training_by_parts_is_that_of_the_whole_batch(tiny_trial, tiny_splits, with_changes, monkeypatch):
    """Of clips of several lengths: parts of short ones ask for fewer latents, and count for less."""

    def by_running_statistics(self, x, padding=None):
        statistics = self.running_mean, self.running_var
        return torch.nn.functional.batch_norm(x.flatten(0, 1), *statistics, self.weight, self.bias).view_as(x)

    monkeypatch.setattr(MaskedBatchNorm, "forward", by_running_statistics)
    changes = {
        "model.dropout": 0.0,
        "pretraining.steps": 5,
        "pretraining.gain_db": 3.0,
        "pretraining.mel_shift": 1,
        "pretraining.objective.num_distractors": 3,
    }
    trial, pool = with_changes(tiny_trial, changes), _padded(tiny_splits).pool
    whole = pretrain(trial, pool, Run())
    parts = pretrain(with_changes(trial, {"pretraining.accumulation": 4}), pool, Run())
    _assert_same_trainings(whole.history, parts.history, whole.encoder, parts.encoder)


def test_a_frozen_encoder_does_not_move(tiny_trial, tiny_splits, with_changes):
    trial = with_changes(tiny_trial, {"finetuning.freeze_encoder": True})
    result = finetuned(trial, tiny_splits)
    untrained = new_encoder(trial, tiny_splits.pool, CPU)
    assert_identical_weights(untrained.state_dict(), result.model.encoder.state_dict())


def test_an_updated_encoder_moves_all_that_the_context_depends_on(tiny_trial, tiny_splits):
    before = dict(new_encoder(tiny_trial, tiny_splits.pool, CPU).named_parameters())
    after = dict(finetuned(tiny_trial, tiny_splits).model.encoder.named_parameters())
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"mask_vector", "out_of_context.weight", "out_of_context.bias"}


@pytest.mark.parametrize("single_label", [True, False])
def test_losses_are_torchs_and_the_divergence_is_the_definition(single_label):
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5), torch.zeros(4, 5)
    targets[torch.arange(4), torch.tensor([0, 2, 2, 4])] = 1.0
    loss, metrics = _loss(logits, targets, single_label, 2.0)
    first, second = logits.chunk(2)
    if single_label:
        expected = torch.nn.functional.cross_entropy(logits, targets.argmax(1).repeat(2))
        p = [torch.distributions.Categorical(logits=x) for x in (first, second)]
    else:
        expected = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets.repeat(2, 1))
        p = [torch.distributions.Bernoulli(logits=x) for x in (first, second)]
    kl = torch.distributions.kl_divergence
    divergence = (kl(p[0], p[1]) + kl(p[1], p[0])).mean()
    torch.testing.assert_close(symmetric_divergence(first, second, single_label=single_label), divergence)
    torch.testing.assert_close(loss, expected + 2 * divergence)
    torch.testing.assert_close(metrics["classification_loss"], expected)


def test_consistency_loss_trains_on_two_versions(tiny_trial, tiny_splits, with_changes):
    trial = with_changes(tiny_trial, {"finetuning.consistency_weight": 2.0, "finetuning.steps": 4})
    row = finetuned(trial, tiny_splits).history[0]
    assert row["consistency_loss"] > 0
    assert row["loss"] == pytest.approx(row["classification_loss"] + 2 * row["consistency_loss"], rel=1e-5)


@pytest.mark.parametrize(("generation", "expected"), [(7, "float32"), (8, "bf16")])
def test_bf16_that_a_gpu_emulates_is_not_computed_in(
    tiny_trial, with_changes, monkeypatch, generation, expected
):
    """Torch takes any tensor of it, also on a V100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    trial = with_changes(tiny_trial, {"precision": "bf16"})
    assert computed_in(trial, torch.device("cuda")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_bf16_learns_as_float32_does(tiny_trial, tiny_splits, with_changes, monkeypatch, padded):
    """200 updates of each stage: no logged loss is off by more than 2 %. On a GPU if there is one."""
    splits = _padded(tiny_splits) if padded else tiny_splits
    trial = with_changes(tiny_trial, {"pretraining.steps": 200, "finetuning.steps": 200})
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def losses():
        pretrained = pretrain(trial, splits.pool, Run(device=torch.device(device)))
        finetuned = finetune(trial, splits, pretrained.encoder, Run(device=torch.device(device)))
        return [row["loss"] for row in [*pretrained.history, *finetuned.history] if "loss" in row]

    exact = losses()
    for module in (pretrain_module, finetune_module):
        monkeypatch.setattr(module, "autocast_for", lambda *_: lambda: torch.autocast(device, torch.bfloat16))
    rounded = losses()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
