"""Peak memory of every stage while the input grows tenfold: megabytes at 1× and 10×, their ratio, bytes a further document.

    python tests/benchmarks/memory.py [--copies 10] [--quick] [--record]

1× is the sample --copies times, 10× ten times as often, as ONE WARC file and one dump a wiki. Every copy has pages, ids and URLs of its own, and
its words (of Chinese, characters) in another order, drawn from a fixed seed, so that dedup keeps it. A stage runs in a child process over the
outputs of the stages before; its peak is the kernel's (wait4, ru_maxrss): of the largest single process of that stage, its workers included.
pretrain is the demo's, for 8 steps: its work is of one size, so that the shards are what grows. finetune, evaluate and register see the same
examples and items however large the crawl is, and are left out.
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import REPO, Figure, arguments, clean_environment, conclude, table

SAMPLES = REPO / "tests" / "samples"
STAGES = ("ingest", "extract", "filter", "dedup", "decontaminate", "index", "tokenizer", "encode", "pretrain")
FLAT = 1.1
"""Greatest ratio that counts as flat."""
WHY = {
    "extract": "a part's writer holds up to 1,000 documents and a part's rejects (20,000 records at most)",
    "filter": "a part's writer holds up to 1,000 documents and a part's rejects (20,000 records at most)",
    "dedup": "identity and decision of every document stay in memory (tasks/corpus/keepers.py): linear by design; a part's signatures too",
    "decontaminate": "a part's writer holds up to 1,000 documents and a part's rejects (20,000 records at most)",
    "index": "keys of a part's documents (PART_ROWS at most) until it is written",
    "tokenizer": "counts of distinct words, until tokenizer.sample_bytes of text are reached",
    "encode": "tokens wait in memory up to 8 MiB, are sorted by ranges of 16 MiB of text, and gigatoken remembers the pieces of 16 MiB beyond ASCII",
    "pretrain": "shards are memory-mapped: pages that were read count as resident",
}
"""Where a stage is not flat, what grows and where that ends."""
ATOM = re.compile(r"\[\[.*?\]\]\S*|\{\{.*?\}\}\S*|<ref.*?(?:/>|</ref>)\S*|\S+")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FOLDER", "COPIES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, folder, copies = given.child
        grow(Path(folder), int(copies)) if what == "grow" else stage(what, Path(folder))
    else:
        conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    smaller = 1 if given.quick else given.copies
    times = 2 if given.quick else 10
    found = []
    with tempfile.TemporaryDirectory(prefix="ingot-memory-") as name:
        for copies in (smaller, smaller * times):
            folder = Path(name) / f"{copies}x"
            folder.mkdir()
            child("grow", folder, copies)
            found.append({what: child(what, folder, copies) for what in STAGES})
    rows, kept = [], []
    for what in STAGES:
        (seen, megabytes, seconds), (more, most, longer) = (one[what] for one in found)
        ratio = most / megabytes
        each = f"{(most - megabytes) * 2**20 / (more - seen):,.0f}" if more > seen else ""  # ingest counts files: as many at any size
        rows.append(
            (what, f"{seen:,}", f"{more:,}", f"{megabytes:,.0f}", f"{most:,.0f}", f"{ratio:.2f}", each, f"{seconds:.1f}", f"{longer:.1f}")
        )
        kept.append(
            Figure(
                f"peak memory of {what}, {seen:,} → {more:,} in",
                f"{megabytes:,.0f} → {most:,.0f} MiB ({ratio:.2f}×)",
                f"≤ {FLAT}×",
                ratio <= FLAT,
            )
        )
    table(("stage", "in, 1×", f"in, {times}×", "MiB, 1×", f"MiB, {times}×", "ratio", "bytes a document", "s, 1×", f"s, {times}×"), rows)
    for figure, what in zip(kept, STAGES, strict=True):
        if not figure.met:
            print(f"{what} is not flat: {WHY.get(what, 'not explained')}")
    return kept


def child(what: str, folder: Path, copies: int) -> tuple[int, float, float]:
    """Run one stage in a process of its own: what came in, peak MiB, seconds of its body."""
    log = folder / f"{what}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", what, str(folder), str(copies)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=REPO, env=clean_environment(OMP_NUM_THREADS="1"),
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{what} of {copies} copies ended with {process.returncode}: {log.read_text(errors='replace')[-3000:]}")
    facts = json.loads((folder / f"{what}.json").read_text()) if what != "grow" else {"seen": 0, "seconds": 0.0}
    return int(facts["seen"]), usage.ru_maxrss / 1024, float(facts["seconds"])


def stage(what: str, folder: Path) -> None:
    """One stage over what the others left in the folder's store; leaves its count and seconds in WHAT.json."""
    from flows import recipes
    from tasks.corpus import commoncrawl, contamination, dedup, encode, extract, files, index, quality, wikipedia
    from tasks.corpus.manifest import Manifest, Store

    r, store, found = recipes.demo(), Store(folder / "store"), dict[str, Manifest]()
    assert r.common_crawl and r.wikipedia
    crawl = replace(r.common_crawl, files=1, base_url=str(folder / "commoncrawl"), index_url=str(folder / "commoncrawl"))
    wiki = replace(r.wikipedia, base_url=str(folder / "wikimedia"))

    def raw() -> Mapping[str, Manifest]:
        return {name: found[name] for name in ("commoncrawl", "wikipedia")}

    def corpus() -> Mapping[str, Manifest]:
        return {"corpus-000": found["decontaminate"]}

    steps: dict[str, Callable[[], Manifest]] = {
        "commoncrawl": lambda: commoncrawl.run(store, r.name, crawl, r.download),
        "wikipedia": lambda: wikipedia.run(store, r.name, wiki, r.download),
        "ingest": lambda: files.run(store, r.name, r.evaluation, r.download),
        "extract": lambda: extract.run(store, r.name, r.extract, raw(), r.engine),
        "filter": lambda: quality.run(store, r.name, r.filter, {"extract": found["extract"]}, r.engine),
        "dedup": lambda: dedup.run(store, r.name, r.dedup, {"filter": found["filter"]}, r.engine),
        "decontaminate": lambda: contamination.run(
            store, r.name, r.decontaminate, {"dedup": found["dedup"], "evaluation": found["ingest"]}, r.engine
        ),
        "index": lambda: index.run(store, r.name, r.dedup.signatures, {"documents": found["decontaminate"]}, r.engine),
        "tokenizer": lambda: encode.train_tokenizer(store, r.name, r.tokenizer, corpus()),
        "encode": lambda: encode.run(store, r.name, r.encode, {**corpus(), "tokenizer": found["tokenizer"]}),
    }
    for name, make in steps.items():
        found[name] = make()
        if name == what:
            break
    if what == "pretrain":
        facts = pretrain(store, r, found["encode"], found["tokenizer"], folder)
    elif what == "ingest":
        parts = [found[name] for name in ("commoncrawl", "wikipedia", "ingest")]
        facts = {"seen": sum(m.seen for m in parts), "seconds": sum(m.about["seconds"] for m in parts)}
    else:
        facts = {"seen": found[what].seen, "seconds": found[what].about["seconds"]}
    (folder / f"{what}.json").write_text(json.dumps(facts))


def pretrain(store: Any, r: Any, shards: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Eight steps of the demo's model over these shards; `seen` are the documents in them."""
    import time

    from model.config import Run, to_dict
    from model.train import launch

    prefixes = [
        str(store.path(shards, f)).removesuffix(".bin") for f in shards.files if f.path.startswith("train-") and f.path.endswith(".bin")
    ]
    run = Run(
        data="stream", fingerprint="f" * 64, data_fingerprint=shards.content, model=r.model,
        train=replace(r.pretrain, steps=8, warmup=2, valid_every=0, save_every=8, ranks=1, micro_batch=r.pretrain.batch, device="cpu"),
        vocab=shards.info["vocab"], shards=tuple(prefixes), valid=(), tokenizer=str(store.dir(tokenizer.address) / "tokenizer"), start=None,
        out=str(folder / "pretrain"),
    )  # fmt: skip
    (folder / "pretrain").mkdir()
    path = folder / "pretrain" / "run.json"
    path.write_text(json.dumps(to_dict(run)))
    begun = time.perf_counter()
    launch(path, 1, folder / "pretrain" / "log", 600, lambda row: None, folder / "cache")
    return {"seen": shards.info["documents"]["train"], "seconds": time.perf_counter() - begun}


def grow(folder: Path, copies: int) -> None:
    """The sample's sources so many times, each copy in an order of its own, built as one WARC file and one dump a wiki."""
    sys.path.insert(0, str(SAMPLES))
    import crawl
    import wikimedia

    source, chance = folder / "source", random.Random(1)
    web = source / "web"
    (web / "templates").mkdir(parents=True)
    for file in (SAMPLES / "source" / "web" / "templates").iterdir():
        (web / "templates" / file.name).write_bytes(file.read_bytes())
    entries = []
    for entry in crawl.load(SAMPLES / "source" / "web"):
        if entry["kind"] == "clipped":  # it ends its file
            continue
        for copy in range(copies):
            made = entry | {"url": f"{entry['url']}{'&' if '?' in entry['url'] else '?'}copy={copy}"}
            if entry["file"]:
                made["file"] = f"{copy}-{entry['file']}"
                (web / made["file"]).write_text(html((SAMPLES / "source" / "web" / entry["file"]).read_text("utf-8"), chance), "utf-8")
            entries.append(made)
    (web / "index.json").write_text(json.dumps(entries))
    crawl.build(web, folder)
    one_file(folder / "commoncrawl" / "crawl-data" / crawl.SNAPSHOT)
    for language in wikimedia.NAMES:
        articles = source / "wiki" / language
        articles.mkdir(parents=True)
        for number, file in enumerate(sorted((SAMPLES / "source" / "wiki" / language).glob("*.wiki"))):
            text = file.read_text("utf-8")
            head = wikimedia.HEADER.match(text)
            for copy in range(copies):
                lines = [
                    f"# Title: {head['title']} {copy}",
                    f"# Id: {1 + number * copies + copy}",
                    *([f"# Ns: {head['ns']}"] if head["ns"] else []),
                ]
                (articles / f"{number:04d}-{copy:04d}.wiki").write_text("\n".join([*lines, wikitext(text[head.end() :], chance)]), "utf-8")
    wikimedia.build(source / "wiki", folder)


def one_file(snapshot: Path) -> None:
    """Join a crawl's WARC files to its first: gzip members follow one another."""
    listing = snapshot / "warc.paths.gz"
    first, *rest = gzip.decompress(listing.read_bytes()).decode().split()
    root = snapshot.parents[1]
    with open(root / first, "ab") as whole:
        for path in rest:
            whole.write((root / path).read_bytes())
            (root / path).unlink()
    listing.write_bytes(gzip.compress(f"{first}\n".encode(), mtime=0))


def html(text: str, chance: random.Random) -> str:
    """A page with the words between its tags in another order."""
    return "".join(piece if piece.startswith("<") else shuffled(piece, chance) for piece in re.split(r"(<[^>]*>)", text))


def wikitext(text: str, chance: random.Random) -> str:
    """An article with the words of its running lines in another order; links, templates and references stay whole."""
    return "\n".join(line if line[:1] in tuple("{|}=*#:;!<[") else shuffled(line, chance) for line in text.split("\n"))


def shuffled(text: str, chance: random.Random) -> str:
    """Words in another order, the last in its place, so that a sentence still ends; of runs of Chinese the characters."""
    text = re.sub(r"[一-鿿]{2,}", lambda run: "".join(chance.sample(run[0], len(run[0]))), text)
    words = ATOM.findall(text)
    if len(words) < 3:
        return text
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return before + " ".join([*chance.sample(words[:-1], len(words) - 1), words[-1]]) + after


if __name__ == "__main__":
    main()
