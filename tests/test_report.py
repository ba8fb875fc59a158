"""The page: complete, self-contained, and true to the tables behind it."""

import dataclasses
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from scipy import stats

from analysis import report
from analysis.findings import Findings
from analysis.report import render
from analysis.report_figures import budget_table, late_gain
from analysis.report_labels import label_parts
from analysis.report_tables import TABLE_1, write_tables
from analysis.stored import StoredStages
from analysis.verdicts import study_verdicts
from workbench.code_version import code_commit
from workbench.places import Places
from workbench.settings import to_dict
from workbench.store import Store
from workbench.study.record import studies
from workbench.study.results import best_tuned, trial_table
from workbench.study.study_file import load_study
from workbench.study.trial_storage import importances, open_storage

from .simulated_studies import FOLDER, NoPredictions, a_record, score_with, simulated


class _Page(HTMLParser):
    """What a page refers to, and its ids; refuses tags that are not closed."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.open = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
        assert tag != "script"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


POOL = "fedcba9876543210"


def _findings(name, preset, score, change=lambda table: table):
    record, table = simulated(FOLDER / f"{name}.yaml", preset, score)
    table = change(table)
    table["pool"] = POOL
    table["data"], table["parameters"], table["seconds"] = "0123456789abcdef", 4e5, 60.0
    return Findings(record, table, study_verdicts(record, table, NoPredictions()), NoPredictions())


@pytest.fixture
def page_of(tmp_path):
    """`page_of(name, score)`: the page of a simulated study, and that study; `change` is of its table."""

    def page_of(name, score, change=lambda table: table):
        study = _findings(name, "quick", score, change)
        stages = StoredStages(Store(tmp_path / "store"))
        return render([study], tmp_path, stages, "python analysis/report.py"), study

    return page_of


def _better_with_labels(generator):
    def score(trial):
        gain = 0.2 * (trial.config.pretraining is not None)
        rate = trial.config.finetuning.optimiser.peak_lr
        noise = generator.normal(0, 0.005)
        return 0.6 + 0.1 * np.log2(trial.config.data.label_fraction) + gain - 10 * rate + noise

    return score


def test_a_page_needs_nothing_beside_it(page_of):
    text, _ = page_of("label_fraction", _better_with_labels(np.random.default_rng(0)))
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids))
    runs = [r for r in page.references if r.startswith("http://127.0.0.1:5000/#/compare-runs?")]
    inside = {reference.removeprefix("#") for reference in page.references if reference not in runs}
    assert len(runs) == 1
    assert inside <= set(page.ids)
    assert not re.search(r"url\((?!#)", text)


def test_a_page_says_what_was_found_at_which_scale_and_how_to_run_it_again(page_of):
    text, study = page_of("label_fraction", _better_with_labels(np.random.default_rng(0)))
    verdict = study.verdicts[0]
    assert f"✓ {verdict.ruling}" in text
    assert f"its hash is {study.record.entered[verdict.claim_id]['digest'][:12]}" in text
    assert "preset quick, data corpus, 0.40 M parameters, 30 to 480 labelled clips" in text
    assert "do\nnot stand for them" in text
    # The paper's numbers, marked as such.
    assert "paper's Table 1" in text
    for value in TABLE_1["pretrained"]:
        assert f'<td class="number">{value:.3f}</td>' in text
    # Each arm's mean of what was chosen on validation data.
    shown = best_tuned(study.record, study.done)
    for _, trials in shown.groupby(["regime", "data.label_fraction"]):
        assert f'<td class="number">{trials["test/mAP"].mean():.3f}</td>' in text
    assert set(shown["finetuning.optimiser.peak_lr"]) == {study.table["finetuning.optimiser.peak_lr"].min()}


def test_a_half_run_study_is_named_as_such(page_of):
    def cut(table):
        table.loc[table.index[:2], "state"] = "failed"
        return table[table["model.num_blocks"] < 5]

    score = score_with(False, 0.01, np.random.default_rng(0))
    whole, _ = page_of("depth", score)
    assert "24 of 24 trials finished." in whole
    assert "Half-run" not in whole
    text, study = page_of("depth", score, cut)
    words = f"{len(study.done)} of 24 trials finished, {len(study.table) - len(study.done)} failed"
    assert len(study.done) < len(study.table) < 24
    assert f"<b>Half-run: {words}.</b>" in text  # by the study
    assert f"Half-run: depth-quick: {words}." in text  # in the caption of Figure 2


def test_verdicts_are_kept_apart_by_preset_and_data_and_smoke_tests_come_last(tmp_path):
    score = score_with(False, 0.01, np.random.default_rng(0))
    places = [("heads", "smoke"), ("heads", "quick"), ("esc10_heads", "quick")]
    found = [_findings(name, preset, score) for name, preset in places]
    text = render(found, tmp_path, StoredStages(Store(tmp_path / "store")), "")
    heading, row = r"<h3>([^<]*), 0.40 M[^<]*</h3>", r'<a href="#([^"]*)">\1</a>'
    order = [match[1] or match[2] for match in re.finditer(f"{heading}|{row.replace('1', '2')}", text)]
    assert list(dict.fromkeys(order)) == [
        "preset quick, data corpus",
        "heads-quick",
        "preset quick, data esc50 esc10",
        "esc10_heads-quick",
        "preset smoke, data corpus",
        "heads-smoke",
    ]
    assert "so small that figures mean nothing" in text
    assert len(re.findall("At preset quick, data [^,]*, 0.40 M parameters", text)) == sum(
        len(s.verdicts) for s in found[1:]
    )


def test_a_label_study_without_its_reference_gives_no_reduction(page_of):
    def lacking(table):
        return table[(table["regime"] != "scratch") | (table["data.label_fraction"] < 1)]

    text, _ = page_of("label_fraction", _better_with_labels(np.random.default_rng(0)), lacking)
    assert "scratch has no finished trial with 1 of the labels, the reference of the reduction" in text
    assert "% fewer (95 % interval" not in text


def test_text_from_files_is_escaped(page_of, tmp_path):
    text, study = page_of("heads", lambda trial: 0.5 + 0.01 * trial.seed)
    assert "<script" not in text
    object.__setattr__(study.record, "question", "<script>alert(1)</script>")
    stages = StoredStages(Store(tmp_path / "store"))
    assert "<script" not in render([study], tmp_path, stages, "&")


def test_the_fingerprints_of_data_and_pool_are_shown(page_of, tmp_path):
    text, study = page_of("label_fraction", _better_with_labels(np.random.default_rng(0)))
    assert "<td><code>0123456789ab</code></td><td><code>fedcba987654</code></td>" in text
    write_tables([study], tmp_path, tmp_path)
    levels = pd.read_csv(tmp_path / "report-levels.csv", dtype=str)
    assert set(levels["data"]) == {"0123456789ab"}
    assert set(levels["pool"]) == {"fedcba987654"}


def test_tables_are_written_for_paper_and_spreadsheet(page_of, tmp_path):
    _, study = page_of("label_fraction", _better_with_labels(np.random.default_rng(0)))
    paths = {path.name: path.read_text() for path in write_tables([study], tmp_path, tmp_path)}
    assert set(paths) == {
        f"report-{name}.{ending}" for name in ("verdicts", "levels", "table1") for ending in ("csv", "tex")
    }
    assert "paper,scratch,20k,0.138" in paths["report-table1.csv"]
    verdict = study.verdicts[0]
    of_verdicts = pd.read_csv(tmp_path / "report-verdicts.csv").set_index("claim").loc[[verdict.claim_id]]
    assert set(of_verdicts["runs"]) == {" ".join(verdict.runs)}
    assert set(of_verdicts["digest"]) == {study.record.entered[verdict.claim_id]["digest"]}
    assert all(run in unquote(link) for run in verdict.runs for link in of_verdicts["link"])
    for name, text in paths.items():
        if name.endswith(".tex"):
            assert len(re.findall(r"\\begin\{", text)) == len(re.findall(r"\\end\{", text))
            assert not re.search(r"(?<!\\)[_%#]", text), name


def test_the_page_of_a_real_study_is_kept_with_it(finished, tmp_path):
    root, _ = finished
    assert report.main(["--root", str(root), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    _Page(text)
    record = studies(root)[0]
    stages = StoredStages(Places.read(root).store())
    study = Findings.read(record, root, stages)
    assert study.commits == [code_commit() or "unknown"]
    once, alone = study.stage_seconds(stages)
    assert 0 < sum(once.values()) < alone  # they share their pre-training
    one = study.table.index == 0
    failed = dataclasses.replace(study, table=study.table.assign(state=np.where(one, "failed", "complete")))
    assert failed.stage_seconds(stages)[0][study.table.run_id[0]] == study.table.seconds[0] > 0
    assert f"<code>{record.command}</code>" in text
    done = trial_table(record, root)
    assert done["data"].iloc[0][:12] in text
    assert "contrastive accuracy" in text  # the curves are found by the stages' keys
    client = MlflowClient(Places.read(root).mlflow_uri)
    experiment = client.get_experiment_by_name(record.name).experiment_id
    parent = client.search_runs([experiment], "tags.`workbench.kind` = 'study'")[0]
    assert "report.html" in [item.path for item in client.list_artifacts(parent.info.run_id)]


def test_the_same_results_give_the_same_page(finished, tmp_path):
    pages = []
    for name in ("one", "two"):
        report.main(["--root", str(finished[0]), "--output", str(tmp_path / name)])
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        pages.append(
            {path.name: path.read_bytes() for path in files if path.suffix in {".html", ".csv", ".tex"}}
        )
    assert pages[0].keys() >= {"report.html", "report-levels.csv"}
    assert pages[0] == pages[1]


def test_nothing_to_report_is_said(tmp_path, capsys):
    assert report.main(["--root", str(tmp_path)]) == 2
    assert "run a study first" in capsys.readouterr().err
    assert report.main(["heads", "--root", str(tmp_path)]) == 2
    assert "no study heads" in capsys.readouterr().err


def test_budgets_are_equal_and_shown(page_of):
    text, study = page_of(
        "scratch", lambda t: 0.5 + 50 * t.config.finetuning.optimiser.peak_lr + 0.01 * t.seed
    )
    table = budget_table(study.record, study.done)
    assert table["tried"].tolist() == [2] * 4
    assert table["chosen"].tolist() == ["0.008 (largest tried)"] * 4
    first = table["expected"].iloc[0]
    assert first == pytest.approx([0.01 + 0.5 + 50 * 6e-3, 0.01 + 0.5 + 50 * 8e-3])
    assert "as it tries more settings" in text


def test_an_arm_that_still_learns_is_seen():
    steps = np.arange(10, 101, 10)
    rows = [
        {
            "arm": arm,
            "seed": 0,
            "fold": None,
            "stage": "finetune",
            "step": step,
            "metric": "m",
            "value": value,
        }
        for arm, curve in (("still", steps / 100), ("done", np.minimum(steps / 50, 1.0)))
        for step, value in zip(steps, curve, strict=True)
    ]
    found = late_gain(pd.DataFrame(rows))
    gains = found.set_index("arm")["gain"]
    assert gains["still"] == pytest.approx(0.3)
    assert gains["done"] == 0.0
    assert found[["since", "updates"]].to_numpy().tolist() == [[70, 100]] * 2


def test_twice_the_updates_stand_beside_the_label_reduction(tmp_path):
    labels = _findings("label_fraction", "quick", _better_with_labels(np.random.default_rng(0)))
    longer = _findings(
        "convergence",
        "quick",
        lambda t: (
            0.5
            + 0.02 * np.log2(t.config.finetuning.steps / 900)
            + 0.001 * t.seed * t.config.finetuning.steps / 900
        ),
    )
    stages = StoredStages(Store(tmp_path / "store"))
    text = render([labels, longer], tmp_path, stages, "")
    line = "1,800 updates in place of 900 for training from scratch (480 labels, convergence-quick)"
    half = stats.t.ppf(0.975, 2) * 0.001 / np.sqrt(3)
    assert f"{line}: +0.021 (95 % interval {0.021 - half:+.3f} to {0.021 + half:+.3f}, n = 3" in text
    assert "was not measured here" not in text
    assert "was not measured here" in render([labels], tmp_path, stages, "")


@pytest.mark.parametrize(
    "other",
    [{"pooling": "mean"}, {"batch_size": 8}, {"optimiser": {"peak_lr": 1e-3}}],  # that rate is not tried
)
def test_updates_of_a_baseline_that_is_trained_otherwise_do_not_stand_beside(other):
    labels = _findings("label_fraction", "quick", _better_with_labels(np.random.default_rng(0)))
    longer = _findings("convergence", "quick", lambda t: 0.5 + 0.01 * t.seed)
    assert label_parts([labels, longer])[0]["longer"]
    base = longer.record.base | {"finetuning": longer.record.base["finetuning"] | other}
    changed = dataclasses.replace(longer, record=dataclasses.replace(longer.record, base=base))
    assert not label_parts([labels, changed])[0]["longer"]


# A search


@pytest.fixture
def searched(tmp_path):
    """A search, in Optuna's storage too, of twelve trials, of which two were given up; and their points."""
    study = load_study(FOLDER / "search.yaml", preset="quick")
    rows, points, storage = [], [], open_storage(Places.read(tmp_path).optuna_url)
    known = optuna.create_study(storage=storage, study_name=study.id, direction="maximize")
    generator = np.random.default_rng(0)
    for number in range(12):
        point = {path: space.draw(generator) for path, space in study.search.space.items()}
        points.append(point)
        rate, state = point["finetuning.optimiser.peak_lr"], "pruned" if number < 2 else "complete"
        known.add_trial(_optuna_trial(point, state, value=20 * rate))
        rows.append(
            {
                "number": number,
                "state": state,
                "key": str(number),
                "run_id": str(number),
                "data": "0" * 16,
                "pool": "",
                "seconds": 60.0,
            }
            | {"regime": "balanced", "seed": 0, "fold": None, "validation/mAP": 20 * rate, "test/mAP": rate}
            | point
        )
    record = a_record(
        id=study.id,
        name=study.name,
        search=True,
        axes=list(study.search.space),
        regimes=["balanced"],
        base=study.base,
        space=to_dict(study.search),
        confirm_seeds=[1, 2, 3],
    )
    search = Findings(record, pd.DataFrame(rows), [], NoPredictions())
    return study, search, points


def _optuna_trial(point, state, value):
    ranges = {path: optuna.distributions.FloatDistribution(0, 100) for path in point}
    return optuna.trial.create_trial(
        params={path: float(setting) for path, setting in point.items()},
        distributions=ranges,
        value=value if state == "complete" else None,
        state=optuna.trial.TrialState[state.upper()],
    )


def _confirmed(study, point, number):
    confirmation = study.confirmation(point, number)
    rows = [
        {"number": i, "state": "complete", "key": str(i), "run_id": str(i), "data": "0" * 16, "pool": ""}
        | trial.level
        | {"regime": trial.regime, "seed": trial.seed, "fold": None, "labelled_clips": 60.0}
        | {
            f"{part}/mAP": 0.3 + 0.05 * (trial.level["settings"] == "found")
            for part in ("validation", "test")
        }
        for i, trial in enumerate(confirmation.trials())
    ]
    record = a_record(
        id=confirmation.id,
        name=confirmation.name,
        axes=["settings"],
        levels=["default", "found"],
        regimes=["balanced"],
        confirms=study.id,
        winner=to_dict(confirmation.confirms),
        base=study.base,
    )
    return Findings(record, pd.DataFrame(rows), [], NoPredictions())


def test_what_a_search_found_is_shown_and_compared_on_fresh_seeds(searched, tmp_path):
    study, search, points = searched
    finished = search.done.sort_values("validation/mAP")
    best, worst = finished.iloc[-1], finished.iloc[0]
    assert best["number"] >= 2  # though one that was given up may have looked better
    confirmations = [_confirmed(study, points[i], i) for i in (best["number"], worst["number"])]
    text = render([search, *confirmations], tmp_path, StoredStages(Store(tmp_path / "store")), "")
    _Page(text)
    assert (
        f"Trial {best['number']}, of 10 that finished, with validation mAP {best['validation/mAP']:.3f}"
        in text
    )
    rate = f"{best['finetuning.optimiser.peak_lr']:.3g}"
    assert (
        f"<tr><td>peak learning rate</td><td>{rate}</td><td>0.0005 to 0.01, by its logarithm</td></tr>"
        in text
    )
    assert f"Found, in trial {best['number']}: peak learning rate {rate}" in text
    assert text.count("balanced, settings found less default: +0.050") == 2
    # The one of what is no longer the best is marked.
    of_best, of_worst = (
        text[text.index(f'id="{one.record.id}"') :].partition("</p>")[0] for one in confirmations
    )
    assert "The search has gone on since" not in of_best
    assert f"its best is now trial {best['number']}, which this study does not confirm" in of_worst
    # What its importance is of.
    assert "n = 10 finished trials (2 given up early left no score)" in text
    assert importances(study.id, f"sqlite:///{tmp_path / 'copied.db'}") == {}
    assert not (tmp_path / "copied.db").exists(), "nothing is created to find out"
    shares = importances(study.id, Places.read(tmp_path).optuna_url)
    assert max(shares, key=shares.get) == "finetuning.optimiser.peak_lr"


def test_few_trials_of_a_search_show_no_importance(searched, tmp_path):
    study, search, points = searched
    few = study.id + "-few"
    storage = open_storage(Places.read(tmp_path).optuna_url)
    known = optuna.create_study(storage=storage, study_name=few, direction="maximize")
    for number, point in enumerate(points[:9]):
        known.add_trial(_optuna_trial(point, "complete", value=number))
    assert importances(few, Places.read(tmp_path).optuna_url) == {}
    known.add_trial(_optuna_trial(points[9], "complete", value=9.0))
    assert importances(few, Places.read(tmp_path).optuna_url)
    short = dataclasses.replace(search, table=search.table.iloc[:11])
    text = render([short], tmp_path, StoredStages(Store(tmp_path / "store")), "")
    assert "Which of its 5 settings mattered is not told by 9 finished trials" in text
    assert "by the validation scores of its" not in text
