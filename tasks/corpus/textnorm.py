"""Normal forms of text: what counts as the same text, and Chinese script.

normalise("Ｔｈｅ  Cat\\n") == "the cat"        (identity of texts, shingles)
simplify("軟體") == "软体"                      (dedup and decontamination see one script)
script("圖書館") == "Hant"
"""

import re
import unicodedata
from functools import cache

CHINESE = ("zh", "yue", "wuu", "lzh")
"""Languages written in Chinese characters alone."""
CJK = re.compile("[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
"""Runs of Han ideographs (is_cjk), their iteration marks and 〇, hiragana and katakana: what is cut by characters."""

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def normalise(text: str) -> str:
    """NFKC, case-folded, every run of whitespace one space, ends trimmed: the signature contract's text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_cjk(character: str) -> bool:
    """Whether a character is a Han ideograph (unified, extensions A–I, compatibility)."""
    point = ord(character)
    return 0x4E00 <= point <= 0x9FFF or 0x3400 <= point <= 0x4DBF or 0x20000 <= point <= 0x323AF or 0xF900 <= point <= 0xFAFF


@cache
def _converter(scheme: str):  # type: ignore[no-untyped-def]
    from opencc import OpenCC

    return OpenCC(scheme)


def simplify(text: str) -> str:
    """Traditional Chinese characters made Simplified by OpenCC (t2s); other text unchanged."""
    return _converter("t2s").convert(text) if any(is_cjk(c) for c in text) else text


def script(text: str) -> str:
    """Hans or Hant by which characters OpenCC would change, '' where a text has no Han characters.

    Only characters that differ between the scripts vote; a tie (none differ) is Hans, the more frequent script on the web.
    """
    head = text[:4000]
    if not _HAN.search(head):
        return ""
    traditional, simplified = _one_script_only()
    return "Hant" if sum(map(traditional.__contains__, head)) > sum(map(simplified.__contains__, head)) else "Hans"


@cache
def _one_script_only() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that OpenCC alone makes Simplified, and those that it makes Traditional."""
    han = [chr(point) for point in (*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x323B0))]
    made = (_converter(scheme).convert("\n".join(han)).split("\n") for scheme in ("t2s", "s2t"))
    traditional, simplified = (frozenset(a for a, b in zip(han, to, strict=True) if a != b) for to in made)
    return traditional, simplified
