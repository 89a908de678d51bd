"""The signature contract: its golden file, its parity with datasketch and OpenCC on every kind of text, how a text is cut, what is compiled when."""

import gzip
import json
import random
import string
import subprocess
import sys
import unicodedata
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shingling
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from shingling import arrow

from model.errors import InputError
from tasks.corpus import codepoints, kernels, minhash
from tasks.corpus.codepoints import PHRASES, unicode_tables
from tasks.corpus.textnorm import is_cjk, normalise, simplify

PHRASED = sorted({chr(point) for point in unicode_tables().phrases.tolist() if point > 0x3000})
"""Characters of OpenCC's phrases: any two in a row may be one, or the beginning of one."""
KINDS = {
    "ascii": st.text(st.characters(max_codepoint=127)),
    "words": st.lists(st.text(string.ascii_letters + "'-.,_3", max_size=9)).map(" ".join),
    "latin": st.text(st.sampled_from("aeiou xyz’“”—…éüßİıſﬁﬀ½²™ªÅ\u00a0\u2028")),
    "combining": st.text(st.sampled_from("aeiouAEIOU ़़्ֿ́̂̈̄̃ัุ")),
    "hangul": st.text(st.characters(min_codepoint=0x1100, max_codepoint=0x11FF) | st.sampled_from("가각갛 한국")),
    "indic": st.text(st.characters(min_codepoint=0x900, max_codepoint=0xDFF, exclude_categories=["Cn"]) | st.just(" ")),
    "arabic": st.text(st.characters(min_codepoint=0x600, max_codepoint=0x6FF) | st.sampled_from("ﷺﻻ ")),
    "chinese": st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF) | st.sampled_from("，。　\n ")),
    "phrases": st.text(st.sampled_from([*PHRASED, "，", " "])),
    "rare han": st.text(st.characters(min_codepoint=0x20000, max_codepoint=0x323AF) | st.sampled_from("⿰⿱龜\ufe00\U000e0100㍿豈﨑")),
    "japanese": st.text(st.characters(min_codepoint=0x3000, max_codepoint=0x30FF) | st.sampled_from("東京都ｶﾞﾊﾟ㌔")),
    "mixed": st.text(st.sampled_from([*string.ascii_letters, *"0123 \n\t.,-_'", *"的是在茶竹子圖書館软件軟體東京がトー。，、Ａ①é"])),
    "emoji": st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF) | st.sampled_from("\u200d\ufe0f 👨a")),
    "surrogates": st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"]) | st.sampled_from("ab é")),
    "any": st.text(),
}


def assert_equal_to_the_reference(texts):
    made, sets = minhash.signatures(arrow(texts), 128, 1), minhash.hashes(arrow(texts))
    for text, signature, found in zip(texts, made, sets, strict=True):
        assert found.tolist() == sorted(map(xxhash.xxh64_intdigest, shingling.encoded(text))), text[:200]
        assert np.array_equal(signature, shingling.signature(text)), text[:200]


def shingles(text):
    """How many, and whether they are the reference's."""
    [found] = minhash.hashes(arrow([text]))
    assert found.tolist() == sorted(map(xxhash.xxh64_intdigest, shingling.encoded(text)))
    return shingling.shingles(text)


def test_signatures_and_band_keys_equal_the_golden_file(repo):
    golden = json.loads((repo / "tests/golden/minhash.json").read_text("utf-8"))
    assert golden["header"] == minhash.header(128, 1, 25, 5)
    made = minhash.signatures(pa.array([case["text"] for case in golden["texts"]]), 128, 1)
    keys = minhash.bands(made, 25, 5)
    for case, signature, row in zip(golden["texts"], made, keys, strict=True):
        cut = shingles(case["text"])
        assert sorted(cut)[:3] == case["first_shingles"] and len(cut) == case["shingles"]
        assert signature.tolist() == case["signature"]
        assert [f"{key:016x}" for key in row.tolist()] == case["band_keys"]


@pytest.mark.parametrize(("count", "seed"), [(128, 1), (1, 0), (1024, 2**32 - 1)])
def test_permutations_are_datasketchs(count, seed):
    from datasketch import MinHash

    assert np.array_equal(minhash._permutations(count, seed), MinHash(num_perm=count, seed=seed, scheme="affine32").permutations)


def test_tables_are_kept_and_built_anew_where_the_kept_ones_are_damaged(tmp_path, monkeypatch):
    built, module = codepoints._build(), tmp_path / "codepoints.py"
    for name in ("codepoints.py", "textnorm.py"):
        (tmp_path / name).write_text((Path(codepoints.__file__).with_name(name)).read_text("utf-8"), "utf-8")
    monkeypatch.setattr(codepoints, "__file__", str(module))
    for damage in (None, b"", b"PK nonsense"):
        for kept in tmp_path.glob("__pycache__/*.npz"):
            if damage is not None:
                kept.write_bytes(damage)
        for _ in range(2):
            made = codepoints.unicode_tables.__wrapped__()
            assert all(np.array_equal(getattr(made, field.name), getattr(built, field.name)) for field in fields(built))
    [kept] = (tmp_path / "__pycache__").iterdir()
    assert kept.stat().st_size > 10_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_equal_datasketchs_on_any_text(kind):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(KINDS[kind], min_size=1, max_size=6))
    def equal(texts):
        assert_equal_to_the_reference(texts)

    equal()


def test_every_code_point_is_cut_as_python_cuts_it():
    """Alone in words, in a row, and between Chinese characters; private planes and surrogates left out."""
    starts = (*range(0, 0xD800, 256), *range(0xE000, 0x33000, 256), *range(0xE0000, 0xE0200, 256))
    blocks = [[chr(point) for point in range(start, start + 256)] for start in starts]
    texts = [text for block in blocks for text in (" ".join(f"x{sign}y" for sign in block), "".join(block), "中".join(block))]
    for text, found in zip(texts, minhash.hashes(arrow(texts)), strict=True):
        assert found.tolist() == sorted(map(xxhash.xxh64_intdigest, shingling.encoded(text))), ascii(text[:40])


def test_every_phrase_of_opencc_is_converted_wherever_it_stands():
    phrases = codepoints._phrases()
    assert len(phrases) > 400
    order = random.Random(1)
    shuffled = [order.sample(phrases, len(phrases)) for _ in range(10)]
    texts = [joint.join(some) for some in shuffled for joint in ("", "的", " ", "，")]
    texts += [phrase[:at] + joint + phrase[at:] + "四个字符" for phrase in phrases for at in range(len(phrase)) for joint in ("", " ", "x")]
    assert sum(simplify(text) != "".join(map(simplify, text)) for text in texts) > 1000, "phrases must matter in them"
    for text, found in zip(texts, minhash.hashes(arrow(texts)), strict=True):
        assert found.tolist() == sorted(map(xxhash.xxh64_intdigest, shingling.encoded(text))), text[:60]


def test_without_opencc_s_list_of_phrases_python_converts_and_nothing_changes(monkeypatch):
    texts = arrow(["圖書館藏有許多關於乾坤的書籍", "only English words are in this one", "破坏土坯和打坏的东西", "東京へ行きました"])
    with_list = minhash.signatures(texts, 128, 1)
    monkeypatch.setattr(codepoints, "_phrases", lambda: None)
    bare = codepoints._build()
    monkeypatch.setattr(minhash, "unicode_tables", lambda: bare)
    assert not (bare.simple & np.uint32(PHRASES)).any()
    assert np.array_equal(minhash.signatures(texts, 128, 1), with_list)


@pytest.mark.parametrize(
    "text", ["word " * 100_000, "a" * 1_000_000, "中文" * 300_000, "½" * 200_000, "ﷺ" * 20_000, "é" * 500_000, "- " * 400_000]
)
def test_very_long_texts_equal_the_reference(text):
    assert_equal_to_the_reference([text, text + " and now for something quite different", "a short text between two long ones", text])


@pytest.mark.parametrize("permutations", [1, 7, 128, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_any_number_of_permutations_and_any_seed_equal_datasketchs(permutations, seed):
    text = "the quick brown fox jumps over the lazy dog, 敏捷的棕色狐狸跳过懒狗"
    made = minhash.signatures(arrow([text]), permutations, seed)
    assert made.dtype == np.uint32
    assert np.array_equal(made[0], shingling.signature(text, permutations, seed))


@settings(max_examples=50, deadline=None)
@given(st.lists(KINDS["mixed"] | KINDS["combining"], min_size=1, max_size=8), st.data())
def test_a_signature_depends_on_no_neighbour_and_no_form_of_array(texts, data):
    whole = minhash.signatures(arrow(texts), 128, 1)
    start = data.draw(st.integers(0, len(texts)))
    assert np.array_equal(minhash.signatures(arrow(texts).slice(start), 128, 1), whole[start:])
    assert np.array_equal(minhash.signatures(arrow(texts).cast(pa.large_string()), 128, 1), whole)
    for row, found in enumerate(minhash.hashes(arrow(texts).slice(start))):
        assert np.array_equal(found, minhash.hashes(arrow([texts[start + row]]))[0])


def test_no_text_gives_no_row():
    for texts in (pa.array([], pa.string()), arrow(["one", "two"]).slice(2)):
        assert minhash.signatures(texts, 128, 1).shape == (0, 128) and minhash.hashes(texts) == []
    assert minhash.bands(np.empty((0, 128), np.uint32), 25, 5).shape == (0, 25)


def test_a_text_too_long_for_the_places_is_refused(monkeypatch):
    monkeypatch.setattr(minhash, "LONGEST", 10)
    minhash.signatures(arrow(["ten bytes!"]), 128, 1)
    with pytest.raises(InputError, match="11 bytes"):
        minhash.signatures(arrow(["short", "11 bytes in"]), 128, 1)


def test_bytes_that_are_not_utf8_are_refused_not_read_beyond():
    for raw in (b"\xf7\xbf\xbf\xbf", b"abc\xe4", b"\xe4\xb8", b"\xff" * 9):
        places = np.array([0, len(raw)], np.int32)
        broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(places.tobytes()), pa.py_buffer(raw)])
        with pytest.raises(UnicodeDecodeError):
            minhash.signatures(broken, 128, 1)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 13, 16, 17, 24, 25, 31, 32, 33, 60, 61])
def test_a_band_key_is_xxh3_of_its_rows(rows):
    signatures = np.random.default_rng(rows).integers(0, 2**32, (9, 128), dtype=np.uint32)
    count = 128 // rows
    expected = [[xxhash.xxh3_64_intdigest(one[rows * k : rows * (k + 1)].tobytes()) for k in range(count)] for one in signatures]
    assert minhash.bands(signatures, count, rows).tolist() == expected


def test_a_band_key_depends_on_its_own_rows_alone():
    one = np.tile(np.arange(128, dtype=np.uint32), (2, 1))
    one[1, 7] += 1
    a, b = minhash.bands(one, 25, 5)
    assert np.flatnonzero(a != b).tolist() == [1]


def test_hashes_of_any_length_equal_xxhashs():
    raw = random.Random(0).randbytes(400)
    data = np.frombuffer(raw, np.uint8)
    for at in range(9):
        for size in range(300):
            piece = raw[at : at + size]
            assert kernels.xxh32(data, at, at + size) == xxhash.xxh32_intdigest(piece)
            assert kernels.xxh64(data, at, at + size) == xxhash.xxh64_intdigest(piece)


def test_signature_estimates_the_true_similarity():
    chosen = random.Random(3)
    words = ["".join(chosen.choices(string.ascii_lowercase, k=6)) for _ in range(4000)]
    texts = [" ".join(words[:3000]), " ".join(words[1000:])]
    a, b = minhash.signatures(arrow(texts), 1024, 1)
    true = minhash.jaccard(*minhash.hashes(arrow(texts)))
    assert true == shingling.similarity(*texts)
    assert abs((a == b).mean() - true) < 0.05  # three standard deviations of 1,024 permutations


@given(KINDS["mixed"])
def test_every_text_has_shingles_and_its_normal_form_has_the_same(text):
    one, other = minhash.hashes(arrow([text, normalise(text)]))
    assert len(one) and np.array_equal(one, other)


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=6), max_size=30))
def test_words_make_one_shingle_for_every_five_in_a_row(words):
    expected = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)} or {" ".join(words)}
    assert shingles("\n ".join(words).upper()) == expected


@given(st.text("的是在茶竹子书馆", max_size=40), st.sampled_from(["，", "\n", " ", "。”"]))
def test_signs_between_chinese_characters_change_nothing(text, sign):
    if len(text) >= 5:
        assert shingles(sign.join(text)) == {text[at : at + 5] for at in range(len(text) - 4)}
    else:
        assert shingles(text) == {text}


def test_mixed_text_gives_words_and_characters_and_japanese_is_cut_by_characters():
    assert shingles("我们用Python 3 写 a small crawler, 每天运行") == {
        "python 3 a small crawler,", "我们用写每", "们用写每天", "用写每天运", "写每天运行",
    }  # fmt: skip
    assert shingles("私は東京へ") == {"私は东京へ"}


def test_traditional_and_simplified_chinese_are_one_text():
    assert shingles("圖書館裡有許多關於茶葉的書籍") == shingles("图书馆里有许多关于茶叶的书籍")


def test_every_han_character_of_textnorm_is_cut_by_characters():
    han = np.array([is_cjk(chr(point)) for point in range(sys.maxunicode + 1)])
    assert not np.flatnonzero(han & ((unicode_tables().plain & np.uint32(codepoints.CHARACTER)) == 0)).size


def test_words_are_what_regular_expressions_take_for_words():
    word = np.array([shingling.WORD.match(chr(point)) is not None for point in range(sys.maxunicode + 1)])
    cjk = np.array([shingling.CJK.match(chr(point)) is not None for point in range(sys.maxunicode + 1)])
    plain = unicode_tables().plain
    assert np.array_equal((plain & np.uint32(codepoints.WORD)) > 0, word & ~cjk)
    assert np.array_equal((plain & np.uint32(codepoints.CHARACTER)) > 0, cjk)


def test_what_stops_the_compiled_code_is_what_melts_into_its_neighbours_and_little_else():
    """A mark that the tables missed would be wrong; too many of them would be slow."""
    stops = {chr(point) for point in np.flatnonzero(unicode_tables().raw & np.uint32(codepoints.STOP)).tolist()}
    marks = {chr(point) for point in range(0x32400) if unicodedata.combining(chr(point))}
    assert marks <= stops
    assert len(stops) < len(marks) + 200


@settings(max_examples=50)
@given(st.sets(st.integers(0, 50), min_size=1), st.sets(st.integers(0, 50), min_size=1), st.floats(0, 1))
def test_jaccard_of_sets_is_exact_and_zero_only_below_least(a, b, least):
    exact = len(a & b) / len(a | b)
    found = minhash.jaccard(np.array(sorted(a), np.uint64), np.array(sorted(b), np.uint64), least)
    assert found == exact or (found == 0.0 and exact < least)


def test_a_second_process_compiles_nothing():
    """All kernels state their types, so importing them compiles them, or finds what an earlier process left."""
    code = (
        "from tasks.corpus import kernels, minhash; import pyarrow as pa; minhash.bands(minhash.signatures(pa.array(['a b c d e f']), 8, 1), 1, 5);"
        "minhash.jaccard(*minhash.hashes(pa.array(['x', 'y'])));"
        "found = [k.stats for k in vars(kernels).values() if hasattr(k, 'stats')];"
        "print(len(found), sum(sum(s.cache_misses.values()) for s in found), min(sum(s.cache_hits.values()) for s in found))"
    )
    kernels_, misses, hits = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(kernels_) > 5 and int(misses) == 0 and int(hits) == 1


@pytest.mark.realdata
def test_signatures_of_real_texts_equal_datasketchs(realdata):
    """Novels, WikiText, Chinese laws and poems, dialogues: the beginning of each."""
    folder = realdata / "text"
    texts = [
        gzip.decompress(path.read_bytes()).decode("utf-8")[5000:25000] for path in sorted((folder / "100-english-novels").glob("*.gz"))
    ]
    laws = gzip.decompress((folder / "zh-laws.jsonl.gz").read_bytes()).decode().splitlines()
    texts += [json.loads(line)["text"] for line in laws[::20]]
    texts += [path.read_text("utf-8")[:20000] for path in sorted((folder / "zh-poetry").rglob("*.json"))[:6]]
    assert len(texts) > 90
    assert_equal_to_the_reference(texts)


@pytest.mark.full
@pytest.mark.realdata
def test_bands_meet_nearly_all_pairs_of_real_laws_that_are_alike(realdata):
    """Every pair of 1,343 laws, natural versions of one another among them, against the pairs that share a band key."""
    lines = gzip.decompress((realdata / "text/zh-laws.jsonl.gz").read_bytes()).decode().splitlines()
    texts = arrow([json.loads(line)["text"] for line in lines])
    sets, keys = minhash.hashes(texts), minhash.bands(minhash.signatures(texts, 128, 1), 25, 5)
    alike = [(a, b) for a, b in combinations(range(len(sets)), 2) if minhash.jaccard(sets[a], sets[b], 0.8) >= 0.8]
    met = [(keys[a] == keys[b]).any() for a, b in alike]
    assert len(alike) > 20
    assert np.mean(met) >= 0.99
