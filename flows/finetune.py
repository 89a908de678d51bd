"""Instruction tuning alone, from a pretrained model.

prefect deployment run 'finetune/chat' --param model=models/base-pretrained
"""

from typing import Any

from prefect import flow

from flows import recipes
from flows.build import finish, start, taken_in, tune
from flows.pretrain import published
from flows.recipes import Recipe
from model.config import identity
from tasks import registry


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
    if model == "start":
        base = taken_in(build)
    else:
        base = build.note(build.store.need(model if model.startswith("stages/") else published(build.store, model).parts[0]))
    tracker = registry.open_tracker(build.store, build.recipe.register, build.recipe.name, build.recipe.version)
    try:
        tuned = tune(build, base, tracker)
    except BaseException as error:
        tracker.fail(error)
        raise
    build.store.publish(
        "models", f"{build.recipe.name}-chat", build.recipe.version, [tuned, base], {"finetune": identity(build.recipe.finetune)}, {}
    )
    finish(build, tracker, f"Finetune {base.address}")
    return tuned.address
