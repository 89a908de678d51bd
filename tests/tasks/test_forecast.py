"""Properties of tasks/forecast.py: seconds are arithmetic from the nearest earlier run on the same device, a probe serves where there is none."""

import json
from dataclasses import replace

import pytest
from models import made

from flows.recipes import train
from model.config import Labels, Lora, qwen3, to_dict
from model.forecast import Probe, work
from model.transformer import flops_per_token
from tasks import forecast

SHAPE = qwen3(width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, context=64)
WIDE = replace(SHAPE, width=64)
VOCAB = 300
TRAIN = train(100, 8, 64, 1e-3, 10, micro_batch=4, device="cpu", valid_every=0, valid_batches=2)
PROBED = Probe(7e9, 9e9, 0.5)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A device of a known name, and a probe that takes no time."""
    monkeypatch.setattr("model.peak.named", lambda device: "a machine")
    monkeypatch.setattr("model.forecast.probe", lambda shape, train, vocab: PROBED)


def planted(store, rates, shape=SHAPE, device="a machine", beside=1, precision="fp32", length=64):
    """A finished pretraining whose steps ran at these tokens/s."""
    rows = [{"step": n + 1, "loss": 1.0, "tokens_per_s": rate, "seconds": 512 / rate} for n, rate in enumerate(rates)]
    info = {"model": to_dict(shape), "vocab": VOCAB, "final": {"device": device}, "ranks": 1, "beside": beside}
    files = {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
    config = {
        "model": to_dict(shape),
        "train": {"precision": precision, "length": length},
        "rates": rates,
        "device": device,
        "beside": beside,
    }
    return made(store, "pretrain", {}, files, info, config)


@pytest.fixture
def store(store, monkeypatch):
    """`made` wraps what it is given in a config of its own; a pretraining's is its settings."""
    from tasks.corpus import manifest

    settle = manifest.made_of
    monkeypatch.setattr(manifest, "made_of", lambda stage, config, inputs: settle(stage, config.get("config", config), inputs))
    return store


def test_seconds_are_flops_over_the_speed_of_an_earlier_run(store):
    run = planted(store, [1.0, 1000.0, 3000.0, 2000.0])  # the first step is left out
    each = flops_per_token(SHAPE, VOCAB, 64)
    found = forecast.forecast(store, SHAPE, TRAIN, VOCAB, valid=False)
    assert found.tokens_per_s == pytest.approx(2000)
    assert found.seconds == pytest.approx(100 * 8 * 64 / 2000)
    assert found.speed == pytest.approx(2000 * each)
    assert run.address in found.by and "2,000 tokens/s" in found.by
    assert forecast.forecast(store, SHAPE, TRAIN, VOCAB).seconds == pytest.approx((100 * 8 * 64 + 2 * 8 * 64 / 3) / 2000)


def test_another_shape_is_scaled_by_flops_a_token(store):
    planted(store, [2000.0] * 3)
    found = forecast.forecast(store, WIDE, TRAIN, VOCAB, valid=False)
    ratio = flops_per_token(WIDE, VOCAB, 64) / flops_per_token(SHAPE, VOCAB, 64)
    assert ratio > 1.5
    assert found.seconds == pytest.approx(100 * 8 * 64 / 2000 * ratio)
    assert found.seconds == pytest.approx(work(WIDE, TRAIN, VOCAB, valid=False).flops / found.speed)


def test_the_nearest_shape_counts(store):
    planted(store, [2000.0] * 3)
    near = planted(store, [900.0] * 3, shape=replace(SHAPE, width=56))
    found = forecast.forecast(store, WIDE, TRAIN, VOCAB)
    assert near.address in found.by


@pytest.mark.parametrize("changes", [{"device": "another machine"}, {"beside": 2}, {"precision": "bf16"}], ids=str)
def test_runs_that_do_not_compare_are_passed_over_and_a_probe_serves(store, changes):
    planted(store, [2000.0] * 3, **changes)
    found = forecast.forecast(store, SHAPE, TRAIN, VOCAB)
    assert found.speed == PROBED.step and found.by == "a probe of 0.5 s: 7 GFLOP/s of a matrix product's 9"


def test_cost_is_hours_times_devices_times_price(store):
    found = forecast.forecast(store, SHAPE, TRAIN, VOCAB)
    assert found.cost(3.0) == pytest.approx(found.seconds / 3600 * 3.0)
    assert replace(found, devices=8).cost(3.0) == pytest.approx(8 * found.cost(3.0))


def test_a_checkpoints_copy_counts_on_a_cpu_where_it_overlaps(store):
    found, waits = (forecast.forecast(store, SHAPE, replace(TRAIN, overlap_saving=overlap), VOCAB) for overlap in (True, False))
    assert found.resident == waits.resident + found.memory.copy > waits.resident


def test_what_happened_stands_beside_the_forecast_and_is_told(store):
    before = forecast.forecast(store, SHAPE, TRAIN, VOCAB)
    rows = [{"step": 1, "tokens_per_s": 10.0, "seconds": 2.0}, {"step": 1, "valid_loss": 1.0, "valid_seconds": 0.5}]
    info = forecast.record(before, rows, {"bytes": 2 * before.resident})
    assert info["happened"] == {"seconds": 2.5, "tokens_per_s": 10.0, "bytes": 2 * before.resident}
    assert info["forecast"]["seconds"] == before.seconds and info["forecast"]["by"] == before.by
    told = forecast.told(made(store, "pretrain", {}, info=info))
    assert f"({2.5 / before.seconds - 1:+.0%})" in told and "(+100%)" in told
    assert forecast.told(made(store, "extract", {})) == ""
    assert forecast.told(made(store, "pretrain", {}, info=forecast.record(None, rows, {"bytes": 1}), config=1)) == ""


def test_heads_adapters_and_rows_beyond_the_context_are_not_forecast():
    assert not forecast.knows(SHAPE, replace(TRAIN, length=65))
    assert forecast.knows(SHAPE, TRAIN)
    assert not forecast.knows(SHAPE, replace(TRAIN, objective=Labels("labels")))
    assert not forecast.knows(SHAPE, replace(TRAIN, adapter=Lora("lora", 4, 8.0, 0.0, ("q",))))
