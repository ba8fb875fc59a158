"""An HTTP server on 127.0.0.1 that does to downloads what servers do: breaks off, lies, changes its files."""

import contextlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and how the server behaves about it."""

    content: bytes
    etag: str | None = '"one"'
    break_after: list[int] = field(
        default_factory=list
    )  # bytes of the first, second, ... answer, then no more
    ignore_range: bool = False
    ignore_if_range: bool = False
    shift: int = 0  # from the byte asked for to that which a partial answer begins with, as it says itself
    claimed_length: int | None = None  # in place of the true one
    no_length: bool = False
    chunked: bool = False  # in place of a length
    statuses: list[int] = field(default_factory=list)  # answered first, in place of the file
    redirect: str | None = None
    changes_to: bytes | None = None  # after the first answer, with another ETag
    content_type: str | None = None
    stalls: int = 0  # answers that fall silent halfway


class UnsoundServer:
    """`files` by path; `requests` are the (path, Range) that came."""

    def __init__(self, url):
        self.url = url
        self.files = {}
        self.requests = []
        self.closing = threading.Event()

    def serve(self, path, content, **behaviour):
        """The URL at which `content` now is."""
        self.files[path] = Served(content, **behaviour)
        return f"{self.url}{path}"


@contextlib.contextmanager
def unsound_server():
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = False  # joined when the server is closed
    http.state = UnsoundServer(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield http.state
    finally:
        http.state.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        state = self.server.state
        state.requests.append((self.path, self.headers.get("Range")))
        served = state.files.get(self.path)
        if served is None:
            self.send_error(404)
        elif served.statuses:
            self._status(served.statuses.pop(0))
        elif served.redirect:
            self.send_response(302)
            self.send_header("Location", served.redirect)
            self.end_headers()
        else:
            self._file(served)

    def _status(self, status):
        self.send_response(status)
        if status in (429, 503):
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, served):
        start = self._start(served)
        if start is not None and start >= len(served.content):
            self._status(416)
            return
        body = served.content[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            last, total = len(served.content) - 1, len(served.content)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        if served.etag:
            self.send_header("ETag", served.etag)
        if served.content_type:
            self.send_header("Content-Type", served.content_type)
        if served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = _in_chunks(body)
        elif not served.no_length:
            length = len(body) if served.claimed_length is None else served.claimed_length
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if served.break_after:
            body = body[: served.break_after.pop(0)]
        if served.changes_to is not None:
            served.content, served.etag, served.changes_to = served.changes_to, '"two"', None
        if served.stalls:
            served.stalls -= 1
            self.wfile.write(body[: len(body) // 2])
            self.server.state.closing.wait(20)
        else:
            self.wfile.write(body)

    def _start(self, served):
        """The first byte asked for; None when all are sent."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or served.ignore_range:
            return None
        condition = self.headers.get("If-Range")
        changed = condition is not None and condition != served.etag
        return None if changed and not served.ignore_if_range else int(asked[1]) + served.shift

    def log_message(self, *arguments):
        pass


def _in_chunks(body):
    pieces = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
