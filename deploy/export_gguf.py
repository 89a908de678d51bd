"""A model directory as one GGUF file for llama.cpp and its kin: fp32 tensors, sizes, vocabulary with merges, declared pre-tokenizer, chat template.

    export(model_directory, out_dir)                  # model.gguf
    compared(model_directory, out_dir)                # what was written and what is read back: {"tensors": "", "metadata": ""}
    model, tokenizer, stops, words = restored(out_dir, config)

Decoders of Qwen3's, Llama's and GPT-2's shape. Names and orders are llama.cpp's: a Llama's query and key rows stand in pairs (i, i + D/2) side by
side, since its rotary positions turn neighbours; GPT-2's queries, keys and values are one matrix.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import families, tokenizer
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, TokenizerError
from model.layouts import describing
from model.tokenizer import CUTS, END_OF_TEXT, END_OF_TURN, MASK, PAD
from model.transformer import Transformer, angles

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

FILE = "model.gguf"
MODULES = {
    "embed": "token_embd", "place": "position_embd", "norm": "output_norm", "output": "output",
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v",
    "attention.o": "attn_output", "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm",
    "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip
"""Our modules → llama.cpp's, those of a block behind blk.N."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as llama.cpp numbers them."""


def export(directory: Path | str, out_dir: Path | str) -> None:
    """Write model.gguf. Raises ConfigError for a shape, TokenizerError for a tokenizer, that llama.cpp has no name for."""
    from gguf import GGUFWriter

    model = families.load(directory)
    fields = metadata(Path(directory), model.config, model.vocab)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(Path(out_dir) / FILE), fields["general.architecture"])
    for key, value in fields.items():
        if key == "general.architecture":  # the writer's own
            continue
        kinds: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        kinds[type(value)](key, value)
    for name, array in tensors(model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def metadata(directory: Path, config: ModelConfig, vocab: int) -> dict[str, Any]:
    """All keys with their values. Raises as `export` does."""
    layout = describing(config)
    family = layout.model_type if layout else "ingot"
    if family not in ("qwen3", "llama", "gpt2") or (family == "gpt2" and config.activation != "gelu_tanh"):
        raise ConfigError(
            f"{directory}: llama.cpp's GGUF is written for qwen3, llama and gpt2 (gelu_tanh), not for {family}; `--to onnx` takes it"
        )
    norm = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    sizes: dict[str, Any] = {
        "context_length": config.context, "embedding_length": config.width, "block_count": config.layers, "feed_forward_length": config.ffn_width,
        "vocab_size": vocab, "attention.head_count": config.heads, "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim, f"attention.{norm}": config.norm_eps,
    }  # fmt: skip
    if config.positions == "rotary":
        sizes |= {"rope.freq_base": float(config.rope_theta), "rope.dimension_count": config.head_dim}
    words = tokenizer.load(directory)
    described = json.loads(words.to_str())
    added = {token["id"]: token for token in described["added_tokens"]}
    names = [words.id_to_token(number) for number in range(words.get_vocab_size())]
    kinds = [CONTROL if added.get(n, {}).get("special") else USER_DEFINED if n in added else NORMAL for n in range(len(names))]
    unused = vocab - len(names)
    return {
        "general.architecture": family, "general.name": "ingot", "general.file_type": 0,
        **{f"{family}.{key}": value for key, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _cut_name(words, str(directory)),
        "tokenizer.ggml.tokens": names + [f"[PAD{len(names) + n}]" for n in range(unused)],
        "tokenizer.ggml.token_type": kinds + [UNUSED] * unused,
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": END_OF_TEXT, "tokenizer.ggml.eot_token_id": END_OF_TURN,
        "tokenizer.ggml.padding_token_id": PAD, "tokenizer.ggml.mask_token_id": MASK,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": json.loads((directory / "tokenizer_config.json").read_text())["chat_template"],
    }  # fmt: skip


def tensors(model: Transformer) -> dict[str, np.ndarray]:
    """All tensors, fp32."""
    config = model.config
    state = {name: tensor.detach().float() for name, tensor in model.named_parameters()}
    family = getattr(describing(config), "model_type", "")
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, module, kind = _parts(name)
        if family == "gpt2" and module in ("attention.q", "attention.k", "attention.v"):
            if module == "attention.q":
                found[f"{block}attn_qkv.{kind}"] = torch.cat([state[name.replace("attention.q", f"attention.{part}")] for part in "qkv"])
            continue
        if family == "llama" and module in ("attention.q", "attention.k"):
            tensor = tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        found[f"{block}{MODULES[module]}.{kind}"] = tensor
    if config.rope_scaling:
        plain, scaled = (
            angles(torch.ones(1, 1), config.head_dim, config.rope_theta, scaling)[0, 0] for scaling in (None, config.rope_scaling)
        )
        found["rope_freqs.weight"] = plain / scaled
    return {name: tensor.contiguous().numpy() for name, tensor in found.items()}


def _parts(name: str) -> tuple[str, str, str]:
    """blocks.3.attention.q.weight → blk.3., attention.q, weight."""
    block, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()  # type: ignore[union-attr]
    return f"blk.{block}." if block else "", module, kind


def compared(directory: Path | str, exported: Path | str) -> dict[str, str]:
    """What of a file differs from the model directory: of tensors, bit for bit, and of metadata; '' where nothing does."""
    model = families.load(directory)
    fields, arrays = _read(exported)
    wanted, expected = tensors(model), metadata(Path(directory), model.config, model.vocab)
    expected = {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in expected.items()}
    wrong = [n for n in wanted.keys() | arrays.keys() if n not in wanted or n not in arrays or not np.array_equal(wanted[n], arrays[n])]
    other = [key for key in expected.keys() | fields.keys() if key not in expected or key not in fields or expected[key] != fields[key]]
    return {what: f"{len(names)} differ, first {min(names)}" if names else "" for what, names in (("tensors", wrong), ("metadata", other))}


def restored(exported: Path | str, config: ModelConfig) -> tuple[Transformer, "Tokenizer", tuple[int, ...], "PreTrainedTokenizerFast"]:
    """A file's tensors as a Transformer of a known shape, its tokenizer in two forms, and the ids at which it ends.

    Raises CheckpointError for a file without the tensors of this shape, TokenizerError for a pre-tokenizer of another name.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    fields, arrays = _read(exported)
    family, rows = fields["general.architecture"], fields["tokenizer.ggml.tokens"]
    model = Transformer(config, len(rows))
    state = {}
    for name, parameter in model.named_parameters():
        block, module, kind = _parts(name)
        fused = family == "gpt2" and module in ("attention.q", "attention.k", "attention.v")
        theirs = f"{block}{'attn_qkv' if fused else MODULES[module]}.{kind}"
        if theirs not in arrays:
            raise CheckpointError(f"{exported} has no tensor {theirs}; export it again")
        tensor = torch.from_numpy(np.array(arrays[theirs]))
        if fused:
            tensor = tensor.chunk(3)["qkv".index(module[-1])]
        if family == "llama" and module in ("attention.q", "attention.k"):
            tensor = tensor.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        state[name] = tensor.view_as(parameter)
    model.load_state_dict(state, strict=False)  # a tied output matrix is a key of its own
    kinds = fields["tokenizer.ggml.token_type"]
    vocabulary = {token: n for n, (token, kind) in enumerate(zip(rows, kinds, strict=True)) if kind != UNUSED}
    words = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]))
    words.pre_tokenizer, words.decoder = _cut(fields["tokenizer.ggml.pre"]), decoders.ByteLevel()
    for type_, add in ((CONTROL, words.add_special_tokens), (USER_DEFINED, words.add_tokens)):
        add([AddedToken(token, special=type_ == CONTROL, normalized=False) for token, n in vocabulary.items() if kinds[n] == type_])
    stops = (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"])
    loaded = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=fields["tokenizer.chat_template"], eos_token=rows[stops[0]])
    return model, words, stops, loaded


def _read(exported: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of a file. Raises CheckpointError for one that is missing or damaged."""
    from gguf import GGUFReader

    path = Path(exported) / FILE
    try:
        reader = GGUFReader(str(path))
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is no GGUF file: {' '.join(str(error).split())[:200]}. Export it again") from None
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


def _cut(name: str) -> "pre_tokenizers.PreTokenizer":
    """The pre-tokenizer that llama.cpp means by a name: deepseek-v3 is that of Ingot's tokenizers, gpt-2 that of GPT-2."""
    from tokenizers import Regex, pre_tokenizers

    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "deepseek-v3":
        pieces = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in CUTS]
        return pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise TokenizerError(f"pre-tokenizer {name!r} is neither deepseek-v3 nor gpt-2, which Ingot writes; export the model again")


def _cut_name(words: "Tokenizer", where: str) -> str:
    """llama.cpp's name of how a tokenizer cuts text. TokenizerError where it has none, or where the tokenizer is no plain byte-level BPE."""
    from tokenizers import Tokenizer, models

    described = json.loads(words.to_str())
    plain = described["model"]["type"] == "BPE" and not described["normalizer"] and not described["model"].get("ignore_merges")
    for name in ("deepseek-v3", "gpt-2"):
        known = Tokenizer(models.BPE())
        known.pre_tokenizer = _cut(name)
        if plain and _rules(json.loads(known.to_str())["pre_tokenizer"]) == _rules(described["pre_tokenizer"]):
            return name
    raise TokenizerError(f"{where}: llama.cpp has no name for how this tokenizer cuts text; export to hf or onnx")


def _rules(described: Any) -> Any:
    """A pre-tokenizer without what only moves offsets."""
    if isinstance(described, dict):
        return {key: _rules(value) for key, value in described.items() if key != "trim_offsets"}
    return [_rules(one) for one in described] if isinstance(described, list) else described
