"""`ingot show` with other thresholds: the recount on the screen, of a stage and of a corpus, and its mistakes told."""

import re

import pytest
from chain import asked
from corpora import ENGINE, document, output_of, run_inline
from judged import BAD, CONFIG, EN, ZH

from model.config import override
from tasks.corpus import quality


@pytest.fixture
def made(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    texts = [EN, ZH, BAD["gopher_short_doc"], BAD["c4_lorem_ipsum"], BAD["language"]]
    source = output_of(store, "extract", [[document(text, n, "commoncrawl") for n, text in enumerate(texts)]])
    return quality.run(store, "tiny", CONFIG, {"extract": source}, ENGINE)


def words(said: str, first: str) -> list[str]:
    """The cells of the line that begins with a word."""
    return next(line.split() for line in said.splitlines() if re.match(rf"\s*{first}\s", line))


def test_a_rules_limit_and_what_it_rejects_stand_there_as_they_are_and_as_they_would_be(store, made):
    done = asked(store.url, "show", made.address, "--threshold", "gopher_short_doc=10", "--threshold", "c4_too_few_sentences=1")
    assert done.exit_code == 0, done.output
    assert words(done.output, "gopher_short_doc")[1:5] == ["≥50", "≥10", "1", "0"]
    assert words(done.output, "c4_lorem_ipsum")[1:4] == ["≤0", "1", "1"]
    assert words(done.output, "all")[1:4] == ["2", "3", "+1"]
    assert "ingot run tiny filter.thresholds.gopher_short_doc=10 filter.thresholds.c4_too_few_sentences=1" in done.output


def test_signals_without_other_limits_show_ranges_and_change_nothing(store, made):
    done = asked(store.url, "show", made.address, "--signals")
    assert words(done.output, "all")[1:4] == ["2", "2", "+0"]
    assert words(done.output, "fineweb_list_ratio")[1:4] == ["≤0.3,", "zh", "≤0.178"]


def test_of_a_later_output_it_is_told_what_would_stay(store, made):
    later = output_of(store, "dedup", [[]], {"filter": made})
    done = asked(store.url, "show", later.address, "--threshold", "gopher_short_doc=10", "--threshold", "c4_too_few_sentences=1")
    assert "Of the 0 documents" in done.output and words(done.output, "all")[1:4] == ["2", "3", "+1"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gopher_shrt=3", r"no rule is called 'gopher_shrt' \(did you mean 'gopher_short_doc'\?\); there are c4"),
        ("gopher_short_doc=x", "is a number"),
        ("x", "field=value"),
    ],
)
def test_a_mistake_is_told(store, made, word, message):
    assert re.search(message, str(asked(store.url, "show", made.address, "--threshold", word).exception))


def test_what_is_liked_becomes_the_recipes(made):
    from flows import recipes

    base = recipes.tiny()
    liked = recipes.resolve(base, base, {"filter.thresholds.gopher_short_doc": "30", "filter.thresholds.fineweb_list_ratio@zh": "0.2"})
    assert liked.filter.thresholds == {"gopher_short_doc": 30.0, "fineweb_list_ratio@zh": 0.2}
    assert liked.version != base.version
    assert override(liked.filter, {"thresholds.gopher_short_doc": 40}).thresholds["gopher_short_doc"] == 40
