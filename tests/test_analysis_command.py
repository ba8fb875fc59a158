"""What goes wrong around an analysis ends in a message, and in no traceback."""

import dataclasses
import json
import shutil

import pytest

from analysis import plot_ablation, report
from analysis.stored import DamagedStage, StoredStages
from workbench.places import Places
from workbench.study.record import studies

from .simulated_studies import a_record


@pytest.fixture
def recorded(tmp_path):
    """A results folder with a study of which nothing else is there."""
    folder = tmp_path / "studies" / "mine-quick"
    folder.mkdir(parents=True)
    content = dataclasses.asdict(a_record())
    del content["folder"]
    (folder / "study.json").write_text(json.dumps(content))
    return tmp_path


def test_a_server_that_is_gone_is_told(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (recorded / "places.yaml").write_text("mlflow: http://127.0.0.1:9\n")
    for command in (report, plot_ablation):
        assert command.main(["--root", str(recorded), "--output", str(tmp_path / "figures")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("what is kept of the studies could not be read: ")
        assert "127.0.0.1" in told


def test_a_database_that_is_none_is_told(recorded, tmp_path, capsys):
    (recorded / "mlflow.db").write_bytes(b"no database at all" * 100)
    assert report.main(["--root", str(recorded), "--output", str(tmp_path / "figures")]) == 2
    assert "could not be read: " in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(recorded, tmp_path, capsys):
    (tmp_path / "figures").write_text("")
    assert report.main(["--root", str(recorded), "--output", str(tmp_path / "figures")]) == 2
    assert "--output must be a folder" in capsys.readouterr().err


def test_predictions_that_are_gone_are_named(finished, tmp_path):
    root = tmp_path / "mlruns"
    shutil.copytree(finished[0], root, symlinks=True)
    stages = StoredStages(Places.read(root).store())
    path = next((root / "store" / "evaluate").glob("*/predictions.safetensors"))
    path.write_bytes(b"no tensors")
    with pytest.raises(DamagedStage, match=r"cannot be read .*; delete its folder"):
        stages.predictions(path.parent.name)
    path.unlink()
    with pytest.raises(DamagedStage, match="is missing; delete its folder"):
        stages.predictions(path.parent.name)


def test_results_that_were_moved_get_their_page_and_are_told_that_mlflow_has_none(finished, tmp_path, capsys):
    root = tmp_path / "mlruns"
    shutil.copytree(finished[0], root, symlinks=True)
    artifacts = sorted((finished[0] / "artifacts").rglob("*.html"))
    assert report.main(["--root", str(root), "--output", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures" / "report.html").exists()
    name = studies(root)[0].name
    assert f"MLflow keeps files of {name} in file://{finished[0]}" in capsys.readouterr().err
    assert sorted((finished[0] / "artifacts").rglob("*.html")) == artifacts
