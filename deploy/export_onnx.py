"""A model directory as one ONNX graph for onnxruntime, written from the weights: decoders with a cache of keys and values, encoders with padding.

    export(model_directory, out_dir, "int8")          # config.json, tokenizer files, model.onnx; deploy/onnx_model.py runs it

Inputs, all of dynamic size: `tokens` int64 [B, T], rows padded on the right; `lengths` int32 [B], tokens of each row with those in the cache;
`read` int64 [B, R], the places in 0 … T-1 whose logits are wanted; where a table holds the positions `positions` int64 [B, T]; for encoders with
segments `types` int64 [B, T]; for decoders `keys.N` and `values.N`, fp32 [B, K, S, D]. Outputs: `logits` fp32 [B, R, V]; encoders `states`
[B, T, C]; decoders `new_keys.N`, `new_values.N`, which may be the buffers that came in: then nothing is copied.

int8: matrices in blocks of 32 weights with one fp32 scale each, multiplied in integers (onnxruntime's MatMulNBits). Attention, rotary positions
and RMSNorm are operators of onnxruntime's own domain, com.microsoft: the graph runs there and nowhere else.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from model import families
from model.config import to_dict
from model.errors import ConfigError
from model.transformer import Transformer, angles, sinusoids

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["fp32", "int8"]
BLOCK = 32
"""Weights that share a scale."""
FILE_LIMIT = 2**30
"""Bytes from which on the weights lie beside the graph: one protobuf message holds at most 2 GiB."""
MICROSOFT = "com.microsoft"


def export(directory: Path | str, out_dir: Path | str, precision: Precision = "fp32") -> Path:
    """Write model.onnx with config.json and the tokenizer's files beside it; returns its path. Raises ConfigError for a shape that the operators lack."""
    import onnx

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    made = graph(families.load(directory), precision)
    apart: dict[str, Any] = {}
    if sum(len(one.raw_data) for one in made.graph.initializer) > FILE_LIMIT:
        apart = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 1024}
    onnx.save(made, str(out_dir / "model.onnx"), **apart)
    for name in ("config.json", "generation_config.json"):
        if (Path(directory) / name).exists():
            shutil.copyfile(Path(directory) / name, out_dir / name)
    families.copy_tokenizer(directory, out_dir)
    return out_dir / "model.onnx"


def compared(directory: Path | str, exported: Path | str, precision: Precision) -> dict[str, str]:
    """Tensors and nodes of a file that differ from those that the model directory gives, bit for bit; '' where none does."""
    import onnx

    wanted, found = graph(families.load(directory), precision).graph, onnx.load(str(Path(exported) / "model.onnx")).graph
    ours, theirs = ({one.name: (tuple(one.dims), one.data_type, one.raw_data) for one in made.initializer} for made in (wanted, found))
    wrong = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    same = list(wanted.node) == list(found.node)
    return {"tensors": f"{len(wrong)} differ, first {min(wrong)}" if wrong else "", "graph": "" if same else "other nodes"}


def graph(model: Transformer, precision: Precision) -> "ModelProto":
    """The graph of a model in evaluation mode.

    Raises ConfigError for a size of heads that onnxruntime's attention lacks, a soft prompt, or a head of labels or spans.
    """
    config = model.config
    whole = 16 if config.positions == "rotary" else 8
    if config.kind == "decoder" and config.head_dim % whole:
        raise ConfigError(f"head_dim {config.head_dim}: onnxruntime's GroupQueryAttention wants a multiple of {whole} here")
    if config.prompt or config.labels:
        raise ConfigError(
            f"a soft prompt ({config.prompt} rows) and a head of {config.head} are not exported to ONNX yet; use the torch model"
        )
    return _Graph(model, precision).made()


class _Graph:
    """Nodes and initializers as they come; methods take names of values and give the name of what they add."""

    def __init__(self, model: Transformer, precision: Precision):
        from onnx import TensorProto, helper, numpy_helper

        self.config, self.vocab, self.precision = model.config, model.vocab, precision
        self.state = {name: self.read(name, tensor.detach().float().cpu()) for name, tensor in model.state_dict().items()}
        self._helper, self._types, self._numpy = helper, TensorProto, numpy_helper
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def read(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter; an encoder's key and value heads come once a query head, since MultiHeadAttention knows no groups."""
        config = self.config
        if config.kind == "decoder" or (".attention.k." not in name and ".attention.v." not in name):
            return tensor
        return (
            tensor.unflatten(0, (config.kv_heads, config.head_dim)).repeat_interleave(config.heads // config.kv_heads, dim=0).flatten(0, 1)
        )

    def made(self) -> "ModelProto":
        config, helper = self.config, self._helper
        tokens = self.given("tokens", "int64", "B", "T")
        self.given("lengths", "int32", "B")
        self.given("read", "int64", "B", "R")
        x = self.embedded(tokens)
        if config.positions == "rotary":
            self.rotary()
        else:
            learned = config.positions == "learned"
            table = self.state["place.weight"][-config.context :] if learned else sinusoids(torch.arange(config.context), config.width)
            if not learned:
                x = self.add("Mul", x, self.constant("scale", np.float32(config.width**0.5)))
            x = self.add("Add", x, self.add("Gather", self.tensor("places", table), self.given("positions", "int64", "B", "T")))
        if config.embed_norm:
            x = self.norm(x, "embed_norm")
        attend = self.causal() if config.kind == "decoder" else self.padded()
        for layer in range(config.layers):
            x = self.block(x, layer, attend)
        if config.norm_place == "pre":
            x = self.norm(x, "norm")
        if config.kind == "encoder":
            x = self.returned(self.add("Identity", x, outputs=("states",)), "float", "B", "T", config.width)
        x = self.add("GatherND", x, self.add("Unsqueeze", "read", self.constant("last", np.array([-1]))), batch_dims=1)
        if config.head == "masked":
            x = self.norm(self.activated(self.linear(x, "head.dense")), "head.norm")
        self.returned(self.linear(x, "output", outputs=("logits",)), "float", "B", "R", self.vocab)
        whole = helper.make_graph(self.nodes, "ingot", self.inputs, self.outputs, list(self.tensors.values()))
        domains = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        made = helper.make_model(whole, opset_imports=domains, ir_version=10, producer_name="ingot")
        facts = {"config": json.dumps(to_dict(config)), "vocab": str(self.vocab), "precision": self.precision}
        helper.set_model_props(made, {f"ingot.{name}": value for name, value in facts.items()})
        return made

    def given(self, name: str, kind: str, *shape: str | int) -> str:
        self.inputs.append(self._helper.make_tensor_value_info(name, getattr(self._types, kind.upper()), shape))
        return name

    def returned(self, name: str, kind: str, *shape: str | int) -> str:
        self.outputs.append(self._helper.make_tensor_value_info(name, getattr(self._types, kind.upper()), shape))
        return name

    def tensor(self, name: str, value: Tensor) -> str:
        return self.constant(name, value.contiguous().numpy())

    def constant(self, name: str, value: Any) -> str:
        """An initializer; a name that is there already stands for the same values."""
        if name not in self.tensors:
            self.tensors[name] = self._numpy.from_array(np.asarray(value), name)
        return name

    def add(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        """One node; the name of its first output."""
        outputs = outputs or (f"{kind}.{len(self.nodes)}",)
        self.nodes.append(self._helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, *names: str, outputs: tuple[str, ...] = ()) -> str:
        """x Wᵀ + b for the matrices of these modules one above the other."""
        weight = torch.cat([self.state[f"{name}.weight"] for name in names])
        biases = [self.state[f"{name}.bias"] for name in names if f"{name}.bias" in self.state]
        tied = self.config.tie_embeddings and names == ("output",)
        label = "embed" if tied else "+".join(names)
        last = () if biases else outputs
        if self.precision == "int8":
            sizes = {"K": weight.shape[1], "N": weight.shape[0], "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
            y = self.add("MatMulNBits", x, *self.quantized(label, weight), outputs=last, domain=MICROSOFT, **sizes)
        elif tied:  # the embedding as it stands, so that the file holds one
            y = self.add("FusedMatMul", x, self.tensor("embed.weight", weight), outputs=last, domain=MICROSOFT, transB=1)
        else:
            y = self.add("MatMul", x, self.tensor(f"{label}.turned", weight.T), outputs=last)
        return self.add("Add", y, self.tensor(f"{label}.bias", torch.cat(biases)), outputs=outputs) if biases else y

    def quantized(self, label: str, weight: Tensor) -> tuple[str, str]:
        """A matrix [N, K] as uint8 [N, blocks, BLOCK] around 128 and scales [N, blocks]: the block's greatest weight becomes ±127."""
        rows, width = weight.shape
        blocks = -(-width // BLOCK)
        padded = torch.nn.functional.pad(weight, (0, blocks * BLOCK - width)).view(rows, blocks, BLOCK)
        scale = padded.abs().amax(-1) / 127
        whole = (padded / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round() + 128
        return self.tensor(f"{label}.int8", whole.to(torch.uint8)), self.tensor(f"{label}.scale", scale)

    def embedded(self, tokens: str) -> str:
        """Rows of the embedding; in int8 from the same tensor that a tied output matrix multiplies."""
        config, weight = self.config, self.state["embed.weight"]
        if self.precision == "int8" and config.width % BLOCK == 0:
            packed, scale = self.quantized("embed", weight)
            whole = self.add("Cast", self.add("Gather", packed, tokens), to=self._types.FLOAT)
            whole = self.add("Sub", whole, self.constant("middle", np.float32(128)))
            scales = self.add("Unsqueeze", self.add("Gather", scale, tokens), self.constant("last", np.array([-1])))
            x = self.add("Reshape", self.add("Mul", whole, scales), self.constant("flat", np.array([0, 0, config.width])))
        else:
            x = self.add("Gather", self.tensor("embed.weight", weight), tokens)
        if config.types:
            kinds = self.tensor("types.weight", self.state["types.weight"])
            x = self.add("Add", x, self.add("Gather", kinds, self.given("types", "int64", "B", "T")))
        return x

    def norm(self, x: str, name: str) -> str:
        scale = self.tensor(f"{name}.weight", self.state[f"{name}.weight"])
        if f"{name}.bias" in self.state:
            bias = self.tensor(f"{name}.bias", self.state[f"{name}.bias"])
            return self.add("LayerNormalization", x, scale, bias, epsilon=self.config.norm_eps)
        return self.add("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=self.config.norm_eps)

    def activated(self, x: str) -> str:
        kind = self.config.activation
        if kind == "relu":
            return self.add("Relu", x)
        if kind == "swiglu":
            return self.add("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # x · sigmoid(x): SiLU
        return self.add("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def rotary(self) -> None:
        """cos and sin of every position of the context, [context, D/2]."""
        config = self.config
        phase = angles(torch.arange(config.context), config.head_dim, config.rope_theta, config.rope_scaling)
        self.tensor("cos", phase.cos())
        self.tensor("sin", phase.sin())

    def block(self, x: str, layer: int, attend: Callable[[str, int], str]) -> str:
        name, post = f"blocks.{layer}", self.config.norm_place == "post"
        y = attend(x if post else self.norm(x, f"{name}.attention_norm"), layer)
        x = self.add("Add", x, self.linear(y, f"{name}.attention.o"))
        if post:
            x = self.norm(x, f"{name}.attention_norm")
        y = self.fed(x if post else self.norm(x, f"{name}.ffn_norm"), f"{name}.ffn")
        x = self.add("Add", x, y)
        return self.norm(x, f"{name}.ffn_norm") if post else x

    def fed(self, x: str, name: str) -> str:
        width = self.config.ffn_width
        if self.config.activation != "swiglu":
            return self.linear(self.activated(self.linear(x, f"{name}.up")), f"{name}.down")
        gate, up = f"{name}.gated", f"{name}.upped"
        halves = self.constant("halves", np.array([width, width]))
        self.add("Split", self.linear(x, f"{name}.gate", f"{name}.up"), halves, outputs=(gate, up), axis=-1)
        return self.linear(self.add("Mul", self.activated(gate), up), f"{name}.down")

    def heads(self, x: str, layer: int) -> tuple[str, str, str]:
        """Queries [B, T, H·D], keys and values [B, T, K·D], with QK-norm, before rotary positions."""
        config, name = self.config, f"blocks.{layer}.attention"
        keys = config.kv_heads if config.kind == "decoder" else config.heads
        sizes = self.constant("heads", np.array([config.heads, keys, keys]) * config.head_dim)
        split = (f"{name}.queries", f"{name}.keys", f"{name}.values")
        self.add("Split", self.linear(x, *(f"{name}.{part}" for part in "qkv")), sizes, outputs=split, axis=-1)
        if not config.qk_norm:
            return split
        apart, joined = self.constant("apart", np.array([0, 0, -1, config.head_dim])), self.constant("joined", np.array([0, 0, -1]))
        normed = [
            self.add("Reshape", self.norm(self.add("Reshape", one, apart), f"{name}.{part}_norm"), joined)
            for one, part in zip(split[:2], "qk", strict=True)
        ]
        return normed[0], normed[1], split[2]

    def causal(self) -> Callable[[str, int], str]:
        """Attention over a cache: GroupQueryAttention counts each row's own length, turns queries and keys, and stores what is new."""
        config = self.config
        before = self.add("Sub", "lengths", self.constant("one", np.int32(1)))
        longest = self.add("ReduceMax", "lengths", keepdims=0)
        rotary = config.positions == "rotary"
        cache = ("B", config.kv_heads, "S", config.head_dim)

        def attend(x: str, layer: int) -> str:
            local = config.attention[layer % len(config.attention)] == "local"
            queries, keys, values = self.heads(x, layer)
            held = [self.given(f"{what}.{layer}", "float", *cache) for what in ("keys", "values")]
            grown = [self.returned(f"new_{what}.{layer}", "float", *cache) for what in ("keys", "values")]
            return self.add(
                "GroupQueryAttention", queries, keys, values, *held, before, longest, *(("cos", "sin") if rotary else ()),
                outputs=(f"blocks.{layer}.attended", *grown), domain=MICROSOFT, num_heads=config.heads, kv_num_heads=config.kv_heads,
                scale=config.head_dim**-0.5 if config.scaled_scores else 1.0, do_rotary=int(rotary),
                local_window_size=config.window if local else -1,
            )  # fmt: skip

        return attend

    def padded(self) -> Callable[[str, int], str]:
        """Attention of an encoder: every token sees its row up to the row's length."""
        config = self.config
        rotary = config.positions == "rotary"
        start = self.constant("start", np.array([0])) if rotary else ""

        def attend(x: str, layer: int) -> str:
            queries, keys, values = self.heads(x, layer)
            if rotary:
                queries, keys = (
                    self.add("RotaryEmbedding", one, start, "cos", "sin", domain=MICROSOFT, num_heads=config.heads)
                    for one in (queries, keys)
                )
            scale = config.head_dim**-0.5 if config.scaled_scores else 1.0
            return self.add(
                "MultiHeadAttention", queries, keys, values, "", "lengths", domain=MICROSOFT, num_heads=config.heads, scale=scale
            )

        return attend
