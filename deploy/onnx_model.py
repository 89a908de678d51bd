"""An exported ONNX directory in onnxruntime: the interface of model/generate.py, and encoders' states and embeddings.

    model = load(directory)                           # a Decoder or an Encoder
    generations = generate(model, tokenizer, prompts, max_new=80)
    vectors = embed(encoder, rows_of_ids)

A server keeps one Cache for all its rows: `cache.lengths` holds what each row has, and a row of length 0 is free.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from model import families
from model.config import ModelConfig, from_dict
from model.errors import CheckpointError, InputError
from model.generate import Generation, check, fitting, write
from model.tokenizer import END_OF_TEXT, END_OF_TURN, PAD

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Graph:
    """An open model.onnx; `config`, `vocab` and `precision` are those that it was written with."""

    def __init__(self, session: Any, config: ModelConfig):
        self.session, self.config = session, config
        written = session.get_modelmeta().custom_metadata_map
        self.vocab, self.precision = int(written["ingot.vocab"]), written["ingot.precision"]
        self.inputs = {given.name for given in session.get_inputs()}


class Cache:
    """Keys and values of every layer, fp32, written in place; each row has its own length. At most `length` tokens a row."""

    def __init__(self, model: "Decoder", rows: int, length: int):
        from onnxruntime import OrtValue

        config = model.config
        shape = (rows, config.kv_heads, length, config.head_dim)
        self.lengths = np.zeros(rows, np.int32)
        """Tokens that each row holds."""
        self.capacity = length
        self.arrays = {f"{what}.{layer}": np.zeros(shape, np.float32) for layer in range(config.layers) for what in ("keys", "values")}
        # on the CPU an OrtValue is the array's own memory
        self.values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()}


class Decoder(Graph):
    """A language model: tokens and a cache in, logits out."""

    def __call__(self, tokens_BT: np.ndarray, cache: Cache, counts_B: np.ndarray | None = None, every: bool = False) -> np.ndarray:
        """Logits after each row's last new token, fp32 [B, V], or with `every` after each, [B, T, V].

        counts_B: how many of the T tokens of each row are new, the rest is padding on the right; None: all. Only an empty cache takes more than
        one token of several rows. Raises InputError for a row beyond the cache or the model's context.
        """
        B, T = tokens_BT.shape
        counts_B = np.full(B, T, np.int32) if counts_B is None else counts_B.astype(np.int32)
        lengths_B = cache.lengths + counts_B
        room = min(cache.capacity, self.config.context)
        if lengths_B.max() > room:
            raise InputError(f"a sequence of {lengths_B.max():,} tokens does not fit {room:,} (cache and context); shorten it")
        if T > 1 and B > 1 and cache.lengths.any():
            raise InputError(f"{T} tokens for each of {B} rows that hold some already; give such rows their tokens one by one, or alone")
        read_BR = np.tile(np.arange(T), (B, 1)) if every else (counts_B[:, None] - 1).astype(np.int64)
        given = {"tokens": tokens_BT, "lengths": lengths_B, "read": read_BR}
        if "positions" in self.inputs:
            given["positions"] = np.minimum(cache.lengths[:, None] + np.arange(T), self.config.context - 1).astype(np.int64)
        binding = self.session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in cache.values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"new_{name}", value)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        cache.lengths = lengths_B
        logits_BRV = binding.get_outputs()[-1].numpy()
        return logits_BRV if every else logits_BRV[:, 0]


class Encoder(Graph):
    """An encoder: tokens in, states or logits out."""

    def __call__(self, rows: Sequence[Sequence[int]], logits: bool = False) -> list[np.ndarray]:
        """States [T, C] of every row of ids, or with `logits` the scores [T, V]. Raises InputError for a row that is empty or beyond the context."""
        for place, row in enumerate(rows):
            if not 0 < len(row) <= self.config.context:
                raise InputError(f"row {place} has {len(row):,} tokens; this model takes 1 to {self.config.context:,}")
        if not rows:
            return []
        lengths_B = np.array([len(row) for row in rows], np.int32)
        B, T = len(rows), int(lengths_B.max())
        tokens_BT = np.full((B, T), PAD)
        for place, row in enumerate(rows):
            tokens_BT[place, : len(row)] = row
        slots_BT = np.tile(np.arange(T), (B, 1))
        given = {"tokens": tokens_BT, "lengths": lengths_B, "read": slots_BT if logits else slots_BT[:, :0]}
        given |= {name: slots_BT * (name == "positions") for name in ("positions", "types") if name in self.inputs}
        (found,) = self.session.run(["logits" if logits else "states"], given)
        return [found[place, :length] for place, length in enumerate(lengths_B)]


def load(directory: Path | str, threads: int = 0) -> Decoder | Encoder:
    """The model of an exported directory. threads: of one operator; 0: as many as there are cores.

    Raises CheckpointError for one that is missing or damaged, TokenizerError if the tokenizer beside it has ids beyond it.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4  # what fails is raised; the log would say it a second time
    path = Path(directory) / "model.onnx"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no model.onnx; `ingot export MODEL --to onnx` writes one")
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        config = from_dict(ModelConfig, json.loads(session.get_modelmeta().custom_metadata_map["ingot.config"]))
        model = (Decoder if config.kind == "decoder" else Encoder)(session, config)
    except Exception as error:  # onnxruntime's own tree of exceptions is private
        raise CheckpointError(f"{path} is damaged, or not of Ingot: {' '.join(str(error).split())[:300]}. Export it again") from None
    families.check_tokenizer(directory, model.vocab)
    return model


def generate(
    model: Decoder,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    max_new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (END_OF_TEXT, END_OF_TURN),
) -> list[Generation]:
    """As model.generate.generate: the same choices from the same logits."""
    fitting(model.config, model.vocab, tokenizer)
    context = model.config.context
    check(prompts, context, max_new, temperature, top_p)
    if not prompts:
        return []
    limits = [min(max_new, context - len(prompt)) for prompt in prompts]
    counts_B = np.array([len(prompt) for prompt in prompts])
    cache = Cache(model, len(prompts), min(context, int(counts_B.max()) + max(limits)))
    tokens_BT = np.full((len(prompts), counts_B.max()), PAD)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt

    def advance(chosen: list[int] | None) -> torch.Tensor:
        if chosen is None:
            return torch.from_numpy(model(tokens_BT, cache, counts_B))
        # rows that ended go on unread: at the end of the cache they write over their last token
        cache.lengths = np.minimum(cache.lengths, cache.capacity - 1)
        return torch.from_numpy(model(np.array(chosen)[:, None], cache))

    return write(advance, tokenizer, limits, temperature, top_p, seed, stop_ids)


def embed(model: Encoder, rows: Sequence[Sequence[int]], pooling: Literal["mean", "first"] = "mean") -> np.ndarray:
    """Vectors of length 1, fp32 [B, C]: the mean of a row's states, or the state of its first token."""
    vectors = np.stack([states.mean(0) if pooling == "mean" else states[0] for states in model(rows)])
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
