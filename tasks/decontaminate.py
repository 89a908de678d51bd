"""The decontaminate task. Documents that overlap an evaluation set out."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import contamination as plain
from tasks.corpus.engine import EngineConfig
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="decontaminate", **policy.COMPUTE)
def decontaminate(
    store: Store,
    recipe: str,
    config: plain.DecontaminateConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    rebuild: bool = False,
) -> Manifest:
    """Documents that overlap an evaluation set out."""
    with watch("decontaminate") as progress:
        return ended(plain.run(store, recipe, config, inputs, engine, progress, rebuild=rebuild))
