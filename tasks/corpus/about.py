"""What a page says of itself: title, day of publication, canonical address, from the marks that blocks.scan leaves on its one pass.

    about(page)                                   ->  {"title": "Towers", "published": "2025-07-02", "canonical": "/towers"}, '' where it says nothing
    canonical_url("/towers", "http://a.example/x")  ->  "http://a.example/towers"
    not_after("2025-07-02", "2025-06-30T08:00:00Z")  ->  "": no page is published after it was fetched

The day is the page's own, in its time zone: of article:published_time, else datePublished in JSON-LD (the page's thing, not its comments or list items), in
microdata, in other meta elements, of the first time element. No day of modification is taken for one of publication.
"""

import json
import re
from datetime import date
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import urldefrag, urljoin, urlsplit

if TYPE_CHECKING:
    from tasks.corpus.main_text import Page

TITLE_CHARS = 300
FIRST_YEAR = 1991
"""Of the web's first page; an earlier date is an article's subject or a default (1970-01-01)."""
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = f"({'|'.join(MONTHS)})[a-z]*"
ISO = re.compile(r"\s*(\d{4})(?:([-/.年])(\d{1,2})[-/.月](\d{1,2})(?!\d)|(\d\d)(\d\d)(?!\d))")
DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}\.?,?\s+(\d{{4}})\b", re.IGNORECASE)
MONTH_FIRST = re.compile(rf"\b{_MONTH}\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.IGNORECASE)
NUMBERS = re.compile(r"\s*(\d{1,2})([-/.])(\d{1,2})\2(\d{4})\b")
TAG = re.compile(r"<[^>]*>")
DATE_IN_JSON = re.compile(r'"date(?:Published|Created)"\s*:\s*"([^"]{4,60})"')
WORK = re.compile("article|posting|report|question|review$", re.IGNORECASE)
"""Types of things that are published, before the page that holds them."""


def about(page: "Page") -> dict[str, str]:
    """Title, day of publication (ISO 8601) and canonical address (as written) of a page; '' for what it does not say."""
    from tasks.corpus.blocks import MARKS_OF

    says: dict[str, list[str]] = {name: [] for name in MARKS_OF}
    for kind, start, end in page.marks.tolist():
        if end > start:
            says[MARKS_OF[kind - 1]].append(page.html[start:end].tobytes().decode("utf-8", "replace"))
    return {
        "title": _first(says, "og_title", "title", "heading")[:TITLE_CHARS],
        "published": _published(says),
        "canonical": _canonical(says),
    }


def _first(says: dict[str, list[str]], *names: str) -> str:
    for name in names:
        for found in says[name]:
            text = " ".join(unescape(TAG.sub("", found)).split())
            if text:
                return text
    return ""


def _canonical(says: dict[str, list[str]]) -> str:
    found = _first(says, "canonical", "og_url")
    base = _first(says, "base")
    try:
        return urljoin(base, found) if found and base else found
    except ValueError:
        return ""


def canonical_url(found: str, url: str) -> str:
    """A page's canonical address in full, without a fragment; '' where it is none of the web."""
    try:
        whole = urldefrag(urljoin(url, found)).url if found else ""
        parts = urlsplit(whole)
        return whole if parts.scheme in ("http", "https") and "." in (parts.hostname or "") else ""
    except ValueError:
        return ""


def _published(says: dict[str, list[str]]) -> str:
    stated = [*says["published"]]
    for text in says["json_ld"]:
        if "datePublished" in text or "dateCreated" in text:
            stated.extend(_of_json(text))
    for found in (*stated, *says["stated"], *says["dated"], *says["time"][:1]):
        day = iso_day(unescape(TAG.sub("", found)))
        if day:
            return day
    return ""


def _of_json(text: str) -> list[str]:
    """Dates that JSON-LD gives the page's own thing, works before pages; of broken JSON the first date in it."""
    try:
        things = list(_things(json.loads(text), 4))
    except (ValueError, RecursionError):
        return DATE_IN_JSON.findall(text)[:1]
    things.sort(key=lambda thing: not WORK.search(str(thing.get("@type", ""))))
    dates = [thing.get(name) for name in ("datePublished", "dateCreated") for thing in things]
    return [found for found in dates if isinstance(found, str)]


def _things(node: Any, depth: int) -> list[dict[str, Any]]:
    """Objects that stand for the page: those at the top, in @graph, or its main entity."""
    if not depth:
        return []
    if isinstance(node, list):
        return [thing for item in node[:50] for thing in _things(item, depth - 1)]
    if not isinstance(node, dict):
        return []
    return [node, *(thing for name in ("@graph", "mainEntity", "mainEntityOfPage") for thing in _things(node.get(name), depth - 1))]


def iso_day(text: str) -> str:
    """The day that a date in ISO 8601, in Chinese or in English words names, as YYYY-MM-DD; '' for none, for one that is no date or two at once (03/04/2025)."""
    text = text[:100]
    if match := ISO.match(text):
        year, month, day = match[1], match[3] or match[5], match[4] or match[6]
    elif match := MONTH_FIRST.search(text):
        year, month, day = match[3], MONTHS.index(match[1].lower()) + 1, match[2]
    elif match := DAY_FIRST.search(text):
        year, month, day = match[3], MONTHS.index(match[2].lower()) + 1, match[1]
    elif match := NUMBERS.match(text):
        year, day, month = match[4], match[1], match[3]
        if match[2] != ".":
            if int(month) > 12:
                day, month = month, day
            elif int(day) <= 12 and day != month:
                return ""
    else:
        return ""
    try:
        return date(int(year), int(month), int(day)).isoformat() if int(year) >= FIRST_YEAR else ""
    except ValueError:
        return ""


def not_after(published: str, record: str) -> str:
    """The day of publication, or '' where it is later than the record's own date."""
    return "" if record[:10] and published > record[:10] else published
