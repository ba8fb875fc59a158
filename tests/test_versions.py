"""A stage's version is raised when its result changes: golden results of the present versions.

`python -m tests.test_versions` writes the golden results anew, which is right after a version was raised.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from workbench import data
from workbench.config import (
    AugmentationConfig,
    Constant,
    ContrastiveConfig,
    Cosine,
    FinetuningConfig,
    ModelConfig,
    OptimiserConfig,
    PretrainingConfig,
    Step,
    TrialConfig,
    WarmupLinear,
)
from workbench.data_config import CorpusData, FolderData, PoolData
from workbench.stages import PREDICTIONS, VERSIONS, WEIGHTS, run_trial, stages_of
from workbench.store import Store
from workbench.training.checkpoint import load_tensors
from workbench.training.tracker import SilentTracker

from .small_folder import write_sound

GOLDEN = Path(__file__).parent / "golden_stages.json"
# Machines round differently, and every update builds on the one before; a rank or a hit flips at once.
TOLERANCE, TOLERANCE_OF_COUNTED = 2e-3, 0.05

CORPUS = CorpusData(clip_seconds=1.6, pool_clips=32, labelled_clips=32, validation_clips=32, test_clips=32)
ONE_BLOCK = ModelConfig(num_blocks=1, width=16, num_heads=2, ffn_dim=32, first_kernel=7)
LABELLED, POOL = "labelled", "pool"  # folders of recordings


def trials(audio):
    """Few updates, but between them every part. `audio` is where `write_audio` has written.

    Of seeds whose d-prime is not near 0, where one rank counts for much.
    """
    return {
        # Padding apart, accumulation, both losses, every augmentation.
        "paper": TrialConfig(
            data=CORPUS,
            model=ModelConfig(num_blocks=2, width=16, num_heads=2, ffn_dim=32, first_kernel=7, kernel=5),
            pretraining=PretrainingConfig(steps=3, batch_size=8, accumulation=2, gain_db=3.0, mel_shift=1),
            finetuning=FinetuningConfig(
                steps=3,
                batch_size=8,
                accumulation=2,
                pooling="linear_softmax",
                output_dropout=0.1,
                num_evaluations=1,
            ),
        ),
        # What quick studies do otherwise: one version of a clip, and all other masked latents as distractors.
        "quick": TrialConfig(
            data=CORPUS,
            model=ONE_BLOCK,
            pretraining=PretrainingConfig(
                steps=3,
                batch_size=8,
                objective=ContrastiveConfig(mask_span=2, num_distractors=None),
                schedule=WarmupLinear(warmup=0.1),
            ),
            finetuning=FinetuningConfig(
                steps=3, batch_size=8, pooling="linear_softmax", consistency_weight=0.0, num_evaluations=1
            ),
            seed=8,
        ),
        # Recordings of several lengths, one label each.
        "pool of its own": TrialConfig(
            data=FolderData(
                root=str(audio / LABELLED),
                single_label=True,
                clip_seconds=0.5,
                validation_share=0.25,
                test_share=0.25,
            ),
            pool=PoolData(root=str(audio / POOL), clip_seconds=0.5),
            model=ONE_BLOCK,
            pretraining=PretrainingConfig(
                steps=4, batch_size=8, objective=ContrastiveConfig(mask_span=1), schedule=Cosine()
            ),
            finetuning=FinetuningConfig(
                steps=4,
                batch_size=8,
                freeze_encoder=True,
                class_balanced=True,
                num_evaluations=2,
                optimiser=OptimiserConfig(peak_lr=0.01),
                schedule=Constant(),
            ),
        ),
        "scratch": TrialConfig(
            data=CORPUS,
            model=ONE_BLOCK,
            pretraining=None,
            finetuning=FinetuningConfig(
                steps=4,
                batch_size=8,
                consistency_weight=0.0,
                class_balanced=True,
                num_evaluations=1,
                augmentation=AugmentationConfig(mixup=None),
                optimiser=OptimiserConfig(peak_lr=5e-4),
                schedule=Step(factor=0.5),
            ),
            seed=8,
        ),
    }


def write_audio(folder):
    for number in range(48):
        seconds = (0.3, 0.5, 0.7)[number % 3]
        write_sound(folder / LABELLED / f"class {number % 4}" / f"{number:02d}.wav", number, seconds)
    for number, seconds in enumerate((0.3, 0.5, 10.2, 6.0)):
        write_sound(folder / POOL / f"{number}.flac", 100 + number, seconds)


def golden_stages():
    """(trial, kind of stage) of each."""
    found = []
    for name, trial in trials(Path()).items():
        kinds = [kind for kind in VERSIONS if kind != "pretrain" or trial.pretraining is not None]
        found += [(name, kind) for kind in kinds]
    return found


def stage_results(folder):
    """By trial and kind of stage: its version, and figures that follow from all that it computes."""
    write_audio(folder / "audio")
    return {name: _results_of(trial, folder) for name, trial in trials(folder / "audio").items()}


def _results_of(trial, folder):
    torch.set_num_threads(1)
    store = Store(folder / "store")
    fingerprints = data.fingerprint(trial.data), trial.pool and data.fingerprint(trial.pool)
    run_trial(
        trial,
        *fingerprints,
        store=store,
        data_root=folder / "data",
        device=torch.device("cpu"),
        tracker=SilentTracker(),
        report=lambda line: None,
    )
    results = {}
    for stage in stages_of(trial, *fingerprints).all():
        figures = dict(store.facts(stage)["metrics"])
        for name in (WEIGHTS, PREDICTIONS):
            if (store.path(stage) / name).exists():
                for key, tensor in sorted(load_tensors(store.path(stage) / name)[0].items()):
                    figures[f"norm of {key}"] = float(tensor.double().norm())
        results[stage.kind] = {"version": stage.version, "figures": figures}
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return stage_results(tmp_path_factory.mktemp("versions"))


def _differing(found, golden):
    """Names of the figures that are not the golden ones."""
    if found.keys() != golden.keys():
        return sorted(found.keys() ^ golden.keys())
    return [
        name
        for name, value in found.items()
        if value != pytest.approx(golden[name], rel=_tolerance(name), abs=1e-4, nan_ok=True)
    ]


def _tolerance(name):
    counted = name.startswith(("validation/", "test/")) or name.endswith("accuracy")
    return TOLERANCE_OF_COUNTED if counted else TOLERANCE


@pytest.mark.parametrize(("trial", "kind"), golden_stages())
def test_a_stage_whose_result_changes_has_another_version(results, trial, kind):
    golden, found = json.loads(GOLDEN.read_text())[trial][kind], results[trial][kind]
    assert found["version"] == golden["version"], (
        f"the version of {kind} was raised: write its golden results, python -m tests.test_versions"
    )
    differing = _differing(found["figures"], golden["figures"])
    assert not differing, (
        f"{kind} of the trial {trial!r} gives another result than its version {golden['version']} did "
        f"({', '.join(differing)}): if that is meant, raise VERSIONS in workbench/stages.py, so that stages "
        "finished before are not taken for it"
    )


def test_the_comparison_sees_a_small_change(results):
    golden, found = json.loads(GOLDEN.read_text())["paper"], results["paper"]
    for kind, name in (
        ("pretrain", "pretrain/loss"),
        ("finetune", "norm of classifier.linear.weight"),
        ("evaluate", "norm of scores"),
    ):
        figures = dict(found[kind]["figures"])
        figures[name] *= 1.01
        assert _differing(figures, golden[kind]["figures"]) == [name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(stage_results(Path(folder)), indent=1) + "\n")
    sys.exit(0)
