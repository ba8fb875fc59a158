"""Kill a study at seeded random moments, again and again, and count what that spoils: a Markdown table.

`python -m tests.fault_campaign --kills 60 --seed 0 --table FILE`; half a minute a kill on two cores. The
smoke study is run once undisturbed, as the reference; then in fresh results folders, every third without
data and step times, where each launch gets one kill and the same command is started again at once, until the
study ends. Ends with 1 if anything was spoilt.

Killed by id, and only what a launch has started: the machine may be running other studies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from .results_folder import State, figures, half_written, last_written, mlflow_runs

PROJECT = Path(__file__).parent.parent
# Trials of some seconds: a kill then meets each stage, and the seams between them.
STUDY = ("studies/smoke.yaml", "--set", "pretraining.steps=150", "--set", "finetuning.steps=100")
KINDS = ("driver", "worker", "raylet", "GCS server", "everything")
NAMES = {"raylet": "raylet", "GCS server": "gcs_server"}  # of the processes of a kind

FIRST = 1.0  # seconds after a launch at which its kill falls at the earliest
SPAN = 0.7  # at the latest: of the undisturbed study's seconds
LATE = 5.0  # what is not there yet at its moment is killed up to so long after it has appeared
KILLS_A_STUDY = (3, 5)
POLL_SECONDS = 0.25
HANG_SECONDS = 120.0  # without a change in the store or the databases
LEFT_SECONDS = 90.0  # after a study's end; what still runs then is left
TRACEBACK = "Traceback (most recent call last)"
TRIES = 3  # launches in a row that end by themselves and not well, before a study is given up

COLUMNS = {
    "kills": "kills",
    "launches": "launches",
    "lost": "finished trials lost or run again",
    "twice": "trials ended twice",
    "differing": "results differing",
    "running": "left RUNNING",
    "recomputed": "finished stages lost or computed again",
    "half": "files half-written",
    "tracebacks": "tracebacks",  # with lines of ours
    "foreign": "tracebacks of libraries",
    "hangs": "hangs",
    "unexplained": "other ends",  # neither done nor told how to go on
    "left": "processes left",
}
FAILURES = (
    *("lost", "twice", "differing", "running", "recomputed", "half", "tracebacks", "hangs", "unexplained"),
    "left",
)


@dataclass(frozen=True)
class Fault:
    """A kill to come: drawn beforehand, so that the seed alone decides."""

    kind: str
    moment: float  # from 0, the earliest, to 1, the latest
    late: float  # seconds after what is to be killed has appeared, where it was not there in time
    choice: float  # which of several workers, from 0 to 1


def draw(count, rng):
    """Rounds of every kind, each in an order of its own."""
    kinds = []
    while len(kinds) < count:
        kinds += rng.sample(KINDS, len(KINDS))
    return [Fault(kind, rng.random(), rng.uniform(0, LATE), rng.random()) for kind in kinds[:count]]


class Launch:
    """One start of the command, and every process that came of it."""

    def __init__(self, root, number):
        self.output = root / f"launch-{number}.txt"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONFAULTHANDLER"] = "1"  # so that one that hangs can be asked where
        with self.output.open("w") as file:
            self.driver = subprocess.Popen(
                _command(root),
                cwd=PROJECT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # by which orphans are known
            )
        self.struck = False  # it has had its kill
        self.killed = False  # and that was the driver's
        self.kind = ""  # of the last kill before its end, of this launch or another
        self.ended_at = 0.0
        self.study_ended_at = 0.0
        self._process = psutil.Process(self.driver.pid)  # knows its start time: ids are given anew
        self._family = {self._process}

    def look(self):
        """Note new processes; must be called often, since one may leave the tree with its parent."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family |= set(self._process.children(recursive=True))
        known = {process.pid for process in self._family}
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if pid not in known and os.getsid(pid) == self._process.pid:
                    self._family.add(psutil.Process(pid))

    def alive(self):
        return [process for process in self._family if _is_alive(process)]

    def targets(self, kind):
        """What a kill of that kind could hit now, by age."""
        if kind in ("driver", "everything"):
            return [self._process]
        found = []
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                if kind == "worker":
                    is_one = any("ImplicitFunc" in word for word in process.cmdline())  # Ray's name of Tune's
                else:
                    is_one = process.name() == NAMES[kind]
                if is_one:
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def kill(self, kind, choice=0.0):
        """Whether there was something to kill."""
        targets = self.targets(kind)
        if not targets or self.driver.poll() is not None:
            return False
        _kill(targets[int(choice * len(targets))])
        if kind == "everything":
            self.kill_all()
        self.struck, self.killed = True, kind in ("driver", "everything")
        return True

    def ask_where(self):
        """Have the driver write its stacks into its output; it may end with that."""
        self.driver.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(timeout=10)

    def kill_all(self):
        for _ in range(10):  # what is being started just now is seen in the next round
            self.look()
            for process in self.alive():
                _kill(process)
        self.driver.wait()


def _command(root):
    return [sys.executable, "-m", "workbench.study", *STUDY, "--root", str(root)]


def _kill(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Campaign:
    """Studies one after the other, and what came of each kind of kill.

    Whatever is found is put down to the last kill before it.
    """

    def __init__(self, kills, seed, work):
        self.counts = {kind: Counter() for kind in KINDS}
        self.slowest = Counter()  # seconds from a launch's end to that of its last process
        self._work = work
        self._rng = random.Random(seed)
        self._faults = draw(kills, self._rng)
        self._launches = []  # with processes that may yet run
        self._num_studies = 0
        self._began = time.monotonic()

    def run(self):
        self._reference = self._work / "reference"
        self._reference.mkdir()
        self._say("the reference, undisturbed")
        launch = Launch(self._reference, 0)
        self._launches.append(launch)
        while launch.driver.poll() is None:
            time.sleep(POLL_SECONDS)
            launch.look()
        if launch.driver.returncode != 0:
            raise SystemExit(f"the undisturbed study does not end well:\n{launch.output.read_text()}")
        self._launches.remove(launch)
        self._undisturbed_seconds = time.monotonic() - self._began
        self._expected = State.read(self._reference)
        self._expected_figures = figures(self._reference)
        while self._faults:
            self._study()
        while self._launches:
            time.sleep(POLL_SECONDS)
            self._watch()

    def end(self):
        """Kill what still runs of the campaign."""
        for launch in self._launches:
            launch.kill_all()

    def _study(self):
        """One results folder: some kills, then on to the end."""
        number = self._num_studies
        root = self._work / f"study-{number:02d}"
        self._num_studies += 1
        root.mkdir()
        if number % 3:  # every third makes and measures for itself: kills fall there, too
            for name in ("data", "calibration"):
                (root / name).symlink_to(self._reference / name)
        self._kind = self._faults[0].kind
        self._state = State()
        left = self._rng.randint(*KILLS_A_STUDY)  # kills
        before = sum(self.counts.values(), Counter())
        launches, tries = [], 0
        while tries < TRIES:
            launch = Launch(root, len(launches))
            launches.append(launch)
            self._launches.append(launch)
            hung = self._follow(launch, root, self._faults[0] if left and self._faults else None)
            launch.ended_at = time.monotonic()
            left -= launch.struck
            launch.kind = self._kind
            self.counts[launch.kind]["launches"] += 1
            self._compare(root)
            if self._judge_end(launch, hung):
                break
            tries = 0 if launch.struck else tries + 1
        self._judge(root)
        for launch in launches:
            launch.study_ended_at = time.monotonic()
        found = sum(self.counts.values(), Counter()) - before
        if not any(found[name] for name in COLUMNS if name not in ("kills", "launches")):
            shutil.rmtree(root, ignore_errors=True)

    def _follow(self, launch, root, fault):
        """Until the launch ends, with the fault when it is due; whether it hung."""
        due = time.monotonic() + self._seconds_to(fault.moment) if fault else float("inf")
        in_time = True  # there was something to kill when it was due
        changed_at, newest = time.monotonic(), 0
        while launch.driver.poll() is None:
            time.sleep(POLL_SECONDS)
            self._watch()
            now = time.monotonic()
            if now >= due and not launch.struck:
                if not launch.targets(fault.kind):
                    in_time = False
                elif not in_time:
                    in_time, due = True, now + fault.late
                elif self._strike(launch, root, fault):
                    changed_at = now
            if (latest := last_written(root)) != newest:
                changed_at, newest = now, latest
            if now - changed_at > HANG_SECONDS:
                launch.ask_where()
                launch.kill_all()
                self._count("hangs", 1, launch.output.read_text(errors="replace"))
                return True
        if fault and not launch.struck:  # the machine is less busy than it was for the reference
            self._undisturbed_seconds *= 0.8
        return False

    def _seconds_to(self, moment):
        return FIRST + moment * max(0.0, SPAN * self._undisturbed_seconds - FIRST)

    def _strike(self, launch, root, fault):
        self._compare(root)  # what came before this kill is not its fault
        if not launch.kill(fault.kind, fault.choice):
            return False
        if launch.killed:
            launch.driver.wait()
        self._faults.pop(0)
        self._kind = fault.kind
        self.counts[fault.kind]["kills"] += 1
        kills = sum(counts["kills"] for counts in self.counts.values())
        done = f"{len(self._state.complete)} of {len(self._expected.complete)} trials done"
        self._say(f"kill {kills}: {fault.kind}, {root.name}, {launch.output.stem}, {done}")
        return True

    def _compare(self, root):
        """Count what has been spoilt since the last look."""
        state = State.read(root)
        self._count("lost", len(self._state.lost(state)), sorted(self._state.lost(state)))
        self._count("recomputed", len(self._state.changed(state)), sorted(self._state.changed(state)))
        self._count("twice", max(0, state.repeats() - self._state.repeats()), state.ended)
        self._state = state

    def _judge_end(self, launch, hung):
        """How a launch ended; whether the study is done with that."""
        text = launch.output.read_text(errors="replace")
        tracebacks = text.split(TRACEBACK)[1:]
        ours = [lines for lines in tracebacks if f"{PROJECT / 'workbench'}{os.sep}" in lines]
        self._count("tracebacks", bool(ours), ours)
        self._count(
            "foreign", bool(tracebacks) and not ours, [lines.split("\n\t")[0] for lines in tracebacks]
        )
        code = launch.driver.returncode
        told = code == 1 and "to go on" in text and launch.struck
        if not (hung or launch.killed or code == 0 or told):
            self._count("unexplained", 1, f"exit status {code}\n{text}")
        return code == 0 and not hung

    def _judge(self, root):
        """The study's end."""
        runs = mlflow_runs(root)
        in_mlflow = [run.info.run_id for run in runs if run.info.status == "RUNNING"]
        self._count("running", len(self._state.running) + len(in_mlflow), [self._state.running, in_mlflow])
        numbers = [run.data.tags.get("workbench.number") for run in runs]
        numbers = [number for number in numbers if number is not None]
        self._count("twice", len(numbers) - len(set(numbers)), ["in MLflow", numbers])
        found = figures(root)
        differing = [place for place, row in self._expected_figures.items() if found.get(place) != row]
        differing += [
            key for key, sums in self._expected.checksums.items() if self._state.checksums.get(key) != sums
        ]
        self._count("differing", len(differing), differing)
        half = half_written(root)
        self._count("half", len(half), [str(path.relative_to(root)) for path in half])

    def _watch(self):
        """See which launches are gone for good, and what is left of those that should be."""
        now = time.monotonic()
        for launch in list(self._launches):
            launch.look()
            alive = launch.alive()
            late = bool(launch.study_ended_at) and now - launch.study_ended_at > LEFT_SECONDS
            if not launch.ended_at or (alive and not late):
                continue
            self.slowest[launch.kind] = max(self.slowest[launch.kind], now - launch.ended_at)
            self._count("left", len(alive), [_describe(process) for process in alive], launch.kind)
            for process in alive:
                _kill(process)
            self._launches.remove(launch)

    def _count(self, what, number, evidence, kind=None):
        if number:
            kind = kind or self._kind
            self.counts[kind][what] += int(number)
            self._say(f"{COLUMNS[what]} (+{int(number)}, after {kind}): {evidence}")

    def _say(self, text):
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def table(self):
        heads = ["killed", *COLUMNS.values(), "last process gone after"]
        lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
        total = sum(self.counts.values(), Counter())
        for name, counts in [*self.counts.items(), ("total", total)]:
            seconds = max(self.slowest.values(), default=0) if name == "total" else self.slowest[name]
            cells = [name, *(str(counts[column]) for column in COLUMNS), f"{seconds:.0f} s"]
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def failed(self):
        return any(counts[name] for counts in self.counts.values() for name in FAILURES)


def _describe(process):
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.NoSuchProcess:
        return "gone"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.fault_campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="a file for the table, beside standard output")
    parser.add_argument(
        "--work", type=Path, help="an empty folder; what is spoilt is kept there to be looked at"
    )
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="fault-campaign-"))
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        parser.error(f"{work} is not empty")
    campaign = Campaign(options.kills, options.seed, work.resolve())
    try:
        campaign.run()
    finally:
        campaign.end()
    lines = [
        f"`python -m tests.fault_campaign --kills {options.kills} --seed {options.seed}`, on "
        f"{len(os.sched_getaffinity(0))} CPU cores, of `python -m workbench.study {' '.join(STUDY)}`:",
        "",
        *campaign.table(),
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.table:
        options.table.write_text(text)
    if campaign.failed():
        print(f"what was spoilt, and what was printed: {work}", file=sys.stderr)
    elif not options.work:
        shutil.rmtree(work, ignore_errors=True)
    return int(campaign.failed())


if __name__ == "__main__":
    sys.exit(main())
