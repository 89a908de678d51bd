"""The evaluate task: held-out bits per byte, minimal pairs, multiple choice and sample answers of a model.

Model, base model and the ingested evaluation files in; metrics.json and samples.json out. A file's folder says what it is: blimp/ minimal pairs,
choice/ multiple choice, and heldout*.jsonl documents with text and language.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task

from model.config import to_dict
from model.errors import EmptyError, InputError, NonFiniteError
from model.evaluate import EvaluateConfig
from tasks import policy
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage
from tasks.report import ended, watch

EVALUATE = Stage("evaluate", 1)
Items = dict[str, list[dict[str, Any]]]


@task(name="evaluate", **policy.COMPUTE)
def evaluate(store: Store, recipe: str, config: EvaluateConfig, inputs: Mapping[str, Manifest], rebuild: bool = False) -> Manifest:
    """Score a model. Inputs: model, base (for bits per byte and minimal pairs before tuning), evaluation."""
    with watch("evaluate") as progress:
        return ended(run_stage(store, EVALUATE, recipe, config, inputs, lambda work: score(work, config), progress, rebuild=rebuild))


def model_directory(store: Store, manifest: Manifest) -> Path:
    """The verified local model/ directory of a training stage. InputError where the stage holds none."""
    files = [file for file in manifest.files if file.path.startswith("model/")]
    if not files:
        raise InputError(f"{manifest.address} holds no model; name a pretrain or finetune stage.")
    for file in files:
        store.path(manifest, file)
    return store.dir(manifest.address) / "model"


@dataclass(frozen=True)
class Questions:
    """What a model is scored on: sets of items by the stem of their file."""

    documents: list[dict[str, Any]]
    pairs: Items
    choices: Items

    @property
    def count(self) -> int:
        """Documents and items together."""
        return len(self.documents) + sum(map(len, self.pairs.values())) + sum(map(len, self.choices.values()))


def questions(store: Store, manifest: Manifest) -> Questions:
    """Read the evaluation files of an ingest. Raises InputError for a file that is broken, in no known folder, or of a name that stands twice,
    EmptyError where no held-out document is."""
    from model.evaluate import read_choices, read_documents, read_pairs

    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {"blimp": read_pairs, "choice": read_choices, "heldout": read_documents}
    found: dict[str, Items] = {kind: {} for kind in readers}
    for file in manifest.files:
        name = Path(file.path)
        if not name.name.endswith((".jsonl", ".jsonl.gz")):
            continue
        stem = name.name.removesuffix(".gz").removesuffix(".jsonl")
        kind = "heldout" if stem.startswith("heldout") else name.parent.name
        if kind not in readers:
            raise InputError(
                f"{file.path} of {manifest.address} is of no known kind: put it into a folder blimp/ or choice/, or name it heldout*.jsonl."
            )
        if stem in found[kind]:
            raise InputError(f"{manifest.address} holds two {kind} files named {stem}: their scores would have one name. Rename one.")
        found[kind][stem] = readers[kind](store.path(manifest, file))
    documents = [row for rows in found["heldout"].values() for row in rows]
    if not documents:
        raise EmptyError(f"{manifest.address} holds no heldout*.jsonl: bits per byte need held-out documents.")
    return Questions(documents, found["blimp"], found["choice"])


def score(work: Work, config: EvaluateConfig) -> Result:
    """The stage's body: the base model's language, then the tuned model's answers.

    NonFiniteError names a score that is no number: weights that diverged must not reach the registry.
    """
    import torch

    from model.evaluate import bits_per_byte, minimal_pairs, multiple_choice, samples
    from model.families import load
    from model.tokenizer import load as load_tokenizer

    asked = questions(work.store, work.inputs["evaluation"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base_folder, folder = (model_directory(work.store, work.inputs[role]) for role in ("base", "model"))
    model, tokenizer = load(base_folder, device), load_tokenizer(base_folder)
    metrics = bits_per_byte(model, tokenizer, asked.documents, config.batch)
    work.progress(1, 5, "parts")
    metrics |= minimal_pairs(model, tokenizer, asked.pairs, config.batch)
    work.progress(2, 5, "parts")
    model, tokenizer = load(folder, device), load_tokenizer(folder)
    metrics |= {f"tuned/{name}": value for name, value in bits_per_byte(model, tokenizer, asked.documents, config.batch).items()}
    work.progress(3, 5, "parts")
    metrics |= multiple_choice(model, tokenizer, asked.choices, config.batch)
    work.progress(4, 5, "parts")
    answers = samples(model, tokenizer, config.samples, config.max_new, as_chat=True)
    if answers:
        metrics["samples/stopped"] = sum(a["finished"] == "stop" for a in answers) / len(answers)
    wrong = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if wrong:
        raise NonFiniteError(
            f"{wrong[0]} of {work.inputs['model'].address} is {metrics[wrong[0]]}: its weights are no numbers. Train again."
        )
    for name, data in (("metrics.json", metrics), ("samples.json", answers)):
        (work.dir / name).write_text(json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    aside = int(sum(v for name, v in metrics.items() if name.endswith("/set_aside") and name.startswith(("minimal_pairs/", "choice/"))))
    seen = asked.count + len(answers)
    info = {"metrics": headline(metrics), "stderr": beside(metrics, "stderr"), "samples": answers, "config": to_dict(config)}
    return Result([("metrics.json", None), ("samples.json", None)], seen, seen - aside, {"too_long": aside} if aside else {}, info)


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Scores without the counts and errors that stand beside them in metrics.json."""
    return {name: value for name, value in metrics.items() if not name.endswith(("/n", "/stderr", "/set_aside", "/chance"))}


def beside(metrics: Mapping[str, float], what: str) -> dict[str, float]:
    """What stands beside scores, by the score's name: `stderr`, `n`, `chance`."""
    return {name.removesuffix(f"/{what}"): value for name, value in metrics.items() if name.endswith(f"/{what}")}
