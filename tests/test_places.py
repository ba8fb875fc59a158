"""`places.yaml` is read as people write it, and what cannot be used is refused with the remedy."""

import pytest

from workbench.places import Places
from workbench.settings import ConfigError


@pytest.mark.parametrize(
    "line",
    [
        "optuna: postgresql+psycopg://me:secret@db/optuna",
        "optuna: postgresql+psycopg:///optuna?host=db&password=secret",
        "mlflow: https://me:secret@tracking",
    ],
)
def test_a_password_is_refused(tmp_path, line):
    (tmp_path / "places.yaml").write_text(line)
    with pytest.raises(ConfigError, match="holds a password") as caught:
        Places.read(tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("optuna: mysql+nosuchdriver://db/optuna", "must be an SQLAlchemy URL"),
        ("optuna: mysql+pymysql://db/optuna", "needs the package pymysql"),
        ("optuna: results", "must be an SQLAlchemy URL"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_at_once(tmp_path, line, words):
    (tmp_path / "places.yaml").write_text(line)
    with pytest.raises(ConfigError, match=words) as caught:
        Places.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'places.yaml'}: optuna")


def test_places_are_read_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "places.yaml").write_text("store: ~/stages\ndata: ~/audio\nmlflow: 'http://[::1:5000'\n")
    places = Places.read(tmp_path)
    assert (places.store_location, str(places.data)) == ("/home/me/stages", "/home/me/audio")
    assert places.mlflow_uri == "http://[::1:5000", "what opens it will say what is wrong"


def test_folders_are_meant_from_the_results_folder_wherever_the_command_is_typed(tmp_path, monkeypatch):
    root = tmp_path / "mlruns"
    root.mkdir()
    (root / "places.yaml").write_text("store: ../stages\ndata: audio\n")
    found = set()
    for where in (tmp_path, root):
        monkeypatch.chdir(where)
        places = Places.read(root)
        found.add((places.store().root.resolve(), places.data.resolve()))
    assert found == {((tmp_path / "stages").resolve(), (root / "audio").resolve())}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: s3://bucket/audio", "data: must be a folder"),
        ("mlflow: postgresql://db/mlflow", "mlflow: must be a tracking server's address"),
        ("shop: stages", "shop: unknown key; valid: store, data, optuna, mlflow"),
        ("- store", "must hold a mapping of settings"),
    ],
)
def test_what_is_no_place_is_refused(tmp_path, content, words):
    (tmp_path / "places.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        Places.read(tmp_path)
    assert str(tmp_path / "places.yaml") in str(error.value)
    assert words in str(error.value)
