"""Wikitext to text: what reads stays, what is furniture goes, variant markup is resolved, and no page takes long."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.wikitext import is_disambiguation, is_redirect, plain, variants

CASES = {
    "emphasis and links": (
        "'''Tea''' is ''brewed'' from [[leaf|leaves]] of [[Camellia sinensis]].",
        "Tea is brewed from leaves of Camellia sinensis.",
    ),
    "link trail": ("Many [[kite]]s fly.", "Many kites fly."),
    "template": ("Tea{{citation needed|date=May 2020}} is old.{{sfn|Smith|p={{p|3}}}}", "Tea is old."),
    "template of words": (
        "The {{lang|fr|café}} is {{convert|5|km|mi}} away{{snd}}{{nowrap|10 steps}}.",
        "The café is 5 km away – 10 steps.",
    ),
    "reference": ('Salt<ref name="a">A [[book]] {{cite|x}}</ref> keeps<ref name="a" /> food.', "Salt keeps food."),
    "comment": ("Salt <!-- not [[this]] --> keeps food.", "Salt keeps food."),
    "table": ('Before.\n{| class="wikitable"\n|-\n| a || b\n{|\n| inner\n|}\n|}\nAfter.', "Before.\n\nAfter."),
    "file": ("[[File:X.jpg|thumb|A [[caption]] with\na line and [[a|link]].]]Text.", "Text."),
    "category and other languages": ("Text.\n[[Category:Tea]]\n[[fr:Thé]]\n[[分类:茶]]", "Text."),
    "links to what is named": ("See [[:Category:Tea]] and [[Tea#History|its history]].", "See Category:Tea and its history."),
    "external link": ("The [https://a.example/x museum] opens; [https://b.example].", "The museum opens;."),
    "lists": ("Kinds:\n* green\n** [[sencha]]\n# first\n; term\n: meaning", "Kinds:\n- green\n- sencha\n- first\n\nterm\n\nmeaning"),
    "headings": (
        "Lead.\n== History ==\nOld.\n=== Empty ===\n== References ==\n{{reflist}}\n* [[Book]]\n=== Notes ===\nx",
        "Lead.\n\nHistory\nOld.",
    ),
    "section after back matter": ("Lead.\n== See also ==\n* [[X]]\n== Uses ==\nMany.", "Lead.\n\nUses\nMany."),
    "entities": ("5&nbsp;km &lt;b&gt; &amp; caf&#233;", "5 km <b> & café"),
    "nowiki": ("Type <nowiki>[[x]] and '''y'''</nowiki> so.", "Type [[x]] and '''y''' so."),
    "tags": ("H<sub>2</sub>O <span style='x'>is</span> water.<br/>Next.", "H2O is water.\n\nNext."),
    "hidden tags": ("<gallery>\nFile:a.jpg|x\n</gallery>Text <math>x^2</math>.<timeline>z</timeline>", "Text."),
    "magic words": ("__NOTOC__\n{{DISPLAYTITLE:x}}Text.", "Text."),
    "emptied brackets": ("Tea ({{IPAc-en|t}}; {{zh|茶}}) is old（{{lang-x}}）。", "Tea is old。"),
    "unclosed template": ("Tea {{is old.\n\nAnd good.", "Tea is old.\n\nAnd good."),
    "unclosed table": ("Tea.\n{| class=x\n|-\n| a\nAnd good.", "Tea.\n\nAnd good."),
    "unclosed reference": ("Tea <ref>is old.", "Tea is old."),
    "unclosed comment": ("Tea. <!-- rest", "Tea."),
    "stray ends": ("Tea]] is}} old|}.", "Tea is old."),
    "Chinese": ("'''茶'''是[[植物|一种植物]]的叶子{{noteTA|x}}。<ref>书</ref>\n== 参考文献 ==\n* 书", "茶是一种植物的叶子。"),
}


@pytest.mark.parametrize("case", CASES)
def test_markup_becomes_what_a_reader_reads(case):
    source, text = CASES[case]
    assert plain(source, "Hans") == text


VARIANTS = [
    ("-{zh-hans:计算机;zh-hant:電腦}-", "计算机", "電腦"),
    ("-{zh-cn:软件;zh-tw:軟體;zh-hk:軟件}-", "软件", "軟體"),
    ("-{zh-hk:軟件;zh-sg:软件}-", "软件", "軟件"),
    ("-{A|zh-cn:出租车;zh-tw:計程車}-", "出租车", "計程車"),
    ("a-{H|zh-cn:甲;zh-tw:乙}-b", "ab", "ab"),
    ("a-{T|zh-cn:甲;zh-tw:乙}-b", "ab", "ab"),
    ("a-{-|zh-cn:甲;zh-tw:乙}-b", "ab", "ab"),
    ("-{R|干燥}-", "干燥", "干燥"),
    ("-{乾隆}-", "乾隆", "乾隆"),
    ("-{zh-hans|简}-", "简", ""),
    ("-{zh-hant;zh-tw|繁}-", "", "繁"),
    ("-{巨集=>zh-cn:宏;zh-tw:巨集;}-", "宏", "巨集"),
    ("-{zh-cn:a -{zh-cn:内;zh-tw:內}- b;zh-tw:c}-", "a 内 b", "c"),
    ("-{zh-cn:[[x|链接]];zh-tw:[[x|連結]]}-", "[[x|链接]]", "[[x|連結]]"),
    ("-{zh:都一样}-", "都一样", "都一样"),
    ("没有 -{ 结尾", "没有  结尾", "没有  结尾"),
    ("没有 }- 开头", "没有 }- 开头", "没有 }- 开头"),
    ("-{{template}}-", "-{{template}}-", "-{{template}}-"),
]


@pytest.mark.parametrize(("source", "hans", "hant"), VARIANTS)
def test_variant_markup_is_resolved_to_one_script(source, hans, hant):
    assert variants(source, "Hans") == hans
    assert variants(source, "Hant") == hant


@pytest.mark.parametrize(
    "text", ["#REDIRECT [[X]]", "#redirect[[X]]", " # REDIRECT : [[X]]", "#重定向 [[X]]", "#REDIRECT [[X]]\n{{R from move}}"]
)
def test_redirects_are_recognised(text):
    assert is_redirect(text)


@pytest.mark.parametrize(
    "text", ["x {{disambig}}", "{{Disambiguation|geo}}", "{{hndis|x}}", "{{消歧义}}", "{{消歧義頁}}", "{{ disambig\n}}", "__DISAMBIG__"]
)
def test_disambiguation_pages_are_recognised(text):
    assert is_disambiguation(text)
    assert not is_redirect(text)


@pytest.mark.parametrize(
    "text",
    [
        "Tea",
        "",
        "# one\n# two [[x]]",
        "{{disambiguation needed|x}}",
        "{{Dabbing}} is a dance",
        "{{about|x|y (disambiguation)}}",
        "{{for|消歧义页|x}}",
    ],
)
def test_articles_are_neither(text):
    assert not is_redirect(text)
    assert not is_disambiguation(text)


HARD = [
    "{{", "}}", "[[", "]]", "{{[[", "{|\n|\n", "{{{a|", "''a'''b", "<ref>x", "<ref ", "<b", "[http://a ", "[[a|", "[[a|b ", "* a\n", "== a ==\n", "== a\n", "<!--", "-{", "}-", "-{zh-cn:",
    "&amp", "(", "( ", "_", "\n", " ", "=", "|", "<nowiki>", "{{a|b=c|", "[<b>", "[[fr:", "-{A|a;", "a=>", "{{disambig ", "|-\n| a || b\n", "<gallery>", "{{lang|fr|",
]  # fmt: skip


@pytest.mark.parametrize("piece", HARD)
def test_time_does_not_explode_on_a_page_of_one_mark_repeated(piece):
    """60 kB each. The parser alone takes up to a minute on some of these, with the square of the length."""
    text = piece * (60_000 // len(piece))
    before = time.process_time()
    plain(text, "Hans")
    is_disambiguation(text)
    assert time.process_time() - before < 5


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from([*HARD, "a", "文", "|", "\n", "</ref>", "-->", "|}", "]", "}"]), max_size=60).map("".join),
    )
)
def test_any_wikitext_gives_tidy_text_of_bounded_length(source):
    text = plain(source, "Hans")
    assert "\n\n\n" not in text
    assert text == text.strip()
    assert len(text) <= 2 * len(source) + 10
