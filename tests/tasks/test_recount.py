"""Other thresholds counted without the texts: the same books as a run of the filter with these thresholds."""

import random
import time

import pytest
from corpora import ENGINE, document, output_of, rows_of, run_inline
from judged import BAD, CONFIG, EN, ZH, random_texts

from model.config import override
from model.errors import ConfigError, InputError
from tasks.corpus import quality
from tasks.corpus.recount import recount, staying

TRIED = [
    {},
    {"gopher_short_doc": 10},
    {"gopher_short_doc": 10, "c4_too_few_sentences": 1, "gopher_enough_stop_words": 0, "gopher_below_alpha_threshold": 0.5},
    {"gopher_short_doc": 10_000},
    {"fineweb_char_dup_ratio": 0.5, "fineweb_short_line_ratio": 1, "fineweb_line_punct_ratio@en": 0.9, "gopher_short_doc@zh": 60},
    {"gopher_rep_dup_line_frac": 1, "gopher_rep_dup_line_char_frac": 1, "gopher_rep_dup_para_frac": 1, "gopher_rep_dup_para_char_frac": 1},
    {"gopher_short_doc": 0, "c4_too_few_sentences": 0, "fineweb_empty": 0, "gopher_enough_stop_words": 0, "gopher_below_alpha_threshold": 0, "fineweb_list_ratio": 9},
]  # fmt: skip
ONLY_NOTICES = "This site uses cookies to give you the best experience of all.\nPlease turn javascript on to see this page of ours."


@pytest.fixture
def source(store, monkeypatch):
    """Texts from fine to bad in every way, crawled and not."""
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    texts = [EN, ZH, *BAD.values(), *random_texts(120), ONLY_NOTICES, ZH.replace("。", "……"), ZH[:40], EN + "\n" + ONLY_NOTICES]
    rows = [document(text, n, random.Random(n).choice(("commoncrawl", "commoncrawl", "wikipedia"))) for n, text in enumerate(texts)]
    return output_of(store, "extract", [rows[:70], rows[70:]])


def filtered(store, source, **changes):
    return quality.run(store, "test", override(CONFIG, changes), {"extract": source}, ENGINE)


@pytest.mark.parametrize("number", range(len(TRIED)))
def test_a_recount_has_the_books_of_a_run_with_these_thresholds(store, source, number):
    before = filtered(store, source)
    counted = recount(store, [before], TRIED[number])
    real = filtered(store, source, thresholds=TRIED[number])
    rows = rows_of(store, real)
    assert (counted.total.documents, counted.total.documents_then) == (before.kept, real.kept)
    assert counted.total.words_then == sum(row["words"] for row in rows)
    assert {name: then for name, (_, then) in counted.rejected.items() if then} == real.rejected
    for language in ("en", "zh"):
        mine = [row for row in rows if row["language"] == language]
        pair = counted.languages[language]
        assert (pair.documents_then, pair.words_then) == (len(mine), sum(row["words"] for row in mine))
    if number:
        assert real.rejected != before.rejected  # else nothing was tried


def test_thresholds_that_a_run_had_are_what_others_are_counted_over(store, source):
    loose = filtered(store, source, thresholds={"gopher_short_doc": 10})
    both = recount(store, [loose], {"c4_too_few_sentences": 1})
    assert both.total.documents_then == filtered(store, source, thresholds={"gopher_short_doc": 10, "c4_too_few_sentences": 1}).kept
    assert both.total.documents == loose.kept


def test_a_later_stage_tells_what_would_stay_of_its_own(store, source):
    made = filtered(store, source)
    later = output_of(store, "dedup", [rows_of(store, made)[::2]], {"filter": made})
    limits = {"gopher_short_doc": 90}
    stricter = {row["id"] for row in rows_of(store, filtered(store, source, thresholds=limits))}
    here = staying(store, [later], limits).total
    assert here.documents == later.kept
    assert 0 < here.documents_then == len({row["id"] for row in rows_of(store, later)} & stricter) < here.documents
    with pytest.raises(InputError, match="no filter stage"):
        recount(store, [later], limits)


def test_ranges_hold_every_documents_signal(store, source):
    made = filtered(store, source)
    found = recount(store, [made], {}).ranges["gopher_words"]
    values = [
        row["signals"]["gopher_words"]
        for rows in (rows_of(store, made), rows_of(store, made, "rejects-"))
        for row in rows
        if row["signals"]
    ]
    assert (found.documents, found.least, found.most) == (len(values), min(values), max(values))
    assert found.shares()[1] == pytest.approx(sorted(values)[len(values) // 2], rel=0.1)


@pytest.mark.parametrize("name", ["gopher_shrt_doc", "c4_too_few_sentences@zh", "gopher_words", "@zh", ""])
def test_a_rule_that_there_is_not_is_refused_with_those_there_are(store, source, name):
    with pytest.raises(ConfigError, match="no rule is called.*gopher_short_doc"):
        recount(store, [filtered(store, source)], {name: 1})
    with pytest.raises(ConfigError, match="no rule is called.*gopher_short_doc"):
        override(CONFIG, {f"thresholds.{name}": 1})


def test_a_hundred_thousand_documents_are_counted_in_seconds(store, source):
    made = filtered(store, source)
    rows = rows_of(store, made)
    many = output_of(store, "many", [(rows * (20_000 // len(rows) + 1))[:20_000]])
    begun = time.process_time()
    found = staying(store, [many], {"gopher_short_doc": 60})
    assert found.total.documents == 20_000
    assert time.process_time() - begun < 2
