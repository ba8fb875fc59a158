"""Verdicts on claims: what supports them, what contradicts them, and what says nothing."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import claims as claims_command
from analysis.claims import (
    Ruling,
    Trials,
    contrast,
    describe,
    judge_equivalent,
    judge_greater,
    judge_rising,
    rule,
    study_verdicts,
    verdict_table,
)
from analysis.estimators import paired_comparison
from analysis.predictions import resampled_metric
from workbench.settings import ConfigError
from workbench.study.claims import (
    Claim,
    Equivalent,
    Greater,
    Rising,
    claims_beside,
    enter,
    read_claims,
)
from workbench.study.definition import load_study
from workbench.study.results import StudyRecord
from workbench.training.metrics import summarise

FOLDER = Path(__file__).parent.parent / "studies"
CLAIMS = read_claims(FOLDER / "claims.yaml")
STUDIES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "claims.yaml")

GREATER = Greater(of=("a",), than=("b",), margin=0.01)
EQUAL = Equivalent(of=("a",), than=("b",), margin=0.02)
RISING = Rising(regime="balanced", margin=0.005)


class NoPredictions:
    """Of trials whose clips are not looked at."""

    def shared_clips(self, keys):
        return 0


# --- rulings ------------------------------------------------------------------------------------------------


def _differences(mean, deviation, n=5):
    """`n` differences with exactly this mean and standard deviation."""
    shape = np.linspace(-1, 1, n)
    return mean + deviation * (shape - shape.mean()) / shape.std(ddof=1)


def _compared(mean, deviation, n=5):
    return paired_comparison(np.zeros(n), _differences(mean, deviation, n))


@pytest.mark.parametrize(
    ("mean", "deviation", "ruling"),
    [
        (0.05, 0.01, Ruling.SUPPORTED),
        (-0.05, 0.01, Ruling.CONTRADICTED),
        (0.05, 0.20, Ruling.INCONCLUSIVE),
        (0.004, 0.0001, Ruling.CONTRADICTED),  # there, and too small to matter
        (0.012, 0.0001, Ruling.SUPPORTED),
    ],
)
def test_a_difference_is_ruled_on_by_its_sign_and_its_margin(mean, deviation, ruling):
    assert rule([judge_greater(GREATER, _compared(mean, deviation))])[0].ruling is ruling


@pytest.mark.parametrize(
    ("mean", "deviation", "ruling"),
    [
        (0.001, 0.005, Ruling.SUPPORTED),
        (-0.015, 0.001, Ruling.SUPPORTED),
        (-0.050, 0.005, Ruling.CONTRADICTED),
        (0.001, 0.050, Ruling.INCONCLUSIVE),  # no significant difference is no evidence of equality
        (0.018, 0.010, Ruling.INCONCLUSIVE),
    ],
)
def test_equality_needs_evidence_too(mean, deviation, ruling):
    assert rule([judge_equivalent(EQUAL, _compared(mean, deviation))])[0].ruling is ruling


def test_a_rise_is_one_without_a_step_back():
    noise = np.random.default_rng(0).normal(0, 1e-4, (4, 4))
    rising = noise + np.array([0.1, 0.2, 0.3, 0.4])
    assert rule([judge_rising(RISING, rising)])[0].ruling is Ruling.SUPPORTED
    assert rule([judge_rising(RISING, rising[:, ::-1])])[0].ruling is Ruling.CONTRADICTED
    back = rule([judge_rising(RISING, noise + np.array([0.1, 0.4, 0.3, 0.5]))])[0]
    assert back.ruling is Ruling.INCONCLUSIVE
    assert "step back" in back.note


def test_more_tests_ask_for_more_evidence():
    one = judge_greater(GREATER, _compared(0.05, 0.035))
    assert rule([one])[0].ruling is Ruling.SUPPORTED
    assert {e.ruling for e in rule([one] * 6)} == {Ruling.INCONCLUSIVE}


def test_one_replicate_decides_nothing():
    alone = paired_comparison([0.0], [0.5])
    assert rule([judge_greater(GREATER, alone)])[0].ruling is Ruling.INCONCLUSIVE
    assert rule([judge_equivalent(EQUAL, alone)])[0].ruling is Ruling.INCONCLUSIVE


def test_replicates_to_decide_would_decide():
    found = judge_greater(GREATER, _compared(0.02, 0.05, 3))
    needed = found.replicates_to_decide
    again = [_compared(0.02, 0.05, n) for n in (needed, 3)]
    assert rule([judge_greater(GREATER, again[0])])[0].ruling is Ruling.SUPPORTED
    assert rule([judge_greater(GREATER, again[1])])[0].ruling is Ruling.INCONCLUSIVE


@pytest.mark.parametrize("n", [3, 5])
def test_what_is_not_there_is_rarely_found(n):
    """1,000 simulated studies each: no difference, one of just the margin, no trend."""
    generator = np.random.default_rng(n)
    found = {"greater": 0, "equivalent": 0, "rising": 0}
    for _ in range(1000):
        noise = generator.normal(0, 0.01, (n, 3))
        same = paired_comparison(noise[:, 0], noise[:, 1])
        apart = paired_comparison(noise[:, 0], noise[:, 1] + EQUAL.margin)
        evidence = {
            "greater": judge_greater(GREATER, same),
            "equivalent": judge_equivalent(EQUAL, apart),
            "rising": judge_rising(RISING, noise),
        }
        for name, one in evidence.items():
            found[name] += rule([one])[0].ruling is Ruling.SUPPORTED
    assert all(count <= 70 for count in found.values()), found  # 50, and three standard deviations


# --- test clips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["mAP", "macro_auc"])
def test_redrawn_clips_count_as_often_as_they_were_drawn(metric):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 12, (40, 3)) / 10  # with ties
    targets = (generator.random((40, 3)) < 0.3).astype(float)
    drawn = generator.multinomial(40, np.full(40, 1 / 40), size=5)
    expected = [
        summarise(np.repeat(scores, w, axis=0), np.repeat(targets, w, axis=0), single_label=False)[metric]
        for w in drawn
    ]
    assert resampled_metric(metric, scores, targets, drawn) == pytest.approx(expected)


def test_shared_test_clips_widen_the_interval():
    """Replicates that agree say little where a few clips decide."""

    class OneSetOfClips:
        def shared_clips(self, keys):
            list(keys)
            return 50

        def resampled(self, key):
            which = 0.05 if key.startswith("one") else 0.0
            return which * np.random.default_rng(0).standard_normal(300)

    rows = [("one", 0.7), ("other", 0.6)]
    table = _rows([(level, seed, score + 1e-3 * seed) for level, score in rows for seed in range(3)])
    part = Greater(of=("all/one",), than=("all/other",), margin=0.01)
    record = _record(axes=["level"], regimes=["all"])
    alone, note = contrast(Trials(record, table, NoPredictions()), part)
    over_clips, nothing = contrast(Trials(record, table, OneSetOfClips()), part)
    assert over_clips.mean == pytest.approx(alone.mean)
    assert over_clips.standard_error > 10 * alone.standard_error
    assert "own test clips" in note
    assert not nothing


def _rows(found):
    return pd.DataFrame(
        {
            "number": i,
            "state": "complete",
            "level": level,
            "regime": "all",
            "seed": seed,
            "fold": None,
            "key": f"{level}{seed}",
            "run_id": f"run{i}",
            "test/mAP": score,
            "validation/mAP": score,
        }
        for i, (level, seed, score) in enumerate(found)
    )


def _record(**changes):
    values = {
        "id": "mine-quick",
        "name": "mine",
        "preset": "quick",
        "question": "?",
        "claims": [],
        "axes": ["level"],
        "regimes": ["all"],
        "metric": "mAP",
        "search": False,
        "command": "",
        "folder": Path(),
        "base": {},
    }
    return StudyRecord(**(values | changes))


# --- arms by name -------------------------------------------------------------------------------------------


def _trials(**changes):
    table = _rows([(level, seed, 0.1 * level) for level in (4, 1, 16) for seed in range(3)])
    table.loc[table.level == 16, "validation/mAP"] = 0.0  # its test scores are the best
    return Trials(_record(**({"base": {"level": 4}} | changes)), table, NoPredictions())


@pytest.mark.parametrize(
    ("names", "levels"),
    [
        (["all/first", "all/last"], [1, 16]),
        (["all/second", "all/third"], [4, 16]),
        (["all/base"], [4]),
        (["all/16"], [16]),
        (["all/best", "all/4"], [1, 4]),  # by validation, of those not named
    ],
)
def test_arms_are_found_by_name(names, levels):
    assert [level for _, level in _trials().resolve(names)] == levels


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full/first", "no regime 'full'"),
        ("all/fourth", "3 levels"),
        ("all/8", "no level '8'; it has 1, 4, 16"),
        ("all", "several levels"),
    ],
)
def test_an_arm_that_is_not_there_leaves_a_part_untested(name, words):
    part = Greater(of=(name,), than=("all/first",), margin=0.0)
    entered = enter({"mine": Claim(says="?", where="?", parts=(part,))}, {})
    trials = _trials()
    verdict = study_verdicts(
        dataclasses.replace(trials.record, entered=entered), trials.done, NoPredictions()
    )[0]
    assert verdict.ruling is Ruling.INCONCLUSIVE
    assert words in verdict.evidence[0].note
    assert words in describe(verdict)


# --- the paper's claims -------------------------------------------------------------------------------------


@functools.cache
def _trials_of(path, preset):
    study = load_study(path, preset=preset)
    return study, study.trials()


def simulated(path, preset, score):
    """A study's record and table with `score(trial)` as its validation and test metric."""
    study, trials = _trials_of(path, preset)
    rows = []
    for number, trial in enumerate(trials):
        value = score(trial)
        rows.append(
            {"number": number, "state": "complete", "key": str(number), "run_id": str(number)}
            | trial.level
            | {"regime": trial.regime, "seed": trial.seed, "fold": trial.fold}
            | {"labelled_clips": 480.0 * trial.config.data.label_fraction}
            | {f"test/{study.metric}": value, f"validation/{study.metric}": value}
        )
    record = _record(
        id=study.id,
        name=study.name,
        preset=study.preset,
        axes=list(study.axes),
        tuned=list(study.tuned),
        regimes=list(study.regimes),
        metric=study.metric,
        base=study.base,
        entered=enter({name: claim for name, claim in study.claims.items() if claim}, {}),
    )
    return record, pd.DataFrame(rows)


def _is_grid(path):
    return load_study(path).search is None


@pytest.mark.parametrize("path", list(filter(_is_grid, STUDIES)), ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["quick", "cf_large"])
def test_every_part_of_a_claim_finds_its_arms(path, preset):
    generator = np.random.default_rng(0)
    record, table = simulated(path, preset, lambda trial: generator.uniform(0.4, 0.6))
    for verdict in study_verdicts(record, table, NoPredictions()):
        for evidence in verdict.evidence:
            assert "not tested" not in evidence.note, (verdict.claim_id, evidence)
        assert verdict.runs


def test_every_claim_of_the_paper_is_tested_by_a_study():
    tested = {name for path in STUDIES for name in load_study(path).claims}
    assert tested == set(CLAIMS)
    facts = (
        "scratch-gap two-thirds hours-full hours-balanced depth-gain depth-tail heads-paper heads-poster "
        "low-labels batch output-dropout three-stage update-all larger"
    )
    assert set(CLAIMS) == set(facts.split())


def _score_with(effects, deviation, generator):
    """By what the paper says of `trial`, if `effects`; else the same for all."""

    def score(trial):
        level = next((v for k, v in trial.level.items() if "peak_lr" not in k), None)
        few = "balanced" in trial.regime or trial.config.data.label_fraction < 0.5
        value = 0.5 if few else 0.7
        if effects:
            value += _effect(trial, level, few)
        return value + generator.normal(0, deviation)

    return score


def _effect(trial, level, few):
    scratch = trial.config.pretraining is None
    config = trial.config
    gain = -0.2 * scratch * (2 if few else 1)
    gain += 0.1 * (config.finetuning.schedule.kind == "three_stage") - 0.2 * config.finetuning.freeze_encoder
    gain += 0.1 * (config.finetuning.output_dropout > 0) * few
    gain += 0.02 * np.log2(config.data.pool_clips / 8192) * few
    gain += 0.03 * np.log2(config.finetuning.batch_size / 32) * (-1 if few else 1)
    gain += 0.002 * (config.model.width - 64) * (1.5 if few else 1)
    return gain


SUPPORTED_BY = {
    "scratch": {"scratch-gap"},
    "pretrain_data": {"hours-full", "hours-balanced", "low-labels"},
    "lr_schedule": {"three-stage"},
    "batch_size": {"batch"},
    "dropout": {"output-dropout"},
    "update_all": {"update-all"},
    "size": {"larger", "low-labels"},
}


@pytest.mark.parametrize("name", SUPPORTED_BY)
def test_data_made_as_the_paper_says_support_it(name):
    generator = np.random.default_rng(1)
    record, table = simulated(FOLDER / f"{name}.yaml", "quick", _score_with(True, 1e-3, generator))
    verdicts = study_verdicts(record, table, NoPredictions())
    assert {v.claim_id for v in verdicts if v.ruling is Ruling.SUPPORTED} == SUPPORTED_BY[name]


@pytest.mark.parametrize("name", [*SUPPORTED_BY, "heads", "depth"])
def test_data_without_any_effect_support_nothing_but_equality(name):
    """40 studies each; of 5 % at most, more than 6 come once in a hundred times."""
    generator = np.random.default_rng(2)
    wrong = dict.fromkeys(load_study(FOLDER / f"{name}.yaml").claims, 0)
    for _ in range(40):
        record, table = simulated(FOLDER / f"{name}.yaml", "quick", _score_with(False, 0.01, generator))
        for verdict in study_verdicts(record, table, NoPredictions()):
            is_equality = all(isinstance(part, Equivalent) for part in verdict.claim.parts)
            wrong[verdict.claim_id] += verdict.ruling is Ruling.SUPPORTED and not is_equality
    assert max(wrong.values()) <= 6, wrong


def test_the_two_claims_on_heads_are_told_apart():
    rulings = {}
    for peak in (0.0, 0.1):
        record, table = simulated(
            FOLDER / "heads.yaml",
            "quick",
            lambda t, peak=peak: 0.5 + peak * (t.config.model.num_heads == 4) + 1e-3 * (t.seed % 2),
        )
        noise = np.random.default_rng(0).normal(0, 1e-3, len(table))
        table["test/mAP"] += noise
        rulings[peak] = {v.claim_id: v.ruling for v in study_verdicts(record, table, NoPredictions())}
    assert rulings[0.0] == {"heads-paper": Ruling.CONTRADICTED, "heads-poster": Ruling.SUPPORTED}
    assert rulings[0.1] == {"heads-paper": Ruling.SUPPORTED, "heads-poster": Ruling.CONTRADICTED}


@pytest.mark.parametrize(
    ("shift", "ruling"), [(0.25, Ruling.SUPPORTED), (0.0, Ruling.CONTRADICTED), (0.14, Ruling.INCONCLUSIVE)]
)
def test_two_thirds_is_judged_by_the_interval_of_the_reduction(shift, ruling):
    """Scores are straight over log labels, so that a shift of 0.1 halves the labels."""
    generator = np.random.default_rng(0)
    deviation = 0.001 if ruling is not Ruling.INCONCLUSIVE else 0.02

    def score(trial):
        value = 0.8 + 0.1 * np.log2(trial.config.data.label_fraction)
        return value + shift * (trial.config.pretraining is not None) + generator.normal(0, deviation)

    record, table = simulated(FOLDER / "label_fraction.yaml", "quick", score)
    verdict = study_verdicts(record, table, NoPredictions())[0]
    assert verdict.ruling is ruling, describe(verdict)


def test_a_search_is_no_evidence():
    record, table = simulated(FOLDER / "heads.yaml", "quick", lambda trial: 0.5)
    assert study_verdicts(dataclasses.replace(record, search=True), table, NoPredictions()) == []


# --- set before the runs ------------------------------------------------------------------------------------


def test_a_changed_margin_leaves_a_trace():
    claim = CLAIMS["hours-full"]
    first = enter({"hours-full": claim}, {})
    assert enter({"hours-full": claim}, first) == first
    kept = {"hours-full": first["hours-full"] | {"since": "2020-01-01"}}
    assert enter({"hours-full": claim}, kept)["hours-full"]["since"] == "2020-01-01"
    wider = dataclasses.replace(claim, parts=(dataclasses.replace(claim.parts[0], margin=0.5),))
    after = enter({"hours-full": wider}, kept)["hours-full"]
    assert after["since"] != "2020-01-01"
    assert after["earlier"] == [{"digest": claim.digest, "since": "2020-01-01"}]


def test_another_wording_changes_no_digest():
    claim = CLAIMS["hours-full"]
    assert dataclasses.replace(claim, says="In other words.").digest == claim.digest


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"kind": "greater", "of": ["a"], "than": [], "margin": 0.1}, "as many arms"),
        ({"kind": "greater", "of": ["a"], "than": ["b"], "margin": -0.1}, "margin: must not be negative"),
        ({"kind": "equivalent", "of": ["a"], "than": ["b"], "margin": 0.0}, "greater than 0"),
        ({"kind": "larger", "of": ["a"]}, "greater, equivalent, rising, fewer_labels"),
        ({"kind": "fewer_labels", "share": 2.0, "at_least": 0.5}, "share"),
    ],
)
def test_wrong_claims_are_refused_by_their_path(tmp_path, part, words):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": {"mine": {"says": "?", "where": "?", "parts": [part]}}}))
    with pytest.raises(ConfigError) as error:
        claims_beside(tmp_path / "study.yaml")
    assert f"{path}: claims.mine.parts[0]" in str(error.value)
    assert words in str(error.value)


def test_a_study_names_claims_that_there_are(tmp_path):
    study = {"question": "?", "preset": "smoke", "claims": ["heads-papper"]}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    assert load_study(path).claims == {"heads-papper": None}  # no claims.yaml beside it
    (tmp_path / "claims.yaml").write_text((FOLDER / "claims.yaml").read_text())
    with pytest.raises(ConfigError, match="no claim 'heads-papper'"):
        load_study(path)


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_verdicts_and_writes_them(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(1)
    record, table = simulated(FOLDER / "update_all.yaml", "quick", _score_with(True, 1e-3, generator))
    monkeypatch.setattr(claims_command, "studies", lambda root: [record])
    monkeypatch.setattr(claims_command, "trial_table", lambda record, root: table)
    assert claims_command.main(["--root", str(tmp_path), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "update-all (4): SUPPORTED" in printed
    assert "preset quick" in printed
    written = pd.read_csv(tmp_path / "claims.csv")
    assert written["verdict"].tolist() == ["supported"] * 2
    assert written["digest"].unique().tolist() == [CLAIMS["update-all"].digest]


def test_nothing_to_judge_is_said(tmp_path, capsys):
    assert claims_command.main(["--root", str(tmp_path)]) == 2
    assert "run one first" in capsys.readouterr().err
    assert claims_command.main(["heads", "--root", str(tmp_path)]) == 2
    assert "no study heads" in capsys.readouterr().err


def test_a_table_of_verdicts_has_a_row_a_part():
    record, table = simulated(FOLDER / "depth.yaml", "quick", lambda trial: 0.5 + 0.01 * trial.seed)
    found = verdict_table(study_verdicts(record, table, NoPredictions()))
    assert found.groupby("claim").size().to_dict() == {
        name: len(CLAIMS[name].parts) for name in ("depth-gain", "depth-tail", "low-labels")
    }
