"""WARC files to records, every byte accounted for: a damaged stretch is a record with a problem, and what follows it is still read.

    for record in records(path, cap=8 << 20):
        record.offset, record.length, record.kind, record.problem, record.block

Framing is ours: FastWARC's iterator ends without a word at an empty or clipped gzip member and raises for good at a damaged one, so pages after it would be
lost; and ours gives the exact range of each record. Records of the common form are parsed here as well, with one copy of the page; FastWARC parses all
others (and, in the tests, those too: the two agree). igzip inflates what is sound; what it stumbles over goes through zlib, whose word counts. One gzip member holds one record, as Common Crawl writes them: reading
[offset, offset + length) of the file and decompressing gives that record back. Where a member holds several, they are told apart by offset, offset + 1, …,
and have length -1. Standard: ISO 28500 (WARC 1.1).
"""

import io
import mmap
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from isal import isal_zlib

FIRST = 1 << 14
"""Compressed bytes of a member handed to the inflater at first: what is over costs a copy, and so does a second piece."""
STEP = 1 << 18
"""The same, after that."""
BURST = 1 << 20
"""Most bytes it gives back at a time."""
HEAD = 64 << 10
"""Bytes in which a record's header must end."""
LENGTH = re.compile(rb"\r?\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)
GZIP = b"\x1f\x8b\x08"
PAD = b"\r\n\t \0"
KINDS = ("response", "request", "metadata", "warcinfo", "revisit", "resource", "conversion", "continuation")
HTTP = ("application/http; msgtype=response", "application/http;msgtype=response")
FORM = re.compile(rb"[ -~]*+(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]++:[ -~]*+)*+").fullmatch
STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: [ -~]*)?\r\n").match
TOLD = re.compile(rb"\r\n(content-(?:type|length|encoding)|transfer-encoding|warc-type):([ -~]*)", re.IGNORECASE).findall
TWICE = b"twice"
VERSIONS = (b"WARC/1.0\r\n", b"WARC/1.1\r\n")


class Headers(Mapping[str, str]):
    """WARC header fields, names in lower case; of a name that comes twice the last. Read out of their lines when first asked for."""

    __slots__ = ("_lines",)

    def __init__(self, lines: bytes | Mapping[str, str] = b""):
        """Lines of FORM after the first, or the fields themselves."""
        self._lines = lines

    def _all(self) -> Mapping[str, str]:
        if isinstance(self._lines, bytes):
            pairs = (line.partition(":") for line in self._lines.decode("ascii").split("\r\n")[1:])
            self._lines = {name.lower(): text.strip(" ") for name, _, text in pairs}
        return self._lines

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Record(NamedTuple):
    """One record, or one stretch of the file that is none (`problem` says why). `body` is the decoded HTTP payload, else the block."""

    offset: int
    """Bytes into the file."""
    length: int
    """Bytes as stored, -1 where no range read gives the record back."""
    kind: str = "response"
    """response, resource, conversion, request, metadata, warcinfo, revisit, …"""
    problem: str = ""
    """clipped_archive, malformed_record, too_large, arc_file; '' for a sound record."""
    value: str = ""
    """What was found, for people."""
    headers: Mapping[str, str] = Headers()
    """WARC header fields, names in lower case."""
    status: int | None = None
    content_type: str = ""
    charset: str = ""
    body: bytes = b""

    @property
    def url(self) -> str:
        return self.headers.get("warc-target-uri", "").strip().removeprefix("<").removesuffix(">")


def records(path: Path, cap: int) -> Iterator[Record]:
    """Records of a WARC or WET file (.gz or plain) in file order. A record or payload of more than `cap` bytes (decoded) comes as problem `too_large`,
    with its headers, without its body. Memory is bounded by a few times `cap`. Raises nothing for what a file may hold.
    """
    if path.stat().st_size == 0:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if raw[:3] == GZIP:
            yield from compressed(raw, cap)
        elif raw[:11] == b"filedesc://":
            yield Record(0, len(raw), problem="arc_file", value="ARC files are not read; convert with warcio recompress")
        else:
            for start, end, problem in split(raw):
                yield parse(raw[start : min(end, start + cap + HEAD)], start, end - start, cap, end - start, problem)


def compressed(raw: bytes | mmap.mmap, cap: int) -> Iterator[Record]:
    """As `records`, of gzip members in memory."""
    offset = 0
    while offset < len(raw):
        if raw[offset : offset + 3] != GZIP:
            following = raw.find(GZIP, offset)
            end = following if following >= 0 else len(raw)
            if any(raw[at : min(end, at + STEP)].strip(PAD) for at in range(offset, end, STEP)):
                clipped = following < 0 and GZIP.startswith(raw[offset:end])
                problem, value = (
                    ("clipped_archive", "the file ends in a gzip header")
                    if clipped
                    else ("malformed_record", f"{end - offset:,} bytes that are no gzip member")
                )
                yield Record(offset, end - offset, problem=problem, value=value)
            offset = end
            continue
        data, end, size, problem = member(raw, offset, cap + HEAD)
        if problem:
            following = raw.find(GZIP, offset + 3)
            while following >= 0 and not _begins(raw, following):
                following = raw.find(GZIP, following + 1)
            end = following if following >= 0 else len(raw)
            # A broken stretch at the end is a download that stopped; with records after it, it is damage.
            clipped = following < 0
            yield parse(data, offset, end - offset, cap, size, "clipped_archive" if clipped else "malformed_record", value=problem)
        elif data.startswith(b"filedesc://"):
            yield Record(0, len(raw), problem="arc_file", value="ARC files are not read; convert with warcio recompress")
            return
        elif size > len(data):
            yield parse(data, offset, end - offset, cap, size)
        elif (record := plain(data, offset, end - offset, cap)) is not None:
            yield record
        else:
            found = list(split(data))
            for place, (start, stop, wrong) in enumerate(found):
                length = end - offset if len(found) == 1 else -1
                yield parse(
                    data[start:stop],
                    offset + place,
                    length,
                    cap,
                    stop - start,
                    *(("malformed_record", "its Content-Length does not fit") if wrong else ()),
                )
        offset = end


def _begins(raw: bytes | mmap.mmap, offset: int) -> bool:
    """Whether a gzip member that begins a WARC record starts here (three bytes of magic turn up in compressed data by chance)."""
    try:
        return zlib.decompressobj(31).decompress(raw[offset : offset + 512], 5) == b"WARC/"
    except zlib.error:
        return False


def member(raw: bytes | mmap.mmap, offset: int, cap: int) -> tuple[bytes, int, int, str]:
    """One gzip member: (its first `cap` bytes decompressed, where it ends in the file, its full decompressed size, problem or '')."""
    found = _inflate(isal_zlib, raw, offset, cap, FIRST, BURST)
    return _inflate(zlib, raw, offset, cap, STEP, 4 * STEP) if found[3] else found


def _inflate(library: Any, raw: bytes | mmap.mmap, offset: int, cap: int, step: int, burst: int) -> tuple[bytes, int, int, str]:
    inflate = library.decompressobj(31)
    kept: list[bytes] = []
    size, at = 0, offset
    view, pending = memoryview(raw), memoryview(b"")
    while not inflate.eof:
        if not pending:
            pending = view[at : at + step]
            at, step = at + len(pending), STEP
        try:
            piece = inflate.decompress(pending, burst)
        except library.error as error:
            return b"".join(kept), len(raw), size, f"the gzip member at {offset:,} is damaged ({error})"
        if not pending and not piece and not inflate.eof:
            return b"".join(kept), len(raw), size, f"the gzip member at {offset:,} ends too early"
        pending = inflate.unconsumed_tail
        if size < cap:
            kept.append(piece[: cap - size])
        size += len(piece)
    return kept[0] if len(kept) == 1 else b"".join(kept), at - len(inflate.unused_data), size, ""


def split(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, str]]:
    """Ranges (start, end, problem) of the records in decompressed bytes: by Content-Length, and after damage by the next line that begins a record."""
    at, size = 0, len(data)
    while True:
        while at < size and data[at : at + 1] in (b"\r", b"\n", b"\0", b" "):
            at += 1
        if at >= size:
            return
        head = re.search(rb"\r?\n\r?\n", data[at : at + HEAD]) if data[at : at + 5] == b"WARC/" else None
        length = LENGTH.search(data[at : at + head.end()]) if head else None
        if head is None or length is None:
            following = _next(data, at + 1)
            yield at, following, "malformed_record"
            at = following
            continue
        end = at + head.end() + int(length[1])
        if end > size:
            # The record says more bytes than there are. Where another begins inside it, its length lied; else the file stops here.
            following = _next(data, at + head.end())
            yield at, following, "clipped_archive" if following == size else "malformed_record"
            at = following
            continue
        yield at, end, ""
        at = end


def _next(data: bytes | mmap.mmap, at: int) -> int:
    found = data.find(b"\nWARC/1.", at)
    return found + 1 if found >= 0 else len(data)


def plain(data: bytes, offset: int, length: int, cap: int) -> Record | None:
    """The one record that these decompressed bytes are, where it has the common form: ASCII headers, a line each and each name once, a length that fits,
    no transfer or content coding. None for all others: they are `parse`'s.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD)
    if end < 0 or FORM(data, 0, end) is None:
        return None
    told = _told(data, 0, end)
    kind = told.get(b"warc-type", "").lower()
    promised, declared = told.get(b"content-length", ""), told.get(b"content-type", "")
    if data[:10] not in VERSIONS or TWICE in told or not promised.isdigit() or kind not in KINDS:
        return None
    headers: Mapping[str, str] = Headers(data[:end])
    start = end + 4
    stop = start + int(promised)
    if stop > len(data) or (stop < len(data) and data[stop:].strip(b"\r\n\0 ")):
        return None
    if kind not in ("response", "resource", "conversion"):
        return Record(offset, length, kind, headers=headers)
    if kind != "response":
        return Record(offset, length, kind, headers=headers, content_type=declared, body=data[start : min(stop, start + cap + 1)])
    end = data.find(b"\r\n\r\n", start, min(stop, start + HEAD))
    status = STATUS(data, start, stop)
    if declared not in HTTP or end < 0 or end + 4 == stop or status is None or FORM(data, start, end) is None:
        return None
    told = _told(data, start, end)
    if TWICE in told or b"transfer-encoding" in told or b"content-encoding" in told:
        return None
    body = data[end + 4 : min(stop, end + 5 + cap)]
    if len(body) > cap:
        return Record(offset, length, problem="too_large", value=f"more than {cap:,} bytes", headers=headers)
    promised = told.get(b"content-length", "")
    if promised.isdigit() and len(body) < int(promised):
        headers = {"warc-truncated": f"{len(body):,} of {int(promised):,} bytes", **headers}
    content_type, charset = _content_type(told[b"content-type"]) if b"content-type" in told else ("", "")
    return Record(offset, length, headers=headers, status=int(status[1]), content_type=content_type, charset=charset, body=body)


def _told(data: bytes, start: int, end: int) -> dict[bytes, str]:
    """The few fields that decide how a message is read; TWICE where one of them comes twice."""
    found = TOLD(data, start, end)
    told = {name.lower(): text.strip(b" ").decode("ascii") for name, text in found}
    return told if len(told) == len(found) else told | {TWICE: ""}


@lru_cache(4096)
def _content_type(declared: str) -> tuple[str, str]:
    """MIME type and charset of a Content-Type, as FastWARC reads it."""
    block = f"HTTP/1.1 200 OK\r\nContent-Type: {declared}\r\n\r\nx".encode()
    head = f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: {len(block)}\r\n\r\n".encode()
    read = by_fastwarc(head + block, 0, 0, HEAD, 0)
    return read.content_type, read.charset


def parse(data: bytes, offset: int, length: int, cap: int, size: int, problem: str = "", value: str = "") -> Record:
    """One record from its decompressed bytes; `size` is how many there are in all, where `data` holds the first of them only."""
    found = plain(data, offset, length, cap) if not problem and size == len(data) else None
    return found or by_fastwarc(data, offset, length, cap, size, problem, value)


def by_fastwarc(data: bytes, offset: int, length: int, cap: int, size: int, problem: str = "", value: str = "") -> Record:
    """`parse` for records of any form."""
    from fastwarc import ArchiveIterator

    try:
        found = next(iter(ArchiveIterator(io.BytesIO(data), parse_http=False, quirks_mode=True, max_header_len=HEAD)), None)
    except (OSError, ValueError) as error:
        return Record(offset, length, problem=problem or "malformed_record", value=value or str(error))
    if found is None:
        return Record(offset, length, problem=problem or "malformed_record", value=value or "no WARC header")
    headers = {name.lower(): text for name, text in found.headers.items()}
    kind = headers.get("warc-type", "unknown").strip().lower()
    if problem or size > cap + HEAD:
        return Record(offset, length, kind, problem or "too_large", value or f"{size:,} bytes", headers)
    if kind not in ("response", "resource", "conversion"):
        return Record(offset, length, kind, headers=headers)
    if kind != "response" or not found.is_http:
        return Record(
            offset,
            length,
            kind,
            headers=headers,
            content_type=headers.get("content-type", "") if kind != "response" else "",
            body=found.reader.read(cap + 1),
        )
    return _http(data, offset, length, cap, headers)


def _http(data: bytes, offset: int, length: int, cap: int, headers: dict[str, str]) -> Record:
    """A response: status line, headers and payload, decoded. What the headers promise wrongly (chunks, codings) falls back to the bytes as they are."""
    from fastwarc import ArchiveIterator

    attempts: tuple[tuple[Literal["all", "none"], bool], ...] = (("all", False), ("none", False), ("none", True))
    for decode, quirks in attempts:
        found = next(iter(ArchiveIterator(io.BytesIO(data), parse_http=False, quirks_mode=True, max_header_len=HEAD)))
        try:
            found.parse_http(auto_decode=decode, quirks_mode=quirks, max_header_len=HEAD)
            body = found.reader.read(cap + 1)
        except (OSError, ValueError):
            continue
        if body or quirks or not data.strip(PAD).endswith(b">"):
            break
    else:
        return Record(offset, length, problem="malformed_record", value="the HTTP message cannot be read", headers=headers)
    if not found.is_http_parsed or found.http_headers.status_code is None:
        return Record(offset, length, problem="malformed_record", value="no HTTP status line", headers=headers)
    http = {name.lower(): text for name, text in found.http_headers.items()}
    if decode == "none":
        body = _decoded(body, http, cap)
    promised = http.get("content-length", "")
    if (
        promised.isdigit()
        and decode == "all"
        and not http.get("content-encoding")
        and not http.get("transfer-encoding")
        and len(body) < int(promised)
    ):
        headers = {"warc-truncated": f"{len(body):,} of {int(promised):,} bytes"} | headers
    kept = Record(
        offset,
        length,
        headers=headers,
        status=found.http_headers.status_code,
        content_type=(found.http_content_type or "").lower(),
        charset=found.http_charset or "",
        body=body,
    )
    return kept if len(body) <= cap else Record(offset, length, problem="too_large", value=f"more than {cap:,} bytes", headers=headers)


def _decoded(body: bytes, http: dict[str, str], cap: int) -> bytes:
    """A payload whose headers lie about its coding: chunks undone as far as they are sound, gzip and deflate recognised by their own first bytes."""
    if "chunked" in http.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    for bits in (47, -15) if http.get("content-encoding") else ():
        try:
            return zlib.decompressobj(bits).decompress(body, cap + 1)
        except zlib.error:
            continue
    return body


def _dechunked(body: bytes) -> bytes:
    parts, at = [], 0
    while size := re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,200})?\r?\n").match(body, at):
        at = size.end() + int(size[1], 16)
        parts.append(body[size.end() : at])
        if at >= len(body) or size[1].strip(b"0") == b"":
            break
    else:
        return body if not parts else b"".join(parts) + body[at:]
    return b"".join(parts)
