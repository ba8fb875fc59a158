"""Downloads: whole and sound or not there, whatever the server does. Nothing but 127.0.0.1 is asked."""

import hashlib
import json
import random

import pytest

from workbench.data import fetch as module
from workbench.data.clips import DataError
from workbench.data.fetch import RemoteFile, fetch, only_one, with_record

from .unsound_server import unsound_server

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with unsound_server() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds waited between attempts; none of them pass."""
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def published(url, content=CONTENT):
    return RemoteFile(name="a.bin", url=url, size=len(content), checksum=md5(content))


def unpublished(url):
    return RemoteFile(name="a.bin", url=url)


def get(file, folder):
    """The lines reported."""
    lines = []
    fetch([file], folder, lines.append)
    return lines


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", [md5, sha256])
def test_a_file_is_there_as_published(server, tmp_path, algorithm):
    url = server.serve("/a", CONTENT)
    file = RemoteFile(name="a.bin", url=url, size=len(CONTENT), checksum=algorithm(CONTENT))
    assert fetch([file], tmp_path, lambda line: None) == {"a.bin": algorithm(CONTENT)}
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]


def test_progress_is_of_the_whole_file(server, tmp_path):
    url = server.serve("/a", CONTENT, break_after=[100_000])
    seen = []
    fetch([published(url)], tmp_path, lambda line: None, lambda *told: seen.append(told))
    assert {(name, total) for name, _, total in seen} == {("a.bin", len(CONTENT))}
    done = [done for _, done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)


def test_what_is_there_and_sound_is_not_downloaded_again(server, tmp_path):
    file = published(server.serve("/a", CONTENT))
    get(file, tmp_path)
    server.requests.clear()
    get(file, tmp_path)
    assert server.requests == []


def test_a_broken_connection_goes_on_where_it_broke_off(server, tmp_path, waits):
    url = server.serve("/a", CONTENT, break_after=[100_000, 50_000, 7])
    get(published(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150007-",
    ]
    assert waits == [1.0, 1.0, 1.0]  # each got further: the wait does not grow


def test_the_next_command_goes_on_too(server, tmp_path, monkeypatch):
    url = server.serve("/a", CONTENT, break_after=[100_000])

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(published(url), tmp_path)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:100_000]
    assert not (tmp_path / "a.bin").exists()
    get(published(url), tmp_path)
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]


def test_a_silent_connection_is_given_up_and_gone_on_with(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 1.0)
    url = server.serve("/a", CONTENT, stalls=1)
    lines = get(published(url), tmp_path)
    assert any("timed out" in line for line in lines)
    assert [asked for _, asked in server.requests[:2]] == [None, "bytes=150000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_it_from_the_beginning(server, tmp_path):
    url = server.serve("/a", CONTENT, break_after=[100_000], ignore_range=True)
    get(published(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(server, tmp_path, waits):
    url = server.serve("/a", CONTENT, break_after=[100_000] * 50, ignore_range=True)
    with pytest.raises(DataError, match=r"broke off at 100000 of 300000 bytes, and 6 attempts in a row"):
        get(published(url), tmp_path)
    assert len(server.requests) == 7  # the first of them brought something
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]


@pytest.mark.parametrize("ignore_if_range", [False, True])
@pytest.mark.parametrize("as_file", [published, unpublished])
def test_two_versions_are_never_spliced(server, tmp_path, ignore_if_range, as_file):
    url = server.serve(
        "/a", CONTENT, break_after=[100_000], changes_to=OTHER, ignore_if_range=ignore_if_range
    )
    file = as_file(url, OTHER) if as_file is published else as_file(url)
    get(file, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == OTHER


def test_a_part_from_elsewhere_in_the_file_is_not_put_behind(server, tmp_path):
    url = server.serve("/a", CONTENT, break_after=[100_000], shift=-10)
    get(unpublished(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_shrank_is_begun_anew(server, tmp_path):
    url = server.serve("/a", CONTENT, break_after=[100_000], changes_to=OTHER[:5000], ignore_if_range=True)
    get(unpublished(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == OTHER[:5000]


def test_without_validator_and_checksum_nothing_is_gone_on_with(server, tmp_path):
    url = server.serve("/a", CONTENT, break_after=[100_000], etag=None)
    get(unpublished(url), tmp_path)
    assert [asked for _, asked in server.requests] == [None, None]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_with(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(OTHER[:1000])
    (tmp_path / "a.bin.part.json").write_text(
        json.dumps({"url": "http://127.0.0.1/else", "validator": '"one"', "total": 300_000})
    )
    get(published(server.serve("/a", CONTENT)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


# --- lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [200_000, 400_000])
def test_a_length_that_is_not_the_published_one_is_refused(server, tmp_path, claimed):
    url = server.serve("/a", CONTENT, claimed_length=claimed)
    with pytest.raises(DataError, match=rf"offers {claimed} bytes and the published file has 300000"):
        get(published(url), tmp_path)
    assert names(tmp_path) == []


def test_a_claim_of_more_than_there_is_never_ends_well(server, tmp_path):
    url = server.serve("/a", CONTENT, claimed_length=400_000)
    with pytest.raises(DataError, match="attempts in a row brought nothing new"):
        get(unpublished(url), tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_a_claim_of_less_than_there_is_ends_at_the_checksum(server, tmp_path):
    url = server.serve("/a", CONTENT, claimed_length=200_000)
    file = RemoteFile(name="a.bin", url=url, checksum=md5(CONTENT))
    with pytest.raises(DataError, match="set aside"):
        get(file, tmp_path)
    assert (tmp_path / "a.bin.damaged").read_bytes() == CONTENT[:200_000]


def test_a_server_that_says_no_length_is_read_to_its_end(server, tmp_path):
    get(published(server.serve("/a", CONTENT, no_length=True)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_without_length_and_checksum_nothing_is_taken_for_whole(server, tmp_path):
    url = server.serve("/a", CONTENT, no_length=True, break_after=[100_000])
    with pytest.raises(DataError, match="whether all of it came could not be told"):
        get(unpublished(url), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', None])
def test_a_stream_without_length_that_breaks_off_is_not_taken_for_whole(server, tmp_path, etag):
    url = server.serve("/a", CONTENT, chunked=True, break_after=[100_500], ignore_range=True, etag=etag)
    lines = get(unpublished(url), tmp_path)
    assert any("broke off" in line for line in lines)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_full_disk_is_refused_before_anything_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"300\.0 kB are still to come and 1\.0 kB are free"):
        get(published(server.serve("/a", CONTENT)), tmp_path)
    assert server.requests == []


# --- checksums ----------------------------------------------------------------------------------------------


def test_a_wrong_checksum_sets_aside_and_the_next_command_begins_anew(server, tmp_path):
    file = published(server.serve("/a", OTHER), CONTENT)
    with pytest.raises(DataError, match=rf"a\.bin\.damaged: its checksum is {md5(OTHER)}, the published one"):
        get(file, tmp_path)
    assert names(tmp_path) == ["a.bin.damaged"]
    server.serve("/a", CONTENT)
    get(file, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("spoilt", [b"x" + CONTENT[1:], CONTENT[:-1]])
def test_a_file_spoilt_afterwards_is_set_aside_and_downloaded_again(server, tmp_path, spoilt):
    file = published(server.serve("/a", CONTENT))
    get(file, tmp_path)
    (tmp_path / "a.bin").write_bytes(spoilt)
    assert any("set aside as a.bin.damaged" in line for line in get(file, tmp_path))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert (tmp_path / "a.bin.damaged").read_bytes() == spoilt


def test_without_a_published_checksum_the_first_download_is_trusted(server, tmp_path):
    file = unpublished(server.serve("/a", CONTENT))
    assert fetch([file], tmp_path, lambda line: None) == {"a.bin": sha256(CONTENT)}
    assert (tmp_path / "a.bin.sha256").read_text() == f"{sha256(CONTENT)[7:]}  a.bin\n"
    server.requests.clear()
    get(file, tmp_path)
    assert server.requests == []
    (tmp_path / "a.bin").unlink()
    server.serve("/a", OTHER)
    with pytest.raises(DataError, match=r"that of the first download \(a\.bin\.sha256\)"):
        get(file, tmp_path)
    assert not (tmp_path / "a.bin").exists()


# --- answers ------------------------------------------------------------------------------------------------


def test_an_answer_that_may_pass_is_waited_for(server, tmp_path, waits):
    url = server.serve("/a", CONTENT, statuses=[500, 503, 429])
    get(published(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert waits == [2.0, 0.0, 0.0]  # where the server says how long, as long


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_answer_that_will_not_pass_is_told_at_once(server, tmp_path, status):
    url = server.serve("/a", CONTENT, statuses=[status])
    with pytest.raises(DataError, match=rf"/a: the server answers {status}"):
        get(published(url), tmp_path)
    assert len(server.requests) == 1


def test_nobody_there_is_told_in_the_end(tmp_path):
    with unsound_server() as server:
        url = server.serve("/a", CONTENT)
    with pytest.raises(DataError, match="no connection"):
        get(published(url), tmp_path)


def test_a_redirect_is_followed_to_http(server, tmp_path):
    target = server.serve("/there", CONTENT)
    url = server.serve("/a", b"", redirect=target)
    get(published(url), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:,hello"])
def test_a_redirect_to_anything_else_is_refused(server, tmp_path, target):
    url = server.serve("/a", b"", redirect=target)
    with pytest.raises(DataError, match=r"leads to|not allowed"):
        get(unpublished(url), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "/etc/hostname"])
def test_only_http_is_fetched_from(url):
    with pytest.raises(DataError, match="http and https only"):
        unpublished(url)


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "..", ""])
def test_a_name_is_that_of_a_file_in_the_folder(name):
    with pytest.raises(DataError, match="must be a file's name"):
        RemoteFile(name=name, url="http://127.0.0.1/a")


def test_one_process_at_a_time(tmp_path):
    with only_one(tmp_path), pytest.raises(DataError, match="another process"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


# --- the record of a publisher ------------------------------------------------------------------------------


def _record(*files):
    return json.dumps(
        {"id": 1, "files": [{"key": k, "size": s, "checksum": c} for k, s, c in files]}
    ).encode()


def test_a_record_gives_sizes_and_checksums(server, tmp_path):
    url = server.serve("/a", CONTENT)
    record = server.serve(
        "/record",
        _record(("a.bin", 300_000, md5(CONTENT)), ("b.bin", 1, md5(b"b"))),
        statuses=[503],
        break_after=[40],
    )
    (file,) = with_record([unpublished(url)], record, lambda line: None)
    assert (file.size, file.checksum) == (300_000, md5(CONTENT))
    get(file, tmp_path)
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_record(("b.bin", 1, md5(b"b"))), r"does not list a\.bin"),
        (b"<html>", "does not list files with key"),
        (b'{"files": [{"key": "a.bin"}]}', "does not list files with key"),
        (_record(("a.bin", 1, "crc:12")), "checksum must be"),
    ],
)
def test_a_record_that_does_not_say_it_is_refused(server, content, message):
    with pytest.raises(DataError, match=message):
        with_record([unpublished("http://127.0.0.1/a")], server.serve("/record", content), lambda line: None)
