"""Signals of a text: every count and ratio on which the rules of Gopher, C4 and FineWeb decide, from one pass of compiled kernels.

    found = measure(text, language_rules, repetition=True, gopher=True, c4=True, fineweb=True)
    found.values["gopher_rep_top_2_gram"], found.text, found.words

What is counted, and divided by what, is datatrove's (0.10.1), quirks included: the share of a repeated n-gram has its words joined without spaces over
all characters; the most frequent one has them; a text's own first or last line feed makes an empty line. Names stand in document.SIGNALS.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tasks.corpus import rule_kernels as kernels
from tasks.corpus.document import SIGNALS
from tasks.corpus.words import POWERS, Words, codes_of, kinds

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
LOREM, SCRIPT = "lorem ipsum", "javascript"
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclass(frozen=True)
class LineRules:
    """Which lines C4's clean-up drops."""

    max_word_length: int
    """Characters of the longest word between spaces; 0 keeps all."""
    min_words: int
    """Fewest words between spaces; 0 keeps all."""


@dataclass(frozen=True)
class Measured:
    """A text's signals, and what C4's clean-up left of it."""

    values: dict[str, float | None]
    """By the names of document.SIGNALS; None where not measured."""
    text: str
    words: int
    """Of the text that is left."""


class _Space:
    """Work space that is kept from text to text."""

    table, seen = np.empty(1 << 12, np.int32), np.empty(1 << 13, np.uint8)
    columns = np.empty((6, 1 << 13), np.int64)
    lines = np.empty((1 << 10, 5), np.int64)
    left = np.empty(1 << 14, np.uint32)

    def table_of(self, pieces: int) -> np.ndarray:
        """The kernels' table, two to four times as long as the pieces are many, int32."""
        size = 1 << max(8, (2 * pieces).bit_length())
        if size > self.table.size:
            self.table, self.seen = np.empty(size, np.int32), np.empty(2 * size, np.uint8)
        return self.table[:size]

    def make_room(self, characters: int, lines: int) -> None:
        """So that columns, lines and left have room for a text and its words."""
        if characters >= self.columns.shape[1]:
            self.columns, self.left = np.empty((6, 2 * characters), np.int64), np.empty(2 * characters, np.uint32)
        if lines > len(self.lines):
            self.lines = np.empty((2 * lines, 5), np.int64)


_SPACE = _Space()


def measure(
    text: str, splitter: Any, stop_words: Sequence[str], lines: LineRules, *, repetition: bool, gopher: bool, c4: bool, fineweb: bool
) -> Measured:
    """Signals of a text for the families of rules asked for; FineWeb's are those of what C4 leaves, as in datatrove's chain of filters.

    splitter: one of words.py. stop_words: at most 64. C4's sentences are counted where the splitter can.
    """
    words = splitter(text)
    codes = words.codes if words.in_text else codes_of(text)
    prefix = POWERS.prefix(codes)
    breaks = text.count("\n") + 1
    _SPACE.make_room(max(codes.size, words.codes.size), breaks)
    values: dict[str, float | None] = dict.fromkeys(SIGNALS)
    values["characters"], values["words"] = codes.size, words.starts.size
    if repetition or gopher:
        _gopher(codes, prefix, breaks, words, _hashes(tuple(stop_words)), repetition, gopher, values)
    left, left_codes, number = text, codes, words.starts.size
    if c4:
        left, left_codes, number = _c4(text, codes, words, splitter, lines, values)
    if fineweb:
        _fineweb(left_codes, prefix if left_codes is codes else POWERS.prefix(left_codes), left.count("\n") + 1, number, values)
    values["left_words"] = number
    return Measured(values, left, number)


def _gopher(
    codes: np.ndarray,
    prefix: np.ndarray,
    breaks: int,
    words: Words,
    stops: np.ndarray,
    repetition: bool,
    gopher: bool,
    values: dict[str, Any],
) -> None:
    count, size = words.starts.size, max(1, codes.size)
    by_word, by_line = np.empty(14), np.empty(11)
    joined, grams, offsets, counts, places, hashes = _SPACE.columns  # the last serves both
    kernels.count_words(
        words.codes, kinds(), POWERS.values, words.starts, words.ends, stops, _SPACE.table_of(count), _SPACE.seen, joined.view(np.uint64),
        grams.view(np.uint64), offsets, counts, places, hashes, by_word,
    )  # fmt: skip
    kernels.count_lines(codes, kinds(), prefix, POWERS.values, _SPACE.table_of(breaks), hashes.view(np.uint64), by_line)
    signs, dots, lines, bullets, ellipses, pieces, same_pieces, same_chars, paragraphs, same_paragraphs, same_paragraph_chars = (
        by_line.tolist()
    )
    shares = by_word.tolist()
    if repetition:
        values["gopher_rep_dup_para_frac"] = same_paragraphs / paragraphs
        values["gopher_rep_dup_para_char_frac"] = same_paragraph_chars / size
        values["gopher_rep_dup_line_frac"] = same_pieces / pieces
        values["gopher_rep_dup_line_char_frac"] = same_chars / size
        for n in range(2, 5):
            values[f"gopher_rep_top_{n}_gram"] = shares[3 + n] / size
        for n in range(5, 11):
            values[f"gopher_rep_duplicated_{n}_n_grams"] = shares[3 + n] / size
    if gopher:
        _, plain, characters, letters, different = shares[:5]
        values["gopher_words"] = plain
        values["gopher_word_length"] = characters / plain if plain else None
        values["gopher_hashes"] = signs / max(1, count)
        values["gopher_ellipses"] = dots / max(1, count)
        values["gopher_bullet_lines"] = bullets / max(1, lines)
        values["gopher_ellipsis_lines"] = ellipses / max(1, lines)
        values["gopher_letter_words"] = letters / max(1, count)
        values["gopher_stop_words"] = different


def _c4(text: str, codes: np.ndarray, words: Words, splitter: Any, rules: LineRules, values: dict[str, Any]) -> tuple[str, np.ndarray, int]:
    """What is left of the text, as text and code points, and its words."""
    starts, ends = (words.starts, words.ends) if words.in_text else np.empty((2, 0), np.int64)
    _SPACE.make_room(codes.size, len(text.splitlines()))
    number, kept, due, count, sentences, length = kernels.clean_lines(
        codes, kinds(), starts, ends, rules.max_word_length, rules.min_words, splitter.sentences is not None, _SPACE.lines, _SPACE.left
    )
    values["c4_lorem_ipsum"] = values["c4_curly_bracket"] = 0
    if due or not words.in_text:
        return _c4_closely(text, words, number, _SPACE.lines[:kept].tolist(), splitter, values)
    values["c4_lines_dropped"] = number - kept
    values["c4_sentences"] = sentences if splitter.sentences else None
    left = _SPACE.left[:length]
    if np.array_equal(left, codes):
        return text, codes, count
    left = left.copy()
    return left.tobytes().decode("utf-32-le", "surrogatepass"), left, count


def _c4_closely(
    text: str, words: Words, number: int, rows: list[list[int]], splitter: Any, values: dict[str, Any]
) -> tuple[str, np.ndarray, int]:
    """The same with citations taken out, phrases and brackets looked for, and sentences counted by the splitter where no kernel cut the words."""
    lines, count, sentences, dropped = [], 0, 0, number - len(rows)
    for at, (start, end, line_words, line_sentences, due) in enumerate(rows, 1):
        line = text[start:end]
        if due:
            line = CITATION.sub("", line)
            low = line.lower()
            if LOREM in low:
                values["c4_lorem_ipsum"] = values["c4_lorem_ipsum"] or (at if not values["c4_curly_bracket"] else 0)
            elif SCRIPT in low:
                dropped += 1
                continue
            elif "{" in line:
                values["c4_curly_bracket"] = values["c4_curly_bracket"] or (at if not values["c4_lorem_ipsum"] else 0)
            elif any(phrase in low for phrase in POLICIES):
                dropped += 1
                continue
        if len(line) < end - start:
            line_words, line_sentences = splitter(line).starts.size, splitter.sentences(line) if splitter.sentences else 0
        elif not words.in_text:
            line_sentences = splitter.sentences(line)
        lines.append(line)
        count, sentences = count + line_words, sentences + line_sentences
    left = "\n".join(lines).strip()
    values["c4_lines_dropped"] = dropped
    values["c4_sentences"] = sentences if splitter.sentences else None
    if not words.in_text:
        count = splitter(left).starts.size
    return left, codes_of(left), count


def _fineweb(codes: np.ndarray, prefix: np.ndarray, breaks: int, words: int, values: dict[str, Any]) -> None:
    found = np.empty(5)
    kernels.count_ended_lines(codes, kinds(), prefix, POWERS.values, _SPACE.table_of(breaks), _SPACE.columns[5].view(np.uint64), found)
    lines, ended, short, same_chars, line_feeds = found.tolist()
    values["fineweb_lines"] = lines
    values["fineweb_line_punct_ratio"] = ended / max(1, lines)
    values["fineweb_short_line_ratio"] = short / max(1, lines)
    values["fineweb_char_dup_ratio"] = same_chars / max(1, codes.size - line_feeds)
    values["fineweb_list_ratio"] = line_feeds / max(1, words)


@cache
def _hashes(words: tuple[str, ...]) -> np.ndarray:
    """The kernels' hashes of words, uint64 (W,)."""
    found = []
    for word in words:
        value = 0
        for character in word:
            value = (value * int(kernels.BASE) + ord(character) + 1) % (1 << 64)
        found.append(value)
    return np.array(found, np.uint64)
