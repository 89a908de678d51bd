"""Refresh: a new snapshot becomes the next corpus version with only what is new in it; nothing new makes nothing. On the sample, as two snapshots.

Killed anywhere it resumes to the same version and loses no event; two at once, or one beside a takedown, give what one after the other gives.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest
from chain import DATA_STAGES, REPO, content, ingot
from corpora import rows_of
from crawl_host import NEW, OLD, add_snapshot

from model.errors import ConfigError, NotFoundError, StoreError
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


CHILD = """
import os, signal, sys
sys.path[:0] = [{repo!r}]
from flows import build, refresh
from tasks.corpus import engine, manifest

def deadly(holder, name, when):
    real = getattr(holder, name)
    def call(*args, **more):
        if when(*args, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(holder, name, call)

moment = {moment!r}
if moment == "ingest":
    deadly(manifest, "_settle", lambda store, address, *rest: address.startswith("stages/ingest"))
elif moment in ("dedup", "index"):
    deadly(manifest, "_settle", lambda store, address, *rest: address.startswith("stages/" + moment))
elif moment in ("indexes", "corpora"):
    deadly(manifest.Store, "publish", lambda self, kind, *rest: kind == moment)
elif moment == "changes":
    deadly(refresh.changes, "compare", lambda *args: True)
elif moment == "event":
    deadly(refresh, "emit_event", lambda **more: True)
elif moment == "record":
    deadly(manifest.Store, "write_json", lambda self, name, data, **more: name.endswith("announced.json"))
print(getattr(refresh, {flow!r})(set={settings!r}, store={store!r}))
"""


def child(store: Store, settings: dict, moment: str = "", flow: str = "common_crawl_monthly") -> "subprocess.Popen[str]":
    """A refresh in a process of its own, which a kill -9 ends at a moment."""
    script = CHILD.format(repo=str(REPO), moment=moment, flow=flow, settings=settings, store=store.url)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.fixture
def crawl(sample, tmp_path):
    """(warcs, host, settings): a host with one snapshot of one file."""
    warcs, host = sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz")), tmp_path / "host"
    add_snapshot(host, OLD, warcs[:1])
    settings = {"common_crawl.base_url": str(host), "common_crawl.index_url": str(host), "name": "news", "engine.workers": 1}
    return warcs, host, settings


def broken(*_, **__):
    raise RuntimeError("pulled the plug")


def test_a_refresh_that_ends_early_goes_on_from_what_is_published_and_its_event_is_not_lost(prefect_server, tmp_path, crawl, monkeypatch):
    from flows import build, recipes, refresh

    _, _, settings = crawl
    store, before = Store(tmp_path / "store"), len(published_events(prefect_server, 0))
    publish = Store.publish
    for holder, name, replaced in (
        (Store, "publish", lambda self, kind, *rest: broken() if kind == "corpora" else publish(self, kind, *rest)),
        (refresh, "emit_event", broken),
    ):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the plug"):
            patch.setattr(holder, name, replaced)
            refresh.common_crawl_monthly(set=settings, store=store.url)
    [made] = store.versions("corpora", "news")
    assert len(published_events(prefect_server, before)) == before
    assert refresh.common_crawl_monthly(set=settings, store=store.url) == made.address == f"corpora/news/{OLD}"
    assert refresh.common_crawl_monthly(set=settings, store=store.url) == "nothing new"
    assert len(published_events(prefect_server, before + 1)) == before + 1
    assert store.versions("corpora", "news") == [made] and len(store.versions("indexes", "news")) == 1
    stages = [address for address in store.addresses() if store.manifest(address)]
    assert sorted({a.split("/")[1] for a in stages}) == sorted({*DATA_STAGES} - {"tokenizer", "encode"})

    # somebody else publishes meanwhile: what would lack it is not published
    other = publish(store, "corpora", "news", "other", [], {"previous": ""}, made.info)
    recipe = replace(recipes.resolve(recipes.small(), recipes.small(), settings), wikipedia=None, version="next")
    run = build.Build(replace(recipe, common_crawl=replace(recipe.common_crawl, snapshot=OLD)), store)
    with pytest.raises(StoreError, match=rf"{other.address} was published while a version over {made.address} was made"):
        build.flow(build.make_corpus)(run, made)
    assert store.published("corpora", "news", "next") is None


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_refresh_killed_anywhere_gives_the_same_version_when_it_is_run_again(prefect_server, tmp_path, crawl):
    from flows.refresh import common_crawl_monthly

    warcs, host, settings = crawl
    settings |= {"keep_raw": "all"}
    store, whole = Store(tmp_path / "store"), Store(tmp_path / "whole")
    events = len(published_events(prefect_server, 0))
    for place in (store, whole):
        common_crawl_monthly(set=settings, store=place.url)
    add_snapshot(host, NEW, warcs[:2])
    for moment in ("ingest", "dedup", "index", "indexes", "corpora", "changes", "event", "record"):
        killed = child(store, settings, moment)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL, moment
    for place in (store, whole):
        assert common_crawl_monthly(set=settings, store=place.url) == f"corpora/news/{NEW}"
        assert common_crawl_monthly(set=settings, store=place.url) == "nothing new"
    events += 5  # one a version, and one more of what was killed between the event and the record of it
    assert len(published_events(prefect_server, events)) == events
    assert content(store, STAGES) == content(whole, STAGES)
    for kind in ("corpora", "indexes"):
        assert [(v.address, v.fingerprint, v.parts, v.info) for v in store.versions(kind, "news")] == [
            (v.address, v.fingerprint, v.parts, v.info) for v in whole.versions(kind, "news")
        ]
    assert store.read_json(f"corpora/news/{NEW}/changes.json") == whole.read_json(f"corpora/news/{NEW}/changes.json")


STAGES = tuple(stage for stage in DATA_STAGES if stage not in ("tokenizer", "encode"))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_refreshes_and_a_takedown_at_once_are_one_after_the_other(prefect_server, tmp_path, crawl, sample):
    from flows.refresh import common_crawl_monthly
    from flows.takedown import withdraw

    warcs, host, settings = crawl
    settings |= {"wikipedia.base_url": str(sample / "wikimedia"), "wikipedia.wikis": ["enwiki"]}
    store = Store(tmp_path / "store")
    common_crawl_monthly(set=settings, store=store.url)
    [first] = store.versions("corpora", "news")
    url = rows_of(store, store.need(first.parts[0]))[0]["url"]
    add_snapshot(host, NEW, warcs[:2])
    running = [child(store, settings, flow=flow) for flow in ("common_crawl_monthly", "wikipedia_monthly", "common_crawl_monthly")]
    while not (store.base / "locks" / "corpora.news.lock").exists() or all(
        process.poll() is None and not latest(store) for process in running
    ):
        time.sleep(0.05)
    receipt = withdraw("news", urls=[url], store=store.url)
    said = sorted(process.communicate()[0].strip().splitlines()[-1] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0] and "nothing new" in said
    last = store.versions("corpora", "news")[-1]
    rows = [row for part in last.parts for row in rows_of(store, store.need(part))]
    assert receipt["documents"] and url not in {row["url"] for row in rows}
    assert {row["snapshot"].partition("-19")[0] for row in rows} >= {"CC-MAIN", "enwiki"}
    assert {NEW} <= {row["snapshot"] for row in rows} and len({row["id"] for row in rows}) == len(rows)
    assert [store.need(s).inputs["documents"] for s in store.versions("indexes", "news")[-1].parts] == list(last.parts)


def latest(store: Store) -> bool:
    """Whether anything was published after the first version."""
    return len(store.versions("corpora", "news")) > 1


def artifacts(url: str, key: str) -> list[str]:
    """What Prefect's server has of a key, newest last."""
    question = json.dumps({"artifacts": {"key": {"any_": [key]}}}).encode()
    request = urllib.request.Request(f"{url}/artifacts/filter", question, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return [found["data"] for found in sorted(json.load(answer), key=lambda found: found["created"])]


def test_two_snapshots_make_two_versions_of_which_the_second_adds_what_is_new(prefect_server, tmp_path, sample):
    from flows.refresh import common_crawl_monthly

    warcs = sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz"))
    host, store = tmp_path / "host", Store(tmp_path / "store")
    add_snapshot(host, OLD, warcs[:2])
    settings = {"common_crawl.base_url": str(host), "common_crawl.index_url": str(host), "name": "news", "engine.workers": 1}

    already = len(published_events(prefect_server, 0))

    def refresh(**named: str) -> str:
        return common_crawl_monthly(set=settings | {f"common_crawl.{name}": value for name, value in named.items()}, store=store.url)

    assert refresh() == f"corpora/news/{OLD}"
    assert refresh() == "nothing new"
    [first] = store.versions("corpora", "news")
    add_snapshot(host, NEW, warcs[1:])  # one file again, one that is new
    assert refresh(snapshot=OLD) == "nothing new"
    assert refresh() == f"corpora/news/{NEW}"
    assert refresh() == refresh(snapshot=NEW) == "nothing new"
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
    events = published_events(prefect_server, already + 2)[already:]
    found = store.read_json(f"{second.address}/changes.json")
    assert (found["from"], found["to"]) == (first.address, second.address)
    assert found["documents"] == {"before": len(before), "added": len(after), "removed": 0, "changed": 0, "after": len(before) + len(after)}
    page = store.home / "reports" / f"corpora-news-{NEW}.html"
    assert f"<h2>Since {first.address}</h2>" in page.read_text(encoding="utf-8")
    assert page.as_uri() in artifacts(prefect_server, "corpus-report")[-1]
    assert artifacts(prefect_server, "changes")[-1].startswith(f"# From {first.address} to {second.address}")
    reasons = {row["reason"]: row["documents"] for row in found["rejected"] if row["stage"] == "dedup"}
    assert reasons["duplicate_of_previous"] >= 10
    assert [event["resource"]["ingot.corpus.address"] for event in events] == [first.address, second.address]
    assert events[1]["resource"]["prefect.resource.id"] == "ingot.corpus.news"
    assert events[1]["payload"] == {"documents": len(before) + len(after), "new": len(after), "snapshots": [OLD, NEW]}


def test_what_was_taken_down_is_gone_from_the_next_version_and_does_not_come_back(prefect_server, tmp_path, sample, monkeypatch):
    from flows import build, recipes, takedown
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
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the plug"):
        patch.setattr(takedown.plain, "close", broken)  # after the version is published, before the receipt says so
        withdraw("news", urls=[gone["url"]], why="a letter", store=store.url)
    receipt = withdraw("news", urls=[gone["url"]], why="a letter", store=store.url)
    assert receipt["before"] == first.address
    assert withdraw("news", urls=[gone["url"]], why="a letter", store=store.url) == receipt
    assert receipt["version"] == f"{first.address}-takedown-1" and [d["id"] for d in receipt["documents"]] == [gone["id"]]
    assert first.address in receipt["held_by"] and first.parts[0] in receipt["held_by"]
    raw = [store.need(address).info["role"] for address in receipt["held_by"] if address.startswith("stages/ingest/")]
    assert raw == ["source"]  # the evaluation files hold nothing of it
    second = store.versions("corpora", "news")[-1]
    assert second.address == receipt["version"] and store.previous(second) == first
    assert len(store.versions("corpora", "news")) == len(store.versions("indexes", "news")) == 2
    assert [r["id"] for r in rows_of(store, store.need(second.parts[0]))] == [r["id"] for r in before if r["id"] != gone["id"]]
    recipe = replace(recipes.resolve(recipes.small(), recipes.small(), settings), wikipedia=None, files=None, version=OLD)
    again = build.Build(replace(recipe, common_crawl=replace(recipe.common_crawl, snapshot=OLD)), store)
    assert build.flow(build.make_corpus)(again) == second, "a build of the same finds what the takedown has published"
    add_snapshot(host, NEW, warcs[1:])
    assert common_crawl_monthly(set=settings, store=store.url).startswith(f"corpora/news/{NEW}")
    third = store.versions("corpora", "news")[-1]
    found = {row["url"] for part in third.parts for row in rows_of(store, store.need(part))}
    assert gone["url"] not in found and stays["url"] in found
    assert [store.need(s).inputs["documents"] for s in store.versions("indexes", "news")[-1].parts] == list(third.parts)


@pytest.mark.parametrize(
    ("names", "said"),
    [({}, "at least one"), ({"domains": ["https://example.org/a"]}, "not a host name"), ({"urls": ["https://a.org/"]}, "not published")],
)
def test_a_takedown_that_cannot_be_is_refused_before_anything_runs(store, names, said):
    from flows.takedown import named

    with pytest.raises((ConfigError, NotFoundError), match=said):
        named(store, "news", names.get("ids", []), names.get("urls", []), names.get("domains", []))


def test_a_takedown_takes_host_names_however_they_are_written(store):
    from corpora import publish

    from flows.takedown import named

    publish(store, "v1", [])
    assert named(store, "news", [], [], ["WWW.Example.org."]).domains == ("www.example.org",)


@pytest.mark.full
def test_the_command_publishes_what_is_new_once_and_says_what_to_look_at(tmp_path, crawl):
    warcs, host, settings = crawl
    store, words = tmp_path / "store", [f"{name}={value}" for name, value in settings.items()]
    assert f"corpora/news/{OLD}" in ingot("refresh", "demo", *words, store=store).stdout
    assert "nothing new" in ingot("refresh", "demo", *words, store=store).stdout
    add_snapshot(host, NEW, warcs[:2])
    assert f"Next: ingot diff corpora/news/{OLD} corpora/news/{NEW}" in ingot("refresh", "demo", *words, store=store).stdout


def test_a_recipe_without_the_source_is_refused_by_name(prefect_server, tmp_path):
    from flows.refresh import common_crawl_monthly, wikipedia_monthly

    for flow, section in ((common_crawl_monthly, "common_crawl"), (wikipedia_monthly, "wikipedia")):
        with pytest.raises(ConfigError, match=f"no {section} section"):
            flow(set={section: None}, store=str(tmp_path / "store"))
