"""The filter task. Language, quality rules and masking of personal data."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import quality as plain
from tasks.corpus.engine import EngineConfig
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="filter", **policy.COMPUTE)
def filter_(
    store: Store, recipe: str, config: plain.FilterConfig, inputs: Mapping[str, Manifest], engine: EngineConfig, rebuild: bool = False
) -> Manifest:
    """Language, quality rules and masking of personal data."""
    with watch("filter") as progress:
        return ended(plain.run(store, recipe, config, inputs, engine, progress, rebuild=rebuild))
