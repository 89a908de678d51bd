"""The dedup index: of every document of a published corpus its identity, its place and its band keys, so that a refresh reads no old text again.

    run(store, recipe, config, {"documents": …}, engine) -> manifest: signatures-NNNNN.parquet, one a part of the input

A segment belongs to one stage output and never changes; `indexes/<corpus>/<version>` lists the segments of all parts of that corpus version, so a
new version is the old segments and one more, published by one rename. Row n of signatures-NNNNN is row n of that part: what shares a band with a
new document is read from there, to verify. `info["signature"]` is the header (minhash.header); one that differs is refused.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.errors import ConfigError
from tasks.corpus import minhash
from tasks.corpus.document import SCHEMA, PartWriter, read_batches, write_table
from tasks.corpus.engine import EngineConfig, run_ranks
from tasks.corpus.keepers import IDENTITY, key_column
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

STAGE = Stage("index", 1)


@dataclass(frozen=True)
class IndexConfig:
    """The parameters of signatures, as DedupConfig has them."""

    permutations: int
    seed: int
    bands: int
    rows: int

    @property
    def header(self) -> dict[str, Any]:
        """What two signatures must share to be compared."""
        return minhash.header(self.permutations, self.seed, self.bands, self.rows)


def run(
    store: Store,
    recipe: str,
    config: IndexConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """The segment of the input "documents". `info`: the header."""

    def body(work: Work) -> Result:
        source = work.inputs["documents"]
        items = [{"path": str(store.path(source, part)), "rows": part.rows} for part in source.parts()]
        signed = dataclasses.replace(work, dir=work.scratch / "signatures")
        signed.dir.mkdir(exist_ok=True)
        summaries = run_ranks(signed, f"{__name__}:signature_rank", config, items, engine)
        names = [signatures(rank) for rank in range(len(items))]
        for name in names:
            if (signed.dir / name).exists():  # else a run that was killed here has moved it
                os.replace(signed.dir / name, work.dir / name)
        seen = sum(summary["seen"] for summary in summaries)
        files = [(name, part.rows) for name, part in zip(names, source.parts(), strict=True)]
        return Result(files, seen, seen, {}, {"signature": config.header})

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def signatures(part: int) -> str:
    """File name of a part's signatures."""
    return f"signatures-{part:05d}.parquet"


def need_header(segment: Manifest, config: IndexConfig) -> None:
    """ConfigError when a segment's signatures were made with other parameters."""
    theirs, ours = segment.info["signature"], config.header
    if theirs != ours:
        apart = ", ".join(f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name])
        raise ConfigError(
            f"{segment.address} holds signatures of another kind: {apart}. Set the recipe's dedup back, or build the index anew."
        )


def signature_rank(config: IndexConfig, item: dict[str, Any], out: PartWriter, batches: Iterable[pa.RecordBatch] | None = None) -> None:
    """Write signatures-RRRRR.parquet of one part: identity, and a uint64 key a band. `batches`: the part, where it is in memory."""
    identities, keys = [], [np.empty((0, config.bands), np.uint64)]
    for batch in batches if batches is not None else read_batches([Path(item["path"])], [*IDENTITY, "text"]):
        made = minhash.signatures(batch["text"], config.permutations, config.seed)
        keys.append(minhash.bands(made, config.bands, config.rows))
        identities.append(batch.select(IDENTITY))
        out.seen += len(batch)
        out.beat(out.seen)
    matrix = np.concatenate(keys)
    identity = pa.Table.from_batches(identities, pa.schema([SCHEMA.field(name) for name in IDENTITY]))
    columns = {name: identity[name] for name in IDENTITY} | {key_column(band): pa.array(matrix[:, band]) for band in range(config.bands)}
    write_table(out.directory / signatures(out.rank), pa.table(columns))
