"""Scheduled refreshes: poll for a new snapshot, build only what it adds, publish the next corpus version, say so by an event.

    prefect deployment run 'refresh/common-crawl-monthly' --watch

A snapshot that some version holds already ends the flow with 'nothing new'. Documents that the previous version holds are left out by the dedup
stage, which looks them up in that version's index; the new version refers to its parts and adds the new one.

One refresh or takedown of a corpus runs at a time; a second waits, then starts from what the first has published. A version that is published but whose
event is not on record (`announced.json` beside it, written last) belongs to a refresh that was killed: the next one ends it first. An event may so come
twice, it cannot be lost.
"""

from dataclasses import replace
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from flows import recipes
from flows.build import Build, drop_raw, finish, make_corpus, start
from flows.recipes import Recipe
from model.errors import ConfigError
from tasks import registry
from tasks.corpus import changes, commoncrawl, wikipedia
from tasks.corpus.manifest import Publication, locked


@flow(name="refresh", flow_run_name="refresh common crawl")
def common_crawl_monthly(recipe: Recipe = recipes.small(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """The next corpus version from the newest Common Crawl snapshot.

    Args:
        recipe: the recipe whose corpus is refreshed; its file and byte budgets hold for the new snapshot.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.small(), recipe, set, store, ())
    if build.recipe.common_crawl is None:
        raise ConfigError(f"recipe {build.recipe.name} has no common_crawl section to refresh")
    newest = commoncrawl.latest(build.recipe.common_crawl, build.recipe.download)
    section = replace(build.recipe.common_crawl, snapshot=newest)
    build.recipe = replace(build.recipe, common_crawl=section, wikipedia=None, files=None, version=newest)
    return _refresh(build, [newest])


@flow(name="refresh", flow_run_name="refresh wikipedia")
def wikipedia_monthly(recipe: Recipe = recipes.small(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """The next corpus version from the newest dumps of the recipe's wikis.

    Args:
        recipe: the recipe whose corpus is refreshed; its file and byte budgets hold for the new dumps.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.small(), recipe, set, store, ())
    if build.recipe.wikipedia is None:
        raise ConfigError(f"recipe {build.recipe.name} has no wikipedia section to refresh")
    newest = wikipedia.latest(build.recipe.wikipedia, build.recipe.download)
    section = replace(build.recipe.wikipedia, date=newest)
    build.recipe = replace(build.recipe, wikipedia=section, common_crawl=None, files=None, version=f"wikipedia-{newest}")
    return _refresh(build, [f"{wiki}-{newest}" for wiki in section.wikis])


def _refresh(build: Build, snapshots: list[str]) -> str:
    """Returns the address of the new version, or 'nothing new'."""
    log, store, name = get_run_logger(), build.store, build.recipe.name
    with locked(store, f"corpora/{name}"):
        versions = store.versions("corpora", name)
        for corpus in versions:
            if corpus.info.get("refresh") and store.read_json(f"{corpus.address}/announced.json") is None:
                log.info("%s was published by a refresh that did not end; ending it", corpus.address)
                _conclude(build, corpus)
        if versions and set(snapshots) <= {s for v in versions for s in v.info["snapshots"]}:
            log.info("nothing new: corpora/%s holds %s", name, ", ".join(snapshots))
            return "nothing new"
        tracker = registry.open_tracker(store, build.recipe.register, name, build.recipe.version)
        try:
            corpus = make_corpus(build, versions[-1] if versions else None, refresh=True)
            _conclude(build, corpus)
        except BaseException as error:
            tracker.fail(error)
            raise
    finish(build, tracker, f"Refresh {corpus.address}")
    log.info("%s published: %s documents, %s of them new", corpus.address, corpus.info["documents"], corpus.info["new"])
    return corpus.address


def _conclude(build: Build, corpus: Publication) -> None:
    """What follows a publication, in any number of tries: what has changed, raw files that may go, the event, and the record of it."""
    store = build.store
    previous = store.published(*corpus.made_of["previous"].split("/")) if corpus.made_of["previous"] else None
    if previous:
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
    store.write_json(f"{corpus.address}/announced.json", {"event": "corpus.published"})
