"""The dedup stage: exact and near duplicates out, each removal with a verified similarity to a document that stays.

    run(store, recipe, config, {"filter": …, "previous-000": …, "index-000": …}, engine) -> manifest: documents-, rejects- and duplicates- parts

Documents have one order: those of previous corpora first (they are published, so they stay), then by source (config.source_order), snapshot, file
and place, id. In this order each goes for the keeper before it that has the same text, or (config.urls) the same address, or for the first of those
that share a band with it that is similar enough; else it is a keeper itself. So a chain A~B~C removes B for A, and C only if C is like A too. Neither
the order of inputs nor the workers can matter.

Passes: signatures of every new part (index.py holds those of previous corpora, of which only what shares a key with a new document is read) -> buckets
of equal keys -> shingles of those in a bucket, to scratch -> decisions -> the guardrail -> (config.repeated) the lines that many of the rest have in
common -> parts without the removed.
What reads texts is data-parallel; buckets and decisions (keepers.py) are one process, this one. It does all itself where the input fits HELD bytes,
which are read once: to start workers would take longer. The files are the same.
"""

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from model.config import STRICT, resource
from model.errors import RemovalError
from tasks.corpus import index, minhash, repeats
from tasks.corpus.document import DUPLICATES, PartWriter, read_batches, settle, text_hash, write_table
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.index import IndexConfig
from tasks.corpus.keepers import RULES, Buckets, Decisions, Documents, Shingles, decide
from tasks.corpus.manifest import File, Manifest, Progress, Result, Stage, Store, Work, run_stage

STAGE = Stage("dedup", 3)
HELD = 128 << 20
"""Bytes of an input, not compressed, up to which it is held in memory and no worker is started."""
GUARDED = 100
"""Documents of a source from which on its guardrail counts: of a handful all may be copies."""
EXAMPLES, SHOWN = 3, 80
"""Pairs that the guardrail shows, and characters of their texts."""
EMPTIED = "only_repeated_text"
Runner = Callable[[Work, str, Any, list[dict[str, Any]]], list[dict[str, Any]]]
"""engine.run_ranks, or its likeness in this process."""


@dataclass(frozen=True)
class DedupConfig:
    """What counts as a duplicate, and which of two stays."""

    __pydantic_config__ = STRICT

    threshold: Annotated[float, Field(gt=0, le=1)]
    """Least Jaccard similarity of two texts' shingles at which the later one is removed."""
    permutations: Annotated[int, Field(ge=1, le=1024)]
    """Minima in a signature."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of the permutations."""
    bands: Annotated[int, Field(ge=1, le=256)]
    """Bands of a signature; two documents are compared where one band is equal. 25 bands of 5 rows meet .9999 of pairs at similarity .8."""
    rows: Annotated[int, Field(ge=1)]
    """Minima in a band."""
    source_order: tuple[str, ...]
    """Which source stays, best first (wikipedia, files, commoncrawl); sources not named come last, by name."""
    bucket_limit: Annotated[int, Field(ge=1)]
    """Most keepers of one band that a document is compared with, the first in the order; who had more and stayed is counted as `untried`."""
    urls: Literal["off", "first", "newest"]
    """One document an address (in its normal form, see urls.py): off; the first in the order stays; the newest by date stays. What is published stays."""
    repeated: repeats.Unit
    """Text that many documents have in common is cut from those that stay, by line or by paragraph; off leaves it."""
    repeated_characters: Annotated[int, Field(ge=1)]
    """Least characters of such a line or paragraph."""
    repeated_documents: Annotated[int, Field(ge=1)]
    """Most documents that may have a line or paragraph in common."""
    repeated_keep: Literal["first", "none"]
    """Which of those documents keeps it: the first in the order, or none."""
    max_removed: Annotated[float, Field(gt=0, le=1)] = resource()
    """Most of a source's documents, as a share, that may go for other new ones before the stage stops and shows examples; 1 never stops it."""

    def __post_init__(self) -> None:
        if self.bands * self.rows > self.permutations:
            raise ValueError(f"bands × rows ({self.bands} × {self.rows}) exceed permutations ({self.permutations})")

    @property
    def signatures(self) -> IndexConfig:
        """The fields that signatures depend on."""
        return IndexConfig(self.permutations, self.seed, self.bands, self.rows, self.urls != "off")


def run(
    store: Store,
    recipe: str,
    config: DedupConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Dedup the input "filter" against itself and against the inputs "previous-NNN", whose documents are never in the output; "index-NNN" is the index
    segment of each. ConfigError when one was made with other parameters, RemovalError when the guardrail holds it.
    """
    return run_stage(store, STAGE, recipe, config, inputs, lambda work: _body(work, config, engine), progress, rebuild)


def _body(work: Work, config: DedupConfig, engine: EngineConfig) -> Result:
    new = work.inputs["filter"]
    if not new.parts():
        return books([])
    paths = work.paths("filter")
    if sum(_bytes(path) for path in paths) > HELD:
        return books(**_passes(work, config, lambda work, function, config, items: run_ranks(work, function, config, items, engine)))
    return books(**_passes(work, config, _here({str(path): list(read_batches([path])) for path in paths})))


prepare = index.prepare


def _here(held: Mapping[str, Sequence[pa.RecordBatch]]) -> Runner:
    """Runs ranks in this process, one after the other; parts that are `held`, by path, are not read again."""

    def told(work: Work, before: int, seen: int) -> None:
        work.progress(before + seen, 0, "documents")

    def run(work: Work, function: str, config: Any, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        module, name = function.split(":")
        call, summaries, done = getattr(importlib.import_module(module), name), [], 0
        for rank, item in enumerate(items):
            with PartWriter(work.dir, rank, work.stage, beat=partial(told, work, done)) as out:
                info = call(config, item, out, held.get(item["path"]))
            done += item.get("rows") or 0
            summaries.append(out.summary | {"info": info or {}})
        return summaries

    return run


def _passes(work: Work, config: DedupConfig, run: Runner) -> dict[str, Any]:
    """What `books` takes: the summaries of the parts, and the stage's figures."""
    new = [(work.inputs["filter"], file) for file in work.inputs["filter"].parts()]
    signing = _rows(file for _, file in new)

    def within(name: str, start: int, counts: bool = True) -> Work:
        """A pass with a folder of its own in scratch, whose progress begins where the one before ended."""
        (work.scratch / name).mkdir(exist_ok=True)
        return dataclasses.replace(
            work, dir=work.scratch / name, progress=lambda done, _, unit: work.progress(start + done * counts, 2 * signing, unit)
        )

    signed = within("signatures", 0)
    items: list[dict[str, Any]] = [{"path": str(work.store.path(*part)), "rows": part[1].rows} for part in new]
    run(signed, "tasks.corpus.index:signature_rank", config.signatures, items)
    parts, files = list(new), [signed.dir / index.signatures(number) for number in range(len(new))]
    previous = sorted(role for role in work.inputs if role.startswith("previous-"))
    segments = [work.inputs[role.replace("previous", "index")] for role in previous]
    for segment in segments:
        index.need_header(segment, config.signatures)
    here = {}  # of a part of previous corpora, the rows that stand in its signature file here: those that something new may resemble
    for role, segment, near in zip(previous, segments, index.related(work.store, segments, files, config.signatures), strict=True):
        documents = work.inputs[role]
        for number, rows, path in index.some(work.store, segment, near, signed.dir / role):
            here[len(parts)] = rows
            parts.append((documents, documents.parts()[number]))
            files.append(path)
    urls = [index.addresses(file) for file in files] if config.urls != "off" else []
    published = [number >= len(new) for number in range(len(parts))]
    table = Documents.load(files, published, config.source_order, signed.dir, urls, config.urls == "newest")
    buckets = Buckets.build(table, files, config.bands, signed.dir)
    cutting = within("sets", signing, counts=False)
    items = []
    for number, (part, rows) in enumerate(zip(parts, buckets.picks(table), strict=True)):
        picks, read = (cutting.dir / f"{name}-{number:05d}.npy" for name in ("picks", "read"))
        np.save(picks, rows)
        np.save(read, here[number][rows] if number in here else rows)
        items.append({"path": str(work.store.path(*part)) if len(rows) else "", "picks": str(read)})
    if buckets.joined.any():
        run(cutting, f"{__name__}:shingle_rank", config, items)
    decisions = decide(table, buckets, Shingles(cutting.dir), config.threshold, config.bucket_limit)
    _guard(work, config, table, decisions, new)

    last = within("decisions", signing)
    items, removals = [], decisions.of_parts(table, len(new))
    for number, part in enumerate(new):
        path = last.dir / f"decisions-{number:05d}.parquet"
        write_table(path, next(removals))
        items.append({"path": str(work.store.path(*part)), "rows": part[1].rows, "decisions": str(path)})
    figures: dict[str, Any] = {"signature": config.signatures.header, "comparisons": decisions.comparisons, "untried": decisions.untried}
    if config.repeated == "off":
        return figures | {"summaries": run(dataclasses.replace(last, dir=work.dir), f"{__name__}:apply_rank", config, items)}
    repeated = Counter(different=_repeated(within("pieces", signing, counts=False), config, table, decisions, items, run))
    summaries = run(dataclasses.replace(last, dir=work.dir), f"{__name__}:apply_rank", config, items)
    for summary in summaries:
        repeated.update(summary["info"]["repeated"])
    return figures | {"summaries": summaries, "repeated": dict(repeated)}


def _repeated(work: Work, config: DedupConfig, table: Documents, decisions: Decisions, items: list[dict[str, Any]], run: Runner) -> int:
    """Find what is repeated in the documents that stay, and tell the items of apply_rank. Returns how many pieces are."""
    place, stays, needed = table.places(), np.ones(len(table.origin), bool), np.zeros(len(table.origin), bool)
    stays[decisions.place], needed[decisions.keeper] = False, True
    for number, item in enumerate(items):
        own = place[table.starts[number] : table.starts[number + 1]]
        for name, values in (("places", own), ("stays", stays[own]), ("needed", needed[own])):
            item[name] = str(work.dir / f"{name}-{number:05d}.npy")
            np.save(item[name], values)
    run(work, "tasks.corpus.repeats:piece_rank", config, items)
    path = repeats.gather([work.dir / f"pieces-{number:05d}.npy" for number in range(len(items))], config.repeated_documents, work.dir)
    for item in items:
        item["repeated"] = str(path)
    return len(np.load(path, mmap_mode="r"))


def shingle_rank(config: DedupConfig, item: dict[str, Any], out: PartWriter, batches: Iterable[pa.RecordBatch] | None = None) -> None:
    """Write the shingles' hashes of the picked rows of one part: shingles-RRRRR.bin (uint64, concatenated) and sizes-RRRRR.npy."""
    picks, start = np.load(item["picks"]), 0
    sizes: list[int] = []
    path, listing = out.directory / f"shingles-{out.rank:05d}.bin", out.directory / f"sizes-{out.rank:05d}.npy"
    with open(path.with_name(path.name + ".tmp"), "wb") as file:
        for batch in batches if batches is not None else read_batches([Path(item["path"])] if len(picks) else [], ["text"]):
            first, last = np.searchsorted(picks, [start, start + len(batch)])
            found = minhash.hashes(batch["text"].take(pa.array(picks[first:last] - start)))
            np.concatenate([np.empty(0, np.uint64), *found]).tofile(file)
            sizes += map(len, found)
            start += len(batch)
            out.beat(start)
    settle(path.with_name(path.name + ".tmp"), path)
    with open(listing.with_name(listing.name + ".tmp"), "wb") as file:
        np.save(file, np.array(sizes, np.int64))
    settle(listing.with_name(listing.name + ".tmp"), listing)


def apply_rank(
    config: DedupConfig, item: dict[str, Any], out: PartWriter, batches: Iterable[pa.RecordBatch] | None = None
) -> dict[str, Any] | None:
    """Keep or reject the rows of one part, and write duplicates-RRRRR.parquet: the evidence of each removal."""
    removed = pq.read_table(item["decisions"])
    rows, evidence, start = removed["row"].to_numpy(), [DUPLICATES.empty_table()], 0
    cut = _Cut(config, item) if config.repeated != "off" else None
    for batch in batches if batches is not None else read_batches([Path(item["path"])]):
        first, last = np.searchsorted(rows, [start, start + len(batch)]).tolist()
        found, own = removed.slice(first, last - first), rows[first:last] - start
        ids = batch["id"].take(pa.array(own))
        evidence.append(pa.Table.from_arrays([ids, *(found[name] for name in DUPLICATES.names[1:])], schema=DUPLICATES))
        values = [f"{s:.4f} {kept}" for s, kept in zip(found["similarity"].to_pylist(), found["kept_id"].to_pylist(), strict=True)]
        gone: dict[int, tuple[str, object]] = dict(zip(own.tolist(), zip(found["reason"].to_pylist(), values, strict=True), strict=True))
        if cut:
            batch = cut(batch, start, gone)
        out.sort_out(batch, gone)
        start += len(batch)
    if len(rows):
        path = out.directory / f"duplicates-{out.rank:05d}.parquet"
        out.files.append({"path": path.name, "rows": write_table(path, pa.concat_tables(evidence).combine_chunks())})
    return {"repeated": dict(cut.counts)} if cut else None


class _Cut:
    """Takes repeated lines or paragraphs out of batches, and counts what it took."""

    def __init__(self, config: DedupConfig, item: dict[str, Any]):
        self._config, self.counts = config, Counter[str]()
        self._found = np.load(item["repeated"], mmap_mode="r")
        self._places, self._needed = np.load(item["places"]), np.load(item["needed"])

    def __call__(self, batch: pa.RecordBatch, start: int, gone: dict[int, tuple[str, object]]) -> pa.RecordBatch:
        """The batch with shorter texts; adds to `gone` those of which nothing is left. One that others went for keeps all its text instead."""
        config, texts, hashes = self._config, batch["text"].to_pylist(), batch["text_hash"].to_pylist()
        for row, text in enumerate(texts):
            if row in gone:
                continue
            left, pieces = repeats.cut(
                text,
                config.repeated,
                config.repeated_characters,
                self._found,
                int(self._places[start + row]),
                config.repeated_keep == "none",
            )
            if not pieces:
                continue
            if not left.strip() and self._needed[start + row]:
                self.counts["spared"] += 1
                continue
            self.counts.update(pieces=pieces, documents=1, characters=len(text) - len(left))
            if left.strip():
                texts[row], hashes[row] = left, text_hash(left)
            else:
                gone[row] = EMPTIED, pieces
        for name, values in (("text", texts), ("text_hash", hashes)):
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), pa.array(values, pa.string()))
        return batch


def _guard(work: Work, config: DedupConfig, table: Documents, decisions: Decisions, new: Sequence[tuple[Manifest, File]]) -> None:
    """RemovalError where too much of a source would go for other new documents; what goes for a published one was expected of a refresh."""
    within = decisions.keeper >= table.published
    place, keeper = decisions.place[within], decisions.keeper[within]
    seen = np.bincount(table.source[table.published :], minlength=len(table.sources))
    gone = np.bincount(table.source[place], minlength=len(table.sources))
    for number in np.flatnonzero((seen >= GUARDED) & (gone > config.max_removed * seen)).tolist():
        some = np.flatnonzero(table.source[place] == number)
        keepers, first, sizes = np.unique(keeper[some], return_index=True, return_counts=True)
        largest = np.argsort(-sizes, kind="stable")[:EXAMPLES]
        shown = []
        for at in some[first[largest]].tolist():
            pair = [_beginning(work, new, *table.where(np.array([one]))) for one in (place[at], keeper[at])]
            shown.append(
                f"{RULES[decisions.rule[within][at]]}, similarity {decisions.similarity[within][at]:.3f}: {pair[0]} would go for {pair[1]}"
            )
        raise RemovalError(
            f"dedup would remove {gone[number]:,} of the {seen[number]:,} documents of {table.sources[number]} "
            f"({gone[number] / seen[number]:.1%}; dedup.max_removed is {config.max_removed:g}), all for {len(keepers):,} that stay. For example:\n"
            + "\n".join(shown)
            + "\nIf these are copies, raise dedup.max_removed; if they only have boilerplate in common, raise dedup.threshold or mend the source."
        )


def _beginning(work: Work, new: Sequence[tuple[Manifest, File]], part: np.ndarray, row: np.ndarray) -> str:
    """Where one document is from, and how its text begins."""
    at = int(row[0])
    for batch in read_batches([work.store.path(*new[int(part[0])])], ["url", "origin_file", "origin_offset", "text"]):
        if at < len(batch):
            found = batch.slice(at, 1).to_pylist()[0]
            return f"{found['url'] or found['origin_file']} ({' '.join(found['text'][:SHOWN].split())!r})"
        at -= len(batch)
    raise IndexError(f"row {row[0]} of part {part[0]}")


def _bytes(path: Path) -> int:
    """Bytes of a part's columns, not compressed."""
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _rows(files: Iterable[File]) -> int:
    return sum(file.rows or 0 for file in files)
