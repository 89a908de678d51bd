"""The model that a server answers with, and its exchange for another while it runs.

    serving = Serving(find, slots=16, waiting=64)     # find() -> Found: what is wanted now (an alias may have moved)
    serving.current.engine.submit(…)
    serving.close()

A thread asks `find` every few seconds. What is new is loaded beside the old and proves itself: the engine's greedy tokens are those of
model/generate.py for fixed prompts in both languages. Then new requests go to it, while those under way end on the old one. A version that fails is
refused with its reason, once, and the old one keeps serving; moving the alias back is a roll-back like any other move.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from deploy.batching import Engine, Request, collected
from deploy.found import Found
from model import families, generate, tokenizer
from model.errors import IngotError, ParityError
from model.transformer import Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LOG = logging.getLogger("ingot.serve")
PROMPTS = ("What is a lighthouse?", "什么是灯塔？")
ROWS = 16
"""For which matrices are laid out."""
TOKENS = 16
"""Compared of each."""
APART = 1e-2
"""Greatest difference of a logit that another layout of the matrices may make."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer; `engine` only of a decoder."""

    found: Found
    model: Transformer
    tokenizer: "Tokenizer"
    engine: Engine | None


def load(found: Found, slots: int, waiting: int) -> Loaded:
    """Read a model and prove it. Raises ParityError where the engine disagrees with generate, and what the files raise."""
    folder = found.folder()
    model = families.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    words = tokenizer.load(folder)
    if model.config.kind != "decoder" or model.config.labels:
        return Loaded(found, model.eval(), words, None)
    before = _logits(model, words)
    pack(model)
    if (apart := float((_logits(model, words) - before).abs().max())) > APART:
        raise ParityError(f"with its matrices laid out for this processor the logits are {apart:.2g} off: this model is not served")
    engine = Engine(model, words, slots, max(waiting, len(PROMPTS)))
    try:
        prove(engine)
    except BaseException:
        engine.close()
        raise
    return Loaded(found, model, words, engine)


class Packed(nn.Module):
    """A linear layer whose matrix is laid out as oneDNN reads it best, once: half the time for sixteen rows, where torch's own would lay it out anew."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")


def pack(model: Transformer) -> None:
    """Lay out the matrices of a model in place, on a CPU and in fp32, where torch has oneDNN."""
    weight = model.embed.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child))


def _logits(model: Transformer, words: "Tokenizer") -> torch.Tensor:
    ids, _ = tokenizer.render([{"role": "user", "content": PROMPTS[0]}], words, answer=True)
    with generate.inference(model, words) as device:
        return model(torch.tensor([ids[-model.room :]], device=device))


def prove(engine: Engine) -> None:
    """ParityError unless the engine's greedy tokens of PROMPTS, all at once, are those of generate."""
    prompts = [
        tokenizer.render([{"role": "user", "content": text}], engine.tokenizer, answer=True)[0][-engine.room // 2 :] for text in PROMPTS
    ]
    ours = [tokens for tokens, _, _ in collected(engine, [Request(ids, TOKENS) for ids in prompts])]
    theirs = [one.ids for one in generate.generate(engine.model, engine.tokenizer, prompts, TOKENS)]
    for text, mine, truth in zip(PROMPTS, ours, theirs, strict=True):
        if mine != truth:
            raise ParityError(f"asked {text!r} the server's engine writes {mine}, generate {truth}: this model is not served")


class Serving:
    """The current model, kept up to date."""

    def __init__(self, find: Callable[[], Found], slots: int = 16, waiting: int = 64, every: float = 5.0):
        self._find, self._slots, self._waiting, self._every = find, slots, waiting, every
        self.current = load(find(), slots, waiting)
        self.refused: dict[str, str] = {}
        """What was not served, by title, and why."""
        self.unreachable = ""
        """Why the registry could not be asked last time; '' if it could."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ingot-watch", daemon=True)
        self._thread.start()

    def look(self) -> bool:
        """Ask once what is wanted, and change to it; whether anything changed."""
        try:
            found = self._find()
            self.unreachable = ""
        except Exception as error:  # a registry that is away must not end the serving
            self.unreachable = f"{type(error).__name__}: {error}"
            return False
        if found.title == self.current.found.title or found.title in self.refused:
            return False
        try:
            loaded = load(found, self._slots, self._waiting)
        except Exception as error:
            self.refused[found.title] = str(error) if isinstance(error, IngotError) else f"{type(error).__name__}: {error}"
            LOG.error("%s is refused and %s keeps serving: %s", found.title, self.current.found.title, self.refused[found.title])
            return False
        old, self.current = self.current, loaded
        LOG.info("%s serves in place of %s", found.title, old.found.title)
        if old.engine:
            old.engine.close(wait=False)
        return True

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.look()

    def close(self) -> None:
        """Stop watching; what is under way comes to its end."""
        self._stop.set()
        self._thread.join()
        if self.current.engine:
            self.current.engine.close()
