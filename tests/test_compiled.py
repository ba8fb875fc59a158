"""A compiled update is the plain one, to within rounding: dropout draws the same masks on a CPU.

Most tests take a backend that runs torch's own kernels: capturing, gradients and draws are then those of the
real one, which takes half a minute to compile.
"""

import dataclasses
import os
import subprocess

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from workbench.config import TrialConfig
from workbench.data.noise import noise_clips
from workbench.settings import ConfigError
from workbench.training import compiled
from workbench.training import pretrain as pretrain_module
from workbench.training.finetune import finetune_together
from workbench.training.loop import Run, Stopped
from workbench.training.objectives import Contrastive
from workbench.training.pretrain import new_encoder, pretrain, pretrain_together

from .trained import finetuned
from .trained_alike import assert_same_history, assert_same_weights

UPDATES = 6
TOLERANCE = 2e-4  # of weights after so many updates
CPU = torch.device("cpu")
SECONDS = (1.6, 1.6, 1.6, 0.9)  # of clips, by turns: a batch is padded


@pytest.fixture(autouse=True)
def _quick_to_compile(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    counters.clear()


@pytest.fixture(scope="module")
def trial(tiny_trial, with_changes):
    changes = {"pretraining.steps": UPDATES, "finetuning.steps": UPDATES, "finetuning.output_dropout": 0.2}
    trial = with_changes(tiny_trial, changes)
    assert trial.model.dropout > 0
    return trial


@pytest.fixture(scope="module")
def padded_splits(tiny_splits):
    count, num_classes = 64, len(tiny_splits.classes)
    seconds = np.resize(SECONDS, count)
    return dataclasses.replace(
        tiny_splits,
        pool=noise_clips(count, seconds, num_classes).unlabelled(),
        train=noise_clips(count, seconds, num_classes, "train"),
    )


def _compiled(trial):
    return dataclasses.replace(trial, compile=True)


def _pretrain(trial, splits, run=None):
    return pretrain(trial, splits.pool, run or Run())


def _num_shapes(padded):
    """A batch may happen to be without a shorter clip."""
    return 2 if padded else 1


def _graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_compiled_pre_training_is_the_plain_one(
    trial, tiny_splits, padded_splits, with_changes, padded, accumulation
):
    trial = with_changes(trial, {"pretraining.accumulation": accumulation})
    splits = padded_splits if padded else tiny_splits
    ours, plain = _pretrain(_compiled(trial), splits), _pretrain(trial, splits)
    assert_same_weights(ours.encoder.state_dict(), plain.encoder.state_dict(), TOLERANCE)
    assert_same_history(ours.history, plain.history, 1e-3)
    assert 1 <= _graphs() <= _num_shapes(padded)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finetuning.consistency_weight": 1.0, "finetuning.accumulation": 2},
        {"finetuning.freeze_encoder": True, "finetuning.pooling": "mean"},
    ],
    ids=["multi-label", "consistency", "frozen"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_fine_tuning_is_the_plain_one(
    trial, tiny_splits, padded_splits, with_changes, changes, padded
):
    trial = with_changes(trial, changes)
    splits = padded_splits if padded else tiny_splits
    ours, plain = finetuned(_compiled(trial), splits), finetuned(trial, splits)
    assert_same_weights(ours.model.state_dict(), plain.model.state_dict(), TOLERANCE)
    assert_same_history(ours.history, plain.history, 1e-3)
    assert 1 <= _graphs() <= _num_shapes(padded)  # validation is not compiled


def test_a_compiled_update_in_bf16_is_the_plain_one(trial, tiny_splits, monkeypatch):
    """Here by autocast on a CPU."""
    monkeypatch.setattr(
        pretrain_module, "autocast_for", lambda config, device: lambda: torch.autocast("cpu", torch.bfloat16)
    )
    histories = [_pretrain(one, tiny_splits).history for one in (_compiled(trial), trial)]
    ours, plain = ([row["loss"] for row in history] for history in histories)
    assert ours == pytest.approx(plain, rel=5e-3)  # the depthwise convolutions differ, and round to bf16
    assert _graphs() == 1


def test_a_compiled_pack_is_its_trials_alone(trial, tiny_splits, with_changes):
    trials = [with_changes(trial, changes) for changes in ({}, {"seed": 1, "model.dropout": 0.3})]

    def encoder(one):
        return new_encoder(one, tiny_splits.pool, CPU)

    pretrained = pretrain_together([(_compiled(one), tiny_splits.pool, Run()) for one in trials])
    fitted = finetune_together([(_compiled(one), tiny_splits, encoder(one), Run()) for one in trials])
    assert _graphs() == 2
    for ours, theirs, one in zip(pretrained, fitted, trials, strict=True):
        alone = _pretrain(one, tiny_splits)
        assert_same_weights(ours.encoder.state_dict(), alone.encoder.state_dict(), TOLERANCE)
        alone = finetuned(one, tiny_splits)
        assert_same_weights(theirs.model.state_dict(), alone.model.state_dict(), TOLERANCE)


@pytest.mark.slow
def test_batches_of_many_lengths_make_few_graphs(trial, tiny_splits, with_changes):
    """Each batch of two is as long as its longer clip, and has padding or none; torch's limit is 8 graphs."""
    trial = with_changes(trial, {"pretraining.batch_size": 2, "pretraining.steps": 24})
    seconds = np.random.default_rng(0).choice(np.arange(8, 17), 48) / 10
    splits = dataclasses.replace(tiny_splits, pool=noise_clips(48, seconds, 5).unlabelled())
    ours, plain = _pretrain(_compiled(trial), splits), _pretrain(trial, splits)
    assert_same_history(ours.history, plain.history, 0.01)
    assert _graphs() <= 6 < len(np.unique(seconds))


def test_a_stopped_compiled_training_goes_on_as_if_it_had_not(trial, tiny_splits, tmp_path):
    whole = _pretrain(_compiled(trial), tiny_splits)
    asked = []
    stop = Run(
        checkpoint=tmp_path / "checkpoint.safetensors",
        should_stop=lambda: asked.append(True) or len(asked) == UPDATES // 2,
    )
    with pytest.raises(Stopped):
        _pretrain(_compiled(trial), tiny_splits, stop)
    resumed = _pretrain(_compiled(trial), tiny_splits, Run(checkpoint=stop.checkpoint))
    assert_same_weights(resumed.encoder.state_dict(), whole.encoder.state_dict(), 0)


def test_a_checkpoint_of_a_plain_training_goes_on_compiled(trial, tiny_splits, tmp_path):
    stop = Run(checkpoint=tmp_path / "checkpoint.safetensors", should_stop=lambda: True)
    with pytest.raises(Stopped):
        _pretrain(trial, tiny_splits, stop)
    ours = _pretrain(_compiled(trial), tiny_splits, Run(checkpoint=stop.checkpoint))
    plain = _pretrain(trial, tiny_splits)
    assert_same_weights(ours.encoder.state_dict(), plain.encoder.state_dict(), TOLERANCE)


# --- what cannot be compiled --------------------------------------------------------------------------------


def _pretrain_twins(trial, splits):
    return pretrain_together([(trial, splits.pool, Run())] * 2)


def _no_backend(graph, inputs):
    raise RuntimeError("no compiler on this machine")


@pytest.mark.parametrize("together", [False, True])
def test_a_machine_that_cannot_compile_says_so(trial, tiny_splits, monkeypatch, together):
    monkeypatch.setattr(compiled, "BACKEND", _no_backend)
    train = _pretrain_twins if together else _pretrain
    with pytest.raises(ConfigError, match=r"^compile: .*no compiler on this machine.*compile=false"):
        train(_compiled(trial), tiny_splits)


def test_an_update_that_is_not_one_graph_is_refused(trial, tiny_splits, monkeypatch):
    loss = Contrastive.loss

    def waits_for_the_device(*arguments):
        found = loss(*arguments)
        assert found[0].item() > 0
        return found

    monkeypatch.setattr(Contrastive, "loss", waits_for_the_device)
    with pytest.raises(ConfigError, match=r"data-dependent.*compile=false"):
        _pretrain(_compiled(trial), tiny_splits)
    assert _pretrain(trial, tiny_splits).history


def test_an_error_that_is_not_the_compilers_stays_what_it_is(trial, tiny_splits):
    full = OSError(28, "No space left on device")

    def ends():
        raise full

    with pytest.raises(OSError, match="No space") as error:
        _pretrain(_compiled(trial), tiny_splits, Run(should_stop=ends))
    assert error.value is full


def test_compiling_and_computing_again_exclude_each_other(with_changes):
    with pytest.raises(ConfigError, match=r"^compile: is true, as is model\.recompute"):
        with_changes(TrialConfig(compile=True), {"model.recompute": True})


# --- by the compiler that is used ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchs_compiler_computes_and_draws_the_same(trial, padded_splits, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # in this process: none stay behind
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    ours, plain = _pretrain(_compiled(trial), padded_splits), _pretrain(trial, padded_splits)
    assert_same_weights(ours.encoder.state_dict(), plain.encoder.state_dict(), TOLERANCE)
    ours, plain = finetuned(_compiled(trial), padded_splits), finetuned(trial, padded_splits)
    assert_same_weights(ours.model.state_dict(), plain.model.state_dict(), TOLERANCE)
    assert _graphs() == 2


@pytest.mark.slow
def test_a_study_without_a_compiler_ends_with_a_sentence(project, command, root, tmp_path):
    done = subprocess.run(
        command(root, "studies/smoke.yaml", "--set", "compile=true", "--dry-run"),
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no processes of the compiler's own
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "compile: is true, and torch cannot compile the update here" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
