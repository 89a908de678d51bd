"""Text that many documents have in common, against a count in plain Python."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from corpora import document, rows_of, words
from deduping import CONFIG, evidence, in_order, run
from deduping import inline as inline
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import keepers, repeats
from tasks.corpus.document import text_hash
from tasks.corpus.textnorm import normalise

COOKIES = "We use cookies to give you the best experience."


def config(unit="line", keep="first", characters=20, documents=3):
    return dataclasses.replace(CONFIG, repeated=unit, repeated_keep=keep, repeated_characters=characters, repeated_documents=documents)


def own(place, count=40):
    return " ".join(words(count, seed=place))


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("keep", ["first", "none"])
@pytest.mark.parametrize("parts", [1, 3])
def test_what_more_documents_have_is_cut_and_all_else_stays(store, keep, parts):
    """A line of seven documents in two spellings; one of exactly three; one that is short; one that a document has twice."""
    rows = []
    for place in range(7):
        lines = [own(place), COOKIES if place % 2 else COOKIES.upper().replace(" ", "  "), "short line", own(100 + place)]
        lines += ["A line that only three of the documents have."] * (place < 3) + [f"its own twice {place} " * 3] * 2
        rows.append(document("\n".join(lines), place))
    manifest = run(store, rows, parts=parts, config=config(keep=keep))
    kept = {row["id"]: row for row in rows_of(store, manifest)}
    assert len(kept) == 7
    for place, row in enumerate(rows):
        stays = [line for line in row["text"].split("\n") if normalise(line) != normalise(COOKIES) or (keep == "first" and place == 0)]
        assert kept[row["id"]]["text"] == "\n".join(stays)
        assert kept[row["id"]]["text_hash"] == text_hash("\n".join(stays))
    removed = 6 if keep == "first" else 7
    assert manifest.info["repeated"]["different"] == 1
    assert manifest.info["repeated"]["pieces"] == manifest.info["repeated"]["documents"] == removed


@pytest.mark.usefixtures("inline")
def test_a_document_of_repeated_text_alone_goes_with_a_reason_and_its_text_for_the_sample(store):
    rows = [document(f"{COOKIES}\n{own(place)}", place) for place in range(5)] + [document(f"{COOKIES}\n\n", 9)]
    manifest = run(store, rows, config=config())
    assert manifest.rejected == {"only_repeated_text": 1} and manifest.kept == 5
    [gone] = rows_of(store, manifest, "rejects-")
    assert gone["id"] == rows[-1]["id"] and gone["text"] == rows[-1]["text"]


@pytest.mark.usefixtures("inline")
def test_a_document_that_others_went_for_keeps_its_text_rather_than_be_emptied(store):
    """Every removal stays verified with a member that stays."""
    rows = [document(f"{COOKIES}\n{own(place)}", place) for place in range(5)]
    rows += [document(f"{COOKIES}\n", 9), document(COOKIES, 10)]
    manifest = run(store, rows, config=config(keep="none"))
    found = evidence(store, manifest)
    kept = {row["id"]: row["text"] for row in rows_of(store, manifest)}
    assert found == {rows[6]["id"]: (rows[5]["id"], 1.0, "exact")}
    assert kept[rows[5]["id"]] == rows[5]["text"]
    assert manifest.info["repeated"]["spared"] == 1


@pytest.mark.usefixtures("inline")
def test_copies_of_a_document_do_not_make_its_lines_repeated(store):
    """Lines are counted among the documents that stay."""
    rows = [document(f"{own(1)}\n{own(2)}", place) for place in range(9)]
    manifest = run(store, rows, config=dataclasses.replace(config(), max_removed=1.0))
    assert [row["text"] for row in rows_of(store, manifest)] == [rows[0]["text"]]
    assert manifest.info["repeated"] == {"different": 0}


@pytest.mark.usefixtures("inline")
def test_paragraphs_are_what_stands_between_empty_lines(store):
    paragraph = "Two lines that are\none paragraph of many pages."
    rows = [document(f"{own(place)}\n \n{paragraph}\n\n\n{own(50 + place)}\none paragraph of many pages.", place) for place in range(5)]
    manifest = run(store, rows, config=config("paragraph", "none"))
    assert [row["text"] for row in in_order(rows_of(store, manifest))] == [
        f"{own(place)}\n\n\n{own(50 + place)}\none paragraph of many pages." for place in range(5)
    ]


LINES = st.lists(st.sampled_from(["a", "b b", "B  b", "long line one", "Long Line ONE", "long line two", "茶 茶 茶", ""]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.sampled_from([2, 100]))
def test_cut_equals_a_count_in_plain_python(tmp_path_factory, documents, most, characters, everywhere, merged):
    folder = tmp_path_factory.mktemp("repeats")
    having, long = defaultdict(set), lambda line: len(normalise(line)) >= characters
    for place, lines in enumerate(documents):
        for line in filter(long, lines):
            having[normalise(line)].add(place)
    paths = []
    for place, lines in enumerate(documents):
        _, hashes = repeats.pieces("\n".join(lines), "line", characters)
        hashes = np.unique(hashes[hashes != 0])
        made = np.empty(len(hashes), repeats.FOUND)
        made["hash"], made["place"] = hashes, place
        paths.append(folder / f"pieces-{place:05d}.npy")
        np.save(paths[-1], made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keepers, "MERGED", merged)
        found = np.load(repeats.gather(paths, most, folder))
    assert len(found) == sum(len(places) > most for places in having.values())
    for place, lines in enumerate(documents):
        stays = [
            line for line in lines
            if not long(line) or len(having[normalise(line)]) <= most or (not everywhere and place == min(having[normalise(line)]))
        ]  # fmt: skip
        text, count = repeats.cut("\n".join(lines), "line", characters, found, place, everywhere)
        assert (text, count) == ("\n".join(stays), max(1, len(lines)) - len(stays) if len(stays) < len(lines) else 0)
