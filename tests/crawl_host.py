"""A Common Crawl host of a few files for tests: a folder to which snapshots are added, with their indexes and WET files.

add_snapshot(root, "CC-MAIN-1970-01", [a.warc.gz]); add_indexes(root, "CC-MAIN-1970-01"); add_wet(root, "CC-MAIN-1970-01")
"""

import gzip
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

OLD, NEW = "CC-MAIN-1970-01", "CC-MAIN-1970-05"


def add_snapshot(root: Path, name: str, warcs: Sequence[Path]) -> None:
    """Add a snapshot of these files to a host, as its newest."""
    paths = []
    for number, warc in enumerate(warcs):
        paths.append(f"crawl-data/{name}/segments/1.{number}/warc/{name}-{number:05d}.warc.gz")
        (root / paths[-1]).parent.mkdir(parents=True)
        shutil.copyfile(warc, root / paths[-1])
    (root / f"crawl-data/{name}/warc.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode(), mtime=0))
    listing = root / "collinfo.json"
    known = json.loads(listing.read_text()) if listing.exists() else []
    listing.write_text(json.dumps([{"id": name}, *known]))


def spoken(url: str, body: bytes) -> str:
    """Languages for an index: Chinese where a page has many bytes of it, a second one for every fourth page, none for a few."""
    share = zlib.crc32(url.encode())
    main = "zho" if len(re.findall(rb"[\xe4-\xe9][\x80-\xbf]{2}", body)) > 100 else "eng"
    return "" if share % 11 == 0 else main if share % 4 else f"{main},{'eng' if main == 'zho' else 'fra'}"


def members(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, bytes unpacked) of each whole gzip member."""
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        inflate = zlib.decompressobj(31)
        data = inflate.decompress(raw[at:])
        if not inflate.eof:  # clipped: no index knows it
            return
        length = len(raw) - at - len(inflate.unused_data)
        yield at, length, data
        at += length


def pages(root: Path, name: str, speak: Callable[[str, bytes], str] = spoken) -> Iterator[dict[str, Any]]:
    """What an index says of every response of a snapshot, with the page itself, in order."""
    for file in gzip.decompress((root / f"crawl-data/{name}/warc.paths.gz").read_bytes()).decode().split():
        for offset, length, data in members(root / file):
            head, _, block = data.partition(b"\r\n\r\n")
            told = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head.decode().split("\r\n"))}
            if told.get("warc-type") != "response":
                continue
            url = told["warc-target-uri"]
            status = re.match(rb"HTTP/\S+ (\d{3})", block)
            declared = re.search(rb"\ncontent-type:\s*([^;\r\n]+)", block.partition(b"\r\n\r\n")[0], re.IGNORECASE)
            mime = declared[1].decode().strip() if declared else "unk"
            yield {
                "file": file, "offset": offset, "length": length, "url": url, "surt": surt(url), "date": told["warc-date"],
                "status": int(status[1]) if status else 200, "mime": mime, "detected": told.get("warc-identified-payload-type", mime),
                "languages": speak(url, block), "block": block,
            }  # fmt: skip


def surt(url: str) -> str:
    """The key by which indexes are sorted."""
    parts = urlsplit(url)
    name = ",".join(reversed(re.sub(r"^www\d*\.", "", parts.hostname or "").split(".")))
    port = f":{parts.port}" if parts.port else ""
    return f"{name}{port}){(parts.path.rstrip('/') or '/').lower()}{'?' + parts.query.lower() if parts.query else ''}"


def add_indexes(
    root: Path, name: str, rows: Sequence[dict[str, Any]] | None = None, block: int = 7, shards: int = 2, parts: int = 2
) -> None:
    """The CDX index and the columnar index of a snapshot: of its pages, or of these rows."""
    rows = sorted(pages(root, name) if rows is None else rows, key=lambda row: (row["surt"].encode(), row["date"]))
    write_cdx(root, name, rows, block, shards)
    write_table(root, name, rows, parts)


def write_cdx(root: Path, name: str, rows: Sequence[dict[str, Any]], block: int, shards: int) -> None:
    """The CDX index of sorted rows: blocks of so many lines, cluster.idx, and the listing."""
    folder = f"cc-index/collections/{name}/indexes"
    (root / folder).mkdir(parents=True, exist_ok=True)
    cluster, listed, each = [], [], -(-len(rows) // shards) or 1
    for shard in range(shards):
        listed.append(f"{folder}/cdx-{shard:05d}.gz")
        data = b""
        for start in range(shard * each, min(len(rows), (shard + 1) * each), block):
            lines = [cdxj(row) for row in rows[start : min(start + block, (shard + 1) * each)]]
            packed = gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0)
            key = " ".join(lines[0].split(" ")[:2])
            cluster.append(f"{key}\tcdx-{shard:05d}.gz\t{len(data)}\t{len(packed)}\t{len(cluster) + 1}\n")
            data += packed
        (root / listed[-1]).write_bytes(data)
    (root / folder / "cluster.idx").write_text("".join(cluster))
    listed += [f"{folder}/cluster.idx", f"cc-index/collections/{name}/metadata.yaml"]
    (root / f"crawl-data/{name}/cc-index.paths.gz").write_bytes(gzip.compress("\n".join(listed).encode(), mtime=0))


def cdxj(row: dict[str, Any]) -> str:
    """One line, as Common Crawl writes it."""
    told = {
        "url": row["url"], "mime": row["mime"], "mime-detected": row["detected"], "status": str(row["status"]), "digest": "A" * 32,
        "length": str(row["length"]), "offset": str(row["offset"]), "filename": row["file"],
    } | ({"charset": "UTF-8", "languages": row["languages"]} if row["languages"] else {})  # fmt: skip
    return f"{row['surt']} {re.sub('[^0-9]', '', row['date'])} {json.dumps(told)}"


def write_table(root: Path, name: str, rows: Sequence[dict[str, Any]], parts: int) -> None:
    """The columnar index of sorted rows, with the columns of the real one that we know of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = f"cc-index/table/cc-main/warc/crawl={name}"
    listed, each = [], -(-len(rows) // parts) or 1
    for number in range(parts):
        some = rows[number * each : (number + 1) * each]
        columns = {
            "url_surtkey": pa.array([r["surt"] for r in some], pa.string()),
            "url": pa.array([r["url"] for r in some], pa.string()),
            "url_host_name": pa.array([urlsplit(r["url"]).hostname for r in some], pa.string()),
            "fetch_time": pa.array([datetime.fromisoformat(r["date"]).astimezone(UTC) for r in some], pa.timestamp("ms", "UTC")),
            "fetch_status": pa.array([r["status"] for r in some], pa.int16()),
            "content_digest": pa.array(["A" * 32] * len(some), pa.string()),
            "content_mime_type": pa.array([r["mime"] for r in some], pa.string()),
            "content_mime_detected": pa.array([r["detected"] for r in some], pa.string()),
            "content_languages": pa.array([r["languages"] or None for r in some], pa.string()),
            "warc_filename": pa.array([r["file"] for r in some], pa.string()),
            "warc_record_offset": pa.array([r["offset"] for r in some], pa.int32()),
            "warc_record_length": pa.array([r["length"] for r in some], pa.int32()),
            "warc_segment": pa.array(["1.0"] * len(some), pa.string()),
        }
        listed.append(f"{folder}/subset=warc/part-{number:05d}-0123.c000.gz.parquet")
        (root / listed[-1]).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / listed[-1], row_group_size=max(1, len(some) // 4), compression="gzip")
    other = f"{folder}/subset=robotstxt/part-00000-0123.c000.gz.parquet"
    (root / f"crawl-data/{name}/cc-index-table.paths.gz").write_bytes(gzip.compress("\n".join([other, *listed]).encode(), mtime=0))


def add_wet(root: Path, name: str) -> None:
    """WET files of a snapshot: of every HTML page its text, tags cut out."""
    listed: dict[str, list[bytes]] = {}
    for row in pages(root, name):
        wet = listed.setdefault(row["file"].replace("/warc/", "/wet/").replace(".warc.gz", ".warc.wet.gz"), [])
        if row["detected"] != "text/html" or row["status"] != 200:
            continue
        text = re.sub(
            rb"\s*\n\s*", b"\n", re.sub(rb"(?is)<(script|style).*?</\1>|<[^>]*>", b"\n", row["block"].partition(b"\r\n\r\n")[2])
        ).strip()
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {row['url']}\r\nWARC-Date: {row['date']}\r\n"
        head += f"WARC-Identified-Content-Language: {row['languages']}\r\n" if row["languages"] else ""
        head += f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n"
        wet.append(gzip.compress(head.encode() + text + b"\r\n\r\n", mtime=0))
    for path, wets in listed.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        about = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
        (root / path).write_bytes(b"".join([gzip.compress(about, mtime=0), *wets]))
    (root / f"crawl-data/{name}/wet.paths.gz").write_bytes(gzip.compress("\n".join(listed).encode(), mtime=0))
