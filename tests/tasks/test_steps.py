"""Step by step or in one build: the same documents stay where each step's come after all published ones in the order; where they do not, the published stays."""

import pytest
from corpora import ENGINE, changed, document, output_of, run_inline, words

from flows import recipes
from tasks.corpus import dedup, index

DEDUP = recipes.tiny().dedup
OLD, NEW = "CC-MAIN-2026-40", "CC-MAIN-2026-44"

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(index, "run_ranks", run_inline)
    monkeypatch.setattr(dedup, "run_ranks", run_inline)


def copies(source: str, snapshot: str, start: int, count: int = 90) -> list[dict]:
    """Pages about thirty things, each as several copies with up to eight words replaced: chains, of which not all pairs are alike enough."""
    return [
        document(" ".join(changed(words(120, seed=n % 30), n % 9, start + n)), n, source, snapshot, url=f"https://a.org/{start + n}")
        for n in range(count)
    ]


def steps(store, *batches, gone=()):
    """Ids that stay when one batch after the other is published, and (behind dedup, as decontamination and takedown do) some of the first are taken out."""
    parts, segments = [], []
    for batch in batches:
        before = {f"previous-{n:03d}": part for n, part in enumerate(parts)} | {f"index-{n:03d}": part for n, part in enumerate(segments)}
        made = dedup.run(store, "test", DEDUP, {"filter": output_of(store, "filter", [batch])} | before, ENGINE)
        kept = [row for row in batch if row["id"] in ids(store, made) and row["id"] not in gone]
        parts.append(output_of(store, "decontaminate", [kept]))
        segments.append(index.run(store, "test", DEDUP.signatures, {"documents": parts[-1]}, ENGINE))
    return set().union(*(ids(store, part) for part in parts))


def once(store, *batches, gone=()):
    """The same in one build."""
    made = dedup.run(store, "test", DEDUP, {"filter": output_of(store, "filter", list(batches))}, ENGINE)
    return ids(store, made) - set(gone)


def ids(store, made):
    from corpora import rows_of

    return {row["id"] for row in rows_of(store, made)}


def test_a_later_snapshot_of_the_same_source_in_steps_is_one_build_of_both(store):
    first, second, third = (copies("commoncrawl", name, start) for name, start in ((OLD, 1000), (NEW, 2000), ("CC-MAIN-2026-48", 3000)))
    kept = steps(store, first, second, third)
    assert kept == once(store, first, second, third) == once(store, third, first, second)
    assert 30 < len(kept) < 270


def test_a_source_that_stands_before_the_published_ones_keeps_less_in_steps(store):
    crawl, wiki = copies("commoncrawl", OLD, 1000, 30), copies("wikipedia", "enwiki-20261101", 1000, 30)
    one, in_steps = once(store, crawl, wiki), steps(store, crawl, wiki)
    assert one == {row["id"] for row in wiki}  # wikipedia is first in the order
    assert in_steps == {row["id"] for row in crawl}  # what is published stays


def test_an_earlier_snapshot_that_comes_later_is_the_one_that_goes(store):
    first, second = copies("commoncrawl", OLD, 1000, 30), copies("commoncrawl", NEW, 1000, 30)
    assert once(store, first, second) == {row["id"] for row in first}
    assert steps(store, second, first) == {row["id"] for row in second}


def test_a_copy_of_what_was_taken_out_behind_dedup_stays_in_steps_and_goes_in_one_build(store):
    first, second = copies("commoncrawl", OLD, 1000, 30), copies("commoncrawl", NEW, 1000, 30)
    gone = {first[0]["id"]}
    one, in_steps = once(store, first, second, gone=gone), steps(store, first, second, gone=gone)
    assert in_steps - one == {second[0]["id"]} and one < in_steps
