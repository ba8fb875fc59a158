"""`python -m workbench.data fetch`: a set appears whole or not at all. Nothing but 127.0.0.1 is asked."""

import hashlib
import io
import json
import random
import shutil
import zipfile

import pytest
from rich.console import Console

from workbench.data import display, fetch, load_splits
from workbench.data.__main__ import main
from workbench.data.clips import DataError
from workbench.data.display import Display
from workbench.data.fetch import RemoteFile
from workbench.data.fetch_command import FACTS, fetch_set
from workbench.data.sources import SOURCES, Source
from workbench.data.unpack import Unpacker
from workbench.data_config import Esc50Data

from .archives import content_of, split_zip
from .small_datasets import quiet
from .unsound_server import unsound_server

AUDIO = {f"set/audio/{i}.wav": random.Random(i).randbytes(2000) for i in range(5)}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    with unsound_server() as server:
        yield server


def packed(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def source_of(server, contents, **changes):
    """A set of these files, by name."""
    files = tuple(
        RemoteFile(
            name=name,
            url=server.serve(f"/{name}", content),
            size=len(content),
            checksum=f"md5:{hashlib.md5(content).hexdigest()}",
        )
        for name, content in contents.items()
    )
    facts = {"title": "a set", "page": server.url, "licence": "CC0", "terms": "none", "checksums": "md5"}
    return Source(**{**facts, "files": files, **changes})


@pytest.fixture
def source(server):
    return source_of(server, {"audio.zip": packed(AUDIO), "meta.zip": packed({"set/meta.csv": b"a,b"})})


def test_a_set_is_its_archives_put_together(source, tmp_path):
    folder = fetch_set("mine", source, tmp_path, quiet)
    assert folder == tmp_path / "mine"
    content = content_of(folder)
    facts = json.loads(content.pop(FACTS))
    # Everything lies in the one folder "set", which thus is the set.
    assert content == {name.removeprefix("set/"): audio for name, audio in AUDIO.items()} | {
        "meta.csv": b"a,b"
    }
    assert facts["licence"] == "CC0"
    assert {name: entry["checksum"] for name, entry in facts["files"].items()} == {
        file.name: file.checksum for file in source.files
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.download"]


def test_files_beside_an_archive_are_in_the_set(server, tmp_path):
    source = source_of(server, {"audio.zip": packed(AUDIO), "labels.csv": b"x,y"})
    content = content_of(fetch_set("mine", source, tmp_path, quiet))
    content.pop(FACTS)
    assert content == AUDIO | {"labels.csv": b"x,y"}


def test_a_set_in_parts_and_a_record_of_its_publisher(server, tmp_path):
    path = tmp_path / "audio.zip"
    path.write_bytes(packed(AUDIO))
    contents = {part.name: part.read_bytes() for part in split_zip(path, [3000, 6000])}
    known = source_of(server, contents)
    record = {"files": [{"key": f.name, "size": f.size, "checksum": f.checksum} for f in known.files]}
    url = server.serve("/record", json.dumps(record).encode())
    unknown = tuple(RemoteFile(name=file.name, url=file.url) for file in known.files)
    lines = []
    source = source_of(server, {}, files=unknown, record=url)
    content = content_of(fetch_set("mine", source, tmp_path / "root", lines.append))
    content.pop(FACTS)
    assert content == {name.removeprefix("set/"): audio for name, audio in AUDIO.items()}
    size = sum(map(len, contents.values()))
    assert f"download: 3 files, {size / 1000:.1f} kB, by {url}" in lines


def test_what_is_there_is_asked_for_no_more(server, source, tmp_path):
    fetch_set("mine", source, tmp_path, quiet)
    shutil.rmtree(tmp_path / "mine.download")
    server.requests.clear()
    lines = []
    fetch_set("mine", source, tmp_path, lines.append)
    assert server.requests == []
    assert any("is there, whole" in line for line in lines)


def test_licence_size_and_room_are_told_before_anything_is_asked(server, source, tmp_path, monkeypatch):
    lines = []

    def first_request(*arguments):
        raise DataError("; ".join(lines))

    monkeypatch.setattr(fetch, "_open", first_request)
    size = sum(file.size for file in source.files)
    with pytest.raises(
        DataError, match=rf"licence: CC0; none; download: 2 files, {size / 1000:.1f} kB.*free"
    ):
        fetch_set("mine", source, tmp_path, lines.append)


def test_an_interrupted_set_goes_on(server, source, tmp_path, monkeypatch):
    fill, written = Unpacker._fill, []

    def interrupted(self, target, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target.name)
        fill(self, target, *rest)

    monkeypatch.setattr(Unpacker, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_set("mine", source, tmp_path, quiet)
    assert not (tmp_path / "mine").exists()
    monkeypatch.setattr(Unpacker, "_fill", lambda *all: (written.append(all[1].name), fill(*all)))
    server.requests.clear()
    fetch_set("mine", source, tmp_path, quiet)
    assert server.requests == []
    assert len(written) == len(set(written)) == 6  # each once
    assert len(content_of(tmp_path / "mine")) == 7


def test_an_attempt_from_other_files_is_not_gone_on_with(server, source, tmp_path):
    stale = tmp_path / "mine.unpacking-0123456789ab"
    (stale / "set" / "audio").mkdir(parents=True)
    (stale / "set" / "audio" / "0.wav").write_bytes(bytes(2000))
    stale.with_name(f"{stale.name}.member").write_bytes(b"half")
    content = content_of(fetch_set("mine", source, tmp_path, quiet))
    assert content["audio/0.wav"] == AUDIO["set/audio/0.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.download"]


def test_a_hostile_archive_leaves_nothing(server, tmp_path):
    source = source_of(server, {"audio.zip": packed(AUDIO | {"../../evil": b"evil"})})
    with pytest.raises(DataError, match="could lie outside"):
        fetch_set("mine", source, tmp_path / "root", quiet)
    assert set(content_of(tmp_path)) == {"root/mine.download/audio.zip"}


def unpublished(server, name, content, **behaviour):
    """A set of one file that nobody gives a checksum of."""
    file = RemoteFile(name=name, url=server.serve(f"/{name}", content, **behaviour))
    return source_of(server, {}, files=(file,))


def test_a_first_download_that_is_no_archive_is_not_held_on_to(server, tmp_path):
    source = unpublished(server, "audio.zip", b"not found, but 200")
    with pytest.raises(DataError, match=r"no archive.*set aside as audio\.zip\.damaged.*downloads it again"):
        fetch_set("mine", source, tmp_path, quiet)
    assert set(content_of(tmp_path / "mine.download")) == {"audio.zip.damaged"}
    source = unpublished(server, "audio.zip", packed(AUDIO))
    content = content_of(fetch_set("mine", source, tmp_path, quiet))
    assert content["audio/0.wav"] == AUDIO["set/audio/0.wav"]
    digest = hashlib.sha256(packed(AUDIO)).hexdigest()
    assert (tmp_path / "mine.download" / "audio.zip.sha256").read_text() == f"{digest}  audio.zip\n"


def test_what_has_its_publishers_checksum_is_kept_though_it_cannot_be_unpacked(server, tmp_path):
    source = source_of(server, {"audio.zip": b"published so"})
    with pytest.raises(DataError, match="no archive"):
        fetch_set("mine", source, tmp_path, quiet)
    assert set(content_of(tmp_path / "mine.download")) == {"audio.zip"}


def test_a_sound_download_is_kept_where_there_is_no_room_to_unpack_it(server, tmp_path, monkeypatch):
    def full(self, archive, needed):
        raise DataError("make room")

    source = unpublished(server, "audio.zip", packed(AUDIO))
    with monkeypatch.context() as patch:
        patch.setattr(Unpacker, "_refuse_full_disk", full)
        with pytest.raises(DataError, match="make room"):
            fetch_set("mine", source, tmp_path, quiet)
    assert set(content_of(tmp_path / "mine.download")) == {"audio.zip", "audio.zip.sha256"}
    server.requests.clear()
    fetch_set("mine", source, tmp_path, quiet)
    assert server.requests == []


@pytest.mark.parametrize("name", ["audio.zip", "labels.csv"])
def test_a_page_that_asks_for_a_login_is_not_the_file(server, tmp_path, name):
    source = unpublished(server, name, b"<html>Log in</html>", content_type="text/html; charset=utf-8")
    with pytest.raises(DataError, match="answers with a web page"):
        fetch_set("mine", source, tmp_path, quiet)
    assert content_of(tmp_path) == {}
    assert fetch_set("mine", unpublished(server, "labels.csv", b"x,y"), tmp_path, quiet).is_dir()


def test_a_folder_of_the_user_is_not_touched(server, source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(DataError, match="not made by fetch"):
        fetch_set("mine", source, tmp_path, quiet)
    assert server.requests == []
    assert set(content_of(tmp_path)) == {"mine/notes"}


def test_esc50_as_github_packs_it_is_ready_to_train_on(server, pristine, tmp_path):
    root, rows = pristine
    members = {f"ESC-50-33c8ce9/{name}": content for name, content in content_of(root).items()}
    source = source_of(server, {"ESC-50.zip": packed(members)})
    folder = fetch_set("esc50", source, tmp_path, quiet)
    splits = load_splits(Esc50Data(root=str(folder)), tmp_path / "prepared", 0, quiet)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(rows)


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch, source):
    monkeypatch.setitem(SOURCES, "mine", source)


def test_the_command_makes_the_set(known, tmp_path, capsys):
    assert main(["fetch", "mine", "--root", str(tmp_path)]) == 0
    assert f"{tmp_path / 'mine'}: done" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(known, server, tmp_path, monkeypatch, capsys):
    server.files["/audio.zip"].break_after = [3000]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.time, "sleep", interrupt)
    assert main(["fetch", "mine", "--root", str(tmp_path / "a folder")]) == 130
    assert f"-m workbench.data fetch mine --root '{tmp_path / 'a folder'}'" in capsys.readouterr().err
    assert (tmp_path / "a folder" / "mine.download" / "audio.zip.part").stat().st_size == 3000
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    assert main(["fetch", "mine", "--root", str(tmp_path / "a folder")]) == 0
    assert ("/audio.zip", "bytes=3000-") in server.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine"], "--root DIR"),
        (["--root", "x"], "--list shows the sets"),
        (["nothing", "--root", "x"], "no set 'nothing' is known; there are esc50"),
        (["kinetics700", "--root", "x"], "cannot be downloaded; all of it: a copy of the videos"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_every_set(capsys):
    assert main(["fetch", "--list"]) == 0
    printed = capsys.readouterr().out
    for name, source in SOURCES.items():
        assert name in printed
        assert source.licence in printed


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with Display(Console(file=text)) as shown:
        shown("a.zip", 1_000, 5_000)
        now[0] += 21
        shown("a.zip", 2_000, 5_000)
        shown("a.zip", 3_000, None)
        now[0] += 21
        shown("a.zip", 4_000, None)
    assert text.getvalue() == "a.zip: 2.0 kB of 5.0 kB\na.zip: 4.0 kB\n"


def test_progress_is_a_bar_on_a_terminal():
    text = io.StringIO()
    with Display(Console(file=text, force_terminal=True, width=100)) as shown:
        shown("a.zip", 1_000, 5_000)
        shown("b[/].zip", 5_000, 5_000)
        shown.line("a [line]")
    assert "b[/].zip" in text.getvalue()
    assert "a [line]" in text.getvalue()


# --- what is known of the sets ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_fact_is_given_or_said_to_be_missing(name):
    source = SOURCES[name]
    assert source.page.startswith("https://")
    assert all(file.url.startswith("https://") for file in source.files)
    names = [file.name for file in source.files]
    assert len(set(names)) == len(names)
    if not source.files:
        assert source.bring
    elif source.record is not None:
        assert all(file.checksum is None for file in source.files)
        assert source.record.startswith("https://zenodo.org/api/records/")
    elif any(file.checksum is None for file in source.files):
        assert "the publisher gives none" in source.checksums
