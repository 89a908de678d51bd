"""The quality_model stage: a fastText classifier a language, good texts against bad, trained here and proved on texts that it has not seen.

    run(store, recipe, config, {"extract": …, "labels": …}) -> manifest: model-en.bin …, examples.parquet; info: held-out metrics by language
    Models({"en": path}, characters).score(text, "en") -> 0.93          # None for a language without a model

Good are documents of some sources (Wikipedia), bad those of others (the crawl), as they leave extract; and the labelled texts of local files, JSON lines
with `text` and `label` (1, 0, true, false, good, bad). Which documents: those with the smallest hash of their id, as many good as bad in each language.
A part of them is held out, crawled pages by their site, so that no site is on both sides; a model whose held-out precision is below the bound stops
the stage. Documents that a model was trained on are scored like any other, and flattered: examples.parquet names them.

Training runs in a process of its own (fasttext_training.py) and is tried again where it ends in NaN or in a bad model.
"""

import heapq
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from model.config import STRICT
from model.errors import EmptyError, InputError, JudgeError, RankError
from tasks.corpus import files
from tasks.corpus.document import read_batches, read_rows, text_hash, write_table
from tasks.corpus.language import detect, load
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.textnorm import CJK, normalise

STAGE = Stage("quality_model", 1)
TRIES = 3
"""Trainings before NaN or a bad model counts as the stage's."""
GOOD, BAD = "__label__good", "__label__bad"
LABELS = {"1": True, "true": True, "good": True, "0": False, "false": False, "bad": False}
TOKEN = re.compile(r"\w+|[^\w\s]")
EXAMPLES = pa.schema(
    [("id", pa.string()), ("language", pa.string()), ("good", pa.bool_()), ("held_out", pa.bool_()), ("score", pa.float64())]
)


@dataclass(frozen=True)
class QualityModelConfig:
    """What the model learns from, and how."""

    __pydantic_config__ = STRICT

    good: tuple[str, ...]
    """Sources whose documents are good: ("wikipedia",). Empty: only labelled texts are."""
    bad: tuple[str, ...]
    """Sources whose documents are bad: ("commoncrawl",). Empty: only labelled texts are."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639 codes; each has a model of its own, so that a language is no sign of quality."""
    documents: Annotated[int, Field(ge=10)]
    """Most documents of the good sources, and of the bad ones, that are drawn. Labelled texts are all taken."""
    min_documents: Annotated[int, Field(ge=10)]
    """Fewest of each kind in a language; one with fewer has no model."""
    characters: Annotated[int, Field(ge=100)]
    """Of the beginning of a text: what the model reads."""
    held_out: Annotated[float, Field(gt=0, le=0.5)]
    """Share of sites and documents that the model is proved on."""
    min_precision: Annotated[float, Field(ge=0, le=1)]
    """Least share of good ones among the held-out texts that score above 0.5, as many good as bad; below it the stage stops."""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the texts."""
    rate: Annotated[float, Field(gt=0)]
    """Learning rate at the start; it falls to 0."""
    dimensions: Annotated[int, Field(ge=1)]
    """Numbers a word."""
    ngrams: Annotated[int, Field(ge=1, le=5)]
    """Longest run of words, or of Chinese characters, that is looked at."""
    buckets: Annotated[int, Field(ge=1)]
    """Rows for runs of words, found by their hash. A model has about buckets × dimensions × 4 bytes."""

    def __post_init__(self) -> None:
        if set(self.good) & set(self.bad):
            raise ValueError("a source cannot be good and bad")


@dataclass(frozen=True)
class Example:
    """One text to learn from, or to be proved on."""

    id: str
    language: str
    good: bool
    place: int
    """Hash of the id: the order in which examples are drawn and learnt."""
    held_out: bool
    line: str
    """What the model reads of it."""


def run(
    store: Store,
    recipe: str,
    config: QualityModelConfig,
    inputs: Mapping[str, Manifest],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Train on the documents of the input "extract", the labelled texts of "labels", or both.

    `info`: languages, by each its number of texts, held-out precision, recall, accuracy, AUC; `metrics`, the same flat. EmptyError where no language has
    texts enough, JudgeError for a model below min_precision.
    """
    return run_stage(store, STAGE, recipe, config, inputs, lambda work: _body(work, config), progress, rebuild)


def _body(work: Work, config: QualityModelConfig) -> Result:
    books: Counter[str] = Counter()
    found = [
        *(_drawn(work.paths("extract"), config, books) if "extract" in work.inputs else ()),
        *(_labelled(work, config, books) if "labels" in work.inputs else ()),
    ]
    made: list[tuple[str, int | None]] = []
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for language in config.languages:
        train, held = _balanced([e for e in found if e.language == language], config, books)
        if not train:
            continue
        model = work.dir / f"model-{language}.bin"
        scores = _train(work, config, language, train, held, model)
        made.append((model.name, None))
        about[language] = {"train": len(train), "held_out": len(held)} | metrics([e.good for e in held], scores)
        for example, score in zip([*train, *held], [*_scores(model, train), *scores], strict=True):
            rows.append({"id": example.id, "language": language, "good": example.good, "held_out": example.held_out, "score": score})
        work.progress(len(made), len(config.languages), "models")
    if not made:
        raise EmptyError(
            f"quality_model: no language of {', '.join(config.languages)} has {config.min_documents} good and as many bad texts "
            f"({dict(books)}). Lower quality_model.min_documents, name other sources, or set quality_model to null."
        )
    made.append(("examples.parquet", write_table(work.dir / "examples.parquet", pa.Table.from_pylist(rows, EXAMPLES))))
    flat = {f"{language}/{name}": value for language, values in about.items() for name, value in values.items()}
    return Result(made, len(rows) + books.total(), len(rows), +books, {"languages": about, "metrics": flat})


def _drawn(paths: Sequence[Path], config: QualityModelConfig, books: Counter[str]) -> Iterator[Example]:
    """Examples of the good and of the bad sources: of each kind the `documents` with the smallest hash of their id."""
    kinds = dict.fromkeys(config.good, True) | dict.fromkeys(config.bad, False)
    seen: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for batch in read_batches(paths, ["id", "source"]):
        for id_, source in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if source in kinds:
                heap, entry = seen[kinds[source]], (-_place(id_), id_)
                if len(heap) < config.documents:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
                    books["not_drawn"] += 1
            else:
                books["other_source"] += 1
    chosen = {id_ for heap in seen.values() for _, id_ in heap}
    for row in read_rows(paths, ["id", "source", "domain", "text", "text_hash"]):
        if row["id"] in chosen:
            crawled = row["source"] == "commoncrawl"
            yield from _example(row["id"], row["text"], kinds[row["source"]], row["domain"] if crawled else row["text_hash"], config, books)


def _labelled(work: Work, config: QualityModelConfig, books: Counter[str]) -> Iterator[Example]:
    """Examples of labelled texts. InputError for a file without any."""
    manifest = work.inputs["labels"]
    for file in manifest.files:
        path, good_ones = work.store.path(manifest, file), 0
        if files.kind_of(path) != "jsonl":
            raise InputError(f"{file.path} of {manifest.address} is no JSON-lines file. Labelled texts are *.jsonl with text and label.")
        for number, row in files.objects(path):
            label = LABELS.get(str(row.get("label")).strip().lower()) if isinstance(row, dict) else None
            if label is None or not isinstance(row.get("text"), str):
                books["no_label"] += 1
                continue
            good_ones += 1
            yield from _example(f"{file.path}:{number}", row["text"], label, text_hash(row["text"]), config, books)
        if not good_ones:
            raise InputError(
                f"{file.path} of {manifest.address} has no line with a text and a label that is one of {', '.join(LABELS)}. Mend it, or leave it out."
            )


def _example(id_: str, text: str, good: bool, group: str, config: QualityModelConfig, books: Counter[str]) -> Iterator[Example]:
    language = detect(text)[0]
    line = features(text, config.characters)
    if language not in config.languages or not line:
        books["language" if line else "empty"] += 1
        return
    held_out = _place(f"held out {group}") < config.held_out * 2**64
    yield Example(id_, language, good, _place(id_), held_out, line)


def _balanced(examples: Sequence[Example], config: QualityModelConfig, books: Counter[str]) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples of one language, as many good as bad in each, in the order of their hashes; none where there are too few."""
    parts = []
    for held_out in (False, True):
        sides = [
            sorted((e for e in examples if e.held_out == held_out and e.good == good), key=lambda e: (e.place, e.id))
            for good in (True, False)
        ]
        parts.append([side[: min(map(len, sides))] for side in sides])
    if sum(len(part[0]) for part in parts) < config.min_documents or not parts[1][0]:
        books["few_documents"] += len(examples)
        return [], []
    train, held = (sorted([*good, *bad], key=lambda e: (e.place, e.id)) for good, bad in parts)
    books["surplus"] += len(examples) - len(train) - len(held)
    return train, held


def _place(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def features(text: str, characters: int) -> str:
    """What a model reads of a text: one line of lower-case words and signs with spaces between, digits as 0, Chinese and Japanese by the character."""
    found = CJK.sub(lambda run: f" {' '.join(run[0])} ", re.sub(r"\d", "0", normalise(text[:characters])))
    return " ".join(TOKEN.findall(found))


def _train(
    work: Work, config: QualityModelConfig, language: str, train: Sequence[Example], held: Sequence[Example], model: Path
) -> list[float]:
    """Make a model, or find it made by a run that was killed afterwards. Returns the held-out scores."""
    texts, fresh = work.scratch / f"{language}.txt", work.scratch / model.name
    if model.exists():
        return _scores(model, held)
    texts.write_text("".join(f"{GOOD if e.good else BAD} {e.line}\n" for e in train), encoding="utf-8")
    settings = {
        "lr": config.rate, "epoch": config.epochs, "dim": config.dimensions, "wordNgrams": config.ngrams, "bucket": config.buckets,
        "minCount": 2 if len(train) > 1000 else 1,
    }  # fmt: skip
    said = ""
    for _ in range(TRIES):
        fresh.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "tasks.corpus.fasttext_training", str(texts), str(fresh), json.dumps(settings)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=Path(__file__).parents[2],
            env=os.environ | {"MALLOC_PERTURB_": "85", "OMP_NUM_THREADS": "1", "INGOT_PARENT": str(os.getpid())},
        )  # fmt: skip
        if done.returncode or not fresh.exists():
            said = f"training ended with {done.returncode}: {done.stderr[-500:]}"
            continue
        scores = _scores(fresh, held)
        precision = metrics([e.good for e in held], scores)["precision"]
        if np.isfinite(scores).all() and precision >= config.min_precision:
            with open(fresh, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(fresh, model)
            return scores
        said = f"of {len(held)} held-out texts those that it calls good are so with precision {precision:.3f}, below quality_model.min_precision {config.min_precision}"
    if said.startswith("training ended"):
        raise RankError(f"quality_model for {language}: {said} ({TRIES} times).")
    raise JudgeError(
        f"quality_model for {language}, trained on {len(train)} texts: {said}. Give it more or cleaner texts (quality_model.documents, labels), lower the "
        "bound, or set quality_model to null."
    )


def metrics(good: Sequence[bool], scores: Sequence[float]) -> dict[str, float]:
    """precision (0 where nothing scores above 0.5), recall and accuracy at 0.5, and the area under the ROC curve (ties count half)."""
    truth, values = np.array(good, bool), np.array(scores, float)
    called = values > 0.5
    hits = float((called & truth).sum())
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    area = (ranks[truth].sum() - positives * (positives + 1) / 2) / max(1, positives * negatives)
    return {
        "precision": hits / max(1.0, float(called.sum())), "recall": hits / max(1, positives), "accuracy": float((called == truth).mean()), "auc": float(area),
    }  # fmt: skip


class Models:
    """The models of a manifest by language, from files that the store has verified."""

    def __init__(self, paths: Mapping[str, str], characters: int):
        self.characters = characters
        self._models = {language: load(Path(path)) for language, path in paths.items()}

    def score(self, text: str, language: str) -> float | None:
        """Likeness to the good texts in [0, 1]; None for a language without a model."""
        model = self._models.get(language)
        return None if model is None else _score(model, features(text, self.characters))


def of_manifest(store: Store, manifest: Manifest) -> dict[str, Any]:
    """What a process needs to score texts: verified paths by language, and how much of a text is read. Plain JSON, for `shared`."""
    paths = {f.path.removeprefix("model-").removesuffix(".bin"): str(store.path(manifest, f)) for f in manifest.parts("model-")}
    return {"paths": paths, "characters": manifest.made_of["config"]["characters"]}


def shared(found: Mapping[str, Any]) -> Models:
    """One process works on many parts: load the models once."""
    return _loaded(tuple(sorted(found["paths"].items())), found["characters"])


@lru_cache(maxsize=1)
def _loaded(paths: tuple[tuple[str, str], ...], characters: int) -> Models:
    return Models(dict(paths), characters)


def _scores(path: Path, examples: Sequence[Example]) -> list[float]:
    model = load(path)
    return [_score(model, e.line) for e in examples]


def _score(model: Any, line: str) -> float:
    return min(1.0, next((score for score, label in model.f.predict(line + "\n", 2, 0.0, "") if label == GOOD), 0.0))
