"""Index look-ups: which records of a snapshot's WARC files match, from its CDX index or its columnar index, reading as little of either as may be.

    found = cdx(net, base_url, snapshot, select, files)            # or table(…): a Found with places, in no certain order
    found.places, found.bytes, found.broken                        # bytes of the index that were read, lines that cannot be read

The CDX index is sorted by SURT key (org,example)/path): cluster.idx names the first key of every block of cdx-NNNNN.gz, each a gzip member of 3,000
lines. It is searched by halves, so that some twelve small requests find a domain among billions of pages. The columnar index is parquet, sorted the same
way: row groups are ruled out by their statistics, and columns are read one after the other as long as rows are left.
Sources: https://commoncrawl.org/cdxj-index, https://github.com/commoncrawl/cc-index-table (column names), pywb's manual on ZipNum.
"""

import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import ConfigError, InputError, NotFoundError
from tasks.corpus.download import Fetcher, join, safe_path, unpack
from tasks.corpus.selection import Place, SelectConfig, host, matcher

WINDOW = 1 << 16
"""Bytes of cluster.idx that one request reads."""
BLOCKS = 8 << 20
"""Most bytes of neighbouring blocks of a cdx file that one request reads."""
UNPACKED = 1 << 30
"""Most bytes they unpack to."""
MOST = 5_000_000
"""Records after which a selection is too wide for single reads."""
UNBOUNDED = (
    "select.index is cdx, which is sorted by host: it needs select.domains, or select.urls that all begin with http(s)://host/. "
    "Set one of them, or select.index=table"
)
WHERE = ["warc_filename", "warc_record_offset", "warc_record_length"]


@dataclass
class Found:
    """What a look-up gives."""

    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    bytes: int = 0
    broken: int = 0

    def add(self, place: Place) -> None:
        self.places[place.file, place.offset] = place
        if len(self.places) > MOST:
            raise ConfigError(
                f"select matches more than {MOST:,} records. Narrow it, lower files, or leave select out and read whole files."
            )


def keys(select: SelectConfig) -> list[tuple[str, str]]:
    """Ranges [low, high) of SURT keys that hold all that can match, disjoint and sorted; none where neither a domain nor the beginning of a URL is set.

    Keys are made by lower-casing, without www. and a slash at the end, so a URL's beginning is used as far as nothing of it can have been changed.
    """
    ranges = []
    if select.domains:
        for domain in select.domains:
            surt = _surt(host(domain))
            ranges.append((surt + ")", surt + ";"))  # ) ends the host, : begins a port, a comma a subdomain; all sort before ;
    elif select.urls:
        for pattern in select.urls:
            begins = re.match(r"(?:https?|\*)://([^/:*?#@]+)(:\d+)?(/[^*]*)", pattern)
            if begins is None:
                return []
            try:
                surt = _surt(host(begins[1]))
            except ValueError:
                return []
            path = re.match(r"(?:/[a-z0-9_~-][a-z0-9_.~-]*)*", begins[3].lower())
            low = f"{surt}){path[0] if path and not begins[2] else ''}"
            ranges.append((low, low + "\U0010ffff") if not begins[2] else (surt + ")", surt + ";"))
    merged: list[tuple[str, str]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _surt(name: str) -> str:
    return ",".join(reversed(re.sub(r"^www\d*\.", "", name).split(".")))


def cdx(net: Fetcher, base_url: str, snapshot: str, select: SelectConfig, files: Collection[str]) -> Found:
    """Records of these WARC files that match, by the CDX index. ConfigError where nothing says which part of it to read."""
    ranges = keys(select)
    if not ranges:
        raise ConfigError(UNBOUNDED)
    listed = _listed(net, base_url, snapshot, "cc-index.paths.gz")
    cluster = next((path for path in listed if path.endswith("/cluster.idx")), None)
    if cluster is None:
        raise InputError(f"cc-index.paths.gz of {snapshot} names no cluster.idx. Take another snapshot, or select.index=table.")
    found, wants = Found(), matcher(select)
    index = _SortedLines(net, join(base_url, cluster), found)
    blocks: dict[tuple[str, int], int] = {}
    for low, high in ranges:
        for line in index.between(low.encode(), high.encode()):
            try:
                _, file, offset, length = line.decode("ascii", "replace").split("\t")[:4]
                blocks[file, int(offset)] = int(length)
            except ValueError:
                found.broken += 1
    bounds = [(low.encode(), high.encode()) for low, high in ranges]
    for shard, start, size in _runs(blocks):
        if re.fullmatch(r"cdx-\d+\.gz", shard) is None:
            raise InputError(f"{cluster} names {shard[:100]!r}, which is no file of a CDX index. Check base_url.")
        url = join(base_url, f"{cluster.rpartition('/')[0]}/{shard}")
        packed = net.read_range(url, start, size)
        found.bytes += len(packed)
        if len(packed) < size:
            raise InputError(
                f"{url} has no bytes from {start:,} to {start + size:,}, where cluster.idx says that blocks are. Take another mirror."
            )
        for line in unpack(packed, UNPACKED, url).splitlines():
            if any(low <= line < high for low, high in bounds):
                _take(line, wants, files, found)
    return found


def _take(line: bytes, wants: Any, files: Collection[str], found: Found) -> None:
    """One line of the index: key, fourteen digits, JSON."""
    try:
        _, digits, fields = line.split(b" ", 2)
        told = json.loads(fields)
        status = str(told.get("status", ""))
        day = f"{digits[:4].decode('ascii')}-{digits[4:6].decode('ascii')}-{digits[6:8].decode('ascii')}"
        place = Place(
            told["filename"], int(told["offset"]), int(told["length"]), told["url"], day,
            told.get("languages") or "", told.get("mime-detected") or told.get("mime") or "", int(status) if status.isdigit() else None,
        )  # fmt: skip
        if place.offset < 0 or place.length <= 0 or not (isinstance(place.url, str) and isinstance(place.file, str)):
            raise ValueError(line)
    except (ValueError, KeyError, TypeError, AttributeError):
        found.broken += 1
        return
    if place.file in files and wants(place.url, place.day, place.language, place.mime, place.status):
        found.add(place)


def _runs(blocks: dict[tuple[str, int], int]) -> Iterator[tuple[str, int, int]]:
    """Neighbouring blocks joined: (shard, offset, bytes)."""
    at: tuple[str, int, int] | None = None
    for (shard, offset), length in sorted(blocks.items()):
        if at is not None and at[0] == shard and at[1] + at[2] == offset and at[2] + length <= BLOCKS:
            at = (shard, at[1], at[2] + length)
            continue
        if at is not None:
            yield at
        at = (shard, offset, length)
    if at is not None:
        yield at


class _SortedLines:
    """A sorted text file at a host, searched by halves."""

    def __init__(self, net: Fetcher, url: str, found: Found):
        self.url, self.size = url, net.size(url)

        def read(number: int) -> bytes:
            data = net.read_range(url, number * WINDOW, WINDOW)
            found.bytes += len(data)
            return data

        self._window = lru_cache(256)(read)

    def between(self, low: bytes, high: bytes) -> Iterator[bytes]:
        """The last line below `low`, since its block may reach it, and all lines from `low` on and below `high`."""
        first, last = 0, -(-self.size // WINDOW)
        while last - first > 1:
            middle = (first + last) // 2
            line = next(self._from(middle), None)
            first, last = (middle, last) if line is not None and line < low else (first, middle)
        before = None
        for line in self._from(first):
            if line >= high:
                break
            if line < low:
                before = line
                continue
            if before is not None:
                yield before
                before = None
            yield line
        if before is not None:
            yield before

    def _from(self, number: int) -> Iterator[bytes]:
        """Lines that begin in this window (a line belongs to the window in which the line feed before it lies), and all after."""
        rest = b"" if number else b"\n"
        skip = True
        while number * WINDOW < self.size:
            rest += self._window(number)
            number += 1
            *lines, rest = rest.split(b"\n")
            if skip and lines:
                del lines[0]
                skip = False
            yield from (line for line in lines if line)
        if rest and not skip:
            yield rest


def table(net: Fetcher, base_url: str, snapshot: str, select: SelectConfig, files: Collection[str]) -> Found:
    """Records of these WARC files that match, by the columnar index."""
    found = Found()
    for path in _listed(net, base_url, snapshot, "cc-index-table.paths.gz"):
        if "/subset=warc/" in path:
            _part(_RemoteFile(net, join(base_url, path), found), select, files, found)
    return found


def _part(source: "_RemoteFile", select: SelectConfig, files: Collection[str], found: Found) -> None:
    """One parquet part. A column is read only where rows of the row group are left by those before it."""
    try:
        part = pq.ParquetFile(pa.PythonFile(source, mode="r"))
    except pa.ArrowInvalid as error:
        raise InputError(f"{source.url} is no parquet file ({error}). Check base_url.") from None
    known = set(part.schema_arrow.names)
    missing = {"url", "fetch_time", *WHERE} - known
    if missing:
        raise InputError(
            f"{source.url} has no column {', '.join(sorted(missing))}, so it is no part of the columnar index. Check base_url."
        )
    ranges, wants, names = keys(select), matcher(select), pa.array(sorted(files), pa.string())
    needed = [
        "url",
        "fetch_time",
        *(n for n in ("fetch_status", "content_mime_detected", "content_mime_type", "content_languages") if n in known),
    ]
    for number in range(part.num_row_groups):
        if _ruled_out(part.metadata.row_group(number), ranges, select):
            continue
        rows: pa.Table = pa.table({"row": pa.array(range(part.metadata.row_group(number).num_rows))})
        for column in (
            *(["url_surtkey"] if ranges and "url_surtkey" in known else []),
            *(["content_languages"] if select.languages else []),
            *WHERE,
            *needed,
        ):
            if column in rows.column_names or not rows.num_rows:
                continue
            values = part.read_row_group(number, columns=[column])[column]
            rows = rows.append_column(column, values.take(rows["row"]))
            if column == "url_surtkey":
                inside = [pc.and_(pc.greater_equal(rows[column], low), pc.less(rows[column], high)) for low, high in ranges]
                rows = rows.filter(_any(inside))
            elif column == "content_languages" and select.languages:
                rows = rows.filter(_any([pc.starts_with(rows[column], language) for language in select.languages]))
            elif column == "warc_filename":
                rows = rows.filter(pc.is_in(rows[column], names))
        for row in rows.to_pylist():
            try:
                place = Place(
                    row["warc_filename"], int(row["warc_record_offset"]), int(row["warc_record_length"]), row["url"], row["fetch_time"].strftime("%Y-%m-%d"),
                    row.get("content_languages") or "", row.get("content_mime_detected") or row.get("content_mime_type") or "", row.get("fetch_status"),
                )  # fmt: skip
                if place.offset < 0 or place.length <= 0 or place.url is None:
                    raise ValueError(place)
            except (ValueError, TypeError, AttributeError):
                found.broken += 1
                continue
            if wants(place.url, place.day, place.language, place.mime, place.status):
                found.add(place)


def _any(masks: Sequence[Any]) -> Any:
    whole = masks[0]
    for mask in masks[1:]:
        whole = pc.or_(whole, mask)
    return whole


def _ruled_out(group: Any, ranges: Sequence[tuple[str, str]], select: SelectConfig) -> bool:
    """Whether the statistics of a row group say that nothing in it can match."""
    for number in range(group.num_columns):
        column = group.column(number)
        told = column.statistics
        if told is None or not told.has_min_max:
            continue
        low, high = told.min, told.max
        if column.path_in_schema == "url_surtkey" and ranges and not any(high >= begin and low < end for begin, end in ranges):
            return True
        if column.path_in_schema == "fetch_time":
            first, last = (value.strftime("%Y-%m-%d") for value in (low, high))
            if (select.since and last < select.since) or (select.until and first > select.until):
                return True
        if column.path_in_schema == "fetch_status" and select.statuses and not any(low <= status <= high for status in select.statuses):
            return True
        if (
            column.path_in_schema == "content_languages"
            and select.languages
            and not any(low < code + "-" and high >= code for code in select.languages)
        ):
            return True
    return False


class _RemoteFile(io.RawIOBase):
    """A file at a host, read by ranges where pyarrow asks for them."""

    def __init__(self, net: Fetcher, url: str, found: Found):
        self.url, self._net, self._found = url, net, found
        self._at, self._size = 0, net.size(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        length = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        data = self._net.read_range(self.url, self._at, length) if length > 0 else b""
        self._at += len(data)
        self._found.bytes += len(data)
        return data


def _listed(net: Fetcher, base_url: str, snapshot: str, name: str) -> list[str]:
    """Paths of a snapshot's index files."""
    url = join(base_url, f"crawl-data/{snapshot}/{name}")
    try:
        lines = net.read_small(url).decode("utf-8", "replace").split()
    except NotFoundError as error:
        raise NotFoundError(
            f"{snapshot} has no such index ({error}) An index appears some days after its crawl; try the other select.index."
        ) from None
    for path in lines:
        if not safe_path(path):
            raise InputError(f"{url} lists {path[:200]!r}, which is no path below the host's root. Check base_url.")
    return lines
