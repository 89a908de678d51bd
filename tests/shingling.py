"""The signature contract in plain Python, written from the words of tasks/corpus/minhash.py: what the compiled code is held against."""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from tasks.corpus.textnorm import normalise, simplify

CJK = re.compile("[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
WORD = re.compile(r"[^\W_]")


def shingles(text: str) -> set[str]:
    """The shingles of a text, at least one."""
    text = normalise(text)
    text = simplify(text) if CJK.search(text) else text
    words = [word for word in CJK.sub(" ", text).split() if WORD.search(word)]
    characters = "".join(CJK.findall(text))
    found = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
    return (found | {characters[at : at + 5] for at in range(len(characters) - 4)}) or {text}


def encoded(text: str) -> set[bytes]:
    """The same as UTF-8."""
    return {shingle.encode("utf-8", "surrogatepass") for shingle in shingles(text)}


def signature(text: str, permutations: int = 128, seed: int = 1) -> np.ndarray:
    """By datasketch."""
    from datasketch import MinHash

    [made] = MinHash.bulk([encoded(text)], num_perm=permutations, seed=seed, scheme="affine32", hashfunc=xxhash.xxh32_intdigest)
    return made.hashvalues


def similarity(a: str, b: str) -> float:
    """Jaccard's."""
    of_a, of_b = shingles(a), shingles(b)
    return len(of_a & of_b) / len(of_a | of_b)


def arrow(texts: Iterable[str]) -> pa.Array:
    """A string array that may hold lone surrogates, which Arrow's own constructors refuse."""
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    places = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(raw), [None, pa.py_buffer(places.tobytes()), pa.py_buffer(b"".join(raw))])
