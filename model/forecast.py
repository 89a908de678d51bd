"""What a training will take, before it runs: parameters, memory of one rank by ZeRO stage, arithmetic; and how fast this machine is, by a probe.

    memory(shape, train, vocab, replicas=2)        Memory(weights, gradients, optimizer, buffers, activations, …) in bytes
    work(shape, train, vocab)                      Work(parameters, tokens, flops)
    probe(shape, train, vocab)                     FLOP/s of a few real steps here, and of a matrix product

Nothing of the model's size is allocated: a micro-batch goes forward and backward on fake tensors, whose live bytes are counted.
"""

import time
import weakref
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import objectives, zero
from model.config import Contrastive, ModelConfig, TrainConfig
from model.peak import measured
from model.pipeline import layers
from model.transformer import Transformer, flops_per_token

GATHERED = 1_000_000_000
"""Parameters that DeepSpeed's stage 3 keeps gathered at most (stage3_max_live_parameters)."""
PROBE_TOKENS, PROBE_WIDTH, PROBE_LAYERS, PROBE_VOCAB, PROBE_SECONDS = 1024, 1024, 2, 4096, 0.5
"""Bounds of the model and the batch of a probe, and the time after which it takes no further step."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. DeepSpeed 0.19's own, as counted on its live tensors (tests/model/test_forecast.py does it again)."""

    weights: int
    """What forward and backward compute with."""
    gathered: int
    """Whole weights that stage 3 puts together for that time."""
    gradients: int
    """From backward to the update."""
    before: int
    """Of these, what is there while the last micro-batch goes through."""
    optimizer: int
    """fp32 masters (stages 1 to 3) and moments."""
    buffers: int
    """Buckets in which gradients travel."""
    activations: int
    """The most that forward and backward of one micro-batch hold beside all that, logits included."""
    logits: int
    """Of these, one array of logits in fp32."""
    update: int
    """What the optimizer's step takes for its time beside weights, optimizer and buffers, gradients included."""
    copy: int
    """The copy of a checkpoint being written, in main memory."""

    @property
    def peak(self) -> int:
        """The most at a time, without the copy: in backward, or in the update."""
        return self.weights + self.optimizer + self.buffers + max(self.gathered + self.before + self.activations, self.update)


@dataclass(frozen=True)
class Work:
    """What there is to compute."""

    parameters: int
    """Of the model, each once."""
    tokens: int
    """Over all steps, those of each row counted whole."""
    flops: float
    """Forward and backward of these, and forward of validation (`flops_per_token`, of which forward is a third)."""


def work(shape: ModelConfig, train: TrainConfig, vocab: int, valid: bool = True) -> Work:
    """Parameters, tokens and FLOPs of a run; `valid`: with its validations."""
    parameters, _ = sizes(shape, train, vocab)
    tokens = train.steps * train.batch * train.length
    rounds = -(-train.steps // train.valid_every) if train.valid_every else 1  # the last step is always followed by one
    seen = rounds * train.valid_batches * train.batch * train.length if valid else 0
    return Work(parameters, tokens, flops_per_token(shape, vocab, train.length) * (tokens + seen / 3))


def sizes(shape: ModelConfig, train: TrainConfig, vocab: int) -> tuple[int, int]:
    """Parameters of the model, and of those that Muon moves, which have one moment instead of two."""
    with torch.device("meta"):
        named = list(Transformer(shape, vocab).named_parameters())
    muon = train.optimizer == "muon"
    return sum(p.numel() for _, p in named), sum(p.numel() for n, p in named if muon and p.ndim == 2 and n.startswith("blocks."))


def memory(shape: ModelConfig, train: TrainConfig, vocab: int, cuda: bool = False) -> Memory:
    """Memory of one rank of a run that trains every parameter. Ranks that share matrices are counted as if activations were not shared; of a pipeline
    the first rank, whose micro-batches under way are together about as large as one is without."""
    with torch.device("meta"):
        model = Transformer(shape, vocab)
        if train.pipeline_parallel > 1:
            model.hold(layers(shape.layers, train.pipeline_parallel, 0))
        named = list(model.named_parameters())
    divided = sum(p.numel() for n, p in named if zero.divided(n) is not None)
    whole = sum(p.numel() for _, p in named)
    n = whole - divided + divided // train.tensor_parallel
    single = sizes(shape, train, vocab)[1]
    ranks = train.ranks // (train.tensor_parallel * train.sequence_parallel * train.pipeline_parallel)
    own = n / (ranks * train.sequence_parallel)  # state is divided among all that hold the same weights
    shared = ranks * train.sequence_parallel > 1
    half, stage = train.precision == "bf16", train.zero
    word = 2 if half else 4
    more = train.batch > train.micro_batch * ranks  # micro-batches beyond the first find gradients there
    bucket = min(zero.LARGEST_BUCKET, n) * (2 if cuda else 1)
    moments = 8 - 4 * single / whole
    weights = word * (own if stage == 3 else n)
    gathered = word * min(n, GATHERED) if stage == 3 and shared else 0
    optimizer = moments * n if stage == 0 else (4 + moments) * own
    gradients: float
    update: float
    if stage == 0:
        gradients, update, buffers = 4 * n, 4 * n + 4 * n * shared, 0.0
    elif stage == 3:
        gradients, update, buffers = 4 * own, 8 * own, 4.0 * bucket
    elif half and stage == 1:
        gradients, update, buffers = 4 * n, 4 * n + 4 * n * shared, 0.0
    elif half:
        gradients, update, buffers = 4 * own, 4 * own + 2 * n, 2.0 * bucket
    else:
        gradients, update, buffers = 8 * n if stage == 1 and more else 4 * own, 8 * own, 4.0 * bucket
    before = gradients if more or stage == 3 or (half and stage == 1) else 0
    logits = train.micro_batch * train.length * vocab * 4 // train.sequence_parallel
    if train.checkpointing:
        logits = min(logits, max(1, 4096 // train.micro_batch) * train.micro_batch * vocab * 4)
    copy = weights + optimizer if train.overlap_saving else 0
    return Memory(
        int(weights), int(gathered), int(gradients), int(before), int(optimizer), int(buffers), activations(shape, replace(train, zero=1), vocab) // train.sequence_parallel,
        0 if isinstance(train.objective, Contrastive) else logits, int(update), int(copy),
    )  # fmt: skip


@cache
def activations(shape: ModelConfig, train: TrainConfig, vocab: int) -> int:
    """Bytes that forward and backward of one micro-batch hold at most beside weights and their gradients, as CPU kernels do it."""
    with FakeTensorMode():
        model = _made(shape, vocab, torch.bfloat16 if train.precision == "bf16" else torch.float32)
        model.checkpointing = train.checkpointing
        tokens = torch.zeros((train.micro_batch, train.length), dtype=torch.long)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_forget)
        with Live() as live:
            for parameter in model.parameters():
                live.leave_out(parameter)
            _loss(model, train, tokens).backward()
    return live.most


def _made(shape: ModelConfig, vocab: int, precision: torch.dtype) -> Transformer:
    """A model of a precision from the start: fake tensors cannot be cast in place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        return Transformer(shape, vocab)
    finally:
        torch.set_default_dtype(before)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _loss(model: Transformer, train: TrainConfig, tokens: Tensor) -> Tensor:
    """The sum that one micro-batch goes backward from."""
    if isinstance(train.objective, Contrastive):
        twice = tokens[:, : tokens.shape[1] // 2 * 2].reshape(2 * len(tokens), -1)
        return model(twice, documents_BT=torch.zeros_like(twice), hidden=True).float().sum()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return objectives.cross_entropy(logits, targets, train.z_loss)

    def head(states: Tensor, output: torch.nn.Module) -> Tensor:
        return objectives.in_pieces(loss, states, output, tokens) if train.checkpointing else loss(output(states), tokens)

    return model(tokens, documents_BT=torch.zeros_like(tokens), head=head).sum()


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made within that are alive: `now`, and `most` so far. Views count with what they are views of."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count one more."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def leave_out(self, tensor: Tensor) -> None:
        """Count it as nothing, with all that are views of it."""
        self._sizes[tensor.untyped_storage()._cdata] = 0

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


@dataclass(frozen=True)
class Probe:
    """How fast this machine is."""

    step: float
    """FLOP/s of whole steps."""
    product: float
    """FLOP/s of a large matrix product; 0 on a GPU."""
    seconds: float
    """What the probe took."""


def device_of(train: TrainConfig) -> torch.device:
    """What the run would compute on here."""
    return torch.device("cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu")


def probe(shape: ModelConfig, train: TrainConfig, vocab: int) -> Probe:
    """Time steps of a model of this kind, cut to what takes a second or two: forward, backward, update, on the device that the run would take."""
    begun, device = time.perf_counter(), device_of(train)
    width = min(shape.width, PROBE_WIDTH)
    small = replace(
        shape, width=width, ffn_width=min(shape.ffn_width, 4 * width), layers=min(shape.layers, PROBE_LAYERS), pooler="none", head="linear", labels=(), prompt=0
    )  # fmt: skip
    ids, length = min(vocab, PROBE_VOCAB), min(train.length, PROBE_TOKENS)
    rows = max(1, min(train.micro_batch, PROBE_TOKENS // length))
    model = Transformer(small, ids)
    model.init_weights(train.seed)
    model = model.to(device, torch.bfloat16 if train.precision == "bf16" else torch.float32)
    optimizer = zero.optimizer(model, replace(train, optimizer="adamw"))
    tokens = torch.randint(0, ids, (rows, length), generator=torch.Generator().manual_seed(train.seed)).to(device)
    plain = replace(train, checkpointing=False)
    times: list[float] = []
    while len(times) < 4 or (sum(times) < PROBE_SECONDS and len(times) < 50):
        start = time.perf_counter()
        _loss(model, plain, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    step = min(times[1:])  # the first also warms up, and other load makes some too long
    product = measured(train.precision) if device.type == "cpu" else 0.0
    return Probe(flops_per_token(small, ids, length) * rows * length / step, product, time.perf_counter() - begun)
