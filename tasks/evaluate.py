"""The evaluate task: held-out bits per byte, minimal pairs, multiple choice, similarity and sample answers of a model.

Model, base model and the ingested evaluation files in; metrics.json, samples.json and items.parquet (what each item contributes, tasks/compare.py) out.
A file's folder says what it is: blimp/ minimal pairs, choice/ multiple choice, stsb/ pairs of texts and how alike they are, and heldout*.jsonl
documents with text and maybe language and source. Beside a score stand `…/low` and `…/high`, bounds of its 95%, and `…/clean`, the same on items of which
the decontaminate stage found nothing in the base model's corpus before cleaning, where it found some.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from model.config import to_dict
from model.errors import EmptyError, InputError, NonFiniteError
from model.evaluate import EvaluateConfig
from tasks import compare, policy
from tasks.corpus.contamination import OVERLAPS, set_name
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, ancestors, run_stage
from tasks.report import ended, watch

if TYPE_CHECKING:
    from model.evaluate import Item

EVALUATE = Stage("evaluate", 2)
Items = dict[str, list[dict[str, Any]]]
BESIDE = ("/n", "/stderr", "/set_aside", "/chance", "/low", "/high", "/clean")
"""Endings of what stands beside a score."""


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
    similar: Items
    sets: dict[str, str]
    """Kind and stem (choice/copa) → the name under which decontaminate knows the file."""

    @property
    def count(self) -> int:
        """Documents and items together."""
        return len(self.documents) + sum(len(rows) for kind in (self.pairs, self.choices, self.similar) for rows in kind.values())


def questions(store: Store, manifest: Manifest) -> Questions:
    """Read the evaluation files of an ingest. Raises InputError for a file that is broken, in no known folder, or of a name that stands twice,
    EmptyError where no held-out document is."""
    from model.evaluate import ITEM, read_choices, read_documents, read_pairs, read_similarities

    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "blimp": read_pairs,
        "choice": read_choices,
        "stsb": read_similarities,
        "heldout": read_documents,
    }
    found: dict[str, Items] = {kind: {} for kind in readers}
    sets: dict[str, str] = {}
    for file in manifest.files:
        name = Path(file.path)
        if not name.name.endswith((".jsonl", ".jsonl.gz")) and (name.suffix != ".csv" or name.parent.name != "stsb"):
            continue
        stem = name.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".csv")
        kind = "heldout" if stem.startswith("heldout") else name.parent.name
        if kind not in readers:
            raise InputError(
                f"{file.path} of {manifest.address} is of no known kind: put it into a folder blimp/, choice/ or stsb/, or name it heldout*.jsonl."
            )
        if stem in found[kind]:
            raise InputError(f"{manifest.address} holds two {kind} files named {stem}: their scores would have one name. Rename one.")
        found[kind][stem] = readers[kind](store.path(manifest, file))
        if (known := set_name(file.path)) is not None:
            sets[f"{kind}/{stem}"] = known
    documents = [row | {ITEM: f"{stem}/{row[ITEM]}"} for stem, rows in found["heldout"].items() for row in rows]
    if not documents:
        raise EmptyError(f"{manifest.address} holds no heldout*.jsonl: bits per byte need held-out documents.")
    return Questions(documents, found["blimp"], found["choice"], found["stsb"], sets)


def score(work: Work, config: EvaluateConfig) -> Result:
    """The stage's body: the base model's language, then the tuned model's answers.

    NonFiniteError names a score that is no number: weights that diverged must not reach the registry.
    """
    import torch

    from model.evaluate import Item, bits_per_byte, minimal_pairs, multiple_choice, samples, similarity
    from model.families import load
    from model.tokenizer import load as load_tokenizer

    asked = questions(work.store, work.inputs["evaluation"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base_folder, folder = (model_directory(work.store, work.inputs[role]) for role in ("base", "model"))
    model, tokenizer = load(base_folder, device), load_tokenizer(base_folder)
    items: list[Item] = []
    metrics = bits_per_byte(model, tokenizer, asked.documents, config.batch, items)
    work.progress(1, 5, "parts")
    metrics |= minimal_pairs(model, tokenizer, asked.pairs, config.batch, items)
    metrics |= similarity(model, tokenizer, asked.similar, config.batch, items)
    work.progress(2, 5, "parts")
    model, tokenizer = load(folder, device), load_tokenizer(folder)
    tuned: list[Item] = []
    metrics |= {f"tuned/{name}": value for name, value in bits_per_byte(model, tokenizer, asked.documents, config.batch, tuned).items()}
    items += [item._replace(score=f"tuned/{item.score}") for item in tuned]
    work.progress(3, 5, "parts")
    for shots in config.shots:
        metrics |= multiple_choice(model, tokenizer, asked.choices, config.batch, shots, items)
    work.progress(4, 5, "parts")
    answers = samples(model, tokenizer, config.samples, config.max_new, as_chat=True)
    if answers:
        metrics["samples/stopped"] = sum(a["finished"] == "stop" for a in answers) / len(answers)
    wrong = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if wrong:
        raise NonFiniteError(
            f"{wrong[0]} of {work.inputs['model'].address} is {metrics[wrong[0]]}: its weights are no numbers. Train again."
        )
    for name, bounds in compare.intervals(items).items():
        metrics |= {f"{name}/low": bounds[0], f"{name}/high": bounds[1]}
    metrics |= on_clean(items, overlaps(work.store, work.inputs), asked.sets)
    for name, data in (("metrics.json", metrics), ("samples.json", answers)):
        (work.dir / name).write_text(json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    compare.written(items, work.dir / compare.ITEMS)
    aside = int(sum(v for name, v in metrics.items() if name.endswith("/set_aside") and name.startswith(("minimal_pairs/", "choice/"))))
    seen = asked.count + len(answers)
    info = {"metrics": headline(metrics), "samples": answers, "config": to_dict(config)}
    info |= {what: beside(metrics, what) for what in ("stderr", "low", "high", "clean")}
    files: list[tuple[str, int | None]] = [("metrics.json", None), ("samples.json", None), (compare.ITEMS, None)]
    return Result(files, seen, seen - aside, {"too_long": aside} if aside else {}, info)


def overlaps(store: Store, inputs: Mapping[str, Manifest]) -> dict[str, set[str]] | None:
    """By the names of decontaminate, the items that were found in what the base model learnt from, before they were removed; None where its corpus
    was cleaned of other evaluation files, or of none."""
    found: dict[str, set[str]] = {}
    encoded = [made for made in ancestors(store, [inputs["base"]]) if made.stage == "encode"]
    corpus = [store.need(address) for made in encoded for role, address in made.inputs.items() if role.startswith("corpus-")]
    parts = [made for made in ancestors(store, corpus) if made.stage == "decontaminate"]
    for part in parts:
        file = next((file for file in part.files if file.path == OVERLAPS), None)
        if file is None or store.need(part.inputs["evaluation"]).content != inputs["evaluation"].content:
            return None
        for name, known in json.loads(store.path(part, file).read_text(encoding="utf-8")).items():
            found.setdefault(name, set()).update(known)
    return found if parts else None


def on_clean(items: Iterable["Item"], known: Mapping[str, set[str]] | None, sets: Mapping[str, str]) -> dict[str, float]:
    """`…/clean` and `…/clean/n` of scores some of whose items were found in the corpus: the score of the others, if there are any."""
    result: dict[str, float] = {}
    for score, rows in compare.grouped(items).items() if known else ():
        assert known is not None
        kept = [row for row in rows if not _overlaps(row, known, sets)]
        if 0 < len(kept) < len(rows):
            result |= {f"{score}/clean": compare.score(score, kept), f"{score}/clean/n": float(len(kept))}
    return result


def _overlaps(item: "Item", known: Mapping[str, set[str]], sets: Mapping[str, str]) -> bool:
    head, _, stem = item.score.partition("/")
    if "bits_per_byte" in item.score:
        stem, _, name = item.item.partition("/")
        return name in known.get(sets.get(f"heldout/{stem}", ""), ())
    kind = "blimp" if head == "minimal_pairs" else "stsb" if head == "similarity" else "choice"
    return item.item in known.get(sets.get(f"{kind}/{stem}", ""), ())


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Scores without the counts and errors that stand beside them in metrics.json."""
    return {name: value for name, value in metrics.items() if not name.endswith(BESIDE)}


def beside(metrics: Mapping[str, float], what: str) -> dict[str, float]:
    """What stands beside scores, by the score's name: one of BESIDE."""
    return {name.removesuffix(f"/{what}"): value for name, value in metrics.items() if name.endswith(f"/{what}")}
