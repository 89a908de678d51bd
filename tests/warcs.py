"""Small WARC files for tests: records as gzip members, and what a page looks like.

member("http://a.example/", http(page("Words.")))  ->  bytes of one gzip member
"""

import gzip
import zlib

SENTENCES = (
    "The keeper climbs the tower every evening and lights the lamp. He trims the wick and wipes the glass, so that ships can find the harbour. "
    "In winter the nights are long, and he reads by the stove between his rounds. The supply boat comes once a month with oil and bread."
)


def page(text: str = SENTENCES, title: str = "The lighthouse", head: str = "") -> bytes:
    """An HTML page with this text as its article, UTF-8."""
    paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n"))
    return f"<html><head>{head}<title>{title}</title></head><body><article>{paragraphs}</article></body></html>".encode()


def http(body: bytes, head: str = "Content-Type: text/html", status: str = "200 OK") -> bytes:
    """An HTTP response."""
    return f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode() + body


def record(url: str, block: bytes, kind: str = "response", extra: str = "", length: int | None = None) -> bytes:
    """A WARC record, not compressed."""
    content = {"response": "application/http; msgtype=response", "conversion": "text/plain"}.get(kind, "application/warc-fields")
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2026-10-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{zlib.crc32((url + kind).encode())}>\r\n"
    head += (
        f"Content-Length: {len(block) if length is None else length}\r\nContent-Type: {content}\r\nWARC-Target-URI: {url}\r\n{extra}\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def member(url: str, block: bytes, kind: str = "response", extra: str = "", length: int | None = None) -> bytes:
    """A WARC record as one gzip member."""
    return gzip.compress(record(url, block, kind, extra, length), mtime=0)
