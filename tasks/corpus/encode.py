"""The tokenizer and encode stages: documents in; a tokenizer, then token shards in a deterministic random order out.

    train_tokenizer(store, recipe, config, {"corpus-000": …}) -> manifest: tokenizer/ (what model.tokenizer.load reads)
    run(store, recipe, config, {"corpus-000": …, "tokenizer": …}) -> manifest: shards train-NNNNN and valid-NNNNN (.bin, .idx: model/shards.py)
                                                                     and .documents.parquet beside each, its documents in order

The order is that of hash(seed, id), and whether a document is for validation is a hash of its id alone: both are independent of parts, of threads
and of what else is in the corpus. The shuffle is external (Spool): memory does not grow with the corpus.

A mixture says how often the documents of a source or language are read in one pass over the shards: a training document is stored as many times,
each time at a place of its own, hash(seed, id, time). So batches stay a function of shards, seed and step. A validation document is stored once.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from model.config import STRICT
from model.errors import ConfigError, EmptyError, TokenizerError
from model.shards import ShardWriter, dtype_for
from model.tokenizer import Encoder, TokenizerConfig, fingerprint, load, save, take, train, vocab_size
from tasks.corpus.document import GROUP_ROWS, REJECTED, REJECTS, read_batches, read_rows, settle, write_table
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = Stage("tokenizer", 3)
STAGE = Stage("encode", 2)
LISTED = pa.schema([("id", pa.string()), ("tokens", pa.int64())])
"""Columns of .documents.parquet: a document and the length of its sequence, end token included."""
COLUMNS = [
    "id", "text", "language", "date", "url", "source", "snapshot", "origin_file", "origin_offset", "origin_length"
]  # fmt: skip
RANGE_BYTES = 16 * 2**20
"""Text whose tokens are sorted in memory at once; a token takes 2 or 4 bytes there, and is two to five bytes of text."""
RANGES = 1024
"""Most ranges, each of two files: a corpus beyond RANGES × RANGE_BYTES has longer ones."""
BUFFER_TOKENS = 4 * 2**20


@dataclass(frozen=True)
class Weight:
    """How often the training documents of a source or language are read."""

    __pydantic_config__ = STRICT

    documents: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]
    """source/language, where * stands for any run of letters: wikipedia/zh, commoncrawl/*, */en."""
    epochs: Annotated[float, Field(ge=0, le=1000)]
    """Times a document is in the shards: 2 twice, 0.5 a half of the documents once, 1.5 all of them and a half of them again, 0 none."""


@dataclass(frozen=True)
class EncodeConfig:
    """How documents become shards."""

    __pydantic_config__ = STRICT

    shard_tokens: Annotated[int, Field(ge=1)]
    """Tokens after which a shard is closed, at the end of a document."""
    valid_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of documents held out as validation shards, by a hash of their id."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Seed of the documents' order."""
    mixture: tuple[Weight, ...]
    """Epochs by source and language, the first line that fits a document; one epoch where none does."""

    def epochs(self, kind: str) -> float:
        """Epochs asked for the documents of a "source/language"."""
        return next((weight.epochs for weight in self.mixture if fnmatchcase(kind, weight.documents)), 1.0)


def train_tokenizer(
    store: Store,
    recipe: str,
    config: TokenizerConfig,
    inputs: Mapping[str, Manifest],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Train a byte-level BPE tokenizer on a sample of the inputs "corpus-NNN". EmptyError says what emptied the corpus."""
    return run_stage(store, TOKENIZER, recipe, config, inputs, lambda work: _train(work, config), progress, rebuild)


def _train(work: Work, config: TokenizerConfig) -> Result:
    paths, total = _corpus(work)
    share = min(1.0, config.sample_bytes / max(1, _text_bytes(paths)))
    used = 0

    def sample() -> Iterator[str]:
        """Documents chosen by a hash of their id, from all parts: the first parts alone would be one source."""
        nonlocal used
        chosen = (row["text"] for row in read_rows(paths, ["id", "text"]) if _unit(row["id"], "tokenizer") < share and row["text"])
        for text in take(chosen, config.sample_bytes):
            used += 1
            if used % GROUP_ROWS == 0:
                work.progress(used, total * share, "documents")
            yield text

    tokenizer = train(sample(), config.vocab)
    save(tokenizer, work.scratch / "tokenizer")
    (work.dir / "tokenizer").mkdir(exist_ok=True)
    files = []
    for path in sorted((work.scratch / "tokenizer").iterdir()):
        settle(path, work.dir / "tokenizer" / path.name)
        files.append((f"tokenizer/{path.name}", None))
    info = {"tokenizer": fingerprint(tokenizer), "vocab": vocab_size(tokenizer), "tokens": tokenizer.get_vocab_size()}
    return Result(files, total, used, {"not_sampled": total - used} if total > used else {}, info)


def run(
    store: Store,
    recipe: str,
    config: EncodeConfig,
    inputs: Mapping[str, Manifest],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Encode the inputs "corpus-NNN" with the input "tokenizer". Raises TokenizerError for one that does not fit, EmptyError without documents."""
    return run_stage(store, STAGE, recipe, config, inputs, lambda work: _encode(work, config), progress, rebuild)


def _encode(work: Work, config: EncodeConfig) -> Result:
    paths, total = _corpus(work)
    _known(paths, config)
    tokenizer = _fitting(work)
    encoder, vocab = Encoder(tokenizer), vocab_size(tokenizer)
    dtype = dtype_for(vocab)
    most = max(1.0, *(weight.epochs for weight in config.mixture)) if config.mixture else 1.0
    ranges = min(RANGES, int(_text_bytes(paths) * most) // RANGE_BYTES + 1)
    shutil.rmtree(work.scratch / "spool", ignore_errors=True)
    spools = {kind: Spool(work.scratch / "spool" / kind, ranges, dtype) for kind in ("train", "valid")}
    counted: dict[str, Counter[str]] = {"source": Counter(), "language": Counter(), "year": Counter()}
    mixed: dict[str, Counter[str]] = {}
    rejects: list[dict[str, Any]] = []
    seen = left_out = 0
    for batch in read_batches(paths, COLUMNS):
        seen += len(batch)
        blank = pc.or_kleene(pc.equal(pc.binary_length(batch["text"]), 0), pc.utf8_is_space(batch["text"]))
        rejects += [
            {name: row.get(name) for name in REJECTED}
            | {"stage": STAGE.name, "reason": "empty", "value": str(len(row["text"])), "text": None}
            for row in batch.filter(blank).to_pylist()
        ]
        full = batch.filter(pc.invert(blank))
        ids, ends = encoder(*_buffers(full["text"]))
        if len(full):
            _survives(tokenizer, full, ids[: ends[0]])
        start = 0
        for row, end in zip(full.drop_columns("text").to_pylist(), ends.tolist(), strict=True):
            tokens, start = ids[start:end].astype(dtype), end
            times = 1
            kind = "valid" if _unit(row["id"], "valid") < config.valid_share else "train"
            if kind == "train":
                group = f"{row['source']}/{row['language'] or 'unknown'}"
                times = _times(row["id"], config.epochs(group), config.seed)
                mixed.setdefault(group, Counter()).update(documents=1, tokens=len(tokens), stored=times, stored_tokens=times * len(tokens))
            left_out += not times
            for time in range(times):
                spools[kind].add(_place(row["id"], time, config.seed), row["id"], tokens)
            year = row["date"][:4] if row["date"][:4].isdecimal() else ""
            for by, value in (("source", row["source"]), ("language", row["language"]), ("year", year)):
                counted[by][value or "unknown"] += times * len(tokens)
        work.progress(seen, total, "documents")
    made = {kind: _write(work.dir, kind, dtype, config.shard_tokens, spool.sorted()) for kind, spool in spools.items()}
    files: list[tuple[str, int | None]] = [file for found, _, _ in made.values() for file in found]
    if not made["train"][1]:
        raise _empty(
            work,
            f"of {seen:,} documents none is left to train on, {made['valid'][1]:,} are held out for validation, {left_out:,} left out by the mixture",
        )
    if rejects:
        files.append(("rejects-00000.parquet", write_table(work.dir / "rejects-00000.parquet", pa.Table.from_pylist(rejects, REJECTS))))
    info = {
        "tokenizer": work.inputs["tokenizer"].info["tokenizer"], "vocab": vocab, "dtype": dtype.name, "encoder": encoder.engine, "encoder_why": encoder.why,
        "documents": {kind: documents for kind, (_, documents, _) in made.items()}, "tokens": {kind: tokens for kind, (_, _, tokens) in made.items()},
        **{f"tokens_by_{by}": dict(sorted(counts.items())) for by, counts in counted.items()},
        "mixture": {
            group: dict(counts) | {"epochs": config.epochs(group), "epochs_got": counts["stored"] / counts["documents"]}
            for group, counts in sorted(mixed.items())
        },
    }  # fmt: skip
    reasons = {reason: count for reason, count in (("empty", len(rejects)), ("mixture", left_out)) if count}
    return Result(files, seen, seen - sum(reasons.values()), reasons, info)


def _known(paths: Sequence[Path], config: EncodeConfig) -> None:
    """ConfigError for a line of the mixture that fits no document: a name misspelt would train on another mixture, without a word."""
    if not config.mixture:
        return
    kinds: set[str] = set()
    for batch in read_batches(paths, ["source", "language"]):
        kinds |= {
            f"{row['source']}/{row['language'] or 'unknown'}"
            for row in pa.Table.from_batches([batch]).group_by(batch.schema.names).aggregate([]).to_pylist()
        }
    for weight in config.mixture:
        if not any(fnmatchcase(kind, weight.documents) for kind in kinds):
            raise ConfigError(
                f"encode.mixture has {weight.epochs:g} epochs for {weight.documents!r}, which is no document of this corpus; it has "
                f"{', '.join(sorted(kinds))}. Mend the line, or take it out."
            )


def _times(id: str, epochs: float, seed: int) -> int:
    """How often a document is stored: the whole epochs, and once more for the share of documents that the rest is. Never fewer for more epochs."""
    return max(0, math.ceil(epochs - _unit(id, f"mixture {seed}")))


def _place(id: str, time: int, seed: int) -> int:
    """Where a document stands in the order, 64 bits; its second and later times stand elsewhere."""
    return xxhash.xxh3_64_intdigest((f"{id} {time}" if time else id).encode(), seed=seed)


class Spool:
    """Documents on disk by range of their key, so that one range fits in memory: the sort of an external shuffle."""

    INDEX = np.dtype([("key", "<u8"), ("id", "S32"), ("size", "<i8")])

    def __init__(self, directory: Path, ranges: int, dtype: np.dtype):
        directory.mkdir(parents=True)
        self.directory, self.ranges, self.dtype = directory, ranges, dtype
        self._held: list[tuple[int, str, np.ndarray]] = []
        self._tokens = 0

    def add(self, key: int, id: str, ids: np.ndarray) -> None:
        """Add a document with its 64-bit key."""
        self._held.append((key, id, ids))
        self._tokens += len(ids)
        if self._tokens >= BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        by_range: dict[int, list[tuple[int, str, np.ndarray]]] = {}
        for document in self._held:
            by_range.setdefault(document[0] * self.ranges >> 64, []).append(document)
        for number, documents in by_range.items():
            with open(self.directory / f"{number:05d}.tokens", "ab") as tokens, open(self.directory / f"{number:05d}.index", "ab") as index:
                np.concatenate([ids for _, _, ids in documents]).astype(self.dtype, copy=False).tofile(tokens)
                np.array([(key, id.encode(), len(ids)) for key, id, ids in documents], self.INDEX).tofile(index)
        self._held, self._tokens = [], 0

    def sorted(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, token ids) by key, then id, one range in memory at a time."""
        self._flush()
        for number in range(self.ranges):
            if not (self.directory / f"{number:05d}.index").exists():
                continue
            index = np.fromfile(self.directory / f"{number:05d}.index", self.INDEX)
            tokens = np.fromfile(self.directory / f"{number:05d}.tokens", self.dtype)
            order = np.lexsort((index["id"], index["key"]))
            ends = np.cumsum(index["size"])[order]
            for id, start, end in zip(index["id"][order].tolist(), (ends - index["size"][order]).tolist(), ends.tolist(), strict=True):
                yield id.decode(), tokens[start:end]


def _write(
    directory: Path, kind: str, dtype: np.dtype, most: int, documents: Iterator[tuple[str, np.ndarray]]
) -> tuple[list[tuple[str, int | None]], int, int]:
    """Write documents as shards KIND-NNNNN, each closed once it has `most` tokens. Returns files with rows, documents, tokens."""
    files: list[tuple[str, int | None]] = []
    count = total = number = 0
    following = next(documents, None)
    while following is not None:
        prefix, ids, sizes = f"{kind}-{number:05d}", [], []
        held = 0
        with ShardWriter(directory / prefix, dtype) as shard:
            while following is not None and held < most:
                shard.add(following[1])
                ids.append(following[0])
                sizes.append(len(following[1]))
                held += sizes[-1]
                following = next(documents, None)
        write_table(directory / f"{prefix}.documents.parquet", pa.table({"id": ids, "tokens": sizes}, LISTED))
        files += [(f"{prefix}.bin", None), (f"{prefix}.idx", None), (f"{prefix}.documents.parquet", len(ids))]
        count, total, number = count + len(ids), total + held, number + 1
    return files, count, total


def _corpus(work: Work) -> tuple[list[Path], int]:
    """Verified parts of all corpora in order, and their documents. EmptyError where there is none."""
    roles = sorted(role for role in work.inputs if role.startswith("corpus-"))
    total = sum(part.rows or 0 for role in roles for part in work.inputs[role].parts())
    if not total:
        raise _empty(work, f"{', '.join(work.inputs[role].address for role in roles) or 'no input'} holds no document")
    return [path for role in roles for path in work.paths(role)], total


def _empty(work: Work, what: str) -> EmptyError:
    """The error with the biggest reasons for which the stages before set documents aside."""
    reasons: Counter[str] = Counter()
    waiting, known = [m.address for m in work.inputs.values()], set()
    while waiting:
        address = waiting.pop()
        manifest = None if address in known else work.store.manifest(address)
        known.add(address)
        if manifest is not None:
            reasons.update({f"{manifest.stage}: {reason}": count for reason, count in manifest.rejected.items() if count})
            waiting += manifest.inputs.values()
    most = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:4])
    why = f"Most were set aside by {most}; loosen these in the recipe, or add sources." if most else "Add sources to the recipe."
    return EmptyError(f"corpus is empty: {what}. {why}")


def _fitting(work: Work) -> "Tokenizer":
    """The tokenizer of the input, checked against its manifest and for all 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    manifest = work.inputs.get("tokenizer")
    if manifest is None:
        raise ConfigError(
            f"encode has the inputs {', '.join(work.inputs)}; it needs a tokenizer too. Run the tokenizer stage, or name one in the store."
        )
    for file in manifest.files:
        work.store.path(manifest, file)
    tokenizer = load(work.store.dir(manifest.address) / "tokenizer")
    if fingerprint(tokenizer) != manifest.info["tokenizer"]:
        raise TokenizerError(
            f"{manifest.address} holds tokenizer {fingerprint(tokenizer)[:12]}; its manifest says {manifest.info['tokenizer'][:12]}. "
            "Run again with --rebuild tokenizer."
        )
    missing = set(ByteLevel.alphabet()) - tokenizer.get_vocab().keys()
    if missing:
        raise TokenizerError(
            f"{manifest.address} has no token for {len(missing)} of the 256 bytes, so documents would lose characters. "
            "Train a byte-level tokenizer: run again with --rebuild tokenizer."
        )
    return tokenizer


def _survives(tokenizer: "Tokenizer", batch: pa.RecordBatch, ids: np.ndarray) -> None:
    """TokenizerError if a document's tokens do not spell its text: the first of a batch is looked at."""
    if tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) != batch["text"][0].as_py():
        raise TokenizerError(
            f"document {batch['id'][0]} of {batch['origin_file'][0]} comes back changed from its tokens: this tokenizer does not fit the corpus. "
            "Train one on it: run again with --rebuild tokenizer."
        )


def _buffers(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes of a string array, and n + 1 places in them."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    places = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8), places


def _text_bytes(paths: Sequence[Path]) -> int:
    """UTF-8 bytes of all texts, a little more: as the parts' own metadata has it."""
    total = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        column = metadata.schema.to_arrow_schema().get_field_index("text")
        total += sum(metadata.row_group(group).column(column).total_uncompressed_size for group in range(metadata.num_row_groups))
    return total


def _unit(id: str, purpose: str) -> float:
    """A number in [0, 1) that is a hash of a document's id, another one for every purpose."""
    return xxhash.xxh3_64_intdigest(f"{purpose} {id}".encode()) / 2**64
