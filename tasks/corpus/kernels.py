"""Compiled: UTF-8 text -> words and CJK characters -> hashes of shingles -> MinHash signatures and band keys (minhash.py states the contract).

    sign(data, offsets, …)      signatures of a batch, but of texts that Python has to normalise first
    digest(data, offsets, …)    64-bit hashes of the shingles of a batch
    xxh3(data, size, …)         hashes of equal pieces: band keys
    squeeze(begins, values)     sets of sorted ones
    shared(a, b)                how many values two sets have in common
    unite(parent, …)            union-find over buckets; flatten(parent): its roots
    walk(begin, bucket, …)      who stays of the documents of some buckets (keepers.py states the rule)

A batch is Arrow's: bytes, and offsets of n + 1 places in them. Every kernel has its types stated, is compiled once a machine and kept beside this file.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float64, int32, int64, types, uint8, uint32, uint64, void
from numba.extending import intrinsic

from tasks.corpus.codepoints import CHARACTER, PHRASES, POINT, POOL, SPACE, STOP, TURNS, WORD
from tasks.corpus.compiled import njit
from tasks.corpus.minhash import SHINGLE

A1, A2, A3, A4, A5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
B1, B2, B3, B4, B5 = 11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261
"""Primes of xxh32 and xxh64."""
SPACE_BIT, WORD_BIT, TURNS_BIT, GAP = SPACE.bit_length() - 1, WORD.bit_length() - 1, TURNS.bit_length() - 1, 1 << 31
"""The last marks a CJK character that follows something else."""
BYTES = types.Array(types.uint8, 1, "C", readonly=True)
"""Bytes that may be Arrow's own, which nobody writes."""
POINTS = types.Array(types.uint32, 1, "C", readonly=True)
OFFSETS = types.Array(types.int64, 1, "C", readonly=True)
HASHES = types.Array(types.uint64, 1, "C", readonly=True)


def _loader(word: Any, bits: int) -> Any:
    """load(data, at: uint64): the word of the bytes from there, little-endian; a plain load, which indexing byte by byte does not become."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(bits).as_pointer()), align=1)

    @intrinsic
    def load(context: Any, data: Any, at: Any) -> Any:
        return word(data, types.uint64), code

    return load


_load32, _load64 = _loader(types.uint32, 32), _loader(types.uint64, 64)


def _read(context: Any, address: Any) -> Any:
    """The 64-bit word at an address: sets lie in mapped files of which there are many."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.uint64(types.uint64), code


_word: Any = intrinsic(_read)


@njit(uint32(BYTES, uint64, uint64), cache=True)
def xxh32(data: Any, at: Any, end: Any) -> Any:
    """xxh32, seed 0, of data[at:end]. Reads up to 16 bytes beyond the end: its steps are chosen without branches, which words' lengths would defy."""
    size = end - at
    if size >= 16:
        v1, v2, v3, v4 = uint32(A1 + A2), uint32(A2), uint32(0), uint32(2**32 - A1)
        for _ in range(size >> uint64(4)):
            v1 = uint32(v1 + _load32(data, at) * A2)
            v2 = uint32(v2 + _load32(data, at + uint64(4)) * A2)
            v3 = uint32(v3 + _load32(data, at + uint64(8)) * A2)
            v4 = uint32(v4 + _load32(data, at + uint64(12)) * A2)
            v1 = uint32(uint32(v1 << 13 | v1 >> 19) * A1)
            v2 = uint32(uint32(v2 << 13 | v2 >> 19) * A1)
            v3 = uint32(uint32(v3 << 13 | v3 >> 19) * A1)
            v4 = uint32(uint32(v4 << 13 | v4 >> 19) * A1)
            at += uint64(16)
        h = uint32((v1 << 1 | v1 >> 31) + (v2 << 7 | v2 >> 25) + (v3 << 12 | v3 >> 20) + (v4 << 18 | v4 >> 14))
    else:
        h = uint32(A5)
    h = uint32(h + size)
    words = size >> uint64(2) & uint64(3)
    for step in range(uint64(3)):
        g = uint32(h + _load32(data, at + uint64(4) * step) * A3)
        g = uint32(uint32(g << 17 | g >> 15) * A4)
        h = g if step < words else h
    last = _load32(data, at + uint64(4) * words)
    for step in range(uint64(3)):
        g = uint32(h + (last >> uint64(8) * step & 255) * A5)
        g = uint32(uint32(g << 11 | g >> 21) * A1)
        h = g if step < size & uint64(3) else h
    h = uint32((h ^ h >> 15) * A2)
    h = uint32((h ^ h >> 13) * A3)
    return uint32(h ^ h >> 16)


@njit(uint64(uint64, uint64), cache=True)
def _round64(sum_: Any, lane: Any) -> Any:
    sum_ += lane * uint64(B2)
    return (sum_ << 31 | sum_ >> 33) * uint64(B1)


@njit(uint64(BYTES, uint64, uint64), cache=True)
def xxh64(data: Any, at: Any, end: Any) -> Any:
    """xxh64, seed 0, of data[at:end]. Reads up to 8 bytes beyond the end."""
    size = end - at
    if size >= 32:
        v1, v2, v3, v4 = uint64(B1) + uint64(B2), uint64(B2), uint64(0), uint64(0) - uint64(B1)
        for _ in range(size >> uint64(5)):
            v1 = _round64(v1, _load64(data, at))
            v2 = _round64(v2, _load64(data, at + uint64(8)))
            v3 = _round64(v3, _load64(data, at + uint64(16)))
            v4 = _round64(v4, _load64(data, at + uint64(24)))
            at += uint64(32)
        h = (v1 << 1 | v1 >> 63) + (v2 << 7 | v2 >> 57) + (v3 << 12 | v3 >> 52) + (v4 << 18 | v4 >> 46)
        h = (h ^ _round64(uint64(0), v1)) * uint64(B1) + uint64(B4)
        h = (h ^ _round64(uint64(0), v2)) * uint64(B1) + uint64(B4)
        h = (h ^ _round64(uint64(0), v3)) * uint64(B1) + uint64(B4)
        h = (h ^ _round64(uint64(0), v4)) * uint64(B1) + uint64(B4)
    else:
        h = uint64(B5)
    h += size
    for _ in range(size >> uint64(3) & uint64(3)):
        h ^= _round64(uint64(0), _load64(data, at))
        h = (h << 27 | h >> 37) * uint64(B1) + uint64(B4)
        at += uint64(8)
    if size & uint64(4):
        h ^= _load32(data, at) * uint64(B1)
        h = (h << 23 | h >> 41) * uint64(B2) + uint64(B3)
        at += uint64(4)
    while at < end:
        h ^= data[at] * uint64(B5)
        h = (h << 11 | h >> 53) * uint64(B1)
        at += uint64(1)
    h = (h ^ h >> 33) * uint64(B2)
    h = (h ^ h >> 29) * uint64(B3)
    return h ^ h >> 32


@njit(int64(uint8[::1], int64, uint32), cache=True)
def _put(out: Any, at: Any, point: Any) -> Any:
    """Write a code point as UTF-8 (a lone surrogate too, as Python's surrogatepass does). Returns the place behind it."""
    place = uint64(at)
    if point < 0x80:
        out[place] = uint8(point)
        return at + 1
    if point < 0x800:
        out[place] = uint8(0xC0 | point >> 6)
        out[place + uint64(1)] = uint8(0x80 | point & 63)
        return at + 2
    if point < 0x10000:
        out[place] = uint8(0xE0 | point >> 12)
        out[place + uint64(1)] = uint8(0x80 | point >> 6 & 63)
        out[place + uint64(2)] = uint8(0x80 | point & 63)
        return at + 3
    out[place] = uint8(0xF0 | point >> 18)
    out[place + uint64(1)] = uint8(0x80 | point >> 12 & 63)
    out[place + uint64(2)] = uint8(0x80 | point >> 6 & 63)
    out[place + uint64(3)] = uint8(0x80 | point & 63)
    return at + 4


@njit(void(uint32[::1], int64, uint32[::1], int64, POINTS, POINTS), cache=True)
def _simplify(characters: Any, found: Any, turning: Any, count: Any, simple: Any, phrases: Any) -> None:
    """Make characters Simplified in place, by the longest phrase that begins there, as OpenCC does; `turning`: the places that `simple` knows of."""
    behind = uint64(0)
    for number in range(uint64(count)):
        at = uint64(turning[number])
        if at < behind:
            continue
        entry = simple[uint64(characters[at] & uint32(POINT))]
        if entry & uint32(PHRASES):
            place = uint64(entry & uint32(POINT))
            entry = phrases[place]
            for _ in range(phrases[place + uint64(1)]):
                size = uint64(phrases[place + uint64(2)])
                same = at + size <= uint64(found)
                step = uint64(1)
                while same and step < size:  # a character behind a gap has a bit more, and is not the phrase's
                    same = characters[at + step] == phrases[place + uint64(3) + step]
                    step += uint64(1)
                if same:
                    behind = at + size
                    for turn in range(size):
                        characters[at + turn] = phrases[place + uint64(3) + size + turn]
                    break
                place += uint64(1) + uint64(2) * size
        if at >= behind and entry:
            characters[at] = entry


@njit(types.UniTuple(int64, 2)(BYTES, int64, int64, *[POINTS] * 4, uint8[::1], *[uint32[::1]] * 3), cache=True)
def cut(
    data: Any, at: Any, end: Any, table: Any, pool: Any, simple: Any, phrases: Any, out: Any, starts: Any, characters: Any, turning: Any
) -> Any:
    """Cut data[at:end]. Returns (words, characters), or (-1, -1) where Python has to normalise the text first.

    Word n is out[starts[n] : starts[n + 1] - 1], and a space follows it; `characters` are Simplified code points, some with GAP. `turning` is scratch.
    Of out a third is for the text, a third for what it grows by, a third for its last part after that.
    """
    room = len(out) // 3 * 2 - 64
    write = start = 0  # where the next byte goes, and where the word that is being written began
    words, found, gap, letters = 0, 0, uint32(GAP), uint32(0)
    turned = int64(0)
    while at < end:
        first = data[uint64(at)]
        if first < 128:
            gap = uint32(GAP)
        while first < 128:  # without branches: where a word ends is what a processor cannot foretell
            entry = table[uint64(first)]
            space = entry >> uint32(SPACE_BIT) & uint32(1)
            letters |= entry >> uint32(WORD_BIT) & uint32(1)
            out[uint64(write)] = uint8(entry)
            starts[uint64(words)] = uint32(start)
            words += int64(space & letters)
            write = write + 1 if letters | (space ^ uint32(1)) else start
            start = write if space else start
            letters = uint32(0) if space else letters
            at += 1
            if at == end:
                break
            first = data[uint64(at)]
        if at == end:
            break
        if write > room or found > room:
            return -1, -1
        begun = found
        while at + 4 <= end:  # a run of characters, which is most of a Chinese text
            word = _load32(data, uint64(at))
            point = (word & uint32(15)) << 12 | (word >> 2 & uint32(0xFC0)) | (word >> 16 & uint32(63))
            entry = table[uint64(point)]
            if word & uint32(0xF0) != uint32(0xE0) or entry & uint32(CHARACTER | POOL | STOP) != uint32(CHARACTER):
                break
            if letters:
                starts[uint64(words)] = uint32(start)
                words += 1
                out[uint64(write)] = uint8(32)
                start = write + 1
                letters = uint32(0)
            write = start
            characters[uint64(found)] = uint32(entry & uint32(POINT) | gap)
            turning[uint64(turned)] = uint32(found)
            turned += int64(entry >> uint32(TURNS_BIT) & uint32(1))
            found += 1
            gap = uint32(0)
            at += 3
        if found > begun:
            continue
        size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        if at + size > end:
            return -1, -1
        second = uint32(data[uint64(at + 1)] & 63)
        if size == 2:
            point = uint32(first & 31) << 6 | second
        elif size == 3:
            point = uint32(first & 15) << 12 | second << 6 | uint32(data[uint64(at + 2)] & 63)
        else:
            point = uint32(first & 7) << 18 | second << 12 | uint32(data[uint64(at + 2)] & 63) << 6 | uint32(data[uint64(at + 3)] & 63)
        at += size
        entry = table[uint64(point)] if point < len(table) else uint32(STOP)
        if entry & uint32(STOP):
            return -1, -1
        place, last = uint64(0), uint64(1)
        if entry & uint32(POOL):
            place = uint64(entry & uint32(POINT)) + uint64(1)
            last = place + uint64(pool[place - uint64(1)])
        while place < last:
            one = pool[place] if entry & uint32(POOL) else entry
            place += uint64(1)
            if one & uint32(CHARACTER | SPACE):
                if letters:
                    starts[uint64(words)] = uint32(start)
                    words += 1
                    out[uint64(write)] = uint8(32)
                    start = write + 1
                write, letters = start, uint32(0)
            if one & uint32(CHARACTER):
                characters[uint64(found)] = uint32(one & uint32(POINT) | gap)
                turning[uint64(turned)] = uint32(found)
                turned += int64(one >> uint32(TURNS_BIT) & uint32(1))
                found += 1
                gap = uint32(0)
            else:
                gap = uint32(GAP)
                if not one & uint32(SPACE):
                    letters |= one >> uint32(WORD_BIT) & uint32(1)
                    write = _put(out, write, uint32(one & uint32(POINT)))
    if letters:
        starts[uint64(words)] = uint32(start)
        words += 1
        out[uint64(write)] = uint8(32)
        start = write + 1
    starts[uint64(words)] = uint32(start)
    _simplify(characters, found, turning, turned, simple, phrases)
    return words, found


@njit(types.Tuple((int64, int64, types.boolean))(BYTES, int64, int64, *[POINTS] * 4, types.boolean, uint8[::1], uint32[:, ::1]), cache=True)
def _shingles(data: Any, at: Any, end: Any, table: Any, pool: Any, simple: Any, phrases: Any, normal: Any, out: Any, scratch: Any) -> Any:
    """Cut data[at:end] so that shingles can be hashed: (words, characters, packed), words -1 where Python has to normalise the text first.

    With starts = scratch[0], shingle n of words is out[starts[n] : starts[n + SHINGLE] - 1]. Those of characters: where `packed`, of the successive
    scratch[1], three bytes of UTF-8 each, the first the lowest; else out[starts[words + n] : starts[words + n + SHINGLE]].
    """
    starts, characters = scratch[0], scratch[1]
    words, found = cut(data, at, end, table, pool, simple, phrases, out, starts, characters, scratch[2])
    if words < SHINGLE and found < SHINGLE:
        if words < 0 or not normal:
            return -1, 0, True
        for place in range(uint64(end - at)):
            out[place] = data[uint64(at) + place]
        starts[0], starts[SHINGLE] = uint32(0), uint32(end - at + 1)
        return SHINGLE, 0, True
    every = uint32(0)
    for n in range(uint64(found)):
        every |= characters[n]
    if every & uint32(POINT) < uint32(0x10000):
        for n in range(uint64(found)):
            point = characters[n]
            bytes_ = (point >> 12 & uint32(15)) | (point << 2 & uint32(0x3F00)) | (point & uint32(63)) << 16
            characters[n] = bytes_ | uint32(0x8080E0)
        return words, found, True
    write = int64(starts[uint64(words)])
    if write + 4 * found > len(out) - 64:
        return -1, 0, True
    for n in range(uint64(found)):
        write = _put(out, write, uint32(characters[n] & uint32(POINT)))
        starts[uint64(words) + n + uint64(1)] = uint32(write)
    return words, found, False


@njit(uint32(uint32), cache=True)
def _mixed(h: Any) -> Any:
    """MurmurHash3's finalizer: datasketch mixes before it permutes."""
    h = uint32((h ^ h >> 16) * 0x85EBCA6B)
    h = uint32((h ^ h >> 13) * 0xC2B2AE35)
    return uint32(h ^ h >> 16)


@njit(void(uint32[::1], uint64, uint32[::1]), cache=True)
def _packed32(characters: Any, count: Any, hashes: Any) -> None:
    """xxh32 of each five successive of `characters` (packed: 15 bytes), mixed. Without branches or bytes, so that it is done for many at a time."""
    for n in range(count):
        a, b, c = characters[n], characters[n + uint64(1)], characters[n + uint64(2)]
        d, e = characters[n + uint64(3)], characters[n + uint64(4)]
        h = uint32(A5 + 15)
        h = uint32(h + (a | b << 24) * uint32(A3))
        h = uint32(uint32(h << 17 | h >> 15) * uint32(A4))
        h = uint32(h + (b >> 8 | c << 16) * uint32(A3))
        h = uint32(uint32(h << 17 | h >> 15) * uint32(A4))
        h = uint32(h + (c >> 16 | d << 8) * uint32(A3))
        h = uint32(uint32(h << 17 | h >> 15) * uint32(A4))
        h = uint32(h + (e & uint32(255)) * uint32(A5))
        h = uint32(uint32(h << 11 | h >> 21) * uint32(A1))
        h = uint32(h + (e >> 8 & uint32(255)) * uint32(A5))
        h = uint32(uint32(h << 11 | h >> 21) * uint32(A1))
        h = uint32(h + (e >> 16) * uint32(A5))
        h = uint32(uint32(h << 11 | h >> 21) * uint32(A1))
        h = uint32((h ^ h >> 15) * uint32(A2))
        h = uint32((h ^ h >> 13) * uint32(A3))
        h = uint32(h ^ h >> 16)
        h = uint32((h ^ h >> 16) * uint32(0x85EBCA6B))
        h = uint32((h ^ h >> 13) * uint32(0xC2B2AE35))
        hashes[n] = uint32(h ^ h >> 16)


@njit(void(uint32[::1], uint64, uint64[::1]), cache=True)
def _packed64(characters: Any, count: Any, hashes: Any) -> None:
    """The same with xxh64, not mixed."""
    for n in range(count):
        a, b, c = uint64(characters[n]), uint64(characters[n + uint64(1)]), uint64(characters[n + uint64(2)])
        d, e = uint64(characters[n + uint64(3)]), uint64(characters[n + uint64(4)])
        h = uint64(B5) + uint64(15)
        lane = (a | b << 24 | c << 48) * uint64(B2)
        h ^= (lane << 31 | lane >> 33) * uint64(B1)
        h = (h << 27 | h >> 37) * uint64(B1) + uint64(B4)
        h ^= (c >> 16 | d << 8) * uint64(B1)
        h = (h << 23 | h >> 41) * uint64(B2) + uint64(B3)
        h ^= (e & uint64(255)) * uint64(B5)
        h = (h << 11 | h >> 53) * uint64(B1)
        h ^= (e >> 8 & uint64(255)) * uint64(B5)
        h = (h << 11 | h >> 53) * uint64(B1)
        h ^= (e >> 16) * uint64(B5)
        h = (h << 11 | h >> 53) * uint64(B1)
        h = (h ^ h >> 33) * uint64(B2)
        h = (h ^ h >> 29) * uint64(B3)
        hashes[n] = h ^ h >> 32


@njit(void(uint32[::1], int64, POINTS, POINTS, uint32[::1]), cache=True)
def _permute(hashes: Any, count: Any, a: Any, b: Any, minima: Any) -> None:
    """Least a·h + b of the hashes for each pair (a, b), four hashes at a time: what is beyond `count` must repeat one of them."""
    for k in range(uint64(len(minima))):
        minima[k] = uint32(0xFFFFFFFF)
    for n in range(uint64(0), uint64(count), uint64(4)):
        h, i, j, m = hashes[n], hashes[n + uint64(1)], hashes[n + uint64(2)], hashes[n + uint64(3)]
        for k in range(uint64(len(minima))):
            one = min(uint32(a[k] * h + b[k]), uint32(a[k] * i + b[k]))
            two = min(uint32(a[k] * j + b[k]), uint32(a[k] * m + b[k]))
            minima[k] = min(minima[k], min(one, two))


@njit(types.boolean[::1](BYTES, OFFSETS, *[POINTS] * 4, types.boolean, POINTS, POINTS, uint32[:, ::1]), cache=True)
def sign(data: Any, offsets: Any, table: Any, pool: Any, simple: Any, phrases: Any, normal: Any, a: Any, b: Any, signatures: Any) -> Any:
    """Fill the rows of `signatures` with the minima of a·h + b over each text's shingles. Returns which rows Python's normalisation must precede."""
    count = len(offsets) - 1
    longest = 0
    for text in range(count):
        longest = max(longest, offsets[text + 1] - offsets[text])
    out, scratch = (
        np.empty(3 * longest + 256, np.uint8),
        np.empty((4, 3 * longest + 256), np.uint32),
    )  # pages that are not used are never there
    starts, characters, hashes = scratch[0], scratch[1], scratch[3]
    left = np.zeros(count, np.bool_)
    for text in range(count):
        words, found, packed = _shingles(data, offsets[text], offsets[text + 1], table, pool, simple, phrases, normal, out, scratch)
        if words < 0:
            left[text] = True
            continue
        made = uint64(0)
        for n in range(uint64(SHINGLE), uint64(words + 1)):
            hashes[made] = _mixed(xxh32(out, uint64(starts[n - uint64(SHINGLE)]), uint64(starts[n] - uint32(1))))
            made += uint64(1)
        if packed and found >= SHINGLE:
            _packed32(characters, uint64(found - SHINGLE + 1), hashes[made:])
            made += uint64(found - SHINGLE + 1)
        else:
            for n in range(uint64(words + SHINGLE), uint64(words + found + 1)):
                hashes[made] = _mixed(xxh32(out, uint64(starts[n - uint64(SHINGLE)]), uint64(starts[n])))
                made += uint64(1)
        for n in range(made, made + uint64(3)):
            hashes[n] = hashes[0]
        _permute(hashes, int64(made), a, b, signatures[text])
    return left


@njit(types.Tuple((types.boolean[::1], int64[::1], uint64[::1]))(BYTES, OFFSETS, *[POINTS] * 4, types.boolean), cache=True)
def digest(data: Any, offsets: Any, table: Any, pool: Any, simple: Any, phrases: Any, normal: Any) -> Any:
    """64-bit hashes of all shingles, in order and repeated where they are. Returns which texts are left out as by `sign`, where each begins, hashes."""
    count = len(offsets) - 1
    longest = 0
    for text in range(count):
        longest = max(longest, offsets[text + 1] - offsets[text])
    out, scratch = np.empty(3 * longest + 256, np.uint8), np.empty((3, 3 * longest + 256), np.uint32)
    starts, characters = scratch[0], scratch[1]
    left, begins, hashes = (
        np.zeros(count, np.bool_),
        np.zeros(count + 1, np.int64),
        np.empty(offsets[count] - offsets[0] + count, np.uint64),
    )
    total = uint64(0)
    for text in range(count):
        words, found, packed = _shingles(data, offsets[text], offsets[text + 1], table, pool, simple, phrases, normal, out, scratch)
        left[text] = words < 0
        for n in range(uint64(SHINGLE), uint64(max(words, 0) + 1)):
            hashes[total] = xxh64(out, uint64(starts[n - uint64(SHINGLE)]), uint64(starts[n] - uint32(1)))
            total += uint64(1)
        if packed and found >= SHINGLE:
            _packed64(characters, uint64(found - SHINGLE + 1), hashes[total:])
            total += uint64(found - SHINGLE + 1)
        else:
            for n in range(uint64(words + SHINGLE), uint64(words + found + 1)):
                hashes[total] = xxh64(out, uint64(starts[n - uint64(SHINGLE)]), uint64(starts[n]))
                total += uint64(1)
        begins[text + 1] = int64(total)
    return left, begins, hashes[:total]


@njit(void(int64[::1], uint64[::1]), cache=True)
def squeeze(begins: Any, values: Any) -> None:
    """Leave of equal neighbours in values[begins[n]:begins[n + 1]] the first, for each n, and move all to the front; `begins` follows."""
    made = uint64(0)
    for piece in range(uint64(len(begins) - 1)):
        start, end = uint64(begins[piece]), uint64(begins[piece + uint64(1)])
        begins[piece] = int64(made)
        for at in range(start, end):
            value = values[at]
            if at == start or value != values[made - uint64(1)]:
                values[made] = value
                made += uint64(1)
    begins[len(begins) - 1] = int64(made)


@njit(uint64(uint64, uint64), cache=True)
def _fold(x: Any, y: Any) -> Any:
    """Both halves of the 128-bit product, one xor the other."""
    low, high = uint64(0xFFFFFFFF), uint64(32)
    corner, left, right = (x & low) * (y & low), (x >> high) * (y & low), (x & low) * (y >> high)
    middle = (corner >> high) + (left & low) + right
    return (x * y) ^ ((x >> high) * (y >> high) + (left >> high) + (middle >> high))


@njit(void(BYTES, int64, HASHES, uint64[::1]), cache=True)
def xxh3(data: Any, size: Any, secret: Any, hashes: Any) -> None:
    """xxh3-64, seed 0, of every `size` successive bytes, 17 to 128 of them; secret: the first 16 words of XXH3's."""
    for n in range(uint64(len(hashes))):
        at, end = n * uint64(size), (n + uint64(1)) * uint64(size)
        h = uint64(size) * uint64(B1)
        for k in range(uint64((size + 31) // 32)):
            first, last, word = at + uint64(16) * k, end - uint64(16) * (k + uint64(1)), uint64(4) * k
            h += _fold(_load64(data, first) ^ secret[word], _load64(data, first + uint64(8)) ^ secret[word + uint64(1)])
            h += _fold(_load64(data, last) ^ secret[word + uint64(2)], _load64(data, last + uint64(8)) ^ secret[word + uint64(3)])
        h = (h ^ h >> 37) * uint64(0x165667919E3779F9)
        hashes[n] = h ^ h >> 32


@njit(int64(HASHES, HASHES), cache=True)
def shared(a: Any, b: Any) -> Any:
    """How many values two ascending sets have in common."""
    i, j, found = uint64(0), uint64(0), 0
    while i < uint64(len(a)) and j < uint64(len(b)):
        x, y = a[i], b[j]
        found += x == y
        i += uint64(x <= y)
        j += uint64(y <= x)
    return found


@njit(int32(types.int32[::1], int32), cache=True)
def _root(parent: Any, one: Any) -> Any:
    """The least member of its set; halves the way there for who comes next."""
    while parent[one] != one:
        parent[one] = parent[parent[one]]
        one = parent[one]
    return one


@njit(void(types.int32[::1], types.Array(types.int32, 1, "C", readonly=True), OFFSETS), cache=True)
def unite(parent: Any, members: Any, starts: Any) -> None:
    """Join the sets of members[starts[n]:starts[n + 1]] for each n; a set is known by its least member."""
    for bucket in range(len(starts) - 1):
        one = _root(parent, members[starts[bucket]])
        for at in range(starts[bucket] + 1, starts[bucket + 1]):
            other = _root(parent, members[at])
            parent[max(one, other)] = min(one, other)
            one = min(one, other)


@njit(void(types.int32[::1]), cache=True)
def flatten(parent: Any) -> None:
    """Make every member point to the least of its set."""
    for one in range(len(parent)):
        parent[one] = parent[parent[one]]  # which is less, so it points there already


@njit(float64(uint64, int64, uint64, int64), cache=True)
def _alike(a: Any, a_size: Any, b: Any, b_size: Any) -> Any:
    """Jaccard similarity of two ascending sets of 64-bit words at two addresses."""
    i, j, both = uint64(0), uint64(0), int64(0)
    while i < uint64(a_size) and j < uint64(b_size):
        x, y = _word(a + uint64(8) * i), _word(b + uint64(8) * j)
        both += int64(x == y)
        i += uint64(x <= y)
        j += uint64(y <= x)
    return float64(both) / float64(a_size + b_size - both)


WALK = types.UniTuple(int64, 2)(
    OFFSETS, types.int32[::1], types.int32[::1], types.uint8[::1], types.boolean[::1], types.uint64[::1], types.int64[::1], float64,
    types.int32[::1], types.float64[::1], types.uint8[::1],
)  # fmt: skip


@njit(WALK, cache=True)
def walk(
    begin: Any, bucket: Any, room: Any, kind: Any, published: Any, address: Any, size: Any, threshold: Any, keeper: Any, similarity: Any, rule: Any
) -> Any:  # fmt: skip
    """Decide over documents 0 … in order. Document d is in bucket[begin[d]:begin[d + 1]], ascending, and its set is size[d] words at address[d].

    room: most keepers of a bucket; kind: its rule, 0 where members must be compared. Fills keeper (-1: stays), similarity and rule. Returns
    (pairs compared, documents that stay although one of their buckets had more keepers than room).
    """
    start = np.zeros(len(room) + 1, np.int64)
    for b in range(len(room)):
        start[b + 1] = start[b] + room[b]
    held, filled, over = np.empty(start[-1], np.int32), np.zeros(len(room), np.int32), np.zeros(len(room), np.bool_)
    tried, others = np.full(len(keeper), -1, np.int32), np.empty(len(keeper), np.int32)
    compared = untried = 0
    for d in range(len(keeper)):
        keeper[d] = -1
        if not published[d]:
            count = 0
            for at in range(begin[d], begin[d + 1]):
                b = bucket[at]
                if kind[b] and filled[b] and keeper[d] < 0:
                    other = held[start[b]]
                    keeper[d], rule[d] = other, kind[b]
                    similarity[d] = 1.0 if kind[b] == 1 else _alike(address[d], size[d], address[other], size[other])
                for place in range(start[b], start[b] + filled[b] if kind[b] == 0 else start[b]):
                    other = held[place]
                    if tried[other] != d:
                        tried[other] = d
                        others[count] = other
                        count += 1
            if keeper[d] < 0 and count:
                for other in np.sort(others[:count]):
                    compared += 1
                    a, b_ = float64(size[d]), float64(size[other])
                    if min(a, b_) < threshold * max(a, b_):
                        continue
                    found = _alike(address[d], size[d], address[other], size[other])
                    if found >= threshold:
                        keeper[d], similarity[d], rule[d] = other, found, 0
                        break
            if keeper[d] < 0:
                for at in range(begin[d], begin[d + 1]):
                    if over[bucket[at]]:
                        untried += 1
                        break
        if keeper[d] < 0:
            for at in range(begin[d], begin[d + 1]):
                b = bucket[at]
                if filled[b] < room[b]:
                    held[start[b] + filled[b]] = d
                    filled[b] += 1
                elif kind[b] == 0:
                    over[b] = True
    return compared, untried
