"""Which documents stay: buckets of equal band keys, and the walk that gives every removal a keeper.

    table = Documents.load(files, previous, source_order)     all documents in the stated order, from signatures-*.parquet
    buckets = Buckets.build(table, 25, limit, scratch)        who shares a band key with whom
    decide(table, buckets, sets, .8)                          keeper and similarity of each removed document

Memory grows by some 600 bytes a document (measured at 400,000, mapped pages included), never by texts; keys and bucket numbers lie on disk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.corpus import minhash

IDENTITY = ["id", "text_hash", "source", "snapshot", "origin_file", "origin_offset"]
"""Columns of a signature file beside its keys."""
EXACT, NEAR = "exact", "near"
"""Rules in duplicates- parts: equal text_hash, or similarity of shingles."""
Sets = Callable[[int, int], np.ndarray]
"""The shingles' hashes (minhash.hashes) of a part's row."""


def key_column(band: int) -> str:
    """Name of a band's column in a signature file."""
    return f"band-{band:03d}"


@dataclass(frozen=True)
class Documents:
    """All documents in order: previous ones first, then by source, snapshot, file, place in it, id. Arrays, one entry a document."""

    previous: np.ndarray
    """Whether it belongs to a corpus that is published already."""
    part: np.ndarray
    """Number of the part it lies in."""
    row: np.ndarray
    """Row in that part."""
    id: np.ndarray
    """uint64[n, 2], high and low half."""
    text_hash: np.ndarray
    """uint64[n, 2]."""
    first: np.ndarray
    """Place of the first document with the same text_hash, its own where it is that."""
    files: Sequence[Path]

    @classmethod
    def load(cls, files: Sequence[Path], previous: Sequence[bool], source_order: Sequence[str]) -> "Documents":
        """Read the identity columns of all signature files (file n: part n) and sort."""
        rank = {source: number for number, source in enumerate(source_order)}
        places: dict[tuple[int, str, str, str], int] = {}
        code, ids, hashes, offsets = [], [], [], []
        for file in files:
            table = pq.read_table(file, columns=IDENTITY)
            origin = zip(*(table[name].to_pylist() for name in ("source", "snapshot", "origin_file")), strict=True)
            code.append(np.array([places.setdefault((rank.get(o[0], len(rank)), *o), len(places)) for o in origin], np.int64))
            ids.append(_halves(table["id"].to_pylist()))
            hashes.append(_halves(table["text_hash"].to_pylist()))
            offsets.append(table["origin_offset"].to_numpy())
        ordered = np.empty(len(places), np.int64)
        ordered[[places[place] for place in sorted(places)]] = np.arange(len(places))
        counts = [len(some) for some in code]
        id_, hash_, published = np.concatenate(ids), np.concatenate(hashes), np.repeat(np.array(previous, bool), counts)
        order = np.lexsort((id_[:, 1], id_[:, 0], np.concatenate(offsets), ordered[np.concatenate(code)], ~published))
        part = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        return cls(published[order], part[order], row[order], id_[order], hash_[order], _first(hash_[order]), files)

    def keys(self, band: int) -> np.ndarray:
        """uint64, one band's keys in order."""
        stored = [pq.read_table(file, columns=[key_column(band)])[key_column(band)].to_numpy() for file in self.files]
        starts = np.cumsum([0, *(len(some) for some in stored[:-1])])
        return np.concatenate(stored)[starts[self.part] + self.row]


@dataclass(frozen=True)
class Buckets:
    """Sets of two or more different texts with one band key. A bucket has room for `limit` keepers, the first in the order."""

    of: np.ndarray
    """int64[documents, bands] on disk: number of the bucket, -1 where a document is alone in a band or is a later copy of a text."""
    start: np.ndarray
    """Where a bucket's room begins, int64[buckets + 1]."""
    limit: int

    @classmethod
    def build(cls, table: Documents, bands: int, limit: int, scratch: Path) -> "Buckets":
        """Sort the keys of one band after the other."""
        size = len(table.part)
        of = np.lib.format.open_memmap(scratch / "buckets.npy", "w+", np.int64, (size, bands))
        texts = np.flatnonzero(table.first == np.arange(size))
        rooms, made = [], 0
        for band in range(bands):
            _, key, members = np.unique(table.keys(band)[texts], return_inverse=True, return_counts=True)
            number = np.cumsum(members > 1) - 1 + made
            of[:, band] = -1
            of[texts, band] = np.where(members > 1, number, -1)[key]
            rooms.append(np.minimum(members[members > 1], limit))
            made += len(rooms[-1])
        return cls(of, np.concatenate([[0], np.cumsum(np.concatenate(rooms))]), limit)

    def shared(self, rows: int = 65_536) -> Iterator[tuple[int, list[int]]]:
        """(place, buckets) of the documents that are in a bucket, in order, with a bounded slice of `of` in memory."""
        for at in range(0, len(self.of), rows):
            block = np.asarray(self.of[at : at + rows])
            for place in np.flatnonzero((block >= 0).any(axis=1)).tolist():
                yield at + place, block[place][block[place] >= 0].tolist()

    def picks(self, table: Documents) -> list[np.ndarray]:
        """Rows of each part, ascending, whose shingles `decide` may ask for."""
        shared = np.fromiter((place for place, _ in self.shared()), np.int64)
        part, row = table.part[shared], table.row[shared]
        order = np.lexsort((row, part))
        ends = np.searchsorted(part[order], np.arange(len(table.files) + 1))
        return [row[order][ends[number] : ends[number + 1]] for number in range(len(table.files))]


@dataclass(frozen=True)
class Decisions:
    """What `decide` found, one entry a document in order."""

    keeper: np.ndarray
    """Place of the document it goes for, -1 where it stays."""
    similarity: np.ndarray
    """Jaccard similarity with the keeper, 0 where it stays."""
    comparisons: int
    """Pairs of sets compared."""
    untried: int
    """Documents that stay although one of their buckets had more keepers than its limit."""

    def of_part(self, table: Documents, part: int) -> pa.Table:
        """Removals of one part by row: row, kept_id, similarity, rule, reason."""
        places = np.flatnonzero((table.part == part) & (self.keeper >= 0))
        places = places[np.argsort(table.row[places])]
        keeper = self.keeper[places]
        exact = (table.text_hash[places] == table.text_hash[keeper]).all(axis=1)
        reason = np.where(table.previous[keeper], "duplicate_of_previous", np.where(exact, "exact_duplicate", "near_duplicate"))
        return pa.table(
            {
                "row": pa.array(table.row[places], pa.int32()),
                "kept_id": pa.array([f"{high:016x}{low:016x}" for high, low in table.id[keeper].tolist()], pa.string()),
                "similarity": pa.array(self.similarity[places], pa.float64()),
                "rule": pa.array(np.where(exact, EXACT, NEAR).tolist(), pa.string()),
                "reason": pa.array(reason.tolist(), pa.string()),
            }
        )


def decide(table: Documents, buckets: Buckets, sets: Sets, threshold: float) -> Decisions:
    """Walk the documents in order: each goes for the first keeper in its buckets that is similar enough, else it becomes a keeper itself.

    Later copies of a text follow its first: they go for it, or for what it went for.
    """
    size = len(table.part)
    keeper, similarity = np.full(size, -1, np.int64), np.zeros(size)
    held, filled = np.empty(buckets.start[-1], np.int64), np.zeros(len(buckets.start) - 1, np.int64)
    over = np.zeros(len(filled), bool)
    start = buckets.start
    comparisons = untried = 0
    for place, mine in buckets.shared():
        if not table.previous[place]:
            others = sorted({other for b in mine for other in held[start[b] : start[b] + filled[b]].tolist()})
            own = sets(int(table.part[place]), int(table.row[place])) if others else np.empty(0, np.uint64)
            for other in others:
                comparisons += 1
                found = minhash.jaccard(own, sets(int(table.part[other]), int(table.row[other])), threshold)
                if found >= threshold:
                    keeper[place], similarity[place] = other, found
                    break
            else:
                untried += bool(over[mine].any())
        if keeper[place] < 0:
            for b in mine:
                if filled[b] < buckets.limit:
                    held[start[b] + filled[b]] = place
                    filled[b] += 1
                else:
                    over[b] = True
    copies = np.flatnonzero((table.first != np.arange(size)) & ~table.previous)
    first = table.first[copies]
    gone = keeper[first] >= 0
    keeper[copies] = np.where(gone, keeper[first], first)
    similarity[copies] = np.where(gone, similarity[first], 1.0)
    return Decisions(keeper, similarity, comparisons, untried)


def _halves(digits: list[str]) -> np.ndarray:
    """32 hex digits each -> uint64[n, 2], which sort as the text does."""
    return np.frombuffer(bytes.fromhex("".join(digits)), ">u8").astype(np.uint64).reshape(-1, 2)


def _first(hashes: np.ndarray) -> np.ndarray:
    """For each row of uint64[n, 2] the index of the first equal row."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return found
