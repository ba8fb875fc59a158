"""What tests of whole studies read back: Optuna's trials, MLflow's runs, the table, the processes."""

import contextlib
import ipaddress
import socket
import time

import optuna
import psutil
from mlflow import MlflowClient

from workbench.places import Places
from workbench.study.record import studies
from workbench.study.results import trial_table


def optuna_trials(root):
    name = studies(root)[0].id
    return optuna.load_study(study_name=name, storage=Places.read(root).optuna_url).get_trials(deepcopy=False)


def mlflow_runs(root, experiment="smoke"):
    """The study's runs, and its trials'."""
    client = MlflowClient(Places.read(root).mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    parents = [r for r in runs if r.data.tags["workbench.kind"] == "study"]
    return parents, [r for r in runs if r.data.tags["workbench.kind"] == "trial"]


def trials_of(root):
    return trial_table(studies(root)[0], root)


def figures(root):
    """What each trial is and scored, without what depends on when it ran."""
    table = trials_of(root)
    columns = [c for c in table.columns if c not in ("number", "run_id", "began", "seconds")]
    order = ["model.num_heads", "regime", "seed"]
    return table[columns].sort_values(order, ignore_index=True)


def assert_each_ended_once(root, count):
    trials = optuna_trials(root)
    assert [t.state.name for t in trials] == ["COMPLETE"] * count
    assert len({t.user_attrs["key"] for t in trials}) == count
    parents, children = mlflow_runs(root)
    assert [p.info.status for p in parents] == ["FINISHED"]
    assert [c.info.status for c in children] == ["FINISHED"] * count
    assert len({c.data.tags["workbench.key"] for c in children}) == count
    assert not list((root / "store").glob("*/*.work")), "no attempt is left half done"
    assert not list((root / "store").glob("*/*/*.tmp")), "no file is left half written"


def assert_each_stage_built_once(root):
    store = Places.read(root).store()
    assert store.builds() == {entry.key: 1 for entry in store.entries()}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not so within {seconds} s")


def family_of(driver):
    """The processes below `driver`."""
    return psutil.Process(driver).children(recursive=True)


def workers_of(driver):
    """Process ids of Tune's actors below `driver`, by what Ray calls them."""
    found = []
    for child in family_of(driver):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if any("ImplicitFunc" in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def listening(driver):
    """Addresses on which `driver` and the processes below it listen."""
    family = {driver, *(child.pid for child in family_of(driver))}
    sockets = psutil.net_connections(kind="inet")
    return {s.laddr for s in sockets if s.status == psutil.CONN_LISTEN and s.pid in family}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_loopback(text):
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def assert_all_gone(family, seconds=30):
    """No process of the family is left, or is within so many seconds."""
    wait_for(lambda: not [p for p in family if _is_alive(p)], seconds)


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
