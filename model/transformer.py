"""One Transformer, encoder or decoder, shaped by a ModelConfig: tokens in, logits (or hidden states) out.

    model = Transformer(config, vocab)
    model.init_weights(seed)                          # before this (or families.load) the weights mean nothing
    logits_BTV = model(tokens_BT)                     # each row is one document: the fast path without a mask
    logits_BTV = model(tokens_BT, documents_BT=d_BT)  # attention stays within equal ids; padding is a document of its own, id -1

Shape suffixes: B rows, T tokens, S tokens seen so far (cache), C width, H query heads, K key/value heads, D head size, F feed-forward
width, V vocabulary. Angles and sinusoids are computed from positions in fp32 at every call: buffers would be rounded by `model.bfloat16()`.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig, RopeScaling
from model.errors import ConfigError, InputError
from model.sequence import Parts

PADDING = -1
"""Document id of padding: it attends to itself only, so that no softmax is empty, and nothing attends to it."""


class Cache:
    """Keys and values of every layer for decoding, allocated once; for inference only, since it is written in place.

    Rows advance together. Prompts of unequal length are padded on the left with document id PADDING.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        if config.kind != "decoder":
            raise ConfigError("a cache of keys and values needs a decoder; this model is an encoder: call it without cache")
        shape = (config.layers, rows, config.kv_heads, length, config.head_dim)
        self.keys_LBKSD = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBKSD = torch.zeros(shape, device=device, dtype=dtype)
        self.documents_BS = torch.zeros((rows, length), device=device, dtype=torch.long)
        self.length = 0
        self.capacity = length

    def extend(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; returns all of its keys and values so far, [B, K, S, D]."""
        end = self.length + k_BKTD.shape[2]
        self.keys_LBKSD[layer, :, :, self.length : end] = k_BKTD
        self.values_LBKSD[layer, :, :, self.length : end] = v_BKTD
        return self.keys_LBKSD[layer, :, :, :end], self.values_LBKSD[layer, :, :, :end]

    def enter(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> None:
        """Before the first layer: these tokens come now."""
        self._new = tokens_BT.shape[1]
        self.documents_BS[:, self.length : self.length + self._new] = 0 if documents_BT is None else documents_BT

    def mask(self, window: int = 0) -> Tensor | None:
        """What the new tokens may see of the slots so far, theirs included, [B, 1, T, S]; with `window` only the last slots of that number.
        None: as `is_causal` has it."""
        keys_BS = self.documents_BS[:, : self.length + self._new]
        before_TS = torch.ones(self._new, keys_BS.shape[1], device=keys_BS.device, dtype=torch.bool).tril(self.length)
        if window:
            before_TS = before_TS.triu(self.length + 1 - window)
        return ((keys_BS[:, self.length :, None] == keys_BS[:, None, :]) & before_TS)[:, None]

    def leave(self) -> None:
        """After the last layer: all have stored them."""
        self.length += self._new


class Slots(Cache):
    """Keys and values of rows that come, go and have lengths of their own: the first `count` rows are in use, which decode a token each at a time.

    `begin` takes the next row for a prompt, all of it in the pass that follows; `end` gives a row back, into which the last one moves.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        super().__init__(config, rows, length, device, dtype)
        self.lengths_B = torch.zeros(rows, device=device, dtype=torch.long)
        self.count = 0
        self._prompt = False

    def begin(self) -> int:
        """Number of the row that the prompt of the next pass, [1, T], is stored in."""
        self._prompt, self.count = True, self.count + 1
        self.lengths_B[self.count - 1] = 0
        return self.count - 1

    def end(self, row: int) -> int:
        """Free a row; the number of the row that is now there instead (itself, if it was the last)."""
        last = self.count - 1
        size = int(self.lengths_B[last])
        for held_LBKSD in (self.keys_LBKSD, self.values_LBKSD):
            held_LBKSD[:, row, :, :size] = held_LBKSD[:, last, :, :size]
        self.lengths_B[row] = self.lengths_B[last]
        self.count = last
        return last

    def positions(self) -> Tensor:
        """Place in its text of the token that each row gets in the next pass, [B, 1]."""
        return self.lengths_B[: self.count, None].clone()

    def enter(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> None:
        """As Cache."""
        self._new = tokens_BT.shape[1]
        self._longest = self._new if self._prompt else int(self.lengths_B[: self.count].max()) + 1

    def mask(self, window: int = 0) -> Tensor | None:
        """As Cache."""
        slots_S = torch.arange(self._longest, device=self.lengths_B.device)
        if self._prompt:
            return (slots_S <= slots_S[:, None])[None, None].triu(1 - window) if 0 < window < self._new else None
        lengths_B1 = self.lengths_B[: self.count, None]
        seen_BS = slots_S <= lengths_B1
        if window:
            seen_BS = seen_BS & (slots_S > lengths_B1 - window)
        return seen_BS[:, None, None]

    def extend(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """As Cache."""
        if self._prompt:
            size = k_BKTD.shape[2]
            self.keys_LBKSD[layer, self.count - 1, :, :size] = k_BKTD[0]
            self.values_LBKSD[layer, self.count - 1, :, :size] = v_BKTD[0]
            return k_BKTD, v_BKTD
        rows_B, lengths_B = torch.arange(self.count, device=k_BKTD.device), self.lengths_B[: self.count]
        self.keys_LBKSD[layer, rows_B, :, lengths_B] = k_BKTD[:, :, 0]
        self.values_LBKSD[layer, rows_B, :, lengths_B] = v_BKTD[:, :, 0]
        return self.keys_LBKSD[layer, : self.count, :, : self._longest], self.values_LBKSD[layer, : self.count, :, : self._longest]

    def leave(self) -> None:
        """As Cache."""
        if self._prompt:
            self.lengths_B[self.count - 1] = self._new
            self._prompt = False
        else:
            self.lengths_B[: self.count] += 1


def norm(config: ModelConfig, width: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last dimension."""
    return nn.RMSNorm(width, eps=config.norm_eps) if config.norm == "rms" else nn.LayerNorm(width, eps=config.norm_eps)


def angles(positions_BT: Tensor, size: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """position · theta^(-2i/size) for i < size/2: the phases of rotary and sinusoidal positions, fp32, [B, T, size/2]."""
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, device=positions_BT.device, dtype=torch.float32) / size)
    if scaling is not None:
        turns = scaling.original * frequencies / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return positions_BT[..., None].float() * frequencies


def sinusoids(positions_BT: Tensor, width: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/width)), PE(pos, 2i+1) = cos of the same (Vaswani et al. 2017, §3.5), fp32, [B, T, width]."""
    phase = angles(positions_BT, width, 10_000.0)
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)[..., :width]


def rotate(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i+D/2}) by their angles (RoFormer, Su et al. 2021, with the halves laid out as Llama and Qwen3 have them)."""
    cos_B1TD, sin_B1TD = rotary
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_B1TD + torch.cat((-second, first), dim=-1) * sin_B1TD


def restart(documents_BT: Tensor) -> Tensor:
    """Positions counted from the first token of each run of equal document ids, [B, T]."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return index_T - torch.where(begins_BT, index_T, 0).cummax(dim=1).values


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile, once a function and only when it is called for; a graph a shape, since training has few."""
    return torch.compile(function, dynamic=False)


def block_mask(documents_BT: Tensor, causal: bool, ahead_B: Tensor | None) -> BlockMask:
    """What may be seen, as `Transformer._mask` has it, by block of 128 tokens instead of by token, for FlexAttention (Dong et al. 2024)."""

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = documents_BT[b, q] == documents_BT[b, k]
        if not causal:
            return same
        return same & (q >= k) if ahead_B is None else same & ((q >= k) | ahead_B[b])

    B, T = documents_BT.shape
    return compiled(create_block_mask)(sees, B, None, T, T, device=documents_BT.device)


class Attention(nn.Module):
    """softmax(q kᵀ / √D) v over query heads, or unscaled; groups of H/K query heads share one key/value head."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.dropout
        self.scale = config.head_dim**-0.5 if config.scaled_scores else 1.0
        self.group = config.heads // config.kv_heads
        self.q = nn.Linear(config.width, config.heads * config.head_dim, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=config.qkv_bias)
        self.o = nn.Linear(config.heads * config.head_dim, config.width, bias=config.bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.parts: Parts | None = None

    def forward(
        self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_B1TS: Tensor | BlockMask | None, causal: bool, cache: Cache | None
    ) -> Tensor:
        B, T, _ = x_BTC.shape
        # heads viewed with -1: under tensor parallelism a rank holds only some of them
        q_BTHD = self.q(x_BTC).view(B, T, -1, self.head_dim)
        k_BTKD = self.k(x_BTC).view(B, T, -1, self.head_dim)
        v_BKTD = self.v(x_BTC).view(B, T, -1, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BHTD, k_BKTD = q_BTHD.transpose(1, 2), k_BTKD.transpose(1, 2)
        if rotary is not None:
            q_BHTD, k_BKTD = rotate(q_BHTD, rotary), rotate(k_BKTD, rotary)
        if self.parts is not None:
            q_BHTD, k_BKTD, v_BKTD = (self.parts.to_heads(x) for x in (q_BHTD, k_BKTD, v_BKTD))
        if cache is not None:
            k_BKTD, v_BKTD = cache.extend(self.layer, k_BKTD, v_BKTD)
        if isinstance(mask_B1TS, BlockMask):
            attend: Any = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention)
            out_BHTD = attend(q_BHTD, k_BKTD, v_BKTD, block_mask=mask_B1TS, scale=self.scale, enable_gqa=self.group > 1)
            return self._out(out_BHTD)
        if self.group > 1 and T == 1 and cache is not None:  # one token: its heads of a group stand where the tokens of a row would
            grouped_BKGD = q_BHTD.reshape(B, -1, self.group, self.head_dim)
            out_BKGD = F.scaled_dot_product_attention(grouped_BKGD, k_BKTD, v_BKTD, attn_mask=mask_B1TS, scale=self.scale)
            return self._out(out_BKGD.reshape(B, -1, 1, self.head_dim))
        if self.group > 1:  # repeated by hand: with enable_gqa and a mask, SDPA falls back to its slow kernel on some devices
            k_BKTD, v_BKTD = k_BKTD.repeat_interleave(self.group, dim=1), v_BKTD.repeat_interleave(self.group, dim=1)
        dropout = self.dropout if self.training else 0.0
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BKTD, v_BKTD, attn_mask=mask_B1TS, dropout_p=dropout, is_causal=causal, scale=self.scale
        )
        return self._out(out_BHTD)

    def _out(self, out_BHTD: Tensor) -> Tensor:
        if self.parts is not None:
            out_BHTD = self.parts.to_tokens(out_BHTD)
        return self.o(out_BHTD.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """down(activation(up(x))); with swiglu down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=config.bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(config.width, config.ffn_width, bias=config.bias)
        self.down = nn.Linear(config.ffn_width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS.get(config.activation, F.silu)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(self.activation(self.gate(x_BTC)) * self.up(x_BTC))
        return self.down(self.activation(self.up(x_BTC)))


class Block(nn.Module):
    """Pre-norm: x + Dropout(Sublayer(Norm(x))). Post-norm: Norm(x + Dropout(Sublayer(x)))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.post = config.norm_place == "post"
        self.attention = Attention(config, layer)
        self.attention_norm = norm(config, config.width)
        self.ffn = FeedForward(config)
        self.ffn_norm = norm(config, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_B1TS: Tensor | BlockMask | None, causal: bool, cache: Cache | None
    ) -> Tensor:
        if self.post:
            x_BTC = self.attention_norm(x_BTC + self.dropout(self.attention(x_BTC, rotary, mask_B1TS, causal, cache)))
            return self.ffn_norm(x_BTC + self.dropout(self.ffn(x_BTC)))
        x_BTC = x_BTC + self.dropout(self.attention(self.attention_norm(x_BTC), rotary, mask_B1TS, causal, cache))
        return x_BTC + self.dropout(self.ffn(self.ffn_norm(x_BTC)))


class MaskedHead(nn.Module):
    """norm(activation(dense(x))), which BERT puts before the output matrix."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS.get(config.activation, F.silu)
        self.norm = norm(config, config.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_BTC)))


class LabelHead(nn.Module):
    """dropout(tanh(dense(x))), which BERT and RoBERTa put between the first token's state and the scores of labels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.dense(x_BTC)))


class Pooler(nn.Module):
    """tanh(dense(state of the first token)), [B, C], which BERT trained by `next_sentence`: two scores a row, does the second segment follow."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.next_sentence = nn.Linear(config.width, 2) if config.pooler == "next_sentence" else None

    def forward(self, x_BTC: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_BTC[:, 0]))


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding without values: nn.Embedding's own draw, on the meta device of families.load, would import torch._dynamo (1.5 s of CPU)."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Transformer(nn.Module):
    """Embeddings, blocks, a last norm if pre-norm, and what makes `vocab` logits of a state; a pooler on the states, which no logit needs."""

    def __init__(self, config: ModelConfig, vocab: int):
        super().__init__()
        self.config, self.vocab = config, vocab
        self.embed = table(vocab, config.width)
        self.place = table(config.position_offset + config.context, config.width) if config.positions == "learned" else None
        self.types = table(config.types, config.width) if config.types else None
        self.embed_norm = norm(config, config.width) if config.embed_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config, config.width) if config.norm_place == "pre" else nn.Identity()
        self.prompt = table(config.prompt, config.width) if config.prompt else None
        labelling = config.head == "labels" and config.kind == "encoder"
        self.head = MaskedHead(config) if config.head == "masked" else LabelHead(config) if labelling else nn.Identity()
        self.output = nn.Linear(config.width, len(config.labels) or vocab, bias=config.head in ("masked", "spans") or labelling)
        self.pooler = Pooler(config) if config.pooler != "none" else None
        # FlexAttention's own limits; and its masks know no window
        self._flexible = config.dropout == 0 and config.head_dim >= 16 and "local" not in config.attention
        self.checkpointing = False
        """Compute the inside of each block again in backward (Chen et al. 2016)."""
        self.parts: Parts | None = None
        self.layers = range(config.layers)
        """Layers that are here: all, but for a stage of a pipeline."""
        self.tie()

    @property
    def soft(self) -> range:
        """Ids of the rows of the soft prompt, which stand before every document; none without one."""
        return range(self.vocab, self.vocab + self.config.prompt)

    @property
    def room(self) -> int:
        """Longest text, tokens: the context without the soft prompt."""
        return self.config.context - self.config.prompt

    def tie(self) -> None:
        """Make the output matrix the embedding matrix, if the config says so; again after weights were assigned rather than copied."""
        if self.config.tie_embeddings:
            self.output.weight = self.embed.weight

    def hold(self, layers: range) -> None:
        """Keep these layers only, as a stage of a pipeline: with the first one the embeddings, with the last one what makes logits.

        A last stage whose output matrix is the embedding is lent it: `output.weight` is then no parameter.
        """
        self.layers, first, last = layers, layers.start == 0, layers.stop == self.config.layers
        outside = [] if first else ["embed", "place", "types", "embed_norm", "prompt"]
        outside += [] if last else ["norm", "head", "output", "pooler"]
        if last and not first and self.config.tie_embeddings:
            del self.output.weight
        for name in outside:
            setattr(self, name, None if getattr(self, name) is None else nn.Identity())
        for layer in range(self.config.layers):
            if layer not in layers:
                self.blocks[layer] = nn.Identity()

    def share_rows(self, parts: Parts) -> None:
        """Work on a part of each row's tokens from now on, with other ranks: states, logits and what a head gets are of these."""
        self.parts = parts
        for module in self.modules():
            if isinstance(module, Attention):
                module.parts = parts

    def own(self, row_BT: Tensor) -> Tensor:
        """Of what is given a token, that of the tokens that this rank works on; all, unless rows are shared."""
        return row_BT if self.parts is None else self.parts.own(row_BT)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """All initialisation: matrices normal(0, .02), those that write into the residual stream scaled by 1/√(2·layers) (GPT-2), norms
        one, biases zero. Drawn on the CPU from a generator of its own: it depends on the seed and the shape, not on rank or global state.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
                continue
            residual = name.endswith(("attention.o.weight", "ffn.down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        hidden: bool = False,
        types_BT: Tensor | None = None,
        ahead_B: Tensor | None = None,
        head: Callable[[Tensor, nn.Module], Tensor] | None = None,
        states_BTC: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V], or with `hidden` the states [B, T, C] of which `logits` makes them, and the pooler a vector a row, or what `head`
        makes of the states before the output matrix and of that matrix.

        Under a head of labels or spans the logits are the scores of these, [B, T, labels]. tokens_BT: ids below `vocab`, or vocab + n for
        row n of a soft prompt. types_BT: their segments, None means 0, used by models that have types. documents_BT: integers; a token
        attends only to tokens of the same id (and, in a decoder, not later); None means one document a row. ahead_B: rows of a decoder, without
        local layers or cache, whose tokens see later ones too. states_BTC: those that the layers before `layers` made of the tokens; layers
        that are not the last return theirs. positions_BT: None counts from the start of each document, or from the end of the cache.
        Raises InputError if the sequence is longer than the context, or than the room left in the cache. The slots of a cache may outnumber
        the context, as long as no position does.
        """
        B, T = tokens_BT.shape
        start = cache.length if cache is not None else 0
        room = cache.capacity if cache is not None else self.config.context
        if start + T > room:
            raise InputError(
                f"a sequence of {start + T:,} tokens does not fit {room:,} ({'cache' if cache else 'model context'}); shorten it"
            )
        if positions_BT is None:
            if documents_BT is not None and start == 0:
                positions_BT = restart(documents_BT)
            else:
                positions_BT = torch.arange(start, start + T, device=tokens_BT.device).expand(B, T)
        if cache is None:
            mask_B1TS = self._mask(documents_BT, tokens_BT, ahead_B)
            local_B1TS = self._local(mask_B1TS, tokens_BT)
        else:
            cache.enter(tokens_BT, documents_BT)
            mask_B1TS, local_B1TS = cache.mask(), cache.mask(self.config.window) if "local" in self.config.attention else None
        tokens_BT, positions_BT = self.own(tokens_BT), self.own(positions_BT)
        types_BT = None if types_BT is None else self.own(types_BT)
        x_BTC = self._entered(tokens_BT, types_BT, positions_BT) if states_BTC is None else states_BTC
        rotary = None
        if self.config.positions == "rotary":
            phase_B1TD = angles(positions_BT, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling).repeat(1, 1, 2)[
                :, None
            ]
            rotary = phase_B1TD.cos().to(x_BTC.dtype), phase_B1TD.sin().to(x_BTC.dtype)
        for layer in self.layers:
            seen_B1TS = local_B1TS if self.config.attention[layer % len(self.config.attention)] == "local" else mask_B1TS
            inputs = (x_BTC, rotary, seen_B1TS, self.config.kind == "decoder" and seen_B1TS is None, cache)
            if self.checkpointing and torch.is_grad_enabled():
                x_BTC = checkpoint(self.blocks[layer], *inputs, use_reentrant=False)
            else:
                x_BTC = self.blocks[layer](*inputs)
        if self.layers.stop < self.config.layers:
            return x_BTC
        if cache is not None:
            cache.leave()
        x_BTC = self.norm(x_BTC)
        if head is not None:
            return head(self.head(x_BTC), self.output)
        return x_BTC if hidden else self.logits(x_BTC)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., C]."""
        return self.output(self.head(states))

    def _entered(self, tokens_BT: Tensor, types_BT: Tensor | None, positions_BT: Tensor) -> Tensor:
        """Tokens, with types and positions where a table holds them, as the first layer gets them, [B, T, C]."""
        x_BTC = self._embedded(tokens_BT)
        if self.types is not None:
            x_BTC = x_BTC + self.types(torch.zeros_like(tokens_BT) if types_BT is None else types_BT)
        if self.place is not None:
            x_BTC = x_BTC + self.place(positions_BT + self.config.position_offset)
        elif self.config.positions == "sinusoidal":  # §3.4 of the paper scales the embedding, so that sinusoids of size one do not drown it
            x_BTC = x_BTC * math.sqrt(self.config.width) + sinusoids(positions_BT, self.config.width).to(x_BTC.dtype)
        return self.dropout(self.embed_norm(x_BTC))

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        if self.prompt is None:
            return self.embed(tokens_BT)
        soft_BT = tokens_BT >= self.vocab
        prompted_BTC = self.prompt((tokens_BT - self.vocab).clamp(min=0))
        return torch.where(soft_BT[..., None], prompted_BTC, self.embed(tokens_BT.where(~soft_BT, 0)))

    def _mask(self, documents_BT: Tensor | None, tokens_BT: Tensor, ahead_B: Tensor | None) -> Tensor | BlockMask | None:
        """True where a query (dim 2) may see a key (dim 3), [B, 1, T, S]; None where `is_causal` or nothing at all says the same.

        Training on a GPU gets the same as a BlockMask: the other's T² entries a row, read at every layer, would cost more than attention.
        It compiles for half a minute a shape, which calls of other lengths, as in evaluation, are not worth; nor does it know dropout.
        """
        T = tokens_BT.shape[1]
        if documents_BT is not None and documents_BT.is_cuda and self.training and self._flexible:
            return block_mask(documents_BT, self.config.kind == "decoder", ahead_B)
        if documents_BT is None:
            if ahead_B is None:
                return None
            documents_BT = torch.zeros_like(tokens_BT)
        mask_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
        if self.config.kind == "decoder":
            before_BTS = torch.ones(T, T, device=mask_BTS.device, dtype=torch.bool).tril()[None]
            mask_BTS = mask_BTS & (before_BTS if ahead_B is None else before_BTS | ahead_B[:, None, None])
        return mask_BTS[:, None]

    def _local(self, mask_B1TS: Tensor | BlockMask | None, tokens_BT: Tensor) -> Tensor | BlockMask | None:
        """The mask of local layers: of what `mask_B1TS` shows, the last `window` tokens; the same mask where all are within it."""
        T, window = tokens_BT.shape[1], self.config.window
        if "local" not in self.config.attention or isinstance(mask_B1TS, BlockMask) or window >= T:
            return mask_B1TS  # a BlockMask comes only where no layer is local
        band_TS = torch.ones(T, T, device=tokens_BT.device, dtype=torch.bool).tril().triu(1 - window)
        return band_TS[None, None] if mask_B1TS is None else mask_B1TS & band_TS


def parameter_counts(config: ModelConfig, vocab: int) -> tuple[int, int]:
    """Parameters of a model, and those that every token passes: all but tables, output matrix and pooler. A tied matrix counts once.

    Allocates nothing.
    """
    with torch.device("meta"):
        model = Transformer(config, vocab)
    total = sum(p.numel() for p in model.parameters())
    modules = (model.embed, model.place, model.types, model.output, model.pooler)
    outer = {p for module in modules if module is not None for p in module.parameters()}
    return total, total - sum(p.numel() for p in outer)


def flops_per_token(config: ModelConfig, vocab: int, length: int) -> float:
    """Floating-point operations of one training token, forward and backward: 6N + 12·H·Q·ΣT (PaLM, Chowdhery et al. 2022, appendix B).

    N: parameters that multiply (all but the embedding tables; the output matrix counts, tied or not); H heads, Q head size, ΣT over layers
    the tokens that one sees: `length`, in a local layer at most the window. As there, the causal half of attention that a kernel may skip
    is counted too.
    """
    inner = parameter_counts(config, vocab)[1]
    kinds = [config.attention[layer % len(config.attention)] for layer in range(config.layers)]
    seen = sum(min(length, config.window) if kind == "local" else length for kind in kinds)
    return 6.0 * (inner + (len(config.labels) or vocab) * config.width) + 12.0 * config.heads * config.head_dim * seen
