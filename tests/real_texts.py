"""Real texts of many kinds, from the sample data beside the repository: what the quality rules are compared on.

for kind, text in real_texts(folder): ...          # a few thousand; English and Chinese, a page whole and its main text alone
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.corpus import page, warc, wikipedia, wikitext

CHAPTER = 6_000
"""Characters of a piece of a novel, cut at a paragraph's end."""


def real_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) in a fixed order."""
    for path in sorted((folder / "html" / "wcxb" / "dev" / "html").glob("*.html.gz")):
        yield from _page("page", gzip.decompress(path.read_bytes()), "")
    for line in _lines(folder / "html" / "daniel.jsonl.gz"):
        found = json.loads(line)
        yield from _page("page", base64.b64decode(found["html_b64"]), "")
        yield "news", re.sub("</?p>", "", found["reference"])
    for path in sorted((folder / "commoncrawl").rglob("*.warc.gz")):
        for record in warc.records(path, 1 << 20):
            if record.kind == "response" and "html" in record.content_type and record.body:
                yield from _page("crawl", record.body, record.charset)
    for line in _lines(folder / "neardup" / "mccormick" / "data" / "articles_1000.train.gz"):
        yield "article", line.split(" ", 1)[1]
    for path in sorted((folder / "wikipedia").rglob("*.bz2")):
        for article in wikipedia.articles(path):
            if not article.redirect and article.ns == 0:
                yield "wikipedia", wikitext.plain(article.text, "Hans")
    for line in _lines(folder / "quality" / "dclm-majority.jsonl.gz"):
        yield "labelled", json.loads(line)["text"]
    for text in laws(folder):
        yield "law", text
    for text in novels(folder):
        yield "novel", text


def laws(folder: Path) -> Iterator[str]:
    """Chinese laws, whole."""
    for line in _lines(folder / "text" / "zh-laws.jsonl.gz"):
        yield json.loads(line)["text"]


def novels(folder: Path) -> Iterator[str]:
    """English novels in pieces."""
    for path in sorted((folder / "text" / "100-english-novels").glob("*.txt.gz")):
        chapter: list[str] = []
        for line in _lines(path):
            chapter.append(line.rstrip("\r"))
            if sum(map(len, chapter)) > CHAPTER:
                yield "\n".join(chapter)
                chapter = []


def _page(kind: str, body: bytes, charset: str) -> Iterator[tuple[str, str]]:
    """A page's whole text and its main text."""
    from resiliparse.extract.html2text import extract_plain_text

    html = page.decode(body, charset)[0]
    yield f"{kind}, whole", extract_plain_text(html)
    yield f"{kind}, main", extract_plain_text(html, main_content=True)


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[:-1]
