"""Properties of model/forecast.py: parameters are those of the written weights, activations those of real tensors, and a rank's state that of DeepSpeed's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flows.recipes import train
from model import families, forecast
from model.config import Contrastive, Masked, bert, gpt2, gpt_neo, llama, qwen3, roberta
from model.forecast import Live
from model.objectives import cross_entropy, in_pieces
from model.transformer import Transformer, flops_per_token

FAMILIES = {
    "gpt2": gpt2(32, 2, 4, 64, 64, 0.1),
    "gpt_neo": gpt_neo(32, 2, 4, 64, 64, 16, 0.0),
    "llama": llama(32, 2, 4, 2, 64, 64),
    "qwen3": qwen3(32, 2, 4, 2, 64, 64),
    "bert": bert(32, 2, 4, 64, 64, 0.1),
    "roberta": roberta(32, 2, 4, 64, 64, 0.0),
}
MASKED = Masked("masked", 0.15, 0.15, 0.8, 0.1, False)
VOCAB = 300


def settings(**changes):
    return train(10, 8, 64, 1e-3, 2, **{"micro_batch": 4} | changes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_written_weights(family, tied, tmp_path):
    shape = replace(FAMILIES[family], tie_embeddings=tied)
    model = Transformer(shape, VOCAB)
    model.init_weights(0)
    families.save(model, shape, VOCAB, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert forecast.work(shape, settings(), VOCAB).parameters == written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_as_many_bytes_as_real_tensors_hold(family, checkpointing, precision):
    shape = FAMILIES[family]
    made = settings(checkpointing=checkpointing, precision=precision)
    model = Transformer(shape, VOCAB).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    model.checkpointing = checkpointing
    tokens = torch.randint(0, VOCAB, (4, 64))
    documents = torch.arange(64).expand(4, 64) // 20

    def head(states, output):
        return in_pieces(cross_entropy, states, output, tokens) if checkpointing else cross_entropy(output(states), tokens)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with Live() as live:
        for parameter in model.parameters():
            live.leave_out(parameter)
        model(tokens, documents_BT=documents, head=head).sum().backward()
    assert forecast.activations(shape, made, VOCAB) == pytest.approx(live.most, rel=0.02)


def test_live_counts_what_is_alive_and_views_once():
    with Live() as live:
        first = torch.zeros(1000)
        second = first[:500] + 1
        assert live.now == live.most == 4000 + 2000
        del first
        assert (live.now, live.most) == (2000, 6000)
        third = torch.zeros(100)
        assert (live.now, live.most) == (2400, 6000)
        del second, third
    assert live.now == 0


def test_checkpointing_and_smaller_micro_batches_take_less_and_a_longer_row_more():
    def least(**changes):
        return forecast.memory(FAMILIES["qwen3"], settings(**changes), VOCAB).activations

    assert least(checkpointing=True) < least() / 2
    assert least(micro_batch=2) == pytest.approx(least() / 2, rel=0.05)
    assert forecast.memory(FAMILIES["qwen3"], replace(settings(), length=32), VOCAB).activations < least()
    assert forecast.memory(FAMILIES["bert"], settings(objective=MASKED), VOCAB).logits == 4 * 64 * VOCAB * 4
    contrast = Contrastive("contrastive", "dropout", 0.05, "mean")
    assert forecast.memory(FAMILIES["bert"], settings(objective=contrast), VOCAB).logits == 0


def test_work_is_tokens_times_flops_a_token_with_a_third_for_validation():
    shape, made = FAMILIES["qwen3"], settings(valid_every=4, valid_batches=3)
    each = flops_per_token(shape, VOCAB, 64)
    assert forecast.work(shape, made, VOCAB, valid=False) == forecast.Work(
        forecast.sizes(shape, made, VOCAB)[0], 10 * 8 * 64, each * 10 * 8 * 64
    )
    rounds = len({4, 8, 10})
    assert forecast.work(shape, made, VOCAB).flops == pytest.approx(each * (10 + rounds * 3 / 3) * 8 * 64)


def test_a_probe_is_quick_and_no_faster_than_a_matrix_product():
    tried = forecast.probe(FAMILIES["qwen3"], settings(), VOCAB)
    assert 0 < tried.step < 1.5 * tried.product
    assert tried.seconds < 30


CASES = [
    {"zero": zero, "precision": precision, "batch": batch}
    for precision, stages in (("fp32", (0, 1, 2, 3)), ("bf16", (1, 2, 3)))
    for zero in stages
    for batch in ((8, 16) if (zero, precision) in ((1, "fp32"), (2, "bf16")) else (16,))
]
SHAPE = qwen3(128, 4, 4, 2, 352, 256)


@pytest.mark.full
def test_state_of_two_ranks_is_as_many_bytes_as_deepspeed_holds(tmp_path):
    """Live bytes of rank 0 at the third step: as it goes forward, and at most in backward and in the update. The peak is forecast to 3%."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        str(tmp_path / "found.json"),
    ]
    home = Path(__file__).parents[2]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(home)}, cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for case, (begins, backward, update) in zip(CASES, found, strict=True):
        made = forecast.memory(SHAPE, on_two(**case), 2048)
        still = made.weights + made.optimizer + made.buffers
        assert begins == pytest.approx(still + made.before, rel=0.03), case
        assert backward == pytest.approx(still + made.before + made.gathered + made.activations, rel=0.03), case
        assert max(backward, update) == pytest.approx(made.peak, rel=0.03), case
        # whether a bucket of backward is still there is chance
        assert 0.7 * (still + made.update) < update < 1.03 * (still + made.before + made.update), case


def on_two(**case):
    return train(10, case["batch"], 128, 1e-3, 2, micro_batch=4, ranks=2, zero=case["zero"], precision=case["precision"])


def rank(found: Path) -> None:
    """One rank: the cases in order, a fresh engine each."""
    import gc
    from datetime import timedelta

    from model import loop, zero

    deepspeed = loop._deepspeed(torch.device("cpu"), timedelta(seconds=120))
    torch.manual_seed(0)
    rows = []
    for case in CASES:
        made = on_two(**case)
        live = Live()
        with live:
            model = Transformer(SHAPE, 2048)
            model.init_weights(0)
            for parameter in model.parameters():
                live.add(parameter)
            config = zero.deepspeed_config(made, 2, sum(p.numel() for p in model.parameters()), cuda=False)
            engine = deepspeed.initialize(model=model, optimizer=zero.optimizer(model, made), config=config)[0]
            tokens = torch.randint(0, 2048, (4, 128))
            for _ in range(3):
                for _ in range(case["batch"] // 8):
                    gc.collect()
                    begins = live.most = live.now
                    loss = engine(
                        tokens, documents_BT=torch.zeros_like(tokens), head=lambda x, out, y=tokens: cross_entropy(out(x), y)
                    ).sum()
                    engine.backward(loss)
                    backward, live.most = live.most, live.now
                    engine.step()
                    del loss
            rows.append((begins, backward, live.most))
        engine.destroy()
        del engine, model
        gc.collect()
    if os.environ["RANK"] == "0":
        found.write_text(json.dumps(rows))


if __name__ == "__main__":
    rank(Path(sys.argv[1]))


def test_the_first_rank_of_a_pipeline_holds_its_layers_and_the_embeddings():
    wanted = train(10, 8, 32, 1e-3, 1, ranks=2, micro_batch=2, pipeline_parallel=2)
    shape, vocab = qwen3(64, 4, 4, 2, 96, 64), 512
    whole, half = forecast.memory(shape, replace(wanted, ranks=1, pipeline_parallel=1), vocab), forecast.memory(shape, wanted, vocab)
    model = Transformer(shape, vocab)
    model.hold(range(2))
    assert half.weights == 4 * sum(p.numel() for p in model.parameters()) < whole.weights
