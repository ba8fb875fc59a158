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
from workbench.config import FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.data_config import CorpusData
from workbench.stages import PREDICTIONS, VERSIONS, WEIGHTS, run_trial, stages_of
from workbench.store import Store
from workbench.training.checkpoint import load_tensors
from workbench.training.tracker import SilentTracker

GOLDEN = Path(__file__).parent / "golden_stages.json"
# Machines round differently, and every update builds on the one before; a rank or a hit flips at once.
TOLERANCE, TOLERANCE_OF_COUNTED = 2e-3, 0.05

# Few updates, but every part: padding apart, accumulation, both losses, every augmentation.
TRIAL = TrialConfig(
    data=CorpusData(clip_seconds=1.6, pool_clips=32, labelled_clips=32, validation_clips=32, test_clips=32),
    model=ModelConfig(num_blocks=2, width=16, num_heads=2, ffn_dim=32, first_kernel=7, kernel=5),
    pretraining=PretrainingConfig(steps=3, batch_size=8, accumulation=2, gain_db=3.0, mel_shift=1),
    finetuning=FinetuningConfig(
        steps=3, batch_size=8, accumulation=2, pooling="linear_softmax", output_dropout=0.1, num_evaluations=1
    ),
)


def stage_results(folder):
    """By kind of stage: its version, and figures that follow from all that it computes."""
    torch.set_num_threads(1)
    store = Store(folder / "store")
    fingerprint = data.fingerprint(TRIAL.data)
    run_trial(
        TRIAL,
        fingerprint,
        store=store,
        data_root=folder / "data",
        device=torch.device("cpu"),
        tracker=SilentTracker(),
        report=lambda line: None,
    )
    results = {}
    for stage in stages_of(TRIAL, fingerprint).all():
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


@pytest.mark.parametrize("kind", VERSIONS)
def test_a_stage_whose_result_changes_has_another_version(results, kind):
    golden = json.loads(GOLDEN.read_text())[kind]
    assert results[kind]["version"] == golden["version"], (
        f"the version of {kind} was raised: write its golden results, python -m tests.test_versions"
    )
    differing = _differing(results[kind]["figures"], golden["figures"])
    assert not differing, (
        f"{kind} gives another result than its version {golden['version']} did ({', '.join(differing)}): if "
        "that is meant, raise VERSIONS in workbench/stages.py, so that stages finished before are not taken "
        "for it"
    )


def test_the_comparison_sees_a_small_change(results):
    golden = json.loads(GOLDEN.read_text())
    for kind, name in (
        ("pretrain", "pretrain/loss"),
        ("finetune", "norm of classifier.linear.weight"),
        ("evaluate", "norm of scores"),
    ):
        figures = dict(results[kind]["figures"])
        figures[name] *= 1.01
        assert _differing(figures, golden[kind]["figures"]) == [name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(stage_results(Path(folder)), indent=1) + "\n")
    sys.exit(0)
