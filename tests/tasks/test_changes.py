"""The differences between two versions: true to the documents, of bounded size, and what is planted as surprising is said, what is not is not."""

import random
from collections import Counter

import pyarrow.parquet as pq
import pytest
from chain import asked
from corpora import document, output_of, publish, rows_of, staged

from model.errors import ConfigError
from tasks.corpus import census, changes
from tasks.corpus.document import write_table


def page(number: int, language: str = "en", site: str = "a.org", source: str = "commoncrawl", words: int = 100) -> dict:
    return document(
        f"text {number}",
        number,
        source,
        url=f"https://{site}/{number}",
        language=language,
        words=words,
        script="",
        date=f"2026-0{number % 9 + 1}-01",
    )


def pages(start: int, count: int, **more) -> list[dict]:
    return [page(number, **more) for number in range(start, start + count)]


def diff(store, old, new):
    return changes.compare(store, publish(store, "1", old), publish(store, "2", new, "corpora/news/1"))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_counted_is_what_is_there(store, seed):
    chance = random.Random(seed)
    rows = [
        page(
            n,
            chance.choice(["en", "zh", ""]),
            chance.choice(["a.org", "b.org", ""]),
            chance.choice(["wikipedia", "commoncrawl"]),
            chance.randrange(5000),
        )
        for n in range(60)
    ]
    groups = [rows[:20], rows[20:40], chance.sample(rows[20:40], 12), rows[40:]]
    parts = [output_of(store, "decontaminate", [group[:7], group[7:]]) for group in groups]
    old, new = parts[:2], [parts[0], *parts[2:]]
    found = diff(store, old, new)
    before, after = ({row["id"]: row for part in side for row in rows_of(store, part)} for side in (old, new))
    come, gone = ([a[i] for i in a.keys() - b.keys()] for a, b in ((after, before), (before, after)))
    for name, side in {"before": before.values(), "added": come, "removed": gone, "after": after.values()}.items():
        assert found["documents"][name] == len(side)
        assert found["words"][name] == sum(row["words"] for row in side)
        for by in changes.BY:
            counted = Counter(row[by] for row in side)
            assert {row["value"]: row[name] for row in found["by"][by] if row[name]} == dict(counted)
    assert found["documents"]["changed"] == 0


def test_a_record_whose_text_differs_is_neither_added_nor_removed_but_changed(store):
    rows = pages(0, 10)
    edited = [rows[0] | {"text_hash": "f" * 32}, *rows[1:]]
    found = diff(store, [output_of(store, "decontaminate", [rows])], [output_of(store, "decontaminate", [edited])])
    assert found["documents"] == {"before": 10, "removed": 0, "added": 0, "after": 10, "changed": 1}


def test_parts_that_both_versions_have_are_not_read_but_the_last_of_a_source_for_its_rates(store):
    same, last, more = (output_of(store, "decontaminate", [pages(start, 10)]) for start in (0, 10, 20))
    old, new = publish(store, "1", [same, last]), publish(store, "2", [same, last, more])
    (store.dir(same.address) / same.files[0].path).unlink()
    assert changes.compare(store, old, new)["documents"]["added"] == 10


def test_ten_thousand_sites_take_as_many_rows_as_twenty_one(store):
    rows = [page(n, site=f"{n % 400}.org") for n in range(2000)]
    found = diff(store, [output_of(store, "decontaminate", [rows[:500]])], [output_of(store, "decontaminate", [rows])])
    sites = found["by"]["domain"]
    assert len(sites) == changes.TOP + 1 and sites[-1]["value"] == "380 more"
    assert sum(row["added"] for row in sites) == found["documents"]["added"] == 1500


def language(n):
    return "zh" if n % 4 == 0 else "en"


def site(n):
    return f"{n % 20}.org"


def calm(store, start, language=language, site=site):
    """A chain of 400 pages of twenty sites and two languages, a tenth and then twenty of them rejected: the same wherever it starts."""
    rows = [page(n, language(n), site(n)) for n in range(start, start + 400)]
    first = staged(store, "filter", rows[40:], [(row, "gopher_short_doc") for row in rows[:40]])
    return staged(store, "dedup", rows[60:], [(row, "near_duplicate") for row in rows[40:60]], first)


def test_more_of_the_same_is_no_surprise(store):
    old = calm(store, 0)
    found = diff(store, [old], [old, calm(store, 400)])
    assert found["surprises"] == []
    [short] = [row for row in found["rejected"] if row["stage"] == "filter"]
    assert short == {"source": "commoncrawl", "stage": "filter", "reason": "gopher_short_doc", "documents": 40, "share": 0.1, "last": 0.1}


def test_a_site_that_jumps_is_said(store):
    old, new = calm(store, 0), calm(store, 400, site=lambda n: f"{n % 20}.org" if n % 5 else "spam.org")
    assert diff(store, [old], [old, new])["surprises"] == ["spam.org gives 20.0% of what came in (68 documents); before it gave 0.0%."]


def test_a_language_whose_share_moves_is_said(store):
    old, new = calm(store, 0), calm(store, 400, language=lambda n: "zh" if n % 2 else "en")
    assert [said.partition(";")[0] for said in diff(store, [old], [old, new])["surprises"]] == [
        "en is 50.0% of what came in",
        "zh is 50.0% of what came in",
    ]


def test_another_source_is_not_compared_with_the_first(store):
    old = calm(store, 0)
    new = staged(store, "dedup", [page(n, "zh", "zh.wikipedia.org", "wikipedia") for n in range(400, 800)])
    assert diff(store, [old], [old, new])["surprises"] == []


def test_a_rejection_rate_far_from_last_times_is_said(store):
    old, rows = calm(store, 0), [page(n, "zh" if n % 4 == 0 else "en", f"{n % 20}.org") for n in range(400, 800)]
    filtered = staged(store, "filter", rows[160:], [(row, "c4_curly_bracket") for row in rows[:160]])
    found = diff(store, [old], [old, staged(store, "dedup", rows[180:], [(row, "near_duplicate") for row in rows[160:180]], filtered)])
    assert found["surprises"] == [
        "filter rejects 40.0% of commoncrawl; last time it was 10.0%.",
        "filter rejects 40.0% of commoncrawl for c4_curly_bracket; last time it was 0.0%.",
        "filter rejects 0.0% of commoncrawl for gopher_short_doc; last time it was 10.0%.",
    ]


def test_a_snapshot_that_is_published_already_is_said_and_so_is_one_without_any_duplicate(store):
    def fresh(start, count):
        return [page(n, language(n), site(n)) for n in range(start, start + count)]

    old, rows = staged(store, "dedup", fresh(0, 400)), fresh(400, 1600)
    again = staged(store, "dedup", rows[:160], [(row, "duplicate_of_previous") for row in rows[160:400]])
    assert diff(store, [old], [old, again])["surprises"] == ["60.0% of what came in of commoncrawl is published already."]
    none = publish(store, "3", [old, staged(store, "dedup", rows)])
    assert changes.compare(store, store.version("corpora/news/1"), none)["surprises"] == [
        "Not one of 1,600 documents of commoncrawl is a duplicate."
    ]


def test_what_a_takedown_took_out_is_removed_for_its_reason(store):
    rows = [page(n, site=f"{n % 4}.org") for n in range(80)]
    whole = staged(store, "decontaminate", rows)
    left = [row for row in rows if row["domain"] != "3.org"]
    less = staged(store, "takedown", left, [(row, "takedown_domain") for row in rows if row["domain"] == "3.org"], whole)
    found = diff(store, [whole], [less])
    assert (found["documents"]["removed"], found["documents"]["added"]) == (20, 0)
    assert [(row["stage"], row["reason"], row["documents"]) for row in found["rejected"]] == [("takedown", "takedown_domain", 20)]
    assert found["surprises"] == ["3.org lost 20 of its 20 documents."]


def test_a_version_without_a_census_is_refused_by_name(store):
    part = output_of(store, "decontaminate", [pages(0, 3)])
    old = publish(store, "1", [part])
    bare = store.publish("corpora", "other", "1", [output_of(store, "decontaminate", [pages(3, 3)])], {}, {})
    with pytest.raises(ConfigError, match=r"indexes/other/1 has no census of stages/decontaminate/.*Refresh or build other again"):
        changes.compare(store, old, bare)


def test_the_command_and_the_artifact_say_the_same(store):
    old = calm(store, 0)
    new = staged(store, "dedup", [page(n, site="spam.org") for n in range(400, 800)])
    text = changes.markdown(diff(store, [old], [old, new]))
    said = asked(store.base, "diff", "corpora/news/1", "corpora/news/2").output
    for words in ("spam.org gives 100.0% of what came in (400 documents); before it gave 0.0%.", "340", "740"):
        assert words in text and words in said
    assert "| spam.org | 0 | 400 | 0 | 400 | 40,000 | 0 |" in text


def test_a_census_counts_what_a_loop_counts(store):
    rows = [page(n, "zh" if n % 3 else "en", f"{n % 5}.org", words=n * 7) for n in range(50)] + [page(60, words=None)]
    part = output_of(store, "decontaminate", [rows[:30], rows[30:]])
    table = census.count([store.path(part, file) for file in part.parts()])
    values = {"length": lambda row: str(max(row["words"] or 0, 1).bit_length() - 1), "date": lambda row: row["date"][:7]}
    for by in census.DIMENSIONS:
        expected = Counter((row["source"], values.get(by, lambda row, by=by: row[by])(row)) for row in rows)
        assert {(r["source"], r["value"]): r["documents"] for r in table.to_pylist() if r["by"] == by} == expected
        assert sum(r["words"] for r in table.to_pylist() if r["by"] == by) == sum(row["words"] or 0 for row in rows)
    assert census.minus(table, table).num_rows == 0
    assert census.minus(census.merge([table, table]), table) == table
    write_table(store.base / "c.parquet", table)
    assert pq.read_table(store.base / "c.parquet").equals(table)
