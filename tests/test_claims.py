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
    compare,
    describe,
    examine,
    judge_equivalent,
    judge_greater,
    judge_rising,
    rule,
    study_verdicts,
    verdict_table,
)
from analysis.estimators import crossed_comparison, paired_comparison
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
from workbench.study.results import StudyRecord, levels_of
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


def _ruled(*evidence):
    """Each as a claim of its own."""
    return [found for (found,) in rule([[one] for one in evidence])]


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
        (0.0101, 0.0010, Ruling.INCONCLUSIVE),  # above 0 for certain, but not above what matters
    ],
)
def test_a_difference_is_ruled_on_by_its_sign_and_its_margin(mean, deviation, ruling):
    assert _ruled(*[judge_greater(GREATER, _compared(mean, deviation))])[0].ruling is ruling


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
    assert _ruled(*[judge_equivalent(EQUAL, _compared(mean, deviation))])[0].ruling is ruling


def _steps(scores):
    return [paired_comparison(scores[:, i], scores[:, i + 1]) for i in range(scores.shape[1] - 1)]


def test_a_rise_is_one_at_every_step():
    noise = np.random.default_rng(0).normal(0, 1e-4, (4, 4))
    rising = noise + np.array([0.1, 0.2, 0.3, 0.4])
    assert _ruled(judge_rising(RISING, _steps(rising)))[0].ruling is Ruling.SUPPORTED
    assert _ruled(judge_rising(RISING, _steps(rising[:, ::-1])))[0].ruling is Ruling.CONTRADICTED
    flat = _ruled(judge_rising(RISING, _steps(noise + np.array([0.1, 0.1, 0.1, 0.5]))))[0]
    assert flat.ruling is not Ruling.SUPPORTED  # as a test over all levels together would have it


def test_more_tests_ask_for_more_evidence():
    one = judge_greater(GREATER, _compared(0.06, 0.035))
    assert _ruled(one)[0].ruling is Ruling.SUPPORTED
    assert {e.ruling for e in _ruled(*[one] * 6)} == {Ruling.INCONCLUSIVE}


def test_parts_that_must_all_hold_need_no_correction_to_support_and_one_to_contradict():
    good, bad = (judge_greater(GREATER, _compared(mean, 0.035)) for mean in (0.06, -0.04))
    assert {e.ruling for e in rule([[good] * 6])[0]} == {Ruling.SUPPORTED}
    assert _ruled(bad)[0].ruling is Ruling.CONTRADICTED
    assert {e.ruling for e in rule([[bad] + [good] * 5])[0]} == {Ruling.SUPPORTED, Ruling.INCONCLUSIVE}


def test_replicates_that_agree_to_the_last_digit_decide_nothing():
    """Accuracy on few clips moves in steps: equal differences come by chance."""
    found = judge_greater(GREATER, paired_comparison([0.5, 0.6], [0.75, 0.85]))
    assert _ruled(found)[0].ruling is Ruling.INCONCLUSIVE
    assert "spread unknown" in found.note


def test_one_replicate_decides_nothing():
    alone = paired_comparison([0.0], [0.5])
    assert _ruled(*[judge_greater(GREATER, alone)])[0].ruling is Ruling.INCONCLUSIVE
    assert _ruled(*[judge_equivalent(EQUAL, alone)])[0].ruling is Ruling.INCONCLUSIVE


def test_replicates_to_decide_would_decide():
    found = judge_greater(GREATER, _compared(0.03, 0.05, 3))
    needed = found.replicates_to_decide
    again = [_compared(0.03, 0.05, n) for n in (needed, 3)]
    assert _ruled(*[judge_greater(GREATER, again[0])])[0].ruling is Ruling.SUPPORTED
    assert _ruled(*[judge_greater(GREATER, again[1])])[0].ruling is Ruling.INCONCLUSIVE


def test_more_replicates_cannot_make_up_for_few_clips():
    noise = np.random.default_rng(0).normal(0, 0.02, (300, 1)) * np.ones((1, 3))
    found = judge_greater(GREATER, crossed_comparison([0.015, 0.016, 0.017], noise, 100))
    assert found.replicates_to_decide is None


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("clip_noise", [0.0, 0.003])
def test_what_is_not_there_is_rarely_found(n, clip_noise):
    """1,000 simulated studies of three claims each, every one at the edge of what would make it true.

    A difference of just the margin, for `greater` and `equivalent`; a curve that is flat in one step. Test
    clips that all replicates share add noise of their own.
    """
    generator = np.random.default_rng(n)
    found = {"greater": 0, "equivalent": 0, "rising": 0, "any": 0}

    def compared(differences):
        if not clip_noise:
            return paired_comparison(np.zeros(n), differences)
        redrawn = generator.normal(0, clip_noise, (60, 1)) * np.ones((1, n))
        return crossed_comparison(differences + generator.normal(0, clip_noise), redrawn, 1000)

    for _ in range(1000):
        noise = generator.normal(0, 0.01, (n, 4))
        evidence = {
            "greater": judge_greater(GREATER, compared(noise[:, 0] + GREATER.margin)),
            "equivalent": judge_equivalent(EQUAL, compared(noise[:, 1] + EQUAL.margin)),
            "rising": judge_rising(
                RISING, [compared(noise[:, 2] + RISING.margin), compared(noise[:, 3] + 0.1)]
            ),
        }
        wrong = [one.ruling is Ruling.SUPPORTED for one in _ruled(*evidence.values())]
        found["any"] += any(wrong)
        for name, one in zip(evidence, wrong, strict=True):
            found[name] += one
    assert found["any"] <= 70, found  # 50 of them, and three standard deviations


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
    record = _record(axes=["level"], regimes=["all"], levels=["one", "other"])
    sides = [("all", "one")], [("all", "other")]
    alone, note = compare(Trials(record, table, NoPredictions()), *sides)
    over_clips, nothing = compare(Trials(record, table, OneSetOfClips()), *sides)
    assert over_clips.mean == pytest.approx(alone.mean)
    assert over_clips.high - over_clips.low > 10 * (alone.high - alone.low)
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
    values = {"base": {"level": 4}, "levels": [4, 1, 16]}
    return Trials(_record(**(values | changes)), table, NoPredictions())


@pytest.mark.parametrize(
    ("names", "levels"),
    [
        (["all/first", "all/last"], [1, 16]),
        (["all/second", "all/third"], [4, 16]),
        (["all/base"], [4]),
        (["all/16"], [16]),
    ],
)
def test_arms_are_found_by_name(names, levels):
    assert [level for _, level in _trials().resolve(names)[0]] == levels


def test_any_level_is_one_of_those_not_named():
    ways = _trials().resolve(["all/any", "all/first"])
    assert [[level for _, level in way] for way in ways] == [[4, 1], [16, 1]]


def test_any_level_is_corrected_for_their_number():
    """The better of two levels, by luck, is no evidence."""
    part = Greater(of=("all/any",), than=("all/first",), margin=0.0)
    trials = _trials()
    noise = np.random.default_rng(0).normal(0, 0.02, len(trials.done))
    trials.done["test/mAP"] += noise
    alone = Greater(of=("all/16",), than=("all/first",), margin=0.0)
    one, of_two = (examine(trials, p, trials.done) for p in (alone, part))
    assert of_two.p_support == pytest.approx(2 * min(one.p_support, of_two.p_support / 2))
    assert "of 2" in of_two.note


def test_a_level_that_failed_is_missed_and_not_passed_over():
    trials = _trials()
    trials.done = trials.done[trials.done.level != 1]
    found = examine(trials, Greater(of=("all/last",), than=("all/first",), margin=0.0), trials.done)
    assert found.ruling is Ruling.INCONCLUSIVE
    assert "no trial of all/1 has finished" in found.note


def test_predictions_that_were_deleted_leave_a_part_untested():
    class Gone:
        def shared_clips(self, keys):
            return None

    trials = dataclasses.replace(_trials(), predictions=Gone())
    found = examine(trials, Greater(of=("all/last",), than=("all/first",), margin=0.0), trials.done)
    assert "were deleted" in found.note


def test_folds_are_not_taken_for_independent():
    table = pd.concat([_trials().done.assign(fold=fold) for fold in range(1, 6)])
    table["test/mAP"] += np.random.default_rng(0).normal(0, 0.01, len(table))
    trials = Trials(_trials().record, table, NoPredictions())
    found, note = compare(trials, [("all", 16)], [("all", 1)])
    assert found.n == 5  # its seeds are no further replicates
    assert "overlap" in note
    plain = found.deviation / np.sqrt(5)
    assert found.standard_error == pytest.approx(plain * np.sqrt(1 + 5 / 3))


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
    entered = enter({"mine": Claim(says="?", where="?", parts=(part,))}, [], {})
    trials = _trials()
    verdict = study_verdicts(
        dataclasses.replace(trials.record, entered=entered, claims=["mine"]), trials.done, NoPredictions()
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
        claims=list(study.claims),
        levels=levels_of(study),
        entered=enter({name: claim for name, claim in study.claims.items() if claim}, [], {}),
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


@pytest.mark.parametrize("peak", [0.0, 0.004, 0.0098, 0.0102, 0.016, 0.1])
def test_the_two_claims_on_heads_are_told_apart(peak):
    """No height of the peak supports both."""
    noise = np.random.default_rng(0)
    record, table = simulated(
        FOLDER / "heads.yaml",
        "quick",
        lambda trial: 0.5 + peak * (trial.config.model.num_heads == 4) + noise.normal(0, 1e-4),
    )
    rulings = {v.claim_id: v.ruling for v in study_verdicts(record, table, NoPredictions())}
    assert list(rulings.values()).count(Ruling.SUPPORTED) <= 1
    if peak in (0.0, 0.1):
        low, high = Ruling.CONTRADICTED, Ruling.SUPPORTED
        expected = (
            {"heads-paper": high, "heads-poster": low} if peak else {"heads-paper": low, "heads-poster": high}
        )
        assert rulings == expected


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


def test_a_curve_that_levels_off_saves_no_labels():
    """97 % of a flat end takes few labels, with pre-training or without."""
    generator = np.random.default_rng(0)
    flat = {0.0625: 0.50, 0.125: 0.69, 0.25: 0.695, 0.5: 0.70, 1.0: 0.70}
    record, table = simulated(
        FOLDER / "label_fraction.yaml",
        "quick",
        lambda trial: flat[trial.config.data.label_fraction] + generator.normal(0, 0.004),
    )
    verdict = study_verdicts(record, table, NoPredictions())[0]
    assert verdict.ruling is not Ruling.SUPPORTED, describe(verdict)


def test_a_search_is_no_evidence():
    record, table = simulated(FOLDER / "heads.yaml", "quick", lambda trial: 0.5)
    assert study_verdicts(dataclasses.replace(record, search=True), table, NoPredictions()) == []


# --- set before the runs ------------------------------------------------------------------------------------


def test_a_changed_margin_leaves_a_trace():
    claim = CLAIMS["hours-full"]
    first = enter({"hours-full": claim}, [], {})
    assert enter({"hours-full": claim}, [], first) == first
    kept = {"hours-full": first["hours-full"] | {"since": "2020-01-01"}}
    assert enter({"hours-full": claim}, [], kept)["hours-full"]["since"] == "2020-01-01"
    wider = dataclasses.replace(claim, parts=(dataclasses.replace(claim.parts[0], margin=0.5),))
    after = enter({"hours-full": wider}, [], enter({}, [], kept))["hours-full"]  # by way of leaving it out
    assert after["since"] != "2020-01-01"
    before = first["hours-full"]["digest"]
    assert after["earlier"] == [{"digest": before, "since": "2020-01-01"}]
    assert enter({"hours-full": claim}, [1, 2], kept)["hours-full"][
        "earlier"
    ]  # other levels are another test


def test_another_wording_changes_no_digest():
    claim = CLAIMS["hours-full"]
    first = enter({"hours-full": claim}, [], {})
    again = enter({"hours-full": dataclasses.replace(claim, says="In other words.")}, [], first)
    assert again["hours-full"]["digest"] == first["hours-full"]["digest"]


def test_a_claim_set_after_its_runs_is_told(tmp_path):
    record, table = simulated(
        FOLDER / "update_all.yaml", "quick", _score_with(True, 1e-3, np.random.default_rng(1))
    )
    for began, words in ((4e12, "before its runs"), (1e12, "after the first of its runs")):
        verdict = study_verdicts(record, table.assign(began=began), NoPredictions())[0]
        assert words in describe(verdict)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"kind": "greater", "of": ["a"], "than": [], "margin": 0.1}, "as many arms"),
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
    monkeypatch.setattr(claims_command, "Predictions", lambda stages, metric: NoPredictions())
    assert claims_command.main(["--root", str(tmp_path), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "update-all (4): SUPPORTED" in printed
    assert "preset quick" in printed
    written = pd.read_csv(tmp_path / "claims.csv")
    assert written["verdict"].tolist() == ["supported"] * 2
    assert written["digest"].unique().tolist() == [record.entered["update-all"]["digest"]]


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
