"""A prepared set at a URL reads as it does in a folder; of its audio only what is heard is fetched."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
import torch

from workbench import data
from workbench.data import LAYOUTS, load_splits
from workbench.data import prepare as preparation
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.remote import open_remote
from workbench.data_config import Esc50Data, PoolData

from .small_datasets import identity_of, no_report, parts_of

CLIPS_PER_SHARD = 8


@pytest.fixture(scope="module")
def prepared(pristine, tmp_path_factory):
    """A folder to read from; `pristine` prepared, in six shards."""
    folder = tmp_path_factory.mktemp("prepared") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CLIPS_PER_SHARD", CLIPS_PER_SHARD)
        listing = LAYOUTS["esc50"].read(pristine[0], strictly)
        preparation.prepare("esc50", listing, pristine[0], folder, workers=1)
    return folder


class _Ranges(BaseHTTPRequestHandler):
    """Files of `server.folder`, whole or one range of them; `server.asked` is what for."""

    def do_GET(self):
        path = self.server.folder / self.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.asked.append((path.name, asked and (int(asked[1]), int(asked[2]) + 1)))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if asked and self.server.knows_ranges:
            content = content[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if asked and self.server.knows_ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def _http_server(folder):
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    http.folder, http.asked, http.knows_ranges = folder, [], True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def served(prepared):
    """The set by HTTP: its URL, and the server."""
    pytest.importorskip("aiohttp")
    with _http_server(prepared) as http:
        yield f"http://127.0.0.1:{http.server_address[1]}", http


@pytest.fixture
def in_memory(prepared):
    url = "memory://bucket/set"
    files = fsspec.filesystem("memory")
    files.put(f"{prepared}/", "/bucket/set/", recursive=True)
    yield url
    files.rm("/bucket", recursive=True)


@pytest.fixture
def at_url(prepared, tmp_path):
    """A copy to spoil, and its URL."""
    shutil.copytree(prepared, tmp_path / "there")
    return tmp_path / "there", (tmp_path / "there").as_uri()


@pytest.mark.parametrize("where", ["memory", "file", "http"])
def test_a_set_at_a_url_reads_as_it_does_in_a_folder(prepared, where, request, tmp_path):
    url = {
        "memory": lambda: request.getfixturevalue("in_memory"),
        "file": prepared.as_uri,
        "http": lambda: request.getfixturevalue("served")[0],
    }[where]()
    of_folder, of_url = (Esc50Data(root=root, test_fold=2) for root in (str(prepared), url))
    assert data.fingerprint(of_url) == data.fingerprint(of_folder)
    theirs = load_splits(of_folder, tmp_path / "theirs", 3, no_report)
    ours = load_splits(of_url, tmp_path / "ours", 3, no_report)
    for first, second in zip(parts_of(ours).values(), parts_of(theirs).values(), strict=True):
        assert identity_of(first) == identity_of(second)
        order = np.random.default_rng(0).permutation(len(first))
        assert all(map(torch.equal, first.read(order), second.read(order)))
        crops = [c.read(order, max_samples=500, generator=np.random.default_rng(1)) for c in (first, second)]
        assert all(map(torch.equal, *crops))
    assert (ours.classes, ours.left_out) == (theirs.classes, theirs.left_out)
    known = data.fingerprint(of_url)
    assert data.extent(of_url, tmp_path / "ours", known) == data.extent(of_folder, tmp_path, known)


def test_the_index_is_fetched_once_and_of_the_audio_what_is_heard(served, tmp_path):
    url, http = served
    clips = open_remote(url, tmp_path).clips
    assert not [name for name, _ in http.asked if name.startswith("audio-")]
    assert not list(tmp_path.rglob("audio-*"))
    assert not list(tmp_path.glob("*.tmp"))

    http.asked.clear()
    clips = open_remote(url, tmp_path).clips
    assert http.asked == [("set.json", None)]

    http.asked.clear()
    chosen = np.array([40, 3, 17, 3])
    clips.read(chosen, max_samples=1_000)
    expected = [
        (f"audio-{clips.source[i]:06d}.int16", (2 * clips.start[i], 2 * (clips.start[i] + 1_000)))
        for i in chosen
    ]
    assert sorted(http.asked) == sorted(expected)


def test_a_batch_is_asked_for_together(in_memory, tmp_path, monkeypatch):
    clips = open_remote(in_memory, tmp_path).clips
    calls = []
    whole = type(fsspec.filesystem("memory")).cat_ranges

    def counted(self, paths, *ranges, **options):
        calls.append(len(paths))
        return whole(self, paths, *ranges, **options)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_ranges", counted)
    clips.read(np.arange(30))
    assert calls == [30]


def test_remote_and_local_clips_are_read_in_one_batch(in_memory, tmp_path):
    """The embedded corpus joins a pool at a URL."""
    config = Esc50Data(root=in_memory, corpus_clips=4, corpus_clip_seconds=1.0)
    pool = load_splits(config, tmp_path, 0, lambda line: None).pool
    order = np.array([len(pool) - 1, 0, len(pool) - 2, 1])
    waveforms, lengths = pool.read(order)
    for waveform, length, number in zip(waveforms, lengths, order, strict=True):
        alone, expected = pool.read(np.array([number]))
        assert length == expected[0]
        assert torch.equal(waveform[:length], alone[0])


def test_a_pool_may_be_at_a_url(prepared, in_memory, tmp_path):
    pools = [
        data.load_pool(PoolData(root=root, clip_seconds=0.1, splits=("fold 3",)), tmp_path, no_report).clips
        for root in (in_memory, str(prepared))
    ]
    assert len(pools[0]) > 9
    assert all(map(torch.equal, *(pool.read(np.arange(len(pool))) for pool in pools)))


# --- what can be wrong --------------------------------------------------------------------------------------


def test_a_copy_of_recordings_at_a_url_is_refused(pristine):
    url = pristine[0].as_uri()
    with pytest.raises(DataError, match="must be a prepared set") as error:
        data.fingerprint(Esc50Data(root=url))
    assert str(error.value).startswith(f"{url}/set.json: not there")


@pytest.mark.parametrize("url", ["nonsense://bucket/set", "http://127.0.0.1:9/set"])
def test_a_url_that_cannot_be_read_is_named(url):
    with pytest.raises(DataError, match=rf"^{url}.*: cannot be read \("):
        data.fingerprint(Esc50Data(root=url))


def test_another_layouts_set_is_refused(in_memory):
    with pytest.raises(DataError, match=f"{in_memory}: is a prepared esc50, and data asks for esc10"):
        data.fingerprint(Esc50Data(root=in_memory, subset="esc10"))


def test_an_index_that_is_not_as_it_was_written_is_refused_and_not_kept(at_url, tmp_path):
    folder, url = at_url
    whole = (folder / "length.npy").read_bytes()
    (folder / "length.npy").write_bytes(whole[:-1] + b"\x7f")
    with pytest.raises(DataError, match=rf"{url}/length\.npy: not as it was written"):
        open_remote(url, tmp_path / "root")
    (folder / "length.npy").unlink()
    with pytest.raises(DataError, match="is not whole"):
        open_remote(url, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    (folder / "length.npy").write_bytes(whole)
    assert len(open_remote(url, tmp_path / "root").clips) == 45


def test_a_file_outside_of_the_root_is_refused(at_url, tmp_path):
    folder, url = at_url
    header = json.loads((folder / "set.json").read_text())
    header["sha256"]["../../stolen"] = "0" * 64
    (folder / "set.json").write_text(json.dumps(header))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="outside of its folder"):
        open_remote(url, tmp_path / "a" / "root")
    assert sorted(tmp_path.rglob("*")) == before


def test_whatever_a_header_calls_itself_its_index_lies_below_the_root(at_url, tmp_path):
    folder, url = at_url
    header = json.loads((folder / "set.json").read_text())
    header["layout"] = header["fingerprint"] = "../../elsewhere"
    (folder / "set.json").write_text(json.dumps(header))
    root = tmp_path / "a" / "root"
    before = set(tmp_path.rglob("*"))
    assert len(open_remote(url, root).clips) == 45
    assert {path for path in tmp_path.rglob("*") if root not in path.parents} == before | {root.parent, root}


def test_a_set_that_was_replaced_has_an_index_of_its_own(at_url, pristine, tmp_path):
    folder, url = at_url
    first = open_remote(url, tmp_path / "root")
    shutil.rmtree(folder)
    listing = LAYOUTS["esc50"].read(pristine[0], strictly)
    preparation.prepare("esc50", listing, pristine[0], folder, workers=1)  # the same, in one shard
    second = open_remote(url, tmp_path / "root")
    assert second.header.fingerprint == first.header.fingerprint
    assert (first.header.shards, second.header.shards) == (6, 1)
    assert second.clips.read(np.arange(45))[0].any()


def test_audio_that_is_gone_or_cut_short_is_named(at_url, tmp_path):
    folder, url = at_url
    clips = open_remote(url, tmp_path / "root").clips
    shard = folder / "audio-000001.int16"
    shard.write_bytes(shard.read_bytes()[:-2])
    clips.read(np.array([8]))
    with pytest.raises(DataError, match=r"audio-000001\.int16: gave \d+ bytes where \d+ were asked for"):
        clips.read(np.array([0, 15]))
    shard.unlink()
    with pytest.raises(DataError, match=r"audio-000001\.int16: not there"):
        clips.read(np.array([0, 8]))


def test_a_server_without_ranges_is_told_apart(served, tmp_path):
    url, http = served
    http.knows_ranges = False
    with pytest.raises(DataError, match="or its server knows no ranges"):
        open_remote(url, tmp_path).clips.read(np.array([1]))


def test_fsspec_is_only_needed_for_a_url(prepared, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from workbench.data import load_splits; from workbench.data_config import Esc50Data\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'fsspec': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "splits = load_splits(Esc50Data(root=sys.argv[1]), Path(sys.argv[2]), 0)\n"
        "print(len(splits.train), 'fsspec' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(prepared), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "False"]
