"""Batches: a pure function of (shards, their fingerprint, sequence length, batch size, seed, step). NumPy only.

    batches = Batches(Stream(shards, length), fingerprint, batch, seed)     # pretraining: documents one after another
    batches = Batches(Packed(shards, length), fingerprint, batch, seed)     # fine-tuning: whole examples in each row
    part = batches.rows(step, lo, hi)                                       # any rows of the global batch of one step

Rows depend neither on ranks nor on micro-batches, and no state goes from step to step: resuming is asking for a later step.
Shape suffixes: B rows, L tokens, N samples or examples.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from model.errors import EmptyError, ShardError
from model.shards import Shard
from model.tokenizer import PAD

NO_LOSS = -100
"""Target where nothing is learnt: torch's ignore_index."""
SPAN = 1 << 15
"""A target that names two places holds first · SPAN + last."""
PADDING = -1
"""Document id of padding, as transformer.py has it."""


@dataclass(frozen=True)
class Batch:
    """Rows of one global batch, int64, [B, L] each."""

    tokens: np.ndarray
    """Ids."""
    targets: np.ndarray
    """The id that follows each, NO_LOSS where none is to be predicted."""
    documents: np.ndarray
    """Number of the document within its row, PADDING for padding: attention stays within one."""
    positions: np.ndarray
    """Place within that document, or within as much of it as the row holds."""
    ahead: np.ndarray | None = None
    """Whether a row's tokens see what follows them too, bool [B]; None: as the model is made."""
    reference: np.ndarray | None = None
    """Log-probability of each document's targets by the model that training starts from, nats, float32 [B, L], at its first place; None: not known."""

    @property
    def count(self) -> int:
        """Predicted tokens."""
        return int((self.targets != NO_LOSS).sum())

    def cut(self, lo: int, hi: int) -> "Batch":
        """Rows [lo, hi)."""
        tokens, targets, documents, positions = (array[lo:hi] for array in (self.tokens, self.targets, self.documents, self.positions))
        ahead, reference = (None if array is None else array[lo:hi] for array in (self.ahead, self.reference))
        return Batch(tokens, targets, documents, positions, ahead, reference)


Noise = Callable[[Batch, np.ndarray, float], Batch]
"""What becomes of rows, by a key for each (uint64 [B]) and the share of the training that is done: the same for the same keys."""


class Source(Protocol):
    """Where samples come from."""

    samples: int
    """Samples of one epoch."""

    def read(self, samples: np.ndarray) -> Batch:
        """These samples, one a row."""

    def targets(self, samples: np.ndarray) -> int:
        """Predicted tokens of these samples together, without reading a token."""

    def documents(self, sample: int) -> list[tuple[str, int]]:
        """(shard, number in it) of every document that sample has tokens of."""


class Stream:
    """Documents one after another in stored order: sample k is tokens [k·length, (k+1)·length], the last one only as a target.

    The first token of a document is never predicted from the one before: it is unconditional. The end token of a document is.
    """

    def __init__(self, shards: Sequence[Shard], length: int):
        self._shards, self._length = list(shards), length
        self._base = np.cumsum([0, *(shard.tokens for shard in shards)], dtype=np.int64)
        tokens = int(self._base[-1])
        self.samples = max(0, tokens - 1) // length
        if not self.samples:
            names = ", ".join(shard.name for shard in shards) or "no shard"
            raise EmptyError(f"{names}: {tokens:,} tokens in all; one sample needs {length + 1:,}. Add documents or shorten length")

    def _pieces(self, lo: int, hi: int) -> Iterator[tuple[Shard, int, int]]:
        """The parts of shards that make up tokens [lo, hi) of the stream, in places of each shard."""
        for number in range(int(np.searchsorted(self._base, lo, side="right")) - 1, len(self._shards)):
            base, end = int(self._base[number]), int(self._base[number + 1])
            if base >= hi:
                return
            if end > max(lo, base):
                yield self._shards[number], max(lo, base) - base, min(hi, end) - base

    def _begins(self, lo: int, hi: int) -> list[np.ndarray]:
        """Places in [lo, hi) at which documents begin, relative to lo; one array a shard."""
        found, done = [], 0
        for shard, first, last in self._pieces(lo, hi):
            a, b = np.searchsorted(shard.starts, (first, last))
            found.append(shard.starts[a:b] - first + done)
            done += last - first
        return found

    def read(self, samples: np.ndarray) -> Batch:
        """As Source."""
        count, length = len(samples), self._length
        tokens_BM = np.empty((count, length + 1), dtype=np.int64)
        begins_BM = np.zeros((count, length + 1), dtype=bool)
        for row, sample in enumerate(samples):
            lo = int(sample) * length
            tokens_BM[row] = np.concatenate([shard.tokens_T[a:b] for shard, a, b in self._pieces(lo, lo + length + 1)])
            for begins in self._begins(lo, lo + length + 1):
                begins_BM[row, begins] = True
        begins_BM[:, 0] = True
        index_L = np.arange(length)
        starts_BL = np.maximum.accumulate(np.where(begins_BM[:, :-1], index_L, 0), axis=1)
        targets_BL = np.where(begins_BM[:, 1:], NO_LOSS, tokens_BM[:, 1:])
        return Batch(tokens_BM[:, :-1], targets_BL, np.cumsum(begins_BM[:, :-1], axis=1) - 1, index_L - starts_BL)

    def targets(self, samples: np.ndarray) -> int:
        """As Source."""
        length = self._length
        borders = sum(len(begins) for s in samples for begins in self._begins(int(s) * length + 1, (int(s) + 1) * length + 1))
        return len(samples) * length - borders

    def documents(self, sample: int) -> list[tuple[str, int]]:
        """As Source."""
        lo = sample * self._length
        return [
            (shard.name, number)
            for shard, first, last in self._pieces(lo, lo + self._length + 1)
            for number in range(int(np.searchsorted(shard.starts, first, side="right")) - 1, int(np.searchsorted(shard.starts, last)))
        ]


def plan(sizes_N: np.ndarray, length: int) -> np.ndarray:
    """Rows of `length` tokens for whole examples: the row of each example, int32 [N]. First-fit decreasing, ties in stored order.

    An example of n tokens takes n - 1 places: its last token is only a target. Raises ShardError for one that fits no row.
    """
    places_N = np.asarray(sizes_N, dtype=np.int64) - 1
    if len(places_N) and (places_N.max() > length or places_N.min() < 1):
        number = int(np.flatnonzero((places_N > length) | (places_N < 1))[0])
        raise ShardError(f"example {number} has {sizes_N[number]:,} tokens; a row takes 2 to {length + 1:,}. Encode the examples again")
    row_N = np.empty(len(places_N), dtype=np.int32)
    # first fit as a tournament tree: a node holds the most room of any row below it, so the first row with room is found in log(N)
    leaves = 1 << max(0, len(places_N) - 1).bit_length()
    room = [length] * (2 * leaves)
    for example in np.argsort(-places_N, kind="stable"):
        node, need = 1, int(places_N[example])
        while node < leaves:
            node *= 2
            if room[node] < need:
                node += 1
        row_N[example] = node - leaves
        room[node] -= need
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return row_N


def plan_path(prefix: Path) -> Path:
    """Where the packing plan of a shard lies: `PREFIX.plan.npy`."""
    return prefix.with_name(prefix.name + ".plan.npy")


def targets_path(prefix: Path) -> Path:
    """Where targets other than the tokens that follow lie, int32 [T], NO_LOSS where there is none: `PREFIX.targets.npy`."""
    return prefix.with_name(prefix.name + ".targets.npy")


class Packed:
    """Whole examples packed into rows by the plan stored beside each shard (`plan`), padding at the end. What is learnt of a token is the next
    one where the shard's mask says so, or what the targets beside the shard say."""

    def __init__(self, shards: Sequence[Shard], length: int):
        self._length = length
        self._rows: list[tuple[Shard, np.ndarray]] = []
        self._given: dict[Path, np.ndarray] = {}
        for shard in shards:
            path, given = plan_path(shard.prefix), targets_path(shard.prefix)
            if given.exists():
                self._given[shard.prefix] = np.load(given, mmap_mode="r", allow_pickle=False)
                if self._given[shard.prefix].shape != (shard.tokens,):
                    raise ShardError(f"{given.name} does not fit {shard.name}'s {shard.tokens:,} tokens. Encode the examples again")
            if (shard.mask_T is None and not given.exists()) or not path.exists():
                raise ShardError(
                    f"{shard.prefix} has no loss mask or no packing plan (.mask or .targets.npy, .plan.npy). Encode the examples again"
                )
            row_N = np.load(path, allow_pickle=False)
            filled = np.bincount(row_N, weights=shard.sizes - 1) if len(row_N) == len(shard) and len(row_N) else np.array([np.inf])
            if filled.max() > length or filled.min() < 1:
                raise ShardError(
                    f"{path.name} does not pack {shard.name}'s {len(shard):,} examples into rows of {length:,}. Encode them again"
                )
            order = np.argsort(row_N, kind="stable")
            self._rows += [(shard, part) for part in np.split(order, np.flatnonzero(np.diff(row_N[order])) + 1)]
        self.samples = len(self._rows)
        if not self.samples:
            raise EmptyError(f"{', '.join(shard.name for shard in shards)}: no example in it. Look at why examples were rejected")

    def read(self, samples: np.ndarray) -> Batch:
        """As Source."""
        shape = (len(samples), self._length)
        batch = Batch(np.full(shape, PAD), np.full(shape, NO_LOSS), np.full(shape, PADDING), np.zeros(shape, dtype=np.int64))
        for row, sample in enumerate(samples):
            shard, examples = self._rows[int(sample)]
            lo = 0
            for number, example in enumerate(examples):
                ids = shard[int(example)].astype(np.int64)
                here = slice(lo, lo + len(ids) - 1)
                batch.tokens[row, here] = ids[:-1]
                batch.targets[row, here] = self._targets(shard, int(example))
                batch.documents[row, here] = number
                batch.positions[row, here] = np.arange(len(ids) - 1)
                lo = here.stop
        return batch

    def targets(self, samples: np.ndarray) -> int:
        """As Source."""
        return sum(self._learnt(shard, int(e)) for shard, examples in (self._rows[int(s)] for s in samples) for e in examples)

    def documents(self, sample: int) -> list[tuple[str, int]]:
        """As Source."""
        shard, examples = self._rows[sample]
        return [(shard.name, int(example)) for example in examples]

    def _targets(self, shard: Shard, example: int) -> np.ndarray:
        """What is learnt of each token of an example but its last."""
        here = self._places(shard, example)
        if shard.prefix in self._given:
            return self._given[shard.prefix][here].astype(np.int64)
        return np.where(self._mask(shard)[here.start + 1 : here.stop + 1], shard[example][1:].astype(np.int64), NO_LOSS)

    def _learnt(self, shard: Shard, example: int) -> int:
        here = self._places(shard, example)
        if shard.prefix in self._given:
            return int((self._given[shard.prefix][here] != NO_LOSS).sum())
        return int(self._mask(shard)[here.start + 1 : here.stop + 1].sum())

    @staticmethod
    def _places(shard: Shard, example: int) -> slice:
        """An example's tokens but its last, in places of the shard."""
        start = int(shard.starts[example])
        return slice(start, start + int(shard.sizes[example]) - 1)

    @staticmethod
    def _mask(shard: Shard) -> np.ndarray:
        assert shard.mask_T is not None
        return shard.mask_T


def reference_path(prefix: Path) -> Path:
    """Where the log-probabilities of a shard's examples by the start lie, float32 [N]: `PREFIX.reference.npy`."""
    return prefix.with_name(prefix.name + ".reference.npy")


class Preferences(Packed):
    """Packed examples of which each two are a better and a worse answer, side by side in a row; a pair counts as one target."""

    def read(self, samples: np.ndarray) -> Batch:
        """As Source; with the start's log-probabilities, once they are known."""
        batch, found = super().read(samples), np.zeros((len(samples), self._length), dtype=np.float32)
        for row, sample in enumerate(samples):
            shard, examples = self._rows[int(sample)]
            if not reference_path(shard.prefix).exists():
                return batch
            known_N = np.load(reference_path(shard.prefix), mmap_mode="r", allow_pickle=False)
            begins = np.cumsum([0, *(shard.sizes[examples] - 1)])[:-1]
            found[row, begins] = known_N[examples]
        return replace(batch, reference=found)

    def targets(self, samples: np.ndarray) -> int:
        """As Source."""
        return sum(len(self._rows[int(sample)][1]) // 2 for sample in samples)


class Pairs:
    """Two texts a row, [0, length) and [length, 2·length) of it: a document and itself, or with `labelled` document 2k and 2k + 1. Of a text the
    first `length` tokens count; the rest of its half is padding. The one target, at the first place, makes a row count as one."""

    def __init__(self, shards: Sequence[Shard], length: int, labelled: bool):
        self._shards, self._length, self._labelled = list(shards), length, labelled
        self._base = np.cumsum([0, *(len(shard) for shard in shards)], dtype=np.int64)
        documents = int(self._base[-1])
        self.samples = documents // 2 if labelled else documents
        names = ", ".join(shard.name for shard in shards)
        if not self.samples or (labelled and documents % 2):
            raise EmptyError(f"{names}: {documents:,} documents, which make no {'pairs' if labelled else 'texts'}. Encode the corpus again")

    def _texts(self, sample: int) -> tuple[int, int]:
        return (2 * sample, 2 * sample + 1) if self._labelled else (sample, sample)

    def _place(self, document: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._base, document, side="right")) - 1
        return self._shards[number], document - int(self._base[number])

    def read(self, samples: np.ndarray) -> Batch:
        """As Source."""
        shape = (len(samples), 2 * self._length)
        batch = Batch(np.full(shape, PAD), np.full(shape, NO_LOSS), np.full(shape, PADDING), np.zeros(shape, dtype=np.int64))
        for row, sample in enumerate(samples):
            batch.targets[row, 0] = 0
            for half, document in enumerate(self._texts(int(sample))):
                shard, number = self._place(document)
                ids = shard[number][: self._length].astype(np.int64)
                here = slice(half * self._length, half * self._length + len(ids))
                batch.tokens[row, here], batch.documents[row, here], batch.positions[row, here] = ids, half, np.arange(len(ids))
        return batch

    def targets(self, samples: np.ndarray) -> int:
        """As Source."""
        return len(samples)

    def documents(self, sample: int) -> list[tuple[str, int]]:
        """As Source."""
        return [(shard.name, number) for shard, number in map(self._place, dict.fromkeys(self._texts(sample)))]


class Batches:
    """The global batches of one run. Every epoch has all samples once, in an order of its own; a batch may hold the end of one and the next's start.

    With `noise`, the batch of a step is made whole and kept until another is asked for: what is predicted is known only when it is made.
    """

    def __init__(self, source: Source, fingerprint: str, batch: int, seed: int, noise: Noise | None = None, steps: int = 1):
        self.source, self.batch, self._noise, self._steps = source, batch, noise, steps
        self._key, self._seed = f"{fingerprint}\0{seed}", seed
        self._noisy = lru_cache(maxsize=2)(self._made)  # the next step's is read before this one is done

    def samples(self, step: int) -> np.ndarray:
        """Sample of each row of the global batch that follows `step` steps, int64 [B]."""
        places = step * self.batch + np.arange(self.batch, dtype=np.int64)
        epochs = places // self.source.samples
        chosen = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = shuffled(places[here] % self.source.samples, self.source.samples, f"{self._key}\0{epoch}")
        return chosen

    def rows(self, step: int, lo: int, hi: int) -> Batch:
        """Rows [lo, hi) of that batch."""
        return self.source.read(self.samples(step)[lo:hi]) if self._noise is None else self._noisy(step).cut(lo, hi)

    def targets(self, step: int) -> int:
        """Predicted tokens of the whole global batch, by which its loss is divided on every rank."""
        return self.source.targets(self.samples(step)) if self._noise is None else self._noisy(step).count

    def digest(self, step: int) -> str:
        """xxh64 of the samples, to compare what two runs were shown."""
        return xxhash.xxh64_hexdigest(self.samples(step).astype("<i8").tobytes())

    def documents(self, step: int, rows: Sequence[int]) -> list[tuple[str, int]]:
        """(shard, number in it) of every document in these rows, without repeats."""
        samples = self.samples(step)
        return list(dict.fromkeys(name for row in rows for name in self.source.documents(int(samples[row]))))

    def _made(self, step: int) -> Batch:
        assert self._noise is not None
        rows = step * self.batch + np.arange(self.batch, dtype=np.uint64)
        return self._noise(self.source.read(self.samples(step)), keys(self._seed, rows), step / max(1, self._steps - 1))


def held_out(source: Source, count: int, fingerprint: str, noise: Noise | None = None) -> Batch:
    """`count` rows to measure on, at most one of each sample: the same at every call, noise too, which is that of the end of training."""
    chosen = shuffled(np.arange(min(count, source.samples)), source.samples, f"{fingerprint}\0valid")
    batch = source.read(chosen)
    return batch if noise is None else noise(batch, keys(0, chosen.astype(np.uint64)), 1.0)


def keys(seed: int, rows_B: np.ndarray) -> np.ndarray:
    """A key for the noise of each row, uint64 [B]."""
    return mixed(rows_B + mixed(np.full(len(rows_B), seed, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C55)))


def shuffled(places: np.ndarray, count: int, key: str) -> np.ndarray:
    """Where each place of [0, count) goes under the permutation that `key` names, int64; no other place is computed or stored.

    A Feistel network over the next power of four, walked until the value is below `count` (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"), with splitmix64's finaliser as its round function. Unlike a generator's shuffle it is the same in every
    NumPy version and takes no memory.
    """
    half = max(1, -(-(count - 1).bit_length() // 2))
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), dtype="<u8")
    value, out = np.asarray(places, dtype=np.uint64), np.empty(len(places), dtype=np.int64)
    waiting = np.arange(len(value))
    while len(waiting):
        left, right = value >> shift, value & low
        for round_key in keys:  # eight rounds
            left, right = right, left ^ (mixed(right ^ round_key) & low)
        value = (left << shift) | right
        inside = value < count
        out[waiting[inside]] = value[inside].astype(np.int64)
        waiting, value = waiting[~inside], value[~inside]
    return out


def mixed(x: Any) -> Any:
    """splitmix64's finaliser: 64 bits of which each depends on all of x's; uint64, any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
