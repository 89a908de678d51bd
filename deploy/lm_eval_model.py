"""A model directory as a model of lm-evaluation-harness (EleutherAI), so that its tasks are scored by the same code as ours.

    lm_eval.simple_evaluate(Model("path/to/model"), tasks=["arc_easy"])          # `ingot lm-eval MODEL arc_easy` finds the directory

Context and continuation are encoded apart, as model/evaluate.py encodes query and choice: a shared task has the same score to the last bit. Nothing
predicts a text's first token: without a context it costs nothing, in rolling likelihoods (perplexity) as much as if all were equally likely.
"""

import math
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from model import families, generate, tokenizer
from model.evaluate import Scored, scored, windows


class Model(LM):
    """Of a decoder; on the GPU where there is one."""

    def __init__(self, directory: Path | str, batch_size: int = 32):
        super().__init__()
        self.model = families.load(directory, "cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = tokenizer.load(directory)
        self.batch_size = batch_size

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): ln p of the continuation, and whether greedy decoding would write it. A long context loses its beginning."""
        pieces: list[Scored] = []
        for context, continuation in (request.args for request in requests):
            before, ids = tokenizer.encode(self.tokenizer, context), tokenizer.encode(self.tokenizer, continuation)
            ids = ids[-self.model.room :]
            before = before[-(self.model.room - len(ids)) :] if len(ids) < self.model.room else []
            pieces.append(((*before, *ids), max(1, len(before))))
        return scored(self.model, self.tokenizer, pieces, self.batch_size)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each text: ln p of all of it, in windows that overlap by half a context."""
        pieces, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            ids = tokenizer.encode(self.tokenizer, text)
            for start, stop, first in windows(len(ids), self.model.room):
                pieces.append((tuple(ids[start:stop]), first))
                owners.append(number)
        totals = [-math.log(self.tokenizer.get_vocab_size())] * len(requests)
        for owner, (score, _) in zip(owners, scored(self.model, self.tokenizer, pieces, self.batch_size), strict=True):
            totals[owner] += score
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What is written after each context, greedily or as its settings (temperature, top_p, do_sample, max_gen_toks, until) want it."""
        return [self._written(context, dict(settings)) for context, settings in (request.args for request in requests)]

    def _written(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        most = min(int(settings.get("max_gen_toks", 256)), self.model.room - 1)
        ids = tokenizer.encode(self.tokenizer, context)[-(self.model.room - most) :]
        warm = float(settings.get("temperature", 0.0)) if settings.get("do_sample", True) else 0.0
        [made] = generate.generate(self.model, self.tokenizer, [ids], most, warm, float(settings.get("top_p", 1.0)))
        ends = [made.text.index(word) for word in ([until] if isinstance(until, str) else until) if word and word in made.text]
        return made.text[: min(ends)] if ends else made.text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, special tokens written out."""
        ids, _ = tokenizer.render(chat_history, self.tokenizer, answer=add_generation_prompt)
        return self.tokenizer.decode(ids, skip_special_tokens=False)
