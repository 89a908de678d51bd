"""Common Crawl: WARC or WET files of one snapshot, or single records of them. collinfo.json → warc.paths.gz → crawl-data/<snapshot>/…/*.warc.gz.

    manifest = run(store, "small", config, download)          # raw files in the store, files named as on the host
    newest = latest(config, download)                         # "CC-MAIN-2026-44", for refresh

Which files: those whose path has the smallest sha256, a fixed draw that spreads over the segments and whose first N stay chosen when N grows.
Sources: https://commoncrawl.org/get-started, https://index.commoncrawl.org/collinfo.json
"""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from model.config import STRICT, resource
from model.errors import ConfigError, EmptyError, InputError, NotFoundError
from tasks.corpus import cdx
from tasks.corpus.download import DownloadConfig, Fetcher, Request, Wanted, ingest, join, safe_path
from tasks.corpus.manifest import Manifest, Progress, Store
from tasks.corpus.selection import SelectConfig, pack, sift, span_bytes, spans

LICENSE = "Common Crawl terms of use"


@dataclass(frozen=True)
class CommonCrawlConfig:
    """Which part of which crawl."""

    __pydantic_config__ = STRICT

    snapshot: Annotated[str, Field(pattern=r"^(latest|CC-MAIN-\d{4}(-\d{2}|-\d{4})?)$")]
    """`CC-MAIN-YYYY-WW`, or `latest`: the newest that the index lists."""
    files: Annotated[int, Field(ge=1)]
    """Most WARC files (about 1 GB each) or WET files (about 100 MB), drawn evenly from the snapshot; with select, the files from which records are taken
    (a snapshot has some 90,000)."""
    byte_budget: Annotated[int, Field(ge=1)]
    """Most bytes; the draw ends at the first file, or selected record, that would exceed it."""
    base_url: str = resource()
    """Host of the files: https://data.commoncrawl.org, a mirror, or a local folder."""
    index_url: str = resource()
    """Host of collinfo.json: https://index.commoncrawl.org, a mirror, or a local folder."""
    format: Literal["warc", "wet"] = field(kw_only=True)
    """warc: pages as the crawler got them, from which we take the main text; wet: the plain text of whole pages, made by Common Crawl."""
    select: SelectConfig | None = field(kw_only=True)
    """Single records: of WARC files fetched one by one by range requests, of WET files while reading. null takes whole files."""

    def __post_init__(self) -> None:
        if self.select is None:
            return
        if self.format == "wet" and (self.select.mime or self.select.statuses):
            raise ValueError("select.mime and select.statuses are not known for WET files; leave them empty, or take format=warc")
        if self.format == "warc" and self.select.index == "cdx" and not cdx.keys(self.select):
            raise ValueError(cdx.UNBOUNDED)


def run(
    store: Store,
    recipe: str,
    config: CommonCrawlConfig,
    download: DownloadConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
    whole: bool = False,
) -> Manifest:
    """Resolve and fetch. `info`: source, role, snapshot, license, left_out; of selected records also index and ranges: bytes read, asked for and used."""
    return ingest(store, recipe, resolve(config, download), download, progress, rebuild, whole)


def latest(config: CommonCrawlConfig, download: DownloadConfig) -> str:
    """Name of the newest snapshot that the index lists."""
    with Fetcher(download) as net:
        return _snapshots(config, net)[0]


def resolve(config: CommonCrawlConfig, download: DownloadConfig) -> Request:
    """The exact snapshot and files or records. NotFoundError names the nearest snapshots where this one does not exist."""
    with Fetcher(download) as net:
        snapshot = _snapshots(config, net)[0] if config.snapshot == "latest" else config.snapshot
        listed = _paths(config, net, snapshot)
        drawn = sorted(listed, key=lambda path: hashlib.sha256(path.encode()).digest())[: config.files]
        if config.select is not None and config.format == "warc":
            return _records(config, config.select, net, snapshot, listed, drawn)
        sizes: dict[str, int] = {}
        for path in drawn:
            size = net.size(join(config.base_url, path))
            if sum(sizes.values()) + size > config.byte_budget:
                if not sizes:
                    raise ConfigError(
                        f"byte_budget is {config.byte_budget:,}, and the first file alone ({path}) has {size:,} bytes. Raise it."
                    )
                break
            sizes[path] = size
    taken = [path for path in listed if path in sizes]
    left_out = [{"path": path, "reason": "byte_budget"} for path in drawn if path not in sizes]
    if config.select is None:
        wanted = [Wanted(path, "", join(config.base_url, path), sizes[path]) for path in taken]
    else:
        wanted = [sift(number, path, join(config.base_url, path), sizes[path], config.select) for number, path in enumerate(taken)]
    return Request("commoncrawl", "source", snapshot, LICENSE, tuple(wanted), {"left_out": left_out})


def _records(config: CommonCrawlConfig, select: SelectConfig, net: Fetcher, snapshot: str, listed: list[str], drawn: list[str]) -> Request:
    """Single records of the drawn files: those of the first drawn file first, until the budget is spent; then in order of file and offset."""
    look = cdx.cdx if select.index == "cdx" else cdx.table
    found = look(net, config.base_url, snapshot, select, frozenset(drawn))
    rank = {path: number for number, path in enumerate(drawn)}
    every = sorted(found.places.values(), key=lambda place: (rank[place.file], place.offset))
    size, taken = 0, []
    for place in every:
        size += place.size
        if size > config.byte_budget:
            break
        taken.append(place)
    if not taken:
        why = f"the first of {len(every):,} has {every[0].length:,} bytes, more than byte_budget" if every else "none matches"
        raise EmptyError(
            f"{snapshot}: no record is selected in {len(drawn):,} of {len(listed):,} WARC files ({why}). Raise files, or widen select."
        )
    place_of = {path: number for number, path in enumerate(listed)}
    taken.sort(key=lambda place: (place_of[place.file], place.offset))
    asked = [size for part in spans(taken, select.gap) if (size := span_bytes(part))]
    left = len(every) - len(taken)
    info = {
        "left_out": [{"path": f"{left:,} records", "reason": "byte_budget"}] if left else [],
        "index": {"read": found.bytes, "broken_lines": found.broken, "records": len(every)},
        "ranges": {"requests": len(asked), "asked": sum(asked), "used": sum(place.size for place in taken)},
    }
    return Request("commoncrawl", "source", snapshot, LICENSE, pack(taken, config.base_url, select.gap), info)


def _snapshots(config: CommonCrawlConfig, net: Fetcher) -> list[str]:
    """All weekly-named snapshots, newest first, whatever the order of the listing."""
    url = join(config.index_url, "collinfo.json")
    try:
        names = [entry["id"] for entry in json.loads(net.read_small(url))]
        found = [name for name in names if re.fullmatch(r"CC-MAIN-\d{4}-\d{2}", name)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} is not Common Crawl's list of snapshots ({error!r}). Check index_url.") from None
    if not found:
        raise NotFoundError(f"{url} lists no snapshot. Check index_url.")
    return sorted(found, reverse=True)


def _paths(config: CommonCrawlConfig, net: Fetcher, snapshot: str) -> list[str]:
    """Paths of all WARC or WET files of a snapshot, in the host's order."""
    url = join(config.base_url, f"crawl-data/{snapshot}/{config.format}.paths.gz")
    try:
        lines = net.read_small(url).decode("utf-8", "replace").split()
    except NotFoundError as error:
        known = _snapshots(config, net)
        near = difflib.get_close_matches(snapshot, known, n=3, cutoff=0)
        raise NotFoundError(f"no snapshot {snapshot} ({error}) Nearest: {', '.join(near)}; newest: {known[0]}.") from None
    for path in lines:
        if not safe_path(path):
            raise InputError(f"{url} lists {path[:200]!r}, which is no path below the host's root. Check base_url.")
    if not lines:
        raise InputError(f"{url} lists no files. Take another snapshot.")
    return lines
