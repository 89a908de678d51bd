"""Pretraining alone, on a corpus that is published already.

prefect deployment run 'pretrain/base' --param corpus=corpora/small/CC-MAIN-2026-40
"""

from typing import Any

from prefect import flow

from flows import recipes
from flows.build import finish, make_model, publish_pretrained, start
from flows.recipes import Recipe
from model.errors import NotFoundError
from tasks import registry
from tasks.corpus.manifest import Publication, Store


def published(store: Store, address: str) -> Publication:
    """A published version by its address; `corpora/NAME` is its newest. NotFoundError lists what there is."""
    kind, name, version = [*address.split("/"), "", ""][:3]
    versions = store.versions(kind, name)
    found = next((v for v in versions if v.version == version), None) if version else (versions[-1] if versions else None)
    if found is None:
        known = ", ".join(p.address for p in store.publications()) or "nothing"
        raise NotFoundError(f"{address} is not published in {store.url}; published: {known}")
    return found


@flow(name="pretrain", flow_run_name="pretrain base")
def base(corpus: str = "corpora/small", recipe: Recipe = recipes.base(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """Pretrain a model on a published corpus; returns the address of its weights.

    Args:
        corpus: corpora/NAME/VERSION, or corpora/NAME for its newest version.
        recipe: tokenizer, encode, model and pretrain sections are used.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.base(), recipe, set, store, ())
    build.corpus = published(build.store, corpus)
    tracker = registry.open_tracker(build.store, build.recipe.register, build.recipe.name, build.recipe.version)
    try:
        model = make_model(build, build.corpus, tracker)
    except BaseException as error:
        tracker.fail(error)
        raise
    publish_pretrained(build, model)
    finish(build, tracker, f"Pretrain {build.recipe.name} on {build.corpus.address}")
    return model.address
