"""Fine-tuning alone, from a pretrained model or one that was made elsewhere.

prefect deployment run 'finetune/chat' --param model=models/base-pretrained
ingot finetune banking77 models/base-pretrained examples.base=/data/banking77
"""

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows import recipes
from flows.build import Build, finish, start, taken_in, tune
from flows.pretrain import published
from flows.recipes import Recipe
from model.config import identity
from tasks import assess, registry
from tasks.corpus.manifest import Manifest


@flow(name="finetune", flow_run_name="finetune chat")
def chat(model: str = "models/base-pretrained", recipe: Recipe = recipes.base(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """Tune a model on instruction examples; returns the address of its weights.

    Args:
        model: stages/pretrain/… or models/NAME[/VERSION] of a pretrained model; "start" is the model that the recipe starts from.
        recipe: examples and finetune sections are used, start if `model` says so.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.base(), recipe, set, store, ())
    return _tuned(build, model, f"{build.recipe.name}-chat", scored=False)["address"]


@flow(name="finetune", flow_run_name="finetune {recipe}")
def named(recipe: str, model: str, set: dict[str, Any] = {}, store: str | None = None) -> dict[str, Any]:  # noqa: B006
    """Tune a model by a recipe's name, score it on its held-out examples with a baseline beside each score; returns what `finish` does.

    Args:
        recipe: banking77, cmrc, crosswoz, self_instruct, or one of the whole chain.
        model: as for chat.
        set: dotted overrides; examples.base says where the set lies.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    base = recipes.tuning(recipe)
    return _tuned(start(base, base, set, store, ()), model, f"{recipe}-tuned", scored=True)


def _tuned(build: Build, model: str, name: str, scored: bool) -> dict[str, Any]:
    r, store = build.recipe, build.store
    if model == "start":
        base = taken_in(build)
    else:
        base = build.note(store.need(model if model.startswith("stages/") else published(store, model).parts[0]))
    tracker = registry.open_tracker(store, r.register, r.name, r.version)
    metrics: Mapping[str, float] = {}
    try:
        made = [tune(build, base, tracker)]
        if scored:
            inputs: dict[str, Manifest] = {"model": made[0], "start": base, "examples": store.need(made[0].inputs["examples"])}
            made.append(build.note(assess.assess(store, r.name, r.finetune, r.prompts, inputs)))
            metrics = made[1].info["metrics"]
    except BaseException as error:
        tracker.fail(error)
        raise
    store.publish("models", name, r.version, [*made, base], {"finetune": identity(r.finetune), "prompts": identity(r.prompts)}, {})
    return finish(build, tracker, f"Finetune {base.address}", metrics) | {"address": made[0].address}
