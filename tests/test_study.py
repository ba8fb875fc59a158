"""Whole studies, through the command line: they run, go on after a kill, and say what failed."""

import contextlib
import json
import os
import re
import shutil
import subprocess

import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis import plot_ablation
from workbench.places import Places
from workbench.study.__main__ import main
from workbench.study.record import studies
from workbench.study.results import trial_table

from .books import (
    assert_each_ended_once,
    assert_each_stage_built_once,
    is_loopback,
    listening,
    mlflow_runs,
    optuna_trials,
    trials_of,
    wait_for,
    workers_of,
)
from .small_datasets import write_esc50

SMOKE = "studies/smoke.yaml"


def test_a_study_runs_to_a_table_and_every_trial_is_in_optuna_and_mlflow(finished):
    root, printed = finished
    assert_each_ended_once(root, 8)
    assert "0 of 8 trials failed" in printed
    assert len(re.findall(r"0\.\d{3} ± 0\.\d{3} \(2\)", printed)) == 4  # 2 levels x 2 regimes
    _, children = mlflow_runs(root)
    for child in children:
        assert 0 < child.data.metrics["test/mAP"] <= 1
        assert {"model.num_heads", "finetuning.optimiser.peak_lr", "regime", "seed"} <= set(child.data.params)
        assert "training/pretrain/contrastive_accuracy" in child.data.metrics
        assert re.fullmatch("[0-9a-f]{64}", child.data.tags["workbench.data"])
        assert child.info.end_time - child.info.start_time > 100  # the trial's own times, in ms
    client = MlflowClient(Places.read(root).mlflow_uri)
    curve = client.get_metric_history(children[0].info.run_id, "training/pretrain/loss")
    assert [m.step for m in curve] == list(range(1, 31))


def test_each_pretraining_is_run_once(finished):
    root, _ = finished
    assert len(list((root / "store" / "pretrain").iterdir())) == 4  # 2 levels x 2 seeds, not x 2 regimes
    assert len(list((root / "store" / "finetune").iterdir())) == 8
    assert_each_stage_built_once(root)


def test_the_same_command_again_repeats_nothing(finished, run):
    root, printed = finished
    before = {p: p.stat().st_mtime_ns for p in (root / "store").rglob("*.safetensors")}
    again = run(root)
    assert again.returncode == 0, again.stderr
    assert "trials to run" not in again.stdout
    assert printed[printed.index("mean ±") :] == again.stdout[again.stdout.index("mean ±") :]
    assert before == {p: p.stat().st_mtime_ns for p in (root / "store").rglob("*.safetensors")}
    assert_each_ended_once(root, 8)


def test_what_another_folder_has_computed_is_found_without_measuring_or_making_audio(
    finished, run, tmp_path, empty_database
):
    shutil.copy(empty_database, tmp_path)
    (tmp_path / "places.yaml").write_text(f"store: {finished[0] / 'store'}\n")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kinds of update" not in done.stdout
    assert not (tmp_path / "data").exists()
    assert_each_ended_once(tmp_path, 8)
    ours, theirs = (trial_table(record, root) for root in (tmp_path, finished[0]) for record in studies(root))
    assert set(ours["key"]) == set(theirs["key"])


def test_the_figure_and_its_tables(finished, tmp_path):
    root, _ = finished
    assert plot_ablation.main(["--root", str(root), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "smoke-smoke.png").stat().st_size > 10_000
    assert (tmp_path / "smoke-smoke.pdf").read_bytes().startswith(b"%PDF")
    trials = pd.read_csv(tmp_path / "smoke-smoke.csv")
    levels = pd.read_csv(tmp_path / "smoke-smoke-levels.csv")
    expected = trials.groupby(["regime", "model.num_heads"])["test/mAP"].mean()
    shown = levels.set_index(["regime", "model.num_heads"])["mean"]
    pd.testing.assert_series_equal(expected.sort_index(), shown.sort_index(), check_names=False)
    assert (levels.n == 2).all()
    assert ((levels.low < levels["mean"]) & (levels["mean"] < levels.high)).all()


def test_an_unknown_study_is_named(finished, tmp_path, capsys):
    root, _ = finished
    assert plot_ablation.main(["depth", "--root", str(root), "--output", str(tmp_path)]) == 2
    assert "smoke-smoke" in capsys.readouterr().err


@pytest.mark.slow  # .ci/run runs it
def test_a_study_listens_to_loopback_alone_and_runs_in_one_process_only(root, command, run, project):
    with subprocess.Popen(command(root), cwd=project, stdout=subprocess.PIPE, text=True) as driver:
        for line in driver.stdout:
            if "trials to run" in line:
                break
        wait_for(lambda: workers_of(driver.pid))
        addresses = listening(driver.pid)
        assert addresses
        assert all(is_loopback(address.ip) for address in addresses), addresses
        second = run(root)
        assert second.returncode == 2
        assert "another process" in second.stderr
        driver.communicate(timeout=120)
    assert driver.returncode == 0


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


DIVERGING = """
question: Does one arm's failure leave the other alone?
preset: smoke
settings: {finetuning.optimiser.max_grad_norm: null}
vary: {finetuning.optimiser.peak_lr: [2e-3, 1e20]}
seeds: [0]
"""


@pytest.mark.slow  # .ci/run runs it
def test_a_trial_that_fails_by_its_own_fault_is_recorded_and_not_tried_again(root, run, write):
    study = write(DIVERGING)
    done = run(root, study)
    assert done.returncode == 1
    assert "1 of 2 trials failed" in done.stdout
    assert "no longer finite" in done.stdout
    trials = optuna_trials(root)
    assert sorted(t.state.name for t in trials) == ["COMPLETE", "FAIL"]
    _, children = mlflow_runs(root, "mine")
    assert sorted(c.info.status for c in children) == ["FAILED", "FINISHED"]
    assert any("no longer finite" in c.data.tags.get("workbench.reason", "") for c in children)
    again = run(root, study)
    assert again.returncode == 1
    assert "trials to run" not in again.stdout
    retried = run(root, study, "--retry-failed")
    assert retried.returncode == 1
    assert "1 of 2 trials to run" in retried.stdout
    assert sorted(t.state.name for t in optuna_trials(root)) == [
        "COMPLETE",
        "FAIL",
        "FAIL",
    ]


SEARCH = """
question: Which learning rate, and which batch size?
preset: smoke
regimes: [full]
search:
  num_trials: 5
  sampler: tpe
  pruner: median
  space:
    finetuning.optimiser.peak_lr: {kind: uniform, low: 1e-5, high: 1e-2, log: true}
    finetuning.batch_size: {kind: choice, values: [8, 16]}
  confirm_seeds: [1, 2]
"""


def confirmations(root):
    """{the number of a search's winner: the table of what runs it again}"""
    search, *others = studies(root)
    assert all(record.confirms == search.id for record in others)
    winners = [json.loads((record.folder / "study.json").read_text())["winner"] for record in others]
    return {
        winner["number"]: trial_table(record, root) for winner, record in zip(winners, others, strict=True)
    }


def winner_of(trials):
    return max((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: t.value)


@pytest.mark.slow  # .ci/run runs it
def test_a_search_goes_on_and_its_winner_is_run_again_on_fresh_seeds(root, run, write, tmp_path, capsys):
    done = run(root, write(SEARCH))
    assert done.returncode == 0, done.stdout + done.stderr
    trials = optuna_trials(root)
    assert len(trials) == 5
    assert {t.state.name for t in trials} <= {
        "COMPLETE",
        "PRUNED",
    }  # the pruner itself: test_search_ledger.py
    assert all(set(t.params) == {"finetuning.optimiser.peak_lr", "finetuning.batch_size"} for t in trials)

    assert "the winner is run again on seeds 1, 2" in done.stdout
    ((number, table),) = confirmations(root).items()
    assert number == winner_of(trials).number
    levels = [("default", 1), ("default", 2), ("found", 1), ("found", 2)]
    assert sorted(zip(table.settings, table.seed, strict=True)) == levels
    params = {run.info.run_id: run.data.params for run in mlflow_runs(root, "mine_confirmed")[1]}
    rates = table.run_id.map(lambda run: float(params[run]["finetuning.optimiser.peak_lr"]))
    found = trials[number].params["finetuning.optimiser.peak_lr"]
    assert set(zip(table.settings, rates, strict=True)) == {("default", 2e-3), ("found", found)}

    longer = write(SEARCH.replace("num_trials: 5", "num_trials: 6"))
    more = run(root, longer)
    assert "1 of 6 trials to run" in more.stdout
    assert [t.params for t in optuna_trials(root)][:5] == [t.params for t in trials]
    assert set(confirmations(root)) == {number, winner_of(optuna_trials(root)).number}
    assert main([str(longer), "--root", str(root)]) == 0
    again = capsys.readouterr().out
    assert "trials to run" not in again
    assert more.stdout[more.stdout.index("mean ±") :] == again[again.index("mean ±") :]
    assert plot_ablation.main(["--root", str(root), "--output", str(tmp_path / "figures")]) == 0
    assert len(list((tmp_path / "figures").glob("mine_confirmed-*.png"))) == len(confirmations(root))


def test_a_dry_run_prints_every_trial_and_trains_nothing(root, run):
    before = sorted(root.iterdir())
    done = run(root, SMOKE, "--dry-run")
    assert done.returncode == 0
    assert len(re.findall(r"0\.08 M parameters", done.stdout)) == 8
    assert "to run: 4 pre-trainings, 8 fine-tunings, 8 evaluations; found: 0 stages" in done.stdout
    assert sorted(root.iterdir()) == before


def test_a_dry_run_shows_what_is_found(finished, run):
    done = run(finished[0], SMOKE, "--dry-run")
    assert "to run: 0 pre-trainings, 0 fine-tunings, 0 evaluations; found: 20 stages" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("studies/none.yaml",), "studies/heads.yaml"),
        ((SMOKE, "--preset", "huge"), "quick"),
        ((SMOKE, "--set", "model.kernel=4"), "must be odd"),
        (
            (
                SMOKE,
                "--set",
                "data={kind: esc50, root: /nowhere}",
                "--set",
                "finetuning.pooling=mean",
            ),
            "/nowhere",
        ),
    ],
)
def test_wrong_commands_end_in_one_message(root, capsys, arguments, words):
    assert main([*arguments, "--root", str(root)]) == 2
    assert words in capsys.readouterr().err


ESC = """
question: Do workers find recordings by a relative path?
preset: smoke
settings:
  data: {{kind: esc50, root: {folder}, clip_seconds: 1.0}}
  finetuning.pooling: mean
regimes: {{all: {{}}}}
folds: [1, 2]
metric: accuracy
"""


@pytest.mark.slow  # .ci/run runs it
def test_a_study_on_recordings_by_a_relative_path(root, run, write, tmp_path, project):
    write_esc50(tmp_path / "recordings")
    folder = os.path.relpath(tmp_path / "recordings", project)
    done = run(root, write(ESC.format(folder=folder)))
    assert done.returncode == 0, done.stdout + done.stderr
    table = trials_of(root)
    assert table.fold.tolist() == [1, 2]
    assert table["test/accuracy"].between(0, 1).all()


@pytest.mark.slow
def test_results_that_were_deleted_are_made_again(root, run, write):
    study = write(DIVERGING.replace("[2e-3, 1e20]", "[1e-3, 2e-3]"))
    assert run(root, study).returncode == 0
    before = trials_of(root)
    for name in ("store", "mlflow.db"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run(root, study)
    assert again.returncode == 0, again.stderr
    assert trials_of(root)["test/mAP"].tolist() == before["test/mAP"].tolist()


@pytest.mark.slow
def test_levels_that_are_mappings_have_a_table_and_a_figure(root, run, write, tmp_path):
    study = write(
        "question: Which schedule?\npreset: smoke\n"
        "vary: {finetuning.schedule: [{kind: cosine}, {kind: step, factor: 0.5}]}\n"
        "tune: {finetuning.optimiser.peak_lr: [1e-3, 2e-3]}\n"
    )
    done = run(root, study)
    assert done.returncode == 0, done.stderr
    assert "each at its best finetuning.optimiser.peak_lr by validation/mAP" in done.stdout
    assert "cosine" in done.stdout
    assert "{factor: 0.5, kind: step}" in done.stdout
    assert plot_ablation.main(["--root", str(root), "--output", str(tmp_path / "figures")]) == 0


@pytest.mark.slow
def test_on_a_terminal_the_lines_are_drawn_in_place(root, command, project):
    """A line for each running trial and one for the study; what has ended scrolls above."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        command(root), cwd=project, stdout=follower, stderr=follower, env=os.environ | {"TERM": "xterm"}
    )
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the study has ended
        while chunk := os.read(leader, 65536):
            seen += chunk
    os.close(leader)
    assert process.wait(60) == 0
    assert b"\x1b[2K" in seen, "lines are erased and drawn again"
    assert b"running     0" in seen
    assert b"of 8 done, 2 running, 0 failed" in seen
    assert seen.count(b"complete    ") >= 8
    assert b"Traceback" not in seen


HALF = """
question: Does a study wait for what another one is at?
preset: smoke
settings: {{pretraining.steps: 300}}
regimes: [{regime}]
seeds: [0, 1]
"""


@pytest.mark.slow
def test_two_studies_at_once_share_what_they_pretrain(root, command, project, tmp_path):
    """The second finds the pre-trainings that the first is at, and is given their results."""
    drivers = []
    for regime in ("full", "balanced"):
        path = tmp_path / f"{regime}.yaml"
        path.write_text(HALF.format(regime=regime))
        drivers.append(
            subprocess.Popen(
                command(root, path), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    for driver in drivers:
        printed, _ = driver.communicate(timeout=200)
        assert driver.returncode == 0, printed.decode()
        assert b"0 of 2 trials failed" in printed
    assert len(list((root / "store" / "pretrain").iterdir())) == 2
    assert len(list((root / "store" / "finetune").iterdir())) == 4
    assert_each_stage_built_once(root)
    for name in ("full", "balanced"):
        assert [run.info.status for run in mlflow_runs(root, name)[1]] == ["FINISHED"] * 2
