"""One page to text: charsets that lie, limits counted in data, tables that lay out a page, odd bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcs import SENTENCES, page

from tasks.corpus.page import Limits, clean, decode, extract

LIMITS = Limits(depth=200, nodes=5000, chars=50)
TEXTS = {
    "zh": "黄河是中国的第二长河，流经九个省区，最后注入渤海。很多人把它称为母亲河，因为古代文明就在它的两岸发展起来。每年夏天，河水带着泥沙奔流而下。",
    "zh-Hant": "黃河是中國的第二長河，流經九個省區，最後注入渤海。很多人把它稱為母親河，因為古代文明就在它的兩岸發展起來。",
    "ja": "日本の首都は東京です。とても大きな町で、たくさんの人が住んでいます。冬は寒く、夏は暑いです。",
    "ko": "대한민국의 수도는 서울입니다. 많은 사람들이 살고 있습니다. 겨울은 춥고 여름은 덥습니다.",
    "ru": "Москва является столицей России. Это очень большой город, в котором живёт много людей.",
    "fr": "Le café est très apprécié à l'été; où êtes-vous allé? Ça va être génial, voilà.",
}
ENCODINGS = [
    ("zh", "utf-8"), ("zh", "gbk"), ("zh", "gb18030"), ("zh", "utf-16"), ("zh", "utf-16-le"), ("zh", "utf-16-be"), ("zh-Hant", "big5"), ("zh-Hant", "gb18030"),
    ("ja", "shift_jis"), ("ja", "euc-jp"), ("ja", "iso-2022-jp"), ("ru", "cp1251"), ("ru", "koi8-r"), ("fr", "cp1252"), ("fr", "utf-8"),
]  # fmt: skip


def html(text: str, charset: str, meta: str) -> bytes:
    return f"<html><head><meta charset='{meta}'><title>x</title></head><body><p>{text}</p></body></html>".encode(charset)


@pytest.mark.parametrize(("language", "charset"), ENCODINGS)
@pytest.mark.parametrize("header", ["", "utf-8", "iso-8859-1", "no-such-charset", "the true one"])
@pytest.mark.parametrize("meta", ["", "utf-8", "the true one"])
def test_a_page_is_read_in_its_charset_whatever_header_and_meta_say(language, charset, header, meta):
    header, meta = (charset if said == "the true one" else said for said in (header, meta))
    text, _ = decode(html(TEXTS[language], charset, meta), header)
    assert TEXTS[language] in text


@pytest.mark.parametrize(
    ("language", "charset", "header"),
    [("zh", "gbk", "big5"), ("zh-Hant", "big5", "gb2312"), ("ja", "euc-jp", "gbk"), ("zh", "gbk", "windows-1252")],
)
def test_a_wrong_declaration_that_decodes_without_error_loses_to_the_bytes(language, charset, header):
    text, _ = decode(html(TEXTS[language], charset, header), header)
    assert TEXTS[language] in text


def test_korean_is_read_where_it_is_declared_or_nothing_is():
    for header in ("euc-kr", "ks_c_5601-1987", ""):
        text, _ = decode(html(TEXTS["ko"], "euc-kr", ""), header)
        assert TEXTS["ko"] in text


def test_gb2312_is_read_as_the_superset_browsers_take_it_for():
    text, codec = decode(html("朱镕基和喆" + TEXTS["zh"], "gbk", "gb2312"), "gb2312")
    assert "朱镕基和喆" in text
    assert codec == "gb18030"


def test_a_few_stray_bytes_do_not_cost_a_utf8_page():
    body = html(TEXTS["zh"] * 5, "utf-8", "utf-8").replace(b"</p>", b"\xff</p>")
    text, codec = decode(body, "")
    assert codec == "utf-8"
    assert TEXTS["zh"] in text


@given(st.binary(max_size=500), st.sampled_from(["", "utf-8", "gbk", "big5", "utf-16", "base64", "\udcff", "x" * 50]))
def test_any_bytes_decode(body, declared):
    text, _ = decode(body, declared)
    assert isinstance(text, str)


def test_main_text_and_title_are_found_without_what_surrounds_them():
    body = (
        b"<html><head><title>Site</title><meta property='og:title' content='The  lighthouse'></head><body><nav><a href='/'>Home page</a> <a href='/a'>Sign in</a></nav>"
        + b"<article><p>" + SENTENCES.encode() + b"</p><p>" + SENTENCES[::-1].encode() + b".</p></article><footer>All rights reserved.</footer></body></html>"
    )  # fmt: skip
    found = extract(body, "", LIMITS)
    assert found["title"] == "The lighthouse"
    assert SENTENCES in found["text"]
    assert "Sign in" not in found["text"]
    assert "All rights" not in found["text"]


def test_a_table_that_lays_out_the_page_gives_paragraphs_not_cells():
    body = f"<html><head><title>x</title></head><body><table><tr><td>menu</td><td><h1>Towers</h1><p>{SENTENCES}</p><p>{SENTENCES[:150]}</p></td></tr></table></body></html>"
    text = extract(body, "", LIMITS)["text"]
    assert "|" not in text
    assert SENTENCES in text.split("\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" \r\n ", "empty"),
        (b"\0\0\0", "empty"),
        (b"%PDF-1.7 and so on", "not_html"),
        (b"\x89PNG\r\n\x1a\n....", "not_html"),
        (b"<html><body>" + b"<div>" * 3000 + SENTENCES.encode() + b"</div>" * 3000, "too_deep"),
        (b"<html><body>" + b"<div>" * 210 + SENTENCES.encode(), "too_deep"),
        (b"<html><body><ul>" + b"<li>x" * 6000, "too_many_nodes"),
        (b"<html><body><p>Short.</p></body></html>", "no_main_text"),
        (b"<html><body><script>var a = 1;</script></body></html>", "no_main_text"),
    ],
)
def test_a_page_that_cannot_be_kept_says_why(body, reason):
    assert extract(body, "", LIMITS)["reason"] == reason


def test_limits_hold_exactly():
    body = page()
    nodes = 6  # html head title body article p
    assert extract(body, "", Limits(200, nodes, 50)).get("reason") is None
    assert extract(body, "", Limits(200, nodes - 1, 50))["reason"] == "too_many_nodes"
    assert extract(body, "", Limits(4, nodes, 50)).get("reason") is None
    assert extract(body, "", Limits(3, nodes, 50))["reason"] == "too_deep"
    assert extract(body, "", Limits(200, nodes, 10_000))["reason"] == "no_main_text"


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from(["<p>", "</p>", "<table><tr><td>", "<ul><li>", "<!--", "-->", "<script>", "&#xD800;", "\ufffe", "</body>", "<html/>", "文字。", "Words. "]), max_size=40)
        .map(lambda pieces: "".join(pieces).encode()),
    )
)  # fmt: skip
def test_any_bytes_give_text_or_a_reason(body):
    found = extract(body, "", Limits(200, 5000, 1))
    assert ("reason" in found) != ("text" in found)
    if "text" in found:
        found["text"].encode()


@given(st.text())
def test_clean_text_can_be_stored_and_is_clean(text):
    once = clean(text)
    once.encode()
    assert clean(once) == once
    assert "\n\n\n" not in once
    assert not set(once) & {"\r", "\0", "\x85"}
