"""The extract stage: raw files -> documents of plain main text. One rank a raw file; every record in it is kept or rejected with a reason.

    manifest = run(store, "small", config, {"commoncrawl": …, "wikipedia": …, "files": …}, engine)

WARC responses go through charset detection and main-text extraction (page.py), WET records are text already, dump pages go through wikitext.py, local files
through files.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from model.config import STRICT
from model.errors import InputError
from tasks.corpus import files, page, selection, wikipedia, wikitext
from tasks.corpus.about import canonical_url, not_after
from tasks.corpus.document import PartWriter, new_document, origin_row
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.guard import DeadError, Guard, SlowError
from tasks.corpus.manifest import File, Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.textnorm import script
from tasks.corpus.warc import Record, records

STAGE = Stage("extract", 3)
ROLES = ("commoncrawl", "wikipedia", "files")
HTML = ("text/html", "application/xhtml+xml", "application/xml+xhtml")


@dataclass(frozen=True)
class ExtractConfig:
    """What a page may be, and how its main text is found."""

    __pydantic_config__ = STRICT

    max_bytes: Annotated[int, Field(ge=1024)]
    """Bytes of one page or dump page, its transfer coding undone; a bigger one is rejected as too_large. A WARC record is read into memory up to this."""
    max_depth: Annotated[int, Field(ge=8, le=250)]
    """Levels of nested elements; a deeper page is rejected as too_deep."""
    max_nodes: Annotated[int, Field(ge=100)]
    """Elements of one page; a page with more is rejected as too_many_nodes."""
    min_chars: Annotated[int, Field(ge=1)]
    """Characters of main text; a page with fewer is rejected as no_main_text."""
    page_seconds: Annotated[float, Field(gt=0)]
    """Seconds after which a page's process is ended and the page rejected as slow. A net below the limits above: the manifest then says reproducible: false."""


def run(
    store: Store,
    recipe: str,
    config: ExtractConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Extract all raw files of the ingest manifests in `inputs` (roles commoncrawl, wikipedia, files; those present). `info`: records by WARC type."""

    def body(work: Work) -> Result:
        items = [_item(store, inputs[role], file) for role in ROLES if role in inputs for file in raw_files(inputs[role])]
        summaries = run_ranks(work, "tasks.corpus.extract:extract_rank", config, items, engine)
        kinds: Counter[str] = Counter()
        for summary in summaries:
            kinds.update(summary["info"].get("records", {}))
        return books(summaries, records=dict(sorted(kinds.items())))

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def raw_files(manifest: Manifest) -> list[File]:
    """The files of an ingest that hold records; the origins of a pack lie beside it."""
    return [file for file in manifest.files if not file.path.endswith(selection.ORIGINS)]


def _item(store: Store, manifest: Manifest, file: File) -> dict[str, Any]:
    for beside in manifest.files:
        if beside.path == file.path + selection.ORIGINS:
            store.path(manifest, beside)
    source = manifest.info["source"]
    snapshot = "-".join(Path(file.path).parts[:2]) if source == "wikipedia" else manifest.info["snapshot"]
    return {
        "path": str(store.path(manifest, file)), "source": source, "snapshot": snapshot, "license": manifest.info["license"], "origin_file": file.path,
    }  # fmt: skip


def prepare(config: ExtractConfig) -> None:
    """Load the compiled code that every rank needs: before the guarded process is forked, which would load it again after each page that is too slow."""
    import tasks.corpus.main_text  # noqa: F401


def extract_rank(config: ExtractConfig, item: dict[str, Any], out: PartWriter) -> dict[str, Any]:
    """One raw file: keeps and rejects its records through `out`."""
    prepare(config)
    with Guard(_convert, config.page_seconds) as guard:
        sink = Sink(config, item, out, guard)
        read: Callable[[Sink], None] = {"commoncrawl": _warc, "wikipedia": _dump, "files": _local}[item["source"]]
        read(sink)
    return {"records": dict(sink.kinds), "reproducible": sink.reproducible}


def _convert(kind: str, data: bytes | str, detail: str, limits: page.Limits) -> dict[str, Any]:
    """What runs under the clock: an HTML page (detail: declared charset) or wikitext to {"text", "title", …} or {"reason", "value"}."""
    if kind == "html":
        return page.extract(data, detail, limits)
    assert isinstance(data, str)
    text = page.clean(wikitext.plain(data, script(data) or "Hans"))
    return {"text": text, "title": detail} if len(text) >= limits.chars else {"reason": "no_main_text", "value": len(text)}


class Sink:
    """Where the records of one file go: converted under the clock, then kept or rejected."""

    def __init__(self, config: ExtractConfig, item: dict[str, Any], out: PartWriter, guard: Guard):
        self.config, self.item, self.out, self.guard = config, item, out, guard
        self.limits = page.Limits(config.max_depth, config.max_nodes, config.min_chars)
        self.kinds: Counter[str] = Counter()
        self.reproducible = True

    def convert(self, kind: str, data: bytes | str, detail: str) -> dict[str, Any]:
        """`_convert` in the guarded process; a page that ends it is a reason too."""
        if len(data) > self.config.max_bytes:
            return {"reason": "too_large", "value": len(data)}
        try:
            return self.guard.call(kind, data, detail, self.limits)  # type: ignore[no-any-return]
        except SlowError as error:
            self.reproducible = False
            return {"reason": "slow", "value": str(error)}
        except DeadError as error:
            self.reproducible = False
            return {"reason": "extractor_died", "value": str(error)}
        except RuntimeError as error:
            return {"reason": "extractor_failed", "value": str(error)[:300]}

    def text(self, text: str, title: str) -> dict[str, Any]:
        """As `convert`, for what is text already."""
        text = page.clean(text)
        return {"text": text, "title": title} if len(text) >= self.config.min_chars else {"reason": "no_main_text", "value": len(text)}

    def put(
        self, answer: dict[str, Any], place: int, *, length: int = -1, url: str = "", file: str = "", date: str = "", **more: Any
    ) -> None:
        """Keep or reject one record by its answer. `place`: byte offset, page, row; `file`: where it came from, if not from the item's own file;
        `date`: of the record."""
        url = sound_url(url)
        source, snapshot, origin_file = self.item["source"], self.item["snapshot"], file or self.item["origin_file"]
        if "reason" in answer:
            self.out.reject(origin_row(source, snapshot, origin_file, place, length, url), answer["reason"], answer["value"])
            return
        facts = {
            "url": url, "title": page.clean(answer["title"]), "license": self.item["license"], "origin_length": length, "date": date,
            "published": not_after(answer.get("published", ""), date), "canonical_url": sound_url(canonical_url(answer.get("canonical", ""), url)),
        } | more  # fmt: skip
        self.out.keep(new_document(answer["text"], source=source, snapshot=snapshot, origin_file=origin_file, place=place, **facts))


def sound_url(url: str) -> str:
    """A URL that parses and can be stored: no control characters, no bracket where it would not be an IPv6 address. '' for what stays unsound."""
    url = "".join(page.clean(url).split())[:4096]
    for tried in (url, url.replace("[", "%5B").replace("]", "%5D")):
        try:
            if urlsplit(tried).hostname is not None or tried == url:
                return tried
        except ValueError:
            continue
    return ""


def _warc(sink: Sink) -> None:
    path, cap = Path(sink.item["path"]), sink.config.max_bytes
    found = selection.packed(path, cap) if selection.is_pack(path.name) else (("", record) for record in records(path, cap))
    for file, record in found:
        sink.kinds[record.kind] += 1
        if record.problem or record.kind in ("response", "resource", "conversion"):
            sink.put(
                _answer(sink, record),
                record.offset,
                length=record.length,
                url=record.url,
                file=file,
                date=page.clean(record.headers.get("warc-date", "")),
            )


def _answer(sink: Sink, record: Record) -> dict[str, Any]:
    """Text of one WARC record, or why there is none."""
    kind = record.content_type.partition(";")[0].strip()
    if record.problem:
        return {"reason": record.problem, "value": record.value}
    if record.status not in (None, 200):
        return {"reason": "http_status", "value": record.status}
    if "warc-truncated" in record.headers:
        return {"reason": "truncated", "value": record.headers["warc-truncated"]}
    if not record.body.strip():
        return {"reason": "empty", "value": len(record.body)}
    if record.kind == "conversion":
        return sink.text(record.body.decode("utf-8", "replace"), "")
    if kind not in HTML and not (kind in ("", "application/octet-stream", "unknown/unknown") and _looks_like_html(record.body)):
        return {"reason": "not_html", "value": kind or "no content type"}
    return sink.convert("html", record.body, record.charset)


def _looks_like_html(body: bytes) -> bool:
    head = body[:1024].replace(b"\0", b"").lower()
    return any(mark in head for mark in (b"<!doctype html", b"<html", b"<head", b"<body"))


def _dump(sink: Sink) -> None:
    path = Path(sink.item["path"])
    wiki = sink.item["snapshot"].partition("-")[0]
    number = 0
    try:
        for found in wikipedia.articles(path):
            number = found.number
            url = article_url(wiki, found.title)
            sink.put(
                _article(sink, found, url),
                number,
                url=url,
                date=page.clean(found.timestamp),
                page_id=found.page_id,
                revision_id=found.revision_id,
            )
    except InputError as error:
        sink.put({"reason": "truncated_dump", "value": error}, number + 1)


def _article(sink: Sink, found: wikipedia.Page, url: str) -> dict[str, Any]:
    if found.ns != 0:
        return {"reason": "namespace", "value": found.ns}
    if found.redirect or wikitext.is_redirect(found.text):
        return {"reason": "redirect", "value": found.redirect}
    if wikitext.is_disambiguation(found.text):
        return {"reason": "disambiguation", "value": found.title}
    if not found.text.strip():
        return {"reason": "empty", "value": 0}
    return sink.convert("wiki", found.text, found.title) | {"canonical": url}


def article_url(wiki: str, title: str) -> str:
    """https://zh.wikipedia.org/wiki/茶 for ("zhwiki", "茶")."""
    language = wiki.removesuffix("wiki").replace("_", "-")
    for sign, quoted in (("%", "%25"), ("?", "%3F"), ("#", "%23"), (" ", "_")):
        title = title.replace(sign, quoted)
    return f"https://{language}.wikipedia.org/wiki/{title}"


def _local(sink: Sink) -> None:
    path = Path(sink.item["path"])
    for found in _local_records(path):
        if found.problem:
            answer: dict[str, Any] = {"reason": found.problem, "value": found.value}
        elif found.html is not None:
            answer = sink.convert("html", found.html, "")
        else:
            answer = sink.text(found.text, found.title)
        if found.title and "reason" not in answer:
            answer["title"] = found.title
        sink.put(answer, found.place, url=found.url, date=page.clean(found.date))


def _local_records(path: Path) -> Iterator[files.Record]:
    kind = files.kind_of(path)
    return iter((files.Record(1, problem="unknown_kind", value=path.suffix),)) if kind is None else files.records(path, kind)
