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
from workbench.config import CorpusData, FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.stages import VERSIONS, WEIGHTS, run_trial, stages_of
from workbench.store import Store
from workbench.training.checkpoint import load_tensors
from workbench.training.tracker import SilentTracker

GOLDEN = Path(__file__).parent / "golden_stages.json"
TOLERANCE = 2e-3  # relative: machines round differently, and every update builds on the one before

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
        weights = store.path(stage) / WEIGHTS
        if weights.exists():
            for name, tensor in sorted(load_tensors(weights)[0].items()):
                figures[name] = float(tensor.double().norm())
        results[stage.kind] = {"version": stage.version, "figures": figures}
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return stage_results(tmp_path_factory.mktemp("versions"))


@pytest.mark.parametrize("kind", VERSIONS)
def test_a_stage_whose_result_changes_has_another_version(results, kind):
    golden = json.loads(GOLDEN.read_text())[kind]
    assert results[kind]["version"] == golden["version"], (
        f"the version of {kind} was raised: write its golden results, python -m tests.test_versions"
    )
    assert results[kind]["figures"] == pytest.approx(golden["figures"], rel=TOLERANCE, abs=1e-4), (
        f"{kind} gives another result than its version {golden['version']} did: if that is meant, raise "
        "VERSIONS in workbench/stages.py, so that stages finished before are not taken for it"
    )


def test_the_comparison_sees_a_small_change(results):
    golden = json.loads(GOLDEN.read_text())
    for kind, found in results.items():
        name = next(iter(found["figures"]))
        changed = {**found["figures"], name: found["figures"][name] * 1.01 + 0.001}
        assert changed != pytest.approx(golden[kind]["figures"], rel=TOLERANCE, abs=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(stage_results(Path(folder)), indent=1) + "\n")
    sys.exit(0)
