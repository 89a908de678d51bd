"""Clean-up of lines: planted boilerplate goes under its kind, text that has its words stays, and what is left is the rest, in order."""

import random

import pytest
from boilerplate import LINES, TEXTS, planted
from corpora import ENGINE, document, output_of, rows_of, run_inline
from hypothesis import given
from hypothesis import strategies as st
from judged import BAD, CONFIG, EN, ZH

from model.config import override
from model.errors import ConfigError
from tasks.corpus import quality
from tasks.corpus.document import text_hash
from tasks.corpus.lines import KINDS, clean


@pytest.mark.parametrize(("language", "text"), [("en", EN), ("zh", ZH)])
def test_planted_lines_go_and_the_text_stays(language, text):
    found = right = gone_at_all = 0
    for seed in range(60):
        lines, gone = planted(random.Random(seed), language, text.split("\n"))
        left, counts = clean("\n".join(lines), [kind for kind in KINDS if kind != "repeated"])
        kept = left.split("\n")
        right += sum(line not in kept for line in {lines[n] for n in gone})
        found += len({lines[n] for n in gone})
        gone_at_all += counts.total()
        assert [line for n, line in enumerate(lines) if n not in gone and line not in TEXTS[language]] == [
            p for p in kept if p in text.split("\n")
        ]
    true = sum(len(gone) for seed in range(60) for _, gone in [planted(random.Random(seed), language, text.split("\n"))])
    assert right >= 0.95 * found, right / found
    assert true >= 0.95 * gone_at_all, true / gone_at_all


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_kind_takes_its_lines_and_no_other_kind_does(language):
    for kind, lines in LINES[language].items():
        counts = [clean(line, (kind,))[1] for line in lines]
        assert sum(count == {kind: 1} for count in counts) >= 0.95 * len(lines), (
            kind,
            [line for line, count in zip(lines, counts, strict=True) if not count],
        )
    wrong = [line for line in TEXTS[language] if clean(line, KINDS)[1]]
    assert wrong == []


def test_a_line_may_come_again_if_it_is_short_and_a_long_one_may_not():
    text = "The keeper climbs the tower every evening.\nYes.\nThe keeper climbs the tower every evening.\nYes.\n守塔人每天傍晚登上灯塔。\n守塔人每天傍晚登上灯塔。"
    assert clean(text, ("repeated",)) == (
        "The keeper climbs the tower every evening.\nYes.\nYes.\n守塔人每天傍晚登上灯塔。",
        {"repeated": 2},
    )


def test_a_menu_is_many_short_lines_without_an_end():
    menu = "Lamps\nTowers\n\nShips and boats\n• Weather\nHarbours\nThe island"
    assert clean(f"{EN}\n{menu}\n{EN}", ("menu",)) == (f"{EN}\n\n{EN}", {"menu": 6})
    assert clean("1. Lamps\n2. Towers\n3. Ships\n4. Boats\n5. Weather\n6. Harbours\n7. Bells", ("menu",))[1] == {}
    assert clean("\n".join(menu.split("\n")[:5]), ("menu",))[1] == {}


def test_gaps_close_and_nothing_else_changes():
    assert clean("One lamp.\n\nRead more\n\nTwo lamps.\n\n\nThree lamps.", ("navigation",)) == (
        "One lamp.\n\nTwo lamps.\n\n\nThree lamps.",
        {"navigation": 1},
    )
    assert clean("Home\n\nOne lamp.", ("navigation",))[0] == "One lamp."
    assert clean("One lamp.\n\nRead more", ("navigation",))[0] == "One lamp."
    assert clean("", KINDS) == ("", {})


@given(
    st.lists(
        st.sampled_from([*LINES["en"]["navigation"], *LINES["zh"]["notice"], *TEXTS["zh"], EN, "", " ", "\u200b", "ab", "12"]), max_size=25
    ),
    st.sets(st.sampled_from(KINDS)),
)
def test_what_is_left_are_the_other_lines_in_their_order(lines, kinds):
    text = "\n".join(lines)
    left, gone = clean(text, sorted(kinds))
    rest = iter(text.split("\n"))
    assert all(line in rest for line in left.split("\n") if line)
    solid = [line for line in text.split("\n") if line.strip()]
    assert len([line for line in left.split("\n") if line.strip()]) + gone.total() == len(solid)
    assert set(gone) <= kinds
    if not gone:
        assert left == text


def test_the_stage_cleans_crawled_pages_before_it_judges_them_and_keeps_the_books(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    page = f"Home | News\nSIGN UP TODAY FOR OUR BEST OFFERS\n{EN}\nRead more"
    rows = [
        document(page, 0, "commoncrawl"),
        document(page, 1, "wikipedia"),
        document("Home\nRead more", 2, "commoncrawl"),
        document("Home\n" + BAD["gopher_short_doc"], 3, "commoncrawl"),
    ]
    source = output_of(store, "extract", [rows])
    made = quality.run(store, "test", override(CONFIG, {"clean_lines": ["navigation", "capitals"]}), {"extract": source}, ENGINE)
    first, second = rows_of(store, made)
    assert (first["text"], first["text_hash"], first["signals"]["lines_removed"]) == (EN, text_hash(EN), 3)
    assert (second["text"], second["signals"]["lines_removed"]) == (page, None)
    assert made.info["lines_removed"] == {"capitals": 1, "navigation": 2}
    assert made.rejected == {"lines_empty": 1, "gopher_short_doc": 1}
    empty, short = rows_of(store, made, "rejects-")
    assert (empty["text"], empty["value"], empty["signals"]) == ("Home\nRead more", "2 lines", None)
    assert short["signals"]["lines_removed"] == 1 and short["text"] == BAD["gopher_short_doc"]
    plain = quality.run(store, "test", CONFIG, {"extract": source}, ENGINE)
    assert {row["signals"]["lines_removed"] for row in rows_of(store, plain)} == {None}


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="clean_lines.*'notice'"):
        override(CONFIG, {"clean_lines": ["notices"]})
