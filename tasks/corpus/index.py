"""The dedup index: of every document of a published corpus its identity, its place and its band keys, so that a refresh reads no old text again.

    run(store, recipe, config, {"documents": …}, engine) -> manifest of a segment
    related(store, segments, files)                      -> which rows of segments new documents may resemble

A segment belongs to one stage output and never changes; `indexes/<corpus>/<version>` lists the segments of all parts of that corpus version, so a
new version is the old segments and one more, published by one rename. What is taken down leaves with the segment of its part, which is made anew
without it: an old segment's rows are dead where no version lists it. `info["signature"]` is the header (minhash.header); one that differs is refused.

    signatures-NNNNN.parquet   row n: identity and keys of row n of part NNNNN, from where its text is read to verify
    keys-BBB.npy, places-BBB.npy   band BBB's keys in ascending order, and the row of each, counted through all parts; "text" stands for text_hash
    census.parquet             documents and words by source, language, site … (census.py)

Keys are mapped into memory and searched: what a refresh reads of an index are the pages on the way to its own keys, not the index.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import ConfigError
from tasks.corpus import census, minhash
from tasks.corpus.document import GROUP_ROWS, SCHEMA, PartWriter, read_batches, settle, write_table
from tasks.corpus.engine import EngineConfig, run_ranks
from tasks.corpus.keepers import IDENTITY, key_column
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

STAGE = Stage("index", 2)
CENSUS = "census.parquet"
TEXT = "text"
"""The sorted keys that are no band's: the first half of text_hash."""


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
        files: list[tuple[str, int | None]] = [(name, part.rows) for name, part in zip(names, source.parts(), strict=True)]
        for band in orders(config.bands):
            files += _sort(work.dir, [work.dir / name for name in names], band)
        files.append((CENSUS, write_table(work.dir / CENSUS, census.count(work.paths("documents")))))
        return Result(files, seen, seen, {}, {"signature": config.header})

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def signatures(part: int) -> str:
    """File name of a part's signatures."""
    return f"signatures-{part:05d}.parquet"


def orders(bands: int) -> list[str]:
    """Names of what is sorted: a band each, and the text itself."""
    return [*(f"{band:03d}" for band in range(bands)), TEXT]


def need_header(segment: Manifest, config: IndexConfig) -> None:
    """ConfigError when a segment's signatures were made with other parameters."""
    theirs, ours = segment.info["signature"], config.header
    if theirs != ours:
        apart = ", ".join(f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name])
        raise ConfigError(
            f"{segment.address} holds signatures of another kind: {apart}. Set the recipe's dedup back, or build the index anew."
        )


def related(store: Store, segments: Sequence[Manifest], files: Sequence[Path], bands: int) -> list[np.ndarray]:
    """Of each segment the rows, ascending and counted through its parts, that share a band key or a text with a document of these signature files.

    No other document of a segment can be a keeper of a new one, nor take a place in a bucket that a new one looks into.
    """
    found: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in segments]
    for name in orders(bands):
        wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(_keys(file, name) for file in files)]))
        for segment, rows in zip(segments, found, strict=True):
            keys, places = (_mapped(store, segment, f"{kind}-{name}.npy") for kind in ("keys", "places"))
            first, last = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
            hit = last > first
            rows += [np.asarray(places[start:end], np.int64) for start, end in zip(first[hit].tolist(), last[hit].tolist(), strict=True)]
    return [np.unique(np.concatenate(rows)) for rows in found]


def some(store: Store, segment: Manifest, rows: np.ndarray, folder: Path) -> Iterator[tuple[int, np.ndarray, Path]]:
    """Copy these rows (as `related` has them) to signature files of their own, one a part that has any: number of the part, rows in it, file.

    Of a part only the row groups are read in which they lie.
    """
    folder.mkdir(exist_ok=True)
    start = 0
    for number, file in enumerate(segment.parts("signatures-")):
        end = start + (file.rows or 0)
        inside = rows[slice(*np.searchsorted(rows, [start, end]))] - start
        start = end
        if len(inside):
            groups, group = np.unique(inside // GROUP_ROWS, return_inverse=True)
            with pq.ParquetFile(store.path(segment, file, verify=False)) as part:
                table = part.read_row_groups(groups.tolist()).take(pa.array(group * GROUP_ROWS + inside % GROUP_ROWS))
            write_table(folder / signatures(number), table)
            yield number, inside, folder / signatures(number)


def signature_rank(config: IndexConfig, item: dict[str, Any], out: PartWriter) -> None:
    """Write signatures-RRRRR.parquet of one part: identity, and a uint64 key a band."""
    identities, keys = [], [np.empty((0, config.bands), np.uint64)]
    for batch in read_batches([Path(item["path"])], [*IDENTITY, "text"]):
        made = minhash.signatures(batch["text"], config.permutations, config.seed)
        keys.append(minhash.bands(made, config.bands, config.rows))
        identities.append(batch.select(IDENTITY))
        out.seen += len(batch)
        out.beat(out.seen)
    matrix = np.concatenate(keys)
    identity = pa.Table.from_batches(identities, pa.schema([SCHEMA.field(name) for name in IDENTITY]))
    columns = {name: identity[name] for name in IDENTITY} | {key_column(band): pa.array(matrix[:, band]) for band in range(config.bands)}
    write_table(out.directory / signatures(out.rank), pa.table(columns))


def _sort(folder: Path, files: Sequence[Path], name: str) -> list[tuple[str, int | None]]:
    """Write one column's keys in ascending order with their rows; 16 bytes a document in memory."""
    keys = np.concatenate([np.empty(0, np.uint64), *(_keys(file, name) for file in files)])
    order = np.argsort(keys, kind="stable")
    made = {f"keys-{name}.npy": keys[order], f"places-{name}.npy": order.astype(np.uint32)}
    for target, values in made.items():
        with open(folder / f"{target}.tmp", "wb") as file:
            np.save(file, values)
        settle(folder / f"{target}.tmp", folder / target)
    return [(target, len(keys)) for target in made]


def _keys(file: Path, name: str) -> np.ndarray:
    """uint64, one column's keys of a signature file, by row."""
    if name != TEXT:
        column = key_column(int(name))
        return np.asarray(pq.read_table(file, columns=[column])[column].to_numpy(), np.uint64)
    digits = pq.read_table(file, columns=["text_hash"])["text_hash"].to_pylist()
    return np.frombuffer(bytes.fromhex("".join(digits)), ">u8").astype(np.uint64)[::2]


def _mapped(store: Store, segment: Manifest, name: str) -> np.ndarray:
    """A file of a segment, mapped: its size is checked, its sha256 only where it was fetched now, since that would read it whole."""
    [file] = segment.parts(name)
    return np.asarray(np.load(store.path(segment, file, verify=False), mmap_mode="r"))
