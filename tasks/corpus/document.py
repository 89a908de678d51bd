"""The document contract: schemas, identity, and the one way parquet parts are read and written.

A part is cut by input file and a fixed row count, never by worker; writer options stand here alone, so the same rows give the same bytes.

    with PartWriter(directory, rank, "filter") as out:
        out.keep(row)                                 # a dict with the schema's fields
        out.reject(row, "gopher_short", value=12)     # counted, its origin kept, its text for a bounded sample
    out.summary                                       # files, seen, kept, rejected
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tasks.corpus.textnorm import normalise

SCHEMA_VERSION = 3
PART_ROWS = 20_000
"""Rows seen (kept or rejected) after which a part is closed and the next begun."""
GROUP_ROWS = 1_000
SAMPLED_TEXTS = 20
"""Rejected texts kept of one reason in one part: those with the smallest hash of their id."""
SAMPLED_CHARS = 2_000

SIGNALS = (
    "characters", "words",  # of the text as the rules see it
    "lines_removed", "left_words",  # lines that the clean-up took out before; words of what C4 leaves, which is the document if it is kept
    # Gopher's repetition: repeated paragraphs and lines as a share of all, their characters of all; the most frequent 2-, 3-, 4-gram, repeated 5- … 10-grams
    "gopher_rep_dup_para_frac", "gopher_rep_dup_para_char_frac", "gopher_rep_dup_line_frac", "gopher_rep_dup_line_char_frac",
    "gopher_rep_top_2_gram", "gopher_rep_top_3_gram", "gopher_rep_top_4_gram",
    "gopher_rep_duplicated_5_n_grams", "gopher_rep_duplicated_6_n_grams", "gopher_rep_duplicated_7_n_grams",
    "gopher_rep_duplicated_8_n_grams", "gopher_rep_duplicated_9_n_grams", "gopher_rep_duplicated_10_n_grams",
    # Gopher's quality: words with more than punctuation, their mean length; # and ellipses a word; shares of lines and words; different stop words
    "gopher_words", "gopher_word_length", "gopher_hashes", "gopher_ellipses",
    "gopher_bullet_lines", "gopher_ellipsis_lines", "gopher_letter_words", "gopher_stop_words",
    # C4: which kept line, from 1, is the first with such a thing (0 for none, or after the other thing); sentences and dropped lines
    "c4_lorem_ipsum", "c4_curly_bracket", "c4_sentences", "c4_lines_dropped",
    # FineWeb, of what C4 leaves: lines; shares of lines that end a sentence, that are short; characters of repeated lines; line feeds a word
    "fineweb_lines", "fineweb_line_punct_ratio", "fineweb_short_line_ratio", "fineweb_char_dup_ratio", "fineweb_list_ratio",
    # the quality model's score in [0, 1]: how much a text is like the good ones that it was trained on
    "quality",
)  # fmt: skip
"""What the quality rules measure, each null where its family of rules does not apply to the document. A decision is a threshold over them."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # 32 hex digits, the identity of the record: see record_id
        ("text_hash", pa.string()),  # xxh3-128 of the normalised text, 32 hex digits
        ("text", pa.string()),
        ("url", pa.string()),
        ("domain", pa.string()),
        ("title", pa.string()),
        ("published", pa.string()),  # YYYY-MM-DD as the page itself says, never after `date`; '' if it says nothing
        ("canonical_url", pa.string()),  # the page's own address for its text, in full; '' if it says none
        ("language", pa.string()),  # ISO 639 code by fastText, '' before the filter stage
        ("language_score", pa.float32()),
        ("script", pa.string()),  # Hans or Hant for Chinese, else ''
        ("source", pa.string()),  # commoncrawl, wikipedia, files
        ("snapshot", pa.string()),  # CC-MAIN-2026-40, enwiki-20261001, or the recipe's name of the files
        ("date", pa.string()),  # ISO 8601, of the record; '' if unknown
        ("license", pa.string()),
        ("origin_file", pa.string()),  # relative to the source's root
        ("origin_offset", pa.int64()),  # bytes into origin_file (WARC member), or page or row number
        ("origin_length", pa.int64()),  # bytes of the record as stored, -1 where it has none
        ("page_id", pa.int64()),  # Wikipedia, else null
        ("revision_id", pa.int64()),
        ("words", pa.int32()),  # signals from here on: null until the stage that measures them
        ("masked", pa.int32()),  # pieces of personal data replaced
        ("signals", pa.struct([(name, pa.float64()) for name in SIGNALS])),
    ],
    metadata={b"ingot.document": str(SCHEMA_VERSION).encode()},
)
EMPTY: dict[str, Any] = {f.name: "" if f.type == pa.string() else None for f in SCHEMA} | {"origin_length": -1}
"""A document of which nothing is known."""
REJECTS = pa.schema(
    [
        ("id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),  # the measured value that led to it, as text
        ("url", pa.string()),
        ("source", pa.string()),
        ("snapshot", pa.string()),
        ("origin_file", pa.string()),
        ("origin_offset", pa.int64()),
        ("origin_length", pa.int64()),
        ("text", pa.string()),  # the first characters, of a bounded random sample; else null
        ("language", pa.string()),  # '' where the stage came before the filter
        ("signals", SCHEMA.field("signals").type),  # of what the filter's rules rejected, so that other thresholds can be tried on it
    ],
    metadata={b"ingot.reject": str(SCHEMA_VERSION).encode()},
)
REJECTED, ORIGIN = REJECTS.names, [name for name in REJECTS.names if name in SCHEMA.names]
"""Columns of a reject, and those that are a document's."""
DUPLICATES = pa.schema(
    [("id", pa.string()), ("kept_id", pa.string()), ("similarity", pa.float64()), ("rule", pa.string())],
    metadata={b"ingot.duplicate": str(SCHEMA_VERSION).encode()},
)


def record_id(source: str, snapshot: str, origin_file: str, place: int) -> str:
    """Identity of a record, 32 hex digits; `place` is the byte offset, page number or row number in origin_file."""
    return xxhash.xxh3_128_hexdigest("\x1f".join((source, snapshot, origin_file, str(place))).encode())


def text_hash(text: str) -> str:
    """xxh3-128 of the normalised text, 32 hex digits: equal for texts that differ in case, width or spacing only."""
    return xxhash.xxh3_128_hexdigest(normalise(text).encode("utf-8", "surrogatepass"))


def new_document(text: str, *, source: str, snapshot: str, origin_file: str, place: int, **more: Any) -> dict[str, Any]:
    """A row of SCHEMA: identity, hash and domain filled in, unknown fields empty or null. Unknown names raise KeyError."""
    row = dict(EMPTY)
    for name in more:
        row[name]
    row |= more
    row |= {
        "id": record_id(source, snapshot, origin_file, place), "text": text, "text_hash": text_hash(text), "source": source, "snapshot": snapshot,
        "origin_file": origin_file, "origin_offset": place, "domain": urlsplit(row["url"]).hostname or "",
    }  # fmt: skip
    return row


def write_table(path: Path, table: pa.Table) -> int:
    """Write one table durably under `path` (temporary name, fsync, rename) with the fixed options. Returns its rows."""
    temporary = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(temporary, table.schema, **WRITER) as writer:
        writer.write_table(table, row_group_size=GROUP_ROWS)
    settle(temporary, path)
    return table.num_rows


WRITER: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "version": "2.6",
    "use_dictionary": False,
    "write_statistics": True,
    "store_schema": True,
}


def settle(temporary: Path, final: Path) -> None:
    """fsync a finished file and give it its final name."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, final)


def read_rows(paths: Sequence[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of parts in order, with at most one row group in memory."""
    for batch in read_batches(paths, columns):
        yield from batch.to_pylist()


def read_batches(paths: Sequence[Path], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same as Arrow batches of up to GROUP_ROWS rows, none across two parts."""
    for path in paths:
        with pq.ParquetFile(path) as part:
            yield from part.iter_batches(GROUP_ROWS, columns=columns)


class PartWriter:
    """Kept and rejected documents of one rank, as documents-RRRRR-SSS.parquet and rejects-RRRRR-SSS.parquet. Files appear whole or not at all."""

    def __init__(self, directory: Path, rank: int, stage: str, part_rows: int = PART_ROWS, beat: Callable[[int], None] = lambda seen: None):
        self.directory, self.rank, self.stage, self.part_rows, self.beat = directory, rank, stage, part_rows, beat
        self.files: list[dict[str, Any]] = []
        self.seen = self.kept = 0
        self.rejected: Counter[str] = Counter()
        self._split = 0
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._close()
        else:
            self._writer.close()

    @property
    def summary(self) -> dict[str, Any]:
        """Files with rows, and the books of this rank."""
        return {"files": self.files, "seen": self.seen, "kept": self.kept, "rejected": dict(self.rejected)}

    def keep(self, row: dict[str, Any]) -> None:
        """Count and write a document."""
        self._count()
        self.kept += 1
        self._rows.append(row)
        if self._waiting.num_rows + len(self._rows) == GROUP_ROWS:
            self._flush()

    def reject(self, row: dict[str, Any], reason: str, value: object = "") -> None:
        """Count a document or record under a reason; `row` needs at least its origin (see origin_row)."""
        self._count()
        self._reject(row, reason, value)

    def sort_out(self, batch: pa.RecordBatch, rejected: Mapping[int, tuple[str, object]]) -> None:
        """The same for a batch of SCHEMA without a Python object a document: row n is rejected for rejected[n] (reason, value), else kept."""
        start = 0
        while start < len(batch):
            self._next()
            end = min(len(batch), start + self.part_rows - self.seen % self.part_rows)
            gone = sorted(n for n in rejected if start <= n < end)
            stays = np.ones(end - start, bool)
            stays[[n - start for n in gone]] = False
            self._waiting = pa.concat_tables(
                [self._table(), pa.Table.from_batches([batch.slice(start, end - start).filter(stays)]).cast(SCHEMA)]
            )
            self._rows.clear()
            while self._waiting.num_rows >= GROUP_ROWS:
                rest = self._waiting.slice(GROUP_ROWS)
                self._waiting = self._waiting.slice(0, GROUP_ROWS)
                self._flush()
                self._waiting = rest
            for n, row in zip(gone, batch.select(ORIGIN).take(pa.array(gone, pa.int64())).to_pylist(), strict=True):
                self._reject(row, *rejected[n])
            self.kept += end - start - len(gone)
            self.seen += end - start
            self.beat(self.seen)
            start = end

    def _reject(self, row: dict[str, Any], reason: str, value: object) -> None:
        self.rejected[reason] += 1
        self._rejects.append(
            {name: row.get(name) for name in REJECTED} | {"stage": self.stage, "reason": reason, "value": str(value), "text": None}
        )
        if row.get("text"):
            sample = self._samples.setdefault(reason, [])
            sample.append((xxhash.xxh3_64_intdigest(row["id"].encode()), len(self._rejects) - 1, row["text"][:SAMPLED_CHARS]))
            if len(sample) > 2 * SAMPLED_TEXTS:
                sample.sort()
                del sample[SAMPLED_TEXTS:]

    def _count(self) -> None:
        self._next()
        self.seen += 1
        self.beat(self.seen)

    def _next(self) -> None:
        """Begin the next part where this one is full."""
        if self.seen and self.seen % self.part_rows == 0:
            self._close()
            self._split += 1
            self._open()

    def _open(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._waiting = SCHEMA.empty_table()
        self._rejects: list[dict[str, Any]] = []
        self._samples: dict[str, list[tuple[int, int, str]]] = {}
        self._written = 0
        self._path = self.directory / f"documents-{self.rank:05d}-{self._split:03d}.parquet"
        self._writer = pq.ParquetWriter(self._path.with_name(self._path.name + ".tmp"), SCHEMA, **WRITER)

    def _flush(self) -> None:
        group = self._table().combine_chunks()  # borders of chunks would show in the file
        if group.num_rows:
            self._writer.write_table(group, row_group_size=GROUP_ROWS)
            self._written += group.num_rows
        self._rows, self._waiting = [], SCHEMA.empty_table()

    def _table(self) -> pa.Table:
        """What is kept and not yet written."""
        return pa.concat_tables([self._waiting, pa.Table.from_pylist(self._rows, SCHEMA)]) if self._rows else self._waiting

    def _close(self) -> None:
        self._flush()
        self._writer.close()
        settle(self._path.with_name(self._path.name + ".tmp"), self._path)
        self.files.append({"path": self._path.name, "rows": self._written})
        if self._rejects:
            for sample in self._samples.values():
                for _, place, text in sorted(sample)[:SAMPLED_TEXTS]:
                    self._rejects[place]["text"] = text
            path = self.directory / f"rejects-{self.rank:05d}-{self._split:03d}.parquet"
            self.files.append({"path": path.name, "rows": write_table(path, pa.Table.from_pylist(self._rejects, REJECTS))})


def origin_row(source: str, snapshot: str, origin_file: str, place: int, length: int = -1, url: str = "") -> dict[str, Any]:
    """The least a rejected record has: identity and origin."""
    return {
        "id": record_id(source, snapshot, origin_file, place), "source": source, "snapshot": snapshot, "origin_file": origin_file,
        "origin_offset": place, "origin_length": length, "url": url,
    }  # fmt: skip


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
