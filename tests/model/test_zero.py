"""Properties of model/zero.py: the learning rate of every step, the optimizer's groups, DeepSpeed's configuration."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import zero
from model.config import Causal, TrainConfig, qwen3
from model.errors import ConfigError
from model.transformer import Transformer

TRAIN = TrainConfig(
    objective=Causal("causal"), adapter=None, steps=10, batch=8, length=32, lr=1.0, min_lr=0.1, warmup=4, schedule="cosine", decay=0, weight_decay=0.1, beta1=0.9, beta2=0.95,
    eps=1e-8, clip=1.0, precision="fp32", seed=1, valid_every=0, valid_batches=1, save_every=5, keep=1, ranks=1, micro_batch=2, zero=1,
    compile=False, checkpointing=False, device="cpu", timeout=60.0,
)  # fmt: skip


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
