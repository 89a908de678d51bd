"""The tokenizer and encode stages: documents in; a tokenizer, then token shards in a deterministic random order out.

    train_tokenizer(store, recipe, config, {"corpus-000": …}) -> manifest: tokenizer/ (what model.tokenizer.load reads)
    run(store, recipe, config, {"corpus-000": …, "tokenizer": …}) -> manifest: shards train-NNNNN and valid-NNNNN (.bin, .idx: model/shards.py)
                                                                     and .documents.parquet beside each, its documents in order

The order is that of hash(seed, id), and whether a document is for validation is a hash of its id alone: both are independent of parts, of threads
and of what else is in the corpus. The shuffle is external (Spool): memory does not grow with the corpus.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from model.config import STRICT
from model.errors import ConfigError, EmptyError, TokenizerError
from model.shards import ShardWriter, dtype_for
from model.tokenizer import TokenizerConfig, encode_documents, fingerprint, load, save, take, train, vocab_size
from tasks.corpus.document import REJECTS, read_rows, settle, write_table
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = Stage("tokenizer", 1)
STAGE = Stage("encode", 1)
LISTED = pa.schema([("id", pa.string()), ("tokens", pa.int64())])
"""Columns of .documents.parquet: a document and the length of its sequence, end token included."""
BATCH = 256
"""Documents encoded at once, in the tokenizer's own threads."""
RANGE_BYTES = 256 * 2**20
"""Text whose tokens are sorted in memory at once; a token takes 4 bytes there, and is about as long as text."""
BUFFER_TOKENS = 16 * 2**20


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
            if used % BATCH == 0:
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
    tokenizer = _fitting(work)
    vocab = vocab_size(tokenizer)
    ranges = -(-_text_bytes(paths) // RANGE_BYTES) or 1
    shutil.rmtree(work.scratch / "spool", ignore_errors=True)
    spools = {kind: Spool(work.scratch / "spool" / kind, ranges) for kind in ("train", "valid")}
    counted: dict[str, Counter[str]] = {"source": Counter(), "language": Counter()}
    rejects: list[dict[str, Any]] = []
    seen = 0
    columns = ["id", "text", "language", "url", "source", "snapshot", "origin_file", "origin_offset", "origin_length"]
    for rows in _batches(read_rows(paths, columns), BATCH):
        seen += len(rows)
        full = [row for row in rows if row["text"].strip()]
        rejects += [
            {f.name: row.get(f.name) for f in REJECTS}
            | {"stage": STAGE.name, "reason": "empty", "value": str(len(row["text"])), "text": None}
            for row in rows
            if not row["text"].strip()
        ]
        encoded = encode_documents(tokenizer, [row["text"] for row in full])
        if full:
            _survives(tokenizer, full[0], encoded[0])
        for row, ids in zip(full, encoded, strict=True):
            kind = "valid" if _unit(row["id"], "valid") < config.valid_share else "train"
            spools[kind].add(xxhash.xxh3_64_intdigest(row["id"].encode(), seed=config.seed), row["id"], ids)
            for by, counts in counted.items():
                counts[row[by] or "unknown"] += len(ids)
        work.progress(seen, total, "documents")
    dtype = dtype_for(vocab)
    made = {kind: _write(work.dir, kind, dtype, config.shard_tokens, spool.sorted()) for kind, spool in spools.items()}
    files: list[tuple[str, int | None]] = [file for found, _, _ in made.values() for file in found]
    if not made["train"][1]:
        raise _empty(work, f"of {seen:,} documents none is left to train on, {made['valid'][1]:,} are held out for validation")
    if rejects:
        files.append(("rejects-00000.parquet", write_table(work.dir / "rejects-00000.parquet", pa.Table.from_pylist(rejects, REJECTS))))
    info = {
        "tokenizer": fingerprint(tokenizer), "vocab": vocab, "dtype": dtype.name,
        "documents": {kind: documents for kind, (_, documents, _) in made.items()}, "tokens": {kind: tokens for kind, (_, _, tokens) in made.items()},
        "tokens_by_source": dict(sorted(counted["source"].items())), "tokens_by_language": dict(sorted(counted["language"].items())),
    }  # fmt: skip
    return Result(files, seen, seen - len(rejects), {"empty": len(rejects)} if rejects else {}, info)


class Spool:
    """Documents on disk by range of their key, so that one range fits in memory: the sort of an external shuffle."""

    INDEX = np.dtype([("key", "<u8"), ("id", "S32"), ("size", "<i8")])

    def __init__(self, directory: Path, ranges: int):
        directory.mkdir(parents=True)
        self.directory, self.ranges = directory, ranges
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
                np.concatenate([ids for _, _, ids in documents]).astype("<i4", copy=False).tofile(tokens)
                np.array([(key, id.encode(), len(ids)) for key, id, ids in documents], self.INDEX).tofile(index)
        self._held, self._tokens = [], 0

    def sorted(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, token ids) by key, then id, one range in memory at a time."""
        self._flush()
        for number in range(self.ranges):
            if not (self.directory / f"{number:05d}.index").exists():
                continue
            index = np.fromfile(self.directory / f"{number:05d}.index", self.INDEX)
            tokens = np.fromfile(self.directory / f"{number:05d}.tokens", "<i4")
            ends = np.cumsum(index["size"])
            for at in np.lexsort((index["id"], index["key"])).tolist():
                yield index["id"][at].decode(), tokens[ends[at] - index["size"][at] : ends[at]]


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


def _survives(tokenizer: "Tokenizer", row: Mapping[str, Any], ids: np.ndarray) -> None:
    """TokenizerError if a document's tokens do not spell its text: one document a batch is looked at."""
    if tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) != row["text"]:
        raise TokenizerError(
            f"document {row['id']} of {row['origin_file']} comes back changed from its tokens: this tokenizer does not fit the corpus. "
            "Train one on it: run again with --rebuild tokenizer."
        )


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


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
