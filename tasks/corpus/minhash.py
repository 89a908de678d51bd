"""The signature contract: text -> shingles -> 128 minima -> band keys; and the true similarity that a removal needs.

    shingles("The cat sat on the mat.")       {"the cat sat on the", "cat sat on the mat."}
    signature(shingles, 128, 1)               uint32[128], equal to datasketch.MinHash bit for bit
    bands(signature, 25, 5)                   uint64[25]; two texts are candidates where one key is equal
    jaccard(hashes(a), hashes(b))             shared shingles / shingles of either

How a text is cut. It is normalised (NFKC, case-folded, whitespace collapsed), then Chinese is made Simplified. From it come two sequences:
- characters: all CJK characters (Han and kana, which are written without spaces) in order, everything between them left out;
- words: what is left between whitespace once every CJK run is replaced by a space; pieces without a letter or digit are left out.
Every five successive characters make a shingle, and so do every five successive words, joined by one space; the set holds both kinds.
A text with fewer than five of each is one shingle, itself whole. So a line break or a comma inside Chinese changes nothing, and no text is without
a shingle. Changing any of this, or a parameter of `header`, makes old signatures useless: raise HEADER_VERSION.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tasks.corpus.textnorm import normalise, simplify

if TYPE_CHECKING:
    from datasketch import MinHash

HEADER_VERSION = 1
SHINGLE = 5
"""Words or characters in a shingle."""
CJK = re.compile("[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
"""Runs of Han ideographs (textnorm.is_cjk), their iteration marks and 〇, hiragana and katakana."""
CHUNK = 4096
"""Shingles permuted at once: the matrix of a book would otherwise take gigabytes."""
_WORD = re.compile(r"[^\W_]")


def header(permutations: int, seed: int, bands: int, rows: int) -> dict[str, Any]:
    """All parameters of the contract: signatures and band keys compare only where these are equal."""
    return {
        "version": HEADER_VERSION, "text": "NFKC casefold whitespace opencc-t2s", "shingle_words": SHINGLE, "shingle_characters": SHINGLE,
        "hash": "xxh32 seed 0", "scheme": "datasketch affine32", "permutations": permutations, "seed": seed, "bands": bands, "rows": rows,
        "band_key": "xxh3_64 of little-endian uint32",
    }  # fmt: skip


def shingles(text: str) -> set[str]:
    """The shingles of a text, at least one."""
    text = normalise(text)
    found: set[str] = set()
    characters, rest = "", text
    if CJK.search(text):  # one scan in C: simplify() and findall would cost ordinary text half its time
        text = simplify(text)
        characters, rest = "".join(CJK.findall(text)), CJK.sub(" ", text)
    words = [word for word in rest.split() if _WORD.search(word)]
    found.update(" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1))
    found.update(characters[at : at + SHINGLE] for at in range(len(characters) - SHINGLE + 1))
    return found or {text}


def signature(shingles: set[str], permutations: int, seed: int) -> np.ndarray:
    """MinHash of a set, uint32[permutations]: datasketch 2's scheme affine32 over xxh32 (seed 0) of each shingle's UTF-8."""
    made = _empty(permutations, seed).copy()
    values = [shingle.encode("utf-8", "surrogatepass") for shingle in shingles]
    for at in range(0, len(values), CHUNK):
        made.update_batch(values[at : at + CHUNK])
    return made.hashvalues


@cache
def _empty(permutations: int, seed: int) -> "MinHash":
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=seed, scheme="affine32", hashfunc=xxhash.xxh32_intdigest)


def bands(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One key a band, uint64[bands]: xxh3-64 of that band's rows, little-endian; bands × rows ≤ permutations, what is left over is unused."""
    raw = signature.astype("<u4", copy=False).tobytes()
    size = 4 * rows
    return np.array([xxhash.xxh3_64_intdigest(raw[size * band : size * (band + 1)]) for band in range(bands)], dtype=np.uint64)


def hashes(shingles: set[str]) -> np.ndarray:
    """The set as a sorted uint64 array of xxh3-64 digests: small enough to keep, and exact but for a collision (n²/2⁶⁴ of a pair with n shingles)."""
    return np.unique(
        np.array([xxhash.xxh3_64_intdigest(shingle.encode("utf-8", "surrogatepass")) for shingle in shingles], dtype=np.uint64)
    )


def jaccard(a: np.ndarray, b: np.ndarray, least: float = 0.0) -> float:
    """Jaccard similarity of two sets given as `hashes`. Where sizes alone keep it below `least`, 0.0 without comparing."""
    if min(len(a), len(b)) < least * max(len(a), len(b)):
        return 0.0
    shared = np.intersect1d(a, b, assume_unique=True).size
    return float(shared / (len(a) + len(b) - shared))
