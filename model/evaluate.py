"""Scores of a model: (model, tokenizer, items) in, a plain dict of named floats out. Works on CPU and CUDA, in batches.

    bits_per_byte(model, tokenizer, [{"text": …, "language": "en"}, …])    bits_per_byte, bits_per_byte/en …, also by source
    minimal_pairs(model, tokenizer, {"blimp": read_pairs(path)})           minimal_pairs, minimal_pairs/blimp …
    multiple_choice(model, tokenizer, {"copa": read_choices(path)})        choice/copa, choice_norm/copa …; with shots=3 choice_3shot/copa …
    similarity(model, tokenizer, {"stsb": read_similarities(path)})        similarity, similarity/stsb …

Under a name stand `…/n` (items counted), `…/stderr` (standard error of an accuracy) and `…/set_aside` (items that do not fit the model). What each
item contributes goes to `found`, where one is given: two models that were asked the same are compared item by item.

Training masks attention at document borders, so nothing predicts a document's first token: in bits per byte it is charged as uniform over
the vocabulary (which keeps them a true code length), and in comparisons it cancels out.
"""

import csv
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from model.config import STRICT, resource
from model.errors import EmptyError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from model.transformer import Transformer

ITEM = "item"
"""Key under which a row that was read keeps which item it is: its id, BLiMP's pairID, or its line (line 3)."""
Scored = tuple[tuple[int, ...], int]
"""Ids and the index (≥ 1) of the first one whose probability counts."""


class Item(NamedTuple):
    """What one item contributes to a score, which is Σ value / Σ size over its items; of `similarity` the cosine, and the true score as size."""

    score: str
    item: str
    value: float
    size: float


@dataclass(frozen=True)
class EvaluateConfig:
    """How a model is scored; what it is scored on are inputs of the stage."""

    __pydantic_config__ = STRICT

    samples: tuple[str, ...]
    """Prompts that the model continues or answers, for people to read."""
    max_new: Annotated[int, Field(ge=1)]
    """Most tokens of one sample."""
    shots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Solved items before each question of multiple choice: [0, 3] asks without any and with three, the first of each file, which are then not scored."""
    batch: Annotated[int, Field(ge=1)] = resource()
    """Sequences in one forward pass."""


def bits_per_byte(
    model: "Transformer", tokenizer: "Tokenizer", documents: Iterable[Mapping[str, Any]], batch: int = 8, found: list[Item] | None = None
) -> dict[str, float]:
    """-Σ log2 p over the tokens of all documents, END_OF_TEXT included, divided by their UTF-8 bytes; also for each `language` and `source` given.

    A document longer than the context is read in windows that overlap: from the second on, each adds half a context of new tokens, seen
    behind the other half. Raises EmptyError if no document has text.
    """
    from model.tokenizer import encode_documents

    bits: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    rows = iter(documents)
    while group := list(islice(rows, 64 * batch)):  # bounds memory: documents may be many
        group = [row for row in group if row["text"]]
        pieces: list[Scored] = []
        owners: list[int] = []
        for owner, ids in enumerate(encode_documents(tokenizer, [row["text"] for row in group])):
            for start, stop, first in windows(len(ids), model.room):
                pieces.append((tuple(ids[start:stop].tolist()), first))
                owners.append(owner)
        nats = [math.log(tokenizer.get_vocab_size())] * len(group)
        for owner, score in zip(owners, log_likelihoods(model, tokenizer, pieces, batch), strict=True):
            nats[owner] -= score
        for row, cost in zip(group, nats, strict=True):
            kinds = [row[field] for field in ("language", "source") if row.get(field)]
            for name in ("bits_per_byte", *(f"bits_per_byte/{kind}" for kind in kinds)):
                one = Item(name, row.get(ITEM, ""), cost / math.log(2), len(row["text"].encode()))
                bits[name] += one.value
                size[name] += one.size
                count[name] += 1
                if found is not None:
                    found.append(one)
    if not size:
        raise EmptyError("bits per byte: no held-out document has text. Look at the validation split of encode")
    return {name: bits[name] / size[name] for name in bits} | {f"{name}/n": float(count[name]) for name in count}


def minimal_pairs(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    batch: int = 32,
    found: list[Item] | None = None,
) -> dict[str, float]:
    """Share of pairs whose acceptable sentence is the more probable one (BLiMP, Warstadt et al. 2020); equal ones count as wrong.

    `items`: a name (of a file) → rows with sentence_good and sentence_bad. The score without a name is the mean over names.
    """
    from model.tokenizer import encode

    result: dict[str, float] = {}
    for name, rows in items.items():
        pairs = [(row, [tuple(encode(tokenizer, row[key])) for key in ("sentence_good", "sentence_bad")]) for row in rows]
        fitting = [(row, pair) for row, pair in pairs if all(0 < len(ids) <= model.room for ids in pair)]
        scores = log_likelihoods(model, tokenizer, [(ids, 1) for _, pair in fitting for ids in pair], batch)
        right = [good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
        result |= _accuracy(f"minimal_pairs/{name}", right, len(pairs) - len(fitting), [row for row, _ in fitting], found)
    return result | _mean("minimal_pairs", result, items)


def multiple_choice(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    batch: int = 32,
    shots: int = 0,
    found: list[Item] | None = None,
) -> dict[str, float]:
    """Accuracy: the gold choice must be strictly the most probable after the query, by its summed log-likelihood (choice/…) and by that sum
    divided by the choice's UTF-8 bytes (choice_norm/…); beside them the accuracy of guessing (choice/…/chance).

    `items`: a name (of a file) → rows with query, choices and gold. With `shots` each query comes after the first rows of its file with their gold
    choices, a blank line between; these rows are not scored, and names begin with choice_3shot. What is longer than the context loses whole shots,
    then the query's beginning. EmptyError for a file that has no row beyond its shots.
    """
    result: dict[str, float] = {}
    plain_name, norm_name = (f"{kind}_{shots}shot" if shots else kind for kind in ("choice", "choice_norm"))
    for name, rows in items.items():
        if len(rows) <= shots:
            raise EmptyError(f"{name}: {len(rows)} items are too few for {shots} shots and a question. Give more, or fewer evaluate.shots")
        solved = [f"{_asked(row)} {row['choices'][row['gold']]}\n\n" for row in rows[:shots]]
        questions = [(row, _question(row, tokenizer, model.room, solved)) for row in rows[shots:]]
        fitting = [(row, pieces) for row, pieces in questions if pieces]
        scores = iter(log_likelihoods(model, tokenizer, [piece for _, pieces in fitting for piece in pieces], batch))
        plain, normed, chance = [], [], []
        for row, pieces in fitting:
            sums = list(islice(scores, len(pieces)))
            plain.append(_wins(sums, row["gold"]))
            normed.append(_wins([total / len(text.encode()) for total, text in zip(sums, row["choices"], strict=True)], row["gold"]))
            chance.append(1 / len(pieces))
        aside, kept = len(questions) - len(fitting), [row for row, _ in fitting]
        result |= _accuracy(f"{plain_name}/{name}", plain, aside, kept, found)
        result |= _accuracy(f"{norm_name}/{name}", normed, aside, kept, found)
        result[f"{plain_name}/{name}/chance"] = sum(chance) / len(chance)
    return result | _mean(plain_name, result, items) | _mean(norm_name, result, items)


def similarity(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    batch: int = 32,
    found: list[Item] | None = None,
) -> dict[str, float]:
    """Spearman correlation, over pairs of texts, of the cosine of their vectors with the likeness that people gave them (STS-B, Cer et al. 2017).

    `items`: a name (of a file) → rows with text_a, text_b and score. A text's vector is the mean of its tokens' states; what exceeds the context is
    cut off. The score without a name is the mean over names.
    """
    from scipy.stats import spearmanr

    result: dict[str, float] = {}
    for name, rows in items.items():
        vectors = embeddings(model, tokenizer, [row[key] for row in rows for key in ("text_a", "text_b")], batch)
        cosines = [float(a @ b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        truth = [float(row["score"]) for row in rows]
        rank = float(spearmanr(cosines, truth).statistic) if len(set(cosines)) > 1 else 0.0
        # Bonett and Wright 2000
        error = math.sqrt((1 + rank**2 / 2) / (len(rows) - 3)) * (1 - rank**2) if len(rows) > 3 else 1.0
        result |= {f"similarity/{name}": rank, f"similarity/{name}/n": float(len(rows)), f"similarity/{name}/stderr": error}
        if found is not None:
            found += [Item(f"similarity/{name}", row.get(ITEM, ""), c, t) for row, c, t in zip(rows, cosines, truth, strict=True)]
    return result | _mean("similarity", result, items)


def embeddings(model: "Transformer", tokenizer: "Tokenizer", texts: Sequence[str], batch: int = 32) -> "Tensor":
    """Unit vectors of texts, the mean of their tokens' last states, fp32, [N, C] on the CPU. What exceeds the context is cut off."""
    import torch
    import torch.nn.functional as F

    from model.generate import evaluating
    from model.objectives import pool
    from model.tokenizer import PAD, encode
    from model.transformer import PADDING

    rows = [[*model.soft, *encode(tokenizer, text)[: model.room]] or [PAD] for text in texts]
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    vectors_NC = torch.empty((len(rows), model.config.width))
    with evaluating(model) as device:
        for begin in range(0, len(order), batch):
            here = order[begin : begin + batch]
            length = len(rows[here[0]])
            tokens_BT = torch.tensor([[*rows[n], *[PAD] * (length - len(rows[n]))] for n in here], device=device)
            documents_BT = torch.tensor([[0] * len(rows[n]) + [PADDING] * (length - len(rows[n])) for n in here], device=device)
            pooled_BC = pool(model(tokens_BT, documents_BT=documents_BT, hidden=True).float(), documents_BT, "mean")
            vectors_NC[here] = F.normalize(pooled_BC, dim=-1).cpu()
    return vectors_NC


def samples(
    model: "Transformer", tokenizer: "Tokenizer", prompts: Sequence[str], max_new: int, as_chat: bool = False
) -> list[dict[str, str]]:
    """Greedy continuations of the prompts, or answers to them: rows of prompt, text and finished (stop or length)."""
    from model.generate import generate
    from model.tokenizer import encode, render

    ids = [render([{"role": "user", "content": p}], tokenizer, answer=True)[0] if as_chat else encode(tokenizer, p) for p in prompts]
    written = generate(model, tokenizer, ids, max_new)
    return [{"prompt": p, "text": one.text, "finished": one.finished} for p, one in zip(prompts, written, strict=True)]


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first): every token but the document's first is scored once, in [start + first, stop) of its window."""
    end = min(length, context)
    yield 0, end, 1
    while end < length:
        stop = min(end + context // 2, length)
        yield stop - context, stop, context - (stop - end)
        end = stop


def log_likelihoods(model: "Transformer", tokenizer: "Tokenizer", sequences: Sequence[Scored], batch: int) -> list[float]:
    """Σ ln p(ids[t] | ids[:t]) for t ≥ first, for each (ids, first) in order. Sequences are at most a context long."""
    return [score for score, _ in scored(model, tokenizer, sequences, batch)]


def scored(model: "Transformer", tokenizer: "Tokenizer", sequences: Sequence[Scored], batch: int) -> list[tuple[float, bool]]:
    """The same, and whether each of these tokens is the likeliest one.

    Equal sequences are computed once: in different batches they could differ by rounding, and a tie would be decided by it.
    """
    import torch
    import torch.nn.functional as F

    from model.generate import inference
    from model.tokenizer import PAD

    scores: dict[Scored, tuple[float, bool]] = {}
    sequences = [((*model.soft, *ids), first + len(model.soft)) for ids, first in sequences]
    ordered = sorted(set(sequences), key=lambda one: (-len(one[0]), one))
    with inference(model, tokenizer) as device:
        for begin in range(0, len(ordered), batch):
            group = ordered[begin : begin + batch]
            length = len(group[0][0])
            # padded on the right: a causal model's earlier tokens do not see it
            tokens_BT = torch.tensor([[*ids, *[PAD] * (length - len(ids))] for ids, _ in group], device=device)
            places_T = torch.arange(1, length, device=device)
            bounds_B2 = torch.tensor([(first, len(ids)) for ids, first in group], device=device)
            counted_BT = (places_T >= bounds_B2[:, :1]) & (places_T < bounds_B2[:, 1:])
            if length < 2:
                scores |= dict.fromkeys(group, (0.0, True))
                continue
            hidden_NC = model(tokens_BT, hidden=True)[:, :-1][counted_BT]
            targets_N = tokens_BT[:, 1:][counted_BT]
            # in slices: logits of a whole batch over a large vocabulary would take gigabytes
            slices = zip(hidden_NC.split(1024), targets_N.split(1024), strict=True)
            found = []
            for h_NC, t_N in slices:
                logits_NV = model.logits(h_NC).float()
                found.append(torch.stack((F.cross_entropy(logits_NV, t_N, reduction="none"), logits_NV.argmax(-1) == t_N), dim=1))
            parts = torch.cat(found).double().cpu().split(counted_BT.sum(1).tolist())
            scores |= {one: (-float(part[:, 0].sum()), bool(part[:, 1].all())) for one, part in zip(group, parts, strict=True)}
    return [scores[one] for one in sequences]


def _asked(row: Mapping[str, Any]) -> str:
    """A row's query in llm-foundry's format: one that says "Question:" is followed by "Answer:" on a line of its own, others directly by the choice."""
    query = row["query"].rstrip()
    return f"{query}\nAnswer:" if query.startswith("Question:") else query


def _question(row: Mapping[str, Any], tokenizer: "Tokenizer", context: int, solved: Sequence[str] = ()) -> list[Scored]:
    """Solved items, query and each choice as ids; empty if a choice alone does not fit."""
    from model.tokenizer import encode

    choices = [encode(tokenizer, f" {choice}") for choice in row["choices"]]
    longest = max(map(len, choices))
    if longest >= context:
        return []
    query_ids = encode(tokenizer, "".join(solved) + _asked(row))
    while solved and len(query_ids) + longest > context:
        solved = solved[1:]
        query_ids = encode(tokenizer, "".join(solved) + _asked(row))
    pieces: list[Scored] = []
    for ids in choices:
        before = query_ids[-(context - len(ids)) :]
        pieces.append(((*before, *ids), max(1, len(before))))
    return pieces


def _wins(scores: Sequence[float], gold: int) -> bool:
    return all(scores[gold] > score for place, score in enumerate(scores) if place != gold)


def _accuracy(
    name: str, right: Sequence[bool], aside: int, rows: Sequence[Mapping[str, Any]], found: list[Item] | None
) -> dict[str, float]:
    if not right:
        raise EmptyError(f"{name}: none of {aside:,} items fits the model's context. Give a set of shorter items or a longer context")
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / len(right))
    if found is not None:
        found += [Item(name, row.get(ITEM, ""), float(one), 1.0) for row, one in zip(rows, right, strict=True)]
    return {name: share, f"{name}/n": float(len(right)), f"{name}/stderr": error, f"{name}/set_aside": float(aside)}


def _mean(name: str, result: Mapping[str, float], items: Mapping[str, Any]) -> dict[str, float]:
    if not items:
        return {}
    share = sum(result[f"{name}/{one}"] for one in items) / len(items)
    error = math.sqrt(sum(result[f"{name}/{one}/stderr"] ** 2 for one in items)) / len(items)
    return {name: share, f"{name}/stderr": error, f"{name}/n": sum(result[f"{name}/{one}/n"] for one in items)}


def read_pairs(path: Path | str) -> list[dict[str, Any]]:
    """Rows of a BLiMP file (.jsonl or .jsonl.gz). Raises InputError naming file and line of what is none."""
    return list(_rows(Path(path), {"sentence_good": str, "sentence_bad": str}))


def read_choices(path: Path | str) -> list[dict[str, Any]]:
    """Rows of an llm-foundry multiple-choice file (.jsonl or .jsonl.gz). Raises InputError naming file and line of what is none."""
    rows = []
    for number, row in enumerate(_rows(Path(path), {"query": str, "choices": list, "gold": int}), 1):
        choices = row["choices"]
        if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices) or not 0 <= row["gold"] < len(choices):
            raise InputError(
                f"{path} item {number}: choices must be two texts or more and gold the index of one, not {row['gold']!r} of {choices!r}"
            )
        rows.append(row)
    return rows


def read_similarities(path: Path | str) -> list[dict[str, Any]]:
    """Pairs of texts with a score: rows of text_a, text_b and score (.jsonl, .jsonl.gz), or the three as columns without a head (.csv, STS-B's own).

    Raises InputError naming file and line of what is none.
    """
    path = Path(path)
    if path.suffix != ".csv":
        return list(_rows(path, {"text_a": str, "text_b": str, "score": float}))
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            try:
                text_a, text_b, score = row
                rows.append({"text_a": text_a, "text_b": text_b, "score": float(score), ITEM: f"line {number}"})
            except ValueError:
                raise InputError(f"{path} row {number}: it must be two texts and a number, not {row!r}") from None
    if not rows:
        raise InputError(f"{path} is empty. Mend the file or take it out of the evaluation")
    return rows


def read_documents(path: Path | str) -> list[dict[str, Any]]:
    """Held-out documents, rows of text and maybe language (.jsonl or .jsonl.gz). Raises InputError naming file and line of what is none."""
    return list(_rows(Path(path), {"text": str}))


def _rows(path: Path, fields: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                wrong = [
                    name
                    for name, kind in fields.items()
                    if not isinstance(row, dict)
                    or type(row.get(name)) not in ((int, float) if kind is float else (kind,))
                    or row[name] == ""
                ]
                if wrong:
                    raise InputError(
                        f"{path} line {number}: {', '.join(wrong)} missing, empty or of a wrong type; needed: {', '.join(fields)}"
                    )
                name = next((str(row[key]) for key in ("id", "pairID") if row.get(key) is not None), f"line {number}")
                yield row | {ITEM: name}
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} line {number}: {error}. Mend the file or take it out of the evaluation") from None
    if not number:
        raise InputError(f"{path} is empty. Mend the file or take it out of the evaluation")
