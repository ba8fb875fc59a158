"""Two processes that share every batch train as one with the joint batch."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.utils._pytree import tree_leaves

from workbench import processes
from workbench import trial as trial_command
from workbench.data import load_splits
from workbench.settings import ConfigError
from workbench.study import worker
from workbench.training import compiled, loop
from workbench.training.checkpoint import load_tensors, save_tensors
from workbench.training.finetune import Finetuning, finetune
from workbench.training.loop import Run, Stopped
from workbench.training.pretrain import Pretraining, new_encoder, pretrain

from .trained_alike import assert_same_history, assert_same_weights

PROCESSES = 2
CPU = torch.device("cpu")


def _train(trial, data_root, run=None):
    """Weights and curves of both stages, with a log point every three updates."""
    loop.LOG_POINTS = 2
    splits = load_splits(trial.data, data_root, trial.seed, lambda line: None)
    pretrained = pretrain(trial, splits.pool, run or Run())
    model = finetune(trial, splits, pretrained.encoder, Run())
    weights = dict(model.model.state_dict())
    return weights, [*pretrained.history, *model.history]


def _process(rank, trial, data_root, folder, stop_after):
    torch.set_num_threads(1)
    compiled.BACKEND = "aot_eager"  # of trials that are compiled; see test_compiled
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    asked = []

    def stop():
        asked.append(True)
        return rank == 0 and len(asked) == stop_after

    try:
        weights, history = _train(
            trial, data_root, Run(checkpoint=folder / "checkpoint.safetensors", should_stop=stop)
        )
        save_tensors(folder / f"{rank}.safetensors", weights, history)
    except Stopped:
        (folder / f"stopped-{rank}").touch()
    dist.destroy_process_group()


def _distributed(trial, data_root, folder, stop_after=0):
    (folder / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (trial, data_root, folder, stop_after), nprocs=PROCESSES)


@pytest.fixture(scope="module")
def trial(tiny_trial, with_changes):
    """Without dropout, whose masks are each process's own; with accumulation, and every augmentation."""
    changes = {
        "model.dropout": 0.0,
        "pretraining.steps": 6,
        "pretraining.accumulation": 2,
        "pretraining.gain_db": 3.0,
        "finetuning.steps": 6,
        "finetuning.consistency_weight": 1.0,
    }
    return with_changes(tiny_trial, changes)


@pytest.fixture(scope="module")
def alone(trial, data_root):
    return _train(trial, data_root)


@pytest.fixture(scope="module", autouse=True)
def _restored_log_points():
    points = loop.LOG_POINTS
    yield
    loop.LOG_POINTS = points


def _assert_same(found, alone):
    assert_same_weights(found[0], alone[0])
    assert_same_history(found[1], alone[1])


def test_two_processes_train_as_one_with_the_joint_batch(trial, data_root, alone, tmp_path):
    _distributed(trial, data_root, tmp_path)
    for rank in range(PROCESSES):
        _assert_same(load_tensors(tmp_path / f"{rank}.safetensors"), alone)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_processes_hear_their_own_clips_alone_and_all_of_them_together(
    trial, tiny_splits, stage, monkeypatch
):
    """As one process hears them; of the others' only what is mixed into their own."""
    splits = dataclasses.replace(tiny_splits, pool=_of_two_lengths(tiny_splits.pool))
    if stage == "pretrain":
        task, settings = Pretraining(trial, splits.pool, CPU), trial.pretraining
    else:
        encoder = new_encoder(trial, splits.pool, CPU)
        splits = dataclasses.replace(splits, train=_of_two_lengths(splits.train))
        task, settings = Finetuning(trial, splits, encoder, CPU), trial.finetuning
    front_end, asked = task.model.front_end if stage == "pretrain" else task.model.encoder.front_end, []
    front_end.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    joint = tree_leaves(task.hear(3))
    monkeypatch.setattr(processes, "count", lambda: PROCESSES)
    for rank in range(PROCESSES):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        for own, every in zip(tree_leaves(task.hear(3)), joint, strict=True):
            rows = [i for i in range(len(every)) if i // settings.accumulation % PROCESSES == rank]
            torch.testing.assert_close(own, every[rows])
    whole, *parts = asked
    assert all(part == whole // PROCESSES if stage == "pretrain" else part < whole for part in parts)


def _of_two_lengths(clips):
    """Every other clip is shorter: a part of a batch may be without the longest."""
    return dataclasses.replace(clips, length=clips.length - 4_000 * (np.arange(len(clips)) % 2))


def test_a_part_is_even_in_every_micro_batch(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: PROCESSES)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert processes.own_rows(12, 3).tolist() == [3, 4, 5, 9, 10, 11]


def test_two_processes_train_a_compiled_update_as_one_plain(trial, data_root, alone, tmp_path):
    _distributed(dataclasses.replace(trial, compile=True), data_root, tmp_path)
    _assert_same(load_tensors(tmp_path / "0.safetensors"), alone)


def test_processes_stop_together_and_go_on(trial, data_root, alone, tmp_path):
    _distributed(trial, data_root, tmp_path, stop_after=2)  # between log points
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    _distributed(trial, data_root, tmp_path)
    _assert_same(load_tensors(tmp_path / "0.safetensors"), alone)


def test_a_processs_device_is_the_one_that_was_asked_for(monkeypatch):
    with pytest.raises(ConfigError, match=r"resources\.device: process 1 .* finds no GPU of its own"):
        processes.join("cuda")
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.join("cpu") == torch.device("cpu")
    assert not taken
    assert processes.join() == processes.join("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 3 of this machine .* torch sees 2"):
        processes.join()


def test_a_process_whose_part_fails_ends_with_what_it_says(monkeypatch, capsys):
    """Of the first the others are told; of another nobody would be."""
    settings = {"threads": 1, "device": "cpu"}
    ended = {"event": "failed", "number": 0, "reason": "out of GPU memory"}
    monkeypatch.setattr(worker, "_run", lambda trial, settings, device, report: report(ended))
    monkeypatch.setattr(worker, "die_with_parent", lambda: None)
    content = json.dumps({"trial": {}, "settings": settings})
    worker.main(content)
    assert json.loads(capsys.readouterr().out.removeprefix(worker.EVENT)) == ended
    monkeypatch.setattr(processes, "rank", lambda: 1)
    with pytest.raises(SystemExit) as end:
        worker.main(content)
    assert end.value.code == 1
    found = capsys.readouterr()
    assert (found.out, found.err.strip()) == ("", "out of GPU memory")
    ended |= {"event": "broken", "reason": "disk full"}
    with pytest.raises(SystemExit) as end:
        worker.main(content)
    assert end.value.code == worker.BROKEN
    assert capsys.readouterr().err.strip() == "disk full"


def test_processes_end_together_when_one_of_them_fails(monkeypatch, tmp_path):
    stub = tmp_path / "python"
    stub.write_text(
        '#!/bin/sh\n[ "$RANK" = 1 ] && { echo "out of GPU memory" >&2; exit 1; }\nexec sleep 60\n'
    )
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr(worker, "LEAVING_SECONDS", 0.1)
    began = time.monotonic()
    told = []
    worker._run_in_processes({"number": 7}, {"processes": 3}, told.append)
    assert time.monotonic() - began < 55, "the others would sleep for a minute"
    assert told == [
        {
            "event": "died",
            "number": 7,
            "reason": "process 1 of the trial ended with 1: out of GPU memory",
        }
    ]
    stub.write_text(stub.read_text().replace("out of GPU memory", "disk full").replace("exit 1", "exit 3"))
    worker._run_in_processes({"number": 7}, {"processes": 3}, told.append)
    assert told[1:] == [{"event": "broken", "number": 7, "reason": "disk full"}], "no trial is blamed for it"


@pytest.mark.parametrize(
    ("statuses", "guilty"),
    [([1, 3], 1), ([3, 1], 0), ([1, 1, -9], 1), ([1, -9], 0), ([-9, 1], 1), ([-9, -9], 0)],
)
def test_the_first_complains_that_another_is_gone(statuses, guilty):
    assert worker._guilty(statuses) == guilty


@pytest.mark.slow
def test_torchrun_trains_a_trial_that_its_study_then_finds(root, project, run, tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text("question: Alone?\npreset: smoke\nseeds: [0]\nregimes: [full]\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    torchrun += ["--nproc-per-node", str(PROCESSES)]
    done = subprocess.run(
        [*torchrun, "-m", "workbench.trial", str(study), "0", "--root", str(root)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("trial 0: full  seed 0, 2 x cpu") == 1, done.stdout  # by one process
    assert "test/mAP" in done.stdout
    planned = run(root, study, "--dry-run")
    assert "found: 3 stages" in planned.stdout, planned.stdout + planned.stderr


def test_a_number_that_is_no_trials_is_refused(project, capsys):
    assert trial_command.main([str(project / "studies/smoke.yaml"), "99"]) == 2
    assert "number: must be one of 0 to 7, is 99" in capsys.readouterr().err


def test_a_batch_that_torchruns_processes_cannot_share_is_refused_before_anything_runs(
    project, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(processes, "count", lambda: 5)
    arguments = [str(project / "studies/smoke.yaml"), "0", "--root", str(tmp_path / "mlruns")]
    assert trial_command.main(arguments) == 2
    assert "resources.processes: must divide pretraining.batch_size" in capsys.readouterr().err
    assert not (tmp_path / "mlruns").exists()


def test_a_trial_that_lacks_gpu_memory_says_what_needs_less(project, monkeypatch, capsys):
    def runs_out(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.77 GiB.\nand much else")

    monkeypatch.setattr(trial_command, "_run", runs_out)
    assert trial_command.main([str(project / "studies/smoke.yaml"), "0"]) == 1
    said = capsys.readouterr().err
    assert "accumulation" in said
    assert "Tried to allocate 4.77 GiB" in said
    assert "much else" not in said


def test_a_batch_that_cannot_be_shared_is_refused(trial, data_root, tmp_path):
    odd = dataclasses.replace(trial, pretraining=dataclasses.replace(trial.pretraining, batch_size=6))
    with pytest.raises(Exception, match="micro-batch of 3 clips cannot be shared by 2 processes"):
        _distributed(odd, Path(data_root), tmp_path)
