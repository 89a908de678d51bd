"""The sample's crawl: source/web (page bodies, site templates, index.json) -> OUT/commoncrawl, laid out as Common Crawl does.

Three WARC files with one gzip member a record; the last file stops in the middle of its last member, as a
broken download does. The bytes depend on the sources alone. Called by build.py.
"""

import base64
import gzip
import hashlib
import html.parser
import io
import json
import re
import struct
import uuid
import zlib
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

SNAPSHOT = "CC-MAIN-1970-01"
FILES = 3
Entry = dict[str, Any]


class MainText(html.parser.HTMLParser):
    """Collects the text of a body fragment, one line a block; skips furniture that stands inside the body."""

    BLOCKS = ("p", "div", "li", "ul", "ol", "h1", "h2", "h3", "h4", "tr", "table", "blockquote", "pre", "section", "br", "hr")
    SKIPPED = ("script", "style", "figcaption", "aside", "nav", "button", "form", "small")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(re.sub(r"\s+", " ", data))


def load(source: Path) -> list[Entry]:
    """The pages of index.json in crawl order."""
    entries: list[Entry] = json.loads((source / "index.json").read_text("utf-8"))
    return entries


def body(source: Path, entry: Entry) -> str:
    """The stored body of a page; of a whole page (no template) what stands between the `main` comments."""
    stored = (source / entry["file"]).read_text("utf-8")
    marked = re.search(r"<!-- main -->(.*)<!-- /main -->", stored, re.S)
    return marked.group(1) if marked else stored


def main_text(source: Path, entry: Entry) -> str:
    """The true main text of a page without its heading, one block a line."""
    parser = MainText()
    parser.feed(body(source, entry))
    lines = (line.strip() for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def deep(text: str, levels: int = 3000) -> str:
    """A page whose paragraph lies under `levels` nested divs."""
    return f"<html><head><title>Deep</title></head><body>{'<div>' * levels}<p>{text}</p>{'</div>' * levels}</body></html>"


def huge(cells: int = 20000) -> str:
    """A page that is one table of `cells` cells, ten a row."""
    rows = ("<tr>" + "".join(f"<td>{row * 10 + column}</td>" for column in range(10)) for row in range(cells // 10))
    return f"<html><head><title>Tide table</title></head><body><table>{''.join(rows)}</table></body></html>"


def png(side: int = 16) -> bytes:
    """A grey square as a PNG, stored without compression."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * side for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def pdf() -> bytes:
    """The smallest PDF with one empty page."""
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
    )


def payload(source: Path, entry: Entry) -> bytes:
    """The bytes that the server sent for a page."""
    kind = entry["kind"]
    if kind in ("empty", "redirect"):
        return b""
    if kind == "not_html" and not entry["file"]:
        return {"image/png": png, "application/pdf": pdf}[entry["content_type"]]()
    if kind == "huge":
        return huge().encode()
    text: str = (source / entry["file"]).read_text("utf-8")
    if kind == "deep":
        return deep(text.strip()).encode()
    if entry.get("template"):
        page = (source / "templates" / entry["template"]).read_text("utf-8")
        values = {
            "title": entry["title"],
            "site": entry["site"],
            "published": entry["published"],
            "meta": f'<meta charset="{entry["charset"]}">' if entry["charset"] else "",
            "body": text.strip(),
        }
        for name, value in values.items():
            page = page.replace("{{" + name + "}}", value)
        text = page
    encoding: str = entry["encoding"]
    if encoding.startswith("utf-16"):
        text = "\ufeff" + text
    cut: int | None = entry.get("cut")
    return text.encode(encoding)[:cut]


def identity(kind: str, key: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, kind + ' ' + key)}>"


def digest(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()


def record(kind: str, key: str, when: str, content_type: str, block: bytes, extra: list[str], level: int = 9) -> bytes:
    """One WARC record as one gzip member."""
    head = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Date: {when}",
        f"WARC-Record-ID: {identity(kind, key)}",
        f"Content-Length: {len(block)}",
        f"Content-Type: {content_type}",
        *extra,
    ]
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0, compresslevel=level) as member:
        member.write("\r\n".join(head).encode() + b"\r\n\r\n" + block + b"\r\n\r\n")
    return out.getvalue()


def exchange(source: Path, entry: Entry, info: str, place: int) -> list[bytes]:
    """The request, response and metadata records of one fetched page."""
    url, when = entry["url"], entry["date"]
    host, _, path = url.partition("://")[2].partition("/")
    sent = payload(source, entry)
    seconds = datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    status = {200: "200 OK", 301: "301 Moved Permanently", 404: "404 Not Found"}[entry["status"]]
    head = [f"HTTP/1.1 {status}", f"Date: {format_datetime(seconds, usegmt=True)}"]
    if entry["content_type"]:
        head.append(f"Content-Type: {entry['content_type']}")
    if "location" in entry:
        head.append(f"Location: {entry['location']}")
    if place % 3 == 0:
        head.append("X-Crawler-Content-Encoding: gzip")
    head.append(f"Content-Length: {len(sent)}")
    response = "\r\n".join(head).encode() + b"\r\n\r\n" + sent
    about = [f"WARC-Warcinfo-ID: {info}", f"WARC-Target-URI: {url}"]
    detected = entry["content_type"].partition(";")[0] or "text/html"
    extra = [
        *about,
        f"WARC-Concurrent-To: {identity('request', url)}",
        f"WARC-IP-Address: 192.0.2.{place % 250 + 1}",
        f"WARC-Payload-Digest: {digest(sent)}",
        f"WARC-Block-Digest: {digest(response)}",
        f"WARC-Identified-Payload-Type: {detected}",
    ]
    if "cut" in entry:
        extra.append("WARC-Truncated: length")
    request = f"GET /{path} HTTP/1.1\r\nUser-Agent: CCBot/2.0 (https://commoncrawl.org/faq/)\r\nHost: {host}\r\n\r\n"
    level = 0 if entry["kind"] == "clipped" else 9
    concurrent = f"WARC-Concurrent-To: {identity('response', url)}"
    return [
        record("request", url, when, "application/http; msgtype=request", request.encode(), about),
        record("response", url, when, "application/http; msgtype=response", response, extra, level),
        record("metadata", url, when, "application/warc-fields", b"fetchTimeMs: 100\r\n", [*about, concurrent]),
    ]


def build(source: Path, out: Path) -> None:
    """Write collinfo.json, warc.paths.gz and the WARC files under OUT/commoncrawl."""
    root = out / "commoncrawl"
    entries = load(source)
    share = -(-len(entries) // FILES)
    paths = []
    for number in range(FILES):
        name = f"CC-MAIN-19700101000000-19700101010000-{number:05d}.warc.gz"
        path = f"crawl-data/{SNAPSHOT}/segments/0000000000{number:03d}.{number}/warc/{name}"
        fields = f"isPartOf: {SNAPSHOT}\r\nformat: WARC File Format 1.0\r\ndescription: Ingot's sample\r\n".encode()
        extra = [f"WARC-Filename: {name}"]
        members = [record("warcinfo", name, "1970-01-01T00:00:00Z", "application/warc-fields", fields, extra)]
        for place in range(number * share, min((number + 1) * share, len(entries))):
            request, response, metadata = exchange(source, entries[place], identity("warcinfo", name), place)
            if entries[place]["kind"] == "clipped":
                members += [request, response[: len(response) * 2 // 3]]
                break
            members += [request, response, metadata]
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(members))
        paths.append(path)
    listing = gzip.compress(("\n".join(paths) + "\n").encode(), mtime=0)
    (root / "crawl-data" / SNAPSHOT / "warc.paths.gz").write_bytes(listing)
    snapshot = {
        "id": SNAPSHOT,
        "name": "Ingot's sample, not a real crawl",
        "timegate": f"/{SNAPSHOT}/",
        "cdx-api": f"/{SNAPSHOT}-index",
        "from": "1970-01-01T00:00:00",
        "to": "1970-01-01T01:00:00",
    }
    (root / "collinfo.json").write_text(json.dumps([snapshot], indent=1) + "\n", "utf-8")
