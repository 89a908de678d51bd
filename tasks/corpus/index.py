"""The dedup index: of every document of a published corpus its identity, its place and its band keys, so that a refresh reads no old text again.

    run(store, recipe, config, {"documents": …}, engine) -> manifest of a segment
    related(store, segments, files)                      -> which rows of segments new documents may resemble

A segment belongs to one stage output and never changes; `indexes/<corpus>/<version>` lists the segments of all parts of that corpus version, so a
new version is the old segments and one more, published by one rename. What is taken down leaves with the segment of its part, which is made anew
without it: an old segment's rows are dead where no version lists it. `info["signature"]` is the header (minhash.header); one that differs is refused.

    signatures-NNNNN.parquet   row n: identity and keys of row n of part NNNNN, from where its text is read to verify
    urls-NNNNN.npy             where addresses matter: row n's normal address and date (urls.KEYS)
    keys-BBB.npy, places-BBB.npy   band BBB's keys in ascending order, and the row of each, counted through all parts; "text" stands for text_hash,
                               "url" for the address
    census.parquet             documents and words by source, language, site … (census.py)

Keys are mapped into memory and searched: what a refresh reads of an index are the pages on the way to its own keys, not the index.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import ConfigError
from tasks.corpus import census, minhash, urls
from tasks.corpus.codepoints import unicode_tables
from tasks.corpus.document import GROUP_ROWS, SCHEMA, PartWriter, read_batches, settle, write_table
from tasks.corpus.engine import EngineConfig, run_ranks
from tasks.corpus.keepers import IDENTITY, key_column
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage

STAGE = Stage("index", 2)
CENSUS = "census.parquet"
TEXT, URL = "text", "url"
"""The sorted keys that are no band's: the first half of text_hash, and of the address's hash."""


@dataclass(frozen=True)
class IndexConfig:
    """The parameters of signatures, as DedupConfig has them, and whether addresses are held too."""

    permutations: int
    seed: int
    bands: int
    rows: int
    urls: bool

    @property
    def header(self) -> dict[str, Any]:
        """What two signatures must share to be compared."""
        return minhash.header(self.permutations, self.seed, self.bands, self.rows) | ({"urls": urls.FORM} if self.urls else {})


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
        beside = [addresses(Path(name)).name for name in names] if config.urls else []
        for name in (*names, *beside):
            if (signed.dir / name).exists():  # else a run that was killed here has moved it
                os.replace(signed.dir / name, work.dir / name)
        seen = sum(summary["seen"] for summary in summaries)
        files: list[tuple[str, int | None]] = [(name, part.rows) for name, part in zip(names, source.parts(), strict=True)]
        files += [(name, part.rows) for name, part in zip(beside, source.parts(), strict=bool(beside))]
        for band in orders(config):
            files += _sort(work.dir, [work.dir / name for name in names], band)
        files.append((CENSUS, write_table(work.dir / CENSUS, census.count(work.paths("documents")))))
        return Result(files, seen, seen, {}, {"signature": config.header})

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def signatures(part: int) -> str:
    """File name of a part's signatures."""
    return f"signatures-{part:05d}.parquet"


def addresses(signatures: Path) -> Path:
    """The file of addresses beside a file of signatures."""
    return signatures.with_name(signatures.name.replace("signatures", "urls")).with_suffix(".npy")


def orders(config: IndexConfig) -> list[str]:
    """Names of what is sorted: a band each, the text itself, and the address where it matters."""
    return [*(f"{band:03d}" for band in range(config.bands)), TEXT, *([URL] if config.urls else [])]


def need_header(segment: Manifest, config: IndexConfig) -> None:
    """ConfigError when a segment's signatures were made with other parameters."""
    theirs, ours = segment.info["signature"], config.header
    if theirs != ours:
        apart = ", ".join(f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name])
        raise ConfigError(
            f"{segment.address} holds signatures of another kind: {apart}. Set the recipe's dedup back, or build the index anew."
        )


def related(store: Store, segments: Sequence[Manifest], files: Sequence[Path], config: IndexConfig) -> list[np.ndarray]:
    """Of each segment the rows, ascending and counted through its parts, that share a band key, a text or an address with a document of these signature
    files.

    No other document of a segment can be a keeper of a new one, nor take a place in a bucket that a new one looks into.
    """
    found: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in segments]
    for name in orders(config) if segments else ():
        wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(_keys(file, name) for file in files)]))
        if name == URL:
            wanted = wanted[wanted != urls.NONE]
        for segment, rows in zip(segments, found, strict=True):
            keys, places = (_mapped(store, segment, f"{kind}-{name}.npy") for kind in ("keys", "places"))
            first, last = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
            hit = last > first
            rows += [np.asarray(places[start:end], np.int64) for start, end in zip(first[hit].tolist(), last[hit].tolist(), strict=True)]
    return [np.unique(np.concatenate(rows)) for rows in found]


def some(store: Store, segment: Manifest, rows: np.ndarray, folder: Path) -> Iterator[tuple[int, np.ndarray, Path]]:
    """Copy these rows (as `related` has them) to signature files of their own, addresses beside, one a part that has any: its number, rows in it, file.

    Of a part only the row groups are read in which they lie.
    """
    folder.mkdir(exist_ok=True)
    start, beside = 0, segment.parts("urls-")
    for number, file in enumerate(segment.parts("signatures-")):
        end = start + (file.rows or 0)
        inside = rows[slice(*np.searchsorted(rows, [start, end]))] - start
        start = end
        if len(inside):
            groups, group = np.unique(inside // GROUP_ROWS, return_inverse=True)
            with pq.ParquetFile(store.path(segment, file, verify=False)) as part:
                table = part.read_row_groups(groups.tolist()).take(pa.array(group * GROUP_ROWS + inside % GROUP_ROWS))
            write_table(folder / signatures(number), table)
            if beside:
                np.save(addresses(folder / signatures(number)), _mapped(store, segment, beside[number].path)[inside])
            yield number, inside, folder / signatures(number)


def prepare(config: Any) -> None:
    """Load what every rank that signs or cuts needs."""
    from tasks.corpus import kernels  # noqa: F401

    unicode_tables()


def signature_rank(config: IndexConfig, item: dict[str, Any], out: PartWriter, batches: Iterable[pa.RecordBatch] | None = None) -> None:
    """Write signatures-RRRRR.parquet of one part: identity, and a uint64 key a band; with config.urls urls-RRRRR.npy beside it.

    `batches`: the part, where it is in memory.
    """
    identities, keys, places = [], [np.empty((0, config.bands), np.uint64)], [np.empty(0, urls.KEYS)]
    columns = [*IDENTITY, "text", *(("url", "date") if config.urls else ())]
    for batch in batches if batches is not None else read_batches([Path(item["path"])], columns):
        made = minhash.signatures(batch["text"], config.permutations, config.seed)
        keys.append(minhash.bands(made, config.bands, config.rows))
        identities.append(batch.select(IDENTITY))
        if config.urls:
            places.append(urls.keys(batch["url"].to_pylist(), batch["date"].to_pylist()))
        out.seen += len(batch)
        out.beat(out.seen)
    matrix = np.concatenate(keys)
    identity = pa.Table.from_batches(identities, pa.schema([SCHEMA.field(name) for name in IDENTITY]))
    made_of = {name: identity[name] for name in IDENTITY} | {key_column(band): pa.array(matrix[:, band]) for band in range(config.bands)}
    if config.urls:
        _save(addresses(out.directory / signatures(out.rank)), np.concatenate(places))
    write_table(out.directory / signatures(out.rank), pa.table(made_of))


def _sort(folder: Path, files: Sequence[Path], name: str) -> list[tuple[str, int | None]]:
    """Write one column's keys in ascending order with their rows; 16 bytes a document in memory."""
    keys = np.concatenate([np.empty(0, np.uint64), *(_keys(file, name) for file in files)])
    order = np.argsort(keys, kind="stable")
    made = {f"keys-{name}.npy": keys[order], f"places-{name}.npy": order.astype(np.uint32)}
    for target, values in made.items():
        _save(folder / target, values)
    return [(target, len(keys)) for target in made]


def _save(path: Path, values: np.ndarray) -> None:
    """Write an array whole or not at all."""
    with open(path.with_name(path.name + ".tmp"), "wb") as file:
        np.save(file, values)
    settle(path.with_name(path.name + ".tmp"), path)


def _keys(file: Path, name: str) -> np.ndarray:
    """uint64, one column's keys of a signature file, by row."""
    if name == URL:
        return np.asarray(np.load(addresses(file))["high"])
    if name != TEXT:
        column = key_column(int(name))
        return np.asarray(pq.read_table(file, columns=[column])[column].to_numpy(), np.uint64)
    digits = pq.read_table(file, columns=["text_hash"])["text_hash"].to_pylist()
    return np.frombuffer(bytes.fromhex("".join(digits)), ">u8").astype(np.uint64)[::2]


def _mapped(store: Store, segment: Manifest, name: str) -> np.ndarray:
    """A file of a segment, mapped: its size is checked, its sha256 only where it was fetched now, since that would read it whole."""
    [file] = segment.parts(name)
    return np.asarray(np.load(store.path(segment, file, verify=False), mmap_mode="r"))
