"""The report of a corpus: true to the books, safe with any text, whole in one file, the same for the same seed."""

import re
from html import unescape

import numpy as np
import pyarrow as pa
import pytest
from chain import asked
from corpora import document, publish, staged, words
from hypothesis import given
from hypothesis import strategies as st

from model.errors import NotFoundError
from tasks.corpus import overview
from tasks.corpus.document import DUPLICATES, PartWriter, read_rows, write_table
from tasks.corpus.manifest import Result, Stage, Store, run_stage
from tasks.corpus.quality import Rule, rules_of


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


def test_what_was_set_aside_without_its_text_is_named_by_its_address(store, page):
    [made] = map(store.need, store.addresses("extract"))
    rows = list(read_rows(overview.paths(store, made, "rejects-"), ["reason", "url", "origin_file"]))
    for reason in made.rejected:
        part = page.partition(f"<b>{reason}</b>")[2].partition("</details>")[0]
        shown = {unescape(name) for name in re.findall(r"<cite>(.*?) · ", part)}
        assert shown and shown <= {row["url"] or row["origin_file"] for row in rows if row["reason"] == reason}


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
    tags = set(re.findall(r"</?([a-z]+\d?)[ >]", page))
    assert tags == {
        *("html", "meta", "title", "style", "main", "h1", "h2", "h3", "dl", "div", "dt", "dd", "table", "tr", "th", "td"),
        *("small", "i", "b", "details", "summary", "blockquote", "cite", "section", "svg", "path", "figure", "figcaption", "span", "mark"),
    }  # fmt: skip
    assert overview._("<script>&\"'") == "&lt;script&gt;&amp;&quot;&#x27;"


def test_the_tokens_of_the_corpus_stand_at_the_end_of_the_funnel(store, page):
    [encoded] = [store.need(address) for address in store.addresses("encode")]
    tokens = sum(encoded.info["tokens"].values())
    assert f"<td>tokens<small>{encoded.address}</small></td><td></td><td>{tokens:,}</td>" in page
    assert f"<dt>tokens</dt><dd>{tokens:,}</dd>" in page


def test_every_signal_with_a_threshold_is_drawn_for_each_language_with_what_lies_outside(store, page):
    [made] = [
        m for m in overview.family(store, [store.need(p) for p in store.published("corpora", "tiny", "v1").parts]) if m.stage == "filter"
    ]
    rows = [row for prefix in ("documents-", "rejects-") for row in read_rows(overview.paths(store, made, prefix), ["language", "signals"])]
    drawn = page.partition("What the rules measured")[2].partition("What is in it")[0]
    for language in ("en", "zh"):
        part = drawn.partition(f"<b>{language}</b>")[2].partition("</details>")[0]
        for rule in rules_of(language):
            values = [row["signals"][rule.signal] for row in rows if row["language"] == language and row["signals"]]
            if rule.reason == "quality_low":
                assert set(values) == {None} and rule.signal not in part  # the recipe trains no model
                continue
            outside = sum(not rule.least <= value <= rule.most for value in values if value is not None)
            told = re.search(rf"<figcaption>{rule.signal}<small>([^<]*) · ([\d,]+) outside", part)
            assert told and (f"{rule.most:,.6g}" in told[1] or f"{rule.least:,.6g}" in told[1])
            assert int(told[2]) >= outside and ("," in told[1] or int(told[2]) == outside)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.lists(st.floats(0, 50), max_size=60), st.floats(0.1, 4))
def test_a_histogram_has_a_bar_where_a_document_is_and_its_threshold_where_it_belongs(stayed, rejected, limit):
    drawn = overview.histogram("x", [Rule("x", "x", most=limit)], np.array(stayed), np.array(rejected))
    high = np.quantile([*stayed, *rejected], 0.995)
    near = limit <= max(10 * high, 1)
    top = 1.05 * max(high, limit if near else 0) or 1.0
    for kind, values in (("kept", stayed), ("lost", rejected)):
        bars = [float(at) for at in re.findall(r"M([\d.]+) ", re.search(rf'class="{kind}" d="([^"]*)"', drawn)[1])]
        filled = {min(overview.BINS - 1, int(min(value, top) / top * overview.BINS)) for value in values}
        assert len(bars) <= overview.BINS and abs(len(bars) - len(filled)) <= 1 and bool(bars) == bool(values)
    mark = re.search(r'class="mark" d="M([\d.]+) 0v40"', drawn)
    assert bool(mark) == near and (not mark or abs(float(mark[1]) / 140 - limit / top) < 0.001)
    assert f"{sum(value > limit for value in [*stayed, *rejected]):,} outside" in drawn


@given(st.text(max_size=600), st.text(max_size=600))
def test_what_two_texts_do_not_share_is_marked_and_no_text_becomes_markup(one, other):
    shown = overview._differing(one, other)
    plain = [unescape(re.sub(r"</?mark>", "", text)) for text in shown]
    for text, whole in zip(plain, (one, other), strict=True):
        assert text.removeprefix("…") in whole or text in whole
    left = [unescape(re.sub(r"<mark>.*?</mark>", "", text, flags=re.S)) for text in shown]
    whole = min(len(one), len(other)) <= overview.SHOWN // 2
    assert (not whole or left[0] == left[1]) and (one != other or "<mark>" not in shown[0] + shown[1])


def test_a_version_over_another_shows_what_is_new_and_pairs_with_what_is_published(tmp_path):
    store = Store(tmp_path / "store")
    rows = [document(" ".join(words(60, seed=n)), n, "commoncrawl", url=f"https://a.org/{n}", language="en", words=60) for n in range(8)]
    old = staged(store, "decontaminate", rows[:4])

    def body(work):
        with PartWriter(work.dir, 0, "dedup") as out:
            for row in rows[5:]:
                out.keep(row)
            out.reject(rows[4] | {"text": rows[0]["text"] + " <b>more</b>"}, "duplicate_of_previous")
        evidence = [{"id": rows[4]["id"], "kept_id": rows[0]["id"], "similarity": 0.93, "rule": "near"}]
        files = [(f["path"], f["rows"]) for f in out.files]
        files.append(
            ("duplicates-00000.parquet", write_table(work.dir / "duplicates-00000.parquet", pa.Table.from_pylist(evidence, DUPLICATES)))
        )
        return Result(files, out.seen, out.kept, out.rejected)

    new = run_stage(store, Stage("dedup", 1), "test", {}, {"previous-000": old}, body)
    publish(store, "1", [old])
    publish(store, "2", [old, new], "corpora/news/1")
    page = overview.page(store, "corpora/news/2")
    assert "<h2>Since corpora/news/1</h2>" in page and "<td>documents</td><td>4</td><td>3</td><td>0</td><td>7</td>" in page
    assert old.address not in page.partition("From records to tokens")[2].partition("</table>")[0]
    assert "<cite>stays · https://a.org/0</cite>" in page and "<mark> &lt;b&gt;more&lt;/b&gt;</mark>" in page
    assert "Since" not in overview.page(store, "corpora/news/1")


def test_the_seed_decides_the_samples(store, page):
    assert overview.page(store, "corpora/tiny/v1") == page
    assert overview.page(store, "corpora/tiny/v1", seed=1) != page


def test_what_is_not_there_is_named(store):
    with pytest.raises(NotFoundError, match="corpora/tiny/v9 is not published.*there are corpora/tiny/v1"):
        overview.page(store, "corpora/tiny/v9")


def test_the_command_writes_the_page_where_it_is_told(tiny_run, tmp_path, page):
    done = asked(tiny_run.store, "report", "corpora/tiny/v1", "--to", str(tmp_path / "a" / "b.html"))
    assert done.exit_code == 0 and (tmp_path / "a" / "b.html").read_text(encoding="utf-8") == page
