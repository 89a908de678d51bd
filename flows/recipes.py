"""Recipes: every setting of every stage, as one frozen dataclass made of the owners' configs. A variant changes one field.

small()                                    the recipe
resolve(small(), small(), {"pretrain.steps": "100"})     with dotted overrides, and a version of its own
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model import config as shapes
from model.config import (
    STRICT,
    Answers,
    Causal,
    Labels,
    Lora,
    Masked,
    ModelConfig,
    TrainConfig,
    differing,
    fingerprint,
    from_dict,
    identity,
    override,
    qwen3,
    to_dict,
)
from model.errors import ConfigError
from model.evaluate import EvaluateConfig
from model.tokenizer import TokenizerConfig
from tasks.adopt import StartConfig
from tasks.assess import PromptsConfig
from tasks.corpus.commoncrawl import CommonCrawlConfig
from tasks.corpus.contamination import DecontaminateConfig
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.download import DownloadConfig
from tasks.corpus.encode import EncodeConfig
from tasks.corpus.engine import EngineConfig, local
from tasks.corpus.extract import ExtractConfig
from tasks.corpus.files import FilesConfig
from tasks.corpus.quality import FilterConfig
from tasks.corpus.quality_model import QualityModelConfig
from tasks.corpus.wikipedia import WikipediaConfig
from tasks.registry import RegistryConfig

SAMPLES = Path(__file__).parents[1] / "tests" / "samples"
COMMON_CRAWL, COMMON_CRAWL_INDEX, WIKIMEDIA = "https://data.commoncrawl.org", "https://index.commoncrawl.org", "https://dumps.wikimedia.org"
GIB = 1 << 30


@dataclass(frozen=True)
class Recipe:
    """From sources to a registered model: one section a stage, each with its owner's fields."""

    __pydantic_config__ = STRICT

    name: str
    """Name under which corpora, tokenizers and models are published."""
    version: str
    """Version of what is published; with overrides and no version of their own, +<8 hex digits> is appended."""
    common_crawl: CommonCrawlConfig | None
    """Crawled web pages; null leaves them out."""
    wikipedia: WikipediaConfig | None
    """Wikipedia dumps; null leaves them out."""
    files: FilesConfig | None
    """Books and other files of your own; null leaves them out."""
    download: DownloadConfig
    """How other hosts are asked."""
    extract: ExtractConfig
    """Main text out of pages, and the limits on a page."""
    labels: FilesConfig | None
    """JSON lines with text and label (1, 0, good, bad) for the quality model; null where the sources are all it learns from."""
    quality_model: QualityModelConfig | None
    """The trained judge of texts; null trains none."""
    blocklists: FilesConfig | None
    """Lists of domains, addresses and words of addresses whose pages are left out; null for none."""
    filter: FilterConfig
    """Languages, quality rules, masking of personal data."""
    dedup: DedupConfig
    """Exact and near duplicates."""
    evaluation: FilesConfig
    """Evaluation files: blimp/*.jsonl, choice/*.jsonl, heldout*.jsonl; the corpus is cleaned of them."""
    decontaminate: DecontaminateConfig
    """How an overlap with evaluation files is found."""
    tokenizer: TokenizerConfig
    """The vocabulary."""
    encode: EncodeConfig
    """Token shards and the validation split."""
    start: StartConfig | None
    """A model made elsewhere that pretraining (or fine-tuning alone) starts from, with its own shape and tokenizer; null begins with fresh weights."""
    model: ModelConfig
    """Shape of the model; a start brings its own."""
    pretrain: TrainConfig
    """Training on the corpus."""
    examples: FilesConfig
    """Examples to tune on: JSON lines with messages (chats; with chosen and rejected, preferences), text and label, or context, question and answers."""
    finetune: TrainConfig
    """Training on the examples."""
    prompts: PromptsConfig
    """Templates: which makes chats of labelled examples, and by which a model is rated zero- and few-shot."""
    evaluate: EvaluateConfig
    """Scores and sample answers."""
    register: RegistryConfig
    """MLflow, and the gate that moves champion."""
    engine: EngineConfig
    """Processes of the data-parallel stages."""
    keep_raw: Literal["all", "used-records", "none"]
    """Raw files after the corpus stands: keep all, keep only the records that documents came from, or none (each can be fetched again by its origin)."""

    def __post_init__(self) -> None:
        trained = set(self.quality_model.languages) if self.quality_model else set()
        if self.labels and not self.quality_model:
            raise ValueError("labels are for the quality model, and quality_model is null")
        bounds = {name.partition("@")[2] for name in self.filter.thresholds if name.partition("@")[0] == "quality_low"}
        if lacking := sorted(bounds - trained - ({""} if trained else set())):
            raise ValueError(
                f"filter.thresholds bounds quality_low{'@' + lacking[0] if lacking[0] else ''}, of which quality_model trains no model"
            )


def train(steps: int, batch: int, length: int, lr: float, warmup: int, **more: Any) -> TrainConfig:
    """A TrainConfig with the house's choices for what is not named."""
    common: dict[str, Any] = {
        "objective": Causal("causal"), "adapter": None, "min_lr": 0.1, "schedule": "cosine", "decay": 0, "optimizer": "adamw", "matrix_lr": 0.02, "momentum": 0.95,
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip": 1.0, "z_loss": 0.0, "skip_sigmas": 0.0, "precision": "fp32",
        "seed": 1, "valid_every": max(1, steps // 5), "valid_batches": 4, "save_every": max(1, steps // 4), "keep": 2, "overlap_saving": True, "ranks": 1, "tensor_parallel": 1, "sequence_parallel": 1, "pipeline_parallel": 1, "micro_batch": batch, "zero": 1,
        "compile": False, "checkpointing": False, "device": "auto", "timeout": 600.0,
    }  # fmt: skip
    return TrainConfig(steps=steps, batch=batch, length=length, lr=lr, warmup=warmup, **common | more)


def quality_model(languages: tuple[str, ...]) -> QualityModelConfig:
    """Wikipedia against the crawl, a model a language; labelled texts too where the recipe names them."""
    return QualityModelConfig(
        good=("wikipedia",), bad=("commoncrawl",), languages=languages, documents=50_000, min_documents=1000, characters=2000, min_precision=0.8, epochs=25, rate=0.5, dimensions=16, ngrams=2, buckets=1 << 18,
    )  # fmt: skip


def demo() -> Recipe:
    """The embedded sample to a model of about 1M parameters that answers, in minutes on two cores."""
    return Recipe(
        name="demo",
        version="v1",
        common_crawl=CommonCrawlConfig(
            "CC-MAIN-1970-01", 3, GIB, str(SAMPLES / "commoncrawl"), str(SAMPLES / "commoncrawl"), format="warc", select=None
        ),
        wikipedia=WikipediaConfig(("enwiki", "zhwiki"), "19700101", 1, GIB, str(SAMPLES / "wikimedia")),
        files=FilesConfig(("files",), "CC0-1.0", "sample-files", "source", str(SAMPLES)),
        download=DownloadConfig(0, 5.0, 5, 30.0, ""),
        extract=ExtractConfig(5 << 20, 200, 20_000, 100, 30.0),
        labels=None,
        quality_model=None,  # the sample's hundred articles teach nothing; base() has one
        blocklists=None,
        filter=FilterConfig(("en", "zh"), 0.5, True, True, True, True, ("commoncrawl",), True, thresholds={}, clean_lines=()),
        dedup=DedupConfig(
            0.8,
            128,
            1,
            25,
            5,
            ("wikipedia", "files", "commoncrawl"),
            1000,
            urls="off",
            max_removed=0.9,
            repeated="off",
            repeated_characters=40,
            repeated_documents=10,
            repeated_keep="first",
        ),
        evaluation=FilesConfig(("eval/*.jsonl", "eval/*/*.jsonl"), "CC0-1.0", "evaluation", "evaluation", str(SAMPLES)),
        decontaminate=DecontaminateConfig(13, 8, 20, 12, 1),
        tokenizer=TokenizerConfig(2048, 4 << 20),
        encode=EncodeConfig(1 << 20, 0.05, 1, mixture=()),
        start=None,
        model=qwen3(width=128, layers=4, heads=4, kv_heads=2, ffn_width=352, context=256),
        pretrain=train(1000, 8, 128, 4e-3, 50, ranks=2, micro_batch=4),
        examples=FilesConfig(("finetune",), "CC0-1.0", "examples", "examples", str(SAMPLES)),
        finetune=train(400, 8, 128, 2e-3, 20, ranks=2, micro_batch=4, weight_decay=0.0),
        prompts=PromptsConfig("", (), 0, 0, 32),
        evaluate=EvaluateConfig(("What is a lighthouse?", "What is paper made of?", "什么是灯塔？"), 64, (0, 3), 32),
        register=RegistryConfig("ingot-demo", "bits_per_byte", 0.0, "", "ingot"),
        engine=local(2, 300.0),
        keep_raw="all",
    )


def tiny() -> Recipe:
    """The demo with a model of some thousand parameters and a few steps: what the tests run."""
    d = demo()
    return replace(
        d,
        name="tiny",
        tokenizer=replace(d.tokenizer, vocab=512),
        model=qwen3(width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, context=128),
        pretrain=train(8, 4, 64, 3e-3, 2, ranks=1, save_every=3),
        finetune=train(6, 4, 128, 3e-3, 2, ranks=1, save_every=3, weight_decay=0.0),
        evaluate=EvaluateConfig(("What is a lighthouse?", "什么是灯塔？"), 8, (0, 3), 64),
        register=replace(d.register, model="ingot-tiny"),
    )


def small() -> Recipe:
    """One Common Crawl snapshot and two wikis to a model of about 30M parameters."""
    d = demo()
    return replace(
        d,
        name="small",
        version="CC-MAIN-2026-40",
        common_crawl=CommonCrawlConfig("CC-MAIN-2026-40", 4, 8 * GIB, COMMON_CRAWL, COMMON_CRAWL_INDEX, format="warc", select=None),
        wikipedia=WikipediaConfig(("enwiki", "zhwiki"), "20261001", 2, 4 * GIB, WIKIMEDIA),
        files=None,
        download=DownloadConfig(20 << 20, 2.0, 8, 60.0, ""),
        tokenizer=TokenizerConfig(32_000, 128 << 20),
        encode=EncodeConfig(1 << 27, 0.005, 1, mixture=()),
        model=qwen3(width=384, layers=12, heads=6, kv_heads=2, ffn_width=1024, context=1024),
        pretrain=train(
            4000, 64, 512, 1e-3, 200, precision="bf16", schedule="wsd", decay=800, ranks=1, micro_batch=8, save_every=200, valid_every=200
        ),
        finetune=train(300, 32, 512, 3e-4, 20, precision="bf16", micro_batch=8, weight_decay=0.0),
        register=replace(d.register, model="ingot-small"),
        engine=local(2, 900.0),
        keep_raw="used-records",
    )


def base() -> Recipe:
    """124M parameters and more, bf16 under ZeRO-1, for one GPU node; more nodes by torchrun with the same config."""
    s = small()
    return replace(
        s,
        name="base",
        common_crawl=CommonCrawlConfig("CC-MAIN-2026-40", 40, 60 * GIB, COMMON_CRAWL, COMMON_CRAWL_INDEX, format="warc", select=None),
        wikipedia=WikipediaConfig(("enwiki", "zhwiki"), "20261001", 64, 60 * GIB, WIKIMEDIA),
        quality_model=quality_model(("en", "zh")),
        model=qwen3(width=768, layers=12, heads=12, kv_heads=6, ffn_width=3072, context=2048),
        pretrain=train(
            20_000,
            512,
            1024,
            6e-4,
            1000,
            precision="bf16",
            schedule="wsd",
            decay=4000,
            micro_batch=16,
            save_every=1000,
            valid_every=500,
            timeout=1800.0,
        ),
        finetune=train(1000, 64, 1024, 2e-4, 50, precision="bf16", micro_batch=16, weight_decay=0.0, timeout=1800.0),
        register=replace(s.register, model="ingot-base"),
        engine=local(8, 1800.0),
    )


def tuned(name: str, paths: tuple[str, ...], license: str, finetune: TrainConfig, prompts: PromptsConfig) -> Recipe:
    """A recipe of `ingot finetune` on a public set, of which `examples.base` names the folder; what it starts from comes beside it."""
    b = base()
    examples = FilesConfig(paths, license, name, "examples", "")
    return replace(b, name=name, version="v1", examples=examples, finetune=finetune, prompts=prompts)


def banking77() -> Recipe:
    """77 intents of bank customers (Casanueva et al. 2020), as labels: `examples.base` is PolyAI's folder."""
    learnt = train(2000, 64, 64, 5e-4, 100, objective=Labels("labels"), weight_decay=0.01, micro_batch=32)
    prompts = PromptsConfig("", ("intent_en", "intent_list_en", "about_en"), 4, 100, 32)
    return tuned("banking77", ("banking_data/*.csv",), "CC-BY-4.0", learnt, prompts)


def cmrc() -> Recipe:
    """Answers in Chinese paragraphs (Cui et al. 2019, CMRC 2018), as spans: `examples.base` is the folder with squad-style-data."""
    learnt = train(2000, 16, 384, 3e-4, 100, objective=Answers("answers"), weight_decay=0.01)
    return tuned("cmrc", ("squad-style-data/*.json*",), "CC-BY-SA-4.0", learnt, PromptsConfig("", (), 0, 0, 16))


def crosswoz() -> Recipe:
    """Chinese service dialogues (Zhu et al. 2020, CrossWOZ), all turns of the system learnt, by LoRA: `examples.base` is the repository."""
    lora = Lora("lora", 16, 32.0, 0.05, ("q", "k", "v", "o", "up", "down"))
    learnt = train(1000, 32, 1024, 1e-3, 50, adapter=lora, weight_decay=0.0, micro_batch=4)
    return tuned("crosswoz", ("data/crosswoz/*.json.zip",), "Apache-2.0", learnt, PromptsConfig("", (), 0, 0, 8))


def self_instruct() -> Recipe:
    """175 seed tasks (Wang et al. 2023, Self-Instruct), by LoRA: `examples.base` is the folder with seed_tasks.jsonl."""
    lora = Lora("lora", 16, 32.0, 0.05, ("q", "k", "v", "o", "up", "down"))
    learnt = train(200, 16, 1024, 5e-4, 20, adapter=lora, weight_decay=0.0, micro_batch=4)
    return tuned("self_instruct", ("seed_tasks.jsonl",), "Apache-2.0", learnt, PromptsConfig("", (), 0, 0, 8))


def roberta() -> Recipe:
    """The embedded sample to a masked language model by RoBERTa's recipe (Liu et al. 2019) at a small size: masks drawn anew whenever a row is seen, rows
    full of text, no next-sentence scores, Adam and a linear decay as there. Attention stays within a document. The chain ends with pretraining.
    """
    d = demo()
    return replace(
        d,
        name="roberta",
        model=shapes.roberta(width=128, layers=4, heads=4, ffn_width=512, context=128, dropout=0.1),
        pretrain=train(
            1500,
            16,
            128,
            1e-3,
            120,
            objective=Masked("masked", rate=0.15, last_rate=0.15, masked=0.8, random=0.1, whole_words=False),
            schedule="wsd",
            decay=1380,
            min_lr=0.0,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.01,
            clip=0.0,
            ranks=2,
            micro_batch=8,
        ),
    )


TUNINGS: Mapping[str, Callable[[], Recipe]] = {"banking77": banking77, "cmrc": cmrc, "crosswoz": crosswoz, "self_instruct": self_instruct}
"""Recipes of fine-tuning alone."""
RECIPES: Mapping[str, Callable[[], Recipe]] = {"demo": demo, "tiny": tiny, "small": small, "base": base, "roberta": roberta}


def by_name(name: str) -> Recipe:
    """The recipe of a name. ConfigError lists the names there are."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()


def tuning(name: str) -> Recipe:
    """The recipe of a name, one of fine-tuning alone or one that has it among its stages. ConfigError lists the names there are."""
    if name in TUNINGS:
        return TUNINGS[name]()
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; recipes to fine-tune by are {', '.join((*TUNINGS, *RECIPES))}")
    return RECIPES[name]()


def resolve(base: Recipe, recipe: Recipe, set: Mapping[str, Any]) -> Recipe:
    """A recipe with overrides applied. What differs from `base` in anything that can change results, without a version of its own, gets +<8 hex>."""
    made = override(from_dict(Recipe, to_dict(recipe)), set)
    changed = [name for name in differing(identity(base), identity(made)) if name not in ("name", "version")]
    if changed and made.version == base.version:
        sections = {key: value for key, value in identity(made).items() if key not in ("name", "version")}
        made = replace(made, version=f"{made.version}+{fingerprint(sections)[:8]}")
    return made


def corpus_identity(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide a corpus: sources to decontaminate."""
    sections = (
        "common_crawl",
        "wikipedia",
        "files",
        "extract",
        "labels",
        "quality_model",
        "blocklists",
        "filter",
        "dedup",
        "evaluation",
        "decontaminate",
    )
    return {name: identity(getattr(recipe, name)) for name in sections}
