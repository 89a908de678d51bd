"""DeepSpeed from a TrainConfig: its configuration, the optimizer it is handed, the learning rate of each step.

Facts these settings rest on (DeepSpeed 0.19): its own AdamW compiles for half a minute on a CPU, torch's fused one does not; stage 0 with
bf16 takes a phantom step (TrainConfig refuses it); stage 3 shards no parameter below its persistence threshold.
"""

import math
import re
from typing import TYPE_CHECKING, Any

from model.config import TrainConfig
from model.errors import ConfigError

if TYPE_CHECKING:
    import torch

SMALL = 10_000_000
"""Parameters below which stage 3 keeps none whole."""
COLUMNS = r"attention\.[qkv]\.|ffn\.(gate|up)\."
"""Layers whose outputs are divided among the ranks of one replica under tensor parallelism (Megatron-LM, Shoeybi et al. 2019)."""
ROWS = r"(attention\.o|ffn\.down)\.weight"
"""Weights whose inputs are; what the ranks make of them is summed."""
LARGEST_BUCKET = 200_000_000
"""Elements gathered or reduced at once. DeepSpeed allocates a whole bucket at every step, however small the model."""


def accumulation(train: TrainConfig, world: int) -> int:
    """Micro-batches of one rank in one step. Raises ConfigError if the global batch cannot be cut evenly among `world` ranks."""
    steps, rest = divmod(train.batch, train.micro_batch * world)
    if rest or not steps:
        raise ConfigError(
            f"batch ({train.batch}) must be a multiple of micro_batch × ranks ({train.micro_batch} × {world}): change batch or micro_batch"
        )
    return steps


def deepspeed_config(train: TrainConfig, world: int, parameters: int, cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for a model of so many parameters."""
    bucket = -(-min(LARGEST_BUCKET, parameters) // 64) * 64  # an odd one is refused
    zero: dict[str, Any] = {"stage": train.zero, "overlap_comm": cuda and train.zero > 0}
    zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if train.zero == 3 and parameters < SMALL:
        zero["stage3_param_persistence_threshold"] = 0
    config: dict[str, Any] = {
        "train_batch_size": train.batch * train.sequence_parallel,  # ranks that share rows count as if each had its own
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation(train, world),
        "gradient_clipping": train.clip,
        "zero_optimization": zero,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # Muon is a class of ours
        "timers": {"throughput": {"enabled": False}},  # it lets the GPU run dry at every micro-batch
    }
    if train.tensor_parallel > 1:
        config["tensor_parallel"] = tensor_parallel(train.tensor_parallel)
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}  # a gradient goes to its fp32 sum at once and is freed
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # a bf16 sum of many micro-batches loses the small ones
        config["communication_data_type"] = "fp32"
    return config


def tensor_parallel(ranks: int) -> dict[str, Any]:
    """DeepSpeed's AutoTP with our layers named. Norms of queries and keys see a rank's own heads only: their gradients are summed."""
    specs: list[dict[str, Any]] = [
        {"patterns": [rf".*({COLUMNS})weight"], "partition_type": "column"},
        {"patterns": [f".*{ROWS}"], "partition_type": "row"},
        {"patterns": [r".*attention\.[qk]_norm\.weight"], "partition_type": "skip", "grad_allreduce": True},
        {"patterns": [".*"], "partition_type": "skip"},
    ]
    return {"autotp_size": ranks, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def divided(name: str) -> int | None:
    """Along which dimension tensor parallelism divides a parameter; None where each rank has all of it."""
    return 0 if re.search(COLUMNS, name) else 1 if re.search(ROWS, name) else None


def optimizer(model: "torch.nn.Module", train: TrainConfig) -> "torch.optim.AdamW":
    """AdamW (Loshchilov and Hutter 2019), fused: weight decay on matrices and tables, none on norms and biases. Under `muon` the matrices
    inside blocks are a group of their own that Muon moves. A group's learning rate is its `share` of the schedule's. Frozen parameters are in none.
    """
    import torch

    from model.muon import Muon

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if train.optimizer == "muon" and p.ndim == 2 and name.startswith("blocks.")]
    outer = [p for _, p in named if p.ndim >= 2 and not any(p is one for one in inner)]
    vectors = [p for _, p in named if p.ndim < 2]
    muon = {"muon": True, "lr": train.matrix_lr, "share": train.matrix_lr / train.lr, "momentum": train.momentum}
    groups: list[dict[str, Any]] = [
        {"params": inner, "weight_decay": train.weight_decay, **muon},
        {"params": outer, "weight_decay": train.weight_decay, "muon": False, "share": 1.0},
        {"params": vectors, "weight_decay": 0.0, "muon": False, "share": 1.0},
    ]
    kind = Muon if train.optimizer == "muon" else torch.optim.AdamW
    return kind([g for g in groups if g["params"]], lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, fused=True)


def learning_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of the update that follows `step` updates, 0 ≤ step < steps.

    Linear warm-up reaches the peak at its last update. Then a half cosine to min_lr × lr (Loshchilov and Hutter 2017), or under wsd the
    peak until the last `decay` updates, which fall linearly (Hu et al. 2024, MiniCPM). The last update has min_lr × lr exactly.
    """
    done = step + 1
    if done <= train.warmup:
        return train.lr * done / train.warmup
    if train.schedule == "cosine":
        progress = (done - train.warmup) / (train.steps - train.warmup)
        height = (1 + math.cos(math.pi * progress)) / 2
    else:
        height = min(1.0, (train.steps - done) / train.decay) if train.decay else 1.0
    return train.lr * (train.min_lr + (1 - train.min_lr) * height)
