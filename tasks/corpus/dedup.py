"""The dedup stage: exact and near duplicates out, each removal with a verified similarity to a document that stays.

    run(store, recipe, config, {"filter": …, "previous-000": …, "index-000": …}, engine) -> manifest: documents-, rejects- and duplicates- parts

Documents have one order: those of previous corpora first (they are published, so they stay), then by source (config.source_order), snapshot, file
and place, id. In this order each is compared with the keepers before it that share a band; it goes for the first that it is similar enough to, else
it is a keeper itself. So a chain A~B~C removes B for A, and C only if C is like A too. Neither the order of inputs nor the workers can matter.

Passes: signatures of every new part (index.py holds those of previous corpora, of which only what shares a key with a new document is read) -> buckets
of equal keys -> shingles of those in a bucket, to scratch -> decisions -> parts without the removed.
Signatures, shingles and the last are data-parallel; buckets and decisions (keepers.py) are one process.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from model.config import STRICT
from tasks.corpus import index, minhash
from tasks.corpus.document import DUPLICATES, PartWriter, read_batches, read_rows, settle, write_table
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.index import IndexConfig
from tasks.corpus.keepers import Buckets, Documents, decide
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

STAGE = Stage("dedup", 2)


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

    def __post_init__(self) -> None:
        if self.bands * self.rows > self.permutations:
            raise ValueError(f"bands × rows ({self.bands} × {self.rows}) exceed permutations ({self.permutations})")

    @property
    def signatures(self) -> IndexConfig:
        """The fields that signatures depend on."""
        return IndexConfig(self.permutations, self.seed, self.bands, self.rows)


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
    segment of each. ConfigError when one was made with other parameters.
    """
    return run_stage(store, STAGE, recipe, config, inputs, lambda work: _body(work, config, engine), progress, rebuild)


def _body(work: Work, config: DedupConfig, engine: EngineConfig) -> Result:
    previous = sorted(role for role in work.inputs if role.startswith("previous-"))
    new = [(work.inputs["filter"], file) for file in work.inputs["filter"].parts()]
    if not new:
        return books([])
    signing = sum(file.rows or 0 for _, file in new)

    def within(name: str, start: int, counts: bool = True) -> Work:
        """A pass with a folder of its own in scratch, whose progress begins where the one before ended."""
        (work.scratch / name).mkdir(exist_ok=True)
        return dataclasses.replace(
            work, dir=work.scratch / name, progress=lambda done, _, unit: work.progress(start + done * counts, 2 * signing, unit)
        )

    signed = within("signatures", 0)
    items: list[dict[str, Any]] = [{"path": str(work.store.path(*part)), "rows": part[1].rows} for part in new]
    run_ranks(signed, "tasks.corpus.index:signature_rank", config.signatures, items, engine)
    parts, files = list(new), [signed.dir / index.signatures(number) for number in range(len(new))]
    segments = [work.inputs[role.replace("previous", "index")] for role in previous]
    for segment in segments:
        index.need_header(segment, config.signatures)
    here = {}  # of a part of previous corpora, the rows that stand in its signature file here: those that something new may resemble
    for role, segment, near in zip(previous, segments, index.related(work.store, segments, files, config.bands), strict=True):
        documents = work.inputs[role]
        for number, rows, path in index.some(work.store, segment, near, signed.dir / role):
            here[len(parts)] = rows
            parts.append((documents, documents.parts()[number]))
            files.append(path)
    table = Documents.load(files, [number >= len(new) for number in range(len(parts))], config.source_order)
    buckets = Buckets.build(table, config.bands, config.bucket_limit, signed.dir)
    cut = within("sets", signing, counts=False)
    picks = buckets.picks(table)
    for number, rows in enumerate(picks):
        np.save(cut.dir / f"picks-{number:05d}.npy", here[number][rows] if number in here else rows)
    items = [
        {"path": str(work.store.path(*part)) if len(rows) else "", "picks": str(cut.dir / f"picks-{number:05d}.npy")}
        for number, (part, rows) in enumerate(zip(parts, picks, strict=True))
    ]
    run_ranks(cut, f"{__name__}:shingle_rank", config, items if any(map(len, picks)) else [], engine)
    decisions = decide(table, buckets, Shingles(cut.dir, picks), config.threshold)
    last = within("decisions", signing)
    items = []
    for number, (source, file) in enumerate(new):
        path = last.dir / f"decisions-{number:05d}.parquet"
        write_table(path, decisions.of_part(table, number))
        items.append({"path": str(work.store.path(source, file)), "rows": file.rows, "decisions": str(path)})
    summaries = run_ranks(dataclasses.replace(last, dir=work.dir), f"{__name__}:apply_rank", config, items, engine)
    return books(summaries, signature=config.signatures.header, comparisons=decisions.comparisons, untried=decisions.untried)


def shingle_rank(config: DedupConfig, item: dict[str, Any], out: PartWriter) -> None:
    """Write the shingles' hashes of the picked rows of one part: shingles-RRRRR.bin (uint64, concatenated) and sizes-RRRRR.json."""
    picks, sizes, start = np.load(item["picks"]), [], 0
    path = out.directory / f"shingles-{out.rank:05d}.bin"
    with open(path.with_name(path.name + ".tmp"), "wb") as file:
        for batch in read_batches([Path(item["path"])] if len(picks) else [], ["text"]):
            first, last = np.searchsorted(picks, [start, start + len(batch)])
            for found in minhash.hashes(batch["text"].take(pa.array(picks[first:last] - start))):
                found.tofile(file)
                sizes.append(len(found))
            start += len(batch)
            out.beat(start)
    settle(path.with_name(path.name + ".tmp"), path)
    listing = out.directory / f"sizes-{out.rank:05d}.json"
    listing.with_name(listing.name + ".tmp").write_text(json.dumps(sizes))
    os.replace(listing.with_name(listing.name + ".tmp"), listing)


def apply_rank(config: DedupConfig, item: dict[str, Any], out: PartWriter) -> None:
    """Keep or reject the rows of one part, and write duplicates-RRRRR.parquet: the evidence of each removal."""
    removed = {row["row"]: row for row in read_rows([Path(item["decisions"])])}
    evidence, start = [], 0
    for batch in read_batches([Path(item["path"])]):
        found = {number: removed[start + number] for number in range(len(batch)) if start + number in removed}
        ids = batch["id"].take(pa.array(list(found), pa.int64())).to_pylist()
        evidence += [
            {"id": own} | {name: row[name] for name in ("kept_id", "similarity", "rule")}
            for own, row in zip(ids, found.values(), strict=True)
        ]
        out.sort_out(batch, {number: (row["reason"], f"{row['similarity']:.4f} {row['kept_id']}") for number, row in found.items()})
        start += len(batch)
    if evidence:
        path = out.directory / f"duplicates-{out.rank:05d}.parquet"
        out.files.append({"path": path.name, "rows": write_table(path, pa.Table.from_pylist(evidence, DUPLICATES))})


class Shingles:
    """The sets that shingle_rank wrote, read from disk by part and row; in memory, 16 bytes a set."""

    def __init__(self, directory: Path, picks: Sequence[np.ndarray]):
        self._directory, self._picks = directory, picks
        self._starts: dict[int, np.ndarray] = {}

    def __call__(self, part: int, row: int) -> np.ndarray:
        if part not in self._starts:
            self._starts[part] = np.cumsum([0, *json.loads((self._directory / f"sizes-{part:05d}.json").read_text())], dtype=np.int64)
        at = int(np.searchsorted(self._picks[part], row))
        start, end = self._starts[part][at : at + 2].tolist()
        return np.fromfile(self._directory / f"shingles-{part:05d}.bin", np.uint64, end - start, offset=8 * start)
