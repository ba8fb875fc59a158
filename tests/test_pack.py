"""Trials trained together give what each gives alone."""

import pytest
import torch

from workbench.config import Constant
from workbench.model import conformer, dropout
from workbench.model.depthwise import DepthwiseConv
from workbench.training import finetune as finetune_module
from workbench.training import pretrain as pretrain_module
from workbench.training.checkpoint import TrainingState
from workbench.training.finetune import finetune, finetune_together
from workbench.training.loop import Course, Diverged, Run, Stopped, build_optimiser, trainable
from workbench.training.pack import Pack
from workbench.training.pretrain import Pretraining, new_encoder, pretrain, pretrain_together

from .trained_alike import assert_same_history, assert_same_weights

UPDATES = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trial(tiny_trial, with_changes):
    changes = {"pretraining.steps": UPDATES, "finetuning.steps": UPDATES, "finetuning.output_dropout": 0.2}
    return with_changes(tiny_trial, changes)


def _assert_same(ours, alone, tolerance=2e-3):
    assert_same_weights(ours.state_dict(), alone.state_dict(), tolerance)


VARIANTS = [
    {},
    {"seed": 1},
    {"pretraining.optimiser.peak_lr": 1e-3, "pretraining.schedule": Constant()},
    {"pretraining.steps": UPDATES // 2},
    {"model.dropout": 0.3, "pretraining.optimiser.weight_decay": 0.1, "pretraining.gain_db": 3.0},
]


def _pretrained_as_alone(trials, pool):
    """Pre-trained together, which each of them must be as if alone."""
    alone = [pretrain(one, pool, Run()) for one in trials]
    together = pretrain_together([(one, pool, Run()) for one in trials])
    for ours, theirs in zip(together, alone, strict=True):
        _assert_same(ours.encoder, theirs.encoder)
        assert_same_history(ours.history, theirs.history)
    return together


def test_pre_training_together_is_pre_training_alone(trial, tiny_splits, with_changes):
    trials = [with_changes(trial, changes) for changes in VARIANTS]
    together = _pretrained_as_alone(trials, tiny_splits.pool)
    first, second = (one.encoder.features.weight for one in together[:2])
    assert not torch.equal(first, second)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Dropout and attention take the ways that they take on a GPU, but on the CPU."""
    of_device, gpu = dropout.masks_by_words, torch.device("cuda")
    for module in (dropout, conformer):
        monkeypatch.setattr(module, "masks_by_words", lambda device, count: of_device(gpu, count))


@pytest.fixture
def drawn_by_torch(monkeypatch):
    """How often one of torch's own kernels was to draw a mask."""
    calls = []

    def counted(name, kernel):
        def call(*arguments, **settings):
            if settings.get("dropout_p", 1.0) > 0:
                calls.append(name)
            return kernel(*arguments, **settings)

        return call

    for name in ("dropout", "scaled_dot_product_attention"):
        monkeypatch.setattr(torch.nn.functional, name, counted(name, getattr(torch.nn.functional, name)))
    return calls


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_small_trial_draws_alike_alone_and_in_a_pack_on_a_gpu(
    trial, tiny_splits, with_changes, drawn_by_torch
):
    trials = [with_changes(trial, changes) for changes in VARIANTS]
    _pretrained_as_alone(trials, tiny_splits.pool)
    assert not drawn_by_torch


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_pack_in_bf16_learns_as_its_trials_alone(trial, tiny_splits, with_changes, monkeypatch):
    """By autocast on a CPU; losses are compared, for the weights differ by what bf16 rounds."""
    for module in (pretrain_module, finetune_module):
        monkeypatch.setattr(module, "autocast_for", lambda *_: lambda: torch.autocast("cpu", torch.bfloat16))
    short = {"pretraining.steps": 4, "finetuning.steps": 4, "finetuning.num_evaluations": 1}
    trials = [with_changes(trial, short | {"seed": seed}) for seed in (0, 1)]

    def encoder(one):
        return new_encoder(one, tiny_splits.pool, CPU)

    together = pretrain_together([(one, tiny_splits.pool, Run()) for one in trials])
    together += finetune_together([(one, tiny_splits, encoder(one), Run()) for one in trials])
    alone = [pretrain(one, tiny_splits.pool, Run()) for one in trials]
    alone += [finetune(one, tiny_splits, encoder(one), Run()) for one in trials]
    for ours, theirs in zip(together, alone, strict=True):
        losses = [[row["loss"] for row in each.history if "loss" in row] for each in (ours, theirs)]
        assert len(losses[0]) == 4
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_depthwise_convolution_of_a_pack_on_a_gpu_is_each_trials_own(monkeypatch):
    """There it is torch's, with as many groups as channels, stacked by `vmap`: values and gradients."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # what takes that way on a CPU
    generator = torch.Generator().manual_seed(0)
    layer = DepthwiseConv(6, 5)
    assert "TapByTap" not in layer(torch.zeros(1, 3, 6)).grad_fn.name()
    shapes = {"x": (3, 2, 9, 6), "weight": (3, 6, 1, 5), "bias": (3, 6), "to": (3, 2, 9, 6)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def value_and_gradients(x, weight, bias, to):
        def moved(*arguments):
            x, *parameters = arguments
            named = dict(zip(("weight", "bias"), parameters, strict=True))
            return torch.func.functional_call(layer, named, (x,))

        values, pull = torch.func.vjp(moved, x, weight, bias)
        return values, *pull(to)

    together = torch.vmap(value_and_gradients)(*drawn.values())
    for row, each in enumerate(zip(*drawn.values(), strict=True)):
        for ours, alone in zip(together, value_and_gradients(*each), strict=True):
            torch.testing.assert_close(ours[row], alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trials_together_are_trials_alone_on_a_gpu(trial, tiny_splits, with_changes):
    trials = [with_changes(trial, changes) for changes in VARIANTS]

    def run():
        return Run(device=torch.device("cuda"))

    together = pretrain_together([(one, tiny_splits.pool, run()) for one in trials])
    for ours, one in zip(together, trials, strict=True):
        theirs = pretrain(one, tiny_splits.pool, run())
        _assert_same(ours.encoder, theirs.encoder)
        assert_same_history(ours.history, theirs.history)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_pack_of_large_trials_draws_for_itself_on_a_gpu(
    trial, tiny_splits, with_changes, monkeypatch, drawn_by_torch, frozen
):
    """Torch's kernels, which mask large tensors of a trial alone, can draw for no pack."""
    monkeypatch.setattr(dropout, "SMALL", 0)
    changes = {"finetuning.freeze_encoder": frozen}
    trials = [with_changes(trial, changes | {"model.dropout": p}) for p in (0.1, 0.4)]

    def encoder(one):
        return new_encoder(one, tiny_splits.pool, CPU)

    finetune_together([(one, tiny_splits, encoder(one), Run()) for one in trials])
    assert not drawn_by_torch
    finetune(trials[0], tiny_splits, encoder(trials[0]), Run())
    drawn = {"dropout"} if frozen else {"dropout", "scaled_dot_product_attention"}
    assert set(drawn_by_torch) == drawn


def test_each_trial_of_a_pack_is_clipped_and_updated_as_torch_does(trial, tiny_splits, with_changes):
    """Of given gradients: a training hides clipping behind Adam, and weight decay behind its rate."""
    optimisers = [
        {},
        {"weight_decay": 5.0},
        {"max_grad_norm": 1e-3},
        {"max_grad_norm": None, "betas": (0.5, 0.7)},
    ]
    changes = [
        {f"pretraining.optimiser.{name}": value for name, value in own.items()}
        | {"pretraining.schedule": Constant(), "pretraining.optimiser.peak_lr": 10.0**-number}
        for number, own in enumerate(optimisers, start=1)
    ]
    tasks = [Pretraining(with_changes(trial, own), tiny_splits.pool, CPU) for own in changes]
    courses = [Course(task, task.settings, seed=0, run=Run()) for task in tasks]
    copies = [{n: torch.nn.Parameter(p.clone()) for n, p in trainable(t.model).items()} for t in tasks]
    theirs = [
        build_optimiser(list(c.values()), t.settings.optimiser) for c, t in zip(copies, tasks, strict=True)
    ]
    pack = Pack(courses, [{} for _ in courses])
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        pack._gradients.zero_()
        for row, (parameters, optimiser) in enumerate(zip(copies, theirs, strict=True)):
            for name, parameter in parameters.items():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                pack._gradients[row, slice(*pack._spans[name])] = parameter.grad.flatten()
            most = tasks[row].settings.optimiser.max_grad_norm or float("inf")
            torch.nn.utils.clip_grad_norm_(parameters.values(), most)
            optimiser.step()
        pack._decayed.fill_(1.0)
        pack._clip()
        pack._adamw()
        for course in courses:
            course._state.step = step + 1
    for task, parameters in zip(tasks, copies, strict=True):
        for name, parameter in trainable(task.model).items():
            torch.testing.assert_close(parameter, parameters[name], rtol=1e-5, atol=1e-6)


def test_each_trial_of_a_pack_drops_its_own_share():
    shares = (0.1, 0.4, 0.7)
    layers = [dropout.Dropout(p) for p in shares]
    buffers = {
        name: torch.stack([dict(layer.named_buffers())[name] for layer in layers])
        for name in ("threshold", "scale")
    }
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    x = torch.ones(3, 400, 50)
    with dropout.drawn_by(generators):
        dropped = torch.vmap(lambda own, x: torch.func.functional_call(layers[0], own, (x,)))(buffers, x)
    for row, p in zip(dropped, shares, strict=True):
        assert (row == 0).float().mean().item() == pytest.approx(p, abs=0.02)
        assert row.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("consistency", [0.0, 1.0])
def test_fine_tuning_together_is_fine_tuning_alone(trial, tiny_splits, with_changes, frozen, consistency):
    common = {"finetuning.freeze_encoder": frozen, "finetuning.consistency_weight": consistency}
    variants = [
        {},
        {"seed": 3},
        {
            "finetuning.optimiser.peak_lr": 5e-4,
            "finetuning.output_dropout": 0.4,
            "finetuning.optimiser.weight_decay": 5.0,  # what the loss does not depend on stays as it is
        },
        {"finetuning.class_balanced": True, "finetuning.augmentation.mixup": None},
    ]
    trials = [with_changes(trial, common | changes) for changes in variants]

    def encoder(one):
        return new_encoder(one, tiny_splits.pool, CPU)

    alone = [finetune(one, tiny_splits, encoder(one), Run()) for one in trials]
    together = finetune_together([(one, tiny_splits, encoder(one), Run()) for one in trials])
    for ours, theirs in zip(together, alone, strict=True):
        _assert_same(ours.model, theirs.model)
        assert_same_history(ours.history, theirs.history)
        assert ours.validation == pytest.approx(theirs.validation, rel=0.01, abs=0.01)


def test_accumulation_is_each_trials_own(trial, tiny_splits, with_changes):
    trials = [with_changes(trial, {"pretraining.accumulation": 2, "seed": seed}) for seed in (0, 1)]
    together = pretrain_together([(one, tiny_splits.pool, Run()) for one in trials])
    for ours, one in zip(together, trials, strict=True):
        _assert_same(ours.encoder, pretrain(one, tiny_splits.pool, Run()).encoder)


def test_one_that_diverges_leaves_the_others_as_they_are(trial, tiny_splits, with_changes):
    wild = with_changes(trial, {"pretraining.optimiser.peak_lr": 1e20, "pretraining.schedule": Constant()})
    trials = [trial, wild, with_changes(trial, {"seed": 1})]
    first, broken, last = pretrain_together([(one, tiny_splits.pool, Run()) for one in trials])
    assert isinstance(broken, Diverged)
    for ours, one in ((first, trials[0]), (last, trials[2])):
        _assert_same(ours.encoder, pretrain(one, tiny_splits.pool, Run()).encoder)


@pytest.mark.parametrize("resumed_together", [True, False])
def test_a_pack_that_stops_goes_on_together_or_apart(
    trial, tiny_splits, with_changes, tmp_path, resumed_together
):
    trials = [with_changes(trial, {"seed": seed}) for seed in (0, 1)]
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 8  # two trials ask after each update

    stopped = pretrain_together(
        [
            (one, tiny_splits.pool, Run(checkpoint=path, should_stop=stop))
            for one, path in zip(trials, paths, strict=True)
        ]
    )
    assert all(isinstance(one, Stopped) for one in stopped)
    assert [TrainingState.load(path).step for path in paths] == [5, 5]
    arguments = [
        (one, tiny_splits.pool, Run(checkpoint=path)) for one, path in zip(trials, paths, strict=True)
    ]
    ended = pretrain_together(arguments) if resumed_together else [pretrain(*each) for each in arguments]
    for ours, one in zip(ended, trials, strict=True):
        alone = pretrain(one, tiny_splits.pool, Run())
        _assert_same(ours.encoder, alone.encoder)
        assert_same_history(ours.history, alone.history)


def test_a_pack_is_the_same_every_time(trial, tiny_splits, with_changes):
    trials = [with_changes(trial, {"seed": seed}) for seed in (0, 1)]
    runs = [pretrain_together([(one, tiny_splits.pool, Run()) for one in trials]) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        _assert_same(one.encoder, other.encoder, tolerance=0)


def test_batches_of_several_shapes_are_refused(trial, tiny_splits, with_changes):
    larger = with_changes(trial, {"pretraining.batch_size": 2 * trial.pretraining.batch_size})
    with pytest.raises(ValueError, match="one shape"):
        pretrain_together([(one, tiny_splits.pool, Run()) for one in (trial, larger)])


def test_the_same_trial_twice_is_the_same_twice(trial, tiny_splits):
    """Each draws its own dropout masks, from its own seed."""
    assert trial.model.dropout > 0
    twins = pretrain_together([(trial, tiny_splits.pool, Run()) for _ in range(2)])
    _assert_same(twins[0].encoder, twins[1].encoder, tolerance=1e-6)
