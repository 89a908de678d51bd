"""Properties of model/train.py and model/loop.py: a run under torchrun, killed, resumed, and compared with a loop in plain PyTorch.

The quick tests start torchrun as seldom as they can (10 s each); the matrix of stages, precisions and ranks is `full`.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from flows import recipes
from model import checkpoint, families, loop, objectives, partition, zero
from model.batches import NO_LOSS, Batch, Batches, Packed, Stream, held_out, plan, plan_path
from model.config import (
    Contrastive,
    Masked,
    Mixed,
    ModelConfig,
    Objective,
    Run,
    Spans,
    TrainConfig,
    bert,
    from_dict,
    gpt2,
    gpt_neo,
    llama,
    qwen3,
    to_dict,
)
from model.errors import CheckpointError, ConfigError, NonFiniteError, RankError, ShardError
from model.forecast import memory
from model.muon import Muon
from model.shards import Shard, ShardWriter
from model.tokenizer import save as save_tokenizer
from model.tokenizer import train as train_tokenizer
from model.train import FATAL, Row, Tail, launch, main
from model.transformer import Transformer

VOCAB = 320
MODEL = qwen3(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=64)
TRAIN = recipes.train(80, 8, 32, 1e-2, 3, valid_every=20, valid_batches=2, save_every=10, micro_batch=4, device="cpu", timeout=120.0)
SHORT = replace(TRAIN, steps=6, save_every=3, valid_every=3)
BERT = Masked("masked", 0.4, 0.15, 0.8, 0.1, whole_words=False)
OBJECTIVES: dict[str, Objective] = {
    "masked": BERT,
    "whole words": replace(BERT, whole_words=True),
    "spans": Spans("spans", 0.2, 3.0),
    "mixed": Mixed("mixed", 0.5, BERT),
    "contrastive": Contrastive("contrastive", "labelled", 0.05, "mean"),
    "contrastive, first": Contrastive("contrastive", "labelled", 0.05, "first"),
}
ODD = 99
"""A token that only one document has."""
TIMES = ("seconds", "valid_seconds", "tokens_per_s", "mfu", "rss_bytes", "gpu_bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two training shards (of which document 7 of the second holds ODD), a validation shard, a tokenizer."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("train-00000", 60), ("train-00001", 40), ("valid-00000", 10)):
        with ShardWriter(folder / name, np.uint16) as writer:
            for number, size in enumerate(rng.integers(3, 90, count)):
                ids = np.append(np.cumsum(rng.integers(0, 3, size)) % 90 + 4, 0)
                ids[1] = ODD if (name, number) == ("train-00001", 7) else ids[1]
                writer.add(ids)
    save_tokenizer(train_tokenizer(["some text"], 512), folder / "tokenizer")
    return folder


def a_run(folder: Path, out: Path, train: TrainConfig = TRAIN, model: ModelConfig = MODEL, **more) -> Path:
    """run.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    fields = {"data": "stream", "fingerprint": "f" * 64, "data_fingerprint": "d" * 64, "start": None, "vocab": VOCAB}
    fields |= {"shards": (str(folder / "train-00000"), str(folder / "train-00001")), "valid": (str(folder / "valid-00000"),)}
    run = Run(**(fields | more), model=model, train=train, tokenizer=str(folder / "tokenizer"), out=str(out))
    (out / "run.json").write_text(json.dumps(to_dict(run)))
    return out / "run.json"


def go(path: Path, on_metrics=lambda row: None, **more) -> list[Row]:
    """Launch a run and wait for it; its new rows."""
    train = json.loads(path.read_text())["train"]
    rows: list[Row] = []

    def both(row: Row) -> None:
        rows.append(row)
        on_metrics(row)

    settings = {"ranks": train["ranks"], "timeout": train["timeout"]} | more
    launch(path, log=path.parent / "train.log", on_metrics=both, cache=path.parent / "cache", env={"OMP_NUM_THREADS": "1"}, **settings)
    return rows


def steps(out: Path) -> list[Row]:
    """Rows of metrics.jsonl without events and without what differs between equal runs."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows if "event" not in row]


def losses(out: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in steps(out) if name in row]


def processes(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """torchrun and its ranks below a process (this one)."""
    return [child for child in (parent or psutil.Process()).children(recursive=True) if "model.train" in command(child)]


def ranks_of(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Of these the ranks: torchrun's own command line names the module too."""
    return [child for child in processes(parent) if "torch.distributed.run" not in command(child)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def plain(
    data: Path, train: TrainConfig, source=None, model: Transformer | None = None, skipped: int = -1
) -> tuple[list[float], list[float], Transformer]:
    """Losses, gradient norms and the trained model of the same run, in plain PyTorch: whole batches, no DeepSpeed. One step may be skipped."""
    if model is None:
        model = Transformer(MODEL, VOCAB)
        model.init_weights(train.seed)
    source = source or Stream([Shard(data / "train-00000"), Shard(data / "train-00001")], train.length)
    batches = Batches(source, "d" * 64, train.batch, train.seed)
    optimizer = zero.optimizer(model, train)
    if isinstance(optimizer, Muon):
        optimizer.bind([partition.Piece(name, p, p, 0, 0, p.numel()) for name, p in model.named_parameters()])
    found, norms = [], []
    for step in range(train.steps):
        batch = batches.rows(step, 0, train.batch)
        tokens, targets, documents = (torch.from_numpy(a) for a in (batch.tokens, batch.targets, batch.documents))
        loss = torch.nn.functional.cross_entropy(
            model(tokens, documents_BT=documents).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)))
        for group in optimizer.param_groups:
            group["lr"] = zero.learning_rate(train, step) * group["share"]
        if step != skipped:
            optimizer.step()
        found.append(loss.item())
    return found, norms, model


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An undisturbed run with one rank."""
    out = tmp_path_factory.mktemp("whole")
    rows = go(a_run(data, out))
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in rows if "event" not in row] == steps(
        out
    )  # all rows were handed on, in order
    return out


def test_losses_and_gradients_are_those_of_a_plain_pytorch_loop(data, whole):
    expected, norms, _ = plain(data, TRAIN)
    assert losses(whole) == pytest.approx(expected, abs=2e-4)
    assert losses(whole)[:20] == pytest.approx(expected[:20], abs=1e-5)
    assert losses(whole, "grad_norm")[:20] == pytest.approx(norms[:20], rel=1e-4)
    assert expected[-1] < expected[0] - 1


def test_every_row_says_what_was_done(whole):
    rows = [row for row in steps(whole) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 81)) and [row["tokens"] for row in rows] == [256 * n for n in range(1, 81)]
    assert [row["lr"] for row in rows] == [zero.learning_rate(TRAIN, step) for step in range(80)]
    full = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    of_steps = [name for name in TIMES if name != "valid_seconds" and (name != "gpu_bytes" or torch.cuda.is_available())]
    assert all(full[name] > 0 for name in of_steps)
    checked = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if "valid_loss" in line]
    assert len(checked) == 4 and all(row["valid_seconds"] > 0 for row in checked)


def test_every_row_names_the_global_batch(data, whole):
    batches = Batches(Stream([Shard(data / "train-00000"), Shard(data / "train-00001")], 32), "d" * 64, 8, 1)
    assert losses(whole, "batch") == [batches.digest(step) for step in range(80)]


def test_the_model_left_behind_has_the_validation_loss_that_was_reported(data, whole):
    model = families.load(whole / "model")
    source = Stream([Shard(data / "valid-00000")], 32)
    batch = source.read(np.arange(source.samples))  # fewer than valid_batches × batch: all of them
    logits = model(torch.from_numpy(batch.tokens), documents_BT=torch.from_numpy(batch.documents))
    targets = torch.from_numpy(batch.targets)
    loss = objectives.mean(objectives.cross_entropy(logits, targets).detach(), int((targets != NO_LOSS).sum()))
    found = losses(whole, "valid_loss")
    assert len(found) == 4 and found[-1] == pytest.approx(loss, abs=1e-6)
    done = json.loads((whole / "done.json").read_text())
    assert done["step"] == 80 and done["metrics"]["valid_loss"] == found[-1] and done["metrics"]["loss"] == losses(whole)[-1]
    assert (whole / "model" / "tokenizer.json").read_bytes() == (data / "tokenizer" / "tokenizer.json").read_bytes()


@pytest.mark.full
def test_the_memory_that_a_run_took_is_what_was_forecast(data, tmp_path):
    """Resident bytes of the process at their most, beside those that it had of no tensor, within a quarter and 40 MiB for allocator and packages."""
    shape = qwen3(width=384, layers=6, heads=6, kv_heads=6, ffn_width=1024, context=64)
    short = replace(TRAIN, steps=2, warmup=1, length=64, batch=16, micro_batch=16, save_every=2)
    path = a_run(data, tmp_path / "out", short, shape)
    go(path)
    took = json.loads((path.parent / "done.json").read_text())["metrics"]["bytes"]
    made = memory(shape, short, VOCAB)
    assert made.peak > 250 * 2**20
    assert 0.9 * (made.peak + made.copy) < took < 1.25 * (made.peak + made.copy) + 40 * 2**20


def test_the_last_checkpoints_are_kept_complete(whole):
    found, skipped = checkpoint.latest(whole / "checkpoints", "f" * 64)
    assert found.step == 80 and not skipped
    assert sorted(p.name for p in (whole / "checkpoints").glob("step-*")) == ["step-00000070", "step-00000080"]


def test_a_finished_run_is_not_run_again(whole):
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    assert go(whole / "run.json") == [] and (whole / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_killed_and_resumed_ends_as_the_undisturbed_one_bit_for_bit(data, whole, tmp_path):
    path = a_run(data, tmp_path / "out")

    def kill(row: Row) -> None:
        if (path.parent / "checkpoints" / "step-00000010" / checkpoint.RECORD).exists():
            for rank in ranks_of():
                rank.send_signal(signal.SIGKILL)

    with pytest.raises(RankError, match=r"training ended with status \d+ before it was complete(.|\n)*SIGKILL"):
        go(path, kill)
    assert ranks_of() == [] and not (path.parent / "done.json").exists()
    reached = losses(path.parent, "step")[-1]
    last = checkpoint.latest(path.parent / "checkpoints", "f" * 64)[0].step
    assert 10 <= last <= reached < 80
    torn = path.parent / "checkpoints" / checkpoint.step_name(80)
    torn.mkdir()
    (torn / "mp_rank_00_model_states.pt").write_bytes(b"half")
    rows = go(path)
    told = {"name": "step-00000080", "reason": "no complete.json: it was not written to its end"}
    assert rows[0]["event"] == "resumed" and rows[0]["step"] == last and told in rows[0]["skipped"]
    assert [row["step"] for row in rows if "loss" in row] == list(range(last + 1, 81))
    assert steps(path.parent) == steps(whole)
    assert (path.parent / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_a_mistake_found_by_a_rank_is_raised_as_itself(data, tmp_path):
    path = a_run(data, tmp_path, SHORT, shards=(str(data / "absent"),))
    with pytest.raises(ShardError, match=r"absent\.idx is not in"):
        go(path)
    assert json.loads((tmp_path / "error.json").read_text())["type"] == "ShardError"


def test_a_run_that_makes_no_step_in_time_is_ended(data, tmp_path):
    with pytest.raises(RankError, match=r"no step for 0\.5 s"):
        go(a_run(data, tmp_path, SHORT), timeout=0.5)
    assert processes() == []


def test_an_exception_while_watching_ends_the_ranks(data, tmp_path, monkeypatch):
    def broken(self: Tail) -> list[Row]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Tail, "new", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        go(a_run(data, tmp_path, SHORT))
    assert processes() == []


def test_ranks_die_with_a_launcher_that_is_killed(data, tmp_path, repo):
    path = a_run(data, tmp_path, replace(TRAIN, steps=100_000, ranks=2, micro_batch=4))
    code = f"from pathlib import Path; from model.train import launch; p = Path({str(path)!r}); "
    code += "launch(p, 2, p.parent / 'log', 100, print, p.parent, env={'OMP_NUM_THREADS': '1'})"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=repo, stdout=subprocess.DEVNULL)
    family = psutil.Process(launcher.pid)
    wait_for(lambda: len(ranks_of(family)) == 2 and all(rank.num_threads() > 1 for rank in ranks_of(family)))
    children = family.children(recursive=True)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert len(gone) >= 3 and alive == []


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": replace(MODEL, kind="encoder")}, "objective causal predicts the next token and needs model.kind=decoder; it is encoder"),
        ({"train": replace(TRAIN, objective=OBJECTIVES["contrastive"], z_loss=1e-4)}, "objective contrastive has no softmax over tokens"),
        ({"train": replace(TRAIN, objective=BERT)}, "objective masked fills in tokens from both sides and needs model.kind=encoder"),
        (
            {"train": replace(TRAIN, objective=BERT), "data": "packed"},
            "examples are learnt by objectives causal, labels, answers and preference, not masked",
        ),
        ({"model": replace(MODEL, context=16)}, r"train.length \(32\) exceeds model.context \(16\)"),
        ({"train": replace(TRAIN, batch=12, micro_batch=4)}, r"batch \(12\) must be a multiple of micro_batch × ranks \(4 × 2\)"),
        ({"train": replace(TRAIN, ranks=4, tensor_parallel=4)}, r"train.tensor_parallel \(4\) must divide ranks in all \(2\)"),
        (
            {"train": replace(TRAIN, ranks=2, tensor_parallel=2), "model": replace(MODEL, kv_heads=1)},
            r"must divide model.kv_heads \(1\)",
        ),
        ({"vocab": 128}, r"tokenizer\.json has token ids up to 2\d\d, the weights rows for 128"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(data, tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("model.train.die_with_parent", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(a_run(data, tmp_path, **changes))
    error = json.loads((tmp_path / "error.json").read_text())
    assert ended.value.code == FATAL and error["type"] == ("TokenizerError" if "vocab" in changes else "ConfigError")
    assert re.search(message, error["message"])


def test_outside_torchrun_the_right_command_is_named(data, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path = a_run(data, tmp_path)
    with pytest.raises(ConfigError, match="torchrun --standalone"):
        loop.train(Run(**{**json.loads(path.read_text()), "model": MODEL, "train": TRAIN}))


def test_metrics_beyond_the_step_of_a_resumption_and_torn_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"event": "resumed", "step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = loop.Metrics(path, 2)
    log.write({"step": 3, "loss": 1.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"event": "resumed", "step": 2}\n{"step": 3, "loss": 1.5}\n'
    loop.Metrics(path, 0)
    assert path.read_text() == ""


def test_only_rows_of_the_run_now_started_are_handed_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}, "loss": 1}}\n' for n in range(1, 6)))
    tail = Tail(path)
    assert tail.new() == []
    log = loop.Metrics(path, 3)
    log.write({"step": 4, "loss": 1.25})  # begins as the line that was cut
    assert [row["loss"] for row in tail.new()] == [1.25]
    with open(path, "a") as file:
        file.write('{"step": 5')
        file.flush()
        assert tail.new() == []
        file.write(', "loss": 2}\n')
        file.flush()
        assert tail.new() == [{"step": 5, "loss": 2}]
    assert tail.new() == []


def test_a_first_run_hands_on_its_rows_from_the_start(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.new() == []
    loop.Metrics(tmp_path / "metrics.jsonl", 0).write({"step": 1})
    assert tail.new() == [{"step": 1}]


@pytest.fixture(scope="module")
def short(data, tmp_path_factory) -> Path:
    """Six steps with one rank, ZeRO-1, fp32: what the matrix is compared with."""
    out = tmp_path_factory.mktemp("short")
    go(a_run(data, out, SHORT))
    return out


@pytest.mark.full
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_stages_and_ranks_see_the_same_batches_and_agree_in_fp32(data, short, tmp_path, stage, ranks):
    go(a_run(data, tmp_path, replace(SHORT, zero=stage, ranks=ranks, micro_batch=2)))
    assert losses(tmp_path, "batch") == losses(short, "batch")
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(tmp_path, name) == pytest.approx(losses(short, name), abs=1e-5)
    ours, theirs = (families.load(out / "model").state_dict() for out in (tmp_path, short))
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [{"zero": 1, "checkpointing": True}, {"zero": 3}, {"zero": 1, "precision": "bf16"}, {"zero": 2, "model": gpt2(32, 2, 4, 48, 64, 0.0)}],
)
def test_two_ranks_that_share_each_matrix_agree_with_one_and_resume(data, short, tmp_path, change):
    model, tolerance = change.pop("model", MODEL), 0.02 if "precision" in change else 1e-5
    train = replace(SHORT, ranks=2, tensor_parallel=2, **change)
    alone = short
    if model != MODEL:
        alone = tmp_path / "alone"
        go(a_run(data, alone, SHORT, model))
    go(a_run(data, tmp_path / "out", train, model))
    assert losses(tmp_path / "out", "batch") == losses(alone, "batch")
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(tmp_path / "out", name) == pytest.approx(losses(alone, name), abs=tolerance)
    ours, theirs = (families.load(out / "model").state_dict() for out in (tmp_path / "out", alone))
    assert all(torch.allclose(ours[name], theirs[name], atol=10 * tolerance) for name in theirs)
    if train.zero == 1:
        path = again(tmp_path / "out", tmp_path / "copy", 6)
        a_run(data, path.parent, train, model)
        assert go(path)[0]["step"] == 3 and steps(path.parent) == steps(tmp_path / "out")


@pytest.mark.full
@pytest.mark.parametrize("stage, family", [(1, "qwen3"), (3, "gpt_neo")])
def test_two_ranks_that_share_each_row_agree_with_one_and_go_on_alone(data, short, tmp_path, stage, family):
    model = MODEL if family == "qwen3" else gpt_neo(32, 2, 4, 48, 64, 5, 0.0)
    alone = short
    if model != MODEL:
        alone = tmp_path / "alone"
        go(a_run(data, alone, SHORT, model))
    train = replace(SHORT, ranks=2, sequence_parallel=2, zero=stage, checkpointing=True)
    go(a_run(data, tmp_path / "out", train, model))
    path = again(tmp_path / "out", tmp_path / "copy", 6)
    a_run(data, path.parent, SHORT, model)
    assert go(path)[0]["step"] == 3
    for out in (tmp_path / "out", tmp_path / "copy"):
        assert losses(out, "batch") == losses(alone, "batch")
        for name in ("loss", "grad_norm", "valid_loss", "valid_accuracy"):
            assert losses(out, name) == pytest.approx(losses(alone, name), abs=1e-5)
        ours, theirs = (families.load(folder / "model").state_dict() for folder in (out, alone))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        {"zero": 1, "micro_batch": 2},
        {"zero": 0, "micro_batch": 1, "checkpointing": True},
        {"zero": 1, "micro_batch": 2, "precision": "bf16"},
        {"zero": 1, "micro_batch": 2, "ranks": 4},
        {"zero": 1, "micro_batch": 1, "ranks": 3, "stages": 3, "model": gpt2(32, 4, 4, 48, 64, 0.0)},
        {"zero": 1, "micro_batch": 4, "model": replace(llama(32, 3, 4, 2, 48, 64), tie_embeddings=False)},
        {"zero": 1, "micro_batch": 2, "objective": BERT, "model": bert(32, 2, 4, 48, 64, 0.0)},
    ],
)
def test_ranks_that_hold_some_layers_each_agree_with_one_and_go_on_as_they_were_or_alone(data, short, tmp_path, change):
    model, tolerance = change.pop("model", MODEL), 0.02 if "precision" in change else 1e-5
    objective = change.get("objective", SHORT.objective)
    train = replace(SHORT, **{"ranks": 2, "pipeline_parallel": change.pop("stages", 2)} | change)
    alone = short
    if model != MODEL:
        alone = tmp_path / "alone"
        go(a_run(data, alone, replace(SHORT, objective=objective), model))
    go(a_run(data, tmp_path / "out", train, model))
    legs = [train, replace(SHORT, precision=train.precision, objective=objective)] if train.ranks == 2 else []
    for leg in legs:
        path = again(tmp_path / "out", tmp_path / f"copy-{leg.ranks}", 6)
        a_run(data, path.parent, leg, model)
        assert go(path)[0]["step"] == 3
    for out in [tmp_path / "out", *(tmp_path / f"copy-{leg.ranks}" for leg in legs)]:
        assert losses(out, "batch") == losses(alone, "batch")
        for name in ("loss", "grad_norm", "valid_loss", "valid_accuracy"):
            assert losses(out, name) == pytest.approx(losses(alone, name), abs=tolerance)
        ours, theirs = (families.load(folder / "model").state_dict() for folder in (out, alone))
        assert all(torch.allclose(ours[name], theirs[name], atol=10 * tolerance) for name in theirs)


@pytest.mark.full
def test_a_checkpoint_of_shared_matrices_is_refused_where_they_are_shared_otherwise(data, short, tmp_path):
    path = again(short, tmp_path / "out", 6)
    a_run(data, path.parent, replace(SHORT, ranks=2, tensor_parallel=2))
    with pytest.raises(
        CheckpointError, match=r"was written with .*'tensor_parallel': 1.*, this run has .*'tensor_parallel': 2.*Set it back"
    ):
        go(path)


@pytest.mark.full
@pytest.mark.parametrize("micro", [1, 8])
def test_accumulation_equals_the_full_batch(data, short, tmp_path, micro):
    go(a_run(data, tmp_path, replace(SHORT, micro_batch=micro)))
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(tmp_path, name) == pytest.approx(losses(short, name), abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 3])
def test_checkpointing_changes_no_result(data, short, tmp_path, stage):
    go(a_run(data, tmp_path, replace(SHORT, zero=stage, ranks=2, micro_batch=2, checkpointing=True)))
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(tmp_path, name) == pytest.approx(losses(short, name), abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 3])
def test_compiling_changes_results_by_rounding_only_and_no_name(data, short, tmp_path, stage):
    train = replace(SHORT, compile=True, checkpointing=True, zero=stage)
    path = a_run(data, tmp_path / "out", train)
    go(path)
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(path.parent, name) == pytest.approx(losses(short, name), abs=1e-5)
    ours, theirs = (families.load(out / "model").state_dict() for out in (path.parent, short))
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    (path.parent / "done.json").unlink()
    (path.parent / "checkpoints" / "step-00000006" / checkpoint.RECORD).unlink()
    a_run(data, path.parent, replace(train, compile=False, checkpointing=False))
    assert go(path)[0]["step"] == 3  # a checkpoint knows of neither
    assert losses(path.parent) == pytest.approx(losses(short), abs=1e-5)


def learnt(data: Path, run: Run) -> tuple[list[float], dict[str, float]]:
    """Losses, and validation's figures, of an objective in plain PyTorch: whole batches, losses by their definition."""
    train, wanted, model = run.train, run.train.objective, Transformer(run.model, run.vocab)
    model.init_weights(train.seed)
    objective = objectives.of(run)
    batches = Batches(objective.source(run.shards), run.data_fingerprint, train.batch, train.seed, objective.noise, train.steps)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, float]:
        tokens, targets, documents = (torch.from_numpy(a) for a in (batch.tokens, batch.targets, batch.documents))
        if isinstance(wanted, Contrastive):
            vectors = []
            for half in (tokens[:, : train.length], tokens[:, train.length :]):
                rows = []
                for row, there in zip(half, documents.view(len(tokens), 2, -1)[:, len(vectors)], strict=True):
                    states = model(row[there >= 0][None], hidden=True)[0]
                    rows.append(states.mean(0) if wanted.pooling == "mean" else states[0])
                vectors.append(torch.stack(rows))
            scores = torch.nn.functional.cosine_similarity(vectors[0][:, None], vectors[1][None], dim=-1) / wanted.temperature
            own = torch.arange(len(scores))
            return -scores.log_softmax(1)[own, own].mean(), float((scores.argmax(1) == own).double().mean())
        ahead = None if batch.ahead is None else torch.from_numpy(batch.ahead)
        logits, here = model(tokens, documents_BT=documents, ahead_B=ahead), targets != NO_LOSS
        return torch.nn.functional.cross_entropy(logits[here], targets[here]), float(
            (logits[here].argmax(-1) == targets[here]).double().mean()
        )

    optimizer, found = zero.optimizer(model, train), []
    for step in range(train.steps):
        loss, _ = loss_of(batches.rows(step, 0, train.batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        for group in optimizer.param_groups:
            group["lr"] = zero.learning_rate(train, step)
        optimizer.step()
        found.append(loss.item())
    with torch.no_grad():
        valid = held_out(objective.source(run.valid), train.valid_batches * train.batch, run.data_fingerprint, objective.noise)
        loss, accuracy = loss_of(valid)
    return found, {"valid_loss": loss.item(), "valid_accuracy": accuracy}


@pytest.mark.parametrize(
    ("name", "stage", "ranks"),
    [
        pytest.param(name, *how, marks=() if (name, how) == ("contrastive", (1, 1)) else pytest.mark.full)
        for name in OBJECTIVES
        for how in ([(0, 2), (1, 1), (2, 2), (3, 2)] if name in ("masked", "contrastive") else [(1, 2)])
    ],
)
def test_each_objective_is_that_of_its_definition_over_whole_batches(data, tmp_path, name, stage, ranks):
    wanted = OBJECTIVES[name]
    model = MODEL if name in ("spans", "mixed", "contrastive") else replace(MODEL, kind="encoder")
    train = replace(SHORT, objective=wanted, zero=stage, ranks=ranks, micro_batch=2, valid_every=6)
    path = a_run(data, tmp_path / "out", train, model)
    go(path)
    run = from_dict(Run, json.loads(path.read_text()))
    expected, checked = learnt(data, run)
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=2e-5)
    last = steps(tmp_path / "out")[-1]
    assert {key: last[key] for key in checked} == pytest.approx(checked, abs=2e-5)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.full
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_losses_of_a_cpu_and_resumes(data, tmp_path):
    model = qwen3(width=64, layers=2, heads=4, kv_heads=2, ffn_width=64, context=64)  # heads as FlexAttention needs them
    go(a_run(data, tmp_path / "cpu", SHORT, model))
    train = replace(SHORT, device="cuda", precision="bf16", compile=True, timeout=300.0)
    path = a_run(data, tmp_path / "gpu", train, model)
    go(path)
    first = losses(path.parent)
    assert losses(path.parent, "batch") == losses(tmp_path / "cpu", "batch")
    for name in ("loss", "valid_loss"):
        assert losses(path.parent, name) == pytest.approx(losses(tmp_path / "cpu", name), abs=0.02)
    (path.parent / "done.json").unlink()
    (path.parent / "checkpoints" / "step-00000006" / checkpoint.RECORD).unlink()
    assert go(path)[0]["step"] == 3
    assert losses(path.parent) == pytest.approx(first, abs=1e-3)  # sums on a GPU have no fixed order


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32(data, short, tmp_path, stage):
    go(a_run(data, tmp_path, replace(SHORT, zero=stage, precision="bf16", ranks=2, micro_batch=2)))
    assert losses(tmp_path, "batch") == losses(short, "batch")
    assert losses(tmp_path) == pytest.approx(losses(short), abs=0.02) and losses(tmp_path) != losses(short)
    weights = families.load(tmp_path / "model").state_dict()["embed.weight"]
    assert not torch.equal(weights, weights.bfloat16().float())  # the fp32 masters, not what bf16 leaves of them


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_of_which_one_is_killed_resume_bit_for_bit(data, tmp_path, stage):
    train = replace(TRAIN, zero=stage, ranks=2)
    go(a_run(data, tmp_path / "whole", train))
    path = a_run(data, tmp_path / "out", train)

    def kill(row: Row) -> None:
        if (path.parent / "checkpoints" / "step-00000010" / checkpoint.RECORD).exists():
            for rank in ranks_of()[-1:]:  # none is left when rows come that were written before
                rank.send_signal(signal.SIGKILL)

    with pytest.raises(RankError, match="SIGKILL"):
        go(path, kill)
    assert ranks_of() == []
    go(path)
    assert steps(path.parent) == steps(tmp_path / "whole")
    assert (path.parent / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()


@pytest.mark.full
def test_killed_again_and_again_while_checkpoints_are_being_written_a_run_ends_as_the_undisturbed_one(data, tmp_path):
    train = replace(TRAIN, zero=2, ranks=2, save_every=1, valid_every=0, keep=1)
    go(a_run(data, tmp_path / "whole", replace(train, save_every=80)))
    path, random = a_run(data, tmp_path / "out", train), np.random.default_rng(0)
    for _ in range(3):
        reached = losses(path.parent, "step")[-1] if (path.parent / "metrics.jsonl").exists() else 0

        def kill(row: Row, until: int = reached + random.integers(3, 14)) -> None:
            if row["step"] >= until:
                time.sleep(random.uniform(0, 0.02))
                for rank in ranks_of():
                    rank.send_signal(signal.SIGKILL)

        with pytest.raises(RankError):
            go(path, kill)
    rows = go(path)
    assert rows[0]["event"] == "resumed" and rows[0]["step"] > 4
    assert steps(path.parent) == steps(tmp_path / "whole")
    assert (path.parent / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()


@pytest.mark.full
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(data, whole, tmp_path):
    path = a_run(data, tmp_path / "out")

    def stop(row: Row) -> None:
        if row.get("step") == 80 and "valid_loss" in row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(path, stop)
    found = checkpoint.latest(path.parent / "checkpoints", "f" * 64)[0]
    file = next(found.path.glob("*optim_states.pt"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    (path.parent / "done.json").unlink(missing_ok=True)
    rows = go(path)
    assert (
        rows[0]["step"] == found.step - 10 and rows[0]["skipped"][0]["reason"] == f"{file.name} has another sha256 than complete.json says"
    )
    assert (path.parent / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_a_run_goes_on_with_other_ranks_and_another_stage(data, whole, tmp_path):
    path = again(whole, tmp_path / "out", 80)
    a_run(data, path.parent, replace(TRAIN, ranks=2, micro_batch=2, zero=3))
    rows = go(path)
    assert rows[0]["step"] == 70 and rows[0]["written_with"] == {"ranks": 1, "zero": 1, "tensor_parallel": 1, "pipeline_parallel": 1}
    assert losses(path.parent, "batch") == losses(whole, "batch")
    for name in ("loss", "grad_norm", "valid_loss"):
        assert losses(path.parent, name) == pytest.approx(losses(whole, name), abs=1e-5)


def again(out: Path, copy: Path, step: int) -> Path:
    """run.json of a copy of a finished run that has lost the end: done.json and the checkpoint of `step`."""
    shutil.copytree(out, copy)
    (copy / "done.json").unlink()
    (copy / "checkpoints" / checkpoint.step_name(step) / checkpoint.RECORD).unlink()
    return copy / "run.json"


LEGS = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (0, 1)]
"""(stage, ranks) one after the other: what each stage wrote with one rank and with two is read by another number of ranks."""


@pytest.mark.full
@pytest.mark.parametrize(
    "precision, optimizer, legs, tolerance",
    [
        ("fp32", "adamw", LEGS, 1e-5),
        ("fp32", "muon", [(0, 2), (1, 2), (2, 2), (3, 2), (1, 1)], 1e-5),
        ("bf16", "muon", [(1, 2), (3, 1)], 5e-3),
    ],
)
def test_a_run_whose_ranks_and_stage_change_every_two_steps_is_as_an_undisturbed_one(data, tmp_path, precision, optimizer, legs, tolerance):
    constant = replace(TRAIN, lr=1e-3, schedule="wsd", warmup=0, micro_batch=2, keep=9)  # a constant rate: `steps` may grow
    train = replace(constant, precision=precision, optimizer=optimizer)
    if precision == "fp32":
        expected, norms, _ = plain(data, replace(train, steps=2 * len(legs)))
    else:
        go(a_run(data, tmp_path / "whole", replace(train, steps=2 * len(legs))))
        expected, norms = losses(tmp_path / "whole"), losses(tmp_path / "whole", "grad_norm")
    out = tmp_path / "out"
    for leg, (stage, ranks) in enumerate(legs, 1):
        (out / "done.json").unlink(missing_ok=True)
        rows = go(a_run(data, out, replace(train, steps=2 * leg, zero=stage, ranks=ranks)))
        assert [row["step"] for row in rows if "loss" in row] == [2 * leg - 1, 2 * leg]
        if leg > 1:
            assert rows[0]["written_with"] == {
                "zero": legs[leg - 2][0],
                "ranks": legs[leg - 2][1],
                "tensor_parallel": 1,
                "pipeline_parallel": 1,
            }
        if legs is LEGS and stage and ranks == 2:
            as_deepspeed_converts(out / "checkpoints" / checkpoint.step_name(2 * leg), tmp_path / f"universal-{leg}")
    assert losses(out) == pytest.approx(expected, abs=tolerance)
    assert losses(out, "grad_norm") == pytest.approx(norms, rel=10 * tolerance)


def as_deepspeed_converts(saved: Path, universal: Path) -> None:
    """Fail unless partition.Saved reads from a checkpoint what DeepSpeed's own conversion of it holds, bit for bit."""
    options = ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    module = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    subprocess.run([*module, "--input_folder", saved, "--output_folder", universal, *options], check=True, capture_output=True)
    names = [name for name, _ in Transformer(MODEL, VOCAB).named_parameters()]
    ours = partition.Saved(saved, names)
    for name in names:
        found = ours.states(name)
        for key, file in ((partition.WEIGHT, "fp32"), ("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")):
            theirs = torch.load(universal / "zero" / name / f"{file}.pt", weights_only=False)
            theirs = theirs["param"] if isinstance(theirs, dict) else theirs
            assert torch.equal(found[key], theirs.flatten())


def test_a_folder_that_deepspeed_did_not_write_is_refused(tmp_path):
    torch.save({"module": {"embed.weight": torch.zeros(2)}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="is not laid out as DeepSpeed 0.19 lays out checkpoints"):
        partition.Saved(tmp_path, ["embed.weight"])


@pytest.mark.full
def test_a_loss_that_is_not_finite_names_the_step_and_the_documents(data, tmp_path):
    untied = replace(MODEL, tie_embeddings=False)  # tied, the output matrix would spoil every row
    sick = Transformer(untied, VOCAB)
    sick.init_weights(1)
    with torch.no_grad():
        sick.embed.weight[ODD] = float("nan")
    families.save(sick, untied, VOCAB, tmp_path / "start")
    path = a_run(data, tmp_path / "out", replace(SHORT, steps=60), untied, start=str(tmp_path / "start"))
    with pytest.raises(NonFiniteError, match=r"the loss of step \d+ is not finite. Documents .*train-00001 7") as error:
        go(path)
    batches = Batches(Stream([Shard(data / "train-00000"), Shard(data / "train-00001")], 32), "d" * 64, 8, 1)
    step = next(s for s in range(60) if (batches.rows(s, 0, 8).tokens == ODD).any())
    assert f"step {step + 1} is" in str(error.value) and "train-00000" not in str(error.value)


@pytest.mark.full
@pytest.mark.parametrize("stage, ranks", [(0, 1), (3, 2)])
def test_a_spike_changes_nothing_names_its_documents_and_is_judged_alike_after_a_resumption(data, whole, tmp_path, stage, ranks):
    train = replace(TRAIN, lr=1e-4, schedule="wsd", warmup=0, skip_sigmas=6.0, zero=stage, ranks=ranks, save_every=70, valid_every=0)
    rng = np.random.default_rng(1)
    texts = [np.append(np.cumsum(rng.integers(0, 3, size)) % 90 + 4, 0) for size in rng.integers(40, 90, 400)]  # more than 80 steps read
    bad = -1
    for planted in (False, True):  # the order of samples depends on their number only
        with ShardWriter(tmp_path / "train", np.uint16) as writer:
            for number, ids in enumerate(texts):
                writer.add(rng.permutation(np.arange(100, 100 + len(ids))) if planted and number == bad else ids)
        source = Stream([Shard(tmp_path / "train")], 32)
        batches = Batches(source, "d" * 64, 8, 1)
        bad = batches.documents(74, [5])[0][1]
    step = next(s for s in range(64, 80) if ("train", bad) in batches.documents(s, range(8)))
    more = {"start": str(whole / "model"), "shards": (str(tmp_path / "train"),), "valid": ()}
    path = a_run(data, tmp_path / "out", train, **more)
    rows = go(path)
    spikes = [row for row in rows if row.get("event") == "spike"]
    assert spikes[0]["step"] == step + 1 and spikes[0]["documents"][0][0] == "train" and spikes[0]["found"] > spikes[0]["bound"]
    assert bad in [number for _, number in spikes[0]["documents"][:3]]
    assert [row["skipped"] for row in rows if "loss" in row][-1] == len(spikes)
    expected, _, trained = plain(data, train, source, families.load(whole / "model"), skipped=step)
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=1e-5)
    if len(spikes) == 1:
        found = families.load(tmp_path / "out/model").state_dict()
        assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in trained.state_dict().items())
    if stage == 0:
        resumed = again(tmp_path / "out", tmp_path / "resumed", 80)
        a_run(data, resumed.parent, train, **more)
        assert go(resumed)[0]["step"] == 70
        assert steps(resumed.parent) == steps(tmp_path / "out")


@pytest.mark.full
def test_a_gradient_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(NonFiniteError, match="of step 2 is not finite"):
        go(a_run(data, tmp_path, replace(SHORT, lr=1e38, warmup=0, clip=0.0)))


@pytest.mark.full
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_pretraining_goes_on_from_a_directory_of_each_family(data, tmp_path, family):
    shape = {
        "gpt2": gpt2(32, 2, 4, 48, 64, 0.0),
        "gpt_neo": gpt_neo(32, 2, 4, 48, 64, 5, 0.0),  # a window shorter than rows and documents
        "llama": replace(llama(32, 2, 4, 2, 48, 64), tie_embeddings=False),
    }[family]
    model = Transformer(shape, VOCAB)
    model.init_weights(7)
    families.save(model, shape, VOCAB, tmp_path / "start")
    train = replace(SHORT, lr=1e-3, ranks=2, micro_batch=2)
    go(a_run(data, tmp_path / "out", train, shape, start=str(tmp_path / "start")))
    expected, norms, trained = plain(data, train, model=families.load(tmp_path / "start"))
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=1e-5)
    assert losses(tmp_path / "out", "grad_norm") == pytest.approx(norms, rel=1e-4)
    written = json.loads((tmp_path / "out/model/config.json").read_text())
    assert written["model_type"] == family
    found = families.load(tmp_path / "out/model").state_dict()
    assert all(torch.allclose(found[name], tensor, atol=1e-5) for name, tensor in trained.state_dict().items())


@pytest.mark.full
def test_finetuning_starts_from_a_model_and_learns_masked_tokens_only(data, whole, tmp_path):
    rng, length = np.random.default_rng(1), TRAIN.length
    with ShardWriter(tmp_path / "train", np.uint16) as writer:
        for size in rng.integers(6, length + 2, 40):
            writer.add(rng.integers(4, 90, size), np.arange(size) >= size // 2)
    np.save(plan_path(tmp_path / "train"), plan(Shard(tmp_path / "train").sizes, length))
    train = replace(SHORT, lr=1e-3, ranks=2, micro_batch=2)
    prefixes = (str(tmp_path / "train"),)
    go(a_run(data, tmp_path / "out", train, data="packed", start=str(whole / "model"), shards=prefixes, valid=prefixes))
    source = Packed([Shard(tmp_path / "train")], length)
    expected, norms, _ = plain(data, train, source, families.load(whole / "model"))
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=1e-5)
    assert losses(tmp_path / "out", "grad_norm") == pytest.approx(norms, rel=1e-4)


@pytest.mark.full
def test_dropout_is_the_same_after_a_resumption(data, tmp_path):
    model = replace(MODEL, dropout=0.1)
    go(a_run(data, tmp_path / "whole", SHORT, model))
    path = a_run(data, tmp_path / "out", SHORT, model)
    go(path)
    (path.parent / "done.json").unlink()
    (path.parent / "checkpoints" / "step-00000006" / checkpoint.RECORD).unlink()
    assert go(path)[0]["step"] == 3
    assert steps(path.parent) == steps(tmp_path / "whole")


@pytest.mark.full
def test_two_agents_on_one_machine_train_as_two_nodes(data, short, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    path, failures = a_run(data, tmp_path, replace(SHORT, micro_batch=2)), []

    def node(number: int) -> None:
        try:
            launch(
                path, 1, tmp_path / f"node-{number}.log", 120, lambda row: None, tmp_path / "cache", {"OMP_NUM_THREADS": "1"}, 2, endpoint
            )
        except Exception as error:
            failures.append(error)

    agents = [threading.Thread(target=node, args=(number,)) for number in range(2)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    assert failures == []
    assert losses(tmp_path, "batch") == losses(short, "batch") and losses(tmp_path) == pytest.approx(losses(short), abs=1e-5)


@pytest.mark.full
def test_sigterm_ends_a_run_promptly(data, tmp_path):
    path, sent = a_run(data, tmp_path, replace(TRAIN, steps=100_000)), []

    def stop(row: Row) -> None:
        if not sent:
            processes()[0].send_signal(signal.SIGTERM)
            sent.append(time.monotonic())

    with pytest.raises(RankError, match="before it was complete"):
        go(path, stop)
    assert time.monotonic() - sent[0] < 15 and processes() == []
