"""The dedup task. Exact and near duplicates out, each with its evidence."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import dedup as plain
from tasks.corpus.engine import EngineConfig
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="dedup", **policy.COMPUTE)
def dedup(
    store: Store, recipe: str, config: plain.DedupConfig, inputs: Mapping[str, Manifest], engine: EngineConfig, rebuild: bool = False
) -> Manifest:
    """Exact and near duplicates out, each with its evidence."""
    with watch("dedup") as progress:
        return ended(plain.run(store, recipe, config, inputs, engine, progress, rebuild=rebuild))
