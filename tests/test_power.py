"""What difference so many seeds can show, by the noise of results that are there."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.estimators import crossed_comparison
from workbench.study.claims import read_claims
from workbench.study.noise import compared_regimes, earlier_deviation, paired_deviation
from workbench.study.power import detectable_difference

from .simulated_studies import FOLDER, a_record


@pytest.mark.parametrize("pairs", [3, 5, 12])
def test_the_detectable_difference_is_found_four_times_in_five(pairs):
    effect = detectable_difference(pairs, deviation=2.0)
    differences = np.random.default_rng(0).normal(effect, 2.0, (20_000, pairs))
    found = stats.ttest_1samp(differences, 0.0, axis=1)
    assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.015)


def test_one_seed_shows_nothing():
    assert detectable_difference(1) == math.inf


@pytest.mark.parametrize("levels", [(1, 2), ("null", 0.5)])
def test_the_noise_of_pairs_is_taken_from_earlier_results(study, tmp_path, levels):
    assert earlier_deviation(study, tmp_path) is None
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(400):
        shared = generator.normal(0, 10)  # of the seed: gone in a pair's difference
        for gain, level in enumerate(levels):
            rows.append(
                {
                    "number": 0, "state": "complete", "reason": "", "level": level, "regime": "full",
                    "seed": seed, "fold": None, "test/mAP": shared + gain + generator.normal(0, 0.5),
                }
            )  # fmt: skip
    for name, preset in (("other-study-smoke", "smoke"), ("smoke-quick", "quick")):
        folder = tmp_path / name
        folder.mkdir()
        record = a_record(id=name, preset=preset, regimes=["full"])
        definition = {key: value for key, value in vars(record).items() if key != "folder"}
        (folder / "study.json").write_text(json.dumps(definition))
        pd.DataFrame(rows).to_csv(folder / "trials.csv", index=False)
    nothing_yet = tmp_path / "begun-smoke"
    nothing_yet.mkdir()
    (nothing_yet / "study.json").write_text((tmp_path / "other-study-smoke" / "study.json").read_text())
    pd.DataFrame().to_csv(nothing_yet / "trials.csv", index=False)
    deviation, name = earlier_deviation(study, tmp_path)
    assert name == "other-study-smoke"
    assert deviation == pytest.approx(0.5 * math.sqrt(2), rel=0.1)


def test_the_noise_is_that_of_the_regimes_that_the_claims_compare():
    """Not of label counts, whose scores have nothing in common; at each arm's best rate, by fold."""
    generator = np.random.default_rng(0)
    rows = []
    for seed, fold in itertools.product(range(2), range(200)):
        for level in (1, 2):
            shared = generator.normal(0, 10)
            for regime, rate in itertools.product(("scratch", "pretrained"), (1e-3, 2e-3)):
                score = shared + generator.normal(0, 0.5)
                rows.append(
                    {
                        "state": "complete", "level": level, "rate": rate, "regime": regime, "seed": seed,
                        "fold": fold, "test/mAP": score, "validation/mAP": rate,
                    }
                )  # fmt: skip
    record = a_record(regimes=["scratch", "pretrained"], tuned=["rate"])
    regimes = compared_regimes([read_claims(FOLDER / "claims.yaml")["two-thirds"]])
    assert regimes == {frozenset({"scratch", "pretrained"})}
    deviation, freedom = paired_deviation(record, pd.DataFrame(rows), regimes)
    assert deviation == pytest.approx(0.5, rel=0.1)  # root two for the pair, and for two seeds a fold
    assert freedom == 2 * 199


def test_folds_and_clips_make_the_detectable_difference_larger():
    """As the intervals of verdicts have it: a true difference of that size is found four times in five."""
    plain = detectable_difference(5, 0.01)
    assert detectable_difference(5, 0.01, overlap=1 / 3) == pytest.approx(plain * math.sqrt(1 + 5 / 3))
    generator = np.random.default_rng(0)
    effect = detectable_difference(4, 0.01, clip_error=0.005)
    found = 0
    for _ in range(1000):
        clips = generator.normal(0, 0.005, (100, 1)) * np.ones((1, 4))
        differences = effect + generator.normal(0, 0.005) + generator.normal(0, 0.01, 4)
        found += crossed_comparison(differences, clips, 1000).low > 0
    assert found / 1000 == pytest.approx(0.8, abs=0.05)
    assert detectable_difference(1000, 0.01, clip_error=0.005) > 2.8 * 0.005
