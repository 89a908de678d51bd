"""The tokenizer and encode tasks. Documents in; a tokenizer, then Megatron shards out."""

from collections.abc import Mapping

from prefect import task

from model.tokenizer import TokenizerConfig
from tasks import policy
from tasks.corpus import encode as plain
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="tokenizer", **policy.COMPUTE)
def tokenizer(store: Store, recipe: str, config: TokenizerConfig, inputs: Mapping[str, Manifest], rebuild: bool = False) -> Manifest:
    """Train a byte-level BPE tokenizer on the corpus."""
    with watch("tokenizer") as progress:
        return ended(plain.train_tokenizer(store, recipe, config, inputs, progress, rebuild=rebuild))


@task(name="encode", **policy.COMPUTE)
def encode(store: Store, recipe: str, config: plain.EncodeConfig, inputs: Mapping[str, Manifest], rebuild: bool = False) -> Manifest:
    """Shuffle the corpus and write it as token shards."""
    with watch("encode") as progress:
        return ended(plain.run(store, recipe, config, inputs, progress, rebuild=rebuild))
