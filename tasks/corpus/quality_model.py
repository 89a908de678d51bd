"""The quality_model stage: fastText classifiers of good texts against bad, trained here, and never asked for a text that they have learnt.

    run(store, recipe, config, {"extract": …, "labels": …}) -> manifest: model-en-0.bin, model-en-1.bin …, examples.parquet; info: metrics by language
    Models(paths, characters).score(text, "en", half) -> 0.93          # None for a language without models

Good are documents of some sources (Wikipedia), bad those of others (the crawl), as they leave extract; and the labelled texts of local files, JSON lines
with `text` and `label` (1, 0, true, false, good, bad). Which documents: those with the smallest hash of their id, as many good as bad in each language.
They fall into two halves, crawled pages by their site, and each half trains a model of its own; a text is scored by the one of the half that it is not
in, so a crawl that is small enough to be learnt by heart is judged as fairly as the rest of the web. So are the metrics: every example is held out once. A
model whose precision on the other half is below the bound stops the stage.

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
EXAMPLES = pa.schema([("id", pa.string()), ("language", pa.string()), ("good", pa.bool_()), ("half", pa.int8()), ("score", pa.float64())])


@dataclass(frozen=True)
class QualityModelConfig:
    """What the model learns from, and how."""

    __pydantic_config__ = STRICT

    good: tuple[str, ...]
    """Sources whose documents are good: ("wikipedia",). Empty: only labelled texts are."""
    bad: tuple[str, ...]
    """Sources whose documents are bad: ("commoncrawl",). Empty: only labelled texts are."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639 codes; each has models of its own, so that a language is no sign of quality."""
    documents: Annotated[int, Field(ge=10)]
    """Most documents of the good sources, and of the bad ones, that are drawn. Labelled texts are all taken."""
    min_documents: Annotated[int, Field(ge=10)]
    """Fewest of each kind in a language; one with fewer has no models."""
    characters: Annotated[int, Field(ge=100)]
    """Of the beginning of a text: what the model reads."""
    min_precision: Annotated[float, Field(ge=0, le=1)]
    """Least share of good ones among the texts of the other half that score above 0.5, as many good as bad; below it the stage stops."""
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
    half: int
    line: str
    """What a model reads of it."""


def run(
    store: Store,
    recipe: str,
    config: QualityModelConfig,
    inputs: Mapping[str, Manifest],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Train on the documents of the input "extract", the labelled texts of "labels", or both.

    `info`: languages, by each its number of texts, and precision, recall, accuracy, AUC of the scores by the models that have not learnt them; `metrics`, the same flat. EmptyError where no language has
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
        halves = _balanced([e for e in found if e.language == language], config, books)
        judged: list[tuple[Example, float]] = []
        for half, train in enumerate(halves):
            others, model = halves[1 - half], work.dir / f"model-{language}-{half}.bin"
            judged += zip(others, _train(work, config, language, train, others, model), strict=True)
            made.append((model.name, None))
            work.progress(len(made), 2 * len(config.languages), "models")
        if judged:
            about[language] = {"texts": len(judged)} | metrics([e.good for e, _ in judged], [score for _, score in judged])
        rows += [{"id": e.id, "language": language, "good": e.good, "half": e.half, "score": score} for e, score in judged]
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
            yield from _example(row["id"], row["text"], kinds[row["source"]], half_of(row), config, books)


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
            yield from _example(f"{file.path}:{number}", row["text"], label, _half(text_hash(row["text"])), config, books)
        if not good_ones:
            raise InputError(
                f"{file.path} of {manifest.address} has no line with a text and a label that is one of {', '.join(LABELS)}. Mend it, or leave it out."
            )


def _example(id_: str, text: str, good: bool, half: int, config: QualityModelConfig, books: Counter[str]) -> Iterator[Example]:
    language = detect(text)[0]
    line = features(text, config.characters)
    if language not in config.languages or not line:
        books["language" if line else "empty"] += 1
        return
    yield Example(id_, language, good, _place(id_), half, line)


def half_of(row: Mapping[str, Any]) -> int:
    """The half that a document, as it left extract, is in: that of its site for a crawled page, else that of its text."""
    return _half(row["domain"] if row["source"] == "commoncrawl" else row["text_hash"])


def _half(name: str) -> int:
    return _place(f"half {name}") & 1


def _balanced(examples: Sequence[Example], config: QualityModelConfig, books: Counter[str]) -> list[list[Example]]:
    """Both halves of one language's examples, as many good as bad in each, in the order of their hashes; none where there are too few."""
    halves = []
    for half in (0, 1):
        good, bad = (
            sorted((e for e in examples if (e.half, e.good) == (half, kind)), key=lambda e: (e.place, e.id)) for kind in (True, False)
        )
        count = min(len(good), len(bad))
        halves.append(sorted([*good[:count], *bad[:count]], key=lambda e: (e.place, e.id)))
    if sum(map(len, halves)) < 2 * config.min_documents or not all(halves):
        books["few_documents"] += len(examples)
        return []
    books["surplus"] += len(examples) - sum(map(len, halves))
    return halves


def _place(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def features(text: str, characters: int) -> str:
    """What a model reads of a text: one line of lower-case words and signs with spaces between, digits as 0, Chinese and Japanese by the character."""
    found = CJK.sub(lambda run: f" {' '.join(run[0])} ", re.sub(r"\d", "0", normalise(text[:characters])))
    return " ".join(TOKEN.findall(found))


def _train(
    work: Work, config: QualityModelConfig, language: str, train: Sequence[Example], others: Sequence[Example], model: Path
) -> list[float]:
    """Make a model, or find it made by a run that was killed afterwards. Returns the scores of the others."""
    texts, fresh = work.scratch / f"{model.stem}.txt", work.scratch / model.name
    if model.exists():
        return _scores(model, others)
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
        scores = _scores(fresh, others)
        precision = metrics([e.good for e in others], scores)["precision"]
        if np.isfinite(scores).all() and precision >= config.min_precision:
            with open(fresh, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(fresh, model)
            return scores
        said = f"of {len(others)} unseen texts those that it calls good are so with precision {precision:.3f}, below quality_model.min_precision {config.min_precision}"
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
    """The models of a manifest by language and half, from files that the store has verified."""

    def __init__(self, paths: Mapping[str, str], characters: int):
        self.characters = characters
        self._models = {language: load(Path(path)) for language, path in paths.items()}

    def score(self, text: str, language: str, half: int) -> float | None:
        """Likeness to the good texts in [0, 1] by the model of the other half; None for a language without models."""
        model = self._models.get(f"{language}-{1 - half}")
        return None if model is None else _score(model, features(text, self.characters))


def of_manifest(store: Store, manifest: Manifest) -> dict[str, Any]:
    """What a process needs to score texts: verified paths by language and half, and how much of a text is read. Plain JSON, for `shared`."""
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
