"""The extract task. Raw files in, documents of plain main text out."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import extract as plain
from tasks.corpus.engine import EngineConfig
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="extract", **policy.COMPUTE)
def extract(
    store: Store, recipe: str, config: plain.ExtractConfig, inputs: Mapping[str, Manifest], engine: EngineConfig, rebuild: bool = False
) -> Manifest:
    """Raw files in, documents of plain main text out."""
    with watch("extract") as progress:
        return ended(plain.run(store, recipe, config, inputs, engine, progress, rebuild=rebuild))
