"""Two worker processes beside one: wall seconds of the data-parallel stages that take most of the processor, and what a stage pays for its processes.

    python tests/benchmarks/engine_scaling.py [--rounds 3] [--copies 16] [--quick] [--record]

The pages of the embedded crawl, --copies times in each of eight WARC files, go through extract and filter with one worker and with two, one after the
other in every round; each worker is one process on one processor, so the limit is 2. The launcher is ended before each run, so its start counts. The
same stages over a single small file, with the launcher there, show what a stage costs before its first page. Needs two processors that are idle.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from figures import REPO, Figure, arguments, conclude, table

if TYPE_CHECKING:
    from tasks.corpus.manifest import Manifest, Store

sys.path[:0] = [str(REPO), str(REPO / "tests")]
FILES = 8
GOAL = 1.8


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=64)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    given.rounds, given.copies = (1, 1) if given.quick else (given.rounds, given.copies)
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    from flows import recipes
    from tasks.corpus import engine, extract, quality
    from tasks.corpus.manifest import Manifest, Store

    r = recipes.demo()
    other = replace(r.extract, min_chars=r.extract.min_chars + 1)  # another output than filter's input, which must stay
    with tempfile.TemporaryDirectory(prefix="ingot-scaling-") as folder:
        store = Store(Path(folder) / "store")
        big, small = crawl(store, FILES, given.copies), crawl(store, 1, 1)
        made = {"extract": big, "filter": extract.run(store, r.name, r.extract, {"commoncrawl": big}, engine.local(2, 600.0))}
        little = {"extract": small, "filter": extract.run(store, r.name, r.extract, {"commoncrawl": small}, engine.local(2, 600.0))}

        def run(stage: str, source: Manifest, workers: int) -> float:
            """Wall seconds of a stage made anew."""
            how: dict[str, Callable[[Mapping[str, Manifest]], Manifest]] = {
                "extract": lambda inputs: extract.run(store, "speed", other, inputs, engine.local(workers, 600.0), rebuild=True),
                "filter": lambda inputs: quality.run(store, "speed", r.filter, inputs, engine.local(workers, 600.0), rebuild=True),
            }
            begun = time.perf_counter()
            how[stage]({"commoncrawl" if stage == "extract" else "extract": source})
            return time.perf_counter() - begun

        seconds: dict[tuple[str, int], list[float]] = {(stage, workers): [] for stage in made for workers in (1, 2)}
        start: dict[str, list[float]] = {stage: [] for stage in made}
        for _ in range(given.rounds):
            for stage, source in made.items():
                for workers in (1, 2):
                    engine.stop()
                    seconds[stage, workers].append(run(stage, source, workers))
                start[stage].append(run(stage, little[stage], 1))
        engine.stop()
        counts = {"extract": made["filter"].seen, "filter": made["filter"].kept}
    ratios = {stage: [one / two for one, two in zip(seconds[stage, 1], seconds[stage, 2], strict=True)] for stage in made}
    table(
        ("stage", "records in", "s, 1 process", "s, 2 processes", "ratio", "of the limit", "s, one small file"),
        [
            (stage, f"{counts[stage]:,}", *(f"{statistics.median(seconds[stage, w]):.2f}" for w in (1, 2)), f"{statistics.median(ratios[stage]):.2f}",
             f"{statistics.median(ratios[stage]) / 2:.0%}", f"{statistics.median(start[stage]):.2f}")
            for stage in made
        ],
    )  # fmt: skip
    found = []
    for stage, each in ratios.items():
        ratio = statistics.median(each)
        found.append(
            Figure(
                f"{stage} at 2 processes : at 1", f"{ratio:.2f} ({min(each):.2f} to {max(each):.2f}; limit 2)", f"≥ {GOAL}", ratio >= GOAL
            )
        )
        found.append(Figure(f"{stage} of one small file, launcher there", f"{statistics.median(start[stage]):.2f} s"))
    return found


def crawl(store: "Store", files: int, copies: int) -> "Manifest":
    """The sample's WARC files as `files` of about the same size, each with all pages `copies` times."""
    from tasks.corpus.manifest import Result, Stage, Work, run_stage

    samples = sorted((REPO / "tests" / "samples" / "commoncrawl").rglob("*.warc.gz"))

    def body(work: Work) -> Result:
        names = [f"crawl-{number}.warc.gz" for number in range(files)]
        for name in names:
            (work.dir / name).write_bytes(b"".join(path.read_bytes() for path in samples) * copies)
        return Result(
            [(name, None) for name in names], files, files, {}, {"source": "commoncrawl", "snapshot": "CC-MAIN-1970-01", "license": ""}
        )

    return run_stage(store, Stage("ingest", 1), "speed", {"files": files, "copies": copies}, {}, body)


if __name__ == "__main__":
    main()
