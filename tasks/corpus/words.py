"""Words of a text as datatrove's splitter of its language cuts them, many times faster: spaCy's English rules and jieba as compiled kernels.

    words = splitter("en")("The lamp isn't lit.")      # Words: code points, bounds
    words.texts()                                      # ["The", "lamp", "is", "n't", "lit", "."]

English (and languages without a splitter of their own): the kernel knows spaCy's affixes, infixes and special cases; pieces that may be web addresses
are asked of spaCy's pattern, and the rare chunks in which affixes join to a special case of spaCy itself; answers are remembered. Chinese: jieba's
dictionary, route and hidden Markov model. Other languages: datatrove's splitter itself.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tasks.corpus import rule_kernels as kernels
from tasks.corpus.textnorm import CHINESE

REMEMBERED = 200_000
"""Answers of spaCy that are kept before all are forgotten. They change speed, never words."""


@dataclass(frozen=True)
class Words:
    """Words by their bounds in a run of code points."""

    codes: np.ndarray
    """uint32 (T,)"""
    starts: np.ndarray
    """int64 (W,)"""
    ends: np.ndarray
    """int64 (W,)"""
    in_text: bool
    """The code points are the text's own; else they are the words' alone, one after another."""

    def texts(self) -> list[str]:
        """The words."""
        text = self.codes.tobytes().decode("utf-32-le", "surrogatepass")
        return [text[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]


def codes_of(text: str) -> np.ndarray:
    """Code points, uint32 (T,)."""
    return np.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), np.uint32)  # writable, as the kernels are typed


class Powers:
    """Powers of the kernels' hash base, as many as the longest text needs so far."""

    values = np.ones(1, np.uint64)

    def prefix(self, codes: np.ndarray) -> np.ndarray:
        """Hashes of all beginnings, uint64 (T+1,)."""
        prefix, known = np.empty(codes.size + 1, np.uint64), self.values.size
        if known <= codes.size:
            self.values = np.concatenate((self.values, np.empty(codes.size + 4096 - known, np.uint64)))
        kernels.fill_prefix(codes, prefix, self.values, known)
        return prefix


class Bounds:
    """Work space for the bounds of words, kept from text to text: fresh memory of this size costs more than the cutting."""

    values = np.empty((2, 1 << 14), np.int64)

    def of(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for starts and ends of `size` words."""
        if size > self.values.shape[1]:
            self.values = np.empty((2, 2 * size), np.int64)
        return self.values[0, :size], self.values[1, :size]


POWERS, BOUNDS = Powers(), Bounds()


class SpacedSplitter:
    """spaCy's English tokenizer. Its tokens of white space are left out, as datatrove leaves them out."""

    missing = ""

    def __init__(self) -> None:
        from spacy.lang.char_classes import CURRENCY, UNITS

        self._theirs = _datatrove_splitter("en")
        tokenizer = self._theirs.tokenizer.tokenizer
        self._is_address = tokenizer.url_match
        self._questions = np.empty((256, 3), np.int64)
        units = {unit.replace("\\", "") for unit in (*UNITS.split("|"), *CURRENCY.split("|"))}
        self._fixed: list[tuple[str, list[int], int]] = [(unit, [], kernels.UNIT) for unit in sorted(units)]
        for text, pieces in tokenizer.rules.items():
            if not any(c.isspace() for c in text):
                self._fixed.append((text, [len(piece[65]) for piece in pieces], kernels.SPECIAL))  # 65 is spacy.symbols.ORTH
        self._forget()

    def __call__(self, text: str) -> Words:
        codes = codes_of(text)
        starts, ends = BOUNDS.of(2 * codes.size + 2)
        while True:
            number, asked = kernels.cut_spaced(codes, kinds(), self._slots, self._arena, self._shapes, starts, ends, self._questions)
            if not asked:
                return Words(codes, starts[:number].copy(), ends[:number].copy(), True)
            if self._added + asked > REMEMBERED:
                self._forget()
            for start, end, whole in dict.fromkeys(map(tuple, self._questions[:asked].tolist())):
                self._answer(text[start:end], bool(whole))

    def sentences(self, line: str) -> int:
        """Sentences as spaCy's sentencizer ends them, at least one."""
        return max(1, len(self._theirs.span_tokenize(line)))

    def _answer(self, piece: str, whole: bool) -> None:
        wanted = kernels.WHOLE if whole else kernels.ADDRESS | kernels.NO_ADDRESS
        codes = codes_of(piece)
        if kernels.entry_of(codes, wanted, self._slots, self._arena, self._shapes):
            return  # the same piece stood twice in the text
        if whole:
            self._add(piece, [len(word) for word in self._theirs.word_tokenize(piece)], kernels.WHOLE)
        else:
            self._add(piece, [], kernels.ADDRESS if self._is_address(piece) else kernels.NO_ADDRESS)

    def _forget(self) -> None:
        self._slots, self._arena, self._shapes = np.zeros(1 << 19, np.int32), np.zeros(1 << 16, np.int32), np.zeros(8192, np.uint8)
        self._used, self._added = 1, 0
        for entry in self._fixed:
            self._add(*entry)

    def _add(self, piece: str, lengths: list[int], what: int) -> None:
        codes = codes_of(piece)
        need = self._used + 3 + codes.size + len(lengths)
        if need > self._arena.size:
            self._arena = np.concatenate((self._arena, np.zeros(max(need, self._arena.size), np.int32)))
        self._used = kernels.add_entry(codes, np.cumsum(lengths, dtype=np.int64), what, self._slots, self._arena, self._shapes, self._used)
        self._added += 1


class ChineseSplitter:
    """jieba.cut with its default dictionary, without white space: what datatrove uses for cmn_Hani. It counts no sentences."""

    missing = ""
    sentences = None

    def __init__(self) -> None:
        import jieba
        from jieba.finalseg import MIN_FLOAT, emit_P, start_P, trans_P

        data = np.fromfile(Path(jieba.__file__).parent / "dict.txt", np.uint8)
        self._keys, frequencies = np.zeros(1 << 21, np.uint64), np.zeros(1 << 20, np.int64)
        totals, self._hints = np.zeros(2, np.int64), np.zeros(1 << 19, np.uint8)
        kernels.read_dictionary(data, self._keys, frequencies, totals, self._hints)
        different, where = np.unique(frequencies, return_inverse=True)
        total = math.log(int(totals[0]))  # as jieba takes it; numpy's logarithms may differ in the last bit
        self._scores = self._keys.view(np.float64)
        self._scores[1::2] = np.array([math.log(n) - total if n else 1.0 for n in different.tolist()])[where]
        self._rare = 0.0 - total
        self._single_scores = np.full(0x110000, 2.0)
        kernels.score_singles(self._keys, self._hints, self._scores, self._single_scores)
        self._emit = np.full((1 << 16, 4), MIN_FLOAT)
        self._change = np.full((5, 4), MIN_FLOAT)
        for y, state in enumerate("BEMS"):
            for character, value in emit_P[state].items():
                self._emit[ord(character), y] = value
            for to, value in trans_P[state].items():
                self._change[y, "BEMS".index(to)] = value
            self._change[4, y] = start_P[state]
        self._make_room(1 << 14)

    def __call__(self, text: str) -> Words:
        codes = codes_of(text)
        starts, ends = BOUNDS.of(codes.size)
        if codes.size >= self._route.size:
            self._make_room(2 * codes.size)
        number = kernels.cut_chinese(
            codes, kinds(), POWERS.prefix(codes), POWERS.values, self._keys, self._hints, self._scores, self._single_scores, self._rare,
            self._emit, self._change, self._route, self._step, self._back, self._best, starts, ends,
        )  # fmt: skip
        return Words(codes, starts[:number].copy(), ends[:number].copy(), True)

    def _make_room(self, size: int) -> None:
        self._route, self._step = np.empty(size), np.empty(size, np.int64)
        self._back, self._best = np.empty((size, 4), np.uint8), np.empty((size, 4))


class OtherSplitter:
    """datatrove's splitter of a language. `missing` names a package without which the language cannot be split."""

    def __init__(self, language: str):
        self.missing = ""
        try:
            self._theirs = _datatrove_splitter(language)
            self._theirs.word_tokenize("a")
        except ImportError as error:
            self.missing = f"{language}: {error}"

    def __call__(self, text: str) -> Words:
        words = self._theirs.word_tokenize(text)
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        return Words(codes_of("".join(words)), np.concatenate((np.zeros(1, np.int64), ends))[:-1], ends, False)

    def sentences(self, line: str) -> int:
        """Sentences of a line, at least one."""
        return max(1, len(self._theirs.span_tokenize(line)))


@cache
def splitter(language: str) -> Any:
    """The splitter of an ISO 639 code."""
    from datatrove.utils.word_tokenizers import load_tokenizer_assignments

    if language in CHINESE:
        return ChineseSplitter()
    if language == "en" or language not in load_tokenizer_assignments():
        return spaced()
    return OtherSplitter(language)


@cache
def spaced() -> SpacedSplitter:
    """The one splitter of English and of languages without their own."""
    return SpacedSplitter()


def _datatrove_splitter(language: str) -> Any:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    return load_word_tokenizer(language)


@cache
def kinds() -> np.ndarray:
    """Classes of every code point, uint16 (0x110000,): bits of rule_kernels."""
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
    from spacy.lang import char_classes as spacy
    from spacy.pipeline import Sentencizer

    cased = 0x30000  # no class but letters goes beyond; no letter beyond these
    text = "".join(map(chr, range(cased)))
    found = np.zeros(0x110000, np.uint16)

    def mark(bit: int, characters: Any) -> None:
        codes = np.fromiter((ord(c) for c in characters if len(c) == 1), np.int64)
        found[codes] |= np.uint16(bit)

    def matching(pattern: str) -> list[str]:
        return re.findall(pattern, text)

    letters = np.arange(0x110000, dtype=np.uint32).view("U1")
    found |= np.where(np.strings.isspace(letters), kernels.SPACE, 0).astype(np.uint16)
    found |= np.where(np.strings.isalpha(letters), kernels.LETTER, 0).astype(np.uint16)
    mark(kernels.BREAK, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    mark(kernels.ALPHA, matching(f"[{spacy.ALPHA}]"))
    mark(kernels.LOWER, matching(f"[{spacy.ALPHA_LOWER}]"))
    mark(kernels.UPPER, matching(f"[{spacy.ALPHA_UPPER}]"))
    mark(kernels.QUOTE, matching(f"[{spacy.CONCAT_QUOTES}]"))
    mark(kernels.ICON, matching(spacy.LIST_ICONS[0]))
    mark(kernels.EDGE, matching("|".join([*spacy.LIST_PUNCT, *spacy.LIST_QUOTES, *spacy.LIST_ICONS, "…", "—", "–"])))
    mark(kernels.FRONT, ["§", "%", "=", *(sign.replace("\\", "") for sign in spacy.LIST_CURRENCY)])
    mark(kernels.BEFORE_DOT, matching(rf"[0-9{spacy.ALPHA_LOWER}%²\-\+{spacy.PUNCT}(?:{spacy.CONCAT_QUOTES})]"))
    mark(kernels.MARK, PUNCTUATION_SET)
    mark(kernels.LINE_END, TERMINAL_PUNCTUATION)
    mark(kernels.SENTENCE_END, Sentencizer.default_punct_chars)
    mark(kernels.PUNCTUATION, (c for c in text if unicodedata.category(c)[0] == "P"))
    mark(kernels.DIGIT, "0123456789")
    return found
