"""Tokens/s of our loop (DeepSpeed ZeRO-1, one rank) against plain PyTorch loops of the same Transformer, in bf16 and fp32.

    python tests/benchmarks/train_speed.py [--rounds 5] [--steps 16] [--cores 1] [--precision bf16 fp32] [--quick] [--record]

Same batches, document masks, loss, learning rates, clipping and fused AdamW. Each round runs ours and the peers one after another, in fresh
processes on the same cores (OMP_NUM_THREADS = cores); of each the median step after a third of them for warm-up; a step is all between two
updates (batch, forward, backward, update, loss read), without evaluation and saving. Figures are medians over the rounds of the ratio of
neighbours, with the least and the greatest. Peers:

    fp32       the usual loop
    master     bf16 weights and gradients, fp32 weights for AdamW: what ZeRO-1 computes, by hand
    autocast   fp32 weights under torch.autocast: what most people write

Losses of both prove the same work: the script fails where they differ by more than TOLERANCE. FLOP/s are those of the model (no
recomputation), against the matmul peak measured beside the plain loop; on a CUDA device the share is MFU, against the data sheet's peak.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from figures import REPO, Figure, arguments, conclude, table

from flows import recipes
from model.batches import NO_LOSS, Batches, Stream
from model.config import ModelConfig, Run, from_dict, qwen3, to_dict
from model.shards import Shard, ShardWriter
from model.train import launch

VOCAB = 8192
PEERS = {"fp32": ("plain",), "bf16": ("master", "autocast")}
TOLERANCE = {"plain": 1e-4, "master": 5e-3, "autocast": 2e-2}
"""Greatest relative difference of any step's loss: rounding in another order; in bf16 with 8 bits of it; with a residual stream in fp32."""
GOAL = 0.97


@dataclass(frozen=True)
class Timing:
    """One loop in one process: the median step in seconds after warm-up, the loss of each, what the device could do at most, and the most
    bytes that tensors took of a GPU.
    """

    step: float
    losses: list[float]
    peak: float | None = None
    gpu_bytes: int = 0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--plain", nargs=2, metavar=("RUN", "PEER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        print(json.dumps(plain(from_dict(Run, json.loads(Path(given.plain[0]).read_text())), given.plain[1])))
    else:
        conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    import torch

    from model.transformer import flops_per_token, parameter_counts

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])
    cuda = given.device == "auto" and torch.cuda.is_available()
    rounds, steps = (1, 4) if given.quick else (given.rounds, given.steps)
    if given.quick:
        shape, length, batch = qwen3(64, 2, 2, 1, 128, 64), 64, 4
    elif cuda:
        shape, length, batch = qwen3(768, 12, 12, 6, 3072, 1024), 1024, 16
    else:
        shape, length, batch = qwen3(256, 6, 4, 2, 704, 256), 256, 8
    tokens, flops = batch * length, flops_per_token(shape, VOCAB, length)
    print(
        f"{parameter_counts(shape, VOCAB)[0] / 1e6:.1f}M parameters, batch {batch} × {length} tokens, "
        f"{torch.cuda.get_device_name() if cuda else f'{given.cores} core(s)'}, {rounds} rounds of {steps} steps"
    )
    found = []
    with tempfile.TemporaryDirectory(prefix="ingot-speed-") as name:
        base = prepare(Path(name), shape, steps, length, batch, "cuda" if cuda else "cpu")
        for precision in given.precision:
            run = replace(base, out=str(Path(name) / precision), train=replace(base.train, precision=precision))
            found += compare(run, precision, rounds, tokens, flops, cuda)
    return found


def prepare(folder: Path, shape: ModelConfig, steps: int, length: int, batch: int, device: Literal["cpu", "cuda"]) -> Run:
    """A shard of random documents, some longer than a row, and the run over it."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "train-00000", np.uint16) as writer:
        for size in rng.integers(50, 1500, 2 + steps * batch * length // 700):
            writer.add(np.append(rng.integers(4, VOCAB, size), 0))
    return run_over((folder / "train-00000",), folder, shape, VOCAB, steps, length, batch, device)


def run_over(
    shards: Sequence[Path],
    folder: Path,
    shape: ModelConfig,
    vocab: int,
    steps: int,
    length: int,
    batch: int,
    device: Literal["cpu", "cuda"],
) -> Run:
    """A run in `folder` over these shards: fp32, one rank, no accumulation, nothing evaluated and nothing saved before its end."""
    (folder / "tokenizer").mkdir()
    train = recipes.train(steps, batch, length, 1e-3, 2, valid_every=0, valid_batches=1, save_every=steps, keep=1, device=device)
    return Run(
        data="stream", fingerprint="f" * 64, data_fingerprint="d" * 64, model=shape, train=train, vocab=vocab,
        shards=tuple(str(prefix) for prefix in shards), valid=(), tokenizer=str(folder / "tokenizer"), start=None, out=str(folder),
    )  # fmt: skip


def compare(run: Run, precision: str, rounds: int, tokens: int, flops: float, cuda: bool) -> list[Figure]:
    """Our loop and its peers in turns; prints a table, returns a figure a peer and one for the distance to the limit."""
    peers = PEERS[precision]
    timings: dict[str, list[Timing]] = {name: [] for name in ("ours", *peers)}
    worst: dict[str, float] = {}
    for _ in range(rounds):
        timings["ours"].append(ours(run))
        for peer in peers:
            timings[peer].append(theirs(run, peer))
            worst[peer] = max(worst.get(peer, 0.0), difference(peer, timings["ours"][-1].losses, timings[peer][-1].losses))
    peak = max((t.peak for t in timings[peers[0]] if t.peak), default=None)
    rows, found = [], []
    for name, timed in timings.items():
        speed = statistics.median(tokens / t.step for t in timed)
        ratios = [peer.step / mine.step for mine, peer in zip(timings["ours"], timed, strict=True)]
        shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if name != "ours" else ""
        share = f"{speed * flops / peak:.1%}" if peak else ""
        apart = f"{worst[name]:.1e} (≤ {TOLERANCE[name]:g})" if name != "ours" else ""
        rows.append((name, f"{speed:,.0f}", f"{speed * flops / 1e9:,.1f}", share, shown, f"{timed[0].losses[-1]:.7f}", apart))
        if name != "ours":
            goal = (f"≥ {GOAL}", statistics.median(ratios) >= GOAL) if precision == "bf16" else ("", None)
            found.append(Figure(f"training tokens/s, ours : plain PyTorch, {precision} against {name}", shown, *goal))
    print(f"\n{precision}: matmul peak {peak / 1e9 if peak else 0:,.0f} GFLOP/s")
    table(("loop", "tokens/s", "GFLOP/s", "MFU" if cuda else "of the peak", "ours : it", "last loss", "losses apart"), rows)
    found.append(
        Figure(f"training {precision}: tokens/s, GFLOP/s, {'MFU' if cuda else 'share of the matmul peak'}", ", ".join(rows[0][1:4]))
    )
    return found


def difference(peer: str, ours: list[float], theirs: list[float]) -> float:
    """Greatest relative difference of a step's loss; exits where it says that the two did not do the same work."""
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    if worst > TOLERANCE[peer]:
        sys.exit(f"losses of ours and {peer} differ by {worst:.1e}, more than {TOLERANCE[peer]:g}: {ours} {theirs}")
    return worst


def ours(run: Run) -> Timing:
    """The house's loop, as the pretrain stage launches it."""
    out = Path(run.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    path = out / "run.json"
    path.write_text(json.dumps(to_dict(run)))
    rows: list[dict[str, Any]] = []
    launch(path, 1, out / "log", 600, rows.append, out.parent / "cache")
    trained = [row for row in rows if "loss" in row]
    return Timing(middle([row["seconds"] for row in trained]), [row["loss"] for row in trained])


def theirs(run: Run, peer: str) -> Timing:
    """A plain loop in a process of its own, with the variables that `launch` sets."""
    path = Path(run.out) / "run.json"
    env = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, __file__, "--plain", str(path), peer], capture_output=True, text=True, cwd=REPO, env=env)
    if done.returncode:
        sys.exit(f"the plain loop ({peer}) ended with {done.returncode}: {done.stderr[-3000:]}")
    return Timing(**json.loads(done.stdout))


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds[len(seconds) // 3 :])


def plain(run: Run, peer: str) -> dict[str, Any]:
    """A training loop as one writes it without a framework. Fields of a Timing."""
    import torch
    import torch.nn.functional as F

    def cross_entropy(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=NO_LOSS)

    from model import zero
    from model.peak import peak_flops
    from model.transformer import Transformer

    settings = run.train
    device = torch.device(settings.device)
    torch.use_deterministic_algorithms(device.type == "cpu")  # as in ours
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    peak = peak_flops(device, settings.precision)
    batches = Batches(
        Stream([Shard(prefix) for prefix in run.shards], settings.length), run.data_fingerprint, settings.batch, settings.seed
    )
    model = Transformer(run.model, run.vocab)
    model.init_weights(settings.seed)
    model.to(device)
    if settings.compile:
        cross_entropy = torch.compile(cross_entropy, dynamic=False)
        for block in model.blocks:
            block.compile(dynamic=False)
    weights = list(model.parameters())
    masters = [p.detach().float().clone() for p in weights]
    if peer == "master":
        model.to(torch.bfloat16)
    optimizer = zero.optimizer(model, settings)
    if peer == "master":
        of = dict(zip(map(id, weights), masters, strict=True))
        for group in optimizer.param_groups:
            group["params"] = [of[id(p)] for p in group["params"]]
    seconds, losses = [], []
    for step in range(settings.steps):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = zero.learning_rate(settings, step)
        batch = batches.rows(step, 0, settings.batch)
        arrays = (batch.tokens, batch.targets, batch.documents, batch.positions)
        tokens, targets, documents, positions = (torch.from_numpy(a).to(device) for a in arrays)
        with torch.autocast(device.type, torch.bfloat16, enabled=peer == "autocast"):
            logits = model(tokens, positions, documents)
        loss = cross_entropy(logits, targets)
        loss.backward()
        if peer == "master":
            for master, weight in zip(masters, weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None  # type: ignore[union-attr]
        updated = masters if peer == "master" else weights
        torch.nn.utils.clip_grad_norm_(updated, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        if peer == "master":
            with torch.no_grad():
                torch._foreach_copy_([*weights], masters)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
    taken = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"step": middle(seconds), "losses": losses, "peak": peak, "gpu_bytes": taken}


if __name__ == "__main__":
    main()
