"""The decontaminate stage: documents that hold pieces of an evaluation set out, each removal attributed to the set and the item.

    run(store, recipe, config, {"dedup": …, "evaluation": …}, engine) -> manifest: documents- and rejects- parts, overlaps.json; info: what each set removed

overlaps.json: by set, the items that were found in any document before it was removed; the others are the clean subset of the set.

Texts are normalised as for dedup (NFKC, case-folded, Chinese made Simplified) and read as two sequences, all else left out: words (runs of letters
and digits, so that quotes and commas hide nothing) and CJK characters. Every run of `words` words, or of `characters` characters, of an item's text
is a needle. An item too short for one is a needle as a whole if it has at least `min_words` or `min_characters`, else it has none: a five-word
minimal pair must not empty the corpus. Such items are counted as `silent`.

Evaluation files are *.jsonl or *.jsonl.gz; what an item's texts are depends on its fields, see `texts`.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from model.config import STRICT
from model.errors import InputError
from tasks.corpus.document import PartWriter, read_rows
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.textnorm import CJK, normalise, simplify

STAGE = Stage("decontaminate", 3)
OVERLAPS = "overlaps.json"
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class DecontaminateConfig:
    """How much of an evaluation item a document may hold."""

    __pydantic_config__ = STRICT

    words: Annotated[int, Field(ge=2)]
    """Words in a row that count as an overlap. GPT-3 used 13 (Brown et al. 2020, appendix C)."""
    min_words: Annotated[int, Field(ge=1)]
    """Fewest words of an item that is shorter than that and then counts as a whole."""
    characters: Annotated[int, Field(ge=2)]
    """CJK characters in a row that count as an overlap; 20 say about as much as 13 English words."""
    min_characters: Annotated[int, Field(ge=1)]
    """Fewest CJK characters of an item that is shorter than that and then counts as a whole."""
    min_matches: Annotated[int, Field(ge=1)]
    """Different needles of one item that a document must hold to be removed, or all that the item has if they are fewer."""

    def __post_init__(self) -> None:
        if self.min_words > self.words or self.min_characters > self.characters:
            raise ValueError("min_words and min_characters may not exceed words and characters")


def run(
    store: Store,
    recipe: str,
    config: DecontaminateConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Remove from the input "dedup" what overlaps the files of the input "evaluation". InputError names a line that is no item."""
    return run_stage(store, STAGE, recipe, config, inputs, lambda work: _body(work, config, engine), progress, rebuild)


def _body(work: Work, config: DecontaminateConfig, engine: EngineConfig) -> Result:
    evaluation = work.inputs["evaluation"]
    files = [(f.path, str(work.store.path(evaluation, f))) for f in sorted(evaluation.files, key=lambda f: f.path)]
    sets = [pair for pair in files if set_name(pair[0]) is not None]
    needles = Needles.of(sets, config)
    parts = work.inputs["dedup"].parts()
    items = [{"path": str(work.store.path(work.inputs["dedup"], part)), "rows": part.rows, "evaluation": sets} for part in parts]
    summaries = run_ranks(work, f"{__name__}:decontaminate_rank", config, items, engine)
    hits: Counter[str] = Counter()
    overlaps: dict[str, set[str]] = {set_name(name): set() for name, _ in sets}
    for summary in summaries:
        for name, item in map(tuple, summary["info"]["items"]):
            overlaps[name].add(item)
        hits.update(summary["info"]["hits"])
    told = {name: sorted(found) for name, found in overlaps.items()}
    (work.dir / OVERLAPS).write_text(json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    found = {
        name: {"items": sum(s == name for s, _ in needles.items), "silent": needles.silent[name], "documents": hits[name]}
        for name in sorted({s for s, _ in needles.items})
    }
    made = books(summaries, evaluation=found, not_read=[name for name, _ in files if set_name(name) is None])
    return replace(made, files=[*made.files, (OVERLAPS, None)])


def decontaminate_rank(config: DecontaminateConfig, item: dict[str, Any], out: PartWriter) -> dict[str, Any]:
    """Keep or reject the rows of one part. Returns the items that were found, and how many documents each set is found in: one may hold items of several, its reason is the first's."""
    needles = _shared(tuple((name, path) for name, path in item["evaluation"]), config)
    hits: Counter[str] = Counter()
    items: set[tuple[str, str]] = set()
    for row in read_rows([Path(item["path"])]):
        found = needles.found_in(row["text"])
        hits.update({name for name, _ in found})
        items.update(found)
        if found:
            out.reject(row, f"contaminated_{found[0][0]}", found[0][1])
        else:
            out.keep(row)
    return {"hits": hits, "items": sorted(items)}


@lru_cache(maxsize=1)
def _shared(files: tuple[tuple[str, str], ...], config: DecontaminateConfig) -> "Needles":
    """One process works on many parts: build the needles once."""
    return Needles.of(files, config)


class Needles:
    """All needles of all items, looked up by their first min_words words or min_characters characters."""

    def __init__(self, config: DecontaminateConfig):
        self.config = config
        self.items: list[tuple[str, str]] = []
        """(set, item id) in the order of files and lines."""
        self.silent: Counter[str] = Counter()
        self._needed: list[int] = []
        self._words: dict[str, list[tuple[list[str], int]]] = {}
        self._characters: dict[str, list[tuple[str, int]]] = {}

    @classmethod
    def of(cls, files: Sequence[tuple[str, str]], config: DecontaminateConfig) -> "Needles":
        """Of evaluation files (name, path)."""
        made = cls(config)
        for name, path in files:
            for number, item in _read(name, Path(path)):
                made.add(set_name(name) or name, item_id(item, number), texts(item, f"{name} line {number}"))
        return made

    def add(self, name: str, item: str, texts: Sequence[str]) -> None:
        """Add one item's needles."""
        number = len(self.items)
        self.items.append((name, item))
        words: set[tuple[str, ...]] = set()
        characters: set[str] = set()
        for text in texts:
            sequence, run = sequences(text)
            words.update(tuple(piece) for piece in _pieces(sequence, self.config.words, self.config.min_words))
            characters.update(_pieces(run, self.config.characters, self.config.min_characters))
        for piece in sorted(words):
            self._words.setdefault(" ".join(piece[: self.config.min_words]), []).append((list(piece), number))
        for run in sorted(characters):
            self._characters.setdefault(run[: self.config.min_characters], []).append((run, number))
        self.silent[name] += not words and not characters
        self._needed.append(min(self.config.min_matches, len(words) + len(characters)))

    def found_in(self, text: str) -> list[tuple[str, str]]:
        """(set, item id) of the items that a text overlaps, in their order."""
        words, characters = sequences(text)
        found: dict[int, set[Any]] = {}
        size = self.config.min_words
        for at in range(len(words) - size + 1):
            for needle, item in self._words.get(" ".join(words[at : at + size]), ()):
                if words[at : at + len(needle)] == needle:
                    found.setdefault(item, set()).add(tuple(needle))
        size = self.config.min_characters
        for at in range(len(characters) - size + 1):
            for run, item in self._characters.get(characters[at : at + size], ()):
                if characters.startswith(run, at):
                    found.setdefault(item, set()).add(run)
        return [self.items[item] for item in sorted(found) if len(found[item]) >= self._needed[item]]


def sequences(text: str) -> tuple[list[str], str]:
    """A text's words and its CJK characters, normalised."""
    text = normalise(text)
    if not CJK.search(text):
        return _WORD.findall(text), ""
    text = simplify(text)
    return _WORD.findall(CJK.sub(" ", text)), "".join(CJK.findall(text))


def _pieces(sequence: Any, size: int, least: int) -> Iterator[Any]:
    """Every run of `size`, or the whole where it is shorter and has at least `least`."""
    if len(sequence) >= size:
        yield from (sequence[at : at + size] for at in range(len(sequence) - size + 1))
    elif len(sequence) >= least:
        yield sequence


def texts(item: Mapping[str, Any], where: str) -> list[str]:
    """What of an evaluation item must not be in the corpus.

    sentence_good, sentence_bad (BLiMP): both; query, choices: the query, and the query with each choice; context with continuation or answer:
    the context, and both together; text: itself. Raises InputError for an item with none of these.
    """
    match item:
        case {"sentence_good": str(good), "sentence_bad": str(bad)}:
            return [good, bad]
        case {"query": str(query), "choices": [*choices]}:
            return [query, *(f"{query} {choice}" for choice in choices)]
        case {"context": str(context), "continuation": str(rest)} | {"context": str(context), "answer": str(rest)}:
            return [context, f"{context} {rest}"]
        case {"context_options": [*contexts], "continuation": str(rest)}:
            return [f"{context} {rest}" for context in contexts]
        case {"text": str(text)}:
            return [text]
    raise InputError(
        f"{where} is no evaluation item: its fields are {', '.join(sorted(item)) or 'none'}; it needs sentence_good and sentence_bad, "
        "query and choices, context and continuation, or text. Mend the file, or leave it out of the recipe's evaluation paths."
    )


def item_id(item: Mapping[str, Any], line: int) -> str:
    """Its own id, BLiMP's pairID, or else its line."""
    return next((str(item[name]) for name in ("id", "pairID") if item.get(name) is not None), f"line {line}")


def _read(name: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, item) of a JSON-lines file."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if name.endswith(".gz") else open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise InputError(f"{name} line {number} is a JSON {type(item).__name__}, not an object. Mend the evaluation file.")
                    yield number, item
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{name} cannot be read as JSON lines: {error}. Mend or replace the evaluation file.") from None


def set_name(name: str) -> Any:
    """The set's name in reasons: the file's, lower-cased, other signs as _; None for what is no JSON-lines file."""
    base = PurePosixPath(name).name.lower().removesuffix(".gz")
    return re.sub(r"[^a-z0-9]+", "_", base.removesuffix(".jsonl")).strip("_") if base.endswith(".jsonl") else None
