"""Addresses: http(s)://, file:// and plain local paths, opened alike as a stream of bytes with a length and a validator.

with Hosts("mail@example.org", timeout=30, now=time.monotonic).open(url) as answer:
    answer.total; for chunk in answer.chunks: ...
"""

import importlib.metadata
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from model.errors import InputError, NetworkError, NotFoundError

if TYPE_CHECKING:
    import httpx

SLOWEST = 100.0
"""Bytes a second, on average over one timeout; a host that dribbles less counts as stalled."""
BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Answer:
    """An open file: where its bytes start in the whole, the size of the whole, what tells versions of it apart, and the bytes."""

    start: int
    """0, or the first byte of the range that was asked; -1 where the host has no such range."""
    total: int | None
    """Bytes of the whole file, None where the host does not say."""
    validator: str
    """Strong ETag, or Last-Modified; '' where there is neither."""
    chunks: Iterator[bytes]


class Hosts:
    """Connections to other hosts, made when first needed. `timeout` in seconds; `now` gives monotonic seconds."""

    def __init__(self, user_agent: str, timeout: float, now: Callable[[], float]):
        self.user_agent, self.timeout, self.now = user_agent, timeout, now
        self._client: httpx.Client | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    @contextmanager
    def open(self, url: str, method: str, headers: dict[str, str]) -> Iterator[Answer]:
        """Open an address. NotFoundError (404, 410, no such file), InputError (refused), NetworkError (busy, reset, time-out, stalled)."""
        path = local_path(url)
        if path is not None:
            with _open_local(path, headers.get("Range", "")) as answer:
                yield answer
            return
        import httpx

        if self._client is None:
            agent = f"ingot/{importlib.metadata.version('ingot-llm')} ({self.user_agent or '+ingot-llm'})"
            self._client = httpx.Client(
                headers={"User-Agent": agent, "Accept-Encoding": "identity"},  # a body packed for transport has other bytes than the file
                timeout=self.timeout,
                follow_redirects=True,
            )
        try:
            with self._client.stream(method, url, headers=headers) as response:
                _check_status(url, response)
                yield _answer(response, self._watched(url, response.iter_raw()))
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise InputError(f"{url} cannot be fetched ({error}). Check the base URL.") from error
        except httpx.TransportError as error:
            raise NetworkError(f"{url}: {type(error).__name__}: {error}") from error

    def _watched(self, url: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks as they come; NetworkError when they come slower than SLOWEST over a timeout."""
        since, count = self.now(), 0
        for chunk in chunks:
            count += len(chunk)
            if self.now() - since > self.timeout:
                if count < SLOWEST * self.timeout:
                    raise NetworkError(f"{url} stalls: {count:,} bytes in {self.now() - since:.0f} s")
                since, count = self.now(), 0
            yield chunk


def _answer(response: "httpx.Response", chunks: Iterator[bytes]) -> Answer:
    headers = response.headers
    etag = headers.get("ETag", "")
    weak = not etag or etag.startswith("W/")  # If-Range takes no weak ETag (RFC 9110, 13.1.5)
    validator = headers.get("Last-Modified", "") if weak else etag
    if response.status_code != 200:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        return Answer(int(found[1]), int(found[2]), validator, chunks) if found else Answer(-1, None, "", chunks)
    length = headers.get("Content-Length", "")
    return Answer(0, int(length) if length.isdigit() else None, validator, chunks)


def _check_status(url: str, response: "httpx.Response") -> None:
    """Return for an answer with content, and for a range that the file does not have (it shrank); else raise the error that the status means."""
    status = response.status_code
    if status in (200, 206) or (status == 416 and "Range" in response.request.headers):
        return
    if status in BUSY:
        raise NetworkError(f"{url}: HTTP {status}", retry_after(response.headers.get("Retry-After"), time.time()))
    if status in (404, 410):
        raise NotFoundError(f"{url}: HTTP {status}, it does not exist there. Check the snapshot, the date and the base URL.")
    blocked = "A host that blocks eager clients answers so for a day: wait, or lower requests_per_second."
    raise InputError(f"{url}: HTTP {status}, the host refuses. {blocked if status == 403 else 'Check the base URL.'}")


@contextmanager
def _open_local(path: Path, asked: str) -> Iterator[Answer]:
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below; a caller's own missing file must not be taken for this one
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist. Check the base URL or the paths of the recipe.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Check the base URL or the paths of the recipe.") from None
    with handle:
        size = os.fstat(handle.fileno()).st_size
        ends = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        start, end = (int(ends[1]), min(int(ends[2]) + 1, size)) if ends else (0, size)
        handle.seek(start)
        chunks = iter(lambda: handle.read(max(0, min(1 << 20, end - handle.tell()))), b"")
        yield Answer(start, size, "", chunks) if start <= end else Answer(-1, size, "", iter(()))


def local_path(url: str) -> Path | None:
    """The path of a file:// URL or plain path, None for another host's address. InputError for other schemes."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in url:
        raise InputError(f"{url}: Ingot reads http, https, file and plain paths, not {parts.scheme}.")
    return Path(url)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait (RFC 9110, 10.2.3: a number or a date), None where it is absent or senseless."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None
