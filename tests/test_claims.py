"""Claims are set before the runs, bad ones are refused, and the command says what became of them."""

import dataclasses
import datetime
import json
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import claims as claims_command
from analysis import command, findings
from analysis.claims import describe, verdict_table
from analysis.verdicts import study_verdicts
from workbench.settings import ConfigError
from workbench.study import __main__ as study_command
from workbench.study.claims import claims_beside, enter, read_claims
from workbench.study.record import enter_claims
from workbench.study.study_file import load_study

from .simulated_studies import FOLDER, NoPredictions, score_with, simulated

CLAIMS = read_claims(FOLDER / "claims.yaml")


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


def test_a_claim_set_after_its_runs_is_told():
    record, table = simulated(
        FOLDER / "update_all.yaml", "quick", score_with(True, 1e-3, np.random.default_rng(1))
    )

    class Computed(NoPredictions):
        def __init__(self, year):
            self.year = year

        def computed(self, key):
            """One of the runs was judged by an earlier study, perhaps."""
            year = self.year if key == one else 2100
            return self.year and datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)

    one = table.set_index("run_id")["key"][study_verdicts(record, table, NoPredictions())[0].runs[0]]
    for year, words in ((2099, ", before its runs"), (2020, ", after the first of its runs"), (None, "")):
        verdict = study_verdicts(record, table, Computed(year))[0]
        assert describe(verdict).count(f"set on {verdict.since[:10]}{words}") == 1
        assert (verdict.before_runs is None) == (year is None)


def test_what_an_arm_tried_and_did_not_choose_was_seen_too():
    """A claim that is set after it was not set before its runs, though the chosen ones came later."""
    record, table = simulated(
        FOLDER / "scratch.yaml", "quick", score_with(True, 1e-3, np.random.default_rng(1))
    )
    used = set(study_verdicts(record, table, NoPredictions())[0].runs)
    assert record.tuned
    unused = set(table[~table["run_id"].isin(used)]["key"])
    assert unused

    class Computed(NoPredictions):
        def computed(self, key):
            return datetime.datetime(2020 if key in unused else 2100, 1, 1, tzinfo=datetime.UTC)

    assert ", after the first of its runs" in describe(study_verdicts(record, table, Computed())[0])


def test_seeds_that_were_added_after_a_first_look_are_told(tmp_path):
    """And settings that were changed; the claim itself stays as it was set."""
    (tmp_path / "claims.yaml").write_text((FOLDER / "claims.yaml").read_text())
    text = (FOLDER / "update_all.yaml").read_text()

    def entered_with(old, new):
        path = tmp_path / "update_all.yaml"
        path.write_text(text.replace(old, new))
        assert (old == new) == (path.read_text() == text)
        return enter_claims(load_study(path), tmp_path / "mlruns")["update-all"]

    first = entered_with("", "")
    assert (
        entered_with("seeds: [0, 1, 2]", "seeds: [2, 1, 0]")["trials"] == first["trials"]
    )  # the same trials
    more = entered_with("seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]")
    assert (more["digest"], more["since"]) == (first["digest"], first["since"])
    assert [was["digest"] for was in more["trials"]["earlier"]] == [first["trials"]["digest"]]

    record, table = simulated(FOLDER / "update_all.yaml", "quick", lambda trial: 0.5 + 0.01 * trial.seed)

    class Computed(NoPredictions):
        def computed(self, key):
            return datetime.datetime(2020, 6, 1, tzinfo=datetime.UTC)

    since = {"since": "2020-01-01T00:00:00+00:00"}
    for trials, words in (
        (more["trials"], "; its trials (settings or seeds) were changed on 20"),
        (first["trials"], ""),
        (None, ""),  # of a study that was run before they were kept
    ):
        entry = record.entered["update-all"] | since | {"trials": trials}
        if trials is None:
            del entry["trials"]
        known = dataclasses.replace(record, entered={"update-all": entry})
        said = describe(study_verdicts(known, table, Computed())[0])
        assert "set on 2020-01-01, before its runs" in said
        assert ("its trials" in said) == bool(words)
        assert words in said


def test_trials_that_an_older_study_did_not_keep_have_no_date():
    claim = {"hours-full": CLAIMS["hours-full"]}
    old = enter(claim, [], {}, [1])
    del old["hours-full"]["trials"]
    again = enter(claim, [], old, [1])
    assert again["hours-full"]["trials"]["since"] is None
    changed = enter(claim, [], again, [1, 2])["hours-full"]["trials"]
    assert changed["since"] is not None
    assert changed["earlier"]


def test_another_metric_or_regime_is_another_test(tmp_path):
    """Though the claim's words are the same."""

    def digest_with(text, folder):
        (tmp_path / "claims.yaml").write_text((FOLDER / "claims.yaml").read_text())
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"{{question: '?', vary: {{model.num_heads: [1, 4]}}, claims: [heads-paper], {text}}}"
        )
        return enter_claims(load_study(path), tmp_path / folder)["heads-paper"]

    plain = digest_with("regimes: {all: {}}, metric: mAP", "mlruns")
    assert digest_with("regimes: {all: {}}, metric: mAP", "mlruns") == plain
    for text in (
        "regimes: {all: {}}, metric: macro_auc",
        "regimes: {all: {model.dropout: 0.3}}, metric: mAP",
    ):
        assert digest_with(text, "mlruns")["digest"] != plain["digest"]
    assert digest_with("regimes: {all: {}}, metric: mAP", "mlruns")["earlier"]


def test_the_claims_of_all_studies_are_set_before_the_first_one_runs(tmp_path, monkeypatch):
    found = []

    def run(study, path, places, options, console):
        found.append(sorted(claims.parent.name for claims in tmp_path.glob("studies/*/claims.json")))
        return 0

    monkeypatch.setattr(study_command, "_run", run)
    files = [str(FOLDER / f"{name}.yaml") for name in ("heads", "depth")]
    assert study_command.main([*files, "--preset", "smoke", "--root", str(tmp_path)]) == 0
    assert found == [["depth-smoke", "heads-smoke"]] * 2


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
    record, table = simulated(FOLDER / "update_all.yaml", "quick", score_with(True, 1e-3, generator))
    monkeypatch.setattr(command, "studies", lambda root: [record])
    monkeypatch.setattr(findings, "trial_table", lambda record, root: table)
    monkeypatch.setattr(findings, "Predictions", lambda stages, metric: NoPredictions())
    assert claims_command.main(["--root", str(tmp_path), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "update-all (4): SUPPORTED" in printed
    assert "preset quick" in printed
    written = pd.read_csv(tmp_path / "claims.csv")
    assert written["verdict"].tolist() == ["supported"] * 2
    digest = record.entered["update-all"]["digest"]
    assert written["digest"].unique().tolist() == [digest]
    assert f"its hash is {digest[:12]}" in printed
    (link,) = written["link"].unique()
    assert json.loads(parse_qs(link.partition("?")[2])["runs"][0]) == written["runs"][0].split()
    assert f" runs: {link}\n" in printed


def test_nothing_to_judge_is_said(tmp_path, capsys):
    assert claims_command.main(["--root", str(tmp_path)]) == 2
    assert "run one first" in capsys.readouterr().err
    assert claims_command.main(["heads", "--root", str(tmp_path)]) == 2
    assert "no study heads" in capsys.readouterr().err


def test_a_claim_that_another_version_kept_is_left_out_with_a_line(tmp_path, monkeypatch, capsys):
    record, table = simulated(FOLDER / "pretrain_data.yaml", "quick", lambda trial: 0.5 + 0.01 * trial.seed)
    entry = record.entered["hours-full"]
    entered = record.entered | {"hours-full": entry | {"claim": entry["claim"] | {"mood": "sure"}}}
    monkeypatch.setattr(command, "studies", lambda root: [dataclasses.replace(record, entered=entered)])
    monkeypatch.setattr(findings, "trial_table", lambda record, root: table)
    monkeypatch.setattr(findings, "Predictions", lambda stages, metric: NoPredictions())
    assert claims_command.main(["--root", str(tmp_path), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "pretrain_data-quick: left out: claim hours-full: is kept as another version" in printed.err
    assert set(pd.read_csv(tmp_path / "claims.csv")["claim"]) == {"hours-balanced", "low-labels"}


def test_a_table_of_verdicts_has_a_row_a_part(tmp_path):
    record, table = simulated(FOLDER / "depth.yaml", "quick", lambda trial: 0.5 + 0.01 * trial.seed)
    found = verdict_table(study_verdicts(record, table, NoPredictions()), tmp_path)
    assert found.groupby("claim").size().to_dict() == {
        name: len(CLAIMS[name].parts) for name in ("depth-gain", "depth-tail", "low-labels")
    }
