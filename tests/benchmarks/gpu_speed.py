"""Our loop on one GPU: MFU at 124M and 1B parameters, what each option costs, a plain PyTorch loop, memory by ZeRO stage, bf16 beside fp32.

    python tests/benchmarks/gpu_speed.py [--only CASE …] [--json FILE] [--record]
    python tests/benchmarks/gpu_speed.py --record-from FILE …       # what --json left on a machine without a repository
    python tests/benchmarks/gpu_speed.py --quick                    # tiny, on a CPU too: does it run

Each case is the loop as the pretrain stage launches it, in fresh processes, ended after its steps (none is saved), or the plain loop of
train_speed.py on the same run. Seconds are the median step after a third for warm-up and compilation; a step is all between two updates. MFU
counts the model's FLOP by PaLM's formula (transformer.flops_per_token: no recomputation, all of attention) against the data sheet's dense
bf16 peak (peak.py). Documents are longer than a row (`long`, about what a loop without document masks computes) or 50 to 1,500 tokens (`web`).
Memory is the most that tensors took. Where there is no GPU the script says so and does nothing.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import REPO, RESULTS, Figure, arguments, commit, machine, now, record, table
from train_speed import GOAL, Timing, middle, run_over, theirs

from model.config import Run, qwen3, to_dict
from model.peak import peak_flops
from model.shards import ShardWriter
from model.train import launch

IDS = 30_000
SHAPES = {
    "124M": (qwen3(768, 12, 12, 12, 2048, 1024), 50_304),
    "1B": (qwen3(2048, 20, 16, 8, 5632, 2048), 32_768),
    "34M": (qwen3(512, 8, 8, 4, 1408, 1024), 32_768),
}
"""Model and vocabulary: GPT-2's small width and depth, TinyLlama's width, a small one for curves."""
TINY = (qwen3(64, 2, 4, 2, 128, 64), 32_768)
MFU_GOAL = 0.50
CURVE_GOAL = 0.01


@dataclass(frozen=True)
class Case:
    """One loop: the shape of its model, rows of a batch, tokens of a row, steps, and what differs in its settings. Of one that is not timed
    only memory or losses are looked at: others may run beside it.
    """

    size: str
    rows: int
    length: int
    steps: int = 18
    documents: str = "long"
    peer: str = ""
    timed: bool = True
    more: dict[str, Any] = field(default_factory=dict)


FAST = {"precision": "bf16", "compile": True}
CASES = {
    "1B": Case("1B", 16, 2048, more=FAST),
    "1B plain loop": Case("1B", 16, 2048, peer="master", more=FAST),
    "124M": Case("124M", 64, 1024, more=FAST),
    "124M plain loop": Case("124M", 64, 1024, peer="master", more=FAST),
    "1B, 4 micro-batches": Case("1B", 64, 2048, 7, more=FAST | {"micro_batch": 16}),
    "1B, web documents": Case("1B", 16, 2048, documents="web", more=FAST),
    "1B, checkpointing": Case("1B", 16, 2048, 12, more=FAST | {"checkpointing": True}),
    "1B, not compiled": Case("1B", 8, 2048, 9, more={"precision": "bf16"}),
    "124M, not compiled": Case("124M", 64, 1024, 12, more={"precision": "bf16"}),
    "124M, checkpointing": Case("124M", 64, 1024, 12, more=FAST | {"checkpointing": True}),
    "124M, ZeRO 1": Case("124M", 64, 1024, 4, timed=False, more=FAST),
    "124M, ZeRO 2": Case("124M", 64, 1024, 4, timed=False, more=FAST | {"zero": 2}),
    "124M, ZeRO 3": Case("124M", 64, 1024, 4, timed=False, more=FAST | {"zero": 3}),
    "124M, ZeRO 0 in fp32": Case("124M", 16, 1024, 4, timed=False, more={"zero": 0}),
    "124M, ZeRO 1 in fp32": Case("124M", 16, 1024, 4, timed=False, more={"zero": 1}),
    "curve bf16": Case("34M", 16, 512, 250, "web", timed=False, more=FAST),
    "curve fp32": Case("34M", 16, 512, 250, "web", timed=False),
}


class EnoughError(Exception):
    """The steps of a case are done: the loop is ended instead of saving 14 bytes a parameter."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seconds", type=float, default=1e9, help="no case is begun after so many")
    parser.add_argument("--commit", help="what is measured, where no git can say")
    parser.add_argument("--record-from", type=Path, nargs="+", metavar="FILE", help="measure nothing; record the figures of these --json")
    given = parser.parse_args()
    if given.record_from:
        for path in given.record_from:
            left = json.loads(path.read_text())
            record(RESULTS, [Figure(**figure) for figure in left["figures"]], left["command"], tuple(left["facts"]))
        return
    import torch

    if not torch.cuda.is_available() and not given.quick:
        print("no CUDA device here: nothing measured")
        return
    gpu, peak = "no GPU", None
    if torch.cuda.is_available():
        gpu, peak = torch.cuda.get_device_name(), peak_flops(torch.device("cuda"), "bf16")
    facts = (now(), given.commit or commit(), f"{gpu}; {machine()}; torch {torch.__version__}")
    command = shlex.join(["python", os.path.relpath(sys.argv[0], REPO), *(["--only", *given.only] if given.only else [])])
    found: dict[str, Timing] = {}
    failed: dict[str, str] = {}
    for name, timing in measured(given, failed):
        found[name] = timing
        if given.json:
            left: dict[str, Any] = {
                "facts": facts,
                "command": command,
                "failed": failed,
                "timings": {n: asdict(t) for n, t in found.items()},
            }
            given.json.write_text(json.dumps(left | {"figures": [asdict(figure) for figure in figures(found, peak)]}))
    print(f"\n{facts[2]}")
    shown = figures(found, peak)
    table(("figure", "value", "goal"), [figure.cells for figure in shown])
    if given.record and not given.quick:
        record(RESULTS, shown, command, facts)
    if failed:
        sys.exit("failed: " + "; ".join(f"{name}: {why[-1500:]}" for name, why in failed.items()))


def measured(given: argparse.Namespace, failed: dict[str, str]) -> Iterator[tuple[str, Timing]]:
    """Each case that is asked for, one after another."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ingot-gpu-") as folder:
        for kind in ("long", "web"):
            write_shard(Path(folder) / kind, kind, 200_000 if given.quick else 6_000_000)
        for name in given.only or CASES:
            if time.monotonic() - begun > given.seconds:
                failed[name] = "no time was left"
                continue
            run = a_run(CASES[name], Path(folder), given.quick)
            started = time.monotonic()
            try:
                timing = theirs(run, CASES[name].peer) if CASES[name].peer else ours(run)
            except (Exception, SystemExit) as error:  # one case that fails must not cost the others
                failed[name] = str(error)
                print(f"{name}: FAILED {str(error)[-1500:]}", flush=True)
                continue
            print(
                f"{name}: {timing.step * 1e3:.1f} ms a step, {timing.gpu_bytes / 2**30:.1f} GiB, loss {timing.losses[-1]:.4f}, "
                f"{time.monotonic() - started:.0f} s in all",
                flush=True,
            )
            yield name, timing


def write_shard(prefix: Path, kind: str, tokens: int) -> None:
    """Documents with something to learn: each token is followed by one of eight, which ones depends on it alone, or once in ten by any."""
    rng = np.random.default_rng(0)
    low, high = (15_000, 20_000) if kind == "long" else (50, 1500)
    sizes = rng.integers(low, high, 2 * tokens // (low + high))
    followers = rng.integers(4, IDS, (IDS, 8))
    ids = rng.integers(4, IDS, (high, len(sizes)))
    for place in range(1, high):
        known = followers[ids[place - 1], rng.integers(0, 8, len(sizes))]
        ids[place] = np.where(rng.random(len(sizes)) < 0.9, known, ids[place])
    with ShardWriter(prefix, np.uint16) as writer:
        for number, size in enumerate(sizes):
            writer.add(np.append(ids[: size - 1, number], 0))


def a_run(case: Case, folder: Path, quick: bool) -> Run:
    """A case's run, and its run.json, in a folder made anew."""
    (model, vocab), rows, length = (TINY, 4, 64) if quick else (SHAPES[case.size], case.rows, case.length)
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    base = run_over((folder / case.documents,), out, model, vocab, case.steps, length, rows, "cpu" if quick else "cuda")
    more = {"warmup": min(20, case.steps // 2), "timeout": 240.0} | case.more | ({"compile": False} if quick else {})
    run = replace(base, train=replace(base.train, **more))
    (out / "run.json").write_text(json.dumps(to_dict(run)))
    return run


def ours(run: Run) -> Timing:
    """The house's loop, ended when it has reported all its steps."""
    rows: list[dict[str, Any]] = []

    def on_row(row: dict[str, Any]) -> None:
        rows.append(row)
        if row["step"] == run.train.steps:
            raise EnoughError

    out = Path(run.out)
    try:
        launch(out / "run.json", 1, out / "log", run.train.timeout, on_row, out.parent / "cache")
    except EnoughError:
        pass
    taken = max(row.get("gpu_bytes", 0) for row in rows)
    return Timing(middle([row["seconds"] for row in rows]), [row["loss"] for row in rows], gpu_bytes=taken)


def figures(found: dict[str, Timing], peak: float | None) -> list[Figure]:
    """What the cases measured so far say."""
    from model.transformer import flops_per_token

    made = []
    for name, timing in found.items():
        case = CASES[name]
        if not case.timed:
            made += [Figure(f"{name}: memory", f"{timing.gpu_bytes / 2**30:.1f} GiB")] if not name.startswith("curve") else []
            continue
        model, vocab = SHAPES[case.size]
        speed = case.rows * case.length / timing.step
        value = f"{speed:,.0f} tokens/s"
        mfu = speed * flops_per_token(model, vocab, case.length) / peak if peak else 0.0
        if peak and case.more.get("precision") == "bf16":
            value += f", MFU {mfu:.1%}"
        value += f", {timing.gpu_bytes / 2**30:.1f} GiB"
        goal = (f"MFU ≥ {MFU_GOAL:.0%}", mfu >= MFU_GOAL) if name == "1B" else ("", None)
        made.append(Figure(f"{name}: {case.rows} × {case.length} tokens a step", value, *goal))
    for size in ("1B", "124M"):
        if {size, f"{size} plain loop"} <= found.keys():
            ratio = found[f"{size} plain loop"].step / found[size].step
            made.append(Figure(f"{size}: tokens/s, ours : plain PyTorch, bf16, both compiled", f"{ratio:.3f}", f"≥ {GOAL}", ratio >= GOAL))
    if {"curve bf16", "curve fp32"} <= found.keys():
        bf16, fp32 = (np.array(found[f"curve {precision}"].losses) for precision in ("bf16", "fp32"))
        apart = np.abs(bf16 - fp32).max()
        value = (
            f"{apart:.4f} nats at most over {len(fp32)} steps ({fp32[0]:.3f} to {fp32[-20:].mean():.4f}; bf16 to {bf16[-20:].mean():.4f})"
        )
        made.append(Figure("loss curve, bf16 compiled against fp32", value, f"≤ {CURVE_GOAL}", bool(apart <= CURVE_GOAL)))
    return made


if __name__ == "__main__":
    main()
