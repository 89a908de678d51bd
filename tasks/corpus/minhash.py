"""The signature contract: text -> shingles -> 128 minima -> band keys; and the true similarity that a removal needs.

    signatures(texts, 128, 1)     uint32[n, 128], equal to datasketch.MinHash bit for bit
    bands(signatures, 25, 5)      uint64[n, 25]; two texts are candidates where one key is equal
    jaccard(*hashes(texts))       of two texts: shared shingles / shingles of either

Texts are Arrow's strings; kernels.py does the work without a Python object a text, but for texts of one shingle and those whose code points
melt into one another (combining marks): these are normalised here first. Importing the kernels takes half a second, so only who signs does it.

How a text is cut. It is normalised (NFKC, case-folded, whitespace collapsed), then Chinese is made Simplified. From it come two sequences:
- characters: all CJK characters (Han and kana, which are written without spaces) in order, everything between them left out;
- words: what is left between whitespace once every CJK run is replaced by a space; pieces without a letter or digit are left out.
Every five successive characters make a shingle, and so do every five successive words, joined by one space; the set holds both kinds.
A text with fewer than five of each is one shingle, itself whole. So a line break or a comma inside Chinese changes nothing, and no text is without
a shingle. Changing any of this, or a parameter of `header`, makes old signatures useless: raise HEADER_VERSION.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from model.errors import InputError
from tasks.corpus.codepoints import unicode_tables
from tasks.corpus.textnorm import CJK, normalise, simplify

HEADER_VERSION = 1
SHINGLE = 5
"""Words or characters in a shingle."""
LONGEST = 1 << 30
"""Most bytes of a text."""
SECRET = np.array(
    [
        0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 0xDB979083E96DD4DE, 0x1F67B3B7A4A44072, 0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82,
        0x8E2443F7744608B8, 0x4C263A81E69035E0, 0xCB00C391BB52283C, 0xA32E531B8B65D088, 0x4EF90DA297486471, 0xD8ACDEA946EF1938,
        0x3F349CE33F76FAA8, 0x1D4F0BC7C7BBDCF9, 0x3159B4CD4BE0518A, 0x647378D9C97E9FC8,
    ],
    np.uint64,
)  # fmt: skip
"""The beginning of XXH3's default secret, of its specification."""


def header(permutations: int, seed: int, bands: int, rows: int) -> dict[str, Any]:
    """All parameters of the contract: signatures and band keys compare only where these are equal."""
    return {
        "version": HEADER_VERSION, "text": "NFKC casefold whitespace opencc-t2s", "shingle_words": SHINGLE, "shingle_characters": SHINGLE,
        "hash": "xxh32 seed 0", "scheme": "datasketch affine32", "permutations": permutations, "seed": seed, "bands": bands, "rows": rows,
        "band_key": "xxh3_64 of little-endian uint32",
    }  # fmt: skip


def signatures(texts: pa.Array, permutations: int, seed: int) -> np.ndarray:
    """MinHash of each text's shingles, uint32[n, permutations]: datasketch 2's scheme affine32 over xxh32 (seed 0) of a shingle's UTF-8."""
    from tasks.corpus import kernels

    a, b = _permutations(permutations, seed)
    tables = unicode_tables()
    data, offsets = _buffers(texts)
    made = np.empty((len(texts), permutations), np.uint32)
    left = np.flatnonzero(kernels.sign(data, offsets, tables.raw, tables.pool, tables.simple, tables.phrases, False, a, b, made))
    if len(left):
        rest = np.empty((len(left), permutations), np.uint32)
        kernels.sign(*_normalised(data, offsets, left), tables.plain, tables.pool, tables.same, tables.phrases, True, a, b, rest)
        made[left] = rest
    return made


def bands(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One key a band, uint64[n, bands]: xxh3-64 of that band's rows, little-endian; bands × rows ≤ permutations, what is left over is unused."""
    from tasks.corpus import kernels

    size, keys = 4 * rows, np.empty(len(signatures) * bands, np.uint64)
    used = np.ascontiguousarray(signatures[:, : bands * rows], "<u4").view(np.uint8).reshape(-1)
    if 16 < size <= 128:
        kernels.xxh3(used, size, SECRET, keys)
    else:  # XXH3 is another function at other lengths
        keys[:] = [xxhash.xxh3_64_intdigest(used[at : at + size].tobytes()) for at in range(0, len(used), size)]
    return keys.reshape(-1, bands)


def hashes(texts: pa.Array) -> list[np.ndarray]:
    """Each text's shingles as an ascending uint64 array of 64-bit hashes: small enough to keep, and exact but for a collision.

    The hash is xxh64; a pair of texts with n shingles has a chance of n²/2⁶⁴ for one.
    """
    from tasks.corpus import kernels

    tables = unicode_tables()
    data, offsets = _buffers(texts)
    left, begins, found = kernels.digest(data, offsets, tables.raw, tables.pool, tables.simple, tables.phrases, False)
    sets = _ascending(begins, found)
    late = np.flatnonzero(left)
    if len(late):
        batch = _normalised(data, offsets, late)
        _, begins, found = kernels.digest(*batch, tables.plain, tables.pool, tables.same, tables.phrases, True)
        for number, made in zip(late.tolist(), _ascending(begins, found), strict=True):
            sets[number] = made
    return sets


def jaccard(a: np.ndarray, b: np.ndarray, least: float = 0.0) -> float:
    """Jaccard similarity of two sets given as `hashes`. Where sizes alone keep it below `least`, 0.0 without comparing."""
    from tasks.corpus import kernels

    if min(len(a), len(b)) < least * max(len(a), len(b)):
        return 0.0
    both = kernels.shared(a, b)
    return both / (len(a) + len(b) - both)


@cache
def _permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and summands, uint32 each: those of datasketch's affine32, whose import takes a second."""
    chosen = np.random.RandomState(seed)
    factors = chosen.randint(0, 1 << 31, count, np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, chosen.randint(0, 1 << 32, count, np.uint32)


def _ascending(begins: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """The set of values[begins[n]:begins[n + 1]] for each n, made in place; numpy's unique hashes first, which takes five times as long."""
    from tasks.corpus import kernels

    for start, end in pairwise(begins.tolist()):
        values[start:end].sort()
    kernels.squeeze(begins, values)
    return [values[start:end] for start, end in pairwise(begins.tolist())]


def _buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of a string array, and n + 1 places in them (int64). Raises InputError for a text over LONGEST bytes."""
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers() if len(texts) else (None, None, None)
    if offsets is None:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    places = np.frombuffer(offsets, width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    if (longest := int(np.diff(places).max())) > LONGEST:
        raise InputError(f"a text of {longest:,} bytes is too long to dedup; {LONGEST:,} are allowed. Cut it into documents.")
    return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), places


def _normalised(data: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of some rows, normalised and simplified by Python."""
    made = []
    for row in rows.tolist():
        text = normalise(data[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8", "surrogatepass"))
        made.append((simplify(text) if CJK.search(text) else text).encode("utf-8", "surrogatepass"))
    return np.frombuffer(b"".join(made), np.uint8), np.cumsum([0, *map(len, made)], dtype=np.int64)
