"""How long a checkpoint holds up training: written at once, and written while training goes on (`overlap_saving`).

    python tests/benchmarks/save_stall.py [--rounds 3] [--steps 12] [--cores 2] [--quick] [--record]

The same run in turns, both ways, a checkpoint every third step, on the device that is there. Of each checkpoint what metrics.jsonl says the
training thread stood still, the last one apart, since the run's end waits for it; figures are medians over all checkpoints of all rounds.
Also the time from the first step to the last checkpoint: what is written meanwhile takes a processor from training on a CPU.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from figures import Figure, arguments, conclude, table
from train_speed import prepare

from model.config import Run, qwen3, to_dict
from model.train import Row, launch


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()

    import torch

    from model.transformer import parameter_counts

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])
    cuda = torch.cuda.is_available()
    rounds, steps = (1, 6) if given.quick else (given.rounds, given.steps)
    shape = qwen3(64, 2, 2, 1, 128, 64) if given.quick else qwen3(768, 12, 12, 6, 3072, 1024) if cuda else qwen3(512, 6, 8, 4, 1536, 256)
    length, batch = (64, 4) if given.quick else (1024, 16) if cuda else (256, 4)
    stalls: dict[bool, list[float]] = {False: [], True: []}
    walls: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="ingot-save-") as name:
        base = prepare(Path(name), shape, steps, length, batch, "cuda" if cuda else "cpu")
        for number in range(rounds):
            for overlap in (False, True):
                train = replace(base.train, overlap_saving=overlap, save_every=3)
                stalled, wall, size = one(replace(base, train=train, out=str(Path(name) / f"{number}-{overlap}")))
                stalls[overlap] += stalled
                walls[overlap].append(wall)
    print(
        f"{parameter_counts(shape, base.vocab)[0] / 1e6:.1f}M parameters, checkpoints of {size / 1e6:,.0f} MB, {rounds} rounds of {steps} steps"
    )
    rows = [
        (how, f"{statistics.median(stalls[o]):.3f}", f"{max(stalls[o]):.3f}", f"{statistics.median(walls[o]):.1f}")
        for how, o in (("at once", False), ("overlapped", True))
    ]
    table(("written", "stall s, median", "greatest", "run s"), rows)
    before, after = (statistics.median(stalls[overlap]) for overlap in (False, True))
    wall = statistics.median(b / a for b, a in zip(walls[False], walls[True], strict=True))
    what = f"{size / 1e6:,.0f} MB checkpoint"
    conclude(
        given,
        [
            Figure(f"training held up by a {what}, written at once", f"{before:.3f} s"),
            Figure(f"training held up by a {what}, overlapped", f"{after:.3f} s"),
            Figure("held up, at once : overlapped", f"{before / after:.1f}"),
            Figure("time of the whole run, at once : overlapped", f"{wall:.2f}"),
        ],
    )


def one(run: Run) -> tuple[list[float], float, int]:
    """Stalls of a run's checkpoints but the last, seconds from its first row to its end, bytes of a checkpoint."""
    out = Path(run.out)
    out.mkdir()
    (out / "run.json").write_text(json.dumps(to_dict(run)))
    rows: list[Row] = []
    first: list[float] = []

    def heard(row: Row) -> None:
        rows.append(row)
        first.append(time.perf_counter())

    launch(out / "run.json", 1, out / "log", 600, heard, out.parent / "cache")
    size = sum(file.stat().st_size for file in (out / "checkpoints").rglob("*.pt")) // run.train.keep
    return [row["stalled"] for row in rows if row.get("event") == "saved"][:-1], time.perf_counter() - first[0], size


if __name__ == "__main__":
    main()
