"""Compiled kernels of the quality rules: one text as code points in, words and counts out. Plain loops over arrays; nothing here knows a threshold.

Shapes: text uint32 (T,) code points; kinds uint16 (0x110000,) classes of every code point (words.kinds); starts, ends int64 (W,) bounds of words in
text; prefix uint64 (T+1,) polynomial hashes of text's beginnings, powers uint64 (≥ T+1,) of BASE, so that any piece's hash costs one multiplication.
Two different pieces share a 64-bit hash with a chance of about 5e-20 a pair; no text is compared again.

Caches lie beside this file (cache=True), and every kernel has its signature, so that nothing is compiled twice.
"""

import numpy as np
from numba import float64, int32, int64, types, uint8, uint16, uint32, uint64

from tasks.corpus.compiled import njit

SPACE, BREAK, ALPHA, LOWER, UPPER, QUOTE, EDGE, FRONT = 1, 2, 4, 8, 16, 32, 64, 128
ICON, BEFORE_DOT, MARK, LETTER, LINE_END, SENTENCE_END, PUNCTUATION, DIGIT = 256, 512, 1024, 2048, 4096, 8192, 16384, 32768
"""Bits of kinds. str.isspace, a break of str.splitlines; spaCy's letters, lower and upper case (uncased scripts are both), quotes, its affixes of one
character on either side, on the left only, its symbols, what a full stop is split off from; datatrove's punctuation, str.isalpha, FineWeb's ends of
lines, the sentencizer's ends of sentences, Unicode category P, 0-9."""
SPECIAL, UNIT, ADDRESS, NO_ADDRESS, WHOLE = 1, 2, 4, 8, 16
"""What a lexicon entry is: a special case; a unit or currency, which is split off a number; a piece that is, or is not, a web address; a chunk of text
that spaCy itself was asked about."""

LONGEST_SPECIAL = 32
BASE = np.uint64(0x9E3779B97F4A7C55)
_DOT, _HYPHEN, _EN, _EM, _ELLIPSIS, _PLUS, _STAR, _CARET, _TILDE, _COMMA = 46, 45, 0x2013, 0x2014, 0x2026, 43, 42, 94, 126, 44

text_t, kinds_t, cuts_t, hash_t, lexicon_t, out_t = uint32[::1], uint16[::1], int64[::1], uint64[::1], int32[::1], float64[::1]


@njit(types.void(text_t, hash_t, hash_t, int64), cache=True)
def fill_prefix(text, prefix, powers, known):
    """prefix of text; powers from `known` on."""
    for i in range(known, powers.size):
        powers[i] = powers[i - 1] * BASE if i else np.uint64(1)
    total = np.uint64(0)
    prefix[0] = total
    for i in range(text.size):
        total = total * BASE + np.uint64(text[i] + 1)
        prefix[i + 1] = total


@njit(uint64(hash_t, hash_t, int64, int64), cache=True, forceinline=True)
def _piece(prefix, powers, start, end):
    return prefix[end] - prefix[start] * powers[end - start]


@njit(int64(uint64, int64), cache=True, forceinline=True)
def _slot(value, mask):
    value ^= value >> np.uint64(29)
    return np.int64((value * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(33)) & mask


# The lexicon: what spaCy was asked. An entry in `arena`: length, what it is, pieces, then the characters, then the ends of the pieces. `slots` (power of
# two,) holds the entries' places by hash, 0 where empty. `shapes` (8192,) says which kinds of entries have a given first and last character and length.


@njit(uint64(text_t, int64, int64), cache=True, forceinline=True)
def _entry_hash(text, start, end):
    value = np.uint64(end - start)
    for i in range(start, end):
        value = (value ^ np.uint64(text[i])) * np.uint64(0x100000001B3)
    return value


@njit(int64(text_t, int64, int64), cache=True, forceinline=True)
def _shape(text, start, end):
    return ((np.int64(text[start]) * 31 + np.int64(text[end - 1])) * 31 + (end - start)) & 8191


@njit(int64(text_t, int64, int64, int64, lexicon_t, lexicon_t, uint8[::1]), cache=True)
def _entry(text, start, end, wanted, slots, arena, shapes):
    """Place of an entry for text[start:end] that is one of `wanted`, 0 where there is none."""
    if end <= start or not shapes[_shape(text, start, end)] & wanted:
        return np.int64(0)
    mask = slots.size - 1
    at = _slot(_entry_hash(text, start, end), mask)
    while slots[at]:
        entry = slots[at]
        if arena[entry] == end - start and arena[entry + 1] & wanted:
            same = True
            for i in range(end - start):
                if arena[entry + 3 + i] != np.int32(text[start + i]):
                    same = False
                    break
            if same:
                return np.int64(entry)
        at = (at + 1) & mask
    return np.int64(0)


@njit(int64(text_t, int64, lexicon_t, lexicon_t, uint8[::1]), cache=True)
def entry_of(text, wanted, slots, arena, shapes):
    """Place of the entry of a text, 0 where there is none."""
    return _entry(text, 0, text.size, wanted, slots, arena, shapes)


@njit(int64(text_t, cuts_t, int64, lexicon_t, lexicon_t, uint8[::1], int64), cache=True)
def add_entry(text, piece_ends, what, slots, arena, shapes, used):
    """Write one entry at `used`; returns the first free place after it."""
    mask = slots.size - 1
    at = _slot(_entry_hash(text, 0, text.size), mask)
    while slots[at]:
        at = (at + 1) & mask
    slots[at] = used
    shapes[_shape(text, 0, text.size)] |= np.uint8(what)
    arena[used], arena[used + 1], arena[used + 2] = text.size, what, piece_ends.size
    for i in range(text.size):
        arena[used + 3 + i] = np.int32(text[i])
    for i in range(piece_ends.size):
        arena[used + 3 + text.size + i] = np.int32(piece_ends[i])
    return used + 3 + text.size + piece_ends.size


@njit(int64(text_t, cuts_t, cuts_t, int64, int64, int64, lexicon_t), cache=True, forceinline=True)
def _copy_pieces(text, starts, ends, n, start, entry, arena):
    """Write the words of an entry found at `start` from place n on; the new n."""
    at = start
    for k in range(arena[entry + 2]):
        starts[n], ends[n] = at, start + arena[entry + 3 + arena[entry] + k]
        at = ends[n]
        n += 1
    return n


@njit(int64(text_t, kinds_t, int64, int64), cache=True)
def _prefix_length(text, kinds, start, end):
    c = text[start]
    kind = kinds[c]
    if kind & (EDGE | FRONT):
        return 1
    following = text[start + 1] if start + 1 < end else uint32(0)
    if c == _PLUS:
        return 0 if kinds[following] & DIGIT else 1
    if c == _DOT:
        run = 1
        while start + run < end and text[start + run] == _DOT:
            run += 1
        return run if run > 1 else 0
    if (c == 65 or c == 67) and following == 36:  # A$ C$
        return 2
    if c == 85 and following == 83 and start + 2 < end and text[start + 2] == 36:  # US$
        return 3
    return 0


@njit(int64(text_t, kinds_t, int64, int64, lexicon_t, lexicon_t, uint8[::1]), cache=True)
def _suffix_length(text, kinds, start, end, slots, arena, shapes):
    if end <= start:
        return 0
    c = text[end - 1]
    kind = kinds[c]
    before = text[end - 2] if end - 2 >= start else uint32(0)
    if c == _DOT:
        run = 1
        while end - run > start and text[end - run - 1] == _DOT:
            run += 1
        if run > 1:
            return run
        if end - 2 < start:
            return 0
        if kinds[before] & BEFORE_DOT:
            return 1
        if end - 3 >= start:
            if kinds[before] & UPPER and kinds[text[end - 3]] & UPPER:
                return 1
            if text[end - 3] == 0xB0 and (before == 70 or before == 67 or before == 75):  # °F. °C. °K.
                return 1
        return 0
    if (c == 115 or c == 83) and (before == 39 or before == 0x2019):  # 's
        return 2
    if c == _ELLIPSIS and before == _ELLIPSIS:
        return 2
    if kind & EDGE:
        return 1
    if kind & DIGIT:
        return 0
    if c == _PLUS:
        return 1 if kinds[before] & DIGIT else 0
    for size in range(1, 7):  # a unit or currency right after a digit; none holds a digit
        if end - size - 1 < start:
            return 0
        if kinds[text[end - size - 1]] & DIGIT:
            return size if _entry(text, end - size, end, UNIT, slots, arena, shapes) else 0
    return 0


@njit(int64(text_t, kinds_t, int64, int64, int64), cache=True)
def _infix_length(text, kinds, at, start, end):
    """Length of the infix at `at` within text[start:end], 0 for none."""
    c = text[at]
    if c == _ELLIPSIS:
        return 1
    if c == _DOT and at + 1 < end and text[at + 1] == _DOT:
        run = 2
        while at + run < end and text[at + run] == _DOT:
            run += 1
        return run
    if kinds[c] & ICON:
        return 1
    if at == start or at + 1 >= end:
        return 0
    before, after = kinds[text[at - 1]], kinds[text[at + 1]]
    if (c in (_PLUS, _HYPHEN, _STAR, _CARET)) and before & DIGIT and (after & DIGIT or text[at + 1] == _HYPHEN):
        return 1
    if c == _DOT:
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if c == _COMMA:
        return 1 if before & ALPHA and after & ALPHA else 0
    if not before & (ALPHA | DIGIT):
        return 0
    if c == 58 or c == 60 or c == 62 or c == 61 or c == 47:  # : < > = /
        return 1 if after & ALPHA else 0
    longest = 3 if c == _HYPHEN else 2 if c == _EM else 1 if c in (_EN, _TILDE) else 0
    for size in range(1, longest + 1):
        if at + size >= end or text[at + size - 1] != c:
            return 0
        if kinds[text[at + size]] & ALPHA:
            return size
    return 0


@njit(types.boolean(text_t, kinds_t, int64, int64), cache=True)
def _may_be_address(text, kinds, start, end):
    """Whether spaCy's pattern of URLs could match: it needs a full stop before two lower-case letters, or three full stops in all."""
    dots = 0
    for i in range(start, end):
        if text[i] == _DOT:
            dots += 1
            if dots == 3 or (i + 2 < end and kinds[text[i + 1]] & LOWER and kinds[text[i + 2]] & LOWER):
                return True
    return False


@njit(int64(text_t, kinds_t, int64, int64, lexicon_t, lexicon_t, uint8[::1], cuts_t, cuts_t, int64, cuts_t), cache=True)
def _cut_chunk(text, kinds, a, b, slots, arena, shapes, starts, ends, n, question):
    """Words of text[a:b], which has no space, from place n on; the new n, or -1 where the lexicon lacks what `question` (start, end, whole or not) says.

    The steps of spaCy's Tokenizer: affixes off both ends until a special case or nothing is left to split, then infixes; where pieces would join to a
    special case spaCy is asked about the whole chunk.
    """
    first, special, right, left, end, last = n, np.int64(0), ends.size, a, b, np.int64(0)
    while left < end and end - left != last:
        special = _entry(text, left, end, SPECIAL, slots, arena, shapes)
        if special:
            break
        last = end - left
        pre = _prefix_length(text, kinds, left, end)
        if pre:
            special = _entry(text, left + pre, end, SPECIAL, slots, arena, shapes)
        suf = np.int64(0)
        if not special:
            suf = _suffix_length(text, kinds, left + pre, end, slots, arena, shapes)
            if suf:
                special = _entry(text, left, end - suf, SPECIAL, slots, arena, shapes)
                if special:
                    pre = 0
        if pre:
            starts[n], ends[n] = left, left + pre
            n, left = n + 1, left + pre
        if suf:
            right -= 1
            starts[right], ends[right] = end - suf, end
            end -= suf
        if special:
            break
    if special:
        n = _copy_pieces(text, starts, ends, n, left, special, arena)
    elif left < end:
        known = np.int64(0)
        if _may_be_address(text, kinds, left, end):
            known = _entry(text, left, end, ADDRESS | NO_ADDRESS, slots, arena, shapes)
            if not known:
                question[0], question[1], question[2] = left, end, 0
                return np.int64(-1)
        at = cut = left
        while at < end and not (known and arena[known + 1] == ADDRESS):
            size = _infix_length(text, kinds, at, left, end)
            if size and at > left:
                if at > cut:
                    starts[n], ends[n] = cut, at
                    n += 1
                starts[n], ends[n] = at, at + size
                n, cut = n + 1, at + size
            at += max(size, 1)
        if cut < end:
            starts[n], ends[n] = cut, end
            n += 1
    while right < ends.size:
        starts[n], ends[n] = starts[right], ends[right]
        n, right = n + 1, right + 1
    if n - first > 2:
        for i in range(first, n):
            for j in range(i, n):
                if ends[j] - starts[i] > LONGEST_SPECIAL:
                    break
                entry = _entry(text, starts[i], ends[j], SPECIAL, slots, arena, shapes)
                same = entry == 0 or arena[entry + 2] == j - i + 1
                if entry and same:
                    for k in range(i, j + 1):
                        same = same and ends[k] - starts[i] == arena[entry + 3 + ends[j] - starts[i] + k - i]
                if not same:
                    question[0], question[1], question[2] = a, b, 1
                    return np.int64(-1)
    return n


@njit(types.UniTuple(int64, 2)(text_t, kinds_t, lexicon_t, lexicon_t, uint8[::1], cuts_t, cuts_t, int64[:, ::1]), cache=True)
def cut_spaced(text, kinds, slots, arena, shapes, starts, ends, questions):
    """Words as spaCy's English tokenizer cuts them, without its tokens of white space: (their number, the number of questions to the lexicon's owner).

    starts, ends have room for 2T+2. questions (Q, 3): start, end, and 0 (is this an address?) or 1 (the words of this chunk?); where there is one, starts
    and ends mean nothing yet, and there may be more than the Q that fit.
    """
    n = asked = i = np.int64(0)
    while i < text.size and asked < questions.shape[0]:
        if kinds[text[i]] & SPACE:
            i += 1
            continue
        a, odd, digits = i, np.int64(0), np.int64(0)
        while i < text.size:
            kind = np.int64(kinds[text[i]])
            if kind & SPACE:
                break
            odd += (kind & (ALPHA | EDGE | FRONT | ICON | QUOTE)) != ALPHA
            digits += kind >> 15
            i += 1
        first, final = kinds[text[a]], kinds[text[i - 1]]
        x = a + ((first & EDGE) != 0)
        y = i - (x < i - 1 and (final & EDGE != 0 or (text[i - 1] == _DOT and kinds[text[i - 2]] & BEFORE_DOT != 0)))
        if y > x and odd == digits + (x - a) + (i - y) and (digits == 0 or digits == y - x):
            # Letters or digits alone, with at most one affix on either side: most of a text
            may = shapes[_shape(text, a, i)] | shapes[_shape(text, x, y)] | shapes[_shape(text, a, y)] | shapes[_shape(text, x, i)]
            if not may & (SPECIAL | WHOLE):
                starts[n], ends[n] = a, x
                n += x > a
                starts[n], ends[n] = x, y
                n += 1
                starts[n], ends[n] = y, i
                n += y < i
                continue
        entry = _entry(text, a, i, WHOLE, slots, arena, shapes)
        if entry:
            n = _copy_pieces(text, starts, ends, n, a, entry, arena)
            continue
        found = _cut_chunk(text, kinds, a, i, slots, arena, shapes, starts, ends, n, questions[asked])
        if found < 0:
            asked += 1
        else:
            n = found
    return n, asked


# Chinese: jieba's dictionary, route of highest probability, and hidden Markov model.


@njit(types.void(uint8[::1], hash_t, int64[::1], cuts_t, uint8[::1]), cache=True)
def read_dictionary(data, keys, frequencies, totals, hints):
    """Fill the table of a dictionary's words and their beginnings from its bytes (`word frequency tag` a line, UTF-8).

    keys: at even places hashes, 0 where empty; the odd ones are left for scores, in the same line of the cache. frequencies (half as many), 0 for a
    beginning only. totals: sum of frequencies, number of keys. hints: bits by hash, so that most of what is no key is seen in the nearer cache.
    """
    mask = frequencies.size - 1
    word = np.empty(64, np.uint64)
    i, size = 0, data.size
    while i < size:
        length, value = 0, np.uint64(0)
        while data[i] != 32:
            c = np.int64(data[i])
            if c >= 0xF0:
                c = (c & 7) << 18 | np.int64(data[i + 1] & 63) << 12 | np.int64(data[i + 2] & 63) << 6 | np.int64(data[i + 3] & 63)
                i += 4
            elif c >= 0xE0:
                c = (c & 15) << 12 | np.int64(data[i + 1] & 63) << 6 | np.int64(data[i + 2] & 63)
                i += 3
            elif c >= 0xC0:
                c = (c & 31) << 6 | np.int64(data[i + 1] & 63)
                i += 2
            else:
                i += 1
            value = value * BASE + np.uint64(c + 1)
            word[length] = value
            length += 1
        i += 1
        frequency = 0
        while i < size and 48 <= data[i] <= 57:
            frequency = 10 * frequency + np.int64(data[i]) - 48
            i += 1
        while i < size and data[i] != 10:
            i += 1
        i += 1
        totals[0] += frequency
        for k in range(length):
            at = _slot(word[k], mask)
            while keys[2 * at] and keys[2 * at] != word[k]:
                at = (at + 1) & mask
            if not keys[2 * at]:
                keys[2 * at] = word[k]
                hints[_slot(word[k], 8 * hints.size - 1) >> 3] |= np.uint8(1 << (_slot(word[k], 7)))
                totals[1] += 1
            if k == length - 1:
                frequencies[at] = frequency


@njit(int64(uint64, hash_t, uint8[::1]), cache=True, forceinline=True)
def _place(value, keys, hints):
    """Place of a key's score, -1 for no key."""
    if not hints[_slot(value, 8 * hints.size - 1) >> 3] >> np.uint8(_slot(value, 7)) & 1:
        return np.int64(-1)
    at = 2 * _slot(value, keys.size // 2 - 1)
    while keys[at] and keys[at] != value:
        at = (at + 2) & (keys.size - 1)
    return at + 1 if keys[at] else np.int64(-1)


@njit(types.void(hash_t, uint8[::1], float64[::1], float64[::1]), cache=True)
def score_singles(keys, hints, scores, single_scores):
    """Fill single_scores of the characters that are keys."""
    for c in range(single_scores.size):
        place = _place(np.uint64(c + 1), keys, hints)
        if place >= 0:
            single_scores[c] = scores[place]


@njit(
    int64(text_t, int64, int64, float64[:, ::1], float64[:, ::1], uint8[:, ::1], float64[:, ::1], cuts_t, cuts_t, int64),
    cache=True,
    forceinline=True,
)
def _cut_unknown(text, a, b, emit, change, back, best, starts, ends, n):
    """Words of a run of Han characters by the hidden Markov model. States in the order of their letters: B E M S. change[4] is the start."""
    low = -3.14e100
    for y in range(4):
        best[0, y] = change[4, y] + (emit[text[a], y] if text[a] < emit.shape[0] else low)
    for t in range(1, b - a):
        for y in range(4):
            em = emit[text[a + t], y] if text[a + t] < emit.shape[0] else low
            # What may stand before: B after E S, E after B M, M after B M, S after E S; of equal ones the later letter
            one, two = (1, 3) if y == 0 or y == 3 else (0, 2)
            p, q = best[t - 1, one] + change[one, y] + em, best[t - 1, two] + change[two, y] + em
            if q >= p:
                best[t, y], back[t, y] = q, two
            else:
                best[t, y], back[t, y] = p, one
    state = 3 if best[b - a - 1, 3] >= best[b - a - 1, 1] else 1
    for t in range(b - a - 1, -1, -1):
        previous = back[t, state]
        back[t, 0] = state
        state = previous
    begin = after = a
    for t in range(b - a):
        state = back[t, 0]
        if state == 0:
            begin = a + t
        elif state == 1:
            starts[n], ends[n] = begin, a + t + 1
            n, after = n + 1, a + t + 1
        elif state == 3:
            starts[n], ends[n] = a + t, a + t + 1
            n, after = n + 1, a + t + 1
    if after < b:
        starts[n], ends[n] = after, b
        n += 1
    return n


@njit(types.boolean(uint32), cache=True, forceinline=True)
def _han(c):
    return 0x4E00 <= c <= 0x9FD5


@njit(types.boolean(uint32), cache=True, forceinline=True)
def _ascii_word(c):
    return 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122


@njit(
    int64(text_t, int64, int64, hash_t, hash_t, hash_t, uint8[::1], float64[::1], float64[:, ::1], float64[:, ::1], uint8[:, ::1], float64[:, ::1], cuts_t, cuts_t, int64),
    cache=True, forceinline=True,
)  # fmt: skip
def _cut_singles(text, a, b, prefix, powers, keys, hints, scores, emit, change, back, best, starts, ends, n):
    """Words of text[a:b], a run of characters that the route left single."""
    if b - a > 1:
        place = _place(_piece(prefix, powers, a, b), keys, hints)
        if place < 0 or scores[place] > 0:
            i = a
            while i < b:
                begin = i
                if _han(text[i]):
                    while i < b and _han(text[i]):
                        i += 1
                    n = _cut_unknown(text, begin, i, emit, change, back, best, starts, ends, n)
                    continue
                if _ascii_word(text[i]):
                    while i < b and _ascii_word(text[i]):
                        i += 1
                    if i + 1 < b and text[i] == _DOT and 48 <= text[i + 1] <= 57:
                        i += 2
                        while i < b and 48 <= text[i] <= 57:
                            i += 1
                    if i < b and text[i] == 37:
                        i += 1
                else:
                    while i < b and not _han(text[i]) and not _ascii_word(text[i]):
                        i += 1
                starts[n], ends[n] = begin, i
                n += 1
            return n
    for i in range(a, b):
        starts[n], ends[n] = i, i + 1
        n += 1
    return n


@njit(
    int64(
        text_t, kinds_t, hash_t, hash_t, hash_t, uint8[::1], out_t, out_t, float64, float64[:, ::1], float64[:, ::1], out_t, cuts_t, uint8[:, ::1],
        float64[:, ::1], cuts_t, cuts_t,
    ),
    cache=True,
)  # fmt: skip
def cut_chinese(text, kinds, prefix, powers, keys, hints, scores, single_scores, rare, emit, change, route, step, back, best, starts, ends):
    """Words as jieba.cut gives them, without white space: their number. starts, ends have room for T; route, step (≥ T+1,), back, best (≥ T+1, 4) are
    work space.

    scores, at the odd places of keys: a key's logarithm of frequency less that of the total, 1 for a beginning only; single_scores (0x110000,): of words of one character, 1 for a
    beginning only, 2 for no key; rare: of a character that is no word.
    """
    size = text.size
    n = np.int64(0)
    i = np.int64(0)
    while i < size:
        a = i
        while i < size and (_han(text[i]) or _ascii_word(text[i]) or text[i] in (43, 35, 38, 46, 95, 37, 45)):  # + # & . _ % -
            i += 1
        if i == a:
            if not kinds[text[i]] & SPACE:
                starts[n], ends[n] = i, i + 1
                n += 1
            i += 1
            continue
        route[i] = 0.0
        for k in range(i - 1, a - 1, -1):
            alone = single_scores[text[k]]
            found = alone <= 0
            route[k], step[k] = (alone if found else rare) + route[k + 1], k
            value = np.uint64(text[k] + 1)
            for x in range(k + 1, i):
                if alone > 1:
                    break
                value = value * BASE + np.uint64(text[x] + 1)
                place = _place(value, keys, hints)
                if place < 0:
                    break
                if scores[place] <= 0:
                    score = scores[place] + route[x + 1]
                    if not found or score >= route[k]:
                        route[k], step[k], found = score, x, True
        x = single = a
        while x < i:
            y = step[x] + 1
            if y - x > 1:
                if single < x:
                    n = _cut_singles(text, single, x, prefix, powers, keys, hints, scores, emit, change, back, best, starts, ends, n)
                starts[n], ends[n] = x, y
                n += 1
                single = y
            x = y
        if single < i:
            n = _cut_singles(text, single, i, prefix, powers, keys, hints, scores, emit, change, back, best, starts, ends, n)
    return n


# Counts of the rules. `table` int32 (power of two, more than twice the pieces) is work space: places of pieces seen + 1, 0 where empty.


@njit(int64(lexicon_t, int64), cache=True, forceinline=True)
def _clear(table, pieces):
    """Make the beginning of the table empty, at least twice as long as the pieces are many, and return the mask of its places."""
    size = 256
    while size < 2 * pieces:
        size *= 2
    table[:size] = 0
    return size - 1


@njit(int64(int64, hash_t, cuts_t, uint8[::1]), cache=True, forceinline=True)
def _perhaps_repeated(looked, values, places, seen):
    """Keep of the first `looked` places those whose values may come twice, in order; their number. None that does come twice is lost.

    Cheap, so that the table, which is exact, has little left to do. seen: work space as long as the table.
    """
    size = 1024
    while size < 4 * looked:
        size *= 2
    mask = size - 1
    seen[:size] = 0
    for at in range(looked):
        slot = _slot(values[places[at]], mask)
        seen[slot] |= uint8(1) + (seen[slot] << uint8(1))
    left = np.int64(0)
    for at in range(looked):
        w = places[at]
        places[left] = w
        left += seen[_slot(values[w], mask)] > 1
    return left


@njit(int64(int64, hash_t, lexicon_t, int64), cache=True, forceinline=True)
def _first(index, values, table, mask):
    """Index of the first value seen that equals values[index]: `index` itself, which is then remembered, if there is none."""
    value = values[index]
    at = _slot(value, mask)
    while table[at]:
        if values[table[at] - 1] == value:
            return np.int64(table[at]) - 1
        at = (at + 1) & mask
    table[at] = index + 1
    return index


@njit(
    types.void(
        text_t, kinds_t, hash_t, cuts_t, cuts_t, hash_t, lexicon_t, uint8[::1], hash_t, hash_t, cuts_t, cuts_t, cuts_t, cuts_t, out_t
    ),
    cache=True,
)
def count_words(text, kinds, powers, starts, ends, stop_words, table, seen, joined, grams, offsets, counts, places, firsts, out):
    """Gopher's counts over words. stop_words (≤ 64,) hashes; work space: joined (≥ T+1,), the others (≥ W+1,).

    out: words, words with more than punctuation, their characters, words with a letter, different stop words; characters of the most frequent 2-, 3-,
    4-gram (with a space between words) times its count; characters in repeated 5- … 10-grams (words joined without spaces).
    """
    n = starts.size
    plain = length = letters = different = size = np.int64(0)
    stops = total = likely = np.uint64(0)
    for k in range(stop_words.size):
        likely |= np.uint64(1) << ((stop_words[k] * BASE) >> np.uint64(58))  # a bit of each, so that most words need no comparing
    joined[0] = offsets[0] = 0
    for w in range(n):
        some, every = uint16(0), uint16(MARK)
        for i in range(starts[w], ends[w]):
            some |= kinds[text[i]]
            every &= kinds[text[i]]
            total = total * BASE + np.uint64(text[i] + 1)
            size += 1
            joined[size] = total
        offsets[w + 1] = size
        if not every:
            plain += 1
            length += ends[w] - starts[w]
        letters += some & LETTER != 0
        word = _piece(joined, powers, offsets[w], size)
        grams[w] = word
        if likely >> ((word * BASE) >> np.uint64(58)) & np.uint64(1):
            for k in range(stop_words.size):
                if stop_words[k] == word:
                    stops |= np.uint64(1) << np.uint64(k)
    while stops:
        stops &= stops - np.uint64(1)
        different += 1
    out[0], out[1], out[2], out[3], out[4] = n, plain, length, letters, different
    # A repeated 3-gram begins with a repeated 2-gram, a 4-gram with a 3-gram: only those places are looked at again
    looked = np.int64(n)
    for w in range(n):
        places[w] = w
    for gram in range(2, 5):
        most, top = np.int64(1), np.int64(0)
        whole = np.int64(0)
        for at in range(looked):
            w = places[at]
            if w + gram <= n:
                following = _piece(joined, powers, offsets[w + gram - 1], offsets[w + gram])
                grams[w] = (grams[w] ^ (grams[w] >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93) + following
                counts[w] = 0
                places[whole] = w
                whole += 1
        looked = _perhaps_repeated(whole, grams, places, seen)
        mask = _clear(table, looked)
        for at in range(looked):
            w = places[at]
            first = _first(w, grams, table, mask)
            firsts[w] = first
            counts[first] += 1
            most = max(most, counts[first])
        again = np.int64(0)
        if most > 1:
            for at in range(looked):
                w = places[at]
                if counts[firsts[w]] > 1:
                    if top == 0 and counts[firsts[w]] == most:  # of equal counts the first, as Counter.most_common gives it
                        top = w + 1
                    places[again] = w
                    again += 1
        looked = again
        top = max(top - 1, 0)
        out[3 + gram] = (offsets[top + gram] - offsets[top] + gram - 1) * most if n >= gram else 0
    # Repeated 5-grams and longer ones have the same first characters: only places whose first characters may come twice, or that are shorter, are looked at
    head = max(4, 3 * size // max(n, 1))
    fifths = max(np.int64(n) - 4, np.int64(0))
    for w in range(fifths):
        grams[w] = _piece(joined, powers, offsets[w], offsets[w] + head) if offsets[w + 5] - offsets[w] >= head else np.uint64(0)
        places[w] = w
    short = np.int64(0)
    for w in range(fifths):  # these must stay: zero comes twice
        short += grams[w] == 0
    looked = _perhaps_repeated(fifths, grams, places, seen) if short != 1 else fifths
    many = looked
    for w in range(many):
        firsts[w] = places[w]
    for gram in range(5, 11):
        whole = np.int64(0)
        for at in range(many):
            w = firsts[at]
            if w + gram <= n:
                grams[w] = _piece(joined, powers, offsets[w], offsets[w + gram])
                places[whole] = w
                whole += 1
        looked = _perhaps_repeated(whole, grams, places, seen)
        mask = _clear(table, looked)
        repeated = after = np.int64(0)
        for at in range(looked):
            w = places[at]
            if w >= after and _first(w, grams, table, mask) < w:
                repeated += offsets[w + gram] - offsets[w]
                after = w + gram
        out[3 + gram] = repeated


@njit(types.void(text_t, kinds_t, hash_t, hash_t, lexicon_t, hash_t, out_t), cache=True)
def count_lines(text, kinds, prefix, powers, table, values, out):
    """Gopher's counts over characters, lines and paragraphs. values (≥ lines,) work space.

    out: number signs, ellipses; lines as str.splitlines cuts them, of them with a bullet first, with an ellipsis last; pieces between runs of line feeds, repeated ones, their
    characters; pieces of the stripped text between two or more line feeds, repeated ones, their characters.
    """
    out[:11] = 0
    i, size = np.int64(0), np.int64(text.size)
    while i < size:
        a, dots = i, 0
        while i < size and not kinds[text[i]] & BREAK:
            c = text[i]
            if c > _ELLIPSIS or 58 < c < 128:  # most of any text
                dots = 0
                i += 1
                continue
            dots = dots + 1 if c == _DOT else 0
            if c == 35:
                out[0] += 1
            elif c == _ELLIPSIS or dots == 3:
                out[1] += 1
                dots = 0
            i += 1
        b = i
        i += 2 if i + 1 < size and text[i] == 13 and text[i + 1] == 10 else 1
        while a < b and kinds[text[a]] & SPACE:
            a += 1
        while a < b and kinds[text[b - 1]] & SPACE:
            b -= 1
        out[2] += 1
        if a < b:
            if text[a] == 0x2022 or text[a] == _HYPHEN:
                out[3] += 1
            if text[b - 1] == _ELLIPSIS or (b - a > 2 and text[b - 1] == _DOT and text[b - 2] == _DOT and text[b - 3] == _DOT):
                out[4] += 1
    start, end = np.int64(0), size
    for least in range(1, 3):
        if least == 2:
            while start < end and kinds[text[start]] & SPACE:
                start += 1
            while start < end and kinds[text[end - 1]] & SPACE:
                end -= 1
        n, a, i = np.int64(0), start, start
        table[:] = 0
        while True:
            while i < end and text[i] != 10:
                i += 1
            run = np.int64(0)
            while i + run < end and text[i + run] == 10:
                run += 1
            if i < end and run < least:
                i += max(run, 1)
                continue
            values[n] = _piece(prefix, powers, a, i) + np.uint64(i - a) * np.uint64(0xD6E8FEB86659FD93)
            if _first(n, values, table, table.size - 1) != n:
                out[3 * least + 3] += 1
                out[3 * least + 4] += i - a
            n += 1
            i += run
            a = i
            if run == 0:
                break
        out[3 * least + 2] = n


@njit(types.void(text_t, kinds_t, hash_t, hash_t, lexicon_t, hash_t, out_t), cache=True)
def count_ended_lines(text, kinds, prefix, powers, table, values, out):
    """FineWeb's counts over lines that are not blank. values (≥ lines,) work space.

    out: lines, of them with an end of a sentence last, of at most 30 characters; characters of repeated ones; line feeds in the whole text.
    """
    out[:5] = 0
    table[:] = 0
    n, a, size = np.int64(0), np.int64(0), np.int64(text.size)
    while a <= size:
        i = a
        while i < size and text[i] != 10 and kinds[text[i]] & SPACE:
            i += 1
        blank = i == size or text[i] == 10
        while i < size and text[i] != 10:
            i += 1
        if i < size:
            out[4] += 1
        if not blank:
            if kinds[text[i - 1]] & LINE_END:
                out[1] += 1
            if i - a <= 30:
                out[2] += 1
            values[n] = _piece(prefix, powers, a, i) + np.uint64(i - a) * np.uint64(0xD6E8FEB86659FD93)
            if _first(n, values, table, table.size - 1) != n:
                out[3] += i - a
            n += 1
        a = i + 1
    out[0] = n


@njit(types.UniTuple(int64, 6)(text_t, kinds_t, cuts_t, cuts_t, int64, int64, types.boolean, int64[:, ::1], text_t), cache=True)
def clean_lines(text, kinds, starts, ends, max_word, min_words, by_sentence, rows, left):
    """The lines of str.splitlines without white space around that C4 keeps by their words: words between spaces of at most max_word characters (0: of any),
    min_words of them. Sentences are counted by_sentence, else each line is one.

    rows int64 (≥ lines, 5): of each kept line start, end, words of starts and ends in it, sentences as spaCy's sentencizer ends them, and whether a bracket
    or a piece of C4's phrases stands in it, so that a closer look is due. left (≥ T,): the kept lines joined by line feeds, and stripped.
    Returns lines, kept lines, kept lines due for a closer look, words and sentences of kept lines, characters in left.
    """
    n = kept = due = all_words = all_sentences = length = w = i = np.int64(0)
    size = np.int64(text.size)
    while i < size:
        a = i
        while i < size and not kinds[text[i]] & BREAK:
            i += 1
        b = i
        i += 2 if i + 1 < size and text[i] == 13 and text[i + 1] == 10 else 1
        while a < b and kinds[text[a]] & SPACE:
            a += 1
        while a < b and kinds[text[b - 1]] & SPACE:
            b -= 1
        words = longest = suspect = np.int64(0)
        space = a - 1
        for k in range(a, b):
            c = text[k]
            if kinds[c] & SPACE:
                words += k - space > 1
                longest = max(longest, k - space - 1)
                space = k
                continue
            if c > 0x212A:  # no letter of a phrase is beyond the sign of Kelvin
                continue
            c |= uint32(32)
            if c == 123:  # [ or {
                suspect = 1
            elif (c == 107 or c == 0x212A) and k + 2 < b:  # cookie; the sign of Kelvin is another k
                suspect |= text[k + 1] | 32 == 105 and text[k + 2] | 32 == 101
            elif (c == 109 or c == 106 or c == 118) and k + 4 < b:  # m ips, ms of, javas, vacy p
                d, e, f = text[k + 1] | uint32(32), text[k + 2] | uint32(32), text[k + 3] | uint32(32)
                if c == 109:
                    suspect |= (d == 32 and e == 105 and f == 112) or (d == 115 and e == 32 and f == 111 and text[k + 4] | 32 == 102)
                else:
                    suspect |= d == 97 and ((e == 118 and f == 97) or (e == 99 and f == 121))
        if b > a:
            words += 1
            longest = max(longest, b - space - 1)
        first, sentences, seen, last = w, np.int64(0), False, a
        while not by_sentence and w < starts.size and starts[w] < b:
            w += 1
        while w < starts.size and starts[w] < b:
            if seen:
                gap, every = starts[w] - last, uint16(PUNCTUATION)
                for k in range(starts[w], ends[w]):
                    every &= kinds[text[k]]
                if gap > 1 or (gap == 1 and text[last] != 32):  # spaCy has a token for white space other than one blank
                    sentences, seen = sentences + 1, False
            last = ends[w]
            if last - starts[w] == 1 and kinds[text[starts[w]]] & SENTENCE_END:
                seen = True
            elif seen and not every:
                sentences, seen = sentences + 1, False
            w += 1
        n += 1
        if words < min_words or (max_word and longest > max_word):
            continue
        sentences += w > first
        rows[kept, 0], rows[kept, 1], rows[kept, 2], rows[kept, 3], rows[kept, 4] = a, b, w - first, sentences, suspect
        kept, due, all_words, all_sentences = kept + 1, due + suspect, all_words + w - first, all_sentences + sentences
        if length:
            left[length] = 10
            length += 1
        for k in range(a, b):
            left[length] = text[k]
            length += 1
    while length and left[length - 1] == 10:
        length -= 1
    return n, kept, due, all_words, all_sentences, length
