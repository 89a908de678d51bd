"""Words: the kernels cut as spaCy's English tokenizer and jieba do, whatever the text; other languages keep datatrove's splitters."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import rule_kernels as kernels
from tasks.corpus import words
from tasks.corpus.words import codes_of, kinds, splitter

ENGLISH = st.lists(
    st.one_of(
        st.text(" \n\t\u00a0\u3000\u2028'’‘\"“”«.,:;!?…-–—~/=<>+*^%$£§#&@_()[]{}°®•|aAbBsSkmgG019àÉßжЖ中。，ー\u0301\u200b😀", max_size=8),
        st.sampled_from(
            [
                "don't",
                "I'd've",
                "cannot",
                "Dr.",
                "e.g.",
                "U.S.",
                "p.m.",
                ":)",
                ":-(",
                "<3",
                "(:",
                "O'Neill's",
                "rock'n'roll",
                "5km",
                "20%",
                "US$5",
                "3.5",
                "1,000",
                "°C.",
                "http://a.com/b?c=d",
                "x@y.org",
                "www.Example.com.",
                "10.0.0.1",
                "192.168.1.1:80",
                "end.The",
                "word...word",
                "a--b",
                "a—b",
                "C++",
                "9am",
                "’S",
                "'s",
                "¯\\(ツ)/¯",
                "......",
                "……",
                "well-don't",
                "Smith-Jr.",
                "A$3",
                "+5",
                "5+",
                "3-4",
                "and/or",
                "either/or",
                "IS'S",
                "co-op.",
                "10th.",
                "($3.50)",
                "x=y",
                "'Tis",
                "‘em",
                "o.O.",
                "8)",
                "100m²",
                "km/h",
                "5km/h",
                "$20k",
                "i.e.,",
                "(e.g.",
                "Mr.X",
            ]
        ),
        st.just(" "),
    ),
    max_size=12,
).map("".join)
CHINESE = st.lists(
    st.one_of(
        st.text("的一是不了在人有我他这中大来上国科学研究行政诉讼长江大桥市民ABcd019.%+#&_- \n，。「」《》：龘\U00020000é", max_size=10),
        st.sampled_from(
            [
                "中华人民共和国国务院",
                "南京市长江大桥",
                "杭研大厦",
                "3.14%",
                "B超",
                "T恤",
                "和讯网",
                "脚踏实地",
                "C++",
                "AT&T",
                "他来到了网易",
                "台中",
                "乒乓球拍卖完了",
            ]
        ),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def theirs():
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    return {"en": load_word_tokenizer("en"), "zh": load_word_tokenizer("cmn_Hani")}


@settings(max_examples=1500, deadline=None)
@given(ENGLISH)
def test_english_words_are_spacys(theirs, text):
    """Of each stretch without white space. Across it spaCy 3.8 lets what would be a longer emoticon keep a real one apart: `0:) )` has no smile."""
    assert splitter("en")(text).texts() == [word for chunk in text.split() for word in theirs["en"].word_tokenize(chunk)]


@settings(max_examples=500, deadline=None)
@given(CHINESE)
def test_chinese_words_are_jiebas(theirs, text):
    assert splitter("zh")(text).texts() == theirs["zh"].word_tokenize(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_cut(text):
    for code in ("en", "zh"):
        found = splitter(code)(text)
        assert "".join(found.texts()) == "".join(text.split())
        assert (found.starts < found.ends).all() and (found.starts[1:] >= found.ends[:-1]).all()


def test_what_was_forgotten_is_asked_again(theirs, monkeypatch):
    split = splitter("en")
    text = " ".join(f"see site{n}.com/page, or Smith-Jr.;" for n in range(400))
    expected = theirs["en"].word_tokenize(text)
    assert split(text).texts() == expected
    monkeypatch.setattr(words, "REMEMBERED", split._added + 10)
    assert split(text.replace("site", "other")).texts() == [word.replace("site", "other") for word in expected]
    assert split(text).texts() == expected


def test_a_chunk_of_any_length_is_cut(theirs):
    for text in ("a" * 50_000, "=" * 3_000, "(" * 2_000 + "a" + ")" * 2_000, "a-" * 4_000, "1" * 5_000 + "km", "." * 5_000):
        assert splitter("en")(text).texts() == theirs["en"].word_tokenize(text)


def test_a_lone_surrogate_is_a_character():
    assert splitter("en")("a \ud800 b").texts() == ["a", "\ud800", "b"]


def test_other_languages_keep_datatroves_splitter():
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    text = "Der Wärter steigt z.B. jeden Abend auf den Turm, d.h. er zündet das Licht an."
    found = splitter("de")(text)
    assert found.texts() == load_word_tokenizer("de").word_tokenize(text)
    assert not found.in_text
    assert splitter("xx-unknown") is splitter("en")


def test_classes_of_characters_are_pythons_own():
    text = [chr(c) for c in range(0x110000)]
    for bit, holds in (
        (kernels.SPACE, str.isspace),
        (kernels.LETTER, str.isalpha),
        (kernels.BREAK, lambda c: len(f"a{c}a".splitlines()) == 2),
        (kernels.PUNCTUATION, lambda c: unicodedata.category(c)[0] == "P"),
        (kernels.DIGIT, lambda c: c in set("0123456789")),
    ):
        assert ((kinds() & bit) > 0).tolist() == [holds(c) for c in text]


def test_affixes_of_one_character_are_spacys(theirs):
    """Every character alone before and after a letter: on which side spaCy splits it off is what its class says."""
    tokenizer = theirs["en"].tokenizer.tokenizer
    for code in [*range(0x3000), *range(0xFE00, 0x10000), *range(0x1F000, 0x1FA00)]:
        if chr(code).isspace() or 0xD800 <= code < 0xE000:
            continue
        kind = int(kinds()[code])
        assert (tokenizer.find_prefix(chr(code) + "中") == 1) == bool(kind & (kernels.EDGE | kernels.FRONT) or code == ord("+")), hex(code)
        assert (tokenizer.find_suffix("中" + chr(code)) == 1) == bool(kind & kernels.EDGE or code == ord(".")), hex(code)


def test_no_special_case_is_longer_than_the_kernels_look():
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    assert max(map(len, load_word_tokenizer("en").tokenizer.tokenizer.rules)) <= kernels.LONGEST_SPECIAL


@given(st.text(max_size=40))
def test_hashes_of_pieces_do_not_depend_on_what_stands_before(text):
    codes, whole = codes_of(text), words.POWERS.prefix(codes_of("ab" + text))
    alone = words.POWERS.prefix(codes)
    start = whole[2] * words.POWERS.values[codes.size]
    with np.errstate(over="ignore"):
        assert whole[codes.size + 2] - start == alone[codes.size]
