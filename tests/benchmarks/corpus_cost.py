"""CPU-hours a terabyte of raw HTML costs from WARC to shards, and which stage spends them.

    python tests/benchmarks/corpus_cost.py [--copies 2 8] [--rounds 3] [--quick] [--record]

Pages: ../shared/data/html (WCXB's and daniel's), each --copies times, with the words between its tags (of Chinese, the characters) in another order,
so that dedup keeps the copies; without it, the sample's pages. They stand in one WARC file, a gzip member a record. Raw HTML is the pages' bytes as
they were fetched, decompressed. Recipe small's settings, one worker: CPU seconds of this process and all its children, by stage. What a terabyte
costs is the difference between the larger and the smaller corpus: what each stage pays once (starting a process, importing, loading compiled code)
is told apart. Training the tokenizer is bounded by its sample and told apart too. Medians over rounds, larger and smaller in turn after a warm-up.
"""

import argparse
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import REPO, Figure, arguments, conclude, table

sys.path.insert(0, str(REPO / "tests"))
GOAL = 30.0
STAGES = ("ingest", "extract", "filter", "dedup", "decontaminate", "tokenizer", "encode")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--copies", type=int, nargs=2, default=(2, 8), metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.quick:
        given.copies, given.rounds = (1, 2), 1
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    pages = bodies(given.quick)
    with tempfile.TemporaryDirectory(prefix="ingot-cost-") as name:
        sizes = [host(Path(name) / f"{copies}x", pages, copies) for copies in given.copies]
        chain(Path(name) / "1", Path(name) / f"{given.copies[0]}x")  # imports, compiled code
        found: list[list[dict[str, float]]] = [[], []]
        books: dict[str, str] = {}
        for number in range(given.rounds):
            for place, copies in enumerate(given.copies):
                seconds, books = chain(Path(name) / f"store-{number}-{copies}", Path(name) / f"{copies}x")
                found[place].append(seconds)
    few, many = ({stage: statistics.median(one[stage] for one in some) for stage in STAGES} for some in found)
    more = (sizes[1] - sizes[0]) / 1e12
    hours = {stage: (many[stage] - few[stage]) / 3600 / more for stage in STAGES}
    whole = sum(hours[stage] for stage in STAGES if stage != "tokenizer")
    rows = []
    for stage in STAGES:
        once = few[stage] - hours[stage] * 3600 * sizes[0] / 1e12
        share = "apart" if stage == "tokenizer" else f"{hours[stage] / whole:.0%}"
        rows.append((stage, books[stage], f"{few[stage]:.2f}", f"{many[stage]:.2f}", f"{once:.2f}", f"{hours[stage]:.2f}", share))
    print(f"\n{sizes[0] / 1e6:,.0f} and {sizes[1] / 1e6:,.0f} MB of raw HTML")
    table(("stage", "in → out", "CPU s, few", "CPU s, many", "s once", "CPU-hours/TB", "share"), rows)
    spent = ", ".join(f"{row[0]} {row[6]}" for row in rows if row[0] != "tokenizer")
    return [
        Figure("whole chain: CPU-hours a TB of raw HTML", f"{whole:.1f} ({spent})", f"≤ {GOAL:.0f}", whole <= GOAL),
        Figure("whole chain: raw HTML a core", f"{1e6 / 3600 / whole:.2f} MB/s", f"≥ {1e6 / 3600 / GOAL:.2f} MB/s", whole <= GOAL),
        Figure("whole chain: CPU seconds paid once", f"{sum(few.values()) - sum(hours.values()) * 3600 * sizes[0] / 1e12:.1f}"),
    ]


def bodies(quick: bool) -> list[str]:
    """Pages, decoded."""
    from train_main_text import HTML, examples

    from tasks.corpus.page import decode

    if not HTML.is_dir():
        print("without ../shared/data: the sample's pages")
        return [path.read_text("utf-8") for path in sorted((REPO / "tests" / "samples" / "source" / "web").glob("*.html"))]
    found = [decode(example.body, "")[0] for example in examples()]
    return found[::60] if quick else found


def host(folder: Path, pages: list[str], copies: int) -> int:
    """A Common Crawl host of one WARC file; the bytes of its pages."""
    from crawl_host import NEW, add_snapshot
    from memory import html
    from warcs import http, member

    chance, size = random.Random(1), 0
    folder.mkdir()
    with open(folder / "pages.warc.gz", "wb") as out:
        for copy in range(copies):
            for number, text in enumerate(pages):
                body = html(text, chance).encode("utf-8", "replace")
                size += len(body)
                out.write(member(f"http://{number}.example/{copy}", http(body, "Content-Type: text/html; charset=utf-8")))
    add_snapshot(folder, NEW, [folder / "pages.warc.gz"])
    return size


def chain(place: Path, source: Path) -> tuple[dict[str, float], dict[str, str]]:
    """CPU seconds by stage of a build in a new store, and what went in and came out."""
    from crawl_host import NEW

    from flows import recipes
    from tasks.corpus import commoncrawl, contamination, dedup, encode, extract, files, quality
    from tasks.corpus.manifest import Manifest, Store

    r, store, found = recipes.small(), Store(place), dict[str, Manifest]()
    assert r.common_crawl
    crawl = replace(r.common_crawl, snapshot=NEW, base_url=str(source), index_url=str(source))
    engine, name = replace(r.engine, workers=1), r.name
    evaluation = files.run(store, name, r.evaluation, r.download)
    steps: dict[str, Callable[[], Any]] = {
        "ingest": lambda: commoncrawl.run(store, name, crawl, r.download),
        "extract": lambda: extract.run(store, name, r.extract, {"commoncrawl": found["ingest"]}, engine),
        "filter": lambda: quality.run(store, name, r.filter, {"extract": found["extract"]}, engine),
        "dedup": lambda: dedup.run(store, name, r.dedup, {"filter": found["filter"]}, engine),
        "decontaminate": lambda: contamination.run(
            store, name, r.decontaminate, {"dedup": found["dedup"], "evaluation": evaluation}, engine
        ),
        "tokenizer": lambda: encode.train_tokenizer(
            store, name, replace(r.tokenizer, sample_bytes=4 << 20), {"corpus-000": found["decontaminate"]}
        ),
        "encode": lambda: encode.run(
            store, name, r.encode, {"corpus-000": found["decontaminate"], "tokenizer": found["tokenizer"]}
        ),
    }  # fmt: skip
    seconds = {}
    for stage, make in steps.items():
        before = spent()
        found[stage] = make()
        seconds[stage] = spent() - before
    return seconds, {stage: f"{made.seen:,} → {made.kept:,}" for stage, made in found.items()}


def spent() -> float:
    """CPU seconds of this process and of the children that ended: those that wait for the next stage are ended first."""
    from tasks.corpus.engine import stop

    stop()
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == "__main__":
    main()
