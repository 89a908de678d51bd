"""What the compiled cutter (kernels.py) knows of Unicode and of Chinese: tables over code points, built once a machine and kept beside the compiled code.

    tables = unicode_tables()
    tables.raw[ord("Ｔ")]       ord("t") | WORD: one code point stands for itself normalised (NFKC, then case-folded)
    tables.raw[ord("½")]       place in tables.pool | POOL: it becomes several
    tables.raw[0x301]          STOP: what it becomes depends on its neighbours, so the text is normalised by Python first
    tables.simple[ord("圖")]    ord("图"); PHRASES where a phrase of OpenCC's begins with the character

Source of all: unicodedata and `str` of the running Python, and the dictionaries of the OpenCC that is installed.
"""

import importlib.metadata
import os
import subprocess
import tempfile
import unicodedata
import zipfile
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import xxhash

from tasks.corpus.textnorm import CJK, is_cjk, simplify

POINT = 0x1FFFFF
"""Bits of an entry that hold a code point, or a place in the pool."""
SPACE, WORD, CHARACTER, POOL, STOP, TURNS = 1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 25, 1 << 26
"""What it is: whitespace (str.split), a letter or digit ([^\\W_]), a CJK character; how the rest of the entry is to be read; TURNS: `simple` knows it."""
PHRASES = 1 << 31
_SIZE = 0x110000
_CHANGING = (*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE0200))
"""All code points that normalisation could change: the rest are Han ideographs, Hangul syllables, private or not assigned."""


@dataclass(frozen=True)
class Tables:
    """Arrays over code points, and the lists that they point into."""

    raw: np.ndarray
    """uint32[0x110000]: what a code point of raw text becomes."""
    plain: np.ndarray
    """The same for text that Python has normalised already: each becomes itself."""
    pool: np.ndarray
    """uint32: length, then that many entries like those of `raw`."""
    simple: np.ndarray
    """uint32[0x110000]: the Simplified character, 0 where it is the same; with PHRASES the place in `phrases` of the list of its phrases."""
    same: np.ndarray
    """The same for text that is Simplified already: all 0."""
    phrases: np.ndarray
    """uint32: the lists. Single conversion, number of phrases; each: length, characters, Simplified characters; in OpenCC's order of preference."""


@cache
def unicode_tables() -> Tables:
    """The tables of this process: kept ones where Unicode, OpenCC and this code are the same, for building them takes half a second."""
    here = Path(__file__)
    made_of = [unicodedata.unidata_version, np.__version__, importlib.metadata.version("opencc"), here.read_text("utf-8")]
    made_of.append(here.with_name("textnorm.py").read_text("utf-8"))
    kept = here.parent / "__pycache__" / f"codepoints-{xxhash.xxh3_64_hexdigest(chr(0).join(made_of).encode())}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile), np.load(kept) as arrays:
        return Tables(*(arrays[f"arr_{number}"] for number in range(len(fields(Tables)))))
    tables = _build()
    with suppress(OSError):  # where nobody may write, every process builds them
        kept.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            np.savez(file, *(getattr(tables, field.name) for field in fields(Tables)))
        os.chmod(file.name, 0o644)
        os.replace(file.name, kept)
    return tables


def _build() -> Tables:
    kinds = _kinds()
    simple, phrases = _simple()
    kinds[simple > 0] |= TURNS
    points = np.arange(_SIZE, dtype=np.uint32)
    plain = points | kinds
    raw, pool = plain.copy(), [np.uint32(0)]
    characters = [chr(point) for point in _CHANGING if chr(point) != "\n"]
    joined = "\n".join(characters)  # one call in C for all; nothing combines with a line feed
    folded = unicodedata.normalize("NFKC", joined).casefold().split("\n")
    decomposed = unicodedata.normalize("NFKD", joined).split("\n")
    second = _second()
    for character, made, parts in zip(characters, folded, decomposed, strict=True):
        if unicodedata.combining(parts[0]) or parts[0] in second:
            raw[ord(character)] = STOP
        elif len(made) == 1:
            raw[ord(character)] = plain[ord(made)]
        else:
            raw[ord(character)] = len(pool) | POOL
            pool += [np.uint32(len(made)), *(plain[ord(one)] for one in made)]
    raw[(raw & SPACE) > 0] = ord(" ") | SPACE
    plain[(plain & SPACE) > 0] = ord(" ") | SPACE
    if phrases is None:
        raw[[point for point in np.flatnonzero(kinds & CHARACTER).tolist() if is_cjk(chr(point))]] = STOP
    return Tables(raw, plain, np.array(pool, np.uint32), simple, np.zeros(_SIZE, np.uint32), np.array(phrases or [0], np.uint32))


def _kinds() -> np.ndarray:
    """uint32[0x110000]: SPACE, WORD or CHARACTER of each code point as it stands."""
    signs = np.arange(_SIZE, dtype=np.uint32).view("U1")
    kinds = np.zeros(_SIZE, np.uint32)
    kinds[np.strings.isspace(signs)] = SPACE
    kinds[np.strings.isalnum(signs)] = WORD
    kinds[[ord(one) for run in CJK.findall("".join(map(chr, range(0x3000, 0x32400)))) for one in run]] = CHARACTER
    return kinds


def _second() -> set[str]:
    """Characters that may melt into one before them: second in a canonical decomposition, and the vowels and finals of Hangul."""
    pairs = (unicodedata.decomposition(chr(point)).split() for point in _CHANGING)
    found = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")}
    return found | {chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}


def _simple() -> tuple[np.ndarray, list[int] | None]:
    """OpenCC's t2s as arrays: its conversion of single characters, and its phrases; None where OpenCC came without the tool that lists them."""
    simple = np.zeros(_SIZE, np.uint32)
    han = [chr(point) for point in (*range(0x3400, 0xFB00), *range(0x20000, 0x323B0)) if is_cjk(chr(point))]
    for before, after in zip(han, simplify("\n".join(han)).split("\n"), strict=True):
        if before != after:
            simple[ord(before)] = ord(after)
    listed: dict[str, list[str]] = {}
    phrases = _phrases()
    for phrase in phrases or ():
        listed.setdefault(phrase[0], []).append(phrase)
    lists = [0]
    for first, some in listed.items():
        single = int(simple[ord(first)]) or ord(first)
        simple[ord(first)] = len(lists) | PHRASES
        lists += [single, len(some)]
        for phrase in sorted(some, key=len, reverse=True):
            lists += [len(phrase), *map(ord, phrase), *map(ord, simplify(phrase))]
    return simple, None if phrases is None else lists


def _phrases() -> list[str] | None:
    """Phrases that OpenCC's t2s converts as a whole, by the tool that its package holds."""
    import opencc

    home = Path(opencc.__file__).parent / "clib"
    tool, dictionary = home / "bin" / "opencc_dict", home / "share" / "opencc" / "TSPhrases.ocd2"
    if not tool.exists() or not dictionary.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "phrases.txt"
        subprocess.run([tool, "-i", dictionary, "-f", "ocd2", "-o", text, "-t", "text"], check=True, capture_output=True)
        return [line.split("\t")[0] for line in text.read_text("utf-8").splitlines()]
