"""One HTML page to its main text: bytes -> charset -> bounded tree (lexbor) -> main text (main_text.py).

    extract(body, "gb2312", limits)  ->  {"text": …, "title": …, "published": …, "canonical": …} or {"reason": "too_many_nodes", "value": 120000}

Charset: the declared one (byte order mark, HTTP header, meta) unless the bytes say otherwise. Limits are counted in data, so the same page gives the same
answer anywhere; a page that still takes too long is ended from outside (guard.py).
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.corpus.textnorm import is_cjk

META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
MULTIBYTE = frozenset(("gb18030", "big5hkscs", "euc_jp", "shift_jis", "cp949", "iso2022_jp", "utf-8"))
SUPERSETS = {
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "euc-kr": "cp949",
    "euc-jp": "euc_jp",
    "shift-jis": "shift_jis",
}
"""What browsers decode a label as, where Python's codec of that name is narrower."""
BINARY = (
    b"%PDF-",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"RIFF",
    b"OggS",
    b"ID3",
    b"Rar!",
    b"\x7fELF",
    b"\xd0\xcf\x11\xe0",
    b"%!PS",
)
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
BLANKS = "".join(map(chr, range(33)))
KANA = re.compile("[ぁ-ヿ]")
HANGUL = re.compile("[가-힣]")
ASCII = bytes(range(128))
TABLE = Path(__file__).with_name("main_text.json")
BAD = re.compile(r"[\x80-\x9f\ue000-\uf8ff\ufffd]")

DOUBT = 0.2
"""Expected F1 below which a page is said to have no main text: its pieces are chosen by little more than chance (link pages, shells filled by scripts)."""


@dataclass(frozen=True)
class Limits:
    """What a page may have."""

    depth: int
    nodes: int
    chars: int
    """Fewest characters of main text."""


def extract(body: bytes | str, charset: str, limits: Limits, table: Path = TABLE) -> dict[str, Any]:
    """Main text of a page and what it says of itself (about.py), or the reason why it has none: not_html, empty, too_deep, too_many_nodes, no_main_text.

    `table`: the forests that judge blocks (benchmarks give those that have not seen the page).
    """
    from resiliparse.parse.html import HTMLTree

    from tasks.corpus.about import about
    from tasks.corpus.main_text import main_text, read

    if isinstance(body, bytes):
        if not body.strip():
            return {"reason": "empty", "value": 0}
        if body.startswith(BINARY):
            return {"reason": "not_html", "value": body[:8].hex()}
        html, _ = decode(body, charset)
    else:
        html = body if body.isascii() else body.encode("utf-8", "ignore").decode()
    if not html.strip(BLANKS):
        return {"reason": "empty", "value": 0}
    page = read(str(HTMLTree.parse(html)), limits.nodes, limits.depth)
    if page.depth > limits.depth:
        return {"reason": "too_deep", "value": f"more than {limits.depth}"}
    if page.elements > limits.nodes:
        return {"reason": "too_many_nodes", "value": f"more than {limits.nodes}"}
    text, expected = main_text(page, table)
    if len(text) < limits.chars:
        return {"reason": "no_main_text", "value": len(text)}
    if expected < DOUBT:
        return {"reason": "no_main_text", "value": f"expected F1 {expected:.2f}"}
    return {"text": text, **about(page)}


def clean(text: str) -> str:
    """Text without control characters and lone surrogates, line ends \\n, no trailing blanks, at most one empty line in a row."""
    text = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def decode(body: bytes, declared: str) -> tuple[str, str]:
    """(text, codec) of a page's bytes. `declared` is the HTTP header's charset, or ''. Never raises; what nothing fits has U+FFFD in it."""
    for mark, codec in MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(codec, "replace"), codec
    wide = _wide(body)
    if wide:
        return body.decode(wide, "replace"), wide
    meta = META.search(body[:4096])
    labels = [_codec(declared), _codec(meta[1].decode("ascii", "replace")) if meta else ""]
    if body.isascii():
        codec = "iso2022_jp" if b"\x1b$B" in body or b"\x1b$@" in body else "hz" if b"~{" in body and "hz" in labels else "ascii"
        return body.decode(codec, "replace"), codec
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    return _choose(body, [label for label in labels if label])


def _choose(body: bytes, labels: list[str]) -> tuple[str, str]:
    """The codec of a page that is not sound UTF-8: a declared one that fits, unless detection contradicts it with better reason."""
    from resiliparse.parse.encoding import detect_encoding

    guess = _codec(detect_encoding(body) or "")
    if guess == "utf-8" and len(HANGUL.findall(body.decode("cp949", "ignore"))) > 0.3 * len(body.translate(None, ASCII)):
        guess = "cp949"  # the detector calls EUC-KR UTF-8 although it is none
    texts = {codec: body.decode(codec, "replace") for codec in dict.fromkeys([*labels, guess, "cp1252"]) if codec}
    bad = {codec: _bad(text) for codec, text in texts.items()}
    fitting = [codec for codec in labels if bad[codec] <= 0.01]
    sound = guess in texts and bad[guess] <= 0.01
    if not fitting:
        best = guess if sound else min(texts, key=lambda codec: bad[codec])
    elif not sound or guess == fitting[0]:
        best = fitting[0]
    elif guess in labels:
        best = guess
    elif fitting[0] in MULTIBYTE:
        # GBK and Big5 each decode most of the other's bytes, and EUC-JP's, but into rare characters, and GBK has the kana where EUC-JP has them.
        clearer = guess in MULTIBYTE and _common(texts[guess]) > _common(texts[fitting[0]]) + 0.1
        japanese = guess in ("euc_jp", "shift_jis") and len(KANA.findall(texts[guess])) > 0.3 * _beyond(texts[guess])
        best = guess if clearer or japanese else fitting[0]
    else:
        # A one-byte charset fits anything, and Latin-1 is what servers say of pages they know nothing about.
        best = guess if guess in MULTIBYTE or fitting[0] in ("cp1252", "latin-1", "iso8859-1") else fitting[0]
    return texts[best], best


def _codec(label: str) -> str:
    """Python's codec for a charset label as browsers read it, '' for none."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    label = label.encode("ascii", "ignore").decode().strip().lower()
    if not label:
        return ""
    mapped = map_encoding_to_html5(label, False) or label
    mapped = SUPERSETS.get(mapped, mapped)
    try:
        codecs.lookup(mapped)
        "".encode(mapped)  # LookupError for codecs that are not of text (base64, rot13)
    except (LookupError, ValueError):
        return ""
    # A page whose meta could be read as bytes is not UTF-16, whatever it says (HTML standard).
    return "utf-8" if mapped.startswith(("utf-16", "utf-32", "utf_16", "utf_32")) else mapped


def _wide(body: bytes) -> str:
    """UTF-16 without a mark, by where the zero bytes of its markup stand."""
    head = body[:4096]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) < len(head) * 0.1:
        return ""
    return "utf-16-le" if odd > even * 4 else "utf-16-be" if even > odd * 4 else ""


def _bad(text: str) -> float:
    """Share of characters that no page means to have (replacement, C1 controls, private use) among those beyond ASCII."""
    return len(BAD.findall(text)) / max(1, _beyond(text))


def _beyond(text: str) -> int:
    """Characters beyond ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))


def _common(text: str) -> float:
    """Share of the Han characters that GB 2312 or Big5 has among its frequent ones (their first levels)."""
    han = [c for c in text if is_cjk(c)][:2000]
    return sum(_first_level(c) for c in han) / len(han) if han else 0.0


def _first_level(character: str) -> bool:
    mainland, taiwan = character.encode("gb2312", "ignore"), character.encode("big5", "ignore")
    return bool(mainland and 0xB0 <= mainland[0] <= 0xD7) or bool(taiwan and 0xA4 <= taiwan[0] <= 0xC6)
