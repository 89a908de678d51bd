"""Configuration: frozen dataclasses checked by pydantic, dotted overrides, canonical JSON and fingerprints; the model layer's own configs.

A section's fields have no defaults: a recipe states every value, so a partial section is refused by name.
`metadata={"identity": False}` marks a field that cannot change results (URLs, workers, rates): it stays out of fingerprints.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic._internal import _fields

from model.errors import ConfigError

T = TypeVar("T")
STRICT = {"use_attribute_docstrings": True, "extra": "forbid"}
"""Set as `__pydantic_config__` of every config: docstrings reach Prefect's form, unknown keys are refused."""
# pydantic parses a class's source again wherever a config mentions it: some 230 times, 2 s, for the forms of flows/build.py
_fields.extract_docstrings_from_cls = cache(_fields.extract_docstrings_from_cls)  # type: ignore[assignment]


@cache
def _adapter(cls: Any) -> TypeAdapter:
    return TypeAdapter(cls)


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build a config from plain data, checking types, bounds and unknown keys. Raises ConfigError naming each field."""
    kind: Any = cls
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(str(part) for part in ([where] if where else []) + list(problem["loc"]))
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                lines.append(f"unknown field {path!r}{_nearest(cls, str(problem['loc'][-1]))}")
            elif problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
                lines.append(f"{path!r} is missing: a section is given whole, or one field at a time as {path}=value")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                whole = problem["type"] == "value_error"  # a section's own check: its input is every field of it
                lines.append(f"{path!r}: {message}" + ("" if whole else f" (got {problem.get('input')!r})"))
        raise ConfigError(f"{cls.__name__}: " + "; ".join(lines)) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a config (nested dataclasses become dicts, tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def override(config: T, changes: Mapping[str, Any]) -> T:
    """A copy with dotted fields replaced (`{"pretrain.steps": 10}`). Values may be strings as typed in a shell: JSON is tried first,
    but for a field that holds text. A field that is a mapping takes new keys.

    Raises ConfigError naming an unknown field (with the nearest known one) or a bad value.
    """
    data = to_dict(config)
    for path, value in changes.items():
        place, node, parts = data, cast(Any, config), path.split(".")
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            if not isinstance(place, dict) or (part not in place and not (last and isinstance(node, dict))):
                known = list(place) if isinstance(place, dict) else []
                raise ConfigError(
                    f"unknown field {path!r}{_hint(part, known)}; known here: {', '.join(known) or 'nothing (the section is off)'}"
                )
            if last:
                place[part] = typed(value, place.get(part)) if isinstance(value, str) else deepcopy(value)
            else:
                place, node = place[part], getattr(node, part, None)
    return from_dict(type(config), data)


def typed(text: str, old: Any) -> Any:
    """What a shell's word means for a field that held `old`: a text field takes 20261001 or 1.0 as it stands."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if isinstance(old, str) and not isinstance(value, str) else value


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _nearest(cls: type, name: str) -> str:
    return _hint(name, [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else [])


def identity(config: Any) -> Any:
    """Plain data of a config without the fields marked `identity: False`."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: identity(getattr(config, f.name)) for f in dataclasses.fields(config) if f.metadata.get("identity", True)}
    if isinstance(config, (list, tuple)):
        return [identity(item) for item in config]
    if isinstance(config, dict):
        return {key: identity(value) for key, value in config.items()}
    return config


def canonical(data: Any) -> str:
    """JSON with sorted keys, no spaces, exact numbers; NaN and infinities are refused (ValueError)."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(data: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of plain data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def differing(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves in which two pieces of plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name for key in sorted(old.keys() | new.keys()) for name in differing(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [path or "."]


def resource(**more: Any) -> Any:
    """A dataclass field that cannot change results and stays out of fingerprints."""
    return field(metadata={"identity": False}, **more)


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotary pairs for a longer context, as Llama 3.1 has them: wavelengths beyond original / low are stretched by `factor`, those below
    original / high stay, those between are blended."""

    __pydantic_config__ = STRICT

    factor: Annotated[float, Field(ge=1)]
    """How much longer the slowest waves become."""
    low: Annotated[float, Field(gt=0)]
    """Fewest turns within the original context of a wave that is not stretched whole."""
    high: Annotated[float, Field(gt=0)]
    """Turns within the original context from which on a wave stays as it is."""
    original: Annotated[int, Field(ge=8)]
    """Context before the stretch, tokens."""

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high}) must exceed low ({self.low})")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one Transformer. The vocabulary's size comes from the tokenizer, never from here."""

    __pydantic_config__ = STRICT

    kind: Literal["decoder", "encoder"]
    """decoder: causal attention; encoder: every token sees its whole document."""
    width: Annotated[int, Field(ge=8)]
    """Size of the residual stream, d_model."""
    layers: Annotated[int, Field(ge=1)]
    """Number of Transformer blocks."""
    heads: Annotated[int, Field(ge=1)]
    """Number of query heads."""
    kv_heads: Annotated[int, Field(ge=1)]
    """Number of key/value heads; divides heads (grouped-query attention)."""
    head_dim: Annotated[int, Field(ge=2)]
    """Size of one head."""
    ffn_width: Annotated[int, Field(ge=8)]
    """Inner size of the feed-forward layer."""
    context: Annotated[int, Field(ge=8)]
    """Longest sequence, tokens."""
    norm: Literal["rms", "layer"]
    """RMSNorm or LayerNorm."""
    norm_place: Literal["pre", "post"]
    """Before each sublayer with a final norm, or after each residual sum (the article's formulas)."""
    norm_eps: Annotated[float, Field(gt=0)]
    """Added to the variance."""
    positions: Literal["rotary", "learned", "sinusoidal"]
    """Rotary in attention, or learned or sinusoidal vectors added to the embeddings."""
    rope_theta: Annotated[float, Field(gt=0)]
    """Base of the rotary frequencies; unused otherwise."""
    rope_scaling: RopeScaling | None
    """Stretch of the rotary waves; null for none."""
    position_offset: Annotated[int, Field(ge=0)]
    """Rows of the learned positions before the first token's (RoBERTa: 2); unused otherwise."""
    types: Annotated[int, Field(ge=0)]
    """Rows of the token types (segments) added to the embeddings; 0: none."""
    embed_norm: bool
    """Norm over the sum of the embeddings (BERT)."""
    attention: Annotated[tuple[Literal["global", "local"], ...], Field(min_length=1)]
    """Kinds of the layers, repeated: ["global", "local"] alternates (GPT-Neo). A local layer sees the last `window` tokens."""
    window: Annotated[int, Field(ge=0)]
    """Tokens that a local layer sees, the present one included; unused without local layers."""
    scaled_scores: bool
    """Attention scores are divided by √head_dim (GPT-Neo's are not)."""
    qk_norm: bool
    """RMSNorm over each head's queries and keys (Qwen3)."""
    activation: Literal["swiglu", "gelu", "gelu_tanh", "relu"]
    """Feed-forward non-linearity; swiglu has a third matrix, gelu_tanh is GPT-2's approximation."""
    bias: bool
    """Biases in the feed-forward matrices and the one behind attention."""
    qkv_bias: bool
    """Biases in queries, keys and values."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Probability of dropping in attention weights, sublayer outputs and embeddings."""
    tie_embeddings: bool
    """The output matrix is the embedding matrix."""
    head: Literal["linear", "masked", "labels", "spans"]
    """What is made of a state: logits of tokens, by the output matrix alone or behind BERT's masked-LM head (matrix, activation, norm; a bias);
    a score for each of `labels` (classification); or how well an answer begins and ends there (extraction)."""
    labels: tuple[str, ...]
    """Names of the classes under head=labels, start and end under spans; else none."""
    prompt: Annotated[int, Field(ge=0)]
    """Trained vectors that stand before every document (soft prompt); 0: none."""
    pooler: Literal["none", "plain", "next_sentence"]
    """tanh of a matrix over the first token's state (BERT); next_sentence: and two scores from it."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2 and self.positions == "rotary":
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if "local" in self.attention and (self.window == 0 or self.kind == "encoder"):
            raise ValueError(f"attention {self.attention} needs a decoder and a window, not {self.kind} and {self.window}")
        if (self.head in ("labels", "spans")) != (len(self.labels) > 1) or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"head={self.head} with {len(set(self.labels))} different labels: two or more belong to heads labels and spans"
            )
        if self.labels and self.tie_embeddings:
            raise ValueError(f"head={self.head} has an output matrix of its own: set tie_embeddings to false")


@dataclass(frozen=True)
class Causal:
    """Each token from those before it."""

    __pydantic_config__ = STRICT

    kind: Literal["causal"]
    """The objective's name."""


@dataclass(frozen=True)
class Masked:
    """Hidden tokens from all others, by an encoder (Devlin et al. 2019); hidden anew whenever a row is seen (Liu et al. 2019)."""

    __pydantic_config__ = STRICT

    kind: Literal["masked"]
    """The objective's name."""
    rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of a row's tokens to predict, at the first step; BERT: .15."""
    last_rate: Annotated[float, Field(gt=0, lt=1)]
    """The same at the last step, and in validation; linear in between."""
    masked: Annotated[float, Field(ge=0, le=1)]
    """Of these, the share whose place the mask token takes; BERT: .8."""
    random: Annotated[float, Field(ge=0, le=1)]
    """Of these, the share whose place any other token takes; BERT: .1. The rest stays as it is."""
    whole_words: bool
    """Hide all tokens of a word together; of Chinese, words as jieba cuts them."""

    def __post_init__(self) -> None:
        if self.masked + self.random > 1:
            raise ValueError(f"masked and random ({self.masked} + {self.random}) exceed 1")


@dataclass(frozen=True)
class Spans:
    """Spans cut out of a text, from what is left of it, by a decoder: the text with a mask token for each, then each behind a mask token (the
    corruption of T5, Raffel et al. 2020). Loss on the spans."""

    __pydantic_config__ = STRICT

    kind: Literal["spans"]
    """The objective's name."""
    rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of the tokens that are cut out; T5: .15."""
    length: Annotated[float, Field(ge=1)]
    """Mean tokens of a span; T5: 3."""


@dataclass(frozen=True)
class Mixed:
    """Causal and masked rows on one decoder (GPT-BERT, Charpentier and Samuel 2024): a masked row sees both ways, and a hidden token is predicted
    at the place before its own, as the next one is in a causal row."""

    __pydantic_config__ = STRICT

    kind: Literal["mixed"]
    """The objective's name."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows that are masked."""
    masked: Masked
    """How they are."""


@dataclass(frozen=True)
class Contrastive:
    """The text that belongs to each, among all of its batch: InfoNCE over cosines (van den Oord et al. 2018; Gao et al. 2021, SimCSE)."""

    __pydantic_config__ = STRICT

    kind: Literal["contrastive"]
    """The objective's name."""
    pairs: Literal["dropout", "labelled"]
    """dropout: each document with itself under other noise; labelled: documents 1 and 2 of the shards, 3 and 4, and so on."""
    temperature: Annotated[float, Field(gt=0)]
    """What cosines are divided by; SimCSE: .05."""
    pooling: Literal["mean", "first"]
    """A text's vector: the mean of its states, or the state of its first token."""


def _choice(schema: dict[str, Any]) -> None:
    """Prefect's form offers anyOf as a choice; of oneOf, which pydantic writes, it knows nothing."""
    schema["anyOf"] = schema.pop("oneOf")


@dataclass(frozen=True)
class Labels:
    """The label of a text, from the state of an encoder's first token or a decoder's last. Examples of text and label."""

    __pydantic_config__ = STRICT

    kind: Literal["labels"]
    """The objective's name."""


@dataclass(frozen=True)
class Answers:
    """Where the answer to a question begins and ends in its context (Rajpurkar et al. 2016). Examples of context, question and answers."""

    __pydantic_config__ = STRICT

    kind: Literal["answers"]
    """The objective's name."""


@dataclass(frozen=True)
class Preference:
    """The better of two answers rather than the other, more so than the model that training starts from (DPO, Rafailov et al. 2023). Examples of
    messages, chosen and rejected."""

    __pydantic_config__ = STRICT

    kind: Literal["preference"]
    """The objective's name."""
    beta: Annotated[float, Field(gt=0)]
    """How dear it is to leave the start's probabilities; often .1."""


Objective = Annotated[
    Causal | Masked | Spans | Mixed | Contrastive | Labels | Answers | Preference, Field(discriminator="kind", json_schema_extra=_choice)
]
EXAMPLES = (Causal, Labels, Answers, Preference)
"""Objectives that learn packed examples."""


@dataclass(frozen=True)
class Lora:
    """Low-rank matrices beside frozen ones: W x + alpha/rank · B A x (Hu et al. 2021). Only they are trained, and a head of labels or spans."""

    __pydantic_config__ = STRICT

    kind: Literal["lora"]
    """The adapter's name."""
    rank: Annotated[int, Field(ge=1)]
    """Rows of A and columns of B."""
    alpha: Annotated[float, Field(gt=0)]
    """Weight of the product, divided by the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Probability of dropping in A's input."""
    modules: Annotated[tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...], Field(min_length=1)]
    """Matrices of each block that get a pair; gate is only there with swiglu."""


@dataclass(frozen=True)
class SoftPrompt:
    """Trained vectors before the embedded tokens of a frozen model (Lester et al. 2021). Only they are trained, and a head of labels or spans."""

    __pydantic_config__ = STRICT

    kind: Literal["prompt"]
    """The adapter's name."""
    tokens: Annotated[int, Field(ge=1)]
    """Vectors; each takes a place of train.length and of the model's context."""


Adapter = Annotated[Lora | SoftPrompt, Field(discriminator="kind", json_schema_extra=_choice)]


@dataclass(frozen=True)
class TrainConfig:
    """One run of the loop, pretraining or fine-tuning. Batches are counted in sequences over all ranks."""

    __pydantic_config__ = STRICT

    objective: Objective
    """What is learnt, as an object: {"kind": "causal"}; masked, spans, mixed, contrastive have settings. Of examples: causal, labels, answers, preference."""
    adapter: Adapter | None
    """What is trained beside a frozen start, as an object: {"kind": "lora", …} or {"kind": "prompt", "tokens": 20}; null trains every parameter."""
    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps of this stage; never changed in place: an extension is a new stage."""
    batch: Annotated[int, Field(ge=1)]
    """Sequences in one global batch."""
    length: Annotated[int, Field(ge=8)]
    """Tokens in one sequence."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0, le=1)]
    """Learning rate at the end, as a share of the peak."""
    warmup: Annotated[int, Field(ge=0)]
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "wsd"]
    """cosine decay, or warm-up, stable, decay (WSD)."""
    decay: Annotated[int, Field(ge=0)]
    """Steps of the last linear decay under wsd; unused by cosine."""
    optimizer: Literal["adamw", "muon"]
    """adamw for all; or muon for the matrices inside blocks and adamw for embeddings, output matrix, norms and biases."""
    matrix_lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the matrices under muon, about .02 as its authors have it; the schedule of `lr` holds. Unused by adamw."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Muon's momentum; unused by adamw."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled weight decay, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)]
    """AdamW's first-moment decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)]
    """AdamW's second-moment decay."""
    eps: Annotated[float, Field(gt=0)]
    """AdamW's epsilon."""
    clip: Annotated[float, Field(ge=0)]
    """Largest global gradient norm; 0 turns clipping off."""
    z_loss: Annotated[float, Field(ge=0)]
    """Weight of log² Z beside the cross entropy, which keeps logits from drifting; 1e-4 is usual, 0 is none."""
    skip_sigmas: Annotated[float, Field(ge=0)]
    """A step whose loss is so many deviations above the mean of the last 128 changes nothing and names its documents; 6 is usual, 0 is never."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of forward and backward; the optimizer keeps fp32 masters."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Seed of initialisation, of the order of samples and of noise."""
    valid_every: Annotated[int, Field(ge=0)] = resource()
    """Steps between evaluations on the validation shard; 0: at the end only."""
    valid_batches: Annotated[int, Field(ge=1)] = resource()
    """Global batches of one such evaluation."""
    save_every: Annotated[int, Field(ge=1)] = resource()
    """Steps between checkpoints; the last step is always saved."""
    keep: Annotated[int, Field(ge=1)] = resource()
    """Complete checkpoints kept; older ones are removed after a newer one is complete."""
    overlap_saving: bool = resource()
    """Write a checkpoint while training goes on; takes main memory for a copy of it."""
    ranks: Annotated[int, Field(ge=1)] = resource()
    """Processes on one node; each has rows of its own unless they share matrices, rows or layers."""
    tensor_parallel: Annotated[int, Field(ge=1)] = resource()
    """Neighbouring ranks that share the matrices of every block and work on the same rows; the model's heads are divided among them."""
    sequence_parallel: Annotated[int, Field(ge=1)] = resource()
    """Neighbouring ranks that take a part of the same rows' tokens each, for long sequences; attention's heads are divided among them."""
    pipeline_parallel: Annotated[int, Field(ge=1)] = resource()
    """Neighbouring ranks that hold some layers each and pass micro-batches on; idle for (stages - 1) of (stages - 1 + accumulation) turns."""
    micro_batch: Annotated[int, Field(ge=1)] = resource()
    """Sequences in one forward pass; batch = micro_batch × accumulation × ranks / (tensor_parallel × sequence_parallel × pipeline_parallel)."""
    zero: Annotated[int, Field(ge=0, le=3)] = resource()
    """DeepSpeed ZeRO stage."""
    compile: bool = resource()
    """Compile blocks and loss with torch.compile: faster and smaller on a GPU, after about a minute at the first step; needs a C++ compiler."""
    checkpointing: bool = resource()
    """Keep each block's input only and compute the rest again in backward: several times less memory, about a third more arithmetic."""
    device: Literal["auto", "cpu", "cuda"] = resource()
    """auto: cuda where present."""
    timeout: Annotated[float, Field(gt=0)] = resource()
    """Seconds without a step after which the run counts as hung and is ended."""

    def __post_init__(self) -> None:
        ways = {name: getattr(self, name) for name in ("tensor_parallel", "sequence_parallel", "pipeline_parallel")}
        used = [name for name, ranks in ways.items() if ranks > 1]
        shared = math.prod(ways.values())
        if len(used) > 1:
            raise ValueError(f"{' and '.join(used)} do not go together; set all but one of them to 1")
        if used and self.ranks % shared:
            raise ValueError(f"ranks ({self.ranks}) must be a multiple of {used[0]} ({shared})")
        if used and (self.adapter is not None or not isinstance(self.objective, Causal | Masked | Spans | Mixed)):
            raise ValueError(f"{used[0]} goes with objectives causal, masked, spans, mixed and without an adapter")
        if self.sequence_parallel > 1 and (self.compile or self.length % self.sequence_parallel):
            raise ValueError(f"sequence_parallel ({self.sequence_parallel}) must divide length ({self.length}), and goes without compile")
        if self.pipeline_parallel > 1 and (self.zero > 1 or self.optimizer == "muon"):
            raise ValueError("pipeline_parallel goes with zero=0 or 1 and with optimizer=adamw")
        replicas = self.ranks // shared
        if self.batch % (self.micro_batch * replicas):
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch × ranks ({self.micro_batch} × {replicas})")
        if self.tensor_parallel > 1 and (self.zero == 0 or self.compile or self.optimizer == "muon"):
            raise ValueError("tensor_parallel goes with zero=1, 2 or 3, with optimizer=adamw and without compile")
        if self.precision == "bf16" and self.zero == 0:
            raise ValueError("zero=0 with precision=bf16 takes a phantom Adam step in DeepSpeed 0.19; set zero to 1, 2 or 3")
        if self.warmup + (self.decay if self.schedule == "wsd" else 0) > self.steps:
            raise ValueError(f"warmup and decay ({self.warmup} + {self.decay}) exceed steps ({self.steps})")


@dataclass(frozen=True)
class Run:
    """What `python -m model.train run.json` is told: local paths and fingerprints beside the configs."""

    __pydantic_config__ = STRICT

    data: Literal["stream", "packed"]
    """How the shards are read: documents one after another, or whole examples packed into rows, with a loss mask. Contrastive runs read whole documents."""
    fingerprint: str
    """The stage's fingerprint: a checkpoint of another run is refused."""
    data_fingerprint: str
    """Content fingerprint of the shards: with length, batch, seed and step it decides every batch."""
    model: ModelConfig
    """Shape of the model."""
    train: TrainConfig
    """The loop's settings."""
    vocab: int
    """Rows of the embedding matrix (padded vocabulary)."""
    shards: tuple[str, ...]
    """Path prefixes of training shards (`PREFIX.bin`, `PREFIX.idx`; a loss mask beside them is `PREFIX.mask`)."""
    valid: tuple[str, ...]
    """Path prefixes of validation shards; may be empty."""
    tokenizer: str
    """Directory of the tokenizer, copied beside the final weights."""
    start: str | None
    """Model directory (safetensors) to start from; None: fresh weights from the seed."""
    out: str
    """Directory of this run: checkpoints/, metrics.jsonl and at the end model/."""


def qwen3(width: int, layers: int, heads: int, kv_heads: int, ffn_width: int, context: int) -> ModelConfig:
    """The house default: a decoder of Qwen3's shape, which transformers, vLLM, SGLang and onnxruntime load with no code of ours.

    Heads are width / heads wide. The rotary base is RoFormer's 10,000, made for contexts of a few thousand tokens; Qwen3's own 1,000,000
    serves 32k and more, and within a short context leaves most rotary pairs almost still.
    """
    return ModelConfig(
        kind="decoder",
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        ffn_width=ffn_width,
        context=context,
        norm="rms",
        norm_place="pre",
        norm_eps=1e-6,
        positions="rotary",
        rope_theta=10_000.0,
        rope_scaling=None,
        position_offset=0,
        types=0,
        embed_norm=False,
        attention=("global",),
        window=0,
        scaled_scores=True,
        qk_norm=True,
        activation="swiglu",
        bias=False,
        qkv_bias=False,
        dropout=0.0,
        tie_embeddings=True,
        head="linear",
        labels=(),
        prompt=0,
        pooler="none",
    )


def article_formula(
    kind: Literal["decoder", "encoder"], width: int, layers: int, heads: int, ffn_width: int, context: int, dropout: float
) -> ModelConfig:
    """The article's formulas: post-norm, x = LayerNorm(x + Sublayer(x)), and sinusoidal positions (Vaswani et al. 2017, §3)."""
    return ModelConfig(
        kind=kind,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ffn_width=ffn_width,
        context=context,
        norm="layer",
        norm_place="post",
        norm_eps=1e-5,
        positions="sinusoidal",
        rope_theta=10_000.0,
        rope_scaling=None,
        position_offset=0,
        types=0,
        embed_norm=False,
        attention=("global",),
        window=0,
        scaled_scores=True,
        qk_norm=False,
        activation="relu",
        bias=True,
        qkv_bias=True,
        dropout=dropout,
        tie_embeddings=True,
        head="linear",
        labels=(),
        prompt=0,
        pooler="none",
    )


def article_listing(
    kind: Literal["decoder", "encoder"], width: int, layers: int, heads: int, ffn_width: int, context: int, dropout: float
) -> ModelConfig:
    """The article's listing: the same parts as its formulas, but pre-norm, x = x + Dropout(Sublayer(LayerNorm(x)))."""
    return replace(article_formula(kind, width, layers, heads, ffn_width, context, dropout), norm_place="pre")


def llama(width: int, layers: int, heads: int, kv_heads: int, ffn_width: int, context: int) -> ModelConfig:
    """A decoder of Llama's shape (Touvron et al. 2023): Qwen3's without norms over queries and keys."""
    return replace(qwen3(width, layers, heads, kv_heads, ffn_width, context), norm_eps=1e-5, qk_norm=False)


def gpt2(width: int, layers: int, heads: int, ffn_width: int, context: int, dropout: float) -> ModelConfig:
    """A decoder of GPT-2's shape (Radford et al. 2019)."""
    listing = article_listing("decoder", width, layers, heads, ffn_width, context, dropout)
    return replace(listing, positions="learned", activation="gelu_tanh")


def gpt_neo(width: int, layers: int, heads: int, ffn_width: int, context: int, window: int, dropout: float) -> ModelConfig:
    """A decoder of GPT-Neo's shape (Black et al. 2021): every second layer sees the last `window` tokens, scores are not scaled."""
    shape = gpt2(width, layers, heads, ffn_width, context, dropout)
    return replace(shape, qkv_bias=False, scaled_scores=False, attention=("global", "local"), window=window)


def bert(width: int, layers: int, heads: int, ffn_width: int, context: int, dropout: float) -> ModelConfig:
    """An encoder of BERT's shape (Devlin et al. 2019) with its masked-LM head and pooler."""
    formula = article_formula("encoder", width, layers, heads, ffn_width, context, dropout)
    shape = replace(formula, positions="learned", activation="gelu", norm_eps=1e-12, embed_norm=True, types=2)
    return replace(shape, head="masked", pooler="next_sentence")


def roberta(width: int, layers: int, heads: int, ffn_width: int, context: int, dropout: float) -> ModelConfig:
    """An encoder of RoBERTa's shape (Liu et al. 2019): BERT's with one token type, positions counted from 2, and no next-sentence scores."""
    shape = bert(width, layers, heads, ffn_width, context, dropout)
    return replace(shape, norm_eps=1e-5, types=1, position_offset=2, pooler="none")
