"""Data ablation: the same small model trained on two corpora, at equal tokens, words and seeds.

ingot ablate demo filter.gopher=false filter.repetition=false filter.c4=false filter.fineweb=false --seeds 3
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows import recipes
from flows.build import Build, make_corpus, start
from flows.recipes import Recipe
from model.config import differing, fingerprint, identity
from model.errors import ConfigError
from tasks import ablation as stage
from tasks import encode, evaluate, registry, train
from tasks.report import markdown

CORPUS = (
    "common_crawl",
    "wikipedia",
    "files",
    "extract",
    "labels",
    "quality_model",
    "blocklists",
    "filter",
    "dedup",
    "decontaminate",
    "encode",
)
"""Sections that may differ."""


def check(base: Recipe, changed: Recipe) -> None:
    """ConfigError unless the two differ, and in the corpus only."""
    names = [name for name in differing(identity(base), identity(changed)) if name not in ("name", "version")]
    if not names:
        raise ConfigError("the changed side has the base's settings; give fields of the corpus, for example filter.gopher=false")
    if wrong := [name for name in names if name.partition(".")[0] not in CORPUS]:
        raise ConfigError(f"{wrong[0]} is not of the corpus: an ablation changes {', '.join(CORPUS)} and leaves the model as it is")


@flow(name="ablation", flow_run_name="ablation {recipe}")
def named(
    recipe: str,
    changed: dict[str, Any],
    set: dict[str, Any] = {},  # noqa: B006
    seeds: Annotated[int, Field(ge=1)] = 3,
    store: str | None = None,
) -> dict[str, Any]:
    """Train a recipe's model on its corpus and on a changed one; returns the manifests and the ablation's address.

    Args:
        recipe: name of the recipe; its pretraining and evaluation files hold for both sides.
        changed: dotted settings of the changed side's corpus.
        set: dotted overrides of both sides.
        seeds: trainings of each side; the band needs two.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    base = recipes.by_name(recipe)
    builds = [start(base, base, dict(settings), store, ()) for settings in (set, set | changed)]
    check(builds[0].recipe, builds[1].recipe)
    place = builds[0].store
    tracker = registry.open_tracker(place, base.register, f"{base.name} ablation", builds[1].recipe.version)
    scores: dict[str, Any] = {}
    try:
        for build in builds:
            make_corpus(build)
        words = _words(builds[0])
        for side, build in zip(stage.SIDES, builds, strict=True):
            scores |= _scored(build, side, words, seeds, tracker)
        made = builds[0].note(stage.ablation(place, base.name, stage.AblationConfig(changed, seeds), scores))
    except BaseException as error:
        tracker.fail(error)
        raise
    manifests = list({m.address: m for build in builds for m in build.manifests}.values())
    tracker.stages([made])
    tracker.finish(markdown(f"Ablation of {base.name}", manifests, {}, tracker.links(), []), {})
    return {"address": made.address, "manifests": manifests}


def _words(build: Build) -> Any:
    """The base's tokenizer, for both sides: bits of other words would be another model."""
    assert build.corpus is not None
    return build.note(encode.tokenizer(build.store, build.recipe.name, build.recipe.tokenizer, _parts(build)))


def _parts(build: Build) -> Mapping[str, Any]:
    assert build.corpus is not None
    return {f"corpus-{number:03d}": build.store.need(address) for number, address in enumerate(build.corpus.parts)}


def _scored(build: Build, side: str, words: Any, seeds: int, tracker: Any) -> dict[str, Any]:
    r, store, found = build.recipe, build.store, {}
    inputs = {"encode": build.note(encode.encode(store, r.name, r.encode, {**_parts(build), "tokenizer": words})), "tokenizer": words}
    evaluation = next(m for m in build.manifests if m.info.get("role") == "evaluation")
    for seed in range(1, seeds + 1):
        config = train.PretrainConfig(r.model, replace(r.pretrain, seed=seed))
        key = fingerprint({"config": identity(config), "encode": inputs["encode"].fingerprint})
        on_row = tracker.trial(key, f"{side} {seed}", {"side": side, "seed": seed, "corpus": build.corpus.address if build.corpus else ""})
        model = build.note(train.pretrain(store, r.name, config, inputs, on_row))
        asked = {"model": model, "base": model, "evaluation": evaluation}
        scores = build.note(evaluate.evaluate(store, r.name, replace(r.evaluate, samples=(), shots=(0,)), asked))
        tracker.trial_ended(f"{side} {seed}", scores.info["metrics"], "", model.address)
        found[f"{side}-{seed}"] = scores
    return found
