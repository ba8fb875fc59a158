"""Studies of the paper's own tasks: what they are at its size, and a miniature of each on its layout."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.verdicts import study_verdicts
from workbench.data import LAYOUTS, fingerprint
from workbench.data.listing import strictly
from workbench.data.prepare import prepare
from workbench.stages import run_trial, stages_of
from workbench.store import Store
from workbench.study.study_file import load_study
from workbench.training.tracker import SilentTracker

from .simulated_studies import NoPredictions, simulated
from .small_audioset import write_audioset
from .small_datasets import quiet, write_esc50
from .small_dcase2019 import write_dcase2019
from .small_fsdkaggle2019 import write_fsdkaggle2019
from .small_kinetics700 import write_kinetics700
from .small_magnatagatune import write_magnatagatune

FOLDER = Path(__file__).parent.parent / "studies" / "paper"
STUDIES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "claims.yaml")
TASKS = [path for path in STUDIES if path.stem.startswith("table3")]
COPIES = {
    "audioset": write_audioset,
    "dcase2019": write_dcase2019,
    "esc50": write_esc50,
    "fsdkaggle2019": write_fsdkaggle2019,
    "kinetics700": write_kinetics700,
    "magnatagatune": write_magnatagatune,
}


def _name(path):
    return path.stem


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which every set has been prepared where the studies look for it."""
    folder = tmp_path_factory.mktemp("paper")
    for name, write in COPIES.items():
        write(folder / "data" / name)
        listing = LAYOUTS[name].read(folder / "data" / name, strictly)
        prepare(name, listing, folder / "data" / name, folder / "mlruns" / "data" / name, workers=1)
    return folder


@pytest.mark.parametrize("path", STUDIES, ids=_name)
def test_every_study_is_the_papers_model_and_opens_with_its_claim(path):
    assert path.read_text().startswith(("# Table", "# Figure"))
    study = load_study(path)
    assert study.preset == "cf_large"
    assert all(claim is not None for claim in study.claims.values())
    assert study.claims
    depths = {trial.config.model.num_blocks for trial in study.trials()}
    assert depths == ({8, 12, 16, 20} if path.stem == "figure2b" else {12})


def test_every_task_of_the_papers_table_has_a_study():
    kinds = {load_study(path).trials()[0].config.data.kind for path in STUDIES}
    assert kinds == set(COPIES)
    metrics = {path.stem.removeprefix("table3_"): load_study(path).metric for path in TASKS}
    assert metrics == {
        "dcase2019": "accuracy",
        "esc50": "accuracy",
        "fsdkaggle2019": "lwlrap",
        "kinetics700": "accuracy",
        "magnatagatune": "macro_auc",
    }


def test_one_pretraining_of_each_size_and_seed_serves_every_task():
    keys = {}
    for path in TASKS:
        for trial in load_study(path).trials():
            stages = stages_of(trial.config, f"data of {path.stem}", "the pool")
            keys.setdefault((trial.config.model.width, trial.seed), set()).add(stages.pretrain.key)
    assert {width for width, _ in keys} == {256, 768}
    assert all(len(same) == 1 for same in keys.values())


@pytest.mark.parametrize("path", STUDIES, ids=_name)
def test_every_part_of_its_claims_finds_its_arms(path):
    generator = np.random.default_rng(0)
    record, table = simulated(path, "cf_large", lambda trial: generator.uniform(0.4, 0.6))
    for verdict in study_verdicts(record, table, NoPredictions()):
        for evidence in verdict.evidence:
            assert "not tested" not in evidence.note, (verdict.claim_id, evidence)


@pytest.mark.parametrize("path", STUDIES, ids=_name)
def test_it_runs_in_miniature_on_the_published_layout(path, prepared, tmp_path, monkeypatch):
    """A trial of each regime, by the core."""
    monkeypatch.chdir(prepared)
    study = load_study(path, preset="smoke")
    for trial in {trial.regime: trial for trial in study.trials()}.values():
        result = run_trial(
            trial.config,
            fingerprint(trial.config.data),
            fingerprint(trial.config.pool),
            store=Store(tmp_path / "store"),
            data_root=tmp_path / "data",
            device=torch.device("cpu"),
            tracker=SilentTracker(),
            report=quiet,
        )
        assert math.isfinite(result.metrics[f"test/{study.metric}"])
    assert not (tmp_path / "data").exists()  # what is prepared is read where it lies
