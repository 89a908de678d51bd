"""A model made elsewhere as a start of ours: its tokenizer with Ingot's special tokens and new words, its rows in that order.

adopt("openai-community/gpt2", directory, tokens=("lighthouse", "灯塔"))     # directory: what families.load and tokenizer.load read
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model import families, tokenizer
from model.errors import InputError
from model.transformer import Transformer


def adopt(source: Path | str, out_dir: Path | str, tokens: Sequence[str] = (), revision: str | None = None) -> Transformer:
    """Write the model and tokenizer of a directory or hub id with rows for Ingot's special tokens and for new `tokens`; returns the model.

    All that the model knew it still computes, under other ids. Raises what families.load and tokenizer.adopt raise, InputError for a
    RoBERTa whose positions do not begin where Ingot's padding puts them.
    """
    directory = families.fetch(source, revision)
    words, rows = tokenizer.adopt(directory, tokens)
    model = families.load(directory)
    if model.config.position_offset not in (0, tokenizer.PAD + 1):
        raise InputError(f"{source} counts positions from {model.config.position_offset}; a model that is adopted counts from 0 or 2")
    rows += [None] * (tokenizer.vocab_size(words) - len(rows))
    model = extend(model, rows)
    families.save(model, model.config, model.vocab, out_dir)
    tokenizer.save(words, out_dir)
    return model


@torch.no_grad()
def extend(model: Transformer, rows: Sequence[int | None]) -> Transformer:
    """The same model with another vocabulary: row n of its embedding and output matrix is the old row rows[n], or for None the mean of those.

    A new token's logit is the mean of the kept ones, so that its probability is at most the mean of theirs, and n new tokens beside V kept
    ones take at most n / (V + n) of the whole (Hewitt 2021, "Initializing new word embeddings for pretrained language models"). Rows, states
    and so the logits of kept tokens are what they were to the bit, as far as a BLAS sums the products of a wider matrix in the same order.
    Raises InputError for a row that the model lacks.
    """
    kept = [row for row in rows if row is not None]
    if not kept or not 0 <= min(kept) <= max(kept) < model.vocab:
        raise InputError(
            f"rows must name some of the {model.vocab:,} rows of the model; they name {sorted(kept)[:1]} to {sorted(kept)[-1:]}"
        )
    places = [place for place, row in enumerate(rows) if row is not None]

    def grown(table: Tensor) -> Tensor:
        mean = table[kept].double().mean(dim=0).to(table.dtype)
        wide = mean.expand(len(rows), *mean.shape).clone()
        wide[places] = table[kept]
        return wide

    state = {name: grown(t) if name in ("embed.weight", "output.weight", "output.bias") else t for name, t in model.state_dict().items()}
    with torch.device("meta"):
        wide = Transformer(model.config, len(rows))
    wide.load_state_dict(state, assign=True)
    wide.tie()
    return wide.train(model.training)
