"""Signatures/s and documents/s of our dedup against its peers on the same real text, one core, with the recall that each buys.

    python tests/benchmarks/dedup_speed.py [--documents 2000] [--rounds 5] [--stage 20000 200000] [--quick] [--record]

1. Text to signature: documents of 5,000 bytes made of sentences of English novels (and of Chinese laws), 128 permutations (datatrove: its
   own 14 × 8). Each round runs ours and the peers one after another; figures are medians over rounds of the ratio of CPU seconds. Ours: Arrow
   strings to signatures and 25 band keys. datasketch, rensa: lower(), split(), 5-word shingles in Python, then their fastest bulk call with
   xxh32 or their own hash. gaoya: its own analyser, insertion included, which it has no call without. datatrove: its signature step's methods.
2. Recall: pairs whose true similarity of shingles is .80 to .85, found by each with its own choice of bands for .8; rensa also with the bands and
   the threshold at which it finds what ours finds. A peer's shingles keep punctuation as ours do, but for datatrove's.
3. Parquet to parquet, an input that the stage holds in memory and one ten times as large, which its workers read pass by pass (--passes: the first in
   this way too): our stage with its checks, its processes' start and end included; rensa with the glue one writes for it (read, shingle, look up,
   write) in both settings; datatrove's four steps on a part of the documents; a fifth of the documents are near copies of others.
4. Limits: the permutations alone, and cutting with hashing alone; reading and writing the same parquet without looking at it.

A peer that is not installed (the extra `bench`) is left out, with a word. Without ../shared/data the text is made of random words.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from figures import REPO, Figure, arguments, conclude, table

sys.path.insert(0, str(REPO / "tests"))
DATA = REPO.parent / "shared" / "data" / "text"
SIZE = 5_000
"""Bytes of a document."""
PERMUTATIONS, THRESHOLD = 128, 0.8
BANDS, ROWS = 25, 5
RENSA, TUNED = (THRESHOLD, None), (0.7, 32)
"""rensa's threshold and bands: its own choice, and what finds as many as ours."""
GOAL = 30_000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=2_000, help="documents signed in a round")
    parser.add_argument("--stage", type=int, nargs="+", default=[20_000, 200_000], help="documents of the runs from parquet to parquet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-stage", action="store_true", help="leave signing and recall out")
    parser.add_argument("--passes", action="store_true", help="also time our stage without holding its input in memory")
    given = parser.parse_args()
    if given.quick:
        given.documents, given.stage, given.rounds = 40, [60], 1
    os.environ |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    pa.set_cpu_count(1)
    english, found = sentences("english"), []
    if not given.only_stage:
        found += signing(given, "English", documents(english, given.documents, " "), peers())
        found += signing(given, "Chinese", documents(sentences("chinese"), given.documents, ""), {})
        found += recall(documents(english, 30 if given.quick else 1_000, " "), peers())
    for count in given.stage:
        found += stages(given, documents(english, count, " "))
    conclude(given, found)


def sentences(language: str) -> list[str]:
    """Of real text where it is there."""
    chosen = random.Random(0)
    if not DATA.is_dir():
        letters = "abcdefghijklmnopqrstuvwxyz" if language == "english" else [chr(point) for point in range(0x4E00, 0x5600)]
        words = ["".join(chosen.choices(letters, k=chosen.randrange(2, 9))) for _ in range(20_000)]
        return [(" " if language == "english" else "").join(chosen.choices(words, k=15)) + "." for _ in range(20_000)]
    if language == "english":
        texts = [gzip.decompress(path.read_bytes()).decode("utf-8") for path in sorted((DATA / "100-english-novels").glob("*.gz"))]
        return [" ".join(piece.split()) for text in texts for piece in re.split(r"(?<=[.!?])\s+", text) if len(piece) > 20]
    laws = gzip.decompress((DATA / "zh-laws.jsonl.gz").read_bytes()).decode("utf-8").splitlines()
    return [piece + "。" for line in laws for piece in json.loads(line)["text"].split("。") if len(piece) > 10]


def documents(pieces: Sequence[str], count: int, joint: str) -> list[str]:
    """Texts of SIZE bytes made of sentences at random: no two are alike."""
    chosen, made = random.Random(1), []
    for _ in range(count):
        text, size = [], 0
        while size < SIZE:
            text.append(chosen.choice(pieces))
            size += len(text[-1].encode()) + len(joint)
        made.append(joint.join(text).encode()[:SIZE].decode("utf-8", "ignore"))
    return made


def near(text: str, seed: int, edits: int) -> str:
    """The text with some words replaced."""
    chosen, words = random.Random(seed), text.split(" ")
    for place in chosen.sample(range(len(words)), min(edits, len(words))):
        words[place] = f"edited{chosen.randrange(10**6)}"
    return " ".join(words)


def signing(given: argparse.Namespace, name: str, texts: list[str], against: dict[str, Any]) -> list[Figure]:
    """Signatures/s of ours and of the peers, the ratios, and what the time is spent on."""
    from tasks.corpus import kernels, minhash
    from tasks.corpus.codepoints import unicode_tables

    array, tables = pa.array(texts), unicode_tables()
    data, offsets = minhash._buffers(array)
    a, b = minhash._permutations(PERMUTATIONS, 1)
    hashes = np.random.default_rng(0).integers(0, 2**32, 4_096, dtype=np.uint32)
    sizes = [len(found) for found in minhash.hashes(array)]
    row = np.empty(PERMUTATIONS, np.uint32)

    def ours() -> None:
        minhash.bands(minhash.signatures(array, PERMUTATIONS, 1), BANDS, ROWS)

    def permuting() -> None:
        for size in sizes:
            kernels._permute(hashes, min(size, len(hashes) - 4), a, b, row)

    def cutting() -> None:
        kernels.digest(data, offsets, tables.raw, tables.pool, tables.simple, tables.phrases, False)

    works: dict[str, Callable[[], object]] = {"ours": ours, "permutations alone": permuting, "cutting and xxh64 alone": cutting}
    works |= {peer: (lambda sign=sign, some=texts[:share]: sign(some)) for peer, (sign, share, _) in against.items()}
    amount = {"ours": len(texts), "permutations alone": len(texts), "cutting and xxh64 alone": len(texts)}
    amount |= {peer: min(share, len(texts)) for peer, (_, share, _) in against.items()}
    seconds: dict[str, list[float]] = {work: [] for work in works}
    for function in works.values():  # imports, models, caches
        function()
    for _ in range(given.rounds):
        for work, function in works.items():
            seconds[work].append(cpu(function) / amount[work])
    speeds = {work: 1 / statistics.median(some) for work, some in seconds.items()}
    rows = [(work, f"{speed:,.0f}", ratio(seconds["ours"], seconds[work]) if work != "ours" else "") for work, speed in speeds.items()]
    print(
        f"\n{name}: {len(texts):,} documents of {statistics.mean(len(text.encode()) for text in texts):,.0f} bytes, {np.mean(sizes):,.0f} shingles"
    )
    table(("signer", "documents/s", "CPU seconds, it : ours"), rows)
    found = [Figure(f"signatures/s on 5 kB, {name}", f"{speeds['ours']:,.0f}", f"≥ {GOAL:,}", speeds["ours"] >= GOAL)]
    found += [Figure(f"signatures/s, ours : {peer}", ratio(seconds["ours"], seconds[peer])) for peer in against]
    share = [part / whole for part, whole in zip(seconds["permutations alone"], seconds["ours"], strict=True)]
    return [*found, Figure(f"signatures, {name}: share of the limit, the permutations alone", f"{statistics.median(share):.2f}")]


def cpu(function: Callable[[], object]) -> float:
    """CPU seconds of this process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.process_time()
    function()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() - begun + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the rounds, least and greatest."""
    found = [their / our for our, their in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):,.2f} ({min(found):,.2f} to {max(found):,.2f})"


def peers() -> dict[str, tuple[Callable[[list[str]], Any], int, Callable[[list[str], list[str]], list[bool]]]]:
    """By name: how it signs, how many documents it can do in a round, and which of two lists' pairs it finds with its own bands."""
    every: dict[str, Any] = {
        "datasketch": (datasketch_signs, 500, datasketch_meets), "rensa": (rensa_signs, 500, rensa_meets),
        "gaoya": (gaoya_signs, 1_000, gaoya_meets), "datatrove": (datatrove_signs, 40, datatrove_meets),
    }  # fmt: skip
    there = {name: some for name, some in every.items() if importlib.util.find_spec(name)}
    if missing := sorted(every.keys() - there.keys()):
        print(f"not installed, left out: {', '.join(missing)}")
    return there


def windows(text: str) -> set[str]:
    """5-word shingles as most people write them."""
    words = text.lower().split()
    return {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}


def datasketch_signs(texts: list[str]) -> Any:
    from datasketch import MinHash

    sets = [[shingle.encode() for shingle in windows(text)] for text in texts]
    return MinHash.bulk(sets, num_perm=PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest)


def datasketch_meets(one: list[str], other: list[str]) -> list[bool]:
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    for number, made in enumerate(datasketch_signs(one)):
        index.insert(number, made)
    return [number in index.query(made) for number, made in enumerate(datasketch_signs(other))]


def rensa_signs(texts: list[str]) -> Any:
    from rensa import RMinHash

    return RMinHash.digest_matrix_from_token_sets([windows(text) for text in texts], PERMUTATIONS, 42)


def rensa_meets(one: list[str], other: list[str], setting: tuple[float, int | None] = RENSA) -> list[bool]:
    from rensa import RMinHash, RMinHashDeduplicator

    index = RMinHashDeduplicator(setting[0], PERMUTATIONS, True, setting[1])
    for number, made in enumerate(RMinHash.from_token_sets([windows(text) for text in one], PERMUTATIONS, 42)):
        index.add(str(number), made)
    signed = RMinHash.from_token_sets([windows(text) for text in other], PERMUTATIONS, 42)
    return [str(number) in index.get_duplicates(made) for number, made in enumerate(signed)]


def gaoya_index() -> Any:
    from gaoya.minhash import MinHashStringIndex

    return MinHashStringIndex(32, THRESHOLD, None, None, PERMUTATIONS, "word", True, (5, 5))


def gaoya_signs(texts: list[str]) -> Any:
    index = gaoya_index()
    index.par_bulk_insert_docs(list(range(len(texts))), texts)
    return index


def gaoya_meets(one: list[str], other: list[str]) -> list[bool]:
    index = gaoya_signs(one)
    return [number in index.query(text) for number, text in enumerate(other)]


def datatrove_signs(texts: list[str]) -> list[list[list[int]]]:
    with tempfile.TemporaryDirectory(prefix="ingot-dedup-") as folder:
        step = datatrove_signer(Path(folder))
        return [step.get_signature(step.get_shingles(text)) for text in texts]


def datatrove_signer(folder: Path) -> Any:
    """Its signature step; its own call of xxhash gives a str, which xxhash 4 refuses."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    step = MinhashDedupSignature(str(folder))
    step._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
    return step


def datatrove_meets(one: list[str], other: list[str]) -> list[bool]:
    return [any(x == y for x, y in zip(a, b, strict=True)) for a, b in zip(datatrove_signs(one), datatrove_signs(other), strict=True)]


def recall(texts: list[str], against: dict[str, Any]) -> list[Figure]:
    """Share of pairs at similarity .80 to .85 that have a band in common."""
    from tasks.corpus import minhash

    edited = [near(text, number, 13 + number % 6) for number, text in enumerate(texts)]
    true = [minhash.jaccard(a, b) for a, b in zip(minhash.hashes(pa.array(texts)), minhash.hashes(pa.array(edited)), strict=True)]
    pairs = [(text, other) for text, other, alike in zip(texts, edited, true, strict=True) if THRESHOLD <= alike < 0.85]
    one, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    keys = [minhash.bands(minhash.signatures(pa.array(some), PERMUTATIONS, 1), BANDS, ROWS) for some in (one, other)]
    rows = [("ours", len(pairs), float((keys[0] == keys[1]).any(axis=1).mean()))]
    ways = {name: (share, meets) for name, (_, share, meets) in against.items()}
    if "rensa" in ways:
        ways["rensa tuned to ours"] = ways["rensa"][0], lambda a, b: rensa_meets(a, b, TUNED)
    for name, (share, meets) in ways.items():
        some = min(len(pairs), 5 * share)
        rows.append((name, some, float(np.mean(meets(one[:some], other[:some])))))
    print("\nrecall of pairs at similarity .80 to .85")
    table(("index", "pairs", "recall"), [(name, f"{some:,}", f"{share:.3f}") for name, some, share in rows])
    return [
        Figure(f"recall at .80 to .85, {name}", f"{share:.3f}", *(("≥ 0.99", share >= 0.99) if name == "ours" else ()))
        for name, _, share in rows
    ]


def stages(given: argparse.Namespace, texts: list[str]) -> list[Figure]:
    """CPU seconds from parquet to parquet."""
    import pyarrow.parquet as pq
    from corpora import document, output_of

    from flows import recipes
    from tasks.corpus import dedup
    from tasks.corpus.document import SCHEMA, WRITER, read_batches
    from tasks.corpus.engine import local, stop
    from tasks.corpus.manifest import Store

    copies = len(texts) // 5
    texts = [*texts[copies:], *(near(text, number, number % 18) for number, text in enumerate(texts[copies : 2 * copies]))]
    config, engine = recipes.demo().dedup, local(workers=1, timeout=600.0)
    with tempfile.TemporaryDirectory(prefix="ingot-dedup-") as folder:
        store = Store(Path(folder) / "store")
        rows = [document(text, place) for place, text in enumerate(texts)]
        source = output_of(store, "filter", [rows[at : at + 10_000] for at in range(0, len(rows), 10_000)])
        some = min(400, len(texts))
        few, count = pa.Table.from_pylist(rows[:some], SCHEMA), len(texts)
        del texts, rows
        paths = [store.path(source, part) for part in source.parts()]
        kept: dict[str, int] = {}

        def ours(times: int) -> None:
            kept["ours"] = dedup.run(store, f"speed-{times}", config, {"filter": source}, engine, rebuild=True).kept
            stop()  # so that its processes are counted

        def copying() -> None:
            with pq.ParquetWriter(Path(folder) / "copy.parquet", SCHEMA, **WRITER) as out:
                for batch in read_batches(paths):
                    out.write_batch(batch)

        def with_rensa(name: str, setting: tuple[float, int | None]) -> None:
            from rensa import RMinHash, RMinHashDeduplicator

            index, stays = RMinHashDeduplicator(setting[0], PERMUTATIONS, True, setting[1]), 0
            with pq.ParquetWriter(Path(folder) / "rensa.parquet", SCHEMA, **WRITER) as out:
                for number, batch in enumerate(read_batches(paths)):
                    signed = RMinHash.from_token_sets([windows(text) for text in batch["text"].to_pylist()], PERMUTATIONS, 42)
                    new = [index.add(f"{number}-{row}", made) for row, made in enumerate(signed)]
                    out.write_batch(batch.filter(pa.array(new)))
                    stays += sum(new)
            kept[name] = stays

        def in_passes() -> None:
            with unittest.mock.patch.object(dedup, "HELD", 0):
                ours(1)

        works: dict[str, Callable[[], object]] = {"ours": lambda: ours(0), "reading and writing alone": copying}
        if given.passes:
            works["ours, in passes"] = in_passes
        if importlib.util.find_spec("rensa"):
            works["rensa with its glue"] = lambda: with_rensa("rensa", RENSA)
            works["rensa tuned to our recall"] = lambda: with_rensa("rensa tuned", TUNED)
        works["datatrove's four steps"] = lambda: datatrove_stages(Path(folder), few, kept)
        amount = {name: some if "datatrove" in name else count for name in works}
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(min(3, given.rounds) if count <= 50_000 else 1):
            for name, work in works.items():
                seconds[name].append(cpu(work) / amount[name])
    shown = {name: ratio(seconds["ours"], some) for name, some in seconds.items() if name != "ours"}
    print(f"\nparquet to parquet, {count:,} documents (datatrove: {some}), kept: {kept}")
    table(
        ("way", "documents/s", "CPU seconds, it : ours"),
        [(name, f"{1 / statistics.median(each):,.0f}", shown.get(name, "")) for name, each in seconds.items()],
    )
    goals = {"rensa with its glue": 4.0, "rensa tuned to our recall": 4.0, "datatrove's four steps": 100.0}
    medians = {name: statistics.median(t / o for o, t in zip(seconds["ours"], each, strict=True)) for name, each in seconds.items()}
    found = [Figure(f"dedup parquet to parquet, {count:,} documents: documents/s", f"{1 / statistics.median(seconds['ours']):,.0f}")]
    for name, value in shown.items():
        goal = goals.get(name)
        found.append(
            Figure(
                f"dedup parquet to parquet, {count:,} documents: ours : {name}",
                value,
                *((f"≥ {goal:g}", medians[name] >= goal) if goal else ()),
            )
        )
    return found


def datatrove_stages(folder: Path, documents: pa.Table, kept: dict[str, int]) -> None:
    """Signatures, buckets, clusters, filter, as its example has them."""
    import pyarrow.parquet as pq
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    with tempfile.TemporaryDirectory(dir=folder) as name, open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
        work = Path(name)
        (work / "in").mkdir()
        pq.write_table(documents, work / "in" / "0.parquet")
        reader = ParquetReader(str(work / "in"), glob_pattern="*.parquet")
        pipelines: list[tuple[list[Any], int]] = [
            ([reader, datatrove_signer(work / "signatures")], 1),
            ([MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"))], 14),
            ([MinhashDedupCluster(str(work / "buckets"), str(work / "remove"))], 1),
            ([reader, MinhashDedupFilter(str(work / "remove")), ParquetWriter(str(work / "out"))], 1),
        ]
        for number, (steps, tasks) in enumerate(pipelines):
            LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(work / f"logs-{number}")).run()
        kept["datatrove"] = sum(pq.read_metadata(path).num_rows for path in (work / "out").glob("*.parquet"))


if __name__ == "__main__":
    main()
