"""Archives of others, taken apart into a folder that nothing in them can leave.

An archive's whole list is checked before any of it is written: no absolute path, no "..", no link or device,
no name twice (nor two that are one to file systems that ignore case), no more bytes than the disk has room
for. A member is written aside and renamed: what is there is whole, and an interrupted archive goes on where
it stopped.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from rich.filesize import decimal

from workbench.data.clips import DataError
from workbench.data.split_zip import open_parts

CHUNK_BYTES = 1 << 20
ZIP = re.compile(r"(.*)\.(?:zip|z\d\d+)")  # whole, or split as ZIP does it
CUT_ZIP = re.compile(r"(.*)\.zip\.\d+")
TAR = re.compile(r"(.*)\.(?:tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz)")
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # zipfile's, for a compression it does not know
    ValueError,  # of a name that is no text
    struct.error,
)

Kind = Literal["file", "folder"]


class DamagedArchive(DataError):
    """`parts` are its files, which are not what they should be."""

    def __init__(self, message: str, parts: Sequence[Path]) -> None:
        super().__init__(message)
        self.parts = parts


@dataclass(frozen=True)
class _Member:
    name: str
    kind: Kind
    size: int  # bytes, as declared
    open: Callable[[], IO[bytes]]  # while the member is the current one


def group_parts(paths: Sequence[Path]) -> tuple[list[tuple[Path, ...]], list[Path]]:
    """The archives among `paths`, each as its parts in their order, and the files that are no archives."""
    archives: dict[tuple[re.Pattern[str], str], list[Path]] = {}
    files = []
    for path in sorted(paths, key=_part_order):
        for pattern in (ZIP, CUT_ZIP, TAR):
            if found := pattern.fullmatch(path.name.lower()):
                archives.setdefault((pattern, found[1]), []).append(path)
                break
        else:
            files.append(path)
    return [tuple(parts) for parts in archives.values()], files


def _part_order(path: Path) -> tuple[str, bool, int]:
    """NAME.z01 to NAME.z12, then NAME.zip; NAME.zip.001, ...: by number, the one without a number last."""
    number = re.fullmatch(r"\.z?(\d+)", path.suffix.lower())
    return path.stem, number is None, int(number[1]) if number else 0


class Unpacker:
    """Takes archives apart into one folder, which it alone writes to.

    What an earlier, interrupted attempt at the same archives left there is kept.
    """

    def __init__(
        self, folder: Path, progress: Callable[[str, int, int | None], None] = lambda name, done, total: None
    ) -> None:
        """`progress` is told of an archive's name, the bytes unpacked, and those in all."""
        self._folder = folder
        self._aside = folder.with_name(f"{folder.name}.member")  # beside it, where no member's name leads
        self._progress = progress
        self._taken: dict[str, tuple[PurePosixPath, Kind]] = {}  # by `_key`
        self._files: set[PurePosixPath] = set()  # of the archives before
        folder.mkdir(parents=True, exist_ok=True)

    def unpack(self, parts: Sequence[Path]) -> None:
        """One archive: a zip, or a tar, compressed or not; `parts` are its files, in their order.

        A file that an archive before had too must be the same, byte for byte. Raises DataError: with nothing
        of the archive written for what its list shows, later for damage, which is a DamagedArchive.
        """
        try:
            total, files = self._check(parts)
            self._write(parts, total)
        except DataError:
            raise
        except DAMAGE as error:
            message = f"{parts[-1]}: is damaged, or no archive ({error or type(error).__name__})"
            raise DamagedArchive(message, parts) from None
        self._files |= files

    def add(self, path: Path) -> None:
        """A file that is no archive, copied."""
        self._take(PurePosixPath(path.name), "file", path)
        self._refuse_full_disk(path, path.stat().st_size)
        shutil.copyfile(path, self._aside)
        self._aside.replace(self._folder / path.name)

    def _check(self, parts: Sequence[Path]) -> tuple[int, set[PurePosixPath]]:
        """Bytes of the archive's files, and their paths; refuses what must not be unpacked."""
        files: set[PurePosixPath] = set()
        total = missing = 0
        for member in _members(parts):
            path = _inside(member, parts[-1])
            self._take(path, member.kind, parts[-1])
            if member.kind == "folder":
                continue
            if path in files:
                raise DataError(f"{parts[-1]}: refused, since it has {member.name!r} twice")
            files.add(path)
            total += member.size
            missing += 0 if _is_whole(self._folder / path, member.size) else member.size
            self._refuse_full_disk(parts[-1], missing)
        return total, files

    def _take(self, path: PurePosixPath, kind: Kind, archive: Path) -> None:
        """A path and the folders above it. Raises DataError where another is in its way."""
        for taken, as_kind in [*((folder, "folder") for folder in path.parents), (path, kind)]:
            known, known_kind = self._taken.setdefault(_key(taken), (taken, as_kind))
            if known != taken:
                raise DataError(
                    f"{archive}: refused, since it has {str(taken)!r} beside {str(known)!r}, which are one "
                    "to file systems that ignore case"
                )
            if known_kind != as_kind:
                raise DataError(f"{archive}: refused, since it has {str(taken)!r} as a file and as a folder")

    def _refuse_full_disk(self, archive: Path, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise DataError(
                f"{archive}: unpacks to {decimal(needed)} or more, and {decimal(free)} are free in "
                f"{self._folder}; make room, or name another folder"
            )

    def _write(self, parts: Sequence[Path], total: int) -> None:
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            self._progress(parts[-1].name, done, total)

        for member in _members(parts):
            path = _inside(member, parts[-1])
            target = self._folder / path
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
            elif path in self._files:
                with member.open() as source:
                    if not _is_same(target, source):
                        raise DataError(
                            f"{parts[-1]}: its {member.name!r} differs from that of an archive before"
                        )
                advance(member.size)
            elif _is_whole(target, member.size):
                advance(member.size)
            else:
                with member.open() as source:
                    self._fill(target, source, member.size, advance)

    def _fill(self, target: Path, source: IO[bytes], size: int, advance: Callable[[int], None]) -> None:
        """Write aside, and rename when it is as long as was declared; EOFError when it is not."""
        target.parent.mkdir(parents=True, exist_ok=True)
        left = size
        with self._aside.open("wb") as out:
            while left >= 0 and (chunk := source.read(CHUNK_BYTES)):
                left -= len(chunk)
                out.write(chunk[: left + len(chunk)])
                advance(len(chunk))
        if left:
            raise EOFError(f"{target.name} has not the {size} bytes that are declared")
        self._aside.replace(target)


def _is_whole(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _key(path: PurePosixPath) -> str:
    """What a file system that ignores case, or how accents are encoded, knows a path by."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _is_same(target: Path, source: IO[bytes]) -> bool:
    with target.open("rb") as file:
        chunks = ((file.read(CHUNK_BYTES), source.read(CHUNK_BYTES)) for _ in itertools.count())
        return all(ours == theirs for ours, theirs in itertools.takewhile(any, chunks))


def _inside(member: _Member, archive: Path) -> PurePosixPath:
    """Its path below the folder. Raises DataError when it leads out of it, on this system or another."""
    name = member.name
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or (member.kind == "file" and not path.parts)
        or ".." in path.parts
        or "\\" in name
        or re.match(r"[A-Za-z]:", name)
        or any(unicodedata.category(character) == "Cc" for character in name)
    ):
        raise DataError(
            f"{archive}: refused, since its member {name!r} could lie outside of the folder that it is "
            "unpacked into; nothing of it was unpacked"
        )
    return path


# --- what is in an archive ----------------------------------------------------------------------------------


def _members(parts: Sequence[Path]) -> Iterator[_Member]:
    with open_parts(parts) as file:
        if TAR.fullmatch(parts[0].name.lower()):
            yield from _tar_members(file, parts[-1])
        else:
            yield from _zip_members(file, parts[-1])


def _zip_members(file: IO[bytes], path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            # zipfile cuts the other name at a NUL.
            kind: Kind = "folder" if info.orig_filename.endswith("/") else "file"
            mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not made on Unix
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _special(path, info.orig_filename)
            if info.flag_bits & 1:
                raise DataError(f"{path}: {info.filename!r} is encrypted, which no published set is")
            if info.header_offset < 0:
                raise zipfile.BadZipFile("its beginning is missing")
            size = 0 if kind == "folder" else info.file_size
            yield _Member(info.orig_filename, kind, size, functools.partial(archive.open, info))


def _tar_members(file: IO[bytes], path: Path) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise _special(path, info.name)
            kind: Kind = "folder" if info.isdir() else "file"
            yield _Member(info.name, kind, info.size, functools.partial(_open_tar_member, archive, info))


def _open_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None  # as for every regular file
    return file


def _special(archive: Path, name: str) -> DataError:
    return DataError(
        f"{archive}: refused, since its member {name!r} is a link or a device, through which files could be "
        "written elsewhere; nothing of it was unpacked"
    )
