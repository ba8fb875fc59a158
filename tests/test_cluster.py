"""Beyond one machine: two raylets, PostgreSQL and an MLflow server, all on loopback; one raylet is killed."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pandas as pd
import psutil
import pytest

from workbench.commands import study_command
from workbench.settings import ConfigError
from workbench.study.cluster import Cluster, Node
from workbench.study.definition import Resources
from workbench.study.device import Device

from .books import (
    assert_all_gone,
    assert_each_ended_once,
    family_of,
    figures,
    free_port,
    is_loopback,
    listening,
    optuna_trials,
    wait_for,
)

SMOKE = "studies/smoke.yaml"

# What `ray start` makes; but that refuses to add a node on loopback. The death of one is noticed in 2 s.
RAYLETS = """
import json, sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
health = {"initial_delay_ms": 1000, "period_ms": 500, "failure_threshold": 4}
config = {f"health_check_{name}": value for name, value in health.items()}
head = {**node, "include_dashboard": False, "_system_config": config}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.head_node, cluster.add_node(**node)]
pids = [node.all_processes["raylet"][0].process.pid for node in nodes]
print(json.dumps({"address": cluster.address, "raylets": pids}), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _running(command, ending=signal.SIGKILL, **options):
    """A process; ended with all that it has started, by their ids."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            family = family_of(process.pid) if process.poll() is None else []
            process.send_signal(ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            _kill(family)


def _kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert_all_gone(processes)


def _answers(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url) as response:
        return response.status == 200


@pytest.fixture(scope="module")
def folder():
    """Short, as names of sockets must be, and open to the user under which PostgreSQL runs."""
    with tempfile.TemporaryDirectory(prefix="wb-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def postgres(folder):
    """The URL of a PostgreSQL, without a database's name."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ["PATH"], *map(str, debian)])
    initdb, server = (shutil.which(name, path=path) for name in ("initdb", "postgres"))
    if not (initdb and server):
        pytest.skip("needs PostgreSQL's initdb and postgres (Debian: postgresql)")

    home, port = folder / "postgres", free_port()
    home.mkdir()
    user = {}
    if os.getuid() == 0:  # as which it refuses to run
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        known = names.get("postgres") or names["nobody"]
        user = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
        os.chown(home, known.pw_uid, known.pw_gid)
    options = {**user, "cwd": home, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    making = [initdb, "-D", "data", "-U", "workbench", "--auth=trust", "--no-sync"]
    subprocess.run([*making, "--locale=C", "--encoding=UTF8"], check=True, **options)
    serving = [server, "-D", "data", "-F", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    # Told to quit, it gives its shared memory back.
    with (home / "log").open("w") as log, _running(serving, signal.SIGQUIT, stderr=log, **options):
        wait_for(lambda: _databases_made(port))
        yield f"postgresql+psycopg://workbench@127.0.0.1:{port}"


def _databases_made(port):
    import psycopg

    url = f"postgresql://workbench@127.0.0.1:{port}/postgres"
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
        for name in ("optuna", "mlflow"):
            connection.execute(f"create database {name}")
        return True


@pytest.fixture(scope="module")
def mlflow_server(folder, postgres):
    """The URI of a tracking server on PostgreSQL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"{postgres}/mlflow"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (folder / "mlflow.log").open("w")
    with log, _running(command, env=os.environ | quick, cwd=folder, stdout=log, stderr=log):
        uri = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{uri}/health"))
        yield uri


@pytest.fixture(scope="module")
def cluster(folder):
    """Two raylets of one CPU each: address, process ids, and the environment of who joins.

    What a test leaves of a raylet, it adds to the orphans.
    """
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    joining = {"RAY_AUTH_TOKEN_PATH": str(token), "XDG_CACHE_HOME": str(folder / "cache")}
    serving = joining | {
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds 127.0.0.1 alone
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with _running(
        [sys.executable, "-c", RAYLETS],
        env=os.environ | serving,
        cwd=folder,  # a worker must find the project by itself
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        found = json.loads(next(line for line in process.stdout if line.startswith("{")))
        orphans = []
        yield found | {"environment": joining, "orphans": orphans}
        _kill(orphans)


@pytest.fixture
def joining(cluster, monkeypatch):
    """What a driver joins with; its address."""
    for name, value in cluster["environment"].items():
        monkeypatch.setenv(name, value)
    return cluster["address"]


@pytest.fixture
def root(root, postgres, mlflow_server):
    """A results folder whose places are the servers, on the session's corpora and step times."""
    (root / "places.yaml").write_text(f"optuna: {postgres}/optuna\nmlflow: {mlflow_server}\n")
    return root


def _set_store(root, location):
    with (root / "places.yaml").open("a") as file:
        file.write(f"store: {location}\n")


@pytest.mark.slow
def test_a_study_with_its_stages_at_a_url(finished, joining, root, run, tmp_path, project, monkeypatch):
    study = tmp_path / "by_url.yaml"  # another name: the databases are shared
    study.write_text((project / SMOKE).read_text().replace("seeds: [0, 1]", "seeds: [0]"))
    _set_store(root, f"local://{tmp_path}/stages")
    monkeypatch.setenv("RAY_ADDRESS", joining)
    done = run(root, study)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials at once" in done.stdout, "as many as the cluster has CPUs"
    assert [t.state.name for t in optuna_trials(root)] == ["COMPLETE"] * 4
    assert len(list((tmp_path / "stages" / "evaluate").iterdir())) == 4
    expected = figures(finished[0]).query("seed == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(expected, figures(root), check_like=True, check_exact=True)


@pytest.mark.slow
def test_a_killed_raylet_loses_nothing(
    finished, cluster, joining, root, command, tmp_path, project, postgres, mlflow_server
):
    _set_store(root, tmp_path / "stages")
    raylet = cluster["raylets"][1]  # not the one that drivers join
    with _running(
        command(root, SMOKE, "--address", joining),
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        printed = []
        for line in driver.stdout:
            printed.append(line)
            if line.startswith("complete"):
                break
        addresses = listening(os.getpid())
        cluster["orphans"] += family_of(raylet)
        wait_for(lambda: [t.state.name for t in optuna_trials(root)].count("RUNNING") == 2)
        os.kill(raylet, signal.SIGKILL)
        printed += driver.stdout
        assert driver.wait() == 0, "".join(printed)
    assert "its worker died" in "".join(printed), "it had a trial"
    assert "Traceback" not in "".join(printed)
    assert_each_ended_once(root, 8)
    assert not list((tmp_path / "stages").glob("*/*.work"))
    expected, found = figures(finished[0]), figures(root)
    pd.testing.assert_frame_equal(expected, found, check_like=True, check_exact=True)
    servers = (postgres, mlflow_server, joining)
    assert {int(url.rpartition(":")[2]) for url in servers} <= {address.port for address in addresses}
    assert all(is_loopback(address.ip) for address in addresses), addresses


@pytest.mark.slow  # .ci/run runs it
@pytest.mark.parametrize(
    ("places", "words"),
    [
        ("optuna: postgresql+psycopg://workbench@127.0.0.1:{port}/optuna", "Connection refused"),
        ("mlflow: http://127.0.0.1:{port}", "Connection refused"),
    ],
)
def test_a_server_that_is_gone_is_named(tmp_path, data_root, calibration, run, monkeypatch, places, words):
    (tmp_path / "data").symlink_to(data_root)
    (tmp_path / "calibration").symlink_to(calibration)
    port = free_port()
    (tmp_path / "places.yaml").write_text(places.format(port=port))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    done = run(tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert str(port) in done.stderr
    assert "to go on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", "no Ray cluster can be joined at 127.0.0.1:{port}: Connection refused"),
        ("ray://127.0.0.1:{port}", "ray://127.0.0.1:{port}: is for Ray's client; give a cluster's HOST:PORT"),
        ("somewhere", "must be HOST:PORT or auto, is 'somewhere'"),
    ],
)
def test_a_cluster_that_is_not_there_ends_in_one_message(tmp_path, run, address, words):
    port = free_port()
    done = run(tmp_path, SMOKE, "--address", address.format(port=port))
    assert done.returncode == 2
    assert done.stderr == f"--address: {words.format(port=port)}\n"
    assert not done.stdout


def test_trials_at_once_are_what_the_cluster_takes():
    nodes = (Node("a", 0, 0), Node("b", 8, 0), Node("c", 8, 0), Node("c", 3, 0))
    cluster = Cluster(nodes)
    assert cluster.device(Resources()) == Device("cpu", 1, 19, 0, num_machines=2)
    assert cluster.device(Resources(threads=4)).concurrency == 4
    assert cluster.device(Resources(concurrency=3)) == Device("cpu", 1, 3, 0, num_machines=2)
    with pytest.raises(ConfigError, match="no node of the cluster has 9 CPUs"):
        cluster.device(Resources(threads=9))
    with pytest.raises(ConfigError, match="no GPU"):
        cluster.device(Resources(device="cuda"))


def test_trials_at_once_on_gpus(monkeypatch):
    cluster = Cluster((Node("a", 4, 0), Node("b", 8, 2), Node("c", 1, 4)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cluster.device(Resources()) == Device("cuda", 1, 3, 6, num_machines=2)
    assert cluster.device(Resources(device="cpu")).concurrency == 13
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="start the study on a node with a GPU"):
        cluster.device(Resources())


def test_the_command_to_go_on_names_the_cluster():
    assert study_command([Path(SMOKE)], None, [], Path("r"), "h:1").endswith("--root r --address h:1")
