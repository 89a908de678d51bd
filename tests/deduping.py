"""The dedup stage on rows, for the tests of dedup, of addresses and of repeated text."""

import pytest
from corpora import ENGINE, output_of, rows_of, run_inline

from tasks.corpus import dedup, index
from tasks.corpus.dedup import DedupConfig

CONFIG = DedupConfig(
    threshold=0.8,
    permutations=128,
    seed=1,
    bands=25,
    rows=5,
    source_order=("wikipedia", "files", "commoncrawl"),
    bucket_limit=100,
    urls="off",
    max_removed=0.9,
    repeated="off",
    repeated_characters=20,
    repeated_documents=3,
    repeated_keep="first",
)


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(dedup, "run_ranks", run_inline)
    monkeypatch.setattr(index, "run_ranks", run_inline)


def in_order(rows):
    """The stated order, written anew: source, snapshot, file, place."""
    rank = {source: number for number, source in enumerate(CONFIG.source_order)}
    return sorted(rows, key=lambda r: (rank.get(r["source"], 9), r["source"], r["snapshot"], r["origin_file"], r["origin_offset"], r["id"]))


def run(store, rows, previous=(), parts=3, config=CONFIG, engine=ENGINE, recipe="test"):
    inputs = {"filter": output_of(store, "filter", [rows[at::parts] for at in range(parts)])}
    for at, docs in enumerate(previous):
        inputs[f"previous-{at:03d}"] = old = output_of(store, "decontaminate", [docs])
        inputs[f"index-{at:03d}"] = index.run(store, recipe, config.signatures, {"documents": old}, engine)
    return dedup.run(store, recipe, config, inputs, engine)


def evidence(store, manifest):
    return {row["id"]: (row["kept_id"], row["similarity"], row["rule"]) for row in rows_of(store, manifest, "duplicates-")}
