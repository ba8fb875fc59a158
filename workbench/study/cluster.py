"""A running Ray cluster, named by RAY_ADDRESS: whether it answers, and what it has.

Run as a module it prints what it finds: Ray waits without end for a cluster that does not answer, so it is
asked in a process of its own, which can be given up.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.settings import ConfigError
from workbench.study.definition import Resources

if TYPE_CHECKING:
    from workbench.study.device import Device

VARIABLE = "RAY_ADDRESS"
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 20.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "Raylet is terminated",  # with its whole log behind it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # data.root may be relative to where the study starts
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most reports are of progress
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def cluster_address() -> str | None:
    """The running cluster to use; None: a Ray of the study's own."""
    address = os.environ.get(VARIABLE, "")
    return None if address in ("", "local") else address


def environment() -> dict[str, str]:
    """What Ray is to read when it is imported, as far as the user has not set it."""
    address = cluster_address()
    wanted = dict(SETTINGS)
    if address is None or _is_loopback(address):
        # The one switch by which Ray uses 127.0.0.1 alone; else it replaces it by an outward address.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is not None and _has_token():
        wanted["RAY_AUTH_MODE"] = "token"  # as `ray start` does, and ray.init with an address does not
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_token() -> bool:
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").exists()


@dataclass(frozen=True)
class Node:
    host: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """The nodes of a running cluster."""

    nodes: tuple[Node, ...]

    def device(self, resources: Resources) -> Device:
        """What `resources` come to on it. Raises ConfigError.

        By default as many trials at once as all nodes take; those of other studies are waited for.
        """
        import torch

        from workbench.study.device import Device

        gpus = 0 if resources.device == "cpu" else sum(node.gpus for node in self.nodes)
        if resources.device == "cuda" and not gpus:
            raise ConfigError("resources.device", "is cuda, and the cluster has no GPU; use auto or cpu")
        if gpus and not torch.cuda.is_available():
            raise ConfigError(
                "resources.device",
                "the cluster has GPUs, and this machine, where the plan is measured, has none; start the "
                "study on a node with a GPU, or --set resources.device=cpu",
            )
        each = resources.processes  # of a trial, all of them on one node
        fits = [min(n.cpus // resources.threads, n.gpus if gpus else n.cpus) // each for n in self.nodes]
        if not any(fits):
            needed = f"{each * resources.threads} CPUs{f' and {each} GPU' if gpus else ''}"
            raise ConfigError("resources.threads", f"no node of the cluster has {needed} for a trial")
        hosts = {node.host for node, trials in zip(self.nodes, fits, strict=True) if trials}
        return Device(
            "cuda" if gpus else "cpu",
            resources.threads,
            resources.concurrency or sum(fits),
            gpus,
            num_machines=len(hosts),
            processes=each,
        )


def device_of(resources: Resources) -> Device:
    """What `resources` come to on the cluster that RAY_ADDRESS names, or here. Raises ConfigError."""
    address = cluster_address()
    if address is not None:
        return look(address).device(resources)
    from workbench.study.device import Device

    return Device.of(resources)


@functools.cache
def look(address: str) -> Cluster:
    """What the cluster at `address` has. Raises ConfigError if there is none, or it does not let us in."""
    check_listening(address)
    try:
        answer = subprocess.run(
            [sys.executable, "-m", __name__],
            env=os.environ | {VARIABLE: address, "RAY_NUM_REDIS_GET_RETRIES": "3"},
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer in {ANSWER_SECONDS:.0f} s") from None
    if answer.returncode:
        raise _unreachable(address, answer.stderr.strip().rpartition("\n")[2])
    found = json.loads(answer.stdout.strip().rpartition("\n")[2])
    return Cluster(tuple(Node(**node) for node in found))


def check_listening(address: str) -> None:
    """Raises ConfigError where Ray would wait: nothing listens there, or the address is of another kind."""
    if "://" in address:
        raise ConfigError("--address", f"{address}: is for Ray's client; give a cluster's HOST:PORT")
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not (host and colon and port.isdigit()):
        raise ConfigError("--address", f"must be HOST:PORT or auto, is {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _unreachable(address: str, reason: str) -> ConfigError:
    return ConfigError("--address", f"no Ray cluster can be joined at {address}: {reason}")


# --- in a process of its own --------------------------------------------------------------------------------


def _main() -> int:
    os.environ.update(environment())
    os.environ.setdefault(
        "RAY_gcs_server_request_timeout_seconds", "10"
    )  # for this machine's raylet to be found
    import ray

    try:
        ray.init(log_to_driver=False, logging_level="error")
    except Exception as error:
        print(f"\n{_reason(error)}", file=sys.stderr)
        return 1
    print(json.dumps([_node(node) for node in ray.nodes() if node["Alive"]]))
    ray.shutdown()
    return 0


def _node(raw: dict[str, Any]) -> dict[str, Any]:
    has = raw["Resources"]
    return {
        "host": raw["NodeManagerHostname"],
        "cpus": int(has.get("CPU", 0)),
        "gpus": int(has.get("GPU", 0)),
    }


def _reason(error: BaseException) -> str:
    """In one line, with what to do where that is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if "AuthToken" in text:
        return "it asks for a token; bring its ~/.ray/auth_token here (or set RAY_AUTH_TOKEN_PATH)"
    if "No node info found" in text:
        return f"this machine is no node of it; run ray start --address={os.environ[VARIABLE]} here first"
    return text


if __name__ == "__main__":
    sys.exit(_main())
