"""Decoding in batches with a cache of keys and values: prompts (ids) in, generations out. Greedy, or top-p sampling that a seed decides."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ConfigError, InputError, TokenizerError
from model.tokenizer import END_OF_TEXT, END_OF_TURN, PAD, render
from model.transformer import PADDING, Cache, Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt."""

    ids: list[int]
    """New token ids, without the one that stopped it."""
    text: str
    """The ids as text, special tokens left out."""
    finished: Literal["stop", "length"]
    """stop: the model ended by itself; length: max_new or the model's context ended it."""


def fitting(config: ModelConfig, vocab: int, tokenizer: "Tokenizer") -> None:
    """ConfigError for an encoder, TokenizerError if the tokenizer has ids that a model of `vocab` rows lacks."""
    if config.kind != "decoder":
        raise ConfigError("this needs a decoder, but the model's kind is encoder; give a model that predicts the next token")
    if tokenizer.get_vocab_size() > vocab:
        sizes = f"the tokenizer has {tokenizer.get_vocab_size():,} tokens, the model rows for {vocab:,}"
        raise TokenizerError(f"{sizes}; use the tokenizer that lies beside the model")


@contextmanager
def inference(model: Transformer, tokenizer: "Tokenizer") -> Iterator[torch.device]:
    """Evaluation mode without gradients for the time of a block; gives the model's device. Raises as `fitting` does."""
    fitting(model.config, model.vocab, tokenizer)
    with evaluating(model) as device:
        yield device


@contextmanager
def evaluating(model: Transformer) -> Iterator[torch.device]:
    """The same of any kind of model."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def generate(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    max_new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (END_OF_TEXT, END_OF_TURN),
) -> list[Generation]:
    """Continue every prompt by at most `max_new` tokens, all in one batch.

    temperature 0 takes the likeliest token; above, tokens are drawn from the smallest set that holds `top_p` of the probability (nucleus
    sampling, Holtzman et al. 2020). Row r draws from (seed, r) alone, whatever else is in the batch. Rows of the vocabulary that are only
    padding are never chosen. Raises InputError for an empty prompt or one that fills the context, ConfigError for settings out of bounds.
    """
    context = model.config.context
    check(prompts, model.room, max_new, temperature, top_p)
    if not prompts:
        return []
    prompts = [[*model.soft, *prompt] for prompt in prompts]
    limits = [min(max_new, context - len(prompt)) for prompt in prompts]
    longest, steps = max(map(len, prompts)), max(limits)
    with inference(model, tokenizer) as device:
        # padded on the left, so that every row's next token has the same slot
        tokens_BT = torch.tensor([[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        padding_B1 = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=device)
        slots_BT = torch.arange(longest, device=device).expand(len(prompts), -1)
        documents_BT: Tensor | None = torch.where(slots_BT < padding_B1, PADDING, 0)
        positions_BT = (slots_BT - padding_B1).clamp(min=0)
        cache = Cache(model.config, len(prompts), longest + steps, device, model.embed.weight.dtype)

        def advance(chosen: list[int] | None) -> Tensor:
            nonlocal tokens_BT, positions_BT, documents_BT
            if chosen is not None:
                tokens_BT = torch.tensor(chosen, device=device)[:, None]
                # rows that ended go on unread: their positions must stay inside a learned table
                positions_BT = (cache.length - padding_B1).clamp(max=context - 1)
                documents_BT = None
            hidden_BTC = model(tokens_BT, positions_BT, documents_BT, cache, hidden=True)
            return model.logits(hidden_BTC[:, -1])

        return write(advance, tokenizer, limits, temperature, top_p, seed, stop_ids)


def check(prompts: Sequence[Sequence[int]], room: int, max_new: int, temperature: float, top_p: float) -> None:
    """ConfigError for settings out of bounds, InputError for a prompt that is empty or leaves nothing of `room` tokens."""
    if temperature < 0 or not 0 < top_p <= 1 or max_new < 1:
        raise ConfigError(f"temperature must be ≥ 0, top_p in (0, 1], max_new ≥ 1; got {temperature}, {top_p}, {max_new}")
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) < room:
            raise InputError(f"prompt {row} has {len(prompt):,} tokens; this model takes 1 to {room - 1:,}. Give it text, or shorten it")


def write(
    advance: Callable[[list[int] | None], Tensor],
    tokenizer: "Tokenizer",
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: Sequence[int],
) -> list[Generation]:
    """Choose tokens until every row has ended, whatever computes the logits. limits: most new tokens of each row.

    advance: logits [B, V] after the prompts when it is given None, then after the token chosen for each row; rows that ended go on unread.
    """
    draws = [np.random.default_rng([seed, row]).random(max(limits)) for row in range(len(limits))]
    written: list[list[int]] = [[] for _ in limits]
    finished: list[Literal["stop", "length"] | None] = [None for _ in limits]
    chosen: list[int] | None = None
    for step in range(max(limits)):
        logits_BV = advance(chosen)[:, : tokenizer.get_vocab_size()].float()
        chosen = choose(logits_BV, temperature, top_p, [float(row[step]) for row in draws])
        for row, token in enumerate(chosen):
            if finished[row] is not None:
                continue
            if token in stop_ids:
                finished[row] = "stop"
                continue
            written[row].append(token)
            if len(written[row]) == limits[row]:
                finished[row] = "length"
        if all(finished):
            break
    return [Generation(ids, tokenizer.decode(ids), end or "length") for ids, end in zip(written, finished, strict=True)]


def chat(
    model: Transformer,
    tokenizer: "Tokenizer",
    messages: Sequence[dict[str, str]],
    max_new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Generation:
    """The assistant's next message. Raises InputError for a bad message or a conversation that fills the context."""
    prompt, _ = render(messages, tokenizer, answer=True)
    return generate(model, tokenizer, [prompt], max_new, temperature, top_p, seed)[0]


def choose(logits_BV: Tensor, temperature: float, top_p: float, draws: list[float]) -> list[int]:
    """One token a row: the likeliest, or the one at which the cumulative probability, likeliest first, passes the row's draw in [0, 1)."""
    if temperature == 0:
        return logits_BV.argmax(-1).tolist()
    # on the CPU in fp64: sums along the vocabulary must not depend on the device
    below_BV = logits_BV.double().cpu() - logits_BV.double().cpu().amax(-1, keepdim=True)  # first, so that no temperature makes it infinite
    sorted_BV, order_BV = (below_BV / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    total_BV = sorted_BV.cumsum(-1)
    nucleus_B = ((total_BV - sorted_BV) < top_p).sum(-1)
    tokens = []
    for row, draw in enumerate(draws):
        held = total_BV[row, : int(nucleus_B[row])]
        place = int(torch.searchsorted(held, draw * held[-1], right=True))
        tokens.append(int(order_BV[row, min(place, len(held) - 1)]))
    return tokens
