"""The signature contract: its golden file, its parity with datasketch, how a text is cut."""

import json
import string
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import minhash
from tasks.corpus.textnorm import is_cjk, normalise

CHARACTERS = st.sampled_from(
    list(string.ascii_letters + string.digits + " \n\t.,-_'") + list("的是在茶竹子圖書館软件軟體東京がトー。，、Ａ①é")
)
TEXTS = st.text(CHARACTERS, max_size=120) | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_signatures_and_band_keys_equal_the_golden_file(repo):
    golden = json.loads((repo / "tests/golden/minhash.json").read_text("utf-8"))
    header = minhash.header(128, 1, 25, 5)
    assert golden["header"] == header
    for case in golden["texts"]:
        cut = minhash.shingles(case["text"])
        made = minhash.signature(cut, 128, 1)
        assert sorted(cut)[:3] == case["first_shingles"] and len(cut) == case["shingles"]
        assert made.tolist() == case["signature"]
        assert [f"{key:016x}" for key in minhash.bands(made, 25, 5).tolist()] == case["band_keys"]


@pytest.mark.parametrize("count", [1, 7, minhash.CHUNK, 2 * minhash.CHUNK + 1])
def test_signature_equals_datasketch_at_any_size(count):
    from datasketch import MinHash

    cut = {f"shingle {number} 茶" for number in range(count)}
    [theirs] = MinHash.bulk([[s.encode() for s in cut]], num_perm=128, seed=1, scheme="affine32", hashfunc=xxhash.xxh32_intdigest)
    ours = minhash.signature(cut, 128, 1)
    assert ours.dtype == np.uint32
    assert np.array_equal(ours, theirs.hashvalues)


def test_signature_estimates_the_true_similarity():
    a, b = {f"s{n}" for n in range(1000)}, {f"s{n}" for n in range(250, 1250)}
    estimate = (minhash.signature(a, 1024, 1) == minhash.signature(b, 1024, 1)).mean()
    assert minhash.jaccard(minhash.hashes(a), minhash.hashes(b)) == 0.6
    assert abs(estimate - 0.6) < 0.05  # three standard deviations of 1,024 permutations


@given(TEXTS)
def test_every_text_has_shingles_and_its_normal_form_has_the_same(text):
    assert minhash.shingles(text)
    assert minhash.shingles(text) == minhash.shingles(normalise(text))


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=6), max_size=30))
def test_words_make_one_shingle_for_every_five_in_a_row(words):
    expected = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)} or {" ".join(words)}
    assert minhash.shingles("\n ".join(words).upper()) == expected


@given(st.text("的是在茶竹子书馆", max_size=40), st.sampled_from(["，", "\n", " ", "。”"]))
def test_signs_between_chinese_characters_change_nothing(text, sign):
    if len(text) >= 5:
        assert minhash.shingles(sign.join(text)) == {text[at : at + 5] for at in range(len(text) - 4)}
    else:
        assert minhash.shingles(text) == {text}


def test_mixed_text_gives_words_and_characters_and_japanese_is_cut_by_characters():
    assert minhash.shingles("我们用Python 3 写 a small crawler, 每天运行") == {
        "python 3 a small crawler,", "我们用写每", "们用写每天", "用写每天运", "写每天运行",
    }  # fmt: skip
    assert minhash.shingles("私は東京へ") == {"私は东京へ"}


def test_traditional_and_simplified_chinese_are_one_text():
    assert minhash.shingles("圖書館裡有許多關於茶葉的書籍") == minhash.shingles("图书馆里有许多关于茶叶的书籍")


def test_every_han_character_of_textnorm_is_cut_by_characters():
    assert [hex(point) for point in range(sys.maxunicode + 1) if is_cjk(chr(point)) and not minhash.CJK.fullmatch(chr(point))] == []


@settings(max_examples=50)
@given(st.sets(st.integers(0, 50), min_size=1), st.sets(st.integers(0, 50), min_size=1), st.floats(0, 1))
def test_jaccard_of_hashes_is_that_of_the_sets_and_zero_only_below_least(a, b, least):
    exact = len(a & b) / len(a | b)
    found = minhash.jaccard(minhash.hashes({str(n) for n in a}), minhash.hashes({str(n) for n in b}), least)
    assert found == exact or (found == 0.0 and exact < least)


def test_a_band_key_depends_on_its_own_rows_alone():
    one = np.arange(128, dtype=np.uint32)
    other = one.copy()
    other[7] += 1
    assert np.flatnonzero(minhash.bands(one, 25, 5) != minhash.bands(other, 25, 5)).tolist() == [1]
