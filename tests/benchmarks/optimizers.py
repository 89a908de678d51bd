"""Muon beside AdamW on the same model, batches and steps: held-out loss over seeds, each at the best of a few learning rates.

    python tests/benchmarks/optimizers.py [--steps 400] [--seeds 3] [--quick] [--record]

tinyshakespeare in byte-pair tokens, a decoder of 4 layers. Rates are chosen by the held-out loss of the first seed; AdamW's rate of
embeddings and norms is the same under both. Losses are exact on any machine; a difference below twice the seeds' deviation says nothing.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from figures import REPO, Figure, arguments, conclude, table
from train_speed import run_over

from model import tokenizer
from model.config import Run, qwen3, to_dict
from model.shards import ShardWriter
from model.train import Row, launch

TEXT = REPO.parent / "shared/data/text/tinyshakespeare/input.txt"
RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "muon": (0.005, 0.01, 0.02, 0.04)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingot-optimizers-") as name:
        conclude(given, measure(Path(name), given))


def measure(folder: Path, given: argparse.Namespace) -> list[Figure]:
    """Runs of both optimizers; prints a table of rates."""
    steps, seeds, rates = given.steps, given.seeds, RATES
    if given.quick:
        steps, seeds, rates = 4, 2, {name: few[:1] for name, few in RATES.items()}
    base = prepare(folder, steps)
    found: dict[str, tuple[float, list[float]]] = {}
    for name, few in rates.items():
        first = {rate: loss(base, name, rate, 1) for rate in few}
        table(("optimizer", "rate", "held-out loss, seed 1"), [(name, f"{rate:g}", f"{first[rate]:.4f}") for rate in few])
        best = min(first, key=lambda rate: first[rate])
        found[name] = best, [first[best], *(loss(base, name, best, seed) for seed in range(2, seeds + 1))]
    band = 2 * max(statistics.stdev(losses) for _, losses in found.values())
    means = {name: statistics.fmean(losses) for name, (_, losses) in found.items()}
    gain = means["adamw"] - means["muon"]
    told = "more than the seeds'" if abs(gain) > band else "within the seeds'"
    return [
        *(
            Figure(
                f"{name}, best rate {best:g}: held-out loss after {steps} steps, {seeds} seeds",
                f"{means[name]:.4f} ± {statistics.stdev(losses):.4f}",
            )
            for name, (best, losses) in found.items()
        ),
        Figure("held-out loss, AdamW less Muon", f"{gain:.4f}, {told} 2σ of {band:.4f}"),
    ]


def prepare(folder: Path, steps: int) -> Run:
    """Shards of the text, the last tenth held out, and the run over them."""
    text = TEXT.read_text()
    words, cut = tokenizer.train([text], 1024), int(0.9 * len(text))
    for name, part in (("train", text[:cut]), ("valid", text[cut:])):
        with ShardWriter(folder / name, np.uint16) as writer:
            for piece in part.split("\n\n"):
                writer.add(np.append(words.encode(piece + "\n\n").ids, 0))
    run = run_over((folder / "train",), folder, qwen3(128, 4, 4, 4, 352, 128), tokenizer.vocab_size(words), steps, 128, 16, "cpu")
    tokenizer.save(words, folder / "tokenizer")
    return replace(run, valid=(str(folder / "valid"),), train=replace(run.train, warmup=steps // 10, valid_batches=1000))


def loss(base: Run, optimizer: str, rate: float, seed: int) -> float:
    """Held-out loss at a run's end."""
    rates = {"lr": rate} if optimizer == "adamw" else {"lr": 2e-3, "matrix_lr": rate}
    out = Path(base.out) / f"{optimizer}-{rate:g}-{seed}"
    out.mkdir()
    train = replace(base.train, optimizer=optimizer, seed=seed, **rates)
    (out / "run.json").write_text(json.dumps(to_dict(replace(base, train=train, out=str(out)))))
    rows: list[Row] = []
    launch(out / "run.json", 1, out / "log", 600, rows.append, Path(base.out) / "cache")
    return next(row["valid_loss"] for row in reversed(rows) if "valid_loss" in row)


if __name__ == "__main__":
    main()
