"""`python -m workbench.data prepare | inspect | verify`, as a user gives them."""

import json
import os
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pytest
import soundfile

from workbench.data import LAYOUTS, load_splits, prepare
from workbench.data.__main__ import main
from workbench.data.listing import strictly
from workbench.data.prepare_command import by_reason
from workbench.data.prepared import is_prepared, open_prepared
from workbench.data_config import Esc50Data

from .books import assert_all_gone, family_of
from .small_audioset import write_audioset
from .small_datasets import no_report, write_esc50, write_table
from .small_dcase2019 import write_dcase2019
from .small_folder import write_folder
from .small_kinetics700 import write_kinetics700
from .small_magnatagatune import write_magnatagatune


def _run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_copy_is_prepared_inspected_and_trained_on(pristine, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run("prepare", "esc50", "--root", pristine[0], "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "45 clips of 3 classes, for mlruns/data/esc50" in printed
    assert "fold 1 9, fold 2 9, fold 3 9, fold 4 9, fold 5 9" in printed
    assert "--set data.root=mlruns/data/esc50" in printed
    assert "left out" not in printed
    assert "not as published: 3 of 50 classes, 9 of 400 clips of fold 1, 9 of 400" in printed
    assert len(load_splits(Esc50Data(root="mlruns/data/esc50"), tmp_path, 0, no_report).train) == 27

    assert _run("inspect", "mlruns/data/esc50") == 0
    printed = capsys.readouterr().out
    for row in ("dog", "rain", "helicopter"):
        assert any(line.split()[:2] == [row, "15"] for line in printed.splitlines())
    assert "no two clips sound the same" in printed
    sheet = matplotlib.image.imread(tmp_path / "figures" / "esc50.png")
    assert sheet.shape[0] > 300
    assert sheet[..., :3].std() > 0.1  # something is drawn

    assert _run("verify", "mlruns/data/esc50") == 0
    assert "all files are as they were written" in capsys.readouterr().out
    (tmp_path / "mlruns/data/esc50/start.npy").write_bytes(b"")
    assert _run("verify", "mlruns/data/esc50") == 1
    assert "start.npy: not as it was written" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sheet.txt", "sheet"])
def test_a_sheet_is_a_picture(pristine, tmp_path, capsys, name):
    assert _run("prepare", "esc50", "--root", pristine[0], "--to", tmp_path / "set", "--workers", 1) == 0
    assert _run("inspect", tmp_path / "set", "--sheet", tmp_path / name) == 2
    assert "--sheet: must end in one of .png," in capsys.readouterr().err


def test_it_is_said_that_a_set_is_there(pristine, tmp_path, capsys):
    for _ in range(2):
        assert _run("prepare", "esc50", "--root", pristine[0], "--to", tmp_path / "set", "--workers", 1) == 0
    assert "is there, whole" in capsys.readouterr().out
    assert _run("prepare", "esc10", "--root", pristine[0], "--to", tmp_path / "set") == 2
    assert "set: is a prepared esc50, not esc10; name another folder" in capsys.readouterr().err


def _faulty(copy, rows):
    """A copy with a fault in its table and one in a file."""
    rows[4]["fold"] = "7"
    write_table(copy, rows)
    (copy / "audio" / rows[9]["filename"]).unlink()


def test_faults_are_listed_and_fatal_only_if_asked(esc50, tmp_path, capsys):
    copy, rows = esc50
    _faulty(copy, rows)
    assert _run("prepare", "esc50", "--root", copy, "--to", tmp_path / "set", "--workers", 1, "--strict") == 2
    error = capsys.readouterr().err
    assert "has 2 faults" in error
    assert not is_prepared(tmp_path / "set")
    assert _run("prepare", "esc50", "--root", copy, "--to", tmp_path / "set", "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "2 left out (1 in the tables, 1 is not there), all in" in printed
    for output in (error, printed):
        assert "line 6: fold must be 1 to 5, is '7'" in output
        assert f"audio/{rows[9]['filename']}: is not there" in output
    assert open_prepared(tmp_path / "set").header.num_clips == 43
    assert _run("prepare", "esc50", "--root", copy, "--to", tmp_path / "set", "--strict") == 2
    error = capsys.readouterr().err
    assert "was prepared without --strict, of a copy that has 2 faults" in error
    assert "line 6: fold must be 1 to 5, is '7'" in error


TABLES = {  # layout: how a copy is written, a table that it cannot do without, one of its columns
    "audioset": (write_audioset, "class_labels_indices.csv", "mid"),
    "dcase2019": (write_dcase2019, "meta.csv", "identifier"),
    "esc50": (write_esc50, "meta/esc50.csv", "src_file"),
    "folder": (write_folder, "labels.csv", "labels"),
    "kinetics700": (write_kinetics700, "train.csv", "label"),
    "magnatagatune": (write_magnatagatune, "annotations_final.csv", "mp3_path"),
}


# Read as another layout's are; of several tables, each with rows of its own; and without any.
READ_AS_ANOTHERS, OF_SEVERAL, WITHOUT = {"esc10", "folder_single"}, {"fsdkaggle2019"}, {"pool"}


def test_no_layout_is_forgotten_here():
    assert set(TABLES) | READ_AS_ANOTHERS | OF_SEVERAL | WITHOUT == set(LAYOUTS)


@pytest.mark.parametrize("layout", TABLES)
def test_a_table_that_gives_no_row_is_named_with_its_fault(layout, tmp_path, capsys):
    write, name, column = TABLES[layout]
    write(tmp_path / "copy")
    table = tmp_path / "copy" / name
    whole = table.read_text()
    spoilt = {
        "has no column": whole.replace(column, "other", 1).encode(),
        "is no table of separated UTF-8 text": whole.encode("utf-16"),
        "has no column ": whole.replace("\t" if "\t" in whole else ",", ";").encode(),
    }
    for fault, content in spoilt.items():
        table.write_bytes(content)
        assert _run("prepare", layout, "--root", tmp_path / "copy", "--to", tmp_path / "set") == 2
        assert f"{table}: {fault}" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_the_rarest_faults_are_shown_first():
    """Each with the count of its reason, whatever its file is called."""
    absent = [f"eval_segments/Y{number}.wav: is not there" for number in range(1_000)]
    others = [
        "eval_segments.csv, line 9: label '/m/x' is not in class_labels_indices.csv",
        "eval_segments/a: is empty.wav: cannot be decoded (Error: unspecified)",
        "balanced_train_segments.csv: is not there",
        "eval_segments/b.mp4: has no sound track",
    ]
    lines, counts = by_reason([*absent, *others])
    assert set(lines[:4]) == set(others)
    assert lines[4:] == absent
    expected = {"is not there": 1_000, "in the tables": 2, "cannot be decoded": 1, "has no sound track": 1}
    assert counts == expected


def test_clips_that_sound_the_same_are_shown_first_where_they_are_in_two_splits(esc50, tmp_path, capsys):
    copy, rows = esc50
    wavs = [row for row in rows if row["filename"].endswith(".wav")]
    ramp = np.arange(-4_000, 4_000, dtype=np.int16)
    chosen = [next(row for row in wavs if row["fold"] == fold) for fold in ("1", "3")]
    for row in chosen:
        soundfile.write(copy / "audio" / row["filename"], ramp, 16_000)
    _run("prepare", "esc50", "--root", copy, "--to", tmp_path / "set", "--workers", 1)
    assert _run("inspect", tmp_path / "set", "--sheet", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    assert "2 clips sound the same as another, 1 of their groups in two splits" in printed
    assert "  " + " = ".join(f"audio/{row['filename']}" for row in chosen) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "esc50", "--root", "nowhere"], "nowhere: not there; --root must be a copy of ESC-50"),
        (["prepare", "esc50", "--root", ".", "--workers", "0"], "--workers must be at least 1, is 0"),
        (["prepare", "esc50", "--root", "."], "esc50.csv"),
        (["prepare", "esc50", "--root", ".", "--to", "full"], "full: holds other things"),
        (["inspect", "nowhere"], "prepare the set"),
        (["verify", "nowhere"], "prepare the set"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert _run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["notes.json", "draft.tmp", "part-1.json", "part-song.json", "audio-takes", "x.int16", "audio-1.int16"],
)
def test_a_folder_with_a_file_of_the_users_is_not_written_to(pristine, tmp_path, capsys, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    assert _run("prepare", "esc50", "--root", pristine[0], "--to", mine.parent, "--workers", 1) == 2
    assert "holds other things" in capsys.readouterr().err
    listing = LAYOUTS["esc50"].read(pristine[0], strictly)
    prepare.prepare("esc50", listing, pristine[0], mine.parent, workers=1)
    assert mine.read_text() == "mine"


def test_classes_are_printed_as_they_are_written(tmp_path, capsys):
    """Though brackets mean colours to what prints the table."""
    for name in ("speech [male]", "[/x]"):
        (tmp_path / "copy" / name.replace("/", "_")).mkdir(parents=True)
        soundfile.write(tmp_path / "copy" / name.replace("/", "_") / "1.wav", np.full(8_000, 0.1), 16_000)
    (tmp_path / "copy" / "labels.csv").write_text(
        "file,labels\nspeech [male]/1.wav,speech [male]\n[_x]/1.wav,[/x]\n"
    )
    assert (
        _run("prepare", "folder", "--root", tmp_path / "copy", "--to", tmp_path / "set", "--workers", 1) == 0
    )
    assert _run("inspect", tmp_path / "set", "--sheet", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    assert "speech [male]" in printed
    assert "[/x]" in printed


def test_ctrl_c_ends_any_command_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.data.prepare_command.verify", interrupt)
    assert _run("verify", tmp_path) == 130
    assert "Interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_preparation_that_was_ended_goes_on(end, pristine, tmp_path, monkeypatch, capfd):
    """By a kill of the command, whose workers then end by themselves; or by Ctrl-C, which ends them at once,
    busy as they are with a recording of a minute."""
    code = (
        "import signal, sys, time; from workbench.data import prepare, __main__\n"
        "prepare.CLIPS_PER_SHARD = 2\n"
        "decode_blocks = prepare.decode_blocks\n"
        "def slowly(file, suffix, remarks):\n"
        "    time.sleep(60 * ('/5-' in file.name))\n"
        "    yield from decode_blocks(file, suffix, remarks)\n"
        "prepare.decode_blocks = slowly\n"
        "if __name__ == '__main__':\n"
        # What runs in the background ignores it.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    sys.exit(__main__.main(sys.argv[1:]))"
    )
    script, folder = tmp_path / "run.py", tmp_path / "set"
    script.write_text(code)
    arguments = ["prepare", "esc50", "--root", str(pristine[0]), "--to", str(folder)]
    command = subprocess.Popen([sys.executable, script, *arguments, "--workers", "2"], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*.json"))) < 18 and time.monotonic() < deadline:
        time.sleep(0.01)
    if end == signal.SIGKILL:
        workers = family_of(command.pid)
        assert workers
        command.kill()
        command.wait()
        assert_all_gone(workers)
    else:
        os.killpg(command.pid, end)  # as a terminal does
        assert command.wait(timeout=30) == 130
        error = capfd.readouterr().err
        assert "What is decoded is kept" in error
        assert "Traceback" not in error
    assert len(list(folder.glob("part-*.json"))) == 18
    monkeypatch.setattr(prepare, "CLIPS_PER_SHARD", 2)
    for to in ("set", "whole"):
        assert _run(*arguments[:4], "--to", tmp_path / to, "--workers", 1) == 0
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / to).iterdir()} for to in ("set", "whole")
    ]
    assert contents[0] == contents[1]
    assert json.loads((folder / "set.json").read_text())["shards"] == 23
