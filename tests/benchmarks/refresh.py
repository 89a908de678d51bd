"""A refresh over what is published: what it finds again, what it costs beside the new files alone, and whether steps give what one build gives.

    python tests/benchmarks/refresh.py MIRROR [--rounds 3] [--record]

MIRROR: a folder with commoncrawl/ (two snapshots, of which the second holds pages of the first again, some of them edited) and planted.json, which
names them (identical, edited, new). Recipe small's stages from ingest to index, downloads from the folder. A planted page counts where both its
copies come through the filter, since nobody else decides about the others: recall is the share of these that are removed for a published page,
precision the share of removed pages whose address is planted as identical or edited. Each page's similarity is verified by the stage itself; an
edited page below the threshold is counted as lost, and named apart. Costs are wall seconds inside stages, the least of the rounds.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from figures import Figure, arguments, conclude, table

from flows import recipes
from tasks.corpus import commoncrawl, contamination, dedup, extract, files, index, minhash, quality
from tasks.corpus.document import read_rows
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage

OLD, NEW = "CC-MAIN-2026-40", "CC-MAIN-2026-44"
GOAL = 1.1


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    planted = json.loads((given.mirror / "planted.json").read_text())
    with tempfile.TemporaryDirectory(prefix="ingot-refresh-") as name:
        store = Store(Path(name) / "store")
        old = corpus(store, given.mirror, OLD)
        alone, over = [], []
        for _ in range(1 if given.quick else given.rounds):
            for times, before in ((alone, None), (over, old)):
                new = corpus(store, given.mirror, NEW, before)
                times.append({stage: made.about["seconds"] for stage, made in new.items()})
                for made in new.values():
                    store.remove(made.address)
        new = corpus(store, given.mirror, NEW, old)
        found = [*again(store, old, new, planted), *cost(alone, over), *steps(store, old, new)]
    return found


def corpus(store: Store, mirror: Path, snapshot: str, before: Mapping[str, Manifest] | None = None) -> dict[str, Manifest]:
    """Manifests by stage of one snapshot, deduplicated over an earlier one."""
    r, base = recipes.small(), str(mirror / "commoncrawl")
    assert r.common_crawl
    config = dataclasses.replace(r.common_crawl, snapshot=snapshot, files=100, base_url=base, index_url=base)
    made = {"ingest": commoncrawl.run(store, "refresh", config, r.download)}
    made["extract"] = extract.run(store, "refresh", r.extract, {"commoncrawl": made["ingest"]}, r.engine)
    made["filter"] = quality.run(store, "refresh", r.filter, {"extract": made["extract"]}, r.engine)
    inputs = {"filter": made["filter"]}
    inputs |= {"previous-000": before["decontaminate"], "index-000": before["index"]} if before else {}
    made["dedup"] = dedup.run(store, "refresh", r.dedup, inputs, r.engine)
    evaluation = files.run(store, "refresh", r.evaluation, r.download)
    made["decontaminate"] = contamination.run(
        store, "refresh", r.decontaminate, {"dedup": made["dedup"], "evaluation": evaluation}, r.engine
    )
    made["index"] = index.run(store, "refresh", r.dedup.signatures, {"documents": made["decontaminate"]}, r.engine)
    return made


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
    """Seconds of the refresh beside those of its files alone."""
    least = [{stage: min(times[stage] for times in some) for stage in some[0]} for some in (alone, over)]
    lines = [(stage, f"{least[0][stage]:.2f}", f"{least[1][stage]:.2f}") for stage in least[0]]
    table(("stage", "the new files alone, s", "as a refresh, s"), lines)
    ratio = sum(least[1].values()) / sum(least[0].values())
    return [Figure("refresh: cost, of that of the new files alone", f"{ratio:.3f}", f"≤ {GOAL}", ratio <= GOAL)]


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
