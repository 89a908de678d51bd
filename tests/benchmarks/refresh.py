"""A refresh over what is published: what it finds again, what it costs beside the new files alone, and whether steps give what one build gives.

    python tests/benchmarks/refresh.py MIRROR [--rounds 3] [--record]

MIRROR: a folder with commoncrawl/ (two snapshots, of which the second holds pages of the first again, some of them edited) and planted.json, which
names them (identical, edited, new). Recipe small's stages from ingest to index, downloads from the folder. A planted page counts where both its
copies come through the filter, since nobody else decides about the others: recall is the share of these that are removed for a published page,
precision the share of removed pages whose address is planted as identical or edited. Each page's similarity is verified by the stage itself; an
edited page below the threshold is counted as lost, and named apart.

Costs are CPU seconds of each stage with all its processes, on one core, the refresh and the new files alone by turns; medians of the rounds. Look-ups: an
index of random keys, and one ten times as large, asked for the keys of a thousand new documents, of which each finds one old one.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from figures import Figure, arguments, conclude, table

from flows import recipes
from tasks.corpus import commoncrawl, contamination, dedup, extract, files, index, minhash, quality
from tasks.corpus.document import read_rows
from tasks.corpus.engine import stop
from tasks.corpus.keepers import key_column
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage

OLD, NEW = "CC-MAIN-2026-40", "CC-MAIN-2026-44"
GOAL = 1.1
LOOKUPS = 1_000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    planted = json.loads((given.mirror / "planted.json").read_text())
    with tempfile.TemporaryDirectory(prefix="ingot-refresh-") as name:
        store = Store(Path(name) / "store")
        old = corpus(store, given.mirror, OLD)[0]
        alone, over = [], []
        for number in range(1 if given.quick else given.rounds):
            for times, before in ((alone, None), (over, old))[:: 1 if number % 2 else -1]:
                new, seconds = corpus(store, given.mirror, NEW, before)
                times.append(seconds)
                for made in new.values():
                    store.remove(made.address)
        new = corpus(store, given.mirror, NEW, old)[0]
        found = [*again(store, old, new, planted), *cost(alone, over), *steps(store, old, new)]
        found.append(look_ups(store, *((10_000, 100_000) if given.quick else (200_000, 2_000_000))))
    return found


def corpus(
    store: Store, mirror: Path, snapshot: str, before: Mapping[str, Manifest] | None = None
) -> tuple[dict[str, Manifest], dict[str, float]]:
    """Manifests by stage of one snapshot, deduplicated over an earlier one; and the CPU seconds of each stage."""
    r, base = recipes.small(), str(mirror / "commoncrawl")
    assert r.common_crawl
    config = dataclasses.replace(r.common_crawl, snapshot=snapshot, files=100, base_url=base, index_url=base)
    engine = dataclasses.replace(r.engine, workers=1)
    made: dict[str, Manifest] = {}
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[..., Manifest], *args: Any) -> None:
        start = sum(os.times()[:4])  # of this process and of those that it has waited for
        made[name] = stage(store, "refresh", *args)
        stop()  # so that its processes are counted
        seconds[name] = sum(os.times()[:4]) - start

    timed("ingest", commoncrawl.run, config, r.download)
    timed("extract", extract.run, r.extract, {"commoncrawl": made["ingest"]}, engine)
    timed("filter", quality.run, r.filter, {"extract": made["extract"]}, engine)
    previous = {"previous-000": before["decontaminate"], "index-000": before["index"]} if before else {}
    timed("dedup", dedup.run, r.dedup, {"filter": made["filter"]} | previous, engine)
    evaluation = files.run(store, "refresh", r.evaluation, r.download)
    timed("decontaminate", contamination.run, r.decontaminate, {"dedup": made["dedup"], "evaluation": evaluation}, engine)
    timed("index", index.run, r.dedup.signatures, {"documents": made["decontaminate"]}, engine)
    return made, seconds


def rows(store: Store, manifest: Manifest, prefix: str = "documents-", columns: list[str] | None = None) -> list[dict[str, Any]]:
    return list(read_rows([store.path(manifest, file) for file in manifest.parts(prefix)], columns))


def again(store: Store, old: Mapping[str, Manifest], new: Mapping[str, Manifest], planted: Mapping[str, list[str]]) -> list[Figure]:
    """What the refresh found of the pages that it should find."""
    before = {row["url"]: row["text"] for row in rows(store, old["filter"])}
    after = {row["url"]: row["text"] for row in rows(store, new["filter"])}
    gone = {r["url"] for r in rows(store, new["dedup"], "rejects-") if r["reason"] == "duplicate_of_previous"}
    figures = []
    for kind in ("identical", "edited"):
        due = [url for url in planted[kind] if url in before and url in after]
        like = [url for url in due if similar(before[url], after[url]) >= recipes.small().dedup.threshold]
        lost = sorted(set(like) - gone)
        figures.append(
            Figure(
                f"refresh: {kind} pages found again, of those similar enough",
                share(len(like) - len(lost), len(like)),
                "≥ .99",
                len(like) - len(lost) >= 0.99 * len(like),
            )
        )
        figures.append(
            Figure(f"refresh: {kind} pages found again, of all that pass the filter twice", share(len(gone & set(due)), len(due)))
        )
        if lost:
            print(f"{kind}, similar and not removed: {', '.join(lost)}")
    named = set(planted["identical"]) | set(planted["edited"])
    figures.append(Figure("refresh: removed pages that were planted", share(len(gone & named), len(gone))))
    return figures


def similar(a: str, b: str) -> float:
    """Jaccard similarity of the shingles of two texts."""
    return minhash.jaccard(*minhash.hashes(pa.array([a, b])))


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.3f})" if whole else "")


def cost(alone: list[dict[str, float]], over: list[dict[str, float]]) -> list[Figure]:
    """CPU seconds of the refresh beside those of its files alone, stage by stage."""
    middle = [{stage: statistics.median(times[stage] for times in some) for stage in some[0]} for some in (alone, over)]
    lines = [(stage, f"{middle[0][stage]:.2f}", f"{middle[1][stage]:.2f}") for stage in middle[0]]
    table(("stage", "the new files alone, CPU s", "as a refresh, CPU s"), lines)
    ratios = sorted(sum(b.values()) / sum(a.values()) for a, b in zip(alone, over, strict=True))
    ratio = statistics.median(ratios)
    parts = ", ".join(f"{stage} {middle[1][stage]:.1f} : {middle[0][stage]:.1f}" for stage in middle[0])
    value = f"{ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}; {parts})"
    return [Figure("refresh: CPU seconds, of those of the new files alone", value, f"≤ {GOAL}", ratio <= GOAL)]


def look_ups(store: Store, *sizes: int) -> Figure:
    """What an index that is ten times as large costs a refresh."""
    spent, memory = [], []
    for size in sizes:
        chance = np.random.default_rng(size)

        def body(work: Work, size: int = size, chance: np.random.Generator = chance) -> Result:
            made = []
            for name in index.orders(recipes.small().dedup.signatures):
                keys = np.sort(chance.integers(0, 2**63, size, np.uint64))
                for kind, values in (("keys", keys), ("places", chance.permutation(size).astype(np.uint32))):
                    np.save(work.dir / f"{kind}-{name}.npy", values)
                    made.append((f"{kind}-{name}.npy", size))
            return Result(made, size, size, {})

        segment = run_stage(store, Stage("synthetic", 1), "refresh", {"size": size}, {}, body)
        places = np.linspace(0, size - 1, LOOKUPS).astype(int)
        columns: dict[str, Any] = {
            key_column(band): np.load(store.dir(segment.address) / f"keys-{band:03d}.npy", mmap_mode="r")[places]
            for band in range(recipes.small().dedup.bands)
        }
        fresh = store.dir(segment.address) / "fresh.parquet"
        pq.write_table(pa.table(columns | {"text_hash": [f"{n:032x}" for n in range(LOOKUPS)]}), fresh)
        rss, start = psutil.Process().memory_info().rss, sum(os.times()[:2])
        [found] = index.related(store, [segment], [fresh], recipes.small().dedup.signatures)
        spent.append(sum(os.times()[:2]) - start)
        memory.append(psutil.Process().memory_info().rss - rss)
        assert len(found) >= LOOKUPS
    return Figure(
        f"refresh: look-up of {LOOKUPS:,} documents in an index of {sizes[0]:,} → {sizes[1]:,}",
        f"{spent[0]:.2f} → {spent[1]:.2f} CPU s, {max(0, memory[0]) >> 20} → {max(0, memory[1]) >> 20} MiB more",
        "≤ 2× at ten times the size",
        spent[1] <= 2 * max(spent[0], 0.05),
    )


def steps(store: Store, old: Mapping[str, Manifest], new: Mapping[str, Manifest]) -> list[Figure]:
    """One dedup over both filters' documents beside the two steps: the same documents are kept?"""

    def body(work: Work) -> Result:
        made = []
        for role, manifest in work.inputs.items():
            for file in manifest.parts():
                shutil.copyfile(store.path(manifest, file), work.dir / f"documents-{role}-{file.path.removeprefix('documents-')}")
                made.append((f"documents-{role}-{file.path.removeprefix('documents-')}", file.rows))
        count = sum(rows or 0 for _, rows in made)
        return Result(made, count, count, {})

    r = recipes.small()
    both = run_stage(store, Stage("both", 1), "refresh", {}, {"0": old["filter"], "1": new["filter"]}, body)
    once = {row["id"] for row in rows(store, dedup.run(store, "refresh", r.dedup, {"filter": both}, r.engine), columns=["id"])}
    stepped = {row["id"] for made in (old, new) for row in rows(store, made["dedup"], columns=["id"])}
    return [
        Figure(
            "refresh: documents kept by one build of both, by steps, by only one of them",
            f"{len(once)}, {len(stepped)}, {len(once ^ stepped)}",
        )
    ]


if __name__ == "__main__":
    main()
