"""The filter stage: datatrove's decisions exactly, Chinese not lost, reasons and signals in the rows of kept and rejected documents."""

import gzip
import json
import random
import re
from collections import Counter

import pytest
from corpora import ENGINE, document, output_of, rows_of, run_inline
from judged import BAD, CONFIG, EN, ZH, random_texts
from real_filters import filters
from real_texts import real_texts

from model.config import override
from tasks.corpus import quality
from tasks.corpus.document import text_hash
from tasks.corpus.language import detect
from tasks.corpus.quality import judge


def row(text, source="commoncrawl", place=1):
    return document(text, place, source)


def fate(text, source="commoncrawl", **changes):
    return judge(override(CONFIG, changes), row(text, source))[0]


@pytest.mark.parametrize(("text", "language", "script"), [(EN, "en", ""), (ZH, "zh", "Hans")])
def test_ordinary_texts_stay_and_carry_their_signals(text, language, script):
    document = row(text)
    assert judge(CONFIG, document) == ("", "")
    assert (document["language"], document["script"]) == (language, script)
    assert document["language_score"] > 0.8
    assert 70 < document["words"] < 130


@pytest.mark.parametrize("reason", BAD)
def test_each_rule_rejects_its_kind_under_datatroves_name(reason):
    assert fate(BAD[reason], repetition=reason.startswith("gopher_rep")) == reason


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("gopher", "gopher_short_doc"),
        ("repetition", "gopher_rep_dup_line_frac"),
        ("c4", "c4_lorem_ipsum"),
        ("fineweb", "fineweb_line_punct_ratio"),
    ],
)
def test_a_rule_that_is_off_rejects_nothing(field, reason):
    assert fate(BAD[reason], **{field: False}) != reason


def test_crawl_rules_spare_other_sources():
    for reason in ("c4_lorem_ipsum", "c4_curly_bracket", "fineweb_line_punct_ratio"):
        assert fate(BAD[reason]) == reason
        assert fate(BAD[reason], "wikipedia") == ""


def test_languages_are_asked_for_by_code_and_none_asks_for_all():
    assert fate(EN, languages=["zh"]) == "language"
    assert fate(BAD["language"] * 3, languages=[], repetition=False) == ""
    assert fate(EN, min_language_score=0.999) == "language_score"
    classical = "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？曾子曰：吾日三省吾身，為人謀而不忠乎？"
    assert fate(classical) == "language"
    assert fate(classical * 2, languages=["lzh"], repetition=False, gopher=False, min_language_score=0.0) == ""


def test_a_language_that_cannot_be_split_into_words_is_rejected_by_what_is_missing():
    japanese = "灯台守は毎晩塔に登り、船が港を見つけられるようにランプに火をともします。冬の夜は長く、彼はストーブのそばで本を読みます。"
    document = row(japanese)
    pytest.importorskip("spacy")
    try:
        import sudachipy  # noqa: F401
    except ImportError:
        reason, value = judge(override(CONFIG, {"languages": ["ja"]}), document)
        assert reason == "no_word_splitter"
        assert "Sudachi" in value


def test_chinese_is_not_lost():
    """A long paragraph without a space or break and a traditional page stay; one phrase again and again, and a list of links, go."""
    assert fate(ZH.replace("\n", "")) == ""
    from opencc import OpenCC

    assert fate(OpenCC("s2t").convert(ZH)) == ""
    long = "".join(ZH.replace("。", f"，第{n}天也是这样。") for n in range(6)).replace("\n", "")
    assert len(long) > 1000
    assert fate(long, repetition=False) == ""
    assert fate("加微信领取优惠券，" * 60, languages=[], min_language_score=0.0).startswith("gopher_rep")
    assert fate("首页\n新闻\n体育\n" * 30) != ""


def test_lines_that_c4_drops_are_gone_from_text_and_words(store):
    document = row(
        EN + "\nThis site uses cookies to give you the best experience of all.\nPlease turn javascript on to see this page of ours."
    )
    assert judge(CONFIG, document)[0] == ""
    assert document["text"] == EN
    plain = row(EN)
    judge(CONFIG, plain)
    assert document["words"] == plain["words"]


def differences(chain, text, language):
    """What ours says otherwise than datatrove's four filters: families of rules whose reason differs, the text that C4 leaves. And datatrove's reasons."""
    from datatrove.data import Document

    found = quality.signals_of(text, language, True, True, True, True)
    document, wrong, said = Document(text=text, id="x"), [], []
    for name, rule in zip(("gopher_rep_", "gopher_", "c4_", "fineweb_"), chain, strict=True):
        answer = rule(document)
        their = "" if answer is True else answer[1] if answer[1].startswith(name) else name + answer[1]
        family = [
            r
            for r in quality.rules_of(language)
            if r.reason.startswith(name) and r.reason.startswith("gopher_rep_") == (name == "gopher_rep_")
        ]
        broken = quality.decide(family, found.values)
        our = broken.reason if broken else ""
        said.append(their)
        if our != their:
            wrong.append((name, our, their))
        if name == "c4_" and their:
            return wrong, said  # datatrove leaves the text as it was
    if found.text != document.text:
        wrong.append(("text", found.text, document.text))
    return wrong, said


def test_decisions_are_datatroves_own():
    """Each filter of datatrove, run as its users run it, against ours: same decision, same reason, same text."""
    chain, seen = filters("en"), Counter()
    for text in random_texts(250):
        wrong, said = differences(chain, text, "en")
        assert wrong == [], text
        seen.update(said)
    assert len(seen) >= 12 and all(
        any(reason.startswith(name) for reason in seen) for name in ("gopher_rep_", "gopher_", "c4_", "fineweb_")
    ), seen


def _compare(texts):
    """(texts, different ones, reasons seen) of real texts, each in its language: Chinese by FineWeb2's rules, all others by those for English."""
    chains, seen, wrong, number = {code: filters(code) for code in ("en", "zh")}, Counter(), [], 0
    for number, (kind, text) in enumerate(texts, 1):  # noqa: B007
        language = "zh" if detect(text)[0] in quality.CHINESE else "en"
        found, said = differences(chains[language], text, language)
        seen.update(said)
        wrong += [(kind, found)] if found else []
    return number, wrong, seen


@pytest.mark.realdata
def test_decisions_on_real_documents_are_datatroves_own(realdata):
    every = list(real_texts(realdata))
    number, wrong, seen = _compare(random.Random(11).sample(every, 100))
    assert (number, wrong) == (100, [])
    assert len(seen) >= 8, seen


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(3000)
def test_decisions_on_all_real_documents_are_datatroves_own(realdata):
    """Pages whole and their main text, news, articles, labelled web documents, Wikipedia, laws, chapters of novels. None differs where this was written."""
    number, wrong, seen = _compare(real_texts(realdata))
    assert number >= 5_000
    assert len(wrong) <= 0.001 * number, wrong
    assert len(seen) >= 25, seen


def test_a_rejected_document_keeps_its_signals_for_other_thresholds(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    texts = [EN, ZH, BAD["gopher_short_doc"], BAD["c4_lorem_ipsum"], BAD["language"]]
    source = output_of(store, "extract", [[row(text, place=n) for n, text in enumerate(texts)]])
    made = quality.run(store, "test", CONFIG, {"extract": source}, ENGINE)
    kept, gone = rows_of(store, made), rows_of(store, made, "rejects-")
    assert [found["signals"]["gopher_rep_top_2_gram"] > 0 for found in kept] == [True, True]
    by_reason = {found["reason"]: found for found in gone}
    assert by_reason["gopher_short_doc"]["value"] == f"{by_reason['gopher_short_doc']['signals']['gopher_words']:.4g}"
    assert by_reason["language"]["signals"] is None
    for found in (*kept, *gone):
        if found["signals"]:
            broken = quality.decide(quality.rules_of(found["language"]), found["signals"])
            assert (broken.reason if broken else None) == found.get("reason")


def test_the_stage_masks_hashes_and_balances(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    texts = [EN, ZH, EN + " Write to keeper@tower.org or call +44 20 7946 0958 for that.", BAD["language"], BAD["gopher_short_doc"]]
    source = output_of(store, "extract", [[row(text, place=n) for n, text in enumerate(texts)]])
    made = quality.run(store, "test", CONFIG, {"extract": source}, ENGINE)
    rows = rows_of(store, made)
    assert (made.seen, made.kept, made.rejected) == (5, 3, {"gopher_short_doc": 1, "language": 1})
    assert [found["masked"] for found in rows] == [0, 0, 2]
    assert "Write to <EMAIL> or call <PHONE> for that." in rows[2]["text"]
    assert all(found["text_hash"] == text_hash(found["text"]) for found in rows)
    assert made.info["masked"] == {"email": 1, "phone": 1}
    off = quality.run(store, "test", override(CONFIG, {"mask_personal_data": False}), {"extract": source}, ENGINE)
    assert "keeper@tower.org" in rows_of(store, off)[2]["text"]


def test_an_empty_input_gives_an_empty_output(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    made = quality.run(store, "test", CONFIG, {"extract": output_of(store, "extract", [[]])}, ENGINE)
    assert (made.seen, made.kept) == (0, 0)


@pytest.mark.parametrize("text", ["", " ", "\n", "。", "1 2 3", "{}", "\u3000"])
@pytest.mark.parametrize("rules", ["gopher", "repetition", "c4", "fineweb", "none"])
def test_a_text_of_nothing_is_judged_without_an_error(text, rules):
    config = override(
        CONFIG, {"languages": [], "min_language_score": 0.0} | {name: name == rules for name in ("gopher", "repetition", "c4", "fineweb")}
    )
    judge(config, row(text))


@pytest.mark.realdata
def test_real_chinese_news_mostly_stays(realdata):
    """The true texts of 60 Chinese news pages, with the rules for crawled pages."""
    pages = [json.loads(line) for line in gzip.decompress((realdata / "html" / "daniel.jsonl.gz").read_bytes()).splitlines()]
    texts = [re.sub("</?p>", "", page["reference"]) for page in pages if page["lang"] == "Chinese"]
    texts = [text for text in texts if len(text) > 250][:60]
    fates = Counter(fate(text) for text in texts)
    assert fates[""] >= 0.85 * len(texts), fates
