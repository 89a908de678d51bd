"""The pretrain and finetune tasks: the one loop as a subprocess under torchrun, its metrics streamed to Prefect and MLflow while it runs.

Shards (or examples) and a tokenizer in, and a model to start from; model/ (safetensors, config, tokenizer), metrics.jsonl and the last checkpoint out.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task

from model.config import STRICT, ModelConfig, Run, TrainConfig, from_dict, to_dict
from model.errors import ConfigError, EmptyError, InputError, TokenizerError
from model.finetune import template_hash
from tasks import forecast, policy
from tasks.corpus.examples import read, shape_of
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.report import ended, watch

PRETRAIN = Stage("pretrain", 1)
FINETUNE = Stage("finetune", 1)
Row = dict[str, Any]


@dataclass(frozen=True)
class PretrainConfig:
    """What pretraining is made of beside its shards."""

    __pydantic_config__ = STRICT

    model: ModelConfig
    """Shape of the model."""
    train: TrainConfig
    """Settings of the loop."""


@dataclass(frozen=True)
class FinetuneConfig:
    """What fine-tuning is made of beside its inputs."""

    __pydantic_config__ = STRICT

    train: TrainConfig
    """Settings of the loop."""
    template: str
    """Hash of what decides how a chat becomes tokens."""
    words: str
    """Name of the template that makes chats of labelled texts and questions; '' for none."""


def finetune_config(train: TrainConfig, words: str = "") -> FinetuneConfig:
    """The stage's config: the recipe's section, and the templates as they are now."""
    return FinetuneConfig(train, template_hash(), words)


@task(name="pretrain", **policy.COMPUTE)
def pretrain(
    store: Store, recipe: str, config: PretrainConfig, inputs: Mapping[str, Manifest], on_row: Callable[[Row], None], rebuild: bool = False
) -> Manifest:
    """Train a model on token shards. Inputs: encode, tokenizer, and start for a model that is trained on."""
    with watch("pretrain") as progress:
        return ended(pretrained(store, recipe, config, inputs, on_row, progress, rebuild))


def pretrained(
    store: Store,
    recipe: str,
    config: PretrainConfig,
    inputs: Mapping[str, Manifest],
    on_row: Callable[[Row], None],
    progress: Progress,
    rebuild: bool = False,
    beside: int = 1,
) -> Manifest:
    """As the task, without Prefect; one of `beside` trainings that share this machine's cores."""
    return run_stage(
        store, PRETRAIN, recipe, config, inputs, lambda work: _pretrain(work, config, on_row, beside), progress, rebuild=rebuild
    )


@task(name="finetune", **policy.COMPUTE)
def finetune(
    store: Store, recipe: str, config: FinetuneConfig, inputs: Mapping[str, Manifest], on_row: Callable[[Row], None], rebuild: bool = False
) -> Manifest:
    """Tune a model on examples: the answers of chats, labels, answers in a context, preferences. Inputs: start, examples, tokenizer."""
    with watch("finetune") as progress:
        return ended(
            run_stage(store, FINETUNE, recipe, config, inputs, lambda work: _finetune(work, config, on_row), progress, rebuild=rebuild)
        )


def _pretrain(work: Work, config: PretrainConfig, on_row: Callable[[Row], None], beside: int) -> Result:
    encode, tokenizer = work.inputs["encode"], work.inputs["tokenizer"]
    if encode.info["tokenizer"] != tokenizer.info["tokenizer"]:
        raise TokenizerError(
            f"{encode.address} was encoded with tokenizer {encode.info['tokenizer'][:12]}, not with {tokenizer.info['tokenizer'][:12]} of "
            f"{tokenizer.address}. Encode the corpus again with this tokenizer."
        )
    for file in encode.files:
        work.store.path(encode, file)
    enough = encode.info["tokens"]["valid"] > config.train.length  # one sample has length + 1 tokens
    run = Run(
        data="stream", fingerprint=work.fingerprint, data_fingerprint=encode.content, model=config.model, train=config.train, vocab=encode.info["vocab"],
        shards=_prefixes(work, "encode", "train-"), valid=_prefixes(work, "encode", "valid-") if enough else (), tokenizer=str(_folder(work, "tokenizer", "tokenizer")),
        start=str(_folder(work, "start", "model")) if "start" in work.inputs else None, out=str(work.dir),
    )  # fmt: skip
    sequences = config.train.steps * config.train.batch
    return _train(work, run, on_row, sequences, sequences, {}, beside)


def _finetune(work: Work, made: FinetuneConfig, on_row: Callable[[Row], None]) -> Result:
    from model import adapters
    from model.tokenizer import load

    config, start, folder = made.train, work.inputs["start"], _folder(work, "tokenizer", "tokenizer")
    tokenizer, base, vocab = load(folder), from_dict(ModelConfig, start.info["model"]), start.info["vocab"]
    rows = list(examples(work.store, work.inputs["examples"], config.objective.kind, made.words))
    labels = labels_of(config.objective.kind, rows)
    shape = adapters.shaped(base, labels, config.adapter)
    counts: dict[str, Counter[str]] = {}
    (work.dir / "examples").mkdir(exist_ok=True)
    for split in ("train", "valid"):
        chosen, prefix = [row for row in rows if row["split"] == split], work.dir / "examples" / split
        counts[split] = Counter(_encoded(config, chosen, tokenizer, prefix, labels, base.kind, range(vocab, vocab + shape.prompt)))
    if not counts["train"]["kept"]:
        raise EmptyError(
            f"no training example of {work.inputs['examples'].address} can be used: {dict(counts['train'])}. Raise finetune.length or mend the files."
        )
    run = Run(
        data="packed", fingerprint=work.fingerprint, data_fingerprint=work.inputs["examples"].content, model=shape, train=config, vocab=vocab,
        shards=(str(work.dir / "examples/train"),), valid=(str(work.dir / "examples/valid"),) if counts["valid"]["kept"] else (),
        tokenizer=str(folder), start=str(_folder(work, "start", "model")), out=str(work.dir),
    )  # fmt: skip
    total = counts["train"] + counts["valid"]
    kept = total.pop("kept")
    return _train(work, run, on_row, kept + sum(total.values()), kept, total)


def _encoded(
    config: TrainConfig, rows: list[Row], tokenizer: Any, prefix: Path, labels: list[str] | None, kind: str, soft: range
) -> dict[str, int]:
    from model import finetune as encoders

    match config.objective.kind:
        case "labels":
            return encoders.encode_labelled(rows, tokenizer, prefix, config.length, labels or [], kind, soft)
        case "answers":
            return encoders.encode_questions(rows, tokenizer, prefix, config.length, kind, soft)
        case "preference":
            return encoders.encode_preferences(rows, tokenizer, prefix, config.length, soft)
        case _:
            return encoders.encode_examples(rows, tokenizer, prefix, config.length, soft)


def labels_of(objective: str, rows: list[Row]) -> list[str] | None:
    """What a head of the objective scores: the labels of the training rows, sorted; start and end for answers; None without such a head."""
    if objective == "answers":
        return ["start", "end"]
    if objective != "labels":
        return None
    labels = sorted({row["label"] for row in rows if row["split"] == "train"})
    if len(labels) < 2:
        raise InputError(
            f"the training examples have {len(labels)} label{'' if len(labels) == 1 else 's'} ({', '.join(labels)}); two or more are needed."
        )
    return labels


SHAPES = {"causal": "chat", "labels": "label", "answers": "span", "preference": "preference"}
"""Objective → the shape of its examples, as tasks/corpus/examples.py has them."""


def examples(store: Store, manifest: Manifest, objective: str = "causal", words: str = "") -> Iterator[Row]:
    """Examples of an ingest, of the shape that an objective learns from; `words`: the template that makes chats of others.

    ConfigError for an objective that learns from a corpus, InputError naming file and line of what is no example, or one of another shape.
    """
    from model.templates import by_name

    if objective not in SHAPES:
        raise ConfigError(f"finetune.objective {objective} learns from a corpus; for examples there are {', '.join(SHAPES)}.")
    wanted = SHAPES[objective]
    template = by_name(words) if words else None
    for file in manifest.files:
        for row in read(store.path(manifest, file), file.path):
            shape = shape_of(row)
            if shape in ("label", "span") and template and wanted == "chat":
                row |= {"messages": template.messages(row)}
            elif shape != wanted:
                more = "; or name a template in prompts.trained" if wanted == "chat" and shape in ("label", "span") else ""
                raise InputError(f"{row['id']} is an example of shape {shape}; objective {objective} learns from {wanted}{more}.")
            yield row


def _train(
    work: Work, run: Run, on_row: Callable[[Row], None], seen: int, kept: int, rejected: Mapping[str, int], beside: int = 1
) -> Result:
    from model.train import launch

    alone = beside == 1 and forecast.knows(run.model, run.train)  # trainings side by side slow one another
    made = forecast.forecast(work.store, run.model, run.train, run.vocab, bool(run.valid)) if alone else None
    path = work.dir / "run.json"
    path.write_text(json.dumps(to_dict(run), indent=1))

    def row(metrics: Row) -> None:
        if "loss" in metrics:
            work.progress(metrics["step"], run.train.steps, "steps")
        on_row(metrics)

    launch(
        path,
        ranks=run.train.ranks,
        log=work.dir / "train.log",
        timeout=run.train.timeout,
        on_metrics=row,
        cache=work.store.base / "extensions",
        beside=beside,
    )
    done = json.loads((work.dir / "done.json").read_text())
    last = f"checkpoints/step-{run.train.steps:08d}"
    names = [
        "metrics.jsonl",
        "done.json",
        *_tree(work.dir, "model"),
        *_tree(work.dir, "adapter"),
        *_tree(work.dir, "examples"),
        *_tree(work.dir, last),
    ]
    rows = [json.loads(line) for line in (work.dir / "metrics.jsonl").read_text().splitlines()]
    info = {"model": to_dict(run.model), "vocab": run.vocab, "final": done["metrics"], "ranks": run.train.ranks, "beside": beside}
    return Result([(name, None) for name in names], seen, kept, rejected, info | forecast.record(made, rows, done["metrics"]))


def _tree(root: Path, folder: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file())


def _prefixes(work: Work, role: str, prefix: str) -> tuple[str, ...]:
    manifest = work.inputs[role]
    return tuple(str(work.store.path(manifest, f)).removesuffix(".bin") for f in manifest.parts(prefix) if f.path.endswith(".bin"))


def _folder(work: Work, role: str, folder: str) -> Path:
    """A verified local directory of an input (model/ or tokenizer/)."""
    manifest = work.inputs[role]
    for file in manifest.files:
        if file.path.startswith(f"{folder}/"):
            work.store.path(manifest, file)
    return work.store.dir(manifest.address) / folder
