"""Local files: txt, md, jsonl, parquet, html (each also .gz, but parquet) and epub; books, one's own texts, evaluation sets, examples.

    manifest = run(store, "demo", config, download)           # copied into the store under their names relative to base
    for record in records(path, kind_of(path)): ...           # what the extract stage reads

The stage is complete when names and sha256 are the same, wherever the files lie.
"""

import codecs
import gzip
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

from pydantic import Field

from model.config import STRICT, resource
from model.errors import ConfigError, InputError, NotFoundError
from tasks.corpus.document import file_sha256
from tasks.corpus.download import DownloadConfig, Request, Wanted, ingest
from tasks.corpus.epub import Chapter, chapters
from tasks.corpus.examples import ENDINGS, holds_examples
from tasks.corpus.manifest import Manifest, Progress, Store
from tasks.corpus.markdown import Markdown

log = logging.getLogger("ingot.files")
KINDS = {
    ".txt": "txt", ".md": "md", ".markdown": "md", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".epub": "epub",
    ".html": "html", ".htm": "html", ".xhtml": "html",
}  # fmt: skip
DOCUMENT_CHARS = 50_000
"""Longest document made of a txt or md file; a longer file is cut at paragraph borders."""
MAX_RECORD = 64 << 20
"""Bytes of one jsonl line or html file; a longer one is one `too_large` problem."""


@dataclass(frozen=True)
class FilesConfig:
    """Which local files, and what they are."""

    __pydantic_config__ = STRICT

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders (all readable files below; hidden ones are not looked at) or globs, relative to `base` or absolute."""
    license: Annotated[str, Field(min_length=1)]
    """Licence of all of them, as it shall stand in the documents."""
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")]
    """Snapshot name: part of every document's identity."""
    role: Literal["source", "evaluation", "examples", "blocklist", "labels"]
    """What they are for: corpus text, evaluation sets, fine-tuning examples, lists of unwanted addresses (of any file name), or texts labelled good and bad."""
    base: str = resource()
    """Folder that relative paths start from; '' is the working directory."""


@dataclass(frozen=True)
class Record:
    """One record of a file: text or html, or the problem for which it is set aside."""

    place: int
    """Line (jsonl), row (parquet), chapter (epub) or piece (txt, md), from 1."""
    title: str = ""
    text: str = ""
    html: bytes | None = None
    url: str = ""
    date: str = ""
    problem: str = ""
    """Reason of rejection, snake_case; '' for a good record."""
    value: str = ""
    """What led to the problem."""


def run(
    store: Store,
    recipe: str,
    config: FilesConfig,
    download: DownloadConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
    whole: bool = False,
) -> Manifest:
    """Resolve and copy. `info`: source, role, snapshot (the config's name), license, left_out."""
    return ingest(store, recipe, resolve(config), download, progress, rebuild, whole)


def resolve(config: FilesConfig) -> Request:
    """The exact files with their sha256, by name. NotFoundError names a path that does not exist, ConfigError two files of one name."""
    base = Path(os.path.abspath(config.base))
    found: dict[str, Path] = {}
    left_out = []
    for given in config.paths:
        for name, path in _expand(base, given):
            known = holds_examples(path.name) if config.role == "examples" else kind_of(path) or config.role == "blocklist"
            if not known:
                if path == Path(os.path.abspath(base / given)):
                    raise InputError(
                        f"{path}: Ingot reads {', '.join(ENDINGS if config.role == 'examples' else KINDS)} (and .gz of the texts), not this. Convert it or leave it out."
                    )
                left_out.append({"path": name, "reason": "unknown_kind"})
            elif found.setdefault(name, path) != path:
                raise ConfigError(f"{path} and {found[name]} would both be {name} in the store. Rename one, or give a common base.")
    if left_out:
        log.warning("%d files of %s are of no known kind and left out, %s first", len(left_out), config.name, left_out[0]["path"])
    wanted = [Wanted(name, f"sha256:{file_sha256(path)}", str(path), path.stat().st_size) for name, path in sorted(found.items())]
    return Request("files", config.role, config.name, config.license, tuple(wanted), {"left_out": left_out})


def _expand(base: Path, given: str) -> Iterator[tuple[str, Path]]:
    """(name in the store, path) of the files that one entry of `paths` means."""
    start = Path(os.path.abspath(base / given))
    if start.exists():
        matches = [start]
    else:
        anchor = Path(given).anchor
        matches = sorted((Path(anchor) if anchor else base).glob(given[len(anchor) :])) if re.search(r"[*?\[]", given) else []
    if not matches:
        raise NotFoundError(f"{start} does not exist (paths: {given!r}, base: {base}). Check the recipe's files section.")
    for match in matches:
        root = base if match.is_relative_to(base) else match.parent
        for path in sorted(p for p in match.rglob("*") if p.is_file()) if match.is_dir() else [match]:
            name = path.relative_to(root).as_posix()
            if not any(part.startswith(".") for part in path.relative_to(start if start.exists() else root).parts):
                if name.split("/")[0] == "_work":
                    raise ConfigError(f"{path}: a folder named _work cannot be taken in; the store uses that name. Rename it.")
                yield name, path


def kind_of(path: str | Path) -> str | None:
    """txt, md, jsonl, parquet, epub or html by the name's ending (.gz looked through), None for anything else."""
    name = Path(path)
    kind = KINDS.get((Path(name.stem) if name.suffix.lower() == ".gz" else name).suffix.lower())
    return None if name.suffix.lower() == ".gz" and kind in ("parquet", "epub") else kind


def records(path: Path, kind: str) -> Iterator[Record]:
    """Records of one file in order, in bounded memory. Damage is a record with a `problem`, never an exception; a file without records is one, `empty`."""
    read = {"txt": _txt, "md": _md, "jsonl": _jsonl, "parquet": _parquet, "epub": _epub, "html": _html}[kind]
    place = 0
    try:
        for record in read(path):
            place = record.place
            yield record
        if place == 0:
            yield Record(1, problem="empty")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Record(place + 1, problem="broken_gzip", value=str(error))


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb"))


def _title(path: Path) -> str:
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _txt(path: Path) -> Iterator[Record]:
    with _open(path) as raw, io.TextIOWrapper(raw, _encoding(path), errors="replace") as text:
        for place, piece in enumerate(_pieces(iter(lambda: text.read(1 << 16), "")), 1):
            yield Record(place, title=_title(path), text=piece)


def _pieces(chunks: Iterator[str]) -> Iterator[str]:
    """Text in pieces of at most DOCUMENT_CHARS, cut after a blank line if one lies in the second half, else after a line, else after a space."""
    held = ""
    for chunk in chunks:
        held += chunk
        while len(held) > DOCUMENT_CHARS:
            ends = (held.rfind(mark, DOCUMENT_CHARS // 2, DOCUMENT_CHARS) + len(mark) for mark in ("\n\n", "\n", " "))
            cut = next((end for end in ends if end > DOCUMENT_CHARS // 2), DOCUMENT_CHARS)
            if held[:cut].strip():
                yield held[:cut].strip()
            held = held[cut:]
    if held.strip():
        yield held.strip()


def _encoding(path: Path) -> str:
    """Encoding of a text file: a byte order mark, else UTF-8 if (nearly) all of it is, else detected from its first MiB."""
    with _open(path) as raw:
        sample = raw.read(1 << 20)
        for mark, name in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
            if sample.startswith(mark):
                return name
        if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        unmarked = _utf16(sample)
        if unmarked is not None:
            return unmarked
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            chunk = sample
            while chunk:
                decoder.decode(chunk)
                chunk = raw.read(1 << 20)
            decoder.decode(b"", True)
            return "utf-8"
        except UnicodeDecodeError:
            pass
    text = sample.decode("utf-8", "replace")
    if text.count("\ufffd") * 1000 < len(text):
        return "utf-8"
    from resiliparse.parse.encoding import detect_encoding

    found = detect_encoding(sample) or "utf-8"
    try:
        return codecs.lookup(found).name
    except LookupError:  # a WHATWG name that Python has no codec of
        return "utf-8"


def _utf16(sample: bytes) -> str | None:
    """UTF-16 without a mark, by the most frequent characters of text. A count of zero bytes would miss Chinese, where U+4E00 has its zero in the other half."""
    if b"\0" not in sample:
        return None
    texts = {name: sample.decode(name, "replace") for name in ("utf-16-le", "utf-16-be")}
    counts = {name: sum(text.count(c) for c in "\n e。，的") for name, text in texts.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] * 100 > len(sample) else None


def _md(path: Path) -> Iterator[Record]:
    with _open(path) as raw, io.TextIOWrapper(raw, _encoding(path), errors="replace") as text:
        plain = Markdown()
        lines = (plain.line(line) for line in iter(lambda: text.readline(1 << 20), ""))
        for place, piece in enumerate(_pieces(lines), 1):
            yield Record(place, title=plain.title or _title(path), text=piece)


def _jsonl(path: Path) -> Iterator[Record]:
    """A record a line that is not blank: an object with `text` or `content`, and maybe title, url, date."""
    for place, row in objects(path):
        yield row if isinstance(row, Record) else _record(place, row)


def objects(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, what JSON it holds) of the lines that are not blank; a Record with a `problem` for one that is too long or no JSON."""
    with _open(path) as raw:
        place = 0
        while line := raw.readline(MAX_RECORD):
            place += 1
            if len(line) == MAX_RECORD and not line.endswith(b"\n"):
                while (rest := raw.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
                yield place, Record(place, problem="too_large", value=f"line {place} has more than {MAX_RECORD} bytes")
            elif line.strip():
                try:
                    yield place, json.loads(line.removeprefix(codecs.BOM_UTF8))
                except (ValueError, RecursionError) as error:
                    yield place, Record(place, problem="broken_json", value=f"line {place}: {error}")


def _record(place: int, row: Any) -> Record:
    """A row of jsonl or parquet."""
    if not isinstance(row, dict):
        return Record(place, problem="not_an_object", value=type(row).__name__)
    text = next((row[name] for name in ("text", "content") if isinstance(row.get(name), str) and row[name].strip()), None)
    title, url, date = (_plain(row.get(name)) for name in ("title", "url", "date"))
    if text is None:
        return Record(place, title=title, url=url, date=date, problem="no_text", value=", ".join(map(str, list(row)[:10])))
    return Record(place, title=title, text=_plain(text), url=url, date=date)


def _plain(value: Any) -> str:
    """A value as text that parquet can hold: '' for None, half surrogate pairs (JSON allows them) replaced."""
    text = "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _parquet(path: Path) -> Iterator[Record]:
    """A record a row; columns as in jsonl."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = 0
    try:
        with pq.ParquetFile(path) as table:
            columns = [name for name in ("text", "content", "title", "url", "date") if name in table.schema_arrow.names]
            if not {"text", "content"} & set(columns):
                yield Record(1, problem="no_text", value=", ".join(table.schema_arrow.names[:10]))
                return
            for batch in table.iter_batches(256, columns=columns):
                for row in batch.to_pylist():
                    place += 1
                    yield _record(place, row)
    except (pa.ArrowException, OSError) as error:
        yield Record(place + 1, problem="broken_parquet", value=str(error)[:200])


def _epub(path: Path) -> Iterator[Record]:
    try:
        for chapter in chapters(path):
            yield _chapter(chapter)
    except (zipfile.BadZipFile, InputError) as error:
        yield Record(1, problem="broken_epub", value=str(error))


def _chapter(chapter: Chapter) -> Record:
    return Record(chapter.number, title=chapter.book, html=chapter.html, date=chapter.date, problem=chapter.problem, value=chapter.name)


def _html(path: Path) -> Iterator[Record]:
    with _open(path) as raw:
        page = raw.read(MAX_RECORD + 1)
    if len(page) > MAX_RECORD:
        yield Record(1, problem="too_large", value=f"more than {MAX_RECORD} bytes")
    elif page.strip():
        yield Record(1, html=page)
