"""Properties of model/zero.py: the learning rate of every step, the optimizer's groups, DeepSpeed's configuration."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import recipes
from model import zero
from model.config import Contrastive, SoftPrompt, TrainConfig, gpt2, qwen3
from model.errors import ConfigError
from model.transformer import Transformer

TRAIN = recipes.train(10, 8, 32, 1.0, 4, save_every=5, keep=1, micro_batch=2, device="cpu", timeout=60.0)


def rates(train: TrainConfig) -> list[float]:
    return [zero.learning_rate(train, step) for step in range(train.steps)]


def test_cosine_warms_up_to_the_peak_and_ends_at_the_floor():
    found = rates(TRAIN)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)])
    assert found[6] == pytest.approx(0.55) and found[9] == pytest.approx(0.1)


def test_wsd_stays_at_the_peak_and_falls_linearly_at_the_end():
    found = rates(replace(TRAIN, schedule="wsd", warmup=2, decay=4))
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])


def test_wsd_without_decay_stays_at_the_peak():
    assert rates(replace(TRAIN, schedule="wsd", warmup=0)) == [1.0] * 10


@given(
    steps=st.integers(1, 60),
    warmup=st.integers(0, 60),
    decay=st.integers(0, 60),
    floor=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "wsd"]),
)
def test_a_rate_lies_between_nothing_and_the_peak_and_never_rises_after_warm_up(steps, warmup, decay, floor, schedule):
    warmup = min(warmup, steps)
    found = rates(replace(TRAIN, steps=steps, warmup=warmup, decay=min(decay, steps - warmup), min_lr=floor, schedule=schedule))
    assert all(0 <= rate <= 1 + 1e-12 for rate in found)
    assert all(a <= b + 1e-12 for a, b in pairwise(found[:warmup]))
    after = found[max(0, warmup - 1) :]
    assert all(a + 1e-12 >= b for a, b in pairwise(after))


def test_decay_is_for_matrices_only():
    model = Transformer(qwen3(32, 2, 4, 2, 64, 64), 64)
    matrices, vectors = zero.optimizer(model, TRAIN).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2} and {p.ndim for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))
    assert matrices["fused"] and matrices["betas"] == (0.9, 0.95) and matrices["eps"] == 1e-8


def test_the_batch_is_cut_into_micro_batches_of_all_ranks():
    assert [zero.accumulation(TRAIN, world) for world in (1, 2, 4)] == [4, 2, 1]
    for world in (3, 8):
        with pytest.raises(ConfigError, match=rf"batch \(8\) must be a multiple of micro_batch × ranks \(2 × {world}\)"):
            zero.accumulation(TRAIN, world)


def test_the_configuration_follows_stage_precision_and_size():
    plain = zero.deepspeed_config(replace(TRAIN, zero=0), 2, 50_000, False)
    assert plain["train_batch_size"] == 8 == plain["train_micro_batch_size_per_gpu"] * plain["gradient_accumulation_steps"] * 2
    assert "bf16" not in plain and plain["gradient_clipping"] == 1.0 and plain["zero_optimization"]["stage"] == 0
    small = zero.deepspeed_config(replace(TRAIN, zero=3, precision="bf16"), 2, 50_000, True)
    assert small["bf16"]["enabled"] and small["data_types"]["grad_accum_dtype"] == "fp32"
    assert small["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert small["zero_optimization"]["reduce_bucket_size"] == 50_048  # an odd one is refused
    large = zero.deepspeed_config(replace(TRAIN, zero=3), 2, 10**9, True)["zero_optimization"]
    assert "stage3_param_persistence_threshold" not in large and large["reduce_bucket_size"] < 10**9


@pytest.mark.parametrize("shape", [qwen3(32, 2, 4, 2, 64, 64), gpt2(32, 2, 4, 48, 64, 0.0)])
def test_tensor_parallelism_divides_every_matrix_inside_blocks_and_nothing_else(shape):
    named = dict(Transformer(shape, 64).named_parameters())
    along = {name: zero.divided(name) for name in named}
    assert {name for name, p in named.items() if along[name] is not None and p.ndim == 2} == {
        name for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2
    }
    specs = zero.tensor_parallel(2)["partition_config"]["layer_specs"]
    for name, parameter in named.items():
        if parameter.ndim == 2:
            kind = next(spec["partition_type"] for spec in specs if any(re.match(pattern, name) for pattern in spec["patterns"]))
            assert {"column": 0, "row": 1, "skip": None}[kind] == along[name]
    assert all(
        along[name] == (0 if name.split(".")[-2] in ("q", "k", "v", "gate", "up") else None) for name in named if name.endswith(".bias")
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ranks": 3, "tensor_parallel": 2}, "must be a multiple of tensor_parallel"),
        ({"ranks": 2, "tensor_parallel": 2, "zero": 0}, "goes with zero=1, 2 or 3"),
        ({"ranks": 2, "tensor_parallel": 2, "optimizer": "muon"}, "optimizer=adamw"),
        ({"ranks": 4, "tensor_parallel": 2, "sequence_parallel": 2}, "do not go together"),
        ({"ranks": 3, "sequence_parallel": 3, "batch": 6}, r"sequence_parallel \(3\) must divide length \(32\)"),
        ({"ranks": 2, "sequence_parallel": 2, "compile": True}, "without compile"),
        ({"ranks": 2, "sequence_parallel": 2, "objective": Contrastive("contrastive", "dropout", 0.05, "mean")}, "without an adapter"),
        ({"ranks": 2, "tensor_parallel": 2, "adapter": SoftPrompt("prompt", 4)}, "without an adapter"),
        ({"ranks": 2, "pipeline_parallel": 2, "zero": 3}, "goes with zero=0 or 1"),
        ({"ranks": 2, "pipeline_parallel": 2, "optimizer": "muon"}, "with optimizer=adamw"),
        ({"ranks": 4, "pipeline_parallel": 2, "sequence_parallel": 2}, "sequence_parallel and pipeline_parallel do not go together"),
    ],
)
def test_what_does_not_go_with_shared_matrices_or_rows_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TRAIN, **change)
