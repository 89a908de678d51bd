"""Model directories, in and out: config.json, generation_config.json and model.safetensors. Never pickle.

    save(model, config, vocab, directory)     # Qwen3-shaped: a genuine Qwen3 directory; any other shape: model_type "ingot"
    model = load(directory, device)           # either kind, and any Qwen3 directory of Hugging Face, in one file or in shards

A family is three functions: the shape from config.json, config.json from the shape, and the names of its tensors in ours.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig, from_dict, to_dict
from model.errors import CheckpointError, ConfigError, InputError
from model.tokenizer import END_OF_TEXT, END_OF_TURN, PAD
from model.transformer import Transformer


def save(model: Transformer, config: ModelConfig, vocab: int, out_dir: Path | str, dtype: torch.dtype = torch.float32) -> None:
    """Write a model directory; the tokenizer's files are written beside it by tokenizer.save.

    A shape that Qwen3 can say is written as Qwen3, so that transformers loads it with no code of ours.
    Raises CheckpointError if the weights are not those of a Transformer(config, vocab).
    """
    out_dir = Path(out_dir)
    qwen3 = _is_qwen3(config)
    names = _qwen3_names(config) if qwen3 else _own_names(config, vocab)
    state = {name: tensor for name, tensor in model.state_dict().items() if not (config.tie_embeddings and name == "output.weight")}
    _check({name: tuple(tensor.shape) for name, tensor in state.items()}, _shapes(config, vocab), f"the model to be written to {out_dir}")
    tensors = {names[name]: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    described = _qwen3_json(config) if qwen3 else {"model_type": "ingot", "architectures": ["Transformer"], "config": to_dict(config)}
    described |= {"vocab_size": vocab, "dtype": str(dtype).removeprefix("torch.")}
    described |= {"bos_token_id": None, "eos_token_id": END_OF_TEXT, "pad_token_id": PAD, "tie_word_embeddings": config.tie_embeddings}
    generation = {"eos_token_id": [END_OF_TEXT, END_OF_TURN], "pad_token_id": PAD, "do_sample": False}
    out_dir.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this metadata
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
    for file, content in (("config.json", described), ("generation_config.json", generation)):
        (out_dir / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def load(directory: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """A Transformer with the weights of a model directory, in `dtype` on `device`; its shape is `.config`, its vocabulary `.vocab`.

    Raises CheckpointError if files or tensors are missing, damaged, unknown or of another shape, InputError if the architecture is not
    one that transformer.py can compute.
    """
    directory = Path(directory)
    described = _read_json(directory / "config.json")
    match described.get("model_type"):
        case "ingot":
            try:
                config = from_dict(ModelConfig, described.get("config"), "config")
            except ConfigError as error:
                raise InputError(f"{directory / 'config.json'}: {error}") from None
        case "qwen3":
            config = _qwen3_config(described, directory)
        case other:
            raise InputError(f"{directory / 'config.json'}: model_type {other!r} is not supported; ingot and qwen3 are")
    vocab = described.get("vocab_size")
    if not isinstance(vocab, int) or vocab < 1:
        raise InputError(f"{directory / 'config.json'}: vocab_size must be a positive number, not {vocab!r}")
    names = _qwen3_names(config) if described["model_type"] == "qwen3" else _own_names(config, vocab)
    tensors = _read_tensors(directory, dtype)
    copy = tensors.pop(names.get("output.weight", "output.weight"), None) if config.tie_embeddings else None
    if copy is not None and not torch.equal(copy, tensors.get(names["embed.weight"], copy)):
        raise CheckpointError(f"{directory}: tie_word_embeddings is true, but output and embedding weights differ; set it to false")
    expected = {names[name]: shape for name, shape in _shapes(config, vocab).items()}
    _check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, str(directory))
    state = {name: tensors[names[name]] for name in _shapes(config, vocab)}
    if config.tie_embeddings:
        state["output.weight"] = state["embed.weight"]
    with torch.device("meta"):  # no memory or time for values that are replaced at once
        model = Transformer(config, vocab)
    model.load_state_dict(state, assign=True)
    model.tie()
    return model.to(device)


def _shapes(config: ModelConfig, vocab: int) -> dict[str, tuple[int, ...]]:
    """Our tensor names and shapes; a tied output matrix is not a tensor of its own."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Transformer(config, vocab).named_parameters()}


def _check(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: str) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not a tensor of this architecture" for name in found if name not in expected]
    problems += [
        f"{n} has shape {list(found[n])} instead of {list(expected[n])}" for n in expected if n in found and found[n] != expected[n]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"{where}: weights do not fit the config: {shown}. Check config.json (vocab_size, sizes) or fetch the weights again"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model directory: it has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}. Fetch it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__} instead of an object. Fetch it again")
    return content


def _read_tensors(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the shards that its index lists."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted({str(file) for file in _read_json(index).get("weight_map", {}).values()})
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for file in files:
        path = directory / file
        if path.parent != directory:  # a weight_map is input: it must not reach outside
            raise InputError(f"{index}: weight_map names {file!r}, which is not a file of this directory")
        if not path.exists():
            pickles = [found.name for found in sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt"))]
            hint = f"; {pickles[0]} is a pickle, which can run code and is not read: convert it to safetensors" if pickles else ""
            raise CheckpointError(f"{directory} has no {file}{hint}")
        try:
            with safe_open(path, "pt") as opened:
                tensors |= {name: opened.get_tensor(name).to(dtype) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}. Fetch or export it again") from None
    return tensors


def _own_names(config: ModelConfig, vocab: int) -> dict[str, str]:
    return {name: name for name in _shapes(config, vocab)}


def _is_qwen3(config: ModelConfig) -> bool:
    shape = (config.kind, config.norm, config.norm_place, config.positions, config.activation)
    plain = config.qk_norm and not config.bias and config.dropout == 0
    return plain and shape == ("decoder", "rms", "pre", "rotary", "swiglu")


def _qwen3_names(config: ModelConfig) -> dict[str, str]:
    """Our tensor names → Qwen3's. Both rotate halves and store [out, in], so nothing is permuted or transposed."""
    inner = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
    }
    inner |= {f"attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"} | {
        f"attention.{n}": f"self_attn.{n}" for n in ("q_norm", "k_norm")
    }
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    for layer in range(config.layers):
        names |= {f"blocks.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight" for ours, theirs in inner.items()}
    return names


def _qwen3_json(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # transformers 4 and other engines read it here
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_sliding_window": False,
        "use_cache": True,
    }


def _qwen3_config(described: dict[str, Any], directory: Path) -> ModelConfig:
    """The shape of a Qwen3 directory; what is absent has Qwen3Config's defaults, what transformer.py cannot compute is refused."""
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    theta = rope.get("rope_theta", described.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    windows = described.get("use_sliding_window", False) or "sliding_attention" in (described.get("layer_types") or [])
    refused = {
        "rope_type": (kind, kind != "default"),
        "sliding attention": (True, windows),
        "attention_bias": (True, described.get("attention_bias", False)),
        "hidden_act": (described.get("hidden_act"), described.get("hidden_act", "silu") != "silu"),
    }
    for name, (value, refuse) in refused.items():
        if refuse:
            raise InputError(f"{directory / 'config.json'}: {name} {value!r} is not supported; use a Qwen3 checkpoint without it")
    heads = described.get("num_attention_heads", 32)
    fields = {
        "kind": "decoder",
        "width": described.get("hidden_size", 4096),
        "layers": described.get("num_hidden_layers", 32),
        "heads": heads,
        "kv_heads": described.get("num_key_value_heads") or heads,
        "head_dim": described.get("head_dim", 128),
        "ffn_width": described.get("intermediate_size", 22016),
        "context": described.get("max_position_embeddings", 32768),
        "norm": "rms",
        "norm_place": "pre",
        "norm_eps": described.get("rms_norm_eps", 1e-6),
        "positions": "rotary",
        "rope_theta": theta,
        "qk_norm": True,
        "activation": "swiglu",
        "bias": False,
        "dropout": 0.0,
        "tie_embeddings": described.get("tie_word_embeddings", False),
    }
    try:
        return from_dict(ModelConfig, fields)
    except ConfigError as error:
        raise InputError(f"{directory / 'config.json'} does not describe a Qwen3 model: {error}") from None
