"""The report of a corpus: true to the books, safe with any text, whole in one file, the same for the same seed."""

import re

import pytest
from chain import asked

from model.errors import NotFoundError
from tasks.corpus import overview
from tasks.corpus.document import read_rows
from tasks.corpus.manifest import Store


@pytest.fixture(scope="module")
def store(tiny_run):
    return Store(tiny_run.store)


@pytest.fixture(scope="module")
def page(store):
    return overview.page(store, "corpora/tiny/v1")


def test_every_stage_and_every_reason_stands_there_with_its_count(store, page):
    [part] = store.published("corpora", "tiny", "v1").parts
    chain = overview.family(store, [store.need(part)])
    assert [m.stage for m in chain] == ["extract", "filter", "dedup", "decontaminate"]
    for m in chain:
        assert f"<td>{m.seen:,}</td><td>{m.kept:,}</td><td>{m.seen - m.kept:,}</td>" in page
        for reason, count in m.rejected.items():
            assert f"<b>{reason}</b> {count:,} <small>{m.stage}" in page


def test_charts_add_up_to_the_documents(store, page):
    [part] = map(store.need, store.published("corpora", "tiny", "v1").parts)
    languages = [row["language"] for row in read_rows(overview.paths(store, part, "documents-"), ["language"])]
    assert f"<dd>{part.kept:,}</dd>" in page
    for language in set(languages):
        assert f"<td>{language}</td><td>{languages.count(language):,}</td>" in page
    lengths = page.partition("Words a document")[2].partition("</table>")[0]
    assert sum(int(n.replace(",", "")) for n in re.findall(r"</td><td>([\d,]+)</td>", lengths)) == part.kept


def test_pairs_show_what_stays_beside_what_was_removed(store, page):
    [made] = [
        m for m in overview.family(store, [store.need(p) for p in store.published("corpora", "tiny", "v1").parts]) if m.stage == "dedup"
    ]
    found = re.findall(r"similarity (\d\.\d{3})", page)
    known = {f"{row['similarity']:.3f}" for row in read_rows(overview.paths(store, made, "duplicates-"))}
    assert found and set(found) <= known
    assert page.count("<cite>stays") == page.count("<cite>removed") == len(found)


def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup(page):
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(", page)
    tags = set(re.findall(r"</?([a-z]+\d?)", page))
    assert tags == {
        *("html", "meta", "title", "style", "main", "h1", "h2", "h3", "dl", "div", "dt", "dd", "table", "tr", "th", "td"),
        *("small", "i", "b", "details", "summary", "blockquote", "cite", "p", "section"),
    }  # fmt: skip
    assert overview._("<script>&\"'") == "&lt;script&gt;&amp;&quot;&#x27;"


def test_the_seed_decides_the_samples(store, page):
    assert overview.page(store, "corpora/tiny/v1") == page
    assert overview.page(store, "corpora/tiny/v1", seed=1) != page


def test_what_is_not_there_is_named(store):
    with pytest.raises(NotFoundError, match="corpora/tiny/v9 is not published"):
        overview.page(store, "corpora/tiny/v9")


def test_the_command_writes_the_page_where_it_is_told(tiny_run, tmp_path, page):
    done = asked(tiny_run.store, "report", "corpora/tiny/v1", "--to", str(tmp_path / "a" / "b.html"))
    assert done.exit_code == 0 and (tmp_path / "a" / "b.html").read_text(encoding="utf-8") == page
