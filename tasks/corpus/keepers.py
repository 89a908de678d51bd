"""Which documents stay: sets of equal band keys, and the walk that gives every removal a keeper.

    table = Documents.load(files, published, source_order, scratch)     all documents in the stated order, from signatures-*.parquet
    buckets = Buckets.build(table, files, 25, scratch)                  who shares a band key with whom, on disk
    decide(table, buckets, sets, .8, limit)                             keeper, similarity and rule of each removed document

The walk goes through the documents in order; each goes for the first keeper before it that has the same text, else the same address (where asked
for), else for the first keeper in its buckets that is similar enough; else it becomes a keeper itself. Documents that no chain of buckets joins cannot
matter to one another, so the walk takes one batch of such components (by union-find) after the other.

Memory grows by some 60 bytes a document, never by texts: the keys of a band are sorted runs on disk, merged by ranges of keys; the pairs (bucket,
document), the identities and the sets that are compared are files too.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import DamageError, InputError

IDENTITY = ["id", "text_hash", "source", "snapshot", "origin_file", "origin_offset"]
"""Columns of a signature file beside its keys."""
RULES = ("near", "exact", "url")
"""Why a document goes, by the number that kernels.walk knows it by: similarity of shingles, equal text_hash, equal address."""
NEAR, EXACT, URL = range(3)
PAIR = np.dtype([("bucket", "<u4"), ("place", "<i4")])
RUN, MERGED, WALKED = 1 << 18, 1 << 20, 1 << 19
"""Documents of a run; entries merged at once; pairs walked at once, where no component is larger."""
Sets = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of parts' rows the addresses (uint64) and sizes (int64) of their shingles' hashes in memory, ascending uint64 each; valid until the next call."""


def key_column(band: int) -> str:
    """Name of a band's column in a signature file."""
    return f"band-{band:03d}"


@dataclass(frozen=True)
class Documents:
    """All documents in order: published ones first, then by source, snapshot, file, place in it, id. Arrays have one entry a document."""

    published: int
    """How many belong to a corpus that is published already: the first."""
    origin: np.ndarray
    """int32, number of the document in the order of the files."""
    starts: np.ndarray
    """Where a part begins in that order, and the end."""
    first: np.ndarray
    """int32, place of the first document with the same text_hash, its own where it is that."""
    same_url: np.ndarray | None
    """int32, the same for addresses; None where they do not matter."""
    source: np.ndarray
    """uint16, number of its source."""
    sources: Sequence[str]
    id: np.ndarray
    """uint64[n, 2] on disk, high and low half."""

    @classmethod
    def load(
        cls, files: Sequence[Path], published: Sequence[bool], source_order: Sequence[str], scratch: Path,
        urls: Sequence[Path] = (), newest: bool = False,
    ) -> "Documents":  # fmt: skip
        """Read the identity columns of all signature files (file n: part n) and sort. `urls`: the addresses of each part (files of urls.KEYS).

        With `newest` those that are not the last of their address (by date, then the first in order) come behind all others.
        """
        counts = [pq.read_metadata(file).num_rows for file in files]
        starts = np.cumsum([0, *counts])
        size = int(starts[-1])
        if size >= 2**31:
            raise InputError(f"{size:,} documents are more than one dedup can number ({2**31 - 1:,}). Dedup them snapshot by snapshot.")
        rank = {source: number for number, source in enumerate(source_order)}
        origins: dict[tuple[int, str, str, str], int] = {}
        code, offset = np.empty(size, np.int32), np.empty(size, np.int64)
        ids, hashes = np.empty((size, 2), np.uint64), np.empty((size, 2), np.uint64)
        for file, start, end in zip(files, starts[:-1], starts[1:], strict=True):
            table = pq.read_table(file, columns=IDENTITY).combine_chunks()
            if start < end:
                code[start:end] = _codes([table[name].chunk(0) for name in ("source", "snapshot", "origin_file")], rank, origins)
                offset[start:end] = table["origin_offset"].to_numpy()
                ids[start:end], hashes[start:end] = (_halves(table[name].chunk(0), file) for name in ("id", "text_hash"))
        ordered, sources = sorted(origins), sorted({origin[1] for origin in origins})
        position, of_source = np.empty(len(origins), np.int32), np.empty(len(origins), np.uint16)
        for number, origin in enumerate(ordered):
            position[origins[origin]], of_source[origins[origin]] = number, sources.index(origin[1])
        fresh = np.repeat(~np.array(published, bool), counts)
        order = np.lexsort((ids[:, 1], ids[:, 0], offset, position[code], fresh)).astype(np.int32)
        same_url = None
        if urls:
            addresses = np.concatenate([np.load(path) for path in urls])
            if newest:
                older = _older(addresses[order], fresh[order])
                order = np.concatenate([order[~older], order[older]])
            same_url = _first(np.stack([addresses["high"], addresses["low"]], axis=1)[order], alone=addresses["date"][order] < 0)
        np.save(scratch / "ids.npy", ids[order])
        del ids, offset
        return cls(
            published=int(size - fresh.sum()), origin=order, starts=starts, first=_first(hashes[order]), same_url=same_url,
            source=of_source[code[order]], sources=sources, id=np.load(scratch / "ids.npy", mmap_mode="r"),
        )  # fmt: skip

    def where(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part and row of each."""
        origin = self.origin[places].astype(np.int64)
        part = np.searchsorted(self.starts, origin, side="right") - 1
        return part, origin - self.starts[part]

    def places(self) -> np.ndarray:
        """int32, the place of each document in the order of the files."""
        found = np.empty(len(self.origin), np.int32)
        found[self.origin] = np.arange(len(found), dtype=np.int32)
        return found


class Runs:
    """Pairs (uint64 key, int32 value) in runs on disk, each sorted by key, and their merge. Keys are hashes: spread evenly."""

    def __init__(self, scratch: Path, name: str, expected: int):
        self._scratch, self._name, self._made = scratch, name, []  # type: Path, str, list[tuple[Path, np.ndarray]]
        pieces = -(-max(1, expected) // MERGED)
        self._borders = np.array([(piece << 64) // pieces for piece in range(1, pieces)], np.uint64)

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Write one run."""
        order = np.argsort(keys)
        keys = keys[order]
        path = self._scratch / f"{self._name}-{len(self._made):05d}.bin"
        with open(path, "wb") as out:
            keys.tofile(out)
            values[order].astype(np.int32).tofile(out)
        self._made.append((path, np.concatenate([[0], np.searchsorted(keys, self._borders), [len(keys)]])))

    def merged(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys ascending with their values, equal keys never apart; some MERGED entries at once, more where one key has more. Removes the runs."""
        for piece in range(len(self._borders) + 1):
            keys, values = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
            for path, at in self._made:
                count = at[piece + 1] - at[piece]
                keys.append(np.fromfile(path, np.uint64, count, offset=8 * at[piece]))
                values.append(np.fromfile(path, np.int32, count, offset=8 * at[-1] + 4 * at[piece]))
            joined = np.concatenate(keys)
            order = np.argsort(joined)
            yield joined[order], np.concatenate(values)[order]
        for path, _ in self._made:
            path.unlink()


def groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ascending keys the start and the size of each run of equal ones."""
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1])) if len(keys) else np.empty(0, np.int64)
    return starts, np.diff(starts, append=len(keys))


@dataclass(frozen=True)
class Buckets:
    """Sets of two or more documents with one band key, or with one text or address where addresses matter. Later copies of a text are in none else."""

    path: Path
    """Pairs (bucket, place), a bucket's in one piece, buckets ascending."""
    kinds: tuple[int, int]
    """Number of the first bucket of one text, of one address; those before are bands'."""
    parent: np.ndarray
    """int32, the first document of those that a chain of buckets joins."""
    joined: np.ndarray
    """bool, whether a document is in a bucket."""

    @classmethod
    def build(cls, table: Documents, files: Sequence[Path], bands: int, scratch: Path) -> "Buckets":
        """Sort the keys of all signature files to runs, merge one band after the other."""
        from tasks.corpus import kernels

        size, path = len(table.origin), scratch / "pairs.bin"
        member = np.ones(size, bool) if table.same_url is not None else table.first == np.arange(size, dtype=np.int32)
        runs = [Runs(scratch, f"band-{band:03d}", size) for band in range(bands)]
        place = table.places()
        for chosen in _chunks(np.diff(table.starts)):
            at = place[table.starts[chosen.start] : table.starts[chosen.stop]]
            stays = member[at]
            keys = np.empty((bands, len(at)), np.uint64)
            begin = 0
            for file in files[chosen]:
                read = pq.read_table(file, columns=[key_column(band) for band in range(bands)])
                for band in range(bands):
                    keys[band, begin : begin + len(read)] = read[key_column(band)].to_numpy()
                begin += len(read)
            for band in range(bands):
                runs[band].add(keys[band][stays], at[stays])
        del place
        parent, joined, made, kinds = np.arange(size, dtype=np.int32), np.zeros(size, bool), 0, []
        with open(path, "wb") as out:

            def put(keys: np.ndarray, places: np.ndarray) -> None:
                nonlocal made
                _, counts = groups(keys)
                several = counts > 1
                keep = np.repeat(several, counts)
                members, counts = places[keep], counts[several]
                kernels.unite(parent, members, np.concatenate([[0], np.cumsum(counts)]))
                joined[members] = True
                pairs = np.empty(len(members), PAIR)
                pairs["bucket"], pairs["place"] = np.repeat(np.arange(made, made + len(counts)), counts), members
                pairs.tofile(out)
                made += len(counts)

            for run in runs:
                for keys_, places in run.merged():
                    put(keys_, places)
            for same in (table.first, table.same_url) if table.same_url is not None else ():
                kinds.append(made)
                order = np.argsort(same, kind="stable").astype(np.int32)
                put(same[order].astype(np.uint64), order)
        kernels.flatten(parent)
        return cls(path, (kinds[0], kinds[1]) if kinds else (made, made), parent, joined)

    def picks(self, table: Documents) -> list[np.ndarray]:
        """Rows of each part, ascending, whose shingles `decide` may ask for."""
        origin = np.sort(table.origin[self.joined]).astype(np.int64)
        ends = np.searchsorted(origin, table.starts)
        return [origin[ends[part] : ends[part + 1]] - start for part, start in enumerate(table.starts[:-1])]

    def batches(self) -> Iterator[np.ndarray]:
        """The pairs, in batches of whole components of some WALKED pairs, or one that is larger."""
        weight = np.zeros(len(self.parent), np.int64)
        for pairs in self._stored():
            np.add.at(weight, self.parent[pairs["place"]], 1)
        batch = ((np.cumsum(weight) - weight) // WALKED).astype(np.int32)
        sizes = np.bincount(batch, weights=weight).astype(np.int64)
        del weight
        if np.count_nonzero(sizes) <= 1:
            yield from (pairs for pairs in self._stored(int(sizes.sum())))
            return
        ends = np.cumsum(sizes)
        cursor, path = ends - sizes, self.path.with_name("batches.bin")
        with open(path, "wb") as out:
            for pairs in self._stored():
                number = batch[self.parent[pairs["place"]]]
                order = np.argsort(number, kind="stable")
                starts, counts = groups(number[order].astype(np.uint64))
                for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                    some = order[start : start + count]
                    which = number[some[0]]
                    out.seek(int(cursor[which]) * PAIR.itemsize)
                    pairs[some].tofile(out)
                    cursor[which] += count
        del batch
        for end, count in zip(ends.tolist(), sizes.tolist(), strict=True):
            if count:
                yield np.fromfile(path, PAIR, count, offset=(end - count) * PAIR.itemsize)

    def _stored(self, some: int = MERGED) -> Iterator[np.ndarray]:
        total = self.path.stat().st_size // PAIR.itemsize
        for at in range(0, total, some or 1):
            yield np.fromfile(self.path, PAIR, min(some, total - at), offset=at * PAIR.itemsize)


@dataclass(frozen=True)
class Decisions:
    """What `decide` found: one entry a removed document, in order."""

    place: np.ndarray
    keeper: np.ndarray
    """Place of the document it goes for."""
    similarity: np.ndarray
    """Jaccard similarity with it."""
    rule: np.ndarray
    """uint8, of RULES."""
    comparisons: int
    """Pairs of sets compared."""
    untried: int
    """Documents that stay although one of their buckets had more keepers than its limit."""

    def of_parts(self, table: Documents, parts: int) -> Iterator[pa.Table]:
        """Removals of the first parts by row: row, kept_id, similarity, rule, reason."""
        part, row = table.where(self.place)
        order = np.lexsort((row, part))
        ends = np.searchsorted(part[order], np.arange(parts + 1))
        words = np.array(RULES, object)
        for number in range(parts):
            some = order[ends[number] : ends[number + 1]]
            keeper, rule = self.keeper[some], words[self.rule[some]]
            reason = np.where(keeper < table.published, "duplicate_of_previous", rule + "_duplicate")
            digits = np.ascontiguousarray(table.id[keeper]).astype(">u8").tobytes().hex()
            yield pa.table(
                {
                    "row": pa.array(row[some], pa.int32()),
                    "kept_id": pa.array([digits[at : at + 32] for at in range(0, len(digits), 32)], pa.string()),
                    "similarity": pa.array(self.similarity[some], pa.float64()),
                    "rule": pa.array(rule.tolist(), pa.string()),
                    "reason": pa.array(reason.tolist(), pa.string()),
                }
            )


def decide(table: Documents, buckets: Buckets, sets: Sets, threshold: float, limit: int) -> Decisions:
    """Walk the documents in order. A bucket has room for `limit` keepers, the first in the order.

    Where addresses do not matter, later copies of a text follow its first without a look: they go for it, or for what it went for.
    """
    gone: list[tuple[np.ndarray, ...]] = []
    comparisons = untried = 0
    for pairs in buckets.batches():
        *found, compared, passed = _walk(table, buckets, pairs, sets, threshold, limit)
        gone.append(tuple(found))
        comparisons, untried = comparisons + compared, untried + passed
    types = (np.int32, np.int32, np.float64, np.uint8)
    place, keeper, similarity, rule = (
        np.concatenate([np.empty(0, kind), *(some[column] for some in gone)]) for column, kind in enumerate(types)
    )
    order = np.argsort(place)
    place, keeper, similarity, rule = place[order], keeper[order], similarity[order], rule[order]
    if table.same_url is None:
        copies = np.flatnonzero(table.first != np.arange(len(table.first), dtype=np.int32))
        copies = copies[copies >= table.published].astype(np.int32)
        first = table.first[copies]
        at = np.searchsorted(place, first)
        went = (place[np.minimum(at, len(place) - 1)] == first) if len(place) else np.zeros(len(copies), bool)
        at = at[went]
        also = [first.copy(), np.ones(len(copies)), np.full(len(copies), EXACT, np.uint8)]
        for column, of_first in zip(also, (keeper, similarity, rule), strict=True):
            column[went] = of_first[at]
        place = np.concatenate([place, copies])
        order = np.argsort(place)
        place = place[order]
        keeper, similarity, rule = (
            np.concatenate([mine, more])[order] for mine, more in zip((keeper, similarity, rule), also, strict=True)
        )
    return Decisions(place, keeper, similarity, rule, comparisons, untried)


def _walk(table: Documents, buckets: Buckets, pairs: np.ndarray, sets: Sets, threshold: float, limit: int) -> Any:
    """place, keeper, similarity, rule of those that go, of one batch of components; pairs compared; `untried`."""
    from tasks.corpus import kernels

    pairs = pairs[np.argsort((pairs["place"].astype(np.uint64) << np.uint64(32)) | pairs["bucket"])]
    begin, _ = groups(pairs["place"].astype(np.uint64))
    places = pairs["place"][begin]
    different, bucket, members = np.unique(pairs["bucket"], return_inverse=True, return_counts=True)
    kind = np.searchsorted(np.array(buckets.kinds), different, side="right").astype(np.uint8)
    room = np.where(kind == NEAR, np.minimum(members, limit), 1).astype(np.int32)
    address, size = sets(*table.where(places))
    keeper, similarity, rule = np.empty(len(places), np.int32), np.empty(len(places)), np.zeros(len(places), np.uint8)
    compared, untried = kernels.walk(
        np.concatenate([begin, [len(pairs)]]), bucket.astype(np.int32), room, kind, places < table.published, address, size, threshold,
        keeper, similarity, rule,
    )  # fmt: skip
    some = np.flatnonzero(keeper >= 0)
    return places[some], places[keeper[some]], similarity[some], rule[some], compared, untried


class Shingles:
    """The sets that dedup.shingle_rank wrote, mapped: shingles-PPPPP.bin (uint64, concatenated), sizes-PPPPP.npy, picks-PPPPP.npy (their rows)."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._maps: dict[int, mmap.mmap] = {}
        self._index: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def __call__(self, part: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)  # of what was looked at nothing stays in memory
        address, size = np.empty(len(part), np.uint64), np.empty(len(part), np.int64)
        order = np.argsort(part, kind="stable")
        starts, counts = groups(part[order].astype(np.uint64))
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            some = order[start : start + count]
            picks, begin, base = self._open(int(part[some[0]]))
            at = np.searchsorted(picks, row[some])
            address[some] = np.uint64(base) + np.uint64(8) * begin[at].astype(np.uint64)
            size[some] = begin[at + 1] - begin[at]
        return address, size

    def _open(self, part: int) -> tuple[np.ndarray, np.ndarray, int]:
        if part not in self._index:
            sizes = np.load(self._directory / f"sizes-{part:05d}.npy")
            with open(self._directory / f"shingles-{part:05d}.bin", "rb") as file:
                self._maps[part] = mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            base = np.frombuffer(mapped, np.uint8).ctypes.data
            self._index[part] = np.load(self._directory / f"picks-{part:05d}.npy"), np.concatenate([[0], np.cumsum(sizes)]), base
        return self._index[part]


def _codes(columns: Sequence[pa.Array], rank: dict[str, int], origins: dict[tuple[int, str, str, str], int]) -> np.ndarray:
    """Number of each row's (rank of source, source, snapshot, file); new ones are added to `origins`."""
    encoded = [column.fill_null("").dictionary_encode() for column in columns]
    shape = tuple(len(one.dictionary) for one in encoded)
    different, number = np.unique(np.ravel_multi_index([one.indices.to_numpy() for one in encoded], shape), return_inverse=True)
    found = []
    for indices in zip(*np.unravel_index(different, shape), strict=True):
        source, snapshot, file = (one.dictionary[int(at)].as_py() for one, at in zip(encoded, indices, strict=True))
        found.append(origins.setdefault((rank.get(source, len(rank)), source, snapshot, file), len(origins)))
    return np.array(found, np.int32)[number]


def _halves(digits: pa.Array, file: Path) -> np.ndarray:
    """32 hex digits each -> uint64[n, 2], which sort as the text does."""
    try:
        return np.frombuffer(bytes.fromhex("".join(digits.to_pylist())), ">u8").astype(np.uint64).reshape(len(digits), 2)
    except (TypeError, ValueError) as error:
        raise DamageError(f"an id or a text_hash in {file} is not 32 hex digits ({error}). Make that part anew.") from None


def _first(hashes: np.ndarray, alone: np.ndarray | None = None) -> np.ndarray:
    """For each row of uint64[n, 2] the index of the first equal row; its own where it is `alone`."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0])).astype(np.int32)  # stable: equal rows stay in order
    ordered = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), np.int32)
    found[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order), dtype=np.int32), 0))]
    return found if alone is None else np.where(alone, np.arange(len(order), dtype=np.int32), found)


def _older(addresses: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Of documents in order those that are new and have an address of which another new one is newer, or as new and earlier in the order."""
    order = np.lexsort((-addresses["date"], addresses["low"], addresses["high"], ~fresh))
    ordered = addresses[order]
    older = np.zeros(len(order), bool)
    older[1:] = (ordered["high"][1:] == ordered["high"][:-1]) & (ordered["low"][1:] == ordered["low"][:-1])
    found = np.empty(len(order), bool)
    found[order] = older & fresh[order] & (ordered["date"] >= 0)
    return found


def _chunks(counts: np.ndarray) -> Iterator[slice]:
    """Successive parts of some RUN documents."""
    start, total = 0, 0
    for number, count in enumerate(counts.tolist()):
        total += count
        if total >= RUN or number == len(counts) - 1:
            yield slice(start, number + 1)
            start, total = number + 1, 0
