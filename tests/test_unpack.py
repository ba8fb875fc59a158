"""Archives: what is honest comes out as it went in, what is hostile leaves nothing behind, anywhere."""

import io
import random
import shutil
import stat
import subprocess
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest

from workbench.data import unpack as module
from workbench.data.clips import DataError
from workbench.data.unpack import Unpacker, group_parts

from .archives import MEMBERS, content_of, split_zip, write_tar, write_zip


@pytest.fixture
def out(tmp_path):
    return tmp_path / "in" / "out"


@pytest.fixture
def refused(tmp_path, out):
    """`refused(path, message)`: the archive is refused so, and nothing was written anywhere."""

    def check(path, message):
        unpacker = Unpacker(out)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError, match=message) as caught:
            unpacker.unpack([path])
        assert path.name in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    return check


# --- honest archives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2"])
def test_what_comes_out_is_what_went_in(tmp_path, out, name):
    path = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name)
    seen = []
    Unpacker(out, lambda *told: seen.append(told)).unpack([path])
    assert content_of(out) == MEMBERS
    total = sum(map(len, MEMBERS.values()))
    assert seen[-1] == (name, total, total)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_folders_are_made_and_modes_are_not_taken_over(tmp_path, out):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("./empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("./program")
        info.mode = 0o6777
        archive.addfile(info)
    Unpacker(out).unpack([path])
    assert (out / "empty").is_dir()
    assert (out / "program").stat().st_mode & 0o6111 == 0


def test_archives_of_one_set_share_a_folder(tmp_path, out):
    unpacker = Unpacker(out)
    unpacker.unpack([write_zip(tmp_path / "a.zip", {"set/README": b"same", "set/a.wav": b"a"})])
    unpacker.unpack([write_zip(tmp_path / "b.zip", {"set/README": b"same", "set/b.wav": b"b"})])
    plain = tmp_path / "labels.csv"
    plain.write_bytes(b"x,y")
    unpacker.add(plain)
    assert content_of(out) == {
        "set/README": b"same",
        "set/a.wav": b"a",
        "set/b.wav": b"b",
        "labels.csv": b"x,y",
    }


def test_archives_of_one_set_must_agree(tmp_path, out):
    unpacker = Unpacker(out)
    unpacker.unpack([write_zip(tmp_path / "a.zip", {"README": b"this"})])
    with pytest.raises(DataError, match=r"b\.zip: its 'README' differs"):
        unpacker.unpack([write_zip(tmp_path / "b.zip", {"README": b"that"})])
    assert content_of(out) == {"README": b"this"}


def test_an_interrupted_archive_goes_on(tmp_path, out, monkeypatch):
    path = write_zip(tmp_path / "a.zip")
    fill = Unpacker._fill
    written = []

    def interrupted(self, target, *rest):
        if len(written) == 2:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._aside.write_bytes(b"half of it")
            raise KeyboardInterrupt
        written.append(target.name)
        fill(self, target, *rest)

    monkeypatch.setattr(Unpacker, "_fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Unpacker(out).unpack([path])
    assert len(content_of(out)) == 2
    again = []
    monkeypatch.setattr(
        Unpacker, "_fill", lambda self, target, *rest: (again.append(target.name), fill(self, target, *rest))
    )
    Unpacker(out).unpack([path])
    assert content_of(out) == MEMBERS
    assert sorted(again + written) == sorted(PurePosixPath(name).name for name in MEMBERS)


# --- hostile archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/abs", "//abs", "a\\..\\x", "..\\x", "C:x", "c:/x", "a\nb", "a\x1bb", ".."],
)
def test_a_name_that_leads_out_is_refused(tmp_path, refused, write, name):
    path = tmp_path / ("a.zip" if write is write_zip else "a.tar")
    write(path, {"good.wav": b"good", name: b"evil"})
    refused(path, "could lie outside")


def test_a_name_with_nul_is_refused(tmp_path, refused):
    path = write_zip(tmp_path / "a.zip", {"good.wav": b"good", "evil.wavX.txt": b"evil"})
    path.write_bytes(path.read_bytes().replace(b"evil.wavX", b"evil.wav\0"))
    refused(path, "could lie outside")


def _tar_with(path, *infos):
    with tarfile.open(path, "w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def _info(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        _info("link", tarfile.SYMTYPE, "/tmp"),
        _info("link", tarfile.SYMTYPE, "inside"),
        _info("link", tarfile.LNKTYPE, "/etc/passwd"),
        _info("device", tarfile.CHRTYPE),
        _info("device", tarfile.BLKTYPE),
        _info("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, refused, hostile):
    refused(_tar_with(tmp_path / "a.tar", _info("good.wav", size=3), hostile), "is a link or a device")


def test_a_file_through_a_link_is_never_written(tmp_path, refused):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = _info("door", tarfile.SYMTYPE, str(elsewhere))
    refused(_tar_with(tmp_path / "a.tar", link, _info("door/evil", size=3)), "is a link or a device")
    refused(_tar_with(tmp_path / "b.tar", _info("door/evil", size=3), link), "is a link or a device")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, refused, mode):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.wav", b"good")
        info = zipfile.ZipInfo("door")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/tmp")
    refused(path, "is a link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path, refused):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", b"what a check reads")
        archive.writestr("./a.wav", b"what is left")
    refused(path, "twice")
    refused(_tar_with(tmp_path / "a.tar", _info("a.wav", size=3), _info("a.wav", size=4)), "twice")


@pytest.mark.parametrize("names", [("a/B.wav", "a/b.wav"), ("A/x", "a/y"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_are_one_where_case_is_ignored_are_refused(tmp_path, refused, names):
    refused(write_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x")), "ignore case")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path, refused, names):
    refused(write_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x")), "as a file and as a folder")


def test_more_than_the_disk_holds_is_refused(tmp_path, refused):
    """A member declared to have an exabyte, in 64 bits, in an archive of some hundred bytes."""
    path = write_zip(tmp_path / "a.zip", {"good.wav": b"good", "bomb": bytes(100_000)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("bomb").file_size = 1 << 60
        archive.comment = b"so that the directory is written anew"
    assert path.stat().st_size < 1000
    refused(path, "unpacks to")


def test_more_than_the_disk_holds_in_a_tar_is_refused(tmp_path, refused, monkeypatch):
    path = write_tar(tmp_path / "a.tar.gz", {f"{i}": bytes(100_000) for i in range(20)})
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    refused(path, r"unpacks to 1\.1 MB or more, and 1\.0 MB are free")


@pytest.mark.parametrize("declared", [50, 200_000])
def test_a_member_of_another_size_than_declared_is_never_there(tmp_path, out, declared):
    path = write_zip(tmp_path / "a.zip", {"bomb": bytes(100_000)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("bomb").file_size = declared
        archive.comment = b"so that the directory is written anew"
    with pytest.raises(DataError, match=r"a\.zip: is damaged"):
        Unpacker(out).unpack([path])
    assert content_of(out) == {}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"no archive" * 50, lambda b: b""])
def test_a_damaged_archive_is_named(tmp_path, out, name, spoil):
    path = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=name):
        Unpacker(out).unpack([path])


def test_a_flipped_byte_is_found(tmp_path, out):
    path = write_zip(tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(MEMBERS["set/audio/one.wav"]) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: is damaged"):
        Unpacker(out).unpack([path])
    assert "set/audio/one.wav" not in content_of(out)


def test_an_encrypted_member_is_refused(tmp_path, refused):
    path = write_zip(tmp_path / "a.zip", {"secret": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("secret").flag_bits |= 1
        archive.comment = b"so that the directory is written anew"
    refused(path, "encrypted")


# --- archives in parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[2000], [50, 2000, 4000, 8000], list(range(700, 9000, 700))])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_split_zip_is_read_as_one(tmp_path, out, cuts, compression):
    path = write_zip(tmp_path / "a.zip", compression=compression)
    parts = split_zip(path, [cut for cut in cuts if cut < path.stat().st_size])
    (found,), files = group_parts(list(tmp_path.glob("a.*")))
    assert list(found) == parts
    assert files == []
    Unpacker(out).unpack(found)
    assert content_of(out) == MEMBERS


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP's zip")
@pytest.mark.parametrize("options", [[], ["-fz"]], ids=["32-bit", "64-bit"])
def test_a_split_zip_of_another_program_is_read(tmp_path, out, options):
    folder = tmp_path / "set"
    members = {f"{i}.wav": random.Random(i).randbytes(50_000) for i in range(6)}
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-s", "64k", *options, "-r", "../a.zip", "."], cwd=folder, check=True)
    (parts,), _ = group_parts(list(tmp_path.glob("a.z*")))
    assert len(parts) == 5
    Unpacker(out).unpack(parts)
    assert content_of(out) == members


def test_a_split_zip_with_a_missing_part_says_so(tmp_path, out):
    path = write_zip(tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    parts = split_zip(path, [2000, 4000])
    with pytest.raises(
        DataError, match=r"a\.zip: is the last of 3 parts, and 2 are there \(a\.z01, a\.zip\)"
    ):
        Unpacker(out).unpack([parts[0], parts[2]])
    with pytest.raises(DataError, match=r"a\.z02: has no directory"):
        Unpacker(out).unpack([parts[0], parts[1]])
    with pytest.raises(DataError, match=r"a\.zip"):
        Unpacker(out).unpack([parts[2]])
    assert content_of(out) == {}


def test_a_split_zip_is_as_safe_as_any(tmp_path, out):
    path = write_zip(tmp_path / "a.zip", {"good.wav": bytes(3000), "../evil": b"evil"}, zipfile.ZIP_STORED)
    with pytest.raises(DataError, match="could lie outside"):
        Unpacker(out).unpack(split_zip(path, [1000]))
    assert content_of(tmp_path / "in") == {}


@pytest.mark.parametrize("byte", range(0, 60, 7))
def test_a_split_zip_with_a_damaged_directory_is_named(tmp_path, out, byte):
    parts = split_zip(write_zip(tmp_path / "a.zip", compression=zipfile.ZIP_STORED), [2000])
    content = bytearray(parts[-1].read_bytes())
    content[content.index(b"PK\1\2") + byte] ^= 0xFF
    parts[-1].write_bytes(content)
    unpacker = Unpacker(out)
    try:
        unpacker.unpack(parts)
    except DataError as error:
        assert "a.zip" in str(error)  # noqa: PT017
    else:
        assert set(content_of(out).values()) <= set(MEMBERS.values())


def test_a_zip_cut_anywhere_is_read_as_one(tmp_path, out):
    whole = write_zip(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "whole.zip").unlink()
    for i, start in enumerate(range(0, len(whole), 1000), start=1):
        (tmp_path / f"mp3.zip.{i:03d}").write_bytes(whole[start : start + 1000])
    (parts,), _ = group_parts(list(tmp_path.glob("mp3.zip.*")))
    assert len(parts) == -(-len(whole) // 1000) > 3
    Unpacker(out).unpack(parts)
    assert content_of(out) == MEMBERS
    with pytest.raises(DataError, match=r"mp3\.zip"):
        Unpacker(out.with_name("other")).unpack(parts[:-1])
    with pytest.raises(DataError, match=r"mp3\.zip"):
        Unpacker(out.with_name("third")).unpack([parts[0], *parts[2:]])


def test_parts_are_told_from_other_files(tmp_path):
    names = ["b.csv", "a.z10", "a.z02", "a.z01", "a.zip", "c.tar.gz", "d.zip", "e.zip.002", "e.zip.001"]
    archives, files = group_parts([tmp_path / name for name in names])
    assert sorted([part.name for part in parts] for parts in archives) == [
        ["a.z01", "a.z02", "a.z10", "a.zip"],
        ["c.tar.gz"],
        ["d.zip"],
        ["e.zip.001", "e.zip.002"],
    ]
    assert [path.name for path in files] == ["b.csv"]
