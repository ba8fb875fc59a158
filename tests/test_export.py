"""Saved encoders: what another finds in the folder is the stage's model, whole, and needs nothing else."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from workbench import data
from workbench.config import SAMPLE_RATE, FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.data.synthesis import CLASSES
from workbench.data_config import CorpusData
from workbench.export import load_classifier, load_encoder
from workbench.export.__main__ import main
from workbench.export.onnx_graph import ONNX, PACKAGES, TOLERANCE, largest_difference
from workbench.export.saved import CARD, CLASSIFIER, ENCODER, SETTINGS, read_settings
from workbench.model.encoder import Encoder
from workbench.settings import ConfigError
from workbench.stages import VERSIONS, WEIGHTS, run_trial, stages_of
from workbench.store import FACTS, Store
from workbench.store.stage import with_checksum
from workbench.training.checkpoint import load_tensors, save_tensors
from workbench.training.finetune import new_clip_model
from workbench.training.tracker import SilentTracker

from .run_alone import run_alone
from .stores import change_facts

TRIAL = TrialConfig(
    data=CorpusData(clip_seconds=1.6, pool_clips=16, labelled_clips=16, validation_clips=16, test_clips=16),
    model=ModelConfig(num_blocks=2, width=16, num_heads=2, ffn_dim=32, first_kernel=7, kernel=5),
    pretraining=PretrainingConfig(steps=2, batch_size=8),
    finetuning=FinetuningConfig(steps=2, batch_size=8, num_evaluations=1, pooling="linear_softmax"),
)


def _trained(trial, root):
    run_trial(
        trial,
        data.fingerprint(trial.data),
        store=Store(root / "store"),
        data_root=root / "data",
        device=torch.device("cpu"),
        tracker=SilentTracker(),
        report=lambda line: None,
    )
    return stages_of(trial, data.fingerprint(trial.data))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_root):
    """A results folder with one finished trial, and the trial's stages."""
    root = tmp_path_factory.mktemp("mlruns")
    (root / "data").symlink_to(data_root)
    return root, _trained(TRIAL, root)


@pytest.fixture
def results(trained, tmp_path):
    """A copy of them to spoil."""
    shutil.copytree(trained[0] / "store", tmp_path / "mlruns" / "store")
    return tmp_path / "mlruns", trained[1]


@pytest.fixture(params=["pretrain", "finetune"])
def exported(request, trained, tmp_path):
    """The folder of either kind of stage, and the stage."""
    stage = getattr(trained[1], request.param)
    assert main([stage.key[:16], "--root", str(trained[0]), "--to", str(tmp_path / "saved")]) == 0
    return tmp_path / "saved", stage


@pytest.fixture
def saved(trained, tmp_path):
    """The folder of the fine-tuned stage."""
    key = trained[1].finetune.key
    assert main([key, "--root", str(trained[0]), "--to", str(tmp_path / "saved")]) == 0
    return tmp_path / "saved"


def _stage_model(root, stages):
    """What the trial itself evaluated."""
    model = new_clip_model(TRIAL, Encoder(TRIAL.front_end, TRIAL.model), 12)
    model.load_state_dict(load_tensors(Store(root / "store").path(stages.finetune) / WEIGHTS)[0])
    return model.eval()


def _context(encoder, waveform):
    return encoder.context(encoder.latents(encoder.front_end(waveform)))


def _noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- what is in the folder ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_pretraining_computes_what_the_stage_does_to_the_bit(trained, tmp_path):
    root, stages = trained
    assert main([stages.pretrain.key, "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    ours = Encoder(TRIAL.front_end, TRIAL.model).eval()
    ours.load_state_dict(load_tensors(Store(root / "store").path(stages.pretrain) / WEIGHTS)[0])
    theirs = load_encoder(tmp_path / "saved")
    waveform = _noise(3, SAMPLE_RATE)
    assert not theirs.training
    assert theirs.front_end.std.max() > 0
    assert not torch.equal(theirs.front_end.mean, torch.zeros(64))
    assert torch.equal(_context(theirs, waveform), _context(ours, waveform))
    with pytest.raises(ConfigError, match="pre-trained only"):
        load_classifier(tmp_path / "saved")


@torch.no_grad()
def test_a_saved_finetuning_gives_the_logits_of_the_stage_to_the_bit(trained, saved):
    model = _stage_model(*trained)
    waveform = _noise(3, SAMPLE_RATE)
    expected = model(model.encoder.front_end(waveform))
    found = load_classifier(saved)(_context(load_encoder(saved), waveform))
    assert torch.equal(found, expected)
    assert read_settings(saved).classifier.classes == CLASSES


@torch.no_grad()
def test_the_folder_needs_neither_the_results_nor_its_place(results, tmp_path):
    root, stages = results
    assert main([stages.finetune.key, "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    waveform = _noise(2, SAMPLE_RATE)
    before = _context(load_encoder(tmp_path / "saved"), waveform)
    shutil.rmtree(root)
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert torch.equal(_context(load_encoder(tmp_path / "moved"), waveform), before)


READ = """
import torch
from workbench import hear
from workbench.export import load_classifier, load_encoder

load_classifier(sys.argv[1])
load_encoder(sys.argv[1])
print(hear.get_scene_embeddings(torch.zeros(1, 2000), hear.load_model(sys.argv[1])).shape)
"""


def test_reading_needs_no_machinery_of_studies_but_safetensors(saved):
    assert "[1, 16]" in run_alone(READ, saved, but=["safetensors"])


def test_a_stage_of_a_store_at_a_url_is_exported_too(results, tmp_path, monkeypatch):
    root, stages = results
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "places.yaml").write_text(f"store: local://{root}/store\n")
    assert main([stages.pretrain.key[:12], "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    theirs, _ = load_tensors(tmp_path / "saved" / ENCODER)
    ours, _ = load_tensors(root / "store" / "pretrain" / stages.pretrain.key / WEIGHTS)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    load_encoder(saved)
    load_classifier(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_settings_say_where_the_weights_are_from(exported, trained):
    folder, stage = exported
    origin = read_settings(folder).origin
    assert (origin.stage, origin.id, origin.seed) == (stage.kind, stage.key, TRIAL.seed)
    assert origin.data_fingerprint == data.fingerprint(TRIAL.data)
    assert origin.pretraining["objective"]["kind"] == "contrastive"
    assert origin.pool_hours == pytest.approx(16 * 1.6 / 3600)
    for name, value in Store(trained[0] / "store").facts(stage)["metrics"].items():
        assert name == "best_step" or origin.metrics[name] == value
    assert ("test/mAP" in origin.metrics) == (stage.kind == "finetune")


def test_the_card_says_what_a_stranger_needs(exported):
    folder, stage = exported
    card = (folder / CARD).read_text()
    encoder = load_encoder(folder)
    assert stage.key in card
    assert f"{encoder.num_parameters():,}" in card
    assert data.fingerprint(TRIAL.data) in card
    assert "no result of the paper" in card
    assert "Licence\nUnknown" in card
    assert ("load_classifier" in card) == (folder / CLASSIFIER).exists() == (stage.kind == "finetune")
    for path in folder.iterdir():
        assert path.name == CARD or f"`{path.name}`" in card


@torch.no_grad()
def test_the_lines_of_the_card_run(exported):
    folder, _ = exported
    code = (folder / CARD).read_text().split("```python\n")[1].split("```")[0]
    names = {"waveform": _noise(2, 2000)}
    exec(code.replace('"FOLDER"', repr(str(folder))), names)
    assert names["context"].shape == (2, 1, TRIAL.model.width)


@torch.no_grad()
def test_a_graph_in_the_folder_is_that_of_the_encoder_beside_it(trained, tmp_path, capsys):
    for name in PACKAGES:
        pytest.importorskip(name)
    root, stages = trained
    arguments = [stages.pretrain.key, "--root", str(root), "--to", str(tmp_path / "saved"), "--onnx"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[1].startswith(f"{ONNX}: within ")
    assert printed[1].removeprefix(f"{ONNX}: ") in (tmp_path / "saved" / CARD).read_text()
    assert largest_difference(load_encoder(tmp_path / "saved"), tmp_path / "saved" / ONNX) < TOLERANCE


def test_a_stage_from_scratch_is_said_to_be(trained, tmp_path):
    root, _ = trained
    stages = _trained(dataclasses.replace(TRIAL, pretraining=None), root)
    assert main([stages.finetune.key, "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    assert "none; from random weights" in (tmp_path / "saved" / CARD).read_text()
    assert read_settings(tmp_path / "saved").origin.pretraining is None


def test_a_stage_of_before_classes_and_hours_were_kept_says_so(results, tmp_path):
    root, stages = results
    _change_facts(root, stages.finetune, lambda facts: [facts.pop(n) for n in ("classes", "pool_hours")])
    shutil.rmtree(Store(root / "store").path(stages.pretrain))
    assert main([stages.finetune.key, "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    settings, card = read_settings(tmp_path / "saved"), (tmp_path / "saved" / CARD).read_text()
    assert settings.classifier.classes is None
    assert settings.classifier.num_classes == 12
    assert "did not keep the classes' names" in card
    assert f"`{stages.pretrain.key}` on audio of unknown length; it was deleted" in card


def _change_facts(root, stage, change):
    """As if it had been written so."""
    change_facts(Store(root / "store").path(stage), change, write=with_checksum)


# --- what is refused ----------------------------------------------------------------------------------------


def _refused(arguments, capsys):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_an_id_that_is_no_stage_or_several_is_refused(trained, tmp_path, capsys):
    root, _ = trained
    folder = tmp_path / "saved"
    assert "no stage begins" in _refused(["zzz", "--root", root, "--to", folder], capsys)
    assert "stages begin with this id" in _refused(["", "--root", root, "--to", folder], capsys)
    assert "no stage begins" in _refused(["a", "--root", tmp_path / "none", "--to", folder], capsys)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_has_no_weights_and_names_the_stage_that_has(trained, tmp_path, capsys):
    root, stages = trained
    said = _refused([stages.evaluate.key, "--root", root, "--to", tmp_path / "saved"], capsys)
    assert stages.finetune.key in said


def test_what_is_there_is_never_overwritten(trained, tmp_path, capsys):
    root, stages = trained
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name in ("dangling", "empty"):
        said = _refused([stages.pretrain.key, "--root", root, "--to", tmp_path / name], capsys)
        assert f"{tmp_path / name} is there already" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty"]


def _spoil_weights(folder):
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def _spoil_facts(folder):
    (folder / FACTS).write_text("{")


def _change_settings(folder):
    facts = json.loads((folder / FACTS).read_text())
    facts["settings"]["model"]["num_heads"] = 4
    (folder / FACTS).write_text(json.dumps(facts))


def _empty_facts(folder):
    (folder / FACTS).write_text('{"sha256": {}}')


@pytest.mark.parametrize("spoil", [_spoil_weights, _spoil_facts, _change_settings, _empty_facts])
def test_a_damaged_stage_is_refused_and_leaves_nothing(results, tmp_path, capsys, spoil):
    root, stages = results
    spoil(Store(root / "store").path(stages.pretrain))
    said = _refused([stages.pretrain.key, "--root", root, "--to", tmp_path / "saved"], capsys)
    assert "is damaged" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]


def test_a_stage_of_another_version_is_refused(results, tmp_path, capsys, monkeypatch):
    root, stages = results
    monkeypatch.setitem(VERSIONS, "pretrain", 99)
    said = _refused([stages.pretrain.key, "--root", root, "--to", tmp_path / "saved"], capsys)
    assert "this workbench has 99" in said


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; nothing was exported"),
        (
            RuntimeError("no such operator\nin many lines"),
            2,
            "the exporter failed (RuntimeError: no such operator)",
        ),
    ],
)
def test_a_graph_that_does_not_come_about_is_said(
    trained, tmp_path, monkeypatch, capsys, raised, status, words
):
    """By Ctrl-C, or by an error of the exporter's."""
    root, stages = trained

    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("workbench.export.__main__.require_packages", lambda: None)
    monkeypatch.setattr(torch.onnx, "export", fail)
    arguments = [stages.pretrain.key, "--root", str(root), "--to", str(tmp_path / "saved"), "--onnx"]
    assert main(arguments) == status
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    root, stages = trained

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.export.__main__.model_card", full)
    said = _refused([stages.pretrain.key, "--root", root, "--to", tmp_path / "saved"], capsys)
    assert "No space left" in said
    assert not list(tmp_path.iterdir())


def _with_settings(change):
    def spoil(folder):
        content = json.loads((folder / SETTINGS).read_text())
        change(content)
        (folder / SETTINGS).write_text(json.dumps(content))

    return spoil


def _with_tensors(change):
    def spoil(folder):
        tensors, facts = load_tensors(folder / ENCODER)
        change(tensors, facts)
        save_tensors(folder / ENCODER, tensors, facts)

    return spoil


def _truncate(folder):
    content = (folder / ENCODER).read_bytes()
    (folder / ENCODER).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "settings.json: is not there"),
        (lambda folder: (folder / SETTINGS).write_text("{"), "cannot be read"),
        (lambda folder: (folder / SETTINGS).write_text("[]"), "format: must be 1, is None"),
        (_with_settings(lambda s: s.update(format=2)), "format: must be 1, is 2"),
        (_with_settings(lambda s: s.update(more=1)), "more: unknown key"),
        (_with_settings(lambda s: s.pop("origin")), "origin: is required"),
        (_with_settings(lambda s: s.update(sample_rate=44_100)), "must be 16000, is 44100"),
        (_with_settings(lambda s: s["model"].pop("num_heads")), "model: lacks num_heads"),
        (_with_settings(lambda s: s["model"].update(width="16")), "model.width: must be a whole number"),
        (_with_settings(lambda s: s["origin"].update(id="0" * 64)), "not of the stage that settings.json"),
        (_with_settings(lambda s: s["model"].update(num_blocks=1)), r"conformer.blocks.1.*expected none"),
        (lambda folder: (folder / ENCODER).unlink(), "encoder.safetensors: cannot be read"),
        (_truncate, "encoder.safetensors: cannot be read"),
        (_with_tensors(lambda t, f: t.pop("front_end.mean")), r"front_end.mean \(none, expected"),
        (_with_tensors(lambda t, f: t.update(extra=torch.ones(1))), r"extra \(shape \(1,\), expected none"),
        (_with_tensors(lambda t, f: f.pop("stage")), "not of the stage"),
    ],
)
def test_a_spoilt_folder_is_refused_with_file_and_reason(saved, spoil, words):
    spoil(saved)
    with pytest.raises(ConfigError, match=words):
        load_encoder(saved)
    with pytest.raises(ConfigError, match=f"^{saved}"):
        load_encoder(saved)


def test_a_folder_is_named_by_text_or_path(saved):
    assert load_encoder(str(saved)).num_parameters() == load_encoder(Path(saved)).num_parameters()
