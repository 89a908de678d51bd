"""Continuous batching: requests join and leave a shared cache between decoding steps, and each gets the tokens that it would get alone.

    engine = Engine(model, tokenizer, slots=16)
    request = engine.submit(Request(ids, max_new=80), emit)      # emit(Piece) from the engine's thread; the last one says why it ended
    request.cancel(); engine.close()                             # close: what runs comes to its end, nothing new is taken

One thread computes (Orca, Yu et al. 2022): it takes waiting prompts one by one, each in a pass of its own, then decodes a token for every row at once. A
request draws from its own seed by its own count of tokens, so that neither company nor order changes a draw; logits of a row depend on the other rows
by rounding only, which can turn a choice between tokens that are as likely as each other to within it. tests/deploy/test_batching.py compares.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from model.errors import IngotError
from model.generate import check, choose, inference
from model.tokenizer import END_OF_TEXT, END_OF_TURN
from model.transformer import Slots, Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

End = Literal["stop", "length", "cancelled", "error"]


class BusyError(IngotError):
    """The queue is full, or the engine takes nothing more."""


@dataclass(frozen=True)
class Logprob:
    """ln p of a token, with those of the likeliest ones."""

    token: int
    value: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a step adds to an answer: text that can no longer change, its tokens, and at the end why it ended."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    end: End | None = None
    error: str = ""


@dataclass
class Request:
    """One answer that is wanted."""

    ids: list[int]
    """The prompt."""
    max_new: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    logprobs: int | None = None
    """With each token ln p of it and of so many of the likeliest; None: none."""
    emit: Callable[[Piece], None] = field(default=lambda piece: None)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for it any more: its row is free from the next step on."""
        self.cancelled.set()


class Engine:
    """The thread that computes, over one model."""

    def __init__(self, model: Transformer, tokenizer: "Tokenizer", slots: int = 16, waiting: int = 64):
        self.model, self.tokenizer = model, tokenizer
        self.room = model.room
        parameter = next(model.parameters())
        self._slots = Slots(model.config, slots, model.config.context, parameter.device, parameter.dtype)
        self._most, self._rows = slots, list[_Row]()
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._closed = threading.Event()
        self.steps = 0
        """Decoding steps so far."""
        self._thread = threading.Thread(target=self._run, name="ingot-engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Answers being written."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return self._queue.qsize()

    def submit(self, request: Request) -> Request:
        """Queue a request. BusyError when the queue is full or the engine closed, InputError and ConfigError for what cannot be answered."""
        check([request.ids], self.room, request.max_new, request.temperature, request.top_p)
        if self._closed.is_set():
            raise BusyError("this server is being stopped and takes no more requests")
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            raise BusyError(f"{self._queue.maxsize} requests are waiting already; try again later") from None
        return request

    def close(self, wait: bool = True) -> None:
        """Take nothing more; what is queued and running comes to its end."""
        if not self._closed.is_set():
            self._closed.set()
            threading.Thread(target=self._queue.put, args=(None,), daemon=True).start()  # there may be no place in it now
        if wait:
            self._thread.join()

    def _run(self) -> None:
        ending = False
        with inference(self.model, self.tokenizer):
            while self._rows or not ending:
                ending = self._admit(ending)
                self._leave([row for row in self._rows if row.request.cancelled.is_set()], "cancelled")
                if self._rows:
                    try:
                        self._step()
                    except Exception as error:
                        self._leave(list(self._rows), "error", f"{type(error).__name__}: {error}")

    def _admit(self, ending: bool) -> bool:
        """Begin what waits, as long as there are rows; True when nothing more will come."""
        while not ending and len(self._rows) < self._most:
            try:
                request = self._queue.get(block=not self._rows)
            except queue.Empty:
                return False
            if request is None:
                return True
            if request.cancelled.is_set():
                request.emit(Piece("", end="cancelled"))
                continue
            try:
                self._begin(request)
            except Exception as error:
                request.emit(Piece("", end="error", error=f"{type(error).__name__}: {error}"))
        return ending

    def _begin(self, request: Request) -> None:
        ids = [*self.model.soft, *request.ids]
        device = self._slots.lengths_B.device
        self._slots.begin()
        try:
            tokens_1T = torch.tensor([ids], device=device)
            hidden_1TC = self.model(tokens_1T, torch.arange(len(ids), device=device)[None], None, self._slots, hidden=True)
            logits_1V = self.model.logits(hidden_1TC[:, -1])
        except BaseException:
            self._slots.count -= 1
            raise
        self._rows.append(_Row(request, self.tokenizer, min(request.max_new, self.model.config.context - len(ids))))
        self._take([self._rows[-1]], logits_1V)

    def _step(self) -> None:
        self.steps += 1
        tokens_B1 = torch.tensor([[row.tokens[-1]] for row in self._rows], device=self._slots.lengths_B.device)
        hidden_B1C = self.model(tokens_B1, self._slots.positions(), None, self._slots, hidden=True)
        self._take(list(self._rows), self.model.logits(hidden_B1C[:, -1]))

    def _take(self, rows: list["_Row"], logits_BV: torch.Tensor) -> None:
        """Choose each row's next token, tell it, and let those go that have ended."""
        logits_BV = logits_BV[:, : self.tokenizer.get_vocab_size()].float()
        greedy = logits_BV.argmax(-1).tolist()
        for number, row in enumerate(rows):
            here_1V, wanted = logits_BV[number : number + 1], row.request
            token = greedy[number] if wanted.temperature == 0 else choose(here_1V, wanted.temperature, wanted.top_p, [row.draw()])[0]
            row.add(token, None if wanted.logprobs is None else _logprob(here_1V[0], token, wanted.logprobs))
        for row in rows:
            if row.end:
                self._leave([row], row.end)

    def _leave(self, rows: list["_Row"], end: End, error: str = "") -> None:
        for row in rows:
            number = self._rows.index(row)
            moved = self._slots.end(number)
            self._rows[number] = self._rows[moved]
            self._rows.pop()
            row.finish(end, error)


class _Row:
    """A request in its row: tokens so far, and how much of their text was told."""

    def __init__(self, request: Request, tokenizer: "Tokenizer", most: int):
        self.request, self.tokenizer, self.most = request, tokenizer, most
        self.tokens: list[int] = []
        self.end: End | None = None
        self._draws = np.random.default_rng([request.seed, 0]).random(most)
        self._text = ""
        self._told = 0
        self._half: list[int] = []
        self._fresh: list[int] = []
        self._logprobs: list[Logprob] = []

    def draw(self) -> float:
        return float(self._draws[len(self.tokens)])

    def add(self, token: int, logprob: Logprob | None) -> None:
        if token in (END_OF_TEXT, END_OF_TURN):
            self._text, self.end = self._text + self.tokenizer.decode(self._half), "stop"
            return
        self.tokens.append(token)
        self._fresh.append(token)
        self._half.append(token)
        if logprob:
            self._logprobs.append(logprob)
        more = self.tokenizer.decode(self._half)
        if not more.endswith("\ufffd"):  # else it may be half a character, which the next token completes
            self._text, self._half = self._text + more, []
        places = [place for word in self.request.stop if (place := self._text.find(word, max(0, self._told - len(word)))) >= 0]
        if places:
            self._text, self.end = self._text[: min(places)], "stop"
        elif len(self.tokens) == self.most:
            self._text, self.end = self._text + self.tokenizer.decode(self._half), "length"
        if self.end:
            return
        sure = len(self._text) - max((_overlap(self._text, word) for word in self.request.stop), default=0)
        if sure > self._told:
            self.request.emit(Piece(self._text[self._told : sure], tuple(self._fresh), tuple(self._logprobs)))
            self._told, self._fresh, self._logprobs = sure, [], []

    def finish(self, end: End, error: str) -> None:
        text = self._text if self.end else self._text + self.tokenizer.decode(self._half)
        self.request.emit(Piece(text[self._told :], tuple(self._fresh), tuple(self._logprobs), end, error))


def _overlap(text: str, word: str) -> int:
    """Characters at the text's end that could be the beginning of the word."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)


def _logprob(logits_V: torch.Tensor, token: int, count: int) -> Logprob:
    values_V = logits_V.log_softmax(-1)
    best = values_V.topk(min(count, len(values_V))) if count else None
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return Logprob(token, float(values_V[token]), top)


def collected(engine: Engine, requests: list[Request]) -> list[tuple[list[int], str, Any]]:
    """Tokens, text and end of each request, all submitted at once; waits for them."""
    pieces: list[list[Piece]] = [[] for _ in requests]
    done = [threading.Event() for _ in requests]
    for number, request in enumerate(requests):

        def emit(piece: Piece, number: int = number) -> None:
            pieces[number].append(piece)
            if piece.end:
                done[number].set()

        request.emit = emit
        engine.submit(request)
    for event in done:
        event.wait()
    return [([t for piece in one for t in piece.tokens], "".join(piece.text for piece in one), one[-1].end) for one in pieces]
