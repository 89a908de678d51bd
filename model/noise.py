"""What denoising objectives do to rows: BERT's masking, of tokens or whole words, on an encoder or beside causal rows; T5's spans on a decoder. No torch.

    noise = Masking(objective, tokenizer)        # or Cutting(objective), Mixing(objective, tokenizer)
    corrupted = noise(batch, keys_B, done)       # done: share of the training that is done

A row's noise is a function of its key alone, through splitmix64 and not through a generator whose draws may change. Specials and padding are
never hidden. Shape suffixes: B rows, L tokens, N tokens of a piece, W words.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from model.batches import NO_LOSS, PADDING, Batch, mixed
from model.config import Masked, Mixed, Spans
from model.tokenizer import END_OF_TEXT, MASK, PAD, SPECIALS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HIDE, BECOME, WHICH, BOTH, CUT = range(5)
"""Streams of noise: which tokens are hidden, what becomes of each, by which other it is replaced, which rows see both ways, where spans are cut."""
REMEMBERED = 1 << 16
"""Chinese clauses whose words are kept, some 50 MB: laws and later epochs repeat them."""
CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
HAN = re.compile(f"[{CHINESE}]+")
WORDS = re.compile(rf" ?[^\W{CHINESE}]+|[{CHINESE}]+|.", re.DOTALL)


def uniform(key: int | np.ndarray, count: int, stream: int) -> np.ndarray:
    """`count` numbers in [0, 1) of a key, float64."""
    places = (np.arange(count, dtype=np.uint64) + np.uint64(stream << 40)) * np.uint64(0x9E3779B97F4A7C55)
    return (mixed(mixed(np.uint64(key) ^ places) + np.uint64(key)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Words:
    """Where words begin in a row of tokens. A word is a run of letters and digits with the space before it; of Chinese, what jieba cuts; any other
    character is one of its own."""

    def __init__(self, tokenizer: "Tokenizer"):
        import jieba

        jieba.setLogLevel(logging.WARNING)
        self._cut = lru_cache(maxsize=REMEMBERED)(jieba.lcut)
        byte = {character: bytes([number]) for number, character in enumerate(_alphabet())}
        names = [tokenizer.id_to_token(number) or "" for number in range(tokenizer.get_vocab_size())]
        if type(tokenizer.model).__name__ == "WordPiece":  # ## continues a word, anything else but a Chinese character stood behind a space
            self._pieces = [(n.removeprefix("##") if n.startswith("##") or HAN.match(n) else f" {n}").encode() for n in names]
        else:
            self._pieces = [b"".join(byte.get(c, c.encode()) for c in n) for n in names]

    def begins(self, tokens_N: np.ndarray) -> np.ndarray:
        """Whether each token begins a word, bool [N]; one that a word begins within does not."""
        pieces = [self._pieces[token] for token in tokens_N.tolist()]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")
        words = (word for run in WORDS.findall(text) for word in (self._cut(run) if HAN.match(run) else (run,)))
        begins, end = {0}, 0
        for word in words:
            end += len(word.encode("utf-8", "surrogateescape"))
            begins.add(end)
        return np.array(
            [place - len(piece) in begins for place, piece in zip(np.cumsum(list(map(len, pieces))).tolist(), pieces, strict=True)]
        )


class Masking:
    """Some tokens of each row hidden, which become its only targets, each at its own place (BERT), or with `shifted` at the place before it."""

    def __init__(self, objective: Masked, tokenizer: "Tokenizer", shifted: bool = False):
        self._objective, self._shifted = objective, shifted
        self._ids = tokenizer.get_vocab_size()
        self._tokenizer = tokenizer

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer)

    def __call__(self, batch: Batch, keys_B: np.ndarray, done: float) -> Batch:
        o = self._objective
        rate = o.rate + (o.last_rate - o.rate) * done
        tokens_BL, targets_BL = batch.tokens.copy(), np.full_like(batch.targets, NO_LOSS)
        for row, key in enumerate(keys_B):
            tokens_L = batch.tokens[row]
            can = (tokens_L >= len(SPECIALS)) & (batch.documents[row] != PADDING)
            if self._shifted:  # nothing stands before a document's first token
                can &= batch.positions[row] > 0
            hidden = self._hidden(tokens_L, can, rate, key)
            fate = uniform(key, len(hidden), BECOME)
            others = len(SPECIALS) + (uniform(key, len(hidden), WHICH) * (self._ids - len(SPECIALS))).astype(np.int64)
            tokens_BL[row, hidden] = np.where(fate < o.masked, MASK, np.where(fate < o.masked + o.random, others, tokens_L[hidden]))
            targets_BL[row, hidden - self._shifted] = tokens_L[hidden]
        return Batch(tokens_BL, targets_BL, batch.documents, batch.positions, batch.ahead)

    def _hidden(self, tokens_L: np.ndarray, can_L: np.ndarray, rate: float, key: np.ndarray) -> np.ndarray:
        """Places of what is hidden: `rate` of those that can be, at least one; of whole words as many as make that number or just more."""
        able = np.flatnonzero(can_L)
        wanted = max(1, round(rate * len(able))) if len(able) else 0
        if not self._objective.whole_words:
            return np.sort(able[np.argsort(uniform(key, len(able), HIDE), kind="stable")[:wanted]])
        word_N = np.cumsum(self._words.begins(tokens_L))[able]
        words, sizes = np.unique(word_N, return_counts=True)
        order = np.argsort(uniform(key, len(words), HIDE), kind="stable")
        taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1]
        return able[np.isin(word_N, words[taken])] if wanted else able


class Mixing:
    """A share of the rows masked and seen both ways, the others as they are."""

    def __init__(self, objective: Mixed, tokenizer: "Tokenizer"):
        self._share, self._masking = objective.share, Masking(objective.masked, tokenizer, shifted=True)

    def __call__(self, batch: Batch, keys_B: np.ndarray, done: float) -> Batch:
        ahead_B = np.array([uniform(key, 1, BOTH)[0] < self._share for key in keys_B])
        masked = self._masking(batch, keys_B, done)
        tokens, targets = (np.where(ahead_B[:, None], a, b) for a, b in ((masked.tokens, batch.tokens), (masked.targets, batch.targets)))
        return Batch(tokens, targets, batch.documents, batch.positions, ahead_B)


class Cutting:
    """Each document of a row as what is left of it, a mask token for each span, and behind it the spans, each behind a mask token, and
    END_OF_TEXT. Targets are what comes after the first of those mask tokens. What has no room in the row is left out."""

    def __init__(self, objective: Spans):
        self._objective = objective

    def __call__(self, batch: Batch, keys_B: np.ndarray, done: float) -> Batch:
        shape = batch.tokens.shape
        made = Batch(np.full(shape, PAD), np.full(shape, NO_LOSS), np.full(shape, PADDING), np.zeros(shape, dtype=np.int64))
        for row, key in enumerate(keys_B):
            at = 0
            for number, tokens_N in enumerate(self._pieces(batch, row)):
                left = self._fitting(len(tokens_N), shape[1] + 1 - at)
                if not left:
                    continue
                ids, first = self._cut(tokens_N[:left], mixed(np.array([key]) + np.uint64(number))[0])
                here = slice(at, at + len(ids) - 1)
                made.tokens[row, here] = ids[:-1]
                made.targets[row, at + first : here.stop] = ids[first + 1 :]
                made.documents[row, here], made.positions[row, here] = number, np.arange(len(ids) - 1)
                at = here.stop
        return made

    def _pieces(self, batch: Batch, row: int) -> Iterator[np.ndarray]:
        """The documents of a row, without their end tokens."""
        documents_L = batch.documents[row]
        for number in range(int(documents_L.max()) + 1):
            tokens_N = batch.tokens[row][documents_L == number]
            yield tokens_N[tokens_N != END_OF_TEXT]

    def _spans(self, count: int) -> int:
        return max(1, round(count * self._objective.rate / self._objective.length))

    def _fitting(self, count: int, room: int) -> int:
        """The most tokens of a piece that fit `room` with two mask tokens a span and the end token; 0 where there is nothing to cut from."""
        most = min(count, room - 3)
        while most > 1 and most + 2 * self._spans(most) + 1 > room:
            most -= 1
        return most if most > 1 else 0

    def _cut(self, tokens_N: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, int]:
        """All ids of a corrupted piece, and the place of the first mask token of its second half."""
        count = len(tokens_N)
        gone = min(max(1, round(count * self._objective.rate)), count - 1)
        spans = min(self._spans(count), gone, count - gone)
        noise = uniform(key, gone + count, CUT)
        # random compositions: of what is cut out into spans, of what is left into the stretches before them
        out, kept = _composition(noise[:gone], gone, spans), _composition(noise[gone:], count - gone, spans)
        left, behind, at = [], [], 0
        for stretch, span in zip(kept, out, strict=True):
            left += [tokens_N[at : at + stretch], [MASK]]
            behind += [[MASK], tokens_N[at + stretch : at + stretch + span]]
            at += stretch + span
        return np.concatenate([*left, *behind, [END_OF_TEXT]]).astype(np.int64), count - gone + spans


def _composition(noise: np.ndarray, total: int, parts: int) -> Sequence[int]:
    """`total` as a sum of `parts` positive numbers, every such sum as likely."""
    borders = np.sort(np.argsort(noise[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], borders, [total]))).tolist()


def _alphabet() -> list[str]:
    """The character that stands for each byte in byte-level tokens (GPT-2): itself where it can be seen, else the next one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = iter(range(256, 512))
    return [chr(number) if number in seen else chr(next(unseen)) for number in range(256)]
