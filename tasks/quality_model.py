"""The quality_model task. A classifier of good texts and bad ones, trained and proved."""

from collections.abc import Mapping

from prefect import task

from tasks import policy
from tasks.corpus import quality_model as plain
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="quality-model", **policy.COMPUTE)
def quality_model(
    store: Store, recipe: str, config: plain.QualityModelConfig, inputs: Mapping[str, Manifest], rebuild: bool = False
) -> Manifest:
    """A classifier of good texts and bad ones, trained and proved."""
    with watch("quality_model") as progress:
        return ended(plain.run(store, recipe, config, inputs, progress, rebuild=rebuild))
