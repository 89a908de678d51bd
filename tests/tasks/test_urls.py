"""Addresses in their normal form, and what of one address stays."""

import numpy as np
import pytest
from corpora import ENGINE, document, rows_of, words
from deduping import CONFIG, evidence, run
from deduping import inline as inline
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import urls


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://www.Example.org:80/a/?b=2&utm_source=x&a=1#top", "example.org/a?a=1&b=2"),
        ("https://example.org", "example.org"),
        ("HTTPS://user:secret@EXAMPLE.org.:443/%7euser/%E8%8C%B6", "example.org/~user/%E8%8C%B6"),
        ("https://example.org/茶?q=竹子", "example.org/%E8%8C%B6?q=%E7%AB%B9%E5%AD%90"),
        ("http://example.org:8080/A%2fb", "example.org:8080/A%2Fb"),
        ("https://example.org/?fbclid=1&gclid=2", "example.org"),
        ("https://example.org/?x=2&x=1&a", "example.org?a&x=2&x=1"),
        ("http://[2001:db8::1]:80/", "[2001:db8::1]"),
        ("http://[broken/a", "http://[broken/a"),
        ("http://example.org:99999/", "http://example.org:99999/"),
        ("  ", ""),
    ],
)
def test_a_url_has_one_normal_form(url, normal):
    assert urls.normal_url(url) == normal


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(st.characters(codec="utf-8")), st.booleans())
def test_a_normal_form_is_its_own_and_no_text_breaks_it(any_text, path, query):
    urls.normal_url(any_text)
    urls.normal_url("https://" + any_text)
    made = urls.normal_url(f"https://example.org/{path}{'?' + path if query else ''}")
    assert urls.normal_url(f"http://www.{made}") == made


@pytest.mark.parametrize(
    ("date", "number"), [("2026-10-03T12:05:09Z", 20261003120509), ("2026-10-03", 20261003000000), ("", 0), ("soon", 0)]
)
def test_dates_are_numbers_in_their_order(date, number):
    assert urls.date_number(date) == number


def pages():
    """Three versions of one address, a copy of one of them elsewhere, and one without an address."""
    texts = [" ".join(words(80, seed=seed)) for seed in range(3)]
    dates = ("2026-10-01", "2026-10-03", "2026-10-02")
    addresses = ("http://example.org/a", "https://www.example.org/a/", "https://example.org/a?utm_medium=mail")
    rows = [document(text, place, url=url, date=date) for place, (text, url, date) in enumerate(zip(texts, addresses, dates, strict=True))]
    return [
        *rows,
        document(texts[0].upper(), 3, url="https://mirror.example/a"),
        *(document(f"without an address {n}", 4 + n) for n in range(2)),
    ]


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("mode", "stays"), [("off", [0, 1, 2, 4, 5]), ("first", [0, 4, 5]), ("newest", [1, 3, 4, 5])])
def test_one_document_an_address_stays_and_the_copy_of_one_that_went_for_its_address_takes_its_place(store, mode, stays):
    import dataclasses

    rows = pages()
    manifest = run(store, rows, config=dataclasses.replace(CONFIG, urls=mode))
    kept = {row["id"] for row in rows_of(store, manifest)}
    assert kept == {rows[place]["id"] for place in stays}
    found = evidence(store, manifest)
    assert {keeper for keeper, _, _ in found.values()} <= kept
    by_url = {gone for gone, (_, _, rule) in found.items() if rule == "url"}
    assert by_url == {rows[place]["id"] for place in {"off": [], "first": [1, 2], "newest": [2]}[mode]}
    assert manifest.rejected.get("url_duplicate", 0) == len(by_url)


@pytest.mark.usefixtures("inline")
def test_a_published_address_stays_even_where_the_newest_does(store):
    import dataclasses

    old = document("what was published of this address", 0, snapshot="old", url="http://example.org/a", date="2026-01-01")
    manifest = run(store, pages(), previous=[[old]], config=dataclasses.replace(CONFIG, urls="newest"))
    assert manifest.rejected == {"duplicate_of_previous": 2, "exact_duplicate": 1}  # the first version is the mirror's text
    assert [kept for kept, _, rule in evidence(store, manifest).values() if rule == "url"] == [old["id"]] * 2


def test_worker_processes_and_a_held_input_give_the_same_bytes_with_addresses(store, tmp_path, monkeypatch):
    import dataclasses

    from corpora import parts_of

    from tasks.corpus import dedup
    from tasks.corpus.manifest import Store

    config = dataclasses.replace(CONFIG, urls="newest", repeated="line", repeated_characters=5, repeated_documents=1)
    rows = [*pages(), *(document(f"the same line here\nline {n} of its own", 10 + n) for n in range(4))]
    held = parts_of(store, run(store, rows, config=config))
    monkeypatch.setattr(dedup, "HELD", 0)
    other = Store(tmp_path / "other")
    assert held == parts_of(other, run(other, rows, config=config, engine=ENGINE))
    assert np.array([len(held)]) > 3
