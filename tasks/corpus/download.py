"""Downloads that end whole or not at all: resumed by range, verified, polite. And the ingest stage, which the three sources share.

    with Fetcher(config) as net:
        net.read_small("https://index.commoncrawl.org/collinfo.json")       # bytes, in memory, bounded
        net.size(url)                                                       # bytes, without the body
        net.read_range(url, 406, 17_455)                                    # some of its bytes
        net.fetch(url, folder / "x.warc.gz", expect_bytes=…, digest="sha1:…")

While a file is under way its beginning lies in NAME.part, and NAME.part.json says of what; NAME appears by one rename after length and digest are right.
A URL is http(s)://…, file://… or a plain local path.
"""

import hashlib
import json
import os
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from model.config import STRICT, fingerprint, resource
from model.errors import EmptyError, InputError, NetworkError, NotFoundError
from tasks.corpus.address import Answer, Hosts, local_path
from tasks.corpus.document import file_sha256, settle
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, check_space, run_stage, sync_directory

T = TypeVar("T")
STAGE = Stage("ingest", 1)
SMALL = 64 << 20
"""Most bytes of an index, packed or not."""
LONGEST_WAIT = 300.0
"""Seconds; a longer Retry-After is cut to it."""
GAIN = 1 << 20
"""Bytes. A try that brought a file further by as much starts the count of tries anew, so a long file survives many resets."""


@dataclass(frozen=True)
class DownloadConfig:
    """How other hosts are asked: politely. None of it can change what is downloaded."""

    __pydantic_config__ = STRICT

    rate_bytes: Annotated[int, Field(ge=0)] = resource()
    """Most bytes a second; 0 is no limit."""
    requests_per_second: Annotated[float, Field(gt=0)] = resource()
    """Most requests a second."""
    tries: Annotated[int, Field(ge=1)] = resource()
    """Attempts at one file in a row that bring nothing, before the download fails (and its task is retried)."""
    timeout: Annotated[float, Field(gt=0)] = resource()
    """Seconds to connect, and seconds without data, after which an attempt has failed."""
    user_agent: str = resource()
    """Said in the User-Agent header after ingot/VERSION, best an address where you can be reached; may be empty."""


@dataclass(frozen=True)
class Wanted:
    """One raw file to have: its name in the manifest, and what its host says of it."""

    path: str
    digest: str
    """`sha1:…`, `md5:…` or `sha256:…`; empty where the host publishes none."""
    url: str = resource()
    size: int = resource()
    """Bytes."""
    get: "Callable[[Fetcher, Path, Callable[[int], None]], Got] | None" = resource(default=None)
    """How it comes to be in a folder where it is not that URL as it stands; None: it is."""


@dataclass(frozen=True)
class Got:
    """What one wanted file became: files (path in the folder, sha256) and their books."""

    files: list[tuple[str, str]]
    seen: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Request:
    """What an ingest fetches, resolved: exact snapshot and files. Its identity decides whether the stage is complete."""

    source: Literal["commoncrawl", "wikipedia", "files"]
    role: str
    snapshot: str
    license: str
    files: tuple[Wanted, ...]
    info: dict[str, Any] = resource()
    """More for the manifest: `left_out`, a list of {path, reason}; Wikipedia's `snapshots`, wiki to date."""

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(f.size for f in self.files)


def ingest(store: Store, recipe: str, request: Request, config: DownloadConfig, progress: Progress, rebuild: bool, whole: bool) -> Manifest:
    """Fetch a request's files into the store, or find them there. Files that a killed run finished are not fetched again.

    The content that downstream stages hash is the files (path, sha256) with source, snapshot and licence, which reach every document.
    """
    if not request.files:
        raise EmptyError(f"{request.source} {request.snapshot}: no file is left to fetch. Raise files or byte_budget, or name other paths.")

    def body(work: Work) -> Result:
        total, before = request.bytes, 0
        every: list[Got] = []
        held = (p.stat().st_size for p in work.dir.rglob("*") if p.is_file())
        check_space(store, max(0, total - sum(held)))
        with Fetcher(config) as net:
            for wanted in request.files:
                base = before

                def tell(have: int, base: int = base) -> None:
                    work.progress(base + have, total, "bytes")

                every.append((wanted.get or partial(_whole, wanted))(net, work.dir, tell))
                before += wanted.size
        facts = {"source": request.source, "snapshot": request.snapshot, "license": request.license}
        sums = [file for got in every for file in got.files]
        seen, rejected = sum(got.seen for got in every), sum((Counter(got.rejected) for got in every), Counter())
        content = fingerprint(facts | {"files": sorted(sums)})
        info = facts | {"role": request.role} | request.info
        return Result([(path, None) for path, _ in sums], seen, seen - rejected.total(), rejected, info, content)

    return run_stage(store, STAGE, recipe, request, {}, body, progress, rebuild=rebuild, whole=whole)


def _whole(wanted: Wanted, net: "Fetcher", folder: Path, progress: Callable[[int], None]) -> Got:
    got = net.fetch(wanted.url, folder / wanted.path, expect_bytes=wanted.size, digest=wanted.digest, progress=progress)
    return Got([(wanted.path, got.sha256)], 1, {})


@dataclass(frozen=True)
class Fetched:
    """A whole file: its size, its sha256, and how many of its bytes were there already."""

    bytes: int
    sha256: str
    resumed: int


class RateLimit:
    """At most `per_second` units a second; idle time earns no credit."""

    def __init__(self, per_second: float, sleep: Callable[[float], None], now: Callable[[], float]):
        self.per_second, self.sleep, self.now = per_second, sleep, now
        self._free = now()

    def take(self, amount: float) -> None:
        """Wait until what was taken before is paid for, then take."""
        wait = self._free - self.now()
        if wait > 0:
            self.sleep(wait)
        self._free = max(self.now(), self._free) + amount / self.per_second


class Fetcher:
    """One polite connection to other hosts. `sleep` and `now` (monotonic seconds) are replaced by tests."""

    def __init__(self, config: DownloadConfig, sleep: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic):
        self.config, self.sleep, self.now = config, sleep, now
        self._requests = RateLimit(config.requests_per_second, sleep, now)
        self._bytes = RateLimit(config.rate_bytes or float("inf"), sleep, now)
        self._hosts = Hosts(config.user_agent, config.timeout, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._hosts.close()

    def read_small(self, url: str, limit: int = SMALL) -> bytes:
        """The body of an index, gunzipped if it is gzip. InputError where it is longer than `limit` bytes, packed or not."""

        def read() -> bytes:
            with self._open(url) as source:
                found = bytearray()
                for chunk in source.chunks:
                    found += chunk
                    if len(found) > limit:
                        raise InputError(f"{url} is longer than {limit:,} bytes, which no such index is. Check the base URL.")
                return bytes(found)

        raw = self._retry(url, read)
        return unpack(raw, limit, url) if raw[:2] == b"\x1f\x8b" else raw

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of a file, in memory; fewer where it ends before. InputError where the host knows no ranges."""

        def read() -> bytes:
            with self._open(url, headers={"Range": f"bytes={start}-{start + length - 1}"}) as source:
                if source.start < 0:
                    return b""
                if source.start != start:
                    raise InputError(f"{url}: the host sends the whole file where bytes from {start:,} on were asked. Use another mirror.")
                found = bytearray()
                for chunk in source.chunks:
                    self._bytes.take(len(chunk))
                    found += chunk
                    if len(found) >= length:  # a host that knows no ranges, asked for its first bytes
                        break
            if source.total is not None and len(found) < min(length, source.total - start):
                raise NetworkError(f"{url} ended after {len(found):,} of {length:,} bytes from {start:,} on")
            return bytes(found[:length])

        return self._retry(url, read)

    def size(self, url: str) -> int:
        """Bytes of a file, by HEAD. InputError where the host does not say."""

        def ask() -> int | None:
            with self._open(url, method="HEAD") as source:
                return source.total

        found = self._retry(url, ask)
        if found is None:
            raise InputError(
                f"{url}: the host gives no Content-Length, so neither budget nor completeness can be checked. Use another mirror."
            )
        return found

    def names(self, url: str) -> list[str]:
        """Names that a folder's listing page links to (or of a local folder), folders with their slash."""
        folder = local_path(url)
        if folder is None:
            return re.findall(r'href="(?:\./)?([^"/?#]+/?)"', self.read_small(url.rstrip("/") + "/").decode("utf-8", "replace"))
        if not folder.is_dir():
            raise NotFoundError(f"{folder} is not a folder. Check the base URL.")
        return sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())

    def fetch(
        self,
        url: str,
        target: Path,
        *,
        expect_bytes: int | None = None,
        digest: str = "",
        progress: Callable[[int], None] = lambda have: None,
    ) -> Fetched:
        """A file under `target`, whole and verified; one that is there already is verified and kept. `progress` is told the bytes held.

        NotFoundError (404, 410), InputError (other refusals; length or digest wrong twice), NetworkError (after `tries`; what came stays in NAME.part).
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(target, url)
        if target.exists():
            if _fault(target, expect_bytes, digest) is None:
                part.clear()
                progress(target.stat().st_size)
                return Fetched(target.stat().st_size, file_sha256(target), target.stat().st_size)
            target.unlink()
        for last in (False, True):
            self._retry(url, lambda: self._receive(url, part, expect_bytes, progress), part.size)
            wrong = _fault(part.path, expect_bytes, digest)
            if wrong is None:
                break
            part.clear()
            if last:
                raise InputError(f"{url} {wrong}, twice. The host's file or its listing is damaged: try another mirror or snapshot.")
        settle(part.path, target)
        resumed = part.resumed
        part.clear()
        sync_directory(target.parent)
        return Fetched(target.stat().st_size, file_sha256(target), resumed)

    def _receive(self, url: str, part: "_Part", expect: int | None, progress: Callable[[int], None]) -> None:
        """One attempt at the rest of a file. NetworkError leaves what came in the part."""
        have, validator = part.resumable()
        if have and have == expect:  # killed between the last byte and the rename
            return
        with self._open(url, headers={"Range": f"bytes={have}-", "If-Range": validator} if have else {}) as source:
            if source.start != have or (have and source.validator != validator):
                part.clear()
                if source.start:
                    raise NetworkError(f"{url} changed under way, or its host mistakes ranges; starting over")
                have = 0  # the whole file came: the host knows no ranges, or has another version now
            limit = source.total if expect is None else expect
            if limit is None:
                raise InputError(f"{url}: the host gives no length, so a clipped file could not be told. Use another mirror.")
            if source.total is not None and source.total != limit:
                error = NetworkError if source.total < limit else InputError
                raise error(f"{url} has {source.total:,} bytes where {limit:,} are listed. Try another mirror or snapshot.")
            part.begin(source.validator)
            with open(part.path, "ab") as out:
                for chunk in source.chunks:
                    self._bytes.take(len(chunk))
                    have += out.write(chunk)
                    progress(min(have, limit))
                    if have > limit:  # a body without a length that outgrows the listing: the check of the whole file names it
                        return
        if source.total is not None and have < source.total:
            raise NetworkError(f"{url} ended after {have:,} of {source.total:,} bytes")

    def _open(self, url: str, method: str = "GET", headers: dict[str, str] | None = None) -> AbstractContextManager[Answer]:
        if local_path(url) is None:
            self._requests.take(1)
        return self._hosts.open(url, method, headers or {})

    def _retry(self, url: str, act: Callable[[], T], held: Callable[[], int] = lambda: 0) -> T:
        """Call until it succeeds or `tries` attempts in a row brought nothing; exponential back-off with jitter, or what Retry-After asks."""
        failed, best = 0, held()
        while True:
            try:
                return act()
            except NetworkError as error:
                failed = 1 if held() >= best + GAIN else failed + 1
                best = max(best, held())
                if failed >= self.config.tries:
                    later = f"it resumes at byte {best:,}" if best else "nothing half-done was left"
                    raise NetworkError(f"{error} (tries: {failed}). Run again later; {later}.", error.retry_after) from error
                backoff = min(60.0, 2.0 ** (failed - 1)) * random.uniform(0.5, 1.5)
                self.sleep(min(LONGEST_WAIT, max(backoff, error.retry_after or 0.0)))


class _Part:
    """The beginning of a file in NAME.part, and in NAME.part.json of which version of which URL."""

    def __init__(self, target: Path, url: str):
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.url = url
        self.resumed = self.resumable()[0]
        """Bytes that were there before, as long as they are of use."""

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def resumable(self) -> tuple[int, str]:
        """(bytes held, validator) when what is here can be continued, else (0, "")."""
        try:
            note = json.loads(self.note.read_text())
            return (self.size(), note["validator"]) if note["url"] == self.url and note["validator"] else (0, "")
        except (FileNotFoundError, ValueError, KeyError):
            return 0, ""

    def begin(self, validator: str) -> None:
        """Say what the part is a part of; one that cannot be continued is emptied first."""
        if self.resumable() != (self.size(), validator):
            self.clear()
            temporary = self.note.with_name(self.note.name + ".tmp")
            temporary.write_text(json.dumps({"url": self.url, "validator": validator}))
            os.replace(temporary, self.note)

    def clear(self) -> None:
        self.resumed = 0
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fault(path: Path, expect: int | None, digest: str) -> str | None:
    """What is wrong with a file, None where size and digest are right."""
    size = path.stat().st_size
    if expect is not None and size != expect:
        return f"has {size:,} bytes where {expect:,} are listed"
    kind, _, wanted = digest.partition(":")
    if digest:
        with open(path, "rb") as handle:
            found = hashlib.file_digest(handle, kind).hexdigest()
        if found != wanted.lower():
            return f"has {kind} {found} where {wanted} is listed"
    return None


def join(base: str, path: str) -> str:
    """Address of a path below a base URL or local folder."""
    return f"{base.rstrip('/')}/{path}"


def safe_path(path: str) -> bool:
    """Whether a path that a host listed stays below its root; it becomes a path in the store."""
    return re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", path) is not None and not {".", "..", "_work"} & set(path.split("/"))


def unpack(raw: bytes, limit: int, url: str) -> bytes:
    """Gunzip, all members, into at most `limit` bytes."""
    found = bytearray()
    while raw:
        member = zlib.decompressobj(wbits=31)
        try:
            found += member.decompress(raw, limit + 1 - len(found))
        except zlib.error as error:
            raise InputError(f"{url} is not whole gzip ({error}). Try another mirror.") from None
        if len(found) > limit:
            raise InputError(f"{url} unpacks to more than {limit:,} bytes, which no such index does. Check the base URL.")
        if not member.eof:
            raise InputError(f"{url} is clipped gzip. Try another mirror.")
        raw = member.unused_data
    return bytes(found)
