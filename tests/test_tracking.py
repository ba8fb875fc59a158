"""What is kept in MLflow."""

import errno
import io
import shutil
import types

import pytest
from rich.console import Console

from workbench.places import Places
from workbench.study import run, tracking
from workbench.study.books import Books
from workbench.study.interruption import StudyStopped
from workbench.study.plan import work_of

from .books import mlflow_runs


def test_a_database_that_a_kill_left_half_made_is_made_anew(tmp_path, monkeypatch):
    class Client:
        """Writes a database in two parts, as MLflow does."""

        kill = True

        def __init__(self, uri):
            self.path = tmp_path / uri.rsplit("/", 1)[-1]

        def search_experiments(self, max_results):
            assert not self.path.exists(), "MLflow cannot go on with a part of it"
            self.path.write_text("half")
            if self.kill:
                raise KeyboardInterrupt
            self.path.write_text("whole")

    monkeypatch.setattr(tracking, "MlflowClient", Client)
    database = tmp_path / "mlflow.db"
    with pytest.raises(KeyboardInterrupt):
        tracking._create_database(f"sqlite:///{database}")
    assert not database.exists()

    Client.kill = False
    tracking._create_database(f"sqlite:///{database}")
    assert database.read_text() == "whole"
    tracking._create_database(f"sqlite:///{database}")  # there is one: it stays
    tracking._create_database("http://127.0.0.1:5000")  # a server has its own
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_results_that_were_moved_attach_nothing_where_they_were(tmp_path, study):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    kept = tracking.Tracking(study, Places.read(before))
    table = before / "table.csv"
    table.write_text("a\n1\n")
    kept.attach(table)
    kept.finish("FINISHED")
    assert list((before / "artifacts").rglob("table.csv"))
    shutil.move(before, after)
    again = tracking.Tracking(study, Places.read(after))
    with pytest.raises(tracking.Elsewhere, match="lie elsewhere now"):
        again.attach(after / "table.csv")
    assert not before.exists()


def test_a_disk_that_fills_up_at_the_very_end_leaves_no_run_that_seems_to_go_on(root, study, monkeypatch):
    def fill_up(books):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "_run_trials", lambda *arguments: False)
    monkeypatch.setattr(Books, "close", fill_up)
    model = types.SimpleNamespace(seconds=work_of, device=types.SimpleNamespace(concurrency=1))
    plan = types.SimpleNamespace(model=model)
    quiet = Console(file=io.StringIO())
    with pytest.raises(StudyStopped, match="No space left on device"):
        run.run_study(study, Places.read(root), plan, command="", to_go_on="", console=quiet)
    assert [parent.info.status for parent in mlflow_runs(root, study.name)[0]] == ["KILLED"]
