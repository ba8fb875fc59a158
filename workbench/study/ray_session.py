"""The Ray that trials run on: a study's own, started, watched and ended with it, or a cluster, joined."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.study.cluster import check_listening, cluster_address, environment

os.environ.update(environment())

import psutil
import ray

from workbench.files import write_json
from workbench.study.device import Device
from workbench.study.interruption import StudyStopped
from workbench.study.trial_storage import first_line

WATCH_SECONDS = 0.5  # between looks at whether Ray's servers live


@contextlib.contextmanager
def ray_started(
    device: Device, processes: Path | None = None, last_words: Callable[[str], int | None] = print
) -> Iterator[None]:
    """A Ray of the study's own, ended with it; or the one that RAY_ADDRESS names. Raises StudyStopped.

    `processes` is a file that keeps its processes: should all of this be killed, some of Ray's helpers go
    on for a minute, and the next start ends them. Ray ends its driver when one of its servers dies, without
    a word; before it does, `last_words` is called with what has happened, in another thread, and may return
    the exit status.
    """
    own = cluster_address() is None
    if processes is not None:
        _end_survivors(processes)
    done = threading.Event()
    if own:  # from before the start: a server may die while Ray starts
        threading.Thread(target=_watch_ray, args=(psutil.Process(), done, last_words), daemon=True).start()
    try:
        _start_ray(device.concurrency * device.threads * device.processes)
        if own and processes is not None:
            _note_processes(processes)
        yield
    finally:
        done.set()
        ray.shutdown()


def _watch_ray(
    driver: psutil.Process, done: threading.Event, last_words: Callable[[str], int | None]
) -> None:
    """End the driver, with last words, when a server of its Ray has died: nothing can go on then."""
    servers: dict[psutil.Process, str] = {}
    while not done.wait(WATCH_SECONDS):
        for child in driver.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() in ("raylet", "gcs_server"):
                    servers[child] = child.name()
        dead = [name for server, name in servers.items() if not _is_alive(server)]
        if dead and not done.is_set():
            status = last_words(f"Ray's {dead[0]} has died")
            for child in driver.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(status or 1)


def _note_processes(path: Path) -> None:
    pids = [[child.pid, child.create_time()] for child in psutil.Process().children(recursive=True)]
    write_json(path, {"machine": platform.node(), "processes": pids})


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_survivors(processes: Path) -> None:
    """By process id, where that is still of the process that began then; this process's own are none."""
    if not processes.exists():
        return
    content = json.loads(processes.read_text())
    if content["machine"] != platform.node():
        return
    own = psutil.Process().children(recursive=True)
    for pid, began in content["processes"]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process not in own and abs(process.create_time() - began) < 1.0:
                process.kill()


def _start_ray(num_cpus: int) -> None:
    try:
        _init_ray(num_cpus)
    except Exception as error:  # Ray raises bare ones here
        raise StudyStopped(f"Ray could not be started ({first_line(error)})") from error


def _init_ray(num_cpus: int) -> None:
    for name in ("ray", "ray.tune", "ray.train"):  # the ledger says what failed, and why
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address()
    if address is not None:
        check_listening(address)  # it was there for the plan; were it gone, Ray would wait for it
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL)
        return
    ray.init(
        address="local",  # else it would follow the file of an earlier cluster, even a dead one
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=100 * 1024**2,  # nothing large travels; the default takes a third of memory
        _node_ip_address="127.0.0.1",
    )
