"""Sweeps of pretraining: which learning rate, batch, schedule, dropout, width, depth, and whether that is more than noise.

ingot sweep demo pretrain.lr=1e-4..1e-2:log pretrain.batch=8,16 model.width=64,128 --trials 12 --parallel 2 --seeds 3
prefect deployment run 'sweep/small' --param space='{"pretrain.lr": "3e-4..3e-3:log"}'
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows import recipes
from flows.build import Build, finish, make_corpus, make_shards, shape, start
from flows.pretrain import published
from flows.recipes import Recipe
from model.errors import ConfigError
from tasks import registry
from tasks import sweep as sweeps
from tasks.space import Sections, parse

LIKELY = {"pretrain.lr": "3e-4..3e-3:log", "model.dropout": "0,0.1"}
"""A space to begin with."""
Count = Annotated[int, Field(ge=1)]


@flow(name="sweep", flow_run_name="sweep small")
def small(
    space: dict[str, Any] = LIKELY,
    recipe: Recipe = recipes.small(),
    set: dict[str, Any] = {},  # noqa: B006
    corpus: str = "corpora/small",
    trials: Count = 12,
    parallel: Count = 1,
    seeds: Annotated[int, Field(ge=0)] = 3,
    finalists: Count = 2,
    pruner: Literal["median", "asha", "none"] = "median",
    store: str | None = None,
) -> str:
    """Try settings of pretraining on a published corpus; returns the address of the sweep's output.

    Args:
        space: dotted fields of model and pretrain with choices ("8,16", or a list) or ranges ("1e-4..1e-2:log").
        recipe: what every trial has but for the space.
        set: dotted overrides on top of it.
        corpus: corpora/NAME/VERSION, corpora/NAME for its newest version, or '' to make the recipe's own.
        trials: points to try.
        parallel: trainings at a time.
        seeds: further seeds of each of the best and of the recipe's own settings.
        finalists: how many are the best.
        pruner: what ends a trial early: median, asha (successive halving) or none.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.small(), recipe, set, store, ())
    return str(_sweep(build, space, corpus, trials, parallel, seeds, finalists, pruner)["address"])


@flow(name="sweep", flow_run_name="sweep {recipe}")
def named(
    recipe: str,
    space: dict[str, Any],
    set: dict[str, Any] = {},  # noqa: B006
    corpus: str = "",
    trials: Count = 12,
    parallel: Count = 1,
    seeds: Annotated[int, Field(ge=0)] = 3,
    finalists: Count = 2,
    pruner: Literal["median", "asha", "none"] = "median",
    store: str | None = None,
) -> dict[str, Any]:
    """As small, of a recipe by its name; returns what `finish` does."""
    base = recipes.by_name(recipe)
    return _sweep(start(base, base, set, store, ()), space, corpus, trials, parallel, seeds, finalists, pruner)


def check(recipe: Recipe, space: Mapping[str, Any]) -> None:
    """ConfigError for a space that the recipe cannot be swept over, before anything runs."""
    if recipe.start and (named := next((name for name in space if name.startswith("model.")), "")):
        raise ConfigError(f"{named} cannot be swept: the recipe starts from {recipe.start.model}, which brings its shape")
    parse(Sections(recipe.model, recipe.pretrain), space)


def _sweep(
    build: Build, space: Mapping[str, Any], corpus: str, trials: int, parallel: int, seeds: int, finalists: int, pruner: Any
) -> dict[str, Any]:
    r, store = build.recipe, build.store
    check(r, space)
    build.corpus = published(store, corpus) if corpus else make_corpus(build)
    tracker = registry.open_tracker(store, r.register, f"{r.name} sweep", r.version)
    try:
        inputs = make_shards(build, build.corpus)
        base = Sections(shape(build, inputs), r.pretrain)
        config = sweeps.SweepConfig(base.model, base.pretrain, parse(base, space), trials, pruner, finalists, seeds, parallel)
        made = build.note(sweeps.sweep(store, r.name, config, inputs, tracker))
    except BaseException as error:
        tracker.fail(error)
        raise
    best = store.need(made.info["best"]["address"])
    store.publish("models", f"{r.name}-sweep", made.fingerprint[:10], [best, made], {"sweep": made.fingerprint}, {})
    loss = made.info["finalists"][0]["mean"]
    return finish(build, tracker, f"Sweep {r.name} {r.version}", {} if loss is None else {"valid_loss": loss}) | {"address": made.address}
