"""A chain of stage outputs around tiny models of random weights: what training would have left, without training."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config import ModelConfig, gpt2, qwen3, to_dict
from model.evaluate import EvaluateConfig
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage
from tasks.registry import RegistryConfig

EVAL = Path(__file__).parent / "samples" / "eval"
ELSEWHERE = gpt2(width=32, layers=2, heads=4, ffn_width=48, context=128, dropout=0.0)
SHAPE = qwen3(width=16, layers=1, heads=2, kv_heads=1, ffn_width=16, context=128)
TEXTS = ["the lamp of the lighthouse was lit every night; what is a lighthouse? 灯塔的灯每夜点亮。"] * 5
EVALUATE = EvaluateConfig(("What is a lighthouse?", "什么是灯塔？"), 4, (0, 2), 64)
REGISTRY = RegistryConfig("ingot-test", "bits_per_byte", 0.0, "", "ingot")


def made(
    store: Store,
    stage: str,
    inputs: Mapping[str, Manifest],
    files: Mapping[str, str | bytes] | None = None,
    info: Mapping[str, Any] | None = None,
    config: Any = 0,
    rejected: Mapping[str, int] | None = None,
    kept: int = 90,
) -> Manifest:
    """A stage's complete output with these files."""

    def body(work: Work) -> Result:
        for name, content in (files or {}).items():
            path = work.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        out = rejected or {}
        return Result([(name, None) for name in files or {}], kept + sum(out.values()), kept, out, dict(info or {}))

    return run_stage(store, Stage(stage, 1), "test", {"config": config}, inputs, body)


def evaluation(store: Store, files: Mapping[str, str | bytes] | None = None, most: int = 6) -> Manifest:
    """An ingest of evaluation files; without any, the first lines of the sample's."""
    if files is None:
        found = sorted(path for path in EVAL.rglob("*.jsonl"))
        files = {f"eval/{path.relative_to(EVAL)}": "".join(path.read_text(encoding="utf-8").splitlines(True)[:most]) for path in found}
    facts = {"source": "files", "role": "evaluation", "snapshot": "evaluation", "license": "CC0-1.0"}
    return made(store, "ingest", {}, files, facts, config=sorted(map(str, files.items())), kept=len(files))


def weights(folder: Path, seed: int) -> dict[str, bytes]:
    """Files of a model directory with random weights and a tokenizer."""
    from model import families, tokenizer
    from model.transformer import Transformer

    words = tokenizer.train(TEXTS, 512)
    model = Transformer(SHAPE, tokenizer.vocab_size(words))
    model.init_weights(seed)
    families.save(model, SHAPE, tokenizer.vocab_size(words), folder)
    tokenizer.save(words, folder)
    return {f"model/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def training(steps: int, rise: float = 0.0) -> list[dict[str, Any]]:
    """Rows as the loop writes them."""
    rows: list[dict[str, Any]] = [{"event": "resumed", "step": 0}]
    for step in range(1, steps + 1):
        loss = 6 * math.exp(-step / steps) + rise
        rows.append({"step": step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens": step * 64, "tokens_per_s": 1e4, "seconds": 0.1})
        if step % 5 == 0:
            rows.append({"step": step, "valid_loss": loss + 0.1, "valid_bits_per_token": (loss + 0.1) / math.log(2)})
    return rows


def chain(store: Store, folder: Path, seed: int = 0, steps: int = 10) -> dict[str, Manifest]:
    """Everything from ingest to a tuned model, by stage; `folder` is scratch."""
    raw = {
        "commoncrawl": made(
            store, "ingest", {}, {"crawl-data/a.warc.gz": b"x"},
            {"source": "commoncrawl", "role": "source", "snapshot": "CC-MAIN-2026-40", "license": "Common Crawl terms of use"}, "cc",
        ),
        "wikipedia": made(
            store, "ingest", {}, {"enwiki/a.xml.bz2": b"y"},
            {"source": "wikipedia", "role": "source", "snapshot": "20261001", "license": "CC BY-SA 4.0", "snapshots": {"enwiki": "20261001"}}, "wiki",
        ),
    }  # fmt: skip
    examples = made(
        store,
        "ingest",
        {},
        {"finetune/a.jsonl": "{}"},
        {"source": "files", "role": "examples", "snapshot": "examples", "license": "CC0-1.0"},
        "e",
    )
    one = {"extract": made(store, "extract", raw, rejected={"not_html": 7, "empty": 3}, kept=190)}
    one["filter"] = made(
        store,
        "filter",
        {"extract": one["extract"]},
        rejected={"language": 20, "gopher_repetition": 10, "too_short": 6, "spam": 4},
        kept=150,
    )
    one["dedup"] = made(store, "dedup", {"filter": one["filter"]}, rejected={"near_duplicate": 25}, kept=125)
    one["decontaminate"] = made(store, "decontaminate", {"dedup": one["dedup"]}, rejected={"contaminated": 1}, kept=124)
    one["tokenizer"] = made(store, "tokenizer", {"corpus-000": one["decontaminate"]}, kept=124)
    inputs = {"corpus-000": one["decontaminate"], "tokenizer": one["tokenizer"]}
    shares = {"wikipedia/zh": {"documents": 60, "tokens": 20_500, "stored": 120, "stored_tokens": 41_000, "epochs": 2.0, "epochs_got": 2.0}}
    info = {"tokens": {"train": 41_000, "valid": 900}, "mixture": shares, "tokens_by_year": {"2026": 41_300, "unknown": 600}}
    one["encode"] = made(store, "encode", inputs, info=info, kept=124)
    for stage, inputs in (("pretrain", {"encode": one["encode"], "tokenizer": one["tokenizer"]}), ("finetune", {"examples": examples})):
        inputs = inputs | ({"start": one["pretrain"], "tokenizer": one["tokenizer"]} if stage == "finetune" else {})
        files: dict[str, str | bytes] = {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in training(steps))}
        files |= weights(folder / f"{stage}-{seed}", seed + (stage == "finetune"))
        config = {"model": to_dict(SHAPE), "train": {"seed": seed, "steps": steps, "lr": 1e-3}}
        one[stage] = made(store, stage, inputs, files, {"model": to_dict(SHAPE), "vocab": 512}, config)
    return raw | {"examples": examples} | one


def judged(store: Store, stages: Mapping[str, Manifest], scored_on: Manifest, **scores: float) -> dict[str, Manifest]:
    """Inputs of register: the chain's model with these scores."""
    inputs = {"model": stages["finetune"], "base": stages["pretrain"], "evaluation": scored_on}
    metrics = {
        "bits_per_byte": 2.5,
        "bits_per_byte/en": 2.4,
        "bits_per_byte/zh": 2.9,
        "choice": 0.25,
        "choice/facts_en": 0.25,
        "minimal_pairs": 0.55,
    } | scores
    return inputs | {"evaluate": made(store, "evaluate", inputs, info={"metrics": metrics, "stderr": {"choice": 0.05}}, config=scores)}


def config(**changes: Any) -> RegistryConfig:
    """The registry's config with fields replaced."""
    return replace(REGISTRY, **changes)


def elsewhere(folder: Path, shape: ModelConfig = ELSEWHERE, seed: int = 0) -> Path:
    """A directory that another house would have made: GPT-2 with a byte-level tokenizer of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    from model import families
    from model.transformer import Transformer

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["the keeper of the lighthouse lit the lamp every night", "灯塔的灯每夜点亮"] * 5
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    words.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    model = Transformer(shape, words.get_vocab_size())
    model.init_weights(seed)
    families.save(model, shape, model.vocab, folder)
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder
