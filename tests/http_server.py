"""A small file server for tests and demonstrations that can do what real hosts do, and fail as they fail.

    with serve(folder, faults={"/x.gz": [Fault(status=503), Fault(cut=1000)]}) as server:
        httpx.get(server.url + "/x.gz"); server.asked("/x.gz")          # [Asked(method, path, status, start, sent), …]
    python tests/http_server.py FOLDER PORT

GET and HEAD with Range, If-Range, ETag and Last-Modified; a folder is its index.html or a listing. Each request to a path uses up the next of its
faults; after the last one the path works. Serves 127.0.0.1 only.
"""

import argparse
import hashlib
import posixpath
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong with one request."""

    status: int = 200
    """Answer with this status and no file."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers instead of, or besides, the usual ones (Retry-After, ETag); an empty value leaves that header out."""
    cut: int | None = None
    """Close after this many bytes of the body (a short body)."""
    reset: bool = False
    """With `cut`: reset the connection instead of closing it."""
    stall: float = 0.0
    """With `cut`: seconds of silence before closing."""
    no_range: bool = False
    """Ignore Range and send the whole file."""
    body: bytes | None = None
    """Send this instead of the file."""


@dataclass(frozen=True)
class Asked:
    """One request: what was asked, and what was sent."""

    method: str
    path: str
    status: int
    start: int
    """First byte of the range that was answered."""
    sent: int
    """Bytes of the body handed to the kernel."""
    headers: Mapping[str, str]


class Server(ThreadingHTTPServer):
    """Serves `folder`; `requests` grows in the order in which requests end."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, faults: Mapping[str, Sequence[Fault]]):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder
        self.faults = {path: list(listed) for path, listed in faults.items()}
        self.requests: list[Asked] = []
        self.under_way = 0
        self.lock = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, path: str | None = None, method: str = "GET") -> list[Asked]:
        """Requests so far, for one path or all; waits up to 5 s for those under way, whose client may have the answer already."""
        with self.lock:
            self.lock.wait_for(lambda: self.under_way == 0, timeout=5)
            return [asked for asked in self.requests if path in (None, asked.path) and asked.method == method]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            fault = self.server.faults[path].pop(0) if self.server.faults.get(path) else Fault()
            self.server.under_way += 1
        if fault.status != 200:
            self._send(path, fault, fault.status, b"", {})
            return
        content = self._content(path) if fault.body is None else fault.body
        if content is None:
            self._send(path, fault, 404, b"", {})
            return
        body, modified = content if isinstance(content, tuple) else (content, 0.0)
        headers = {
            "ETag": f'"{hashlib.sha1(body).hexdigest()[:16]}"',
            "Last-Modified": formatdate(modified, usegmt=True),
            "Accept-Ranges": "bytes",
        } | dict(fault.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if asked and not fault.no_range and condition in (None, headers["ETag"], headers["Last-Modified"]):
            start, end = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
            if start >= len(body):
                self._send(path, fault, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            else:
                headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                self._send(path, fault, 206, body[start : end + 1], headers, start)
            return
        self._send(path, fault, 200, body, headers)

    def _content(self, path: str) -> tuple[bytes, float] | None:
        """Body and time of a file, an index.html or a listing; None where there is none."""
        place = self.server.folder / posixpath.normpath("/" + path).lstrip("/")
        if place.is_dir():
            index = place / "index.html"
            if not index.exists():
                names = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
                return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode(), place.stat().st_mtime
            place = index
        return (place.read_bytes(), place.stat().st_mtime) if place.is_file() else None

    def _send(self, path: str, fault: Fault, status: int, body: bytes, headers: Mapping[str, str], start: int = 0) -> None:
        sent = 0
        try:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers) | dict(fault.headers)).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if fault.headers.get("Content-Length") == "":  # the end of the connection is the end of the body
                self.close_connection = True
            if self.command == "GET":
                whole = body if fault.cut is None else body[: fault.cut]
                for place in range(0, len(whole), 1 << 16):
                    self.wfile.write(whole[place : place + (1 << 16)])
                    sent += len(whole[place : place + (1 << 16)])
                if fault.cut is not None:
                    time.sleep(fault.stall)
                    self.close_connection = True
                    if fault.reset:  # a lingering time of 0 makes close() send RST
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.connection.close()
        finally:
            with self.server.lock:
                self.server.requests.append(Asked(self.command, path, status, start, sent, dict(self.headers)))
                self.server.under_way -= 1
                self.server.lock.notify_all()


@contextmanager
def serve(folder: Path, faults: Mapping[str, Sequence[Fault]] | None = None, port: int = 0) -> Iterator[Server]:
    """A running server of a folder, on a free port unless one is given."""
    with Server(folder, port, faults or {}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", type=Path)
    ask.add_argument("port", type=int)
    given = ask.parse_args()
    with Server(given.folder, given.port, {}) as server:
        print(f"{given.folder} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
