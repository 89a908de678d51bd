"""What models that score labels or spans say of texts.

scores_NL = classify(model, tokenizer, rows)               # rows of text and maybe text_b → a score for each of model.config.labels
answers = extract(model, tokenizer, rows, length)          # rows of context and question → the likeliest span of each context
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.errors import InputError
from model.finetune import sequence, windows
from model.tokenizer import END_OF_TEXT, PAD
from model.transformer import PADDING, Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ANSWER = 100
"""Most tokens of an extracted answer. SQuAD's readers have 30, but a third of CMRC's answers are whole sentences."""


def classify(model: Transformer, tokenizer: "Tokenizer", rows: Sequence[Mapping[str, Any]], batch: int = 32) -> np.ndarray:
    """Log-probabilities of the labels, [N, L]. A text longer than the context is judged by its beginning. InputError for another model."""
    if model.config.head != "labels":
        raise InputError(f"a model with head {model.config.head} does not classify; fine-tune one on examples of text and label")
    kind, room = model.config.kind, model.room
    texts = [sequence(tokenizer, kind, [text for text in (row["text"], row.get("text_b")) if text]) for row in rows]
    texts = [ids if len(ids) <= room else [*ids[: room - 1], END_OF_TEXT] for ids in texts]
    places = [0 if kind == "encoder" else len(model.soft) + len(ids) - 1 for ids in texts]
    scores = _scores(model, texts, batch)
    picked = [score_TL[place].log_softmax(-1) for score_TL, place in zip(scores, places, strict=True)]
    return torch.stack(picked).numpy() if picked else np.zeros((0, len(model.config.labels)), np.float32)


def extract(
    model: Transformer, tokenizer: "Tokenizer", rows: Sequence[Mapping[str, Any]], length: int, batch: int = 32
) -> list[dict[str, Any]]:
    """For each row the span whose start and end scores have the greatest sum, at most ANSWER tokens: {"text", "start", "score"}.

    A context is read in windows of `length` tokens. InputError for a model without span scores.
    """
    if model.config.head != "spans":
        raise InputError(f"a model with head {model.config.head} does not extract; fine-tune one on examples of context and question")
    found = [windows(tokenizer, model.config.kind, row["question"], row["context"], length - model.config.prompt) for row in rows]
    scores = iter(_scores(model, [window.ids for each in found for window in each], batch))
    answers = []
    for row, each in zip(rows, found, strict=True):
        best: dict[str, Any] = {"text": "", "start": 0, "score": -np.inf}
        for window in each:
            begin, count = window.begin + len(model.soft), len(window.offsets)
            spans_T2 = next(scores)[begin : begin + count]
            if not count:
                continue
            sums_TT = spans_T2[:, None, 0] + spans_T2[None, :, 1]
            places_T = torch.arange(count)
            ahead_TT = places_T[None, :] - places_T[:, None]
            sums_TT = sums_TT.masked_fill((ahead_TT < 0) | (ahead_TT >= ANSWER), -torch.inf)
            first, last = divmod(int(sums_TT.argmax()), count)
            if float(sums_TT[first, last]) > best["score"]:
                start, stop = window.offsets[first][0], window.offsets[last][1]
                best = {"text": row["context"][start:stop].strip(), "start": start, "score": float(sums_TT[first, last])}
        answers.append(best)
    return answers


@torch.inference_mode()
def _scores(model: Transformer, texts: Sequence[Sequence[int]], batch: int) -> list[torch.Tensor]:
    """Scores of each token of each text, [T, labels] each, fp32 on the CPU; texts of similar length are computed together."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    scores: dict[int, torch.Tensor] = {}
    for begin in range(0, len(order), batch):
        group = order[begin : begin + batch]
        rows = [[*model.soft, *texts[number]] for number in group]
        longest = len(rows[0])
        tokens_BT = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in rows], device=device)
        documents_BT = torch.tensor([[0] * len(ids) + [PADDING] * (longest - len(ids)) for ids in rows], device=device)
        found_BTL = model(tokens_BT, documents_BT=documents_BT).float().cpu()
        scores |= {number: found_BTL[row, : len(rows[row])] for row, number in enumerate(group)}
    model.train(training)
    return [scores[number] for number in range(len(texts))]
