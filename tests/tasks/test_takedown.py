"""Takedown: exactly what is named goes, only the parts that hold it are written anew, and asking twice is asking once."""

import os

import pytest
from corpora import document, output_of, rows_of, words
from hypothesis import given
from hypothesis import strategies as st

from tasks.corpus import takedown
from tasks.corpus.takedown import Tombstones

NAMES = st.lists(st.sampled_from(["a.org", "b.a.org", "c.b.a.org", "xa.org", "org", "b.org"]), max_size=3)


def page(number: int, url: str, text: str = "") -> dict:
    return document(text or " ".join(words(20, seed=number)), number, "commoncrawl", url=url)


PAGES = [page(n, f"https://{host}/{n}") for n, host in enumerate(["a.org", "b.a.org", "xa.org", "b.org", "a.org", "c.org"])]


@given(NAMES)
def test_a_domain_takes_its_subdomains_and_nothing_else(names):
    asked = Tombstones(domains=tuple(sorted(set(names))))
    for row in PAGES:
        expected = any(row["domain"] == name or row["domain"].endswith(f".{name}") for name in names)
        assert bool(asked.reason(row)) == expected


def test_what_is_named_goes_with_its_reason_and_without_its_text(store):
    source = output_of(store, "decontaminate", [PAGES[:2], PAGES[2:4], PAGES[4:]])
    asked = Tombstones(ids=(PAGES[5]["id"],), urls=(PAGES[0]["url"],))
    made = takedown.run(store, "test", asked, {"documents": source})
    assert [row["id"] for row in rows_of(store, made)] == [row["id"] for row in PAGES[1:5]]
    assert made.rejected == {"takedown_id": 1, "takedown_url": 1} and made.seen == 6
    assert {row["text"] for row in rows_of(store, made, "rejects-")} == {None}
    same = [os.path.samefile(store.path(source, a), store.path(made, b)) for a, b in zip(source.parts(), made.parts(), strict=True)]
    assert same == [False, True, False]


def test_where_nothing_is_named_nothing_is_made(store):
    source = output_of(store, "decontaminate", [PAGES])
    assert takedown.run(store, "test", Tombstones(), {"documents": source}) is source
    assert takedown.run(store, "test", Tombstones(urls=("https://elsewhere.org/",)), {"documents": source}) is source


def test_a_text_that_was_taken_down_does_not_come_back_at_another_address(store):
    source = output_of(store, "decontaminate", [PAGES])
    takedown.ask(store, "news", Tombstones(urls=(PAGES[0]["url"],)), "", [source], "corpora/news/1")
    copy, other = page(90, "https://else.org/", PAGES[0]["text"].upper()), page(91, "https://else.org/2")
    later = output_of(store, "later", [[copy, other]])
    made = takedown.run(store, "news", takedown.tombstones(store, "news"), {"documents": later})
    assert rows_of(store, made) == [other] and made.rejected == {"takedown_text": 1}


def test_asking_twice_is_asking_once_and_all_that_was_asked_holds(store):
    source = output_of(store, "decontaminate", [PAGES])
    first, again, other = (
        takedown.ask(store, "news", Tombstones(**{kind: (name,)}), "letter", [source], "corpora/news/1")
        for kind, name in (("domains", "b.org"), ("domains", "b.org"), ("ids", PAGES[5]["id"]))
    )
    assert first == again != other
    assert [one["number"] for one in takedown.receipts(store, "news")] == [first["number"], other["number"]]
    hashes = tuple(sorted((PAGES[3]["text_hash"], PAGES[5]["text_hash"])))
    assert takedown.tombstones(store, "news") == Tombstones(ids=(PAGES[5]["id"],), domains=("b.org",), hashes=hashes)
    assert takedown.tombstones(store, "other") == Tombstones()


def test_versions_count_up_and_one_with_the_same_parts_is_found(store):
    parts = [output_of(store, "decontaminate", [PAGES[:n]]) for n in (6, 5, 4)]
    assert store.publish("corpora", "news", "v1", parts[:1], {}, {}).version == "v1"
    assert takedown.version(store, "news", "v1", parts[:1]) == "v1"
    assert takedown.version(store, "news", "v1", parts[1:2]) == "v1-takedown-1"
    store.publish("corpora", "news", "v1-takedown-1", parts[1:2], {}, {})
    assert takedown.version(store, "news", "v1-takedown-1", parts[2:]) == "v1-takedown-2"
    assert takedown.version(store, "news", "v1", parts[1:2]) == "v1-takedown-1"
    assert takedown.version(store, "news", "v2", parts[1:2]) == "v2-takedown-1"


def test_dependents_are_all_that_was_made_of_it_at_any_remove(store):
    one = output_of(store, "decontaminate", [PAGES])
    two = output_of(store, "encode", [PAGES[:1]], {"corpus-000": one})
    three = output_of(store, "pretrain", [PAGES[:2]], {"encode": two})
    output_of(store, "encode", [PAGES[:3]])
    assert [m.address for m in takedown.dependents(store, [one.address])] == [two.address, three.address]


@pytest.mark.parametrize("field", ["ids", "urls", "domains", "hashes"])
def test_tombstones_add_up(field):
    a, b = Tombstones(**{field: ("x", "z")}), Tombstones(**{field: ("y", "z")})
    assert a | b == Tombstones(**{field: ("x", "y", "z")})
