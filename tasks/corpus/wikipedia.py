"""Wikipedia: article dumps by date, and the reader of their XML.

    manifest = run(store, "small", config, download)          # enwiki/20261001/enwiki-20261001-pages-articles1.xml-p1p41242.bz2 …
    for page in articles(path): ...                           # streaming, bounded memory

A dump is taken from dumpstatus.json when its job `articlesdump` is done (in one part or many), size and sha1 verified.
Sources: https://dumps.wikimedia.org, https://www.mediawiki.org/wiki/Help:Export (the XML)
"""

import bz2
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, BinaryIO, cast
from xml.parsers import expat

from pydantic import Field

from model.config import STRICT, resource
from model.errors import ConfigError, InputError, NotFoundError
from tasks.corpus.download import DownloadConfig, Fetcher, Request, Wanted, ingest, join
from tasks.corpus.manifest import Manifest, Progress, Store

LICENSE = "CC BY-SA 4.0"
MAX_TEXT = 64 << 20
"""Characters of one field; MediaWiki allows 2 MiB a page, so that only damage or malice reaches this. The rest is cut."""


@dataclass(frozen=True)
class WikipediaConfig:
    """Which dumps of which wikis."""

    __pydantic_config__ = STRICT

    wikis: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...], Field(min_length=1)]
    """Database names: enwiki, zhwiki …"""
    date: Annotated[str, Field(pattern=r"^(latest|\d{8})$")]
    """`YYYYMMDD`, or `latest`: the newest date at which the article dumps of all the wikis are done."""
    files: Annotated[int, Field(ge=1)]
    """Most parts of each wiki's dump, from its first on."""
    byte_budget: Annotated[int, Field(ge=1)]
    """Most bytes of all wikis together; the wikis take turns, and a part that would exceed it is left out."""
    base_url: str = resource()
    """https://dumps.wikimedia.org, a mirror, or a local folder."""


def run(
    store: Store,
    recipe: str,
    config: WikipediaConfig,
    download: DownloadConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
    whole: bool = False,
) -> Manifest:
    """Resolve and fetch. `info`: source, role, snapshot (the date), snapshots (wiki → date), license, left_out."""
    return ingest(store, recipe, resolve(config, download), download, progress, rebuild, whole)


def latest(config: WikipediaConfig, download: DownloadConfig) -> str:
    """The newest date (YYYYMMDD) at which all the wikis' article dumps are done."""
    with Fetcher(download) as net:
        return _newest(config, net)


def resolve(config: WikipediaConfig, download: DownloadConfig) -> Request:
    """The exact date and parts. NotFoundError where a wiki or date does not exist or its dump is not done; it names the newest that is."""
    with Fetcher(download) as net:
        date = _newest(config, net) if config.date == "latest" else config.date
        parts = []
        for wiki in config.wikis:
            found = _parts(config, net, wiki, date)
            if found is None:
                raise NotFoundError(
                    f"{wiki} has no finished article dump of {date} at {config.base_url}. Newest for all wikis: {_newest(config, net)}."
                )
            parts.append(found[: config.files])
    taken: set[str] = set()
    left, smallest = config.byte_budget, min(part.size for found in parts for part in found)
    for part in (part for turn in zip_longest(*parts) for part in turn if part):
        if part.size <= left:
            taken.add(part.path)
            left -= part.size
    if not taken:
        raise ConfigError(f"byte_budget is {config.byte_budget:,}, and the smallest part of the dumps has {smallest:,} bytes. Raise it.")
    every = [part for found in parts for part in found]
    info = {
        "snapshots": dict.fromkeys(config.wikis, date),
        "left_out": [{"path": part.path, "reason": "byte_budget"} for part in every if part.path not in taken],
    }
    return Request("wikipedia", "source", date, LICENSE, tuple(part for part in every if part.path in taken), info)


def _newest(config: WikipediaConfig, net: Fetcher) -> str:
    dates = [
        {name.rstrip("/") for name in net.names(join(config.base_url, wiki)) if re.fullmatch(r"\d{8}/?", name)} for wiki in config.wikis
    ]
    for date in sorted(set.intersection(*dates), reverse=True):
        if all(_parts(config, net, wiki, date) is not None for wiki in config.wikis):
            return date
    raise NotFoundError(
        f"{config.base_url} holds no date at which the article dumps of {', '.join(config.wikis)} are all done. Check base_url and wikis."
    )


def _parts(config: WikipediaConfig, net: Fetcher, wiki: str, date: str) -> list[Wanted] | None:
    """Parts of a wiki's article dump in page order; None where it does not exist or is not done."""
    url = join(config.base_url, f"{wiki}/{date}/dumpstatus.json")
    try:
        job = json.loads(net.read_small(url))["jobs"]["articlesdump"]
        if job["status"] != "done":
            return None
        files = {name: facts for name, facts in job["files"].items() if name.endswith(".bz2")}
        parts = []
        for name in sorted(files, key=lambda name: _order(wiki, date, name)):
            digest = next((f"{kind}:{files[name][kind]}" for kind in ("sha1", "md5") if files[name].get(kind)), "")
            path = f"{wiki}/{date}/{name}"
            parts.append(Wanted(path, digest, join(config.base_url, path), int(files[name]["size"])))
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{url} is not a dump's status ({error!r}). Check base_url.") from None
    if not parts:
        raise InputError(f"{url} says that the article dump is done, and lists no .bz2 of it. Take another date.")
    return parts


def _order(wiki: str, date: str, name: str) -> tuple[int, int]:
    """Place of a part: its number and first page. ValueError for a name that no dump has; it becomes a path in the store."""
    found = re.fullmatch(rf"{wiki}-{date}-pages-articles(\d*)\.xml(?:-p(\d+)p\d+)?\.bz2", name)
    if found is None:
        raise ValueError(f"unknown file name {name[:200]!r}")
    return int(found[1] or 0), int(found[2] or 0)


@dataclass(frozen=True)
class Page:
    """One page of a dump, its newest revision."""

    title: str
    ns: int
    page_id: int
    revision_id: int
    timestamp: str
    """Of the revision, ISO 8601."""
    redirect: str
    """Title of the page it redirects to; '' for others."""
    text: str
    """Wikitext."""
    number: int
    """Place among the pages of the file, from 1."""


def articles(path: Path) -> Iterator[Page]:
    """Pages of a dump (bz2 with one stream or many, gzip or plain; UTF-8 or UTF-16), in order, in bounded memory.

    Raises InputError after the last whole page when the file is clipped, corrupt or not well-formed (the message says after which page), and for a
    document type declaration: dumps have none, and entities declared there can grow without bounds.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 1 << 20
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = reader.start, reader.end, reader.data
    trouble: Exception | None = None
    with _unpacked(path) as raw:
        more = True
        while more and trouble is None:
            try:
                chunk = raw.read(1 << 18)
                more = bool(chunk)
                parser.Parse(chunk, not more)
            except (EOFError, OSError, zlib.error, expat.ExpatError, _NotADumpError) as error:
                trouble = error
            yield from reader.pages
            reader.pages.clear()
    if trouble is not None:
        raise InputError(f"{path.name} is damaged after page {reader.number:,}: {trouble}. Fetch it again, or go on with the pages before.")


class _NotADumpError(Exception):
    pass


def _refuse(name: str, *rest: object) -> None:
    raise _NotADumpError(f"it declares a document type ({name[:50]!r}), which dumps do not; entities are refused")


def _unpacked(path: Path) -> BinaryIO:
    """The file's bytes, unpacked by what its first bytes say."""
    with open(path, "rb") as handle:
        magic = handle.read(3)
    opener = bz2.open if magic == b"BZh" else gzip.open if magic[:2] == b"\x1f\x8b" else open
    return cast(BinaryIO, opener(path, "rb"))


class _Reader:
    """Handlers of the parser: gathers the fields of one page at a time. Tags as of export-0.3 to 0.11."""

    FIELDS = (
        "page/title",
        "page/ns",
        "page/id",
        "page/revision/id",
        "page/revision/timestamp",
        "page/revision/text",
        "siteinfo/namespaces/namespace",
    )

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.number = 0
        self._path: list[str] = []
        self._namespaces: dict[str, int] = {}
        self._key = 0
        self._begin()

    def _begin(self) -> None:
        self._fields: dict[str, str] = {}
        self._redirect = ""
        self._pieces: list[str] | None = None
        self._length = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._path and tag != "mediawiki":
            raise _NotADumpError(f"its root is <{tag[:50]}>, a dump's is <mediawiki>")
        self._path.append(tag)
        if tag == "page":
            self._begin()
        elif tag == "redirect":
            self._redirect = attributes.get("title", "")
        elif tag == "namespace":
            self._key = int(attributes.get("key", "0")) if re.fullmatch(r"-?\d+", attributes.get("key", "0")) else 0
        wanted = (
            len(self._path) <= 4 and "/".join(self._path[1:]) in self.FIELDS
        )  # joined at small depths only: nesting must not cost its square
        self._pieces, self._length = ([] if wanted else None), 0

    def data(self, text: str) -> None:
        if self._pieces is not None and self._length < MAX_TEXT:
            self._pieces.append(text[: MAX_TEXT - self._length])
            self._length += len(text)

    def end(self, tag: str) -> None:
        if self._pieces is not None:
            self._fields["/".join(self._path[1:])] = "".join(self._pieces)
            self._pieces = None
        self._path.pop()
        if tag == "namespace":
            self._namespaces[self._fields.get("siteinfo/namespaces/namespace", "")] = self._key
        elif tag == "page":
            self._finish()

    def _finish(self) -> None:
        self.number += 1
        field = self._fields.get
        title = field("page/title", "")
        ns = field("page/ns", "") or str(
            self._namespaces.get(title.partition(":")[0], 0) if ":" in title else 0
        )  # export-0.5 and older have no ns
        text = field("page/revision/text", "")
        self.pages.append(
            Page(
                title, _number(ns), _number(field("page/id", "")), _number(field("page/revision/id", "")), field("page/revision/timestamp", ""),
                self._redirect, text, self.number,
            )
        )  # fmt: skip


def _number(text: str) -> int:
    """A whole number of at most 18 digits, -1 for anything else."""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else -1
