"""Refresh: a new snapshot becomes the next corpus version with only what is new in it; nothing new makes nothing. On the sample, as two snapshots."""

import json
import time
import urllib.request

import pytest
from corpora import rows_of
from crawl_host import NEW, OLD, add_snapshot

from model.errors import ConfigError
from tasks.corpus.manifest import Store

pytestmark = pytest.mark.xdist_group("prefect")


def published_events(url: str, count: int) -> list[dict]:
    """Events that the server has of corpora, once there are as many; they arrive a moment later."""
    question = json.dumps({"filter": {"event": {"name": ["corpus.published"]}}}).encode()
    for _ in range(150):
        request = urllib.request.Request(f"{url}/events/filter", question, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            events = json.load(answer)["events"]
        if len(events) >= count:
            break
        time.sleep(0.2)
    return sorted(events, key=lambda event: event["occurred"])


def test_two_snapshots_make_two_versions_of_which_the_second_adds_what_is_new(prefect_server, tmp_path, sample):
    from flows.refresh import common_crawl_monthly

    warcs = sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz"))
    host, store = tmp_path / "host", Store(tmp_path / "store")
    add_snapshot(host, OLD, warcs[:2])
    settings = {"common_crawl.base_url": str(host), "common_crawl.index_url": str(host), "name": "news", "engine.workers": 1}

    def refresh() -> str:
        return common_crawl_monthly(set=settings, store=store.url)

    assert refresh() == f"corpora/news/{OLD}"
    assert refresh() == "nothing new"
    [first] = store.versions("corpora", "news")
    add_snapshot(host, NEW, warcs[1:])  # one file again, one that is new
    assert refresh() == f"corpora/news/{NEW}"
    assert refresh() == "nothing new"
    second = store.published("corpora", "news", NEW)
    assert second.parts[: len(first.parts)] == first.parts
    assert len(second.parts) == len(first.parts) + 1
    assert second.info["snapshots"] == [OLD, NEW]
    indexes = [store.published("indexes", "news", version) for version in (OLD, NEW)]
    assert indexes[1].parts[:-1] == indexes[0].parts
    assert [store.need(segment).inputs["documents"] for segment in indexes[1].parts] == list(second.parts)
    before, after = (rows_of(store, store.need(part)) for part in (first.parts[0], second.parts[-1]))
    assert before and after
    assert second.info["documents"] == len(before) + len(after)
    assert second.info["new"] == len(after)
    assert {row["snapshot"] for row in after} == {NEW}
    assert not {row["text_hash"] for row in before} & {row["text_hash"] for row in after}
    events = published_events(prefect_server, 2)
    assert [event["resource"]["ingot.corpus.address"] for event in events] == [first.address, second.address]
    assert events[1]["resource"]["prefect.resource.id"] == "ingot.corpus.news"
    assert events[1]["payload"] == {"documents": len(before) + len(after), "new": len(after), "snapshots": [OLD, NEW]}


def test_what_was_taken_down_is_gone_from_the_next_version_and_does_not_come_back(prefect_server, tmp_path, sample):
    from flows.refresh import common_crawl_monthly
    from flows.takedown import withdraw

    warcs = sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz"))
    host, store = tmp_path / "host", Store(tmp_path / "store")
    add_snapshot(host, OLD, warcs[:2])
    settings = {"common_crawl.base_url": str(host), "common_crawl.index_url": str(host), "name": "news", "engine.workers": 1}
    common_crawl_monthly(set=settings, store=store.url)
    [first] = store.versions("corpora", "news")
    before = rows_of(store, store.need(first.parts[0]))
    [gone, stays] = [row for row in before if row["origin_file"].endswith("00001.warc.gz")][:2]  # in both snapshots
    receipt = withdraw("news", urls=[gone["url"]], why="a letter", store=store.url)
    assert withdraw("news", urls=[gone["url"]], why="a letter", store=store.url) == receipt
    assert receipt["version"] == f"{first.address}-takedown-1" and [d["id"] for d in receipt["documents"]] == [gone["id"]]
    assert first.address in receipt["held_by"] and first.parts[0] in receipt["held_by"]
    second = store.versions("corpora", "news")[-1]
    assert second.address == receipt["version"]
    assert [r["id"] for r in rows_of(store, store.need(second.parts[0]))] == [r["id"] for r in before if r["id"] != gone["id"]]
    add_snapshot(host, NEW, warcs[1:])
    assert common_crawl_monthly(set=settings, store=store.url).startswith(f"corpora/news/{NEW}")
    third = store.versions("corpora", "news")[-1]
    found = {row["url"] for part in third.parts for row in rows_of(store, store.need(part))}
    assert gone["url"] not in found and stays["url"] in found
    assert [store.need(s).inputs["documents"] for s in store.versions("indexes", "news")[-1].parts] == list(third.parts)


def test_a_recipe_without_the_source_is_refused_by_name(prefect_server, tmp_path):
    from flows.refresh import common_crawl_monthly, wikipedia_monthly

    for flow, section in ((common_crawl_monthly, "common_crawl"), (wikipedia_monthly, "wikipedia")):
        with pytest.raises(ConfigError, match=f"no {section} section"):
            flow(set={section: None}, store=str(tmp_path / "store"))
