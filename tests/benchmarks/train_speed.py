"""Tokens/s of our loop (DeepSpeed ZeRO-1, one rank) against plain PyTorch loops of the same Transformer, in bf16 and fp32.

    python tests/benchmarks/train_speed.py [--rounds 5] [--steps 16] [--cores 1] [--precision bf16 fp32] [--peers plain frameworks] [--quick] [--record]

Same batches, document masks, loss, learning rates, clipping and fused AdamW. Each round runs ours and the peers one after another, in fresh
processes on the same cores (OMP_NUM_THREADS = cores); of each the median step after a third of them for warm-up; a step is all between two
updates (batch, forward, backward, update, loss read), without evaluation and saving. Figures are medians over the rounds of the ratio of
neighbours, with the least and the greatest. Peers:

    fp32       the usual loop
    master     bf16 weights and gradients, fp32 weights for AdamW: what ZeRO-1 computes, by hand
    autocast   fp32 weights under torch.autocast: what most people write, nanoGPT's loop among them
    trainer    transformers' Qwen3 under its Trainer, autocast
    litgpt     litgpt's own model under Lightning Fabric as its pretraining has it, bf16-mixed; where it can be imported: its pins are others than
               ours, so it is no extra (pip install --no-deps --target DIR litgpt lightning lightning-utilities torchmetrics; PYTHONPATH=DIR)

The last two know no document masks: with them every row is one document, and the output matrix is not tied.

Losses of both prove the same work: the script fails where they differ by more than TOLERANCE. FLOP/s are those of the model (no
recomputation), against the matmul peak measured beside the plain loop; on a CUDA device the share is MFU, against the data sheet's peak.
"""

import argparse
import importlib.util
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
FRAMEWORKS = ("trainer", "litgpt") if importlib.util.find_spec("litgpt") else ("trainer",)
TOLERANCE = {"plain": 1e-4, "master": 5e-3, "autocast": 2e-2, "trainer": 2e-2, "litgpt": 2e-2}
"""Greatest relative difference of any step's loss: rounding in another order; in bf16 with 8 bits of it; with a residual stream in fp32."""
GOALS = {"master": 0.97, "autocast": 0.97, "trainer": 1.3}


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
    parser.add_argument("--peers", nargs="+", choices=("plain", "frameworks"), default=("plain", "frameworks"))
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--plain", nargs=2, metavar=("RUN", "PEER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        run, peer = from_dict(Run, json.loads(Path(given.plain[0]).read_text())), given.plain[1]
        print("\n" + json.dumps({"trainer": trainer, "litgpt": litgpt}[peer](run) if peer in FRAMEWORKS else plain(run, peer)))
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
        for kind in given.peers:
            whole = kind == "frameworks"
            made = replace(shape, tie_embeddings=False) if whole else shape
            base = prepare(Path(name) / kind, made, steps, length, batch, "cuda" if cuda else "cpu", whole)
            for precision in given.precision:
                run = replace(base, out=str(Path(name) / kind / precision), train=replace(base.train, precision=precision))
                found += compare(run, precision, FRAMEWORKS if whole else PEERS[precision], rounds, tokens, flops, cuda)
    return found


def prepare(
    folder: Path, shape: ModelConfig, steps: int, length: int, batch: int, device: Literal["cpu", "cuda"], whole: bool = False
) -> Run:
    """A shard of random documents, some longer than a row, or each as long as one, and the run over it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    sizes = [length - 1] * (1 + steps * batch) if whole else rng.integers(50, 1500, 2 + steps * batch * length // 700)
    with ShardWriter(folder / "train-00000", np.uint16) as writer:
        for size in sizes:
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


def compare(run: Run, precision: str, peers: Sequence[str], rounds: int, tokens: int, flops: float, cuda: bool) -> list[Figure]:
    """Our loop and its peers in turns; prints a table, returns a figure a peer and one for the distance to the limit."""
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
            bound = GOALS.get(name) if precision == "bf16" else None
            goal = (f"≥ {bound}", statistics.median(ratios) >= bound) if bound else ("", None)
            what = name if name in FRAMEWORKS else f"plain PyTorch ({name})"
            found.append(Figure(f"training tokens/s, ours : {what}, {precision}", shown, *goal))
    print(f"\n{precision}: matmul peak {peak / 1e9 if peak else 0:,.0f} GFLOP/s")
    table(("loop", "tokens/s", "GFLOP/s", "MFU" if cuda else "of the peak", "ours : it", "last loss", "losses apart"), rows)
    if peers is not FRAMEWORKS:
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
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


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


def hugging_face(run: Run, folder: Path) -> Path:
    """The run's fresh model as a directory that transformers loads."""
    from model import families
    from model.transformer import Transformer

    model = Transformer(run.model, run.vocab)
    model.init_weights(run.train.seed)
    families.save(model, run.model, run.vocab, folder)
    return folder


def rows_of(run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of every row, in the order of the steps."""
    settings = run.train
    batches = Batches(
        Stream([Shard(prefix) for prefix in run.shards], settings.length), run.data_fingerprint, settings.batch, settings.seed
    )
    found = [batches.rows(step, 0, settings.batch) for step in range(settings.steps)]
    return [pair for batch in found for pair in zip(batch.tokens, batch.targets, strict=True)]


def trainer(run: Run) -> dict[str, Any]:
    """transformers' model under its Trainer, with our optimizer and rates. Fields of a Timing."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from model import zero
    from model.peak import peak_flops

    settings, seconds = run.train, []
    device = torch.device(settings.device)
    peak = peak_flops(device, settings.precision)
    rows = [{"input_ids": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)} for tokens, targets in rows_of(run)]

    class Timed(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            seconds.append(time.perf_counter() - self.begun)

    class InOrder(Trainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), inputs["targets"].flatten(), ignore_index=NO_LOSS)
            losses.append(loss.item())
            return loss

    losses: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        model = AutoModelForCausalLM.from_pretrained(hugging_face(run, Path(name)), dtype=torch.float32)
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay}]
        groups.append({"params": vectors, "weight_decay": 0.0})
        made = torch.optim.AdamW(groups, lr=1.0, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
        rates = torch.optim.lr_scheduler.LambdaLR(made, lambda step: zero.learning_rate(settings, min(step, settings.steps - 1)))
        arguments = TrainingArguments(
            name, max_steps=settings.steps, per_device_train_batch_size=settings.batch, max_grad_norm=settings.clip, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, bf16=settings.precision == "bf16", use_cpu=device.type == "cpu",
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        InOrder(model, arguments, train_dataset=rows, optimizers=(made, rates), callbacks=[Timed()]).train()
    return {"step": middle(seconds), "losses": losses, "peak": peak}


def litgpt(run: Run) -> dict[str, Any]:
    """litgpt's model of the same weights in the loop of its `litgpt pretrain`, with our optimizer and rates. Fields of a Timing."""
    import lightning
    import torch
    from litgpt.model import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    from model import zero
    from model.peak import peak_flops

    settings, shape, seconds, losses = run.train, run.model, [], []
    peak = peak_flops(torch.device(settings.device), settings.precision)
    rows = rows_of(run)
    config = Config.from_name(
        "Qwen3-0.6B", block_size=shape.context, n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads, n_query_groups=shape.kv_heads,
        head_size=shape.head_dim, intermediate_size=shape.ffn_width, rope_base=int(shape.rope_theta), vocab_size=run.vocab, padded_vocab_size=run.vocab,
    )  # fmt: skip
    fabric = lightning.Fabric(accelerator=settings.device, devices=1, precision="bf16-mixed" if settings.precision == "bf16" else "32-true")
    model = GPT(config)
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {}
        copy_weights_qwen_3(config, {}, found, load_file(hugging_face(run, Path(name)) / "model.safetensors"))
    model.load_state_dict(found)
    model = fabric.setup(model)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay}]
    groups.append({"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0})
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True))
    for step in range(settings.steps):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = zero.learning_rate(settings, step)
        here = rows[step * settings.batch : (step + 1) * settings.batch]
        tokens, targets = (torch.from_numpy(np.stack(arrays)).to(fabric.device) for arrays in zip(*here, strict=True))
        loss = chunked_cross_entropy(model(tokens), targets, chunk_size=0, ignore_index=NO_LOSS)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
    return {"step": middle(seconds), "losses": losses, "peak": peak}


if __name__ == "__main__":
    main()
