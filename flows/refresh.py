"""Scheduled refreshes: poll for a new snapshot, build only what it adds, publish the next corpus version, say so by an event.

    prefect deployment run 'refresh/common-crawl-monthly' --watch

A snapshot that some version holds already ends the flow with 'nothing new'. Documents that the previous version holds are left out by the dedup
stage, which reads that version's parts again; the new version refers to those parts and adds the new one.
"""

from dataclasses import replace
from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event

from flows import recipes
from flows.build import Build, drop_raw, finish, make_corpus, start
from flows.recipes import Recipe
from model.errors import ConfigError
from tasks import registry
from tasks.corpus import commoncrawl, wikipedia


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
    log, name = get_run_logger(), build.recipe.name
    versions = build.store.versions("corpora", name)
    if versions and set(snapshots) <= {s for v in versions for s in v.info["snapshots"]}:
        log.info("nothing new: corpora/%s holds %s", name, ", ".join(snapshots))
        return "nothing new"
    previous = versions[-1] if versions else None
    tracker = registry.open_tracker(build.store, build.recipe.register, name, build.recipe.version)
    try:
        corpus = make_corpus(build, previous)
        # at once: a run killed after it finds 'nothing new' when it is run again
        emit_event(
            event="corpus.published",
            resource={
                "prefect.resource.id": f"ingot.corpus.{name}",
                "prefect.resource.name": corpus.address,
                "ingot.corpus.address": corpus.address,
            },
            payload={"documents": corpus.info["documents"], "new": corpus.info["new"], "snapshots": corpus.info["snapshots"]},
        )
        drop_raw(build)
    except BaseException as error:
        tracker.fail(error)
        raise
    finish(build, tracker, f"Refresh {corpus.address}")
    log.info("%s published: %s documents, %s of them new", corpus.address, corpus.info["documents"], corpus.info["new"])
    return corpus.address
