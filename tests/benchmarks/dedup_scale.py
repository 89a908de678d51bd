"""Buckets, clusters and decisions of dedup over millions of signatures: seconds, memory, disk, and the recall of planted clusters.

    python tests/benchmarks/dedup_scale.py [--sizes 1000000 2500000 5000000 10000000] [--plot FOLDER] [--scratch /tmp] [--quick] [--record]

Three of ten documents belong to a cluster (three in the mean, up to a dozen), spread over all parts: sets of 60 hashes of which each member has 0 to 8 of its own, so
that similarities lie on both sides of .8; their signatures are real MinHash. The others have signatures at random. Signature files are made first, by
processes of their own; what is timed is keepers.py in one process: reading them, sorting, the runs of 25 bands on disk and their merge, union-find,
and the walk with its verification. The sets that it verifies with are written in between and not timed. Recall and precision are those of a brute force
over whole clusters, of 20,000 of them. Needs some 800 bytes of disk a document under --scratch, removed afterwards.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import REPO, Figure, arguments, conclude, table

sys.path.insert(0, str(REPO))
PART, BANDS, ROWS, PERMUTATIONS, THRESHOLD, LIMIT = 20_000, 25, 5, 128, 0.8, 1_000
SET, OWN = 60, 9
"""Hashes of a document; of these, fewer than OWN are no other's."""
CHECKED = 20_000
"""Clusters of which the decisions are compared with brute force."""
MEMORY = 2.0
"""GiB."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 2_500_000, 5_000_000, 10_000_000], help="documents of each run")
    parser.add_argument("--plot", type=Path, help="folder for dedup_scale.png")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where signatures and runs lie meanwhile")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step, documents, folder = given.step
        print(json.dumps((make if step == "make" else measure)(int(documents), Path(folder))))
        return
    sizes = [20_000, 60_000] if given.quick else given.sizes
    found = []
    for documents in sizes:
        folder = Path(tempfile.mkdtemp(prefix="ingot-dedup-scale-", dir=given.scratch))
        try:
            child("make", documents, folder)
            found.append(child("measure", documents, folder))
        finally:
            shutil.rmtree(folder)
    rows = [
        (f"{f['documents']:,}", f"{f['seconds']:.1f}", f"{f['cpu']:.1f}", f"{1e6 * f['cpu'] / f['documents']:.1f}", f"{f['rss']:.2f}", f"{f['disk']:.1f}",
         f"{f['recall']:.4f}", f"{f['precision']:.4f}", " ".join(f"{name} {seconds:.1f}" for name, seconds in f["steps"].items()))
        for f in found
    ]  # fmt: skip
    table(("signatures", "seconds", "CPU", "µs each", "peak GiB", "disk GB", "recall", "precision", "CPU seconds of steps"), rows)
    if given.plot:
        plot(found, given.plot)
    last, growth = found[-1], (found[-1]["cpu"] / found[-1]["documents"]) / (found[0]["cpu"] / found[0]["documents"])
    name = f"dedup of {last['documents']:,} signatures"
    conclude(
        given,
        [
            Figure(f"{name}: CPU seconds (wall)", f"{last['cpu']:.0f} ({last['seconds']:.0f})"),
            Figure(f"{name}: peak resident memory", f"{last['rss']:.2f} GiB", f"< {MEMORY:g} GiB", last["rss"] < MEMORY),
            Figure(f"{name}: disk", f"{last['disk']:.1f} GB", "≤ 10 GB", last["disk"] <= 10),
            Figure(f"{name}: CPU a document against {found[0]['documents']:,}", f"{growth:.2f}×", "≤ 1.2×", growth <= 1.2),
            Figure(f"{name}: recall of planted clusters", f"{last['recall']:.4f}", "≥ 0.99", last["recall"] >= 0.99),
            Figure(f"{name}: precision", f"{last['precision']:.4f}", "≥ 0.99", last["precision"] >= 0.99),
        ],
    )


def child(step: str, documents: int, folder: Path) -> dict[str, Any]:
    """A step in a process of its own, so that its memory is its own."""
    done = subprocess.run([sys.executable, __file__, "--step", step, str(documents), str(folder)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{step} of {documents:,} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def mixed(*values: Any) -> np.ndarray:
    """A 64-bit hash of several numbers (splitmix64), arrays by broadcasting."""
    made = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for value in values:
            made = (made ^ np.asarray(value).astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            made = made ^ (made >> np.uint64(31))
    return made


def cluster_of(document: np.ndarray, documents: int) -> np.ndarray:
    """Number of the cluster, -1 of those that are in none."""
    return np.where(document % 10 < 3, (mixed(document, 1) % np.uint64(max(1, documents // 10))).astype(np.int64), -1)


def sets(document: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """uint64[n, SET]: the cluster's hashes, some successive ones replaced by the document's own; all its own where it has no cluster."""
    place = np.arange(SET)
    own = (mixed(document, 2) % np.uint64(OWN)).astype(np.int64)
    begin = (mixed(document, 3) % np.uint64(SET)).astype(np.int64)
    alone = (cluster < 0)[:, None] | ((place[None, :] - begin[:, None]) % SET < own[:, None])
    return np.where(alone, mixed(document[:, None], 4, place[None, :]), mixed(cluster[:, None], 5, place[None, :]))


def make(documents: int, folder: Path) -> dict[str, Any]:
    """Signature files as index.signature_rank writes them."""
    import pyarrow as pa

    from tasks.corpus import index, kernels, minhash
    from tasks.corpus.document import write_table
    from tasks.corpus.keepers import key_column

    a, b = minhash._permutations(PERMUTATIONS, 1)
    for part, start in enumerate(range(0, documents, PART)):
        document = np.arange(start, min(documents, start + PART))
        cluster = cluster_of(document, documents)
        keys = mixed(document[:, None], 6, np.arange(BANDS)[None, :])
        some = np.flatnonzero(cluster >= 0)
        hashes = np.zeros((len(some), SET + 4), np.uint32)
        hashes[:, :SET] = sets(document[some], cluster[some]) >> np.uint64(32)
        made = np.empty((len(some), PERMUTATIONS), np.uint32)
        for row in range(len(some)):
            kernels._permute(hashes[row], SET, a, b, made[row])
        keys[some] = minhash.bands(made, BANDS, ROWS)
        digits = np.stack([mixed(document, 7), document.astype(np.uint64)], axis=1).astype(">u8").tobytes().hex()
        names = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        columns = {
            "id": pa.array(names), "text_hash": pa.array(names), "source": pa.array(["synthetic"] * len(names)), "snapshot": pa.array(["s"] * len(names)),
            "origin_file": pa.array([f"{part % 7}"] * len(names)), "origin_offset": pa.array(document),
        }  # fmt: skip
        write_table(folder / index.signatures(part), pa.table(columns | {key_column(k): pa.array(keys[:, k]) for k in range(BANDS)}))
    return {}


def measure(documents: int, folder: Path) -> dict[str, Any]:
    """The steps of dedup._passes between signatures and parts."""
    from tasks.corpus import keepers, kernels  # noqa: F401  compiled before the clock starts

    steps: dict[str, float] = {}
    most = wall = 0.0

    def timed(name: str, function: Any) -> Any:
        nonlocal most, wall
        begun, started = time.process_time(), time.perf_counter()
        made = function()
        steps[name] = time.process_time() - begun
        wall += time.perf_counter() - started
        most = max(most, sum(file.stat().st_size for file in folder.iterdir()))
        return made

    files = sorted(folder.glob("signatures-*.parquet"))
    most = sum(file.stat().st_size for file in files) + 12 * BANDS * documents  # the runs, before the first band is merged
    table_ = timed("load", lambda: keepers.Documents.load(files, [False] * len(files), ["synthetic"], folder))
    buckets = timed("buckets", lambda: keepers.Buckets.build(table_, files, BANDS, folder))
    for part, rows in enumerate(timed("picks", lambda: buckets.picks(table_))):
        document = PART * part + rows
        found = np.sort(sets(document, cluster_of(document, documents)), axis=1)
        np.save(folder / f"picks-{part:05d}.npy", rows)
        np.save(folder / f"sizes-{part:05d}.npy", np.full(len(rows), SET))
        found.tofile(folder / f"shingles-{part:05d}.bin")
    decisions = timed("walk", lambda: keepers.decide(table_, buckets, keepers.Shingles(folder), THRESHOLD, LIMIT))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    recall, precision = checked(documents, table_, decisions)
    return {
        "documents": documents, "seconds": wall, "cpu": sum(steps.values()), "rss": rss, "disk": most / 1e9, "steps": steps, "recall": recall,
        "precision": precision, "removed": len(decisions.place), "comparisons": decisions.comparisons,
    }  # fmt: skip


def checked(documents: int, table_: Any, decisions: Any) -> tuple[float, float]:
    """Shares of what brute force removes that went, and of what went that is similar enough to a keeper that stays, of CHECKED clusters."""
    document = np.flatnonzero(np.arange(documents) % 10 < 3)
    cluster = cluster_of(document, documents)
    document = document[cluster < CHECKED]
    place = table_.places()[document]
    order = np.argsort(place)
    document, place = document[order], place[order]
    cluster = cluster_of(document, documents)
    gone = dict(zip(decisions.place.tolist(), zip(decisions.keeper.tolist(), decisions.similarity.tolist(), strict=True), strict=True))
    of_place = dict(zip(place.tolist(), document.tolist(), strict=True))
    members = [frozenset(one) for one in sets(document, cluster).tolist()]
    set_of = dict(zip(document.tolist(), members, strict=True))
    kept: dict[int, list[int]] = {}
    expected = found = right = went = 0
    for at, one, own, group in zip(place.tolist(), document.tolist(), members, cluster.tolist(), strict=True):
        alike = [k for k in kept.setdefault(group, []) if similar(own, set_of[k]) >= THRESHOLD]
        if alike:
            expected += 1
            found += at in gone
        else:
            kept[group].append(one)
        if at in gone:
            keeper, similarity = gone[at]
            went += 1
            right += keeper not in gone and keeper in of_place and THRESHOLD <= similarity == similar(own, set_of[of_place[keeper]])
    return found / max(1, expected), right / max(1, went)


def similar(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b)


def plot(found: list[dict[str, Any]], folder: Path) -> None:
    """Seconds and memory over documents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    millions = [f["documents"] / 1e6 for f in found]
    left.plot(millions, [f["cpu"] for f in found], "o-", label="measured")
    left.plot([0, millions[-1]], [0, found[-1]["cpu"]], ":", color="grey", label="linear")
    right.plot(millions, [f["rss"] for f in found], "o-", label="measured")
    right.axhline(MEMORY, linestyle=":", color="grey", label="goal")
    for axes, label in ((left, "CPU seconds"), (right, "peak resident memory, GiB")):
        axes.set(xlabel="million signatures", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.legend()
    figure.savefig(folder / "dedup_scale.png", dpi=120)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
