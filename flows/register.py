"""Evaluation and registration alone, of a tuned model.

prefect deployment run 'register/candidate' --param model=models/base-chat
"""

from typing import Any

from prefect import flow

from flows import recipes
from flows.build import finish, judge, start
from flows.pretrain import published
from flows.recipes import Recipe
from tasks import ingest, registry


@flow(name="register", flow_run_name="register candidate")
def candidate(model: str = "models/base-chat", recipe: Recipe = recipes.base(), set: dict[str, Any] = {}, store: str | None = None) -> str:  # noqa: B006
    """Evaluate a model and register it as candidate; the gate moves champion or says why not. Returns the model's MLflow URI.

    Args:
        model: stages/finetune/… or models/NAME[/VERSION] of a tuned model.
        recipe: evaluation, evaluate and register sections are used.
        set: dotted overrides on top of it.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    build = start(recipes.base(), recipe, set, store, ())
    address = model if model.startswith("stages/") else published(build.store, model).parts[0]
    tuned = build.note(build.store.need(address))
    base = build.note(build.store.need(tuned.inputs["start"]))
    evaluation = build.note(ingest.local_files(build.store, build.recipe.name, build.recipe.evaluation, build.recipe.download))
    tracker = registry.open_tracker(build.store, build.recipe.register, build.recipe.name, build.recipe.version)
    try:
        done = judge(build, tuned, base, evaluation, tracker)
    except BaseException as error:
        tracker.fail(error)
        raise
    finish(build, tracker, f"Register {tuned.address}")
    return str(done.info["model_uri"])
