"""Token shards: Megatron's indexed dataset (`.bin` + `.idx`), which Megatron-LM, GPT-NeoX and Megatron-DeepSpeed read as it is. NumPy only.

    with ShardWriter(prefix, dtype_for(vocab)) as writer:
        writer.add(ids)                    # one sequence a document, its end token included
    shard = Shard(prefix)                  # memory-mapped: shard[i], len(shard), shard.tokens

`.idx`, little endian: magic `MMIDIDX\\0\\0`, version (uint64) 1, dtype code (uint8), sequences N (uint64), document indices N + 1 (uint64);
then sizes in tokens (N × int32), byte offsets in `.bin` (N × int64), document indices 0…N ((N + 1) × int64).
Ours beside it, for fine-tuning: `.mask`, one byte a token, 1 where the token is learnt.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from model.errors import ShardError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES: Mapping[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
"""Those of Megatron's dtype codes that token ids need."""


def dtype_for(vocab: int) -> np.dtype:
    """uint16 below 65,500 rows of the (padded) vocabulary, as Megatron chooses, else int32."""
    return CODES[8] if vocab < 65_500 else CODES[4]


class ShardWriter:
    """Writes one shard under temporary names. The block's end syncs and renames, `.idx` last; an exception in the block leaves nothing behind.

    Raises ShardError for an id that the dtype cannot hold, an empty sequence, or masks for some sequences only.
    """

    def __init__(self, prefix: Path | str, dtype: np.dtype | type):
        self.prefix, self.dtype = Path(prefix), np.dtype(dtype)
        if self.dtype not in CODES.values():
            raise ShardError(f"{self.prefix}: token ids are stored as uint16 or int32, not {self.dtype}; use dtype_for(vocab)")
        self.sizes: list[int] = []
        self._masked = False

    def __enter__(self) -> "ShardWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin: BinaryIO = open(_temporary(self.prefix, ".bin"), "wb")
        self._mask: BinaryIO | None = None
        return self

    def add(self, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append one sequence: integer ids [T], and for fine-tuning a mask [T] of what is learnt."""
        ids, number = np.asarray(ids), len(self.sizes)
        highest = np.iinfo(self.dtype).max
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ShardError(f"{self.prefix.name} document {number} is not a row of ids: shape {ids.shape}, {ids.dtype}")
        if ids.min() < 0 or ids.max() > highest:
            wrong = int(ids.max() if ids.max() > highest else ids.min())
            raise ShardError(
                f"{self.prefix.name} document {number} holds id {wrong:,}; {self.dtype} goes from 0 to {highest:,}. Use dtype_for(vocab)"
            )
        if number and self._masked != (mask is not None):
            raise ShardError(f"{self.prefix.name} document {number}: either every document has a loss mask, or none")
        if mask is not None:
            if np.shape(mask) != ids.shape:
                raise ShardError(f"{self.prefix.name} document {number} has {len(ids):,} tokens and a mask of shape {np.shape(mask)}")
            if self._mask is None:
                self._mask = open(_temporary(self.prefix, ".mask"), "wb")  # noqa: SIM115
            self._masked = True
            self._mask.write((np.asarray(mask) != 0).astype(np.uint8).tobytes())
        self._bin.write(ids.astype(self.dtype).tobytes())
        self.sizes.append(len(ids))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        files = {".bin": self._bin} | ({".mask": self._mask} if self._mask else {})
        if kind is not None:
            for suffix, file in files.items():
                file.close()
                _temporary(self.prefix, suffix).unlink()
            return
        code = next(code for code, dtype in CODES.items() if dtype == self.dtype)
        sizes = np.array(self.sizes, dtype="<i4")
        ends = np.cumsum(sizes, dtype="<i8") * self.dtype.itemsize
        with open(_temporary(self.prefix, ".idx"), "wb") as index:
            index.write(HEADER.pack(MAGIC, 1, code, len(sizes), len(sizes) + 1))
            index.write(sizes.tobytes() + (ends - sizes.astype("<i8") * self.dtype.itemsize).tobytes())
            index.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
            index.flush()
            os.fsync(index.fileno())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if not self._masked:  # one of an earlier shard of this name would be taken for ours
            self.prefix.with_name(self.prefix.name + ".mask").unlink(missing_ok=True)
        for suffix in (*files, ".idx"):
            os.replace(_temporary(self.prefix, suffix), self.prefix.with_name(self.prefix.name + suffix))
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _temporary(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}{suffix}.tmp")


class Shard:
    """A shard, memory-mapped and checked whole (index against `.bin` and `.mask`). shard[i] is document i, ids [T], read-only.

    `tokens_T` and `mask_T` are all tokens and their loss mask (None without one), `sizes` tokens of each document, `starts` where it begins, in tokens.
    Raises ShardError naming the file if magic, version, dtype, index or sizes are not as the format says.
    """

    def __init__(self, prefix: Path | str):
        self.prefix = Path(prefix)
        index, data, mask = (self.prefix.with_name(self.prefix.name + suffix) for suffix in (".idx", ".bin", ".mask"))
        for path in (index, data):
            if not path.is_file():
                raise ShardError(f"{path.name} is not in {path.parent}. Rerun encode.")
        raw = _map(index, np.dtype(np.uint8))
        if len(raw) < HEADER.size:
            raise ShardError(f"{index.name} has {len(raw):,} bytes; its header alone needs {HEADER.size}. Delete it and rerun encode.")
        magic, version, code, count, borders = HEADER.unpack(raw[: HEADER.size].tobytes())
        if magic != MAGIC or version != 1:
            raise ShardError(
                f"{index.name} begins with {magic!r}, version {version}; an indexed dataset has {MAGIC!r}, version 1. Delete it and rerun encode."
            )
        if code not in CODES:
            raise ShardError(f"{index.name} has dtype code {code}; token ids have 4 (int32) or 8 (uint16). Delete it and rerun encode.")
        expected = HEADER.size + 12 * count + 8 * borders
        if borders != count + 1 or len(raw) != expected:
            raise ShardError(
                f"{index.name} has {len(raw):,} bytes; {count:,} sequences and {borders:,} document indices need {expected:,}. Delete it and rerun encode."
            )
        self.dtype = CODES[code]
        self.sizes = np.frombuffer(raw, "<i4", count, HEADER.size)
        pointers = np.frombuffer(raw, "<i8", count, HEADER.size + 4 * count)
        # in memory: the index is not aligned in its file, and searchsorted would copy it at every call
        self.starts = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        total = int(self.sizes.sum(dtype=np.int64))
        documents = np.frombuffer(raw, "<i8", borders, HEADER.size + 12 * count)
        if (self.sizes < 1).any() or (pointers != self.starts * self.dtype.itemsize).any() or (documents != np.arange(borders)).any():
            raise ShardError(
                f"{index.name} is damaged: sizes, offsets and document indices contradict each other. Delete it and rerun encode."
            )
        for path, size in ((data, total * self.dtype.itemsize), (mask, total)):
            if path.exists() and path.stat().st_size != size:
                raise ShardError(f"{path.name} has {path.stat().st_size:,} bytes; its index says {size:,}. Delete it and rerun encode.")
        self.tokens_T = _map(data, self.dtype)
        self.mask_T = _map(mask, np.dtype(np.uint8)) if mask.exists() else None

    @property
    def name(self) -> str:
        """The prefix without its folder."""
        return self.prefix.name

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return len(self.tokens_T)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has documents 0 to {len(self) - 1}, no {number}")
        start = int(self.starts[number])
        return self.tokens_T[start : start + int(self.sizes[number])]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
