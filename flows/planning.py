"""What a recipe would do in a store: which stages are complete, which would run, about how many bytes they need, and what training takes.

Ingest's requests are resolved (a few small downloads); a stage whose inputs are not complete has no fingerprint yet and is said to run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flows import recipes
from flows.recipes import Recipe
from model.config import ModelConfig, TrainConfig, from_dict
from model.errors import NetworkError
from tasks.adopt import ADOPT, StartConfig, request
from tasks.corpus import commoncrawl, contamination, dedup, encode, extract, files, index, quality, quality_model, wikipedia
from tasks.corpus.download import STAGE as INGEST
from tasks.corpus.manifest import Manifest, Stage, Store, check_space, lookup
from tasks.evaluate import EVALUATE
from tasks.forecast import Forecast, forecast, knows
from tasks.registry import REGISTER
from tasks.train import FINETUNE, PRETRAIN, PretrainConfig, finetune_config

if TYPE_CHECKING:
    from model.forecast import Memory

SHARE = {
    "extract": 0.12,
    "quality_model": 0.01,
    "filter": 0.10,
    "dedup": 0.10,
    "decontaminate": 0.10,
    "index": 0.03,
    "tokenizer": 0.0,
    "encode": 0.12,
}
"""Bytes a corpus stage writes, as a share of the raw bytes: upper ends of what the recipes made of crawl and dumps (see tests/benchmarks)."""


@dataclass(frozen=True)
class Step:
    """One stage of a plan; `bytes` it holds, or is expected to need."""

    stage: str
    state: str
    bytes: int
    address: str


@dataclass(frozen=True)
class Training:
    """What a stage that trains takes, as configured; and the memory of a rank under each ZeRO stage that there is, activations kept and computed again."""

    stage: str
    train: TrainConfig
    forecast: Forecast
    stages: dict[int, tuple["Memory", "Memory"]]


@dataclass(frozen=True)
class Plan:
    """Stages in order, and the trainings among them: stage, shape, settings, rows of the vocabulary."""

    steps: list[Step]
    trainings: list[tuple[str, ModelConfig, TrainConfig, int]]


def plan(recipe_name: str, set: Mapping[str, Any], store: Store) -> Plan:
    """The stages of a recipe in order, state `complete` or `to run`, and its trainings, which `training` says more of."""
    base = recipes.by_name(recipe_name)
    recipe = recipes.resolve(base, base, set)
    walk = _Walk(store, recipe)
    sources = {role: walk.ingest(role, request) for role, request in requests(recipe).items()}
    evaluation = walk.ingest("evaluation", files.resolve(recipe.evaluation))
    raw = {role: m for role, m in sources.items() if m is not None}
    whole = len(raw) == len(sources)
    extracted = walk.step(extract.STAGE, recipe.extract, raw if whole else None)
    judged: dict[str, Manifest | None] = {"extract": extracted}
    if recipe.blocklists:
        judged["blocklist"] = walk.ingest("blocklist", files.resolve(recipe.blocklists))
    if recipe.quality_model:
        learnt: dict[str, Manifest | None] = {"extract": extracted}
        if recipe.labels:
            learnt["labels"] = walk.ingest("labels", files.resolve(recipe.labels))
        judged["quality_model"] = walk.step(quality_model.STAGE, recipe.quality_model, learnt)
    filtered = walk.step(quality.STAGE, recipe.filter, judged)
    single = walk.step(dedup.STAGE, recipe.dedup, _one("filter", filtered))
    clean = walk.step(
        contamination.STAGE, recipe.decontaminate, {"dedup": single, "evaluation": evaluation} if single and evaluation else None
    )
    walk.step(index.STAGE, recipe.dedup.signatures, _one("documents", clean))
    corpus = _one("corpus-000", clean)
    if recipe.start:
        tokens = walk.taken_in(recipe.start)
    else:
        tokens = walk.step(encode.TOKENIZER, recipe.tokenizer, corpus)
    shape, vocab = recipe.model, recipe.tokenizer.vocab
    if recipe.start and tokens:
        shape, vocab = from_dict(ModelConfig, tokens.info["model"]), tokens.info["vocab"]
    shards = walk.step(encode.STAGE, recipe.encode, corpus | {"tokenizer": tokens} if corpus and tokens else None)
    inputs = {"encode": shards, "tokenizer": tokens} | ({"start": tokens} if recipe.start else {}) if shards and tokens else None
    base_model = walk.step(PRETRAIN, PretrainConfig(shape, recipe.pretrain), inputs, training_bytes(shape, recipe.pretrain, vocab))
    trained = [("pretrain", shape, recipe.pretrain, vocab)]
    if shape.kind == "encoder":
        return Plan(walk.steps, trained)
    pairs = walk.ingest("examples", files.resolve(recipe.examples))
    inputs = {"start": base_model, "examples": pairs, "tokenizer": tokens} if base_model and pairs and tokens else None
    model = walk.step(
        FINETUNE, finetune_config(recipe.finetune, recipe.prompts.trained), inputs, training_bytes(shape, recipe.finetune, vocab)
    )
    inputs = {"model": model, "base": base_model, "evaluation": evaluation} if model and base_model and evaluation else None
    scores = walk.step(EVALUATE, recipe.evaluate, inputs)
    walk.step(
        REGISTER,
        recipe.register,
        inputs | {"evaluate": scores} if inputs and scores else None,
        training_bytes(shape, recipe.finetune, vocab) // 6,
    )
    return Plan(walk.steps, [*trained, ("finetune", shape, recipe.finetune, vocab)])


def training(store: Store, stage: str, shape: ModelConfig, train: TrainConfig, vocab: int) -> Training | None:
    """What a training takes; None of one that no forecast is made of."""
    if not knows(shape, train):
        return None
    from model.forecast import device_of, memory

    cuda = device_of(train).type == "cuda"
    stages = range(1 if train.precision == "bf16" or train.tensor_parallel > 1 else 0, 4)

    def under(zero: int) -> tuple["Memory", "Memory"]:
        kept, again = (memory(shape, replace(train, zero=zero, checkpointing=computed), vocab, cuda) for computed in (False, True))
        return kept, again

    return Training(stage, train, forecast(store, shape, train, vocab), {zero: under(zero) for zero in stages})


def requests(recipe: Recipe) -> dict[str, Any]:
    """The resolved request of every source that the recipe names."""
    found: dict[str, Any] = {}
    if recipe.common_crawl:
        found["commoncrawl"] = commoncrawl.resolve(recipe.common_crawl, recipe.download)
    if recipe.wikipedia:
        found["wikipedia"] = wikipedia.resolve(recipe.wikipedia, recipe.download)
    if recipe.files:
        found["files"] = files.resolve(recipe.files)
    return found


def training_bytes(model: ModelConfig, train: TrainConfig, vocab: int) -> int:
    """Disk for the kept checkpoints (fp32 master, two moments and weights) and the final weights."""
    from model.transformer import parameter_counts

    parameters, _ = parameter_counts(model, vocab)
    return parameters * (16 * (train.keep + 1) + 4)


def check(store: Store, needed: int) -> None:
    """SpaceError when it does not fit."""
    check_space(store, needed)


def _one(role: str, manifest: Manifest | None) -> dict[str, Manifest] | None:
    return None if manifest is None else {role: manifest}


class _Walk:
    """Looks stages up in order and keeps what it finds."""

    def __init__(self, store: Store, recipe: Recipe):
        self.store, self.recipe = store, recipe
        self.steps: list[Step] = []
        self.raw = 0

    def ingest(self, name: str, request: Any) -> Manifest | None:
        found = lookup(self.store, INGEST, self.recipe.name, request, {})
        size = sum(f.bytes for f in found.files) if found else int(request.bytes)
        self.raw += size
        self.steps.append(Step(f"ingest {name}", "complete" if found else "to run", size, found.address if found else ""))
        return found

    def taken_in(self, start: StartConfig) -> Manifest | None:
        """What adopt would make; of a model that is still to be fetched from the hub nothing is known."""
        try:
            wanted = request(start, offline=True)[1]
        except NetworkError:
            return self.step(ADOPT, None, None)
        return self.step(ADOPT, wanted, {})

    def step(self, stage: Stage, config: Any, inputs: Mapping[str, Manifest | None] | None, needs: int = 0) -> Manifest | None:
        known = {role: m for role, m in (inputs or {}).items() if m is not None}
        found = lookup(self.store, stage, self.recipe.name, config, known) if inputs is not None and len(known) == len(inputs) else None
        size = sum(f.bytes for f in found.files) if found else max(needs, int(self.raw * SHARE.get(stage.name, 0.0)))
        self.steps.append(Step(stage.name, "complete" if found else "to run", size, found.address if found else ""))
        return found
