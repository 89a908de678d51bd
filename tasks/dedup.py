"""The dedup tasks. Exact and near duplicates out, each with its evidence; and the index by which later refreshes compare with what stays."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import dedup as plain
from tasks.corpus import index as plain_index
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


@task(name="index", **policy.COMPUTE)
def index(
    store: Store, recipe: str, config: plain.DedupConfig, documents: Manifest, engine: EngineConfig, rebuild: bool = False
) -> Manifest:
    """Band keys of documents that are published, for the refreshes to come."""
    with watch("index") as progress:
        made = plain_index.run(store, recipe, config.signatures, {"documents": documents}, engine, progress, rebuild=rebuild)
        return ended(made)
