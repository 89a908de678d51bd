"""What trains beside a frozen model: LoRA's pairs of matrices, a soft prompt, the head of a new task; and adapter directories as peft has them.

model = equipped(families.load(base), shape, seed)     # a head of labels, a soft prompt: what `shape` has and the base lacks
attach(model, Lora(…), seed)                           # in place; the base's parameters keep their names
freeze(model, Lora(…))                                 # requires_grad of what is not to train is turned off
save(model, Lora(…), directory, base)                  # adapter_config.json, adapter_model.safetensors
load(model, directory); merge(model)                   # a plain model again
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import Lora, ModelConfig, SoftPrompt
from model.errors import CheckpointError, ConfigError, InputError
from model.layouts import Part, describing
from model.transformer import Transformer

A, B = ".lora_a", ".lora_b"
PEFT_A, PEFT_B, ROOT = ".lora_A.weight", ".lora_B.weight", "base_model.model."
TASKS = {"linear": "CAUSAL_LM", "masked": None, "labels": "SEQ_CLS", "spans": "QUESTION_ANS"}
"""Our heads → peft's task_type."""


class LoraLinear(nn.Linear):
    """W x + b + scale · B A dropout(x); A is drawn, B begins as zero: at first the sum is the base's."""

    def __init__(self, base: nn.Linear, a_RI: Tensor, b_OR: Tensor, scale: float, dropout: float = 0.0):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_a, self.lora_b = nn.Parameter(a_RI), nn.Parameter(b_OR)
        self.scale, self.dropout = scale, dropout

    def forward(self, input: Tensor) -> Tensor:
        low_R = F.linear(F.dropout(input, self.dropout, self.training), self.lora_a)
        return super().forward(input) + self.scale * F.linear(low_R, self.lora_b)


def shaped(config: ModelConfig, labels: Iterable[str] | None = None, adapter: Lora | SoftPrompt | None = None) -> ModelConfig:
    """The shape of a model tuned from one of `config`: with a head of labels (["start", "end"] is one of spans), with room for a soft prompt."""
    if labels is not None:
        names = tuple(labels)
        head: Any = "spans" if names == SPANS else "labels"
        config = replace(config, head=head, labels=names, tie_embeddings=False, pooler="none")
    return replace(config, prompt=adapter.tokens) if isinstance(adapter, SoftPrompt) else config


SPANS = ("start", "end")


@torch.no_grad()
def equipped(base: Transformer, config: ModelConfig, seed: int) -> Transformer:
    """A model of shape `config` with the base's weights, and fresh ones where the base has none: a head, a soft prompt.

    The dense layer of a label head begins as the base's pooler, a soft prompt as rows of the embedding matrix, drawn from the seed (Lester
    et al. 2021, §3.2). Raises ConfigError if the shapes differ in more than head and prompt.
    """
    same = {name: getattr(base.config, name) for name in ("head", "labels", "prompt", "pooler", "tie_embeddings")}
    if replace(config, **same) != base.config:
        raise ConfigError(f"a model of shape {base.config} cannot be tuned as {config}; only head and soft prompt may differ")
    model = Transformer(config, base.vocab)
    model.init_weights(seed)
    state, had = model.state_dict(), base.state_dict()
    if config.labels != base.config.labels:
        had = {name: tensor for name, tensor in had.items() if not name.startswith(("head.", "output."))}
        had |= {name.replace("pooler.", "head."): tensor for name, tensor in had.items() if name.startswith("pooler.dense")}
    if config.prompt and config.prompt != base.config.prompt:
        rows = torch.randint(base.vocab, (config.prompt,), generator=torch.Generator().manual_seed(seed))
        had["prompt.weight"] = had["embed.weight"][rows].clone()
    model.load_state_dict(state | {name: tensor for name, tensor in had.items() if name in state}, assign=True)
    model.tie()
    return model


def attach(model: Transformer, config: Lora, seed: int) -> None:
    """Put a pair of matrices beside each chosen Linear, in place. ConfigError for one that the model has not."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in _chosen(model, config.modules):
        bound = 1 / math.sqrt(module.in_features)  # as nn.Linear and peft draw it
        a_RI = torch.empty(config.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        b_OR = torch.zeros(module.out_features, config.rank)
        _put(model, name, LoraLinear(module, a_RI, b_OR, config.alpha / config.rank, config.dropout))


def freeze(model: Transformer, adapter: Lora | SoftPrompt | None) -> list[str]:
    """Let only the adapter train, and the head of a model that scores labels or spans. Returns the names of what trains; None trains all."""
    if adapter is None:
        return [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(name, model.config))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Put W + scale · B A in the place of each W with a pair, in place; the pairs are gone."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight, plain.bias = nn.Parameter(module.weight + module.scale * module.lora_b @ module.lora_a), module.bias
            _put(model, name, plain)


def save(model: Transformer, adapter: Lora | SoftPrompt, directory: Path | str, base: str = "") -> None:
    """Write what was trained as peft does: adapter_config.json and adapter_model.safetensors, a few MB. `base`: name of the frozen model.

    Names are those of the family that can say the shape, ours if none can. Where a family keeps q, k and v in one matrix, their pairs become
    one of the rank of all three: A one above the other, B along the diagonal.
    """
    config, state = model.config, model.state_dict()
    parts = _parts(config)
    described: dict[str, Any] = {"base_model_name_or_path": base, "task_type": TASKS[config.head], "inference_mode": True, "revision": None}
    heads = {f"{ROOT}{part.theirs}": state[part.ours[0]] for part in parts if _heads(part.ours[0], config)}
    saved = {_owner(name.removeprefix(ROOT)) for name in heads}
    tensors = {}
    if isinstance(adapter, SoftPrompt):
        described |= {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": adapter.tokens,
            "token_dim": config.width,
            "prompt_tuning_init": "RANDOM",
        }
        described |= {"num_layers": config.layers, "num_attention_heads": config.heads, "num_transformer_submodules": 1}
        tensors["prompt_embeddings"] = state["prompt.weight"]
    else:
        ranks: dict[str, int] = {}
        for part in parts:
            if any(_beside(ours) + A in state for ours in part.ours):
                module = _beside(part.theirs)
                tensors[ROOT + module + PEFT_A], tensors[ROOT + module + PEFT_B] = _joined(part, state)
                ranks[module] = len(tensors[ROOT + module + PEFT_A])
        wide = {module: rank for module, rank in ranks.items() if rank != adapter.rank}
        described |= {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout, "bias": "none"}
        described |= {"target_modules": sorted(ranks), "rank_pattern": wide, "use_rslora": False, "use_dora": False}
        described |= {"alpha_pattern": {module: adapter.alpha / adapter.rank * rank for module, rank in wide.items()}}
        described["fan_in_fan_out"] = any(part.turned for part in parts)
    described["modules_to_save"] = sorted(saved) or None
    Path(directory).mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in (tensors | heads).items()}
    save_file(whole, Path(directory) / "adapter_model.safetensors", metadata={"format": "pt"})
    (Path(directory) / "adapter_config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def load(model: Transformer, directory: Path | str) -> None:
    """Put the adapter of a directory, ours or peft's, beside a model of its base's shape, in place: LoRA and trained heads, or a soft prompt.

    A soft prompt needs a model with room for it (`equipped`). Raises InputError for another kind of adapter, CheckpointError where tensors
    do not fit the model.
    """
    try:
        described = json.loads((Path(directory) / "adapter_config.json").read_text())
        tensors = load_file(Path(directory) / "adapter_model.safetensors")
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{directory} is no adapter directory: {error}") from None
    kind = described.get("peft_type")
    odd = [name for name in ("use_dora", "use_rslora", "lora_bias", "layers_pattern") if described.get(name)]
    if kind not in ("LORA", "PROMPT_TUNING") or odd:
        raise InputError(
            f"{directory}: adapters of type {kind}{' with ' + odd[0] if odd else ''} are not supported; LORA and PROMPT_TUNING are"
        )
    own = dict(model.named_parameters())
    modules = dict(model.named_modules())
    for part in _parts(model.config):
        theirs = ROOT + _beside(part.theirs)
        if ROOT + part.theirs in tensors:
            _copy(own, part.ours[0], tensors.pop(ROOT + part.theirs), directory)
        if theirs + PEFT_A not in tensors:
            continue
        a_RI, b_OR = tensors.pop(theirs + PEFT_A), tensors.pop(theirs + PEFT_B)
        scale = _said(described, "alpha_pattern", part.theirs, "lora_alpha") / len(a_RI)
        sizes = [len(own[ours]) for ours in part.ours]
        if a_RI.shape[1] != own[part.ours[0]].shape[1] or len(b_OR) != sum(sizes):
            raise CheckpointError(
                f"{directory}: {theirs} has matrices {list(a_RI.shape)} and {list(b_OR.shape)}, which do not fit the model"
            )
        for ours, rows in zip(part.ours, b_OR.split(sizes), strict=True):
            base = modules[_beside(ours)]
            assert isinstance(base, nn.Linear)
            _put(model, _beside(ours), LoraLinear(base, a_RI.clone(), rows.clone(), scale))
    if kind == "PROMPT_TUNING" and "prompt_embeddings" in tensors:
        _copy(own, "prompt.weight", tensors.pop("prompt_embeddings"), directory)
    if tensors:
        raise CheckpointError(
            f"{directory}: {sorted(tensors)[0]} belongs to nothing in a model of shape {model.config}; use the adapter's base"
        )


def _said(described: Mapping[str, Any], pattern: str, theirs: str, default: str) -> float:
    module = _beside(theirs)
    named = next((value for key, value in (described.get(pattern) or {}).items() if module == key or module.endswith(f".{key}")), None)
    return float(described[default] if named is None else named)


def _copy(own: Mapping[str, nn.Parameter], name: str, tensor: Tensor, directory: Path | str) -> None:
    if name not in own or own[name].shape != tensor.shape:
        has = list(own[name].shape) if name in own else "nothing of that name"
        raise CheckpointError(f"{directory}: {name} has shape {list(tensor.shape)}, the model {has}; use the adapter's base")
    own[name].copy_(tensor)


def _trains(name: str, config: ModelConfig) -> bool:
    return name.endswith((A, B)) or name == "prompt.weight" or _heads(name, config)


def _heads(name: str, config: ModelConfig) -> bool:
    return bool(config.labels) and name.startswith(("head.", "output."))


def _chosen(model: Transformer, modules: Iterable[str]) -> list[tuple[str, nn.Linear]]:
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith("blocks.")]
    for wanted in modules:
        if not any(name.endswith(f".{wanted}") for name, _ in linear):
            raise ConfigError(f"adapter.modules names {wanted!r}, which this model has not: {model.config.activation} has no such matrix")
    return [(name, module) for name, module in linear if name.rpartition(".")[2] in modules]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)


def _parts(config: ModelConfig) -> list[Part]:
    """How the base's tensors are called outside, a Part each."""
    with torch.device("meta"):
        own = [name for name, _ in Transformer(replace(config, prompt=0), 8).named_parameters()]
    layout = describing(replace(config, prompt=0))
    return layout.tensors(own) if layout else [Part(name, (name,)) for name in own]


def _joined(part: Part, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    pairs = []
    for ours in part.ours:
        name = _beside(ours)
        if name + A in state:
            pairs.append((state[name + A], state[name + B]))
        else:
            weight = state[ours]
            pairs.append((weight.new_zeros(0, weight.shape[1]), weight.new_zeros(len(weight), 0)))
    return torch.cat([a for a, _ in pairs]), torch.block_diag(*(b for _, b in pairs))


def _beside(name: str) -> str:
    return name.removesuffix(".weight") if name.endswith(".weight") else name


def _owner(name: str) -> str:
    """The module of theirs that peft saves whole: of classifier.out_proj.weight the classifier, of score.weight the score."""
    module = name.removesuffix(".weight").removesuffix(".bias")
    return module.rpartition(".")[0] or module
