"""Single records of a crawl: which ones are wanted, and the packs in which they lie in the store.

    wants = matcher(config)                                        # wants(url, day, language, mime, status) -> bool
    wanted = pack(places, base_url, gap)                           # files to ingest: single records by range requests
    wanted = sift(path, url, size, config)                         # or: of one WET file, what matches
    for origin_file, record in packed(path, origins_path(path), cap): ...

A pack is a WARC file of whole gzip members, each as the host has it. Beside it lies NAME.origins: one line a record,
[origin file, offset, length, URL, problem, what was found], and at last the books. So a record keeps the identity and the origin that it has in the whole file of its crawl.
A pack's name ends in a hash of exactly what was asked for, so that a request's identity, and a half-made pack, is of these ranges and no others.
A range that is not one whole member of the URL that the index names is counted there as wrong_record, and holds no bytes.
"""

import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field

from model.config import STRICT, canonical, identity, resource
from tasks.corpus.document import file_sha256, settle
from tasks.corpus.download import Fetcher, Got, Wanted, join
from tasks.corpus.manifest import Manifest, Store, sync_directory
from tasks.corpus.warc import Record, compressed, member, parse, records

PACK_BYTES = 64 << 20
"""Bytes after which the next pack is begun."""
PACK_RECORDS = 20_000
SPAN = 32 << 20
"""Most bytes of one range request, and of one record."""
HEAD = 1 << 20
"""Decompressed bytes of a member that are looked at for its URL."""
ORIGINS = ".origins"
"""Ending of the file beside a pack."""
LANGUAGE = "warc-identified-content-language"
Matcher = Callable[[str, str, str, str, int | None], bool]


@dataclass(frozen=True)
class SelectConfig:
    """Which records are wanted: all that is said must hold; an empty list or text asks for nothing."""

    __pydantic_config__ = STRICT

    domains: tuple[Annotated[str, Field(pattern=r"^[^/:*\s]+$")], ...]
    """Hosts, each with its subdomains: example.org holds www.example.org too."""
    urls: tuple[Annotated[str, Field(min_length=1)], ...]
    """What a URL begins with, * for anything: https://example.org/docs/, *://*.example.org/*/faq."""
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{3}$")], ...]
    """Main language as Common Crawl found it, three letters of ISO 639-3: eng, zho. Pages without one are left out."""
    mime: tuple[Annotated[str, Field(pattern=r"^[\w.+-]+/[\w.+-]+$")], ...]
    """MIME types as detected by the crawler (the declared one where an old index has no other): text/html. Not known for WET files."""
    statuses: tuple[Annotated[int, Field(ge=100, le=999)], ...]
    """HTTP statuses. Not known for WET files; WARC files hold 200 only."""
    since: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")]
    """First day of the fetch, YYYY-MM-DD."""
    until: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")]
    """Last day of the fetch, YYYY-MM-DD."""
    index: Literal["cdx", "table"] = resource()
    """Where records of WARC files are looked up: cdx reads little for domains and URLs, and needs them; table reads columns of the whole columnar index
    that no statistics rule out (many GB for a language alone). Both give the same records."""
    gap: Annotated[int, Field(ge=0)] = resource()
    """Bytes between two records up to which one request asks for both; what lies between is thrown away."""

    def __post_init__(self) -> None:
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since ({self.since}) is after until ({self.until})")
        for domain in self.domains:
            host(domain)


class Place(NamedTuple):
    """Where a record lies, and what an index says of it."""

    file: str
    offset: int
    length: int
    url: str
    day: str = ""
    """YYYY-MM-DD."""
    language: str = ""
    """All that were found, main one first, by commas."""
    mime: str = ""
    status: int | None = None

    @property
    def size(self) -> int:
        """Bytes to fetch; 0 where there are more than any page has."""
        return self.length if self.length <= SPAN else 0


def host(domain: str) -> str:
    """A host as indexes write it: lower case, punycode. ValueError for what is none."""
    try:
        return domain.strip(".").lower().encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"{domain!r} is no host name ({error})") from None


def matcher(config: SelectConfig) -> Matcher:
    """What decides on a record by its URL, day, languages, MIME type and status. The same for every index and for what is read."""
    domains = {host(domain) for domain in config.domains}
    patterns = [".*".join(map(re.escape, pattern.split("*"))) for pattern in config.urls]
    begins = re.compile("|".join(patterns), re.DOTALL) if patterns else None
    languages, mime, statuses = set(config.languages), set(config.mime), set(config.statuses)
    since, until = config.since, config.until

    def wants(url: str, day: str, language: str, kind: str, status: int | None) -> bool:
        return (
            (not domains or _within(url, domains))
            and (begins is None or begins.match(url) is not None)
            and (not languages or language.partition(",")[0].strip() in languages)
            and (not mime or kind in mime)
            and (not statuses or status in statuses)
            and (not since or day >= since)
            and (not until or "" < day <= until)
        )

    return wants


def _within(url: str, domains: Collection[str]) -> bool:
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    while name and name not in domains:
        name = name.partition(".")[2]
    return bool(name)


def spans(places: Sequence[Place], gap: int) -> Iterator[Sequence[Place]]:
    """Neighbours in order of file and offset, as long as one request shall ask for them: same file, at most `gap` bytes between, at most SPAN in all."""
    first = end = 0
    for number, place in enumerate(places):
        begin = places[first]
        if number and (place.file != begin.file or place.offset > end + gap or place.offset + place.length > begin.offset + SPAN):
            yield places[first:number]
            first, end = number, 0
        end = max(end, place.offset + place.length)
    if places:
        yield places[first:]


def span_bytes(places: Sequence[Place]) -> int:
    """Bytes that one request asks for; 0: none is made."""
    return max(place.offset + place.size for place in places) - places[0].offset


def pack(places: Sequence[Place], base_url: str, gap: int) -> tuple[Wanted, ...]:
    """Files to ingest that hold these records (in order of file and offset), each file at most PACK_BYTES and PACK_RECORDS."""
    cut: list[list[Place]] = []
    size = 0
    for place in places:
        if not cut or size + place.size > PACK_BYTES or len(cut[-1]) == PACK_RECORDS:
            cut.append([])
            size = 0
        cut[-1].append(place)
        size += place.size
    found = []
    for number, part in enumerate(cut):
        name = _name(number, [place[:4] for place in part])
        get = partial(_fetch, name, part, base_url, gap)
        found.append(Wanted(name, "", join(base_url, part[0].file), sum(place.size for place in part), get))
    return tuple(found)


def sift(number: int, path: str, url: str, size: int, config: SelectConfig) -> Wanted:
    """The file to ingest that holds what matches of one WET file. The whole of it is downloaded, and does not stay."""
    asked = {name: value for name, value in identity(config).items() if name not in ("mime", "statuses")}
    name = _name(number, [path, asked])
    return Wanted(name, "", url, size, partial(_sift, name, path, url, size, config))


def _name(number: int, asked: Any) -> str:
    return f"records-{number:05d}-{hashlib.sha256(canonical(asked).encode()).hexdigest()[:16]}.warc.gz"


def origins_path(path: Path) -> Path:
    """Where a pack's origins lie."""
    return path.with_name(path.name + ORIGINS)


def is_pack(name: str) -> bool:
    return re.fullmatch(r"records-\d{5}-[0-9a-f]{16}\.warc\.gz", name) is not None


def packed(path: Path, cap: int) -> Iterator[tuple[str, Record]]:
    """(origin file, record) of a pack, in order; records as `warc.records` gives them for the whole file."""
    with open(path, "rb") as data:
        for file, offset, length, url, problem, value in origins(origins_path(path)):
            if problem:
                yield file, Record(offset, length, problem=problem, value=value, headers={"warc-target-uri": url})
                continue
            for record in compressed(data.read(length), cap):
                yield file, record._replace(offset=record.offset + offset)


def origins(path: Path) -> Iterator[tuple[str, int, int, str, str, str]]:
    """Lines of a file of origins, without the books at its end."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("["):
                yield tuple(json.loads(line))


def used_in(store: Store, manifest: Manifest, used: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    """For `Store.drop`: where used records (origin file to offset, length) lie in a manifest's packs. The origins of a pack of which some stay, stay."""
    found: dict[str, list[tuple[int, int]]] = {}
    asked = {file: {offset for offset, _ in ranges} for file, ranges in used.items()}
    for file in manifest.files:
        if not is_pack(file.path) or file.path in store.dropped(manifest):
            continue
        at = 0
        for origin, offset, length, _, problem, _ in origins(origins_path(store.path(manifest, file, verify=False))):
            if not problem:
                if offset in asked.get(origin, ()):
                    found.setdefault(file.path, []).append((at, length))
                at += length
        if file.path in found:
            found[file.path + ORIGINS] = [(0, -1)]
    return found


def _fetch(name: str, places: list[Place], base_url: str, gap: int, net: Fetcher, folder: Path, progress: Callable[[int], None]) -> Got:
    """Make a pack by range requests, or go on with one that was cut off: what its lines say is there has been verified."""
    with _Pack(folder / name) as out:
        for part in spans(places[out.records :] if not out.done else (), gap):
            start, url = part[0].offset, join(base_url, part[0].file)
            data = net.read_range(url, start, span_bytes(part)) if part[0].size else b""
            for place in part:
                found = data[place.offset - start : place.offset - start + place.length]
                wrong = fault(found, place)
                if wrong and len(part) > 1:  # once more, alone
                    found = net.read_range(url, place.offset, place.length)
                    wrong = fault(found, place)
                out.put(place, b"" if wrong else found, "wrong_record" if wrong else "", wrong)
                progress(out.bytes)
    return out.got


def fault(data: bytes, place: Place) -> str:
    """Why bytes are not the one whole member of a place's URL; '' where they are."""
    if not place.size:
        return f"{place.length:,} bytes, says the index; more than {SPAN:,} are no page"
    if len(data) < place.length:
        return f"the file has {len(data):,} of {place.length:,} bytes there"
    head, end, _, problem = member(data, 0, HEAD)
    if problem:
        return problem
    if end != len(data):
        return f"a gzip member of {end:,} bytes, not of {len(data):,}"
    found = parse(head, 0, len(data), HEAD, len(head)).url
    return "" if found == place.url else f"a record of {found or 'no URL'}"


def _sift(
    name: str, path: str, url: str, size: int, config: SelectConfig, net: Fetcher, folder: Path, progress: Callable[[int], None]
) -> Got:
    """Make a pack of what matches in one WET file. A stretch that is no record has no URL that could fail to match: extract shall count it."""
    whole = folder / "_work" / (name + ".whole")
    with _Pack(folder / name) as out:
        if not out.done:
            out.clear()
            net.fetch(url, whole, expect_bytes=size, progress=progress)
            wants = matcher(config)
            with open(whole, "rb") as raw:
                for record in records(whole, SPAN):
                    place = Place(path, record.offset, record.length, record.url)
                    if record.url and not wants(
                        record.url, record.headers.get("warc-date", "")[:10], record.headers.get(LANGUAGE, ""), "", None
                    ):
                        out.rejected["not_selected"] += record.kind == "conversion"
                    elif record.problem or (record.length < 0 and record.kind == "conversion"):
                        out.put(place, b"", record.problem or "wrong_record", record.value or "one of several records in a gzip member")
                    elif record.kind == "conversion":
                        raw.seek(record.offset)
                        out.put(place, raw.read(record.length))
    whole.unlink(missing_ok=True)
    return out.got


class _Pack:
    """A pack being written: members into NAME.part, then a line each into NAME.origins.part; both get their names when all is there."""

    def __init__(self, path: Path):
        self.path, self.side = path, origins_path(path)
        self._part, self._lines = (p.with_name(p.name + ".part") for p in (self.path, self.side))
        self.records = self.bytes = 0
        self.rejected: Counter[str] = Counter()
        self.done = self.side.exists()

    def __enter__(self) -> Self:
        if not self.done:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():  # killed between the two last renames
                os.replace(self.path, self._part)
            for path in (self._part, self._lines):
                path.touch()
            self._data, self._side = open(self._part, "r+b"), open(self._lines, "r+b")
            self._resume()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self.done:
            return
        if kind is None:
            books = {"seen": self.records + self.rejected.total(), "rejected": self.rejected}
            self._side.write(canonical(books).encode() + b"\n")
        self._data.close()
        self._side.close()
        if kind is None:
            settle(self._part, self.path)
            settle(self._lines, self.side)
            sync_directory(self.path.parent)

    def _resume(self) -> None:
        """Stand behind the last record that is whole in both files."""
        size, lines = self._part.stat().st_size, 0
        for line in self._side:
            length = _length(line)
            if length is None or self.bytes + length > size:
                break
            self.bytes, self.records, lines = self.bytes + length, self.records + 1, lines + len(line)
        for file, end in ((self._data, self.bytes), (self._side, lines)):
            file.seek(end)
            file.truncate()

    def clear(self) -> None:
        """Begin anew."""
        self.records = self.bytes = 0
        for file in (self._data, self._side):
            file.seek(0)
            file.truncate()

    def put(self, place: Place, data: bytes, problem: str = "", value: str = "") -> None:
        """Add one record, or say why there is none."""
        self._data.write(data)
        self._side.write(json.dumps([*place[:4], problem, value], ensure_ascii=False).encode() + b"\n")
        self.records, self.bytes = self.records + 1, self.bytes + len(data)

    @property
    def got(self) -> Got:
        """The files and their books, once they have their names."""
        with open(self.side, "rb") as lines:
            books = json.loads(deque(lines, 1)[0])
        return Got([(path.name, file_sha256(path)) for path in (self.path, self.side)], books["seen"], books["rejected"])


def _length(line: bytes) -> int | None:
    """Bytes of a pack that a line stands for, None for a torn line and for the books."""
    if not line.endswith(b"\n"):
        return None
    try:
        _, _, length, _, problem, _ = json.loads(line)
    except ValueError:
        return None
    return 0 if problem else int(length)
