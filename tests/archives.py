"""Archives for tests: packed, cut into parts, and what a folder holds after unpacking."""

import io
import random
import struct
import tarfile
import zipfile
from pathlib import PurePosixPath

MEMBERS = {
    "set/audio/one.wav": random.Random(0).randbytes(3000),
    "set/audio/two words.wav": random.Random(1).randbytes(5000),
    "set/meta.csv": b"filename,label\n" * 200,
    "set/empty.txt": b"",
}


def write_zip(path, members=MEMBERS, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members=MEMBERS):
    mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def content_of(folder):
    return {
        str(PurePosixPath(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def split_zip(path, cuts):
    """NAME.z01, ..., NAME.zip of a zip, cut there, with places as the format counts them in such."""
    whole = bytearray(b"PK\7\x08" + path.read_bytes())
    starts = [0, *cuts]
    end = whole.rindex(b"PK\5\6")
    count, _, directory = struct.unpack_from("<HII", whole, end + 10)
    directory += 4

    def place(offset):
        part = max(i for i, start in enumerate(starts) if start <= offset)
        return part, offset - starts[part]

    at = directory
    for _ in range(count):
        name, extra, comment = struct.unpack_from("<3H", whole, at + 28)
        (offset,) = struct.unpack_from("<I", whole, at + 42)
        part, offset = place(offset + 4)
        struct.pack_into("<H", whole, at + 34, part)
        struct.pack_into("<I", whole, at + 42, offset)
        at += 46 + name + extra + comment
    part, offset = place(directory)
    struct.pack_into("<HH", whole, end + 4, len(starts) - 1, part)
    struct.pack_into("<I", whole, end + 16, offset)
    path.unlink()
    bounds = [*starts, len(whole)]
    parts = [path.with_suffix(f".z{i + 1:02d}") for i in range(len(starts) - 1)] + [path]
    for i, part in enumerate(parts):
        part.write_bytes(whole[bounds[i] : bounds[i + 1]])
    return parts
