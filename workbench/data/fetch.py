"""Files over HTTP: downloads that go on where they broke off, and are there only when they are sound.

NAME.part grows beside NAME, and NAME.part.json says of which version of the remote file it is the beginning:
the end of one version is never put behind the beginning of another. Length and checksum are compared before
NAME is there. Where the publisher gives no checksum, that of the first download is kept in NAME.sha256 and
holds from then on; unless it turns out that this was not the file at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rich.filesize import decimal

from workbench.data.clips import DataError
from workbench.data.exclusive import exclusive

TIMEOUT_SECONDS = 60.0  # without a byte
ATTEMPTS = 6  # in a row that bring nothing new
BACKOFF_SECONDS = 1.0  # before the next attempt; doubled with each that brought nothing new
LONGEST_WAIT_SECONDS = 120.0  # that a server can ask for
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass
CHUNK_BYTES = 1 << 18
LONGEST_RECORD_BYTES = 10_000_000

Report = Callable[[str], None]
Progress = Callable[[str, int, int | None], None]  # file name; bytes done; bytes in all, None if not known
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to download, and what is known of it beforehand."""

    name: str  # in the folder that it is downloaded into
    url: str
    size: int | None = None  # bytes
    checksum: str | None = None  # md5:<hex> or sha256:<hex>

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name in {"", ".", ".."}:
            raise DataError(f"{self.name!r}: must be a file's name, without a folder")
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise DataError(f"{self.name}: can be fetched from http and https only, not from {self.url}")
        if self.checksum is not None and not re.fullmatch(
            r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum
        ):
            raise DataError(f"{self.name}: checksum must be md5:HEX or sha256:HEX, is {self.checksum!r}")


class _Broken(Exception):
    """An attempt that failed in a way that may pass; `wait` is how many seconds the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _RangeRefused(Exception):
    """HTTP 416: the server's file does not reach to where ours ends."""


def fetch(
    files: Sequence[RemoteFile],
    folder: Path,
    report: Report = print,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, str]:
    """Download into `folder` what is not there whole and sound; every file's checksum, by name.

    One process at a time may do this in a folder (`only_one`). Raises DataError for what the publisher's
    server does, or the files turn out to be, and OSError for what this machine's disk does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _is_there(file, folder / file.name, report)]
    sizes = ((file.size, _size_of(_part(folder / file.name))) for file in missing)
    _refuse_full_disk(folder, sum(size - begun for size, begun in sizes if size is not None))
    for file in missing:
        _download(file, folder / file.name, report, progress)
    return {file.name: file.checksum or _recorded(folder / file.name) or "" for file in files}


def set_aside(files: Sequence[RemoteFile], folder: Path) -> list[str]:
    """Take back those, with their checksums, that only their first download vouches for; their new names."""
    asides = []
    for file in files:
        path = folder / file.name
        if file.checksum is None and path.exists():
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            _own_checksum(path).unlink(missing_ok=True)
            asides.append(aside.name)
    return asides


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """While entered, no other process can enter with this folder. Raises DataError."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder, wait=False))
        except BlockingIOError:
            raise DataError(f"{folder}: another process is fetching into it; wait until it ends") from None
        yield


def with_record(files: Sequence[RemoteFile], record: str, report: Report = print) -> list[RemoteFile]:
    """`files` with the sizes and checksums that a Zenodo record gives; `record` is its URL in Zenodo's API.

    Raises DataError when the record cannot be had, or lacks one of the files.
    """
    content = _persistently(lambda: _read_record(record), record, lambda: 0, report)
    published = {entry["key"]: entry for entry in content}
    absent = [file.name for file in files if file.name not in published]
    if absent:
        raise DataError(f"{record}: does not list {', '.join(absent)}; its files may have been replaced")
    return [
        dataclasses.replace(
            file, size=published[file.name]["size"], checksum=published[file.name]["checksum"]
        )
        for file in files
    ]


def _read_record(url: str) -> list[dict[str, Any]]:
    with _open(url, {}) as response:
        text = b"".join(_chunks(response, LONGEST_RECORD_BYTES))
        if len(text) < min(_length(response) or 0, LONGEST_RECORD_BYTES):
            raise _Broken("the connection broke off")
    try:
        entries = json.loads(text)["files"]
        return [
            {"key": str(entry["key"]), "size": int(entry["size"]), "checksum": str(entry["checksum"])}
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{url}: does not list files with key, size and checksum, as a Zenodo record does"
        ) from None


# --- what is there ------------------------------------------------------------------------------------------


def _is_there(file: RemoteFile, path: Path, report: Report) -> bool:
    """Whether it is there and sound; set aside if it is not sound."""
    if not path.exists():
        return False
    expected = file.checksum or _recorded(path)
    if expected is None:
        report(f"{path}: was there before; its checksum is not known, and from now on is what it is now")
        _record(path, checksum_of(path, "sha256"))
        return True
    if file.size is None or path.stat().st_size == file.size:
        found = checksum_of(path, expected.partition(":")[0])
        if found == expected:
            return True
        reason = f"its checksum is {found}, and should be {expected}"
    else:
        reason = f"has {path.stat().st_size} bytes, and should have {file.size}"
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    report(f"{path}: {reason}; set aside as {aside.name}, downloaded again")
    return False


def checksum_of(path: Path, algorithm: str) -> str:
    """`<algorithm>:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _recorded(path: Path) -> str | None:
    """What was found when the file was first downloaded."""
    try:
        digest = _own_checksum(path).read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return None
    return f"sha256:{digest}"


def _record(path: Path, checksum: str) -> None:
    """In the form that `sha256sum --check` reads."""
    digest = checksum.partition(":")[2]
    _own_checksum(path).write_text(f"{digest}  {path.name}\n")


def _own_checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {decimal(needed)} are still to come and {decimal(free)} are free; make room, or name "
            "another folder"
        )


# --- one file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which version of a remote file a part is the beginning of."""

    url: str
    validator: str | None  # a strong ETag, else the date of its last modification
    total: int | None  # bytes, as the server said

    @classmethod
    def read(cls, part: Path) -> _Version | None:
        try:
            return cls(**json.loads(_state(part).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, part: Path) -> None:
        _state(part).write_text(json.dumps(dataclasses.asdict(self)))


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(file: RemoteFile, path: Path, report: Report, progress: Progress) -> None:
    part = _part(path)
    report(f"{file.name}: {'going on' if part.exists() else 'downloading'} from {file.url}")
    _persistently(lambda: _attempt(file, part, progress), file.url, lambda: _size_of(part), report)
    _finish(file, part, path)


def _persistently(attempt: Callable[[], T], url: str, reached: Callable[[], int], report: Report) -> T:
    """Until it succeeds, or does not get further than it once was for `ATTEMPTS` times in a row."""
    failures, furthest = 0, reached()
    while True:
        try:
            return attempt()
        except _Broken as broken:
            failures = 0 if reached() > furthest else failures + 1
            furthest = max(furthest, reached())
            if failures == ATTEMPTS:
                raise DataError(
                    f"{url}: {broken}, and {ATTEMPTS} attempts in a row brought nothing new; what is "
                    "downloaded is kept, run the same command again later"
                ) from None
            seconds = broken.wait if broken.wait is not None else BACKOFF_SECONDS * 2**failures
            report(f"{url}: {broken}; trying again in {seconds:.0f} s")
            time.sleep(seconds)


def _attempt(file: RemoteFile, part: Path, progress: Progress) -> None:
    """One connection: as much of the file as it brings. Raises _Broken when that is not all."""
    version, offset = _begun(file, part)
    if version is not None and offset == _expected(file, version):
        return  # only the checksum was left to compare
    try:
        response = _open(file.url, _range(version, offset))
    except _RangeRefused:
        _discard(part)
        raise _Broken("the file is shorter than what was downloaded; from its beginning") from None
    with response:
        if response.status != 206:
            version, offset = _begin(file, part, response), 0
        elif version is None or not _continues(response, version, offset):
            _discard(part)
            raise _Broken("the file was changed meanwhile; from its beginning")
        expected = _expected(file, version)
        _refuse_full_disk(part.parent, (expected or 0) - offset)
        _receive(file.name, response, part, offset, expected, progress)


def _expected(file: RemoteFile, version: _Version) -> int | None:
    """Bytes of the whole file, as the publisher or else the server says."""
    return version.total if file.size is None else file.size


def _begun(file: RemoteFile, part: Path) -> tuple[_Version | None, int]:
    """What can be gone on with: the part's version and bytes. No version: the part may be of another file."""
    version, offset = _Version.read(part), _size_of(part)
    if version is None or version.url != file.url or (file.size is not None and offset > file.size):
        return None, 0
    # Without a validator the server cannot tell that its file was changed; then the checksum will.
    return (version, offset) if version.validator or file.checksum else (None, 0)


def _begin(file: RemoteFile, part: Path, response: http.client.HTTPResponse) -> _Version:
    """Start the part anew, of the version that the server has now."""
    total = _length(response)
    if file.checksum is None and response.headers.get_content_type() == "text/html":
        raise DataError(
            f"{file.url}: the server answers with a web page, not with the file; does this network ask for a "
            "login? Open the address in a browser, and give the command again"
        )
    if total is None and file.size is None and file.checksum is None and not response.chunked:
        raise DataError(
            f"{file.url}: the server does not say how long the file is, and nobody its checksum: whether "
            "all of it came could not be told; download it another way"
        )
    if file.size is not None and total not in (None, file.size):
        raise DataError(
            f"{file.url}: the server offers {total} bytes and the published file has {file.size}; it was "
            "replaced, or the server is wrong"
        )
    _discard(part)  # first: no old bytes may be taken for those of the new version
    version = _Version(url=file.url, validator=_validator(response.headers), total=total)
    version.write(part)
    return version


def _range(version: _Version | None, offset: int) -> dict[str, str]:
    """The headers that ask for the rest, on condition that it is of the same version."""
    if not offset or version is None:
        return {}
    condition = {"If-Range": version.validator} if version.validator else {}
    return {"Range": f"bytes={offset}-", **condition}


def _continues(response: http.client.HTTPResponse, version: _Version, offset: int) -> bool:
    """Whether a partial answer begins where our part ends, and is of the same version."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found or int(found[1]) != offset:
        return False
    same_total = version.total is None or found[2] in ("*", str(version.total))
    validator = _validator(response.headers)
    return same_total and (None in (validator, version.validator) or validator == version.validator)


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak one does not promise the same bytes
        return etag
    return headers.get("Last-Modified")


def _receive(
    name: str,
    response: http.client.HTTPResponse,
    part: Path,
    offset: int,
    expected: int | None,
    progress: Progress,
) -> None:
    with part.open("ab") as out:
        for chunk in _chunks(response, None if expected is None else expected - offset):
            out.write(chunk)
            offset += len(chunk)
            progress(name, offset, expected)
    if expected is not None and offset < expected:
        raise _Broken(f"the connection broke off at {offset} of {expected} bytes")


def _finish(file: RemoteFile, part: Path, path: Path) -> None:
    """Compare with what is known, then publish."""
    expected = file.checksum or _recorded(path)
    found = checksum_of(part, expected.partition(":")[0] if expected else "sha256")
    if expected not in (None, found):
        aside = path.with_name(f"{path.name}.damaged")
        part.replace(aside)
        _discard(part)
        whose = "the published one" if file.checksum else f"that of the first download ({path.name}.sha256)"
        raise DataError(
            f"{aside}: its checksum is {found}, {whose} is {expected}; set aside. The same command downloads "
            f"it again; if that ends alike, the file at {file.url} is not the one that was published"
        )
    if expected is None:
        _record(path, found)
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())
    part.replace(path)
    _discard(part)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


# --- HTTP ---------------------------------------------------------------------------------------------------


class _Redirects(request.HTTPRedirectHandler):
    """Follows to http and https, and never from https to http."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in {"http", "https"} or (before, after) == ("https", "http"):
            raise DataError(
                f"{req.full_url}: leads to {newurl}, which is refused: only http and https are safe"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """Without urllib's handlers of file:, ftp: and data: URLs."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Raises _Broken for what may pass, _RangeRefused, and DataError for everything else."""
    asked = request.Request(
        url, headers={"User-Agent": "workbench", "Accept-Encoding": "identity", **headers}
    )
    try:
        response: http.client.HTTPResponse = _opener().open(asked, timeout=TIMEOUT_SECONDS)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:
            raise _RangeRefused from None
        if error.code in TRANSIENT:
            raise _Broken(f"the server answers {error.code} {error.msg}", _wait(error.headers)) from None
        raise DataError(
            f"{url}: the server answers {error.code} {error.msg}; the file may have moved, see the set's page"
        ) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: the server cannot prove who it is ({error.reason})") from None
        raise _Broken(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no answer ({error or type(error).__name__})") from None


def _wait(headers: Message) -> float | None:
    asked = headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT_SECONDS) if asked.isdecimal() else None


def _chunks(response: http.client.HTTPResponse, limit: int | None) -> Iterator[bytes]:
    """What arrives, as it arrives, up to `limit` bytes; a broken connection raises _Broken."""
    left = limit
    while left is None or left > 0:
        try:
            chunk = response.read1(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke off ({error or type(error).__name__})") from None
        if not chunk:
            return
        left = None if left is None else left - len(chunk)
        yield chunk
