"""Lines or paragraphs that many documents have in common: found among the documents that stay, and cut from all but the first, or from all.

    piece_rank(…)                          pieces-RRRRR.npy of one part: hash and document of each piece of those that stay
    gather(paths, 3, scratch)              repeated.npy: of each piece that more than 3 documents have, its hash and the first of them
    cut(text, "line", 40, found, place, …)    what is left of a text, and how many pieces went

A piece is a line, or a paragraph (between empty lines), of at least some characters once normalised: case, width and spacing do not count. Its hash is
xxh3-64: among a million different pieces one is taken for one of a million repeated ones with a chance of one in eighteen million.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from tasks.corpus.document import PartWriter, read_batches, settle
from tasks.corpus.keepers import Runs, groups
from tasks.corpus.textnorm import normalise

Unit = Literal["off", "line", "paragraph"]
BETWEEN = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n[^\S\n]*(?:\n[^\S\n]*)+)")}
FOUND = np.dtype([("hash", "<u8"), ("place", "<i4")])


def pieces(text: str, unit: Unit, characters: int) -> tuple[list[str], np.ndarray]:
    """The pieces at even places, what lies between them at odd ones; and the hashes of the pieces, 0 of one that is too short."""
    found = BETWEEN[unit].split(text)
    hashes = np.zeros(len(found) // 2 + 1, np.uint64)
    for number, piece in enumerate(found[::2]):
        normal = normalise(piece)
        if len(normal) >= characters:
            hashes[number] = xxhash.xxh3_64_intdigest(normal.encode("utf-8", "surrogatepass")) or 1
    return found, hashes


def piece_rank(config: Any, item: dict[str, Any], out: PartWriter, batches: Iterable[pa.RecordBatch] | None = None) -> None:
    """Write pieces-RRRRR.npy of one part, hashes ascending, of the rows that `stays` says stay; `places`: their documents in the order of all."""
    stays, places, start = np.load(item["stays"]), np.load(item["places"]), 0
    made = [np.empty(0, FOUND)]
    for batch in batches if batches is not None else read_batches([Path(item["path"])], ["text"]):
        some = np.flatnonzero(stays[start : start + len(batch)])
        for row, text in zip(some.tolist(), batch["text"].take(pa.array(some)).to_pylist(), strict=True):
            hashes = np.unique(pieces(text, config.repeated, config.repeated_characters)[1])
            one = np.empty(len(hashes), FOUND)
            one["hash"], one["place"] = hashes, places[start + row]
            made.append(one[hashes != 0])
        start += len(batch)
        out.beat(start)
    path = out.directory / f"pieces-{out.rank:05d}.npy"
    with open(path.with_name(path.name + ".tmp"), "wb") as file:
        np.save(file, np.sort(np.concatenate(made), order="hash"))
    settle(path.with_name(path.name + ".tmp"), path)


def gather(paths: Sequence[Path], documents: int, scratch: Path) -> Path:
    """Merge what piece_rank wrote to repeated.npy (FOUND, hashes ascending): the pieces of more than `documents` documents, and their first document."""
    runs = Runs(scratch, "pieces", sum(len(np.load(path, mmap_mode="r")) for path in paths))
    for path in paths:
        made = np.load(path)
        runs.add(made["hash"], made["place"])
    found = [np.empty(0, FOUND)]
    for hashes, places in runs.merged():
        starts, counts = groups(hashes)
        if len(starts):
            some = np.empty(len(starts), FOUND)
            some["hash"], some["place"] = hashes[starts], np.minimum.reduceat(places, starts)
            found.append(some[counts > documents])
    path = scratch / "repeated.npy"
    np.save(path, np.concatenate(found))
    return path


def cut(text: str, unit: Unit, characters: int, found: np.ndarray, place: int, everywhere: bool) -> tuple[str, int]:
    """What is left of the text of the document at `place`, and how many pieces went; `everywhere`: from the first that has one too."""
    some, hashes = pieces(text, unit, characters)
    at = np.searchsorted(found["hash"], hashes)
    known = at < len(found)
    at[~known] = 0
    gone = known & (hashes == found["hash"][at]) & (everywhere | (found["place"][at] != place)) if len(found) else known
    if not gone.any():
        return text, 0
    kept: list[str] = []
    for number in np.flatnonzero(~gone).tolist():
        kept += some[2 * number - 1 : 2 * number + 1] if kept else some[2 * number : 2 * number + 1]
    return "".join(kept), int(gone.sum())
