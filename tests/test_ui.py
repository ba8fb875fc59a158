"""The MLflow UI, in a real browser: a study's trials side by side (make test-browser)."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .books import free_port

pytestmark = pytest.mark.browser
PROJECT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def ui(tmp_path, data_root):
    """A finished smoke study behind `make ui`: its address, experiment and MLflow's runs."""
    root = tmp_path / "mlruns"
    root.mkdir()
    (root / "data").symlink_to(data_root)
    command = [sys.executable, "-m", "workbench.study", "studies/smoke.yaml", "--root", str(root)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        ["make", "ui", f"MLRUNS={root}", f"PORT={port}"], cwd=PROJECT, start_new_session=True
    )
    try:
        _wait_until_up(address)
        yield address, root
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _wait_until_up(address):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the UI did not come up within 60 s")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: chromium)")
def test_child_runs_can_be_compared_by_parameter_and_metric(ui, tmp_path):
    from mlflow import MlflowClient

    from workbench.places import Places

    address, root = ui
    client = MlflowClient(Places.read(root).mlflow_uri)
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = client.search_runs([experiment], "tags.`workbench.kind` = 'trial'")
    listed = ",".join(f"%22{run.info.run_id}%22" for run in runs)
    page = f"{address}/#/compare-runs?runs=[{listed}]&experiments=[%22{experiment}%22]"
    text = _visit(page, tmp_path / "compare.png", tmp_path)
    for word in ("Comparing 8 Runs", "model.num_heads", "finetuning.optimiser.peak_lr", "test/mAP"):
        assert word in text, word
    overview = _visit(f"{address}/#/experiments/{experiment}/runs", tmp_path / "runs.png", tmp_path)
    assert "smoke-smoke" in overview, "the study's own run"
    shown = os.environ.get("WORKBENCH_SCREENSHOTS")
    if shown:
        for name in ("compare.png", "runs.png"):
            shutil.copy(tmp_path / name, shown)


def _visit(url, screenshot, folder):
    """The page's text as a browser has it after its scripts have run; a picture of it beside."""
    common = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1600,1400",
        "--virtual-time-budget=30000",
    ]
    subprocess.run([*common, f"--screenshot={screenshot}", url], check=True, capture_output=True, timeout=120)
    assert screenshot.stat().st_size > 20_000
    dump = subprocess.run(
        [*common, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=120
    )
    return dump.stdout
