"""Scheduled refreshes: poll for a new snapshot, build only what it adds, publish the next corpus version, say so by an event.

    prefect deployment run 'refresh/common-crawl-monthly' --watch
    ingot refresh small

A snapshot that some version holds already ends the flow with 'nothing new'. Documents that the previous version holds are left out by the dedup
stage, which looks them up in that version's index; the new version refers to its parts and adds the new one.

One refresh or takedown of a corpus runs at a time on a machine; a second waits, then starts from what the first has published. Of two machines on one
remote store the one that is later to publish stops, says what came between, and finds its work when it is run again. A version that is published but whose
event is not on record (`announced.json` beside it, written last) belongs to a refresh that was killed: the next one ends it first. An event may so come
twice, it cannot be lost. What has changed lies in `changes.json` there and is the run's artifact `changes` (tasks/corpus/changes.py).

Step by step or in one build of everything, the same documents are kept as long as every step's documents come after all published ones in dedup's order
(source_order, snapshot, file, place, id), which the snapshots of one source do. Where they do not, the kept member differs:
- of two that are alike, the published one stays, where one build keeps the one that is first in the order (a page over the Wikipedia article that a later
  refresh brings, a snapshot over an earlier one that is fetched later); what is like only one of the two may then stay or go with it;
- a document like one that left behind dedup (contaminated, taken down) stays in steps, since there is nothing published left to go for, and goes in one build.
tests/tasks/test_steps.py holds both.
"""

from dataclasses import replace
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from flows import recipes
from flows.build import Build, drop_raw, finish, make_corpus, start
from flows.recipes import Recipe
from model.errors import ConfigError
from tasks import registry
from tasks.corpus import changes, commoncrawl, wikipedia
from tasks.corpus.manifest import ancestors, locked
from tasks.tracking import Tracker

NOTHING_NEW = "nothing new"


@flow(name="refresh", flow_run_name="refresh common crawl")
def common_crawl_monthly(recipe: Recipe = recipes.small(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """The next corpus version from the newest Common Crawl snapshot, or from the one that `set` names (common_crawl.snapshot), for a backfill.

    Args:
        recipe: the recipe whose corpus is refreshed; its file and byte budgets hold for the new snapshot.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.small(), recipe, set, store, ())
    if build.recipe.common_crawl is None:
        raise ConfigError(f"recipe {build.recipe.name} has no common_crawl section to refresh")
    newest = set.get("common_crawl.snapshot") or commoncrawl.latest(build.recipe.common_crawl, build.recipe.download)
    section = replace(build.recipe.common_crawl, snapshot=newest)
    build.recipe = replace(build.recipe, common_crawl=section, wikipedia=None, files=None, version=newest)
    return _refresh(build, [newest])


@flow(name="refresh", flow_run_name="refresh wikipedia")
def wikipedia_monthly(recipe: Recipe = recipes.small(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """The next corpus version from the newest dumps of the recipe's wikis, or from those of the date that `set` names (wikipedia.date).

    Args:
        recipe: the recipe whose corpus is refreshed; its file and byte budgets hold for the new dumps.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.small(), recipe, set, store, ())
    if build.recipe.wikipedia is None:
        raise ConfigError(f"recipe {build.recipe.name} has no wikipedia section to refresh")
    newest = set.get("wikipedia.date") or wikipedia.latest(build.recipe.wikipedia, build.recipe.download)
    section = replace(build.recipe.wikipedia, date=newest)
    build.recipe = replace(build.recipe, wikipedia=section, common_crawl=None, files=None, version=f"wikipedia-{newest}")
    return _refresh(build, [f"{wiki}-{newest}" for wiki in section.wikis])


def _refresh(build: Build, snapshots: list[str]) -> str:
    """Returns the address of the new version, or of one that a killed refresh had published, or 'nothing new'."""
    log, store, name = get_run_logger(), build.store, build.recipe.name
    with locked(store, f"corpora/{name}"):
        versions = store.versions("corpora", name)
        left = [v for v in versions if v.info.get("refresh") and store.read_json(f"{v.address}/announced.json") is None]
        for corpus in left:
            log.info("%s was published by a refresh that did not end; ending it", corpus.address)
            recipe, made = replace(build.recipe, version=corpus.version), [*reversed(ancestors(store, [store.need(corpus.parts[-1])]))]
            _conclude(
                Build(recipe, store, manifests=made, corpus=corpus), registry.open_tracker(store, recipe.register, name, recipe.version)
            )
        if versions and set(snapshots) <= {s for v in versions for s in v.info["snapshots"]}:
            log.info("nothing new: corpora/%s holds %s", name, ", ".join(snapshots))
            return left[-1].address if left else NOTHING_NEW
        tracker = registry.open_tracker(store, build.recipe.register, name, build.recipe.version)
        try:
            corpus = make_corpus(build, versions[-1] if versions else None, refresh=True)
            _conclude(build, tracker)
        except BaseException as error:
            tracker.fail(error)
            raise
    log.info("%s published: %s documents, %s of them new", corpus.address, corpus.info["documents"], corpus.info["new"])
    return corpus.address


def _conclude(build: Build, tracker: Tracker) -> None:
    """What follows a publication, in any number of tries: what has changed, raw files that may go, the event, the report, and the record of it all."""
    store, corpus = build.store, build.corpus
    assert corpus
    if previous := store.previous(corpus):
        found = changes.compare(store, previous, corpus)
        store.write_json(f"{corpus.address}/changes.json", found)
        create_markdown_artifact(changes.markdown(found), key="changes", description=f"From {previous.address} to {corpus.address}")
    drop_raw(store, build.recipe.keep_raw, corpus)
    emit_event(
        event="corpus.published",
        resource={
            "prefect.resource.id": f"ingot.corpus.{corpus.name}",
            "prefect.resource.name": corpus.address,
            "ingot.corpus.address": corpus.address,
        },
        payload={"documents": corpus.info["documents"], "new": corpus.info["new"], "snapshots": corpus.info["snapshots"]},
    )
    EventsWorker.instance().wait_until_empty()  # it is sent from a thread, which a kill would take along
    finish(build, tracker, f"Refresh {corpus.address}")
    store.write_json(f"{corpus.address}/announced.json", {"event": "corpus.published"})
