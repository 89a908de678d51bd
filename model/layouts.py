"""What six families of Hugging Face call our shape and our tensors: GPT-2, GPT-Neo, Llama, Qwen3, BERT, RoBERTa.

    layout = describing(config)                       # the family that can say a shape, or None
    layout.described(config)                          # its config.json
    layout.tensors(names_of_our_parameters)           # its tensors, each made of ours
    LAYOUTS["gpt2"].config(config_json, names)        # and back

A layout is tables: what the family fixes, what its config.json calls our fields, what it calls our modules.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from model.config import ModelConfig, from_dict, to_dict
from model.errors import ConfigError, InputError

Json = dict[str, Any]
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
"""Our activations of two-matrix feed-forward layers → theirs."""
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new"}
"""Another word of theirs for the same function."""


@dataclass(frozen=True)
class Part:
    """One tensor of a family: ours, several of ours one above the other, or with `turned` the transposed of that."""

    theirs: str
    ours: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Layout:
    """One family. Keys of config.json stand with the default that an absent one has."""

    model_type: str
    prefix: str
    """What stands before the names of all tensors but the heads'; a file without it is read as well."""
    fixed: Json
    """Fields of ModelConfig that a member of the family cannot choose."""
    keys: Mapping[str, tuple[str, Any]]
    """Field of ModelConfig → key and default."""
    only: Json
    """Key → the one value that transformer.py computes, which is also the default."""
    fields: Callable[[Json, Collection[str]], Json]
    """config.json and the names of its tensors → the fields of ModelConfig that no table gives."""
    extras: Callable[[ModelConfig], Json]
    """The keys of config.json that no table gives."""
    modules: Mapping[str, str]
    """Their modules → ours, * for a layer's number, + between ours that are one of theirs. A tensor is written if we have it."""
    turned: tuple[str, ...] = ()
    """Ends of the names of modules whose matrices are stored transposed (GPT-2's Conv1D)."""
    heads: tuple[str, ...] = ("lm_head",)
    """Beginnings of names without the prefix."""
    unread: tuple[str, ...] = ("rotary_emb.inv_freq", "embeddings.position_ids")
    """Ends of the names of buffers that old files hold and nothing needs."""
    tied_bias: str = ""
    """Where a tied output matrix has its bias."""
    dropouts: tuple[str, ...] = ()
    """Further keys that get the dropout."""
    says: Callable[[ModelConfig], bool] = lambda config: True
    """Whether the family can say this shape, beside what is fixed."""

    def config(self, described: Json, tensors: Collection[str]) -> ModelConfig:
        """The shape of a directory. InputError for what transformer.py cannot compute."""
        given = {key: value for key, value in described.items() if value is not None}
        for key, value in self.only.items():
            if given.get(key, value) != value:
                raise InputError(f"{key} {given[key]!r} is not supported, only {value!r}; use a {self.model_type} checkpoint without it")
        read = {ours: given.get(theirs, default) for ours, (theirs, default) in self.keys.items()}
        try:
            return from_dict(ModelConfig, self.fixed | read | self.fields(given, tensors))
        except (ConfigError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"it does not describe a {self.model_type} model: {error}") from None

    def fits(self, config: ModelConfig) -> bool:
        """Whether this family can say a shape."""
        own = to_dict(config)
        return all(own[name] == value for name, value in self.fixed.items()) and self.says(config)

    def described(self, config: ModelConfig) -> Json:
        """config.json of a shape, but for vocabulary, special tokens and dtype."""
        written = {"model_type": self.model_type} | self.only | {theirs: getattr(config, ours) for ours, (theirs, _) in self.keys.items()}
        return written | dict.fromkeys(self.dropouts, config.dropout) | self.extras(config)

    def name(self, found: str) -> str | None:
        """The name that `tensors` has for a tensor of a file; None for one that nothing needs."""
        if found.endswith(self.unread):
            return None
        found = found.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")  # BERT of 2018
        return found if found.startswith((self.prefix, *self.heads)) else self.prefix + found

    def tensors(self, own: Collection[str]) -> list[Part]:
        """How the family stores our tensors of these names, without those that are tied."""
        return list(self._parts(own))

    def copies(self, config: ModelConfig) -> Mapping[str, str | None]:
        """Tensors that a file may hold beside `tensors` → the one that each must equal; None for one that nothing uses."""
        embedding = self.prefix + next(theirs for theirs, ours in self.modules.items() if ours == "embed")
        output = next(theirs for theirs, ours in self.modules.items() if ours == "output")
        if not config.tie_embeddings:
            return {self.tied_bias: None} if self.tied_bias else {}
        return {f"{output}.weight": f"{embedding}.weight"} | ({f"{output}.bias": self.tied_bias} if self.tied_bias else {})

    def _parts(self, own: Collection[str]) -> Iterator[Part]:
        layers = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("blocks."))
        for their, our in self.modules.items():
            for layer in range(layers if "*" in their else 1):
                theirs = their.replace("*", str(layer))
                theirs = theirs if theirs.startswith(self.heads) else self.prefix + theirs
                for kind in ("weight", "bias"):
                    ours = tuple(f"{module.replace('*', str(layer))}.{kind}" for module in our.split("+"))
                    if ours == ("output.bias",) and "output.weight" not in own:
                        yield from [Part(self.tied_bias, ours)] if ours[0] in own else []
                    elif ours[0] in own:
                        yield Part(f"{theirs}.{kind}", ours, kind == "weight" and theirs.endswith(self.turned))


def _activation(word: Any) -> str:
    found = next((ours for ours, theirs in ACTIVATIONS.items() if SYNONYMS.get(word, word) == theirs), None)
    if found is None:
        raise InputError(f"activation {word!r} is not supported; {', '.join(ACTIVATIONS.values())} are")
    return found


def _cut(width: Any, heads: Any) -> Json:
    """Heads that together are as wide as the states, one key/value head for each."""
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0):
        raise InputError(f"width {width!r} is no multiple of {heads!r} heads; mend config.json")
    return {"kv_heads": heads, "head_dim": width // heads}


def _whole(config: ModelConfig) -> bool:
    return config.heads == config.kv_heads and config.heads * config.head_dim == config.width and config.activation != "swiglu"


PLAIN: Json = {"attention": ["global"], "window": 0, "scaled_scores": True}
TOKENS: Json = {"labels": [], "prompt": 0}
"""What every model has that scores tokens."""
DECODER: Json = TOKENS | {
    "kind": "decoder", "norm_place": "pre", "position_offset": 0, "types": 0, "embed_norm": False, "head": "linear", "pooler": "none",
}  # fmt: skip
LEARNED: Json = {"norm": "layer", "positions": "learned", "bias": True, "rope_theta": 10_000.0, "rope_scaling": None, "qk_norm": False}


def _gpt2_fields(given: Json, tensors: Collection[str]) -> Json:
    width = given.get("n_embd", 768)
    return _cut(width, given.get("n_head", 12)) | {
        "activation": _activation(given.get("activation_function", "gelu_new")), "ffn_width": given.get("n_inner", 4 * width),
    }  # fmt: skip


GPT2 = Layout(
    model_type="gpt2",
    prefix="transformer.",
    fixed=DECODER | LEARNED | PLAIN | {"qkv_bias": True},
    keys={
        "width": ("n_embd", 768), "layers": ("n_layer", 12), "heads": ("n_head", 12), "context": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5), "tie_embeddings": ("tie_word_embeddings", True), "dropout": ("resid_pdrop", 0.1),
    },
    dropouts=("embd_pdrop", "attn_pdrop"),
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    fields=_gpt2_fields,
    extras=lambda config: {
        "architectures": ["GPT2LMHeadModel"], "activation_function": ACTIVATIONS[config.activation], "n_inner": config.ffn_width,
    },
    modules={
        "wte": "embed", "wpe": "place", "h.*.ln_1": "blocks.*.attention_norm",
        "h.*.attn.c_attn": "blocks.*.attention.q+blocks.*.attention.k+blocks.*.attention.v", "h.*.attn.c_proj": "blocks.*.attention.o",
        "h.*.ln_2": "blocks.*.ffn_norm", "h.*.mlp.c_fc": "blocks.*.ffn.up", "h.*.mlp.c_proj": "blocks.*.ffn.down",
        "ln_f": "norm", "lm_head": "output",
    },
    turned=("c_attn", "c_proj", "c_fc"),
    unread=(".attn.bias", ".attn.masked_bias"),
    says=_whole,
)  # fmt: skip


def _neo_fields(given: Json, tensors: Collection[str]) -> Json:
    width, layers = given.get("hidden_size", 2048), given.get("num_layers", 24)
    kinds = [kind for group, times in given.get("attention_types", [[["global", "local"], 12]]) for _ in range(times) for kind in group]
    if len(kinds) != layers:
        raise InputError(f"attention_types names {len(kinds)} layers, num_layers {layers!r}; mend config.json")
    period = next(n for n in range(1, layers + 1) if all(kind == kinds[layer % n] for layer, kind in enumerate(kinds)))
    return _cut(width, given.get("num_heads", 16)) | {
        "activation": _activation(given.get("activation_function", "gelu_new")), "ffn_width": given.get("intermediate_size", 4 * width),
        "attention": kinds[:period], "window": given.get("window_size", 256) if "local" in kinds else 0,
    }  # fmt: skip


def _neo_extras(config: ModelConfig) -> Json:
    kinds = [config.attention[layer % len(config.attention)] for layer in range(config.layers)]
    return {
        "architectures": ["GPTNeoForCausalLM"], "activation_function": ACTIVATIONS[config.activation], "intermediate_size": config.ffn_width,
        "attention_types": [[[kind], len(list(run))] for kind, run in groupby(kinds)], "window_size": config.window or 256,
    }  # fmt: skip


GPT_NEO = Layout(
    model_type="gpt_neo",
    prefix="transformer.",
    fixed=DECODER | LEARNED | {"qkv_bias": False, "scaled_scores": False},
    keys={
        "width": ("hidden_size", 2048), "layers": ("num_layers", 24), "heads": ("num_heads", 16), "context": ("max_position_embeddings", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5), "tie_embeddings": ("tie_word_embeddings", True), "dropout": ("resid_dropout", 0.0),
    },
    dropouts=("embed_dropout", "attention_dropout"),
    only={},
    fields=_neo_fields,
    extras=_neo_extras,
    modules={
        "wte": "embed", "wpe": "place", "h.*.ln_1": "blocks.*.attention_norm",
        **{f"h.*.attn.attention.{part}_proj": f"blocks.*.attention.{part}" for part in "qkv"}, "h.*.attn.attention.out_proj": "blocks.*.attention.o",
        "h.*.ln_2": "blocks.*.ffn_norm", "h.*.mlp.c_fc": "blocks.*.ffn.up", "h.*.mlp.c_proj": "blocks.*.ffn.down",
        "ln_f": "norm", "lm_head": "output",
    },
    unread=(".attention.bias", ".attention.masked_bias"),
    says=_whole,
)  # fmt: skip

SCALING = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor", "original": "original_max_position_embeddings"}
"""Fields of RopeScaling → keys."""


def _rotary_fields(given: Json, tensors: Collection[str]) -> Json:
    """Base and scaling, where transformers 5 writes them and where 4 did; heads."""
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise InputError(f"rope_type {kind!r} is not supported; default and llama3 are")
    scaling = {ours: rope.get(theirs) for ours, theirs in SCALING.items()} if kind == "llama3" else None
    heads, biased = given.get("num_attention_heads", 32), given.get("attention_bias", False)
    if biased != given.get("mlp_bias", False):
        raise InputError(f"attention_bias {biased!r} without the same mlp_bias is not supported; use a checkpoint with both or neither")
    if "sliding_attention" in given.get("layer_types", []):
        raise InputError("sliding attention is not supported; use a checkpoint without it")
    return {
        "rope_theta": rope.get("rope_theta", given.get("rope_theta", 10_000.0)), "rope_scaling": scaling, "bias": biased, "qkv_bias": biased,
        "kv_heads": given.get("num_key_value_heads", heads),
    }  # fmt: skip


def _rotary_extras(config: ModelConfig) -> Json:
    scaling = config.rope_scaling
    rope: Json = {"rope_type": "default"}
    if scaling:
        rope = {"rope_type": "llama3"} | {theirs: getattr(scaling, ours) for ours, theirs in SCALING.items()}
    # transformers 4 and other engines read base and scaling apart
    older = {"rope_theta": config.rope_theta} | ({"rope_scaling": rope} if scaling else {})
    return older | {"rope_parameters": rope | {"rope_theta": config.rope_theta}, "attention_bias": config.bias, "use_cache": True}


ROTARY: Json = DECODER | PLAIN | {"norm": "rms", "positions": "rotary", "activation": "swiglu", "dropout": 0.0}
ROTARY_KEYS: Mapping[str, tuple[str, Any]] = {
    "width": ("hidden_size", 4096), "layers": ("num_hidden_layers", 32), "heads": ("num_attention_heads", 32),
    "kv_heads": ("num_key_value_heads", None), "norm_eps": ("rms_norm_eps", 1e-6), "tie_embeddings": ("tie_word_embeddings", False),
}  # fmt: skip
ROTARY_MODULES = {
    "embed_tokens": "embed", "norm": "norm", "lm_head": "output", "layers.*.input_layernorm": "blocks.*.attention_norm",
    "layers.*.post_attention_layernorm": "blocks.*.ffn_norm",
    **{f"layers.*.self_attn.{part}_proj": f"blocks.*.attention.{part}" for part in "qkvo"},
    **{f"layers.*.self_attn.{part}": f"blocks.*.attention.{part}" for part in ("q_norm", "k_norm")},
    **{f"layers.*.mlp.{part}_proj": f"blocks.*.ffn.{part}" for part in ("gate", "up", "down")},
}  # fmt: skip


def _llama_fields(given: Json, tensors: Collection[str]) -> Json:
    cut = given.get("head_dim") or _cut(given.get("hidden_size", 4096), given.get("num_attention_heads", 32))["head_dim"]
    return _rotary_fields(given, tensors) | {"head_dim": cut}


LLAMA = Layout(
    model_type="llama",
    prefix="model.",
    fixed=ROTARY | {"qk_norm": False},
    keys={**ROTARY_KEYS, "head_dim": ("head_dim", None), "ffn_width": ("intermediate_size", 11008), "context": ("max_position_embeddings", 2048)},
    only={"hidden_act": "silu"},
    fields=_llama_fields,
    extras=lambda config: _rotary_extras(config) | {"architectures": ["LlamaForCausalLM"], "mlp_bias": config.bias},
    modules=ROTARY_MODULES,
    says=lambda config: config.bias == config.qkv_bias and config.width % config.heads == 0,
)  # fmt: skip
QWEN3 = Layout(
    model_type="qwen3",
    prefix="model.",
    fixed=ROTARY | {"qk_norm": True, "bias": False, "qkv_bias": False},
    keys={**ROTARY_KEYS, "head_dim": ("head_dim", 128), "ffn_width": ("intermediate_size", 22016), "context": ("max_position_embeddings", 32768)},
    only={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    fields=_rotary_fields,
    extras=lambda config: _rotary_extras(config) | {"architectures": ["Qwen3ForCausalLM"]},
    modules=ROTARY_MODULES,
)  # fmt: skip


def _encoder_fields(given: Json, tensors: Collection[str], prefix: str, head: str, offset: int) -> Json:
    pooled = "plain" if f"{prefix}pooler.dense.weight" in tensors else "none"
    return _cut(given.get("hidden_size", 768), given.get("num_attention_heads", 12)) | {
        "activation": _activation(given.get("hidden_act", "gelu")), "context": given.get("max_position_embeddings", 512) - offset,
        "position_offset": offset, "head": "masked" if f"{head}.weight" in tensors else "linear",
        "pooler": "next_sentence" if "cls.seq_relationship.weight" in tensors else pooled,
    }  # fmt: skip


def _encoder_extras(config: ModelConfig) -> Json:
    return {"hidden_act": ACTIVATIONS[config.activation], "max_position_embeddings": config.context + config.position_offset}


def _encodes(config: ModelConfig) -> bool:
    """Without a masked head an encoder of theirs has no output matrix at all."""
    return _whole(config) and (config.head == "masked" or config.tie_embeddings)


ENCODER: Json = TOKENS | LEARNED | PLAIN | {"kind": "encoder", "norm_place": "post", "qkv_bias": True, "embed_norm": True}
ENCODER_KEYS: Mapping[str, tuple[str, Any]] = {
    "width": ("hidden_size", 768), "layers": ("num_hidden_layers", 12), "heads": ("num_attention_heads", 12), "ffn_width": ("intermediate_size", 3072),
    "types": ("type_vocab_size", 2), "norm_eps": ("layer_norm_eps", 1e-12), "tie_embeddings": ("tie_word_embeddings", True),
    "dropout": ("hidden_dropout_prob", 0.1),
}  # fmt: skip
ENCODER_ONLY = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
ENCODER_MODULES = {
    "embeddings.word_embeddings": "embed", "embeddings.position_embeddings": "place", "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "embed_norm",
    **{f"encoder.layer.*.attention.self.{name}": f"blocks.*.attention.{name[0]}" for name in ("query", "key", "value")},
    "encoder.layer.*.attention.output.dense": "blocks.*.attention.o", "encoder.layer.*.attention.output.LayerNorm": "blocks.*.attention_norm",
    "encoder.layer.*.intermediate.dense": "blocks.*.ffn.up", "encoder.layer.*.output.dense": "blocks.*.ffn.down",
    "encoder.layer.*.output.LayerNorm": "blocks.*.ffn_norm", "pooler.dense": "pooler.dense",
}  # fmt: skip


def _bert_extras(config: ModelConfig) -> Json:
    masked, second = config.head == "masked", config.pooler == "next_sentence"
    name = ("ForPreTraining" if second else "ForMaskedLM") if masked else ("ForNextSentencePrediction" if second else "Model")
    return _encoder_extras(config) | {"architectures": [f"Bert{name}"]}


def _roberta_extras(config: ModelConfig) -> Json:
    # positions are counted from the id of padding on
    name = "ForMaskedLM" if config.head == "masked" else "Model"
    return _encoder_extras(config) | {"architectures": [f"Roberta{name}"], "pad_token_id": config.position_offset - 1}


BERT = Layout(
    model_type="bert",
    prefix="bert.",
    fixed=ENCODER | {"position_offset": 0},
    keys=ENCODER_KEYS,
    dropouts=("attention_probs_dropout_prob",),
    only=ENCODER_ONLY,
    fields=lambda given, tensors: _encoder_fields(given, tensors, "bert.", "cls.predictions.transform.dense", 0),
    extras=_bert_extras,
    modules=ENCODER_MODULES
    | {
        "cls.predictions.transform.dense": "head.dense", "cls.predictions.transform.LayerNorm": "head.norm", "cls.predictions.decoder": "output",
        "cls.seq_relationship": "pooler.next_sentence",
    },
    heads=("cls",),
    tied_bias="cls.predictions.bias",
    says=_encodes,
)  # fmt: skip
ROBERTA = Layout(
    model_type="roberta",
    prefix="roberta.",
    fixed=ENCODER | {"activation": "gelu"},  # its masked head has gelu, whatever the blocks have
    keys=ENCODER_KEYS,
    dropouts=("attention_probs_dropout_prob",),
    only=ENCODER_ONLY | {"hidden_act": "gelu"},
    fields=lambda given, tensors: _encoder_fields(given, tensors, "roberta.", "lm_head.dense", given.get("pad_token_id", 1) + 1),
    extras=_roberta_extras,
    modules=ENCODER_MODULES | {"lm_head.dense": "head.dense", "lm_head.layer_norm": "head.norm", "lm_head.decoder": "output"},
    tied_bias="lm_head.bias",
    says=lambda config: _encodes(config) and config.position_offset > 0 and config.types > 0 and config.pooler != "next_sentence",
)

LAYOUTS = {layout.model_type: layout for layout in (GPT2, GPT_NEO, LLAMA, QWEN3, BERT, ROBERTA)}
CLASSES = {"gpt2": "GPT2", "gpt_neo": "GPTNeo", "llama": "Llama", "qwen3": "Qwen3", "bert": "Bert", "roberta": "Roberta"}
"""model_type → how the names of its classes begin."""


def _classifier(layout: Layout) -> Layout:
    """The family's ForSequenceClassification: scores of labels from the last token of a decoder, the first of an encoder."""
    encoder = layout.fixed["kind"] == "encoder"
    pooled = {"classifier.dense": "head.dense", "classifier.out_proj": "output"}
    if layout is BERT:
        pooled = {"pooler.dense": "head.dense", "classifier": "output"}
    return _with_head(layout, "labels", "ForSequenceClassification", pooled if encoder else {"score": "output"}, layout.prefix)


def _extractor(layout: Layout) -> Layout:
    """The family's ForQuestionAnswering: where an answer begins and ends. Decoders of theirs stand under `transformer.` there."""
    prefix = layout.prefix if layout.fixed["kind"] == "encoder" else "transformer."
    return _with_head(layout, "spans", "ForQuestionAnswering", {"qa_outputs": "output"}, prefix)


def _with_head(layout: Layout, head: str, suffix: str, modules: dict[str, str], prefix: str) -> Layout:
    own: Json = {"head": head, "tie_embeddings": False, "pooler": "none"}
    ours = {theirs: our for theirs, our in layout.modules.items() if not our.startswith(("head", "output", "pooler"))}

    def fields(given: Json, tensors: Collection[str]) -> Json:
        names = given.get("id2label") or {str(n): f"LABEL_{n}" for n in range(given.get("num_labels", 2))}
        found = [names[place] for place in sorted(names, key=int)]
        return layout.fields(given, tensors) | own | {"labels": found if head == "labels" else ["start", "end"]}

    def extras(config: ModelConfig) -> Json:
        described = layout.extras(config) | {"architectures": [CLASSES[layout.model_type] + suffix]}
        if head == "spans":
            return described
        ids = {label: number for number, label in enumerate(config.labels)}
        return described | {"id2label": {str(n): label for label, n in ids.items()}, "label2id": ids}

    return replace(
        layout,
        prefix=prefix,
        fixed={name: value for name, value in layout.fixed.items() if name != "labels"} | own,
        fields=fields,
        extras=extras,
        modules=ours | modules,
        heads=tuple({theirs.split(".")[0] for theirs in modules if theirs != "pooler.dense"}),
        tied_bias="",
        says=lambda config: layout.says(replace(config, head="masked", labels=())),
    )


HEADED = {
    suffix: {model_type: made(layout) for model_type, layout in LAYOUTS.items()}
    for suffix, made in (("ForSequenceClassification", _classifier), ("ForQuestionAnswering", _extractor))
}
"""Ends of the names of their classes that do not score tokens → layouts by model_type."""


def reading(described: Json) -> Layout | None:
    """The layout of a directory by its config.json; None for a model_type that is none of the families."""
    family, named = described.get("model_type"), described.get("architectures") or [""]
    layouts = next((HEADED[suffix] for suffix in HEADED if str(named[0]).endswith(suffix)), LAYOUTS)
    return layouts.get(family) if isinstance(family, str) else None


def describing(config: ModelConfig) -> Layout | None:
    """The family that can say a shape; None if none can."""
    every = [layout for layouts in (LAYOUTS, *HEADED.values()) for layout in layouts.values()]
    return next((layout for layout in every if layout.fits(config)), None)
