"""Small corpora for tests: stage outputs made of rows, without the stages that would make them; and texts of known similarity."""

import importlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.corpus import census
from tasks.corpus.document import PartWriter, new_document, read_rows, write_table
from tasks.corpus.engine import EngineConfig, local
from tasks.corpus.index import CENSUS
from tasks.corpus.manifest import Manifest, Publication, Result, Stage, Store, Work, run_stage

ENGINE = local(workers=2, timeout=60.0)


def run_inline(work: Work, function: str, config: Any, items: Sequence[dict[str, Any]], engine: EngineConfig) -> list[dict[str, Any]]:
    """engine.run_ranks without its subprocesses, which cost a second each: for tests of what the ranks do."""
    module, name = function.split(":")
    summaries = []
    for rank, item in enumerate(items):
        with PartWriter(work.dir, rank, work.stage) as out:
            info = getattr(importlib.import_module(module), name)(config, json.loads(json.dumps(item)), out)
        summaries.append(json.loads(json.dumps(out.summary | {"info": info or {}})))
    return summaries


def document(
    text: str, place: int, source: str = "files", snapshot: str = "test", origin_file: str = "a.txt", **more: Any
) -> dict[str, Any]:
    """A row; place is what tells records apart."""
    return new_document(text, source=source, snapshot=snapshot, origin_file=origin_file, place=place, license="CC0-1.0", **more)


def output_of(
    store: Store,
    stage: str,
    parts: Sequence[Sequence[dict[str, Any]]],
    inputs: Mapping[str, Manifest] | None = None,
    rejected: Mapping[str, int] | None = None,
) -> Manifest:
    """A stage's complete output with these documents, a list a part."""

    def body(work: Work) -> Result:
        files = []
        for rank, rows in enumerate(parts):
            with PartWriter(work.dir, rank, stage) as out:
                for row in rows:
                    out.keep(row)
            files += [(f["path"], f["rows"]) for f in out.files]
        kept = sum(map(len, parts))
        return Result(files, kept + sum((rejected or {}).values()), kept, rejected or {})

    made_of = {"ids": [[row["id"] + row["text_hash"] for row in rows] for rows in parts]}
    return run_stage(store, Stage(stage, 1), "test", made_of, inputs or {}, body)


def staged(
    store: Store,
    stage: str,
    kept: Sequence[dict[str, Any]],
    rejected: Sequence[tuple[dict[str, Any], str]] = (),
    before: Manifest | None = None,
) -> Manifest:
    """A stage's output with these documents and rejects (row, reason), made of another's."""

    def body(work: Work) -> Result:
        with PartWriter(work.dir, 0, stage) as out:
            for row in kept:
                out.keep(row)
            for row, reason in rejected:
                out.reject(row, reason)
        return Result([(f["path"], f["rows"]) for f in out.files], out.seen, out.kept, out.rejected)

    made_of = {"ids": [row["id"] for row in kept], "rejected": [row["id"] + reason for row, reason in rejected]}
    return run_stage(store, Stage(stage, 1), "test", made_of, {"documents": before} if before else {}, body)


def publish(store: Store, version: str, parts: Sequence[Manifest], previous: str = "") -> Publication:
    """A version of corpora/news with an index that holds a census of each part and nothing else."""

    def body(work: Work) -> Result:
        return Result([(CENSUS, write_table(work.dir / CENSUS, census.count(work.paths("documents"))))], 0, 0, {})

    segments = [run_stage(store, Stage("index", 2), "test", {}, {"documents": part}, body) for part in parts]
    store.publish("indexes", "news", version, segments, {}, {})
    return store.publish("corpora", "news", version, parts, {"previous": previous}, {"snapshots": [version]})


def files_of(store: Store, files: Mapping[str, str | bytes]) -> Manifest:
    """An ingest manifest of files by their relative path."""

    def body(work: Work) -> Result:
        for name, content in files.items():
            path = work.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Result([(name, None) for name in files], len(files), len(files), {}, {"source": "files"})

    return run_stage(store, Stage("ingest", 1), "test", {name: repr(content) for name, content in files.items()}, {}, body)


def rows_of(store: Store, manifest: Manifest, prefix: str = "documents-") -> list[dict[str, Any]]:
    """All rows of a manifest's parts."""
    return list(read_rows([store.path(manifest, f) for f in manifest.parts(prefix)]))


def parts_of(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Bytes of every file."""
    return {f.path: Path(store.path(manifest, f)).read_bytes() for f in manifest.files}


def words(count: int, seed: int, vocabulary: int = 3000) -> list[str]:
    """Random words."""
    chosen = random.Random(seed)
    return [f"w{chosen.randrange(vocabulary)}" for _ in range(count)]


def changed(text: Sequence[str], edits: int, seed: int) -> list[str]:
    """The words with `edits` of them replaced, spread apart: each replaced word costs five of the shingles on either side."""
    chosen, out = random.Random(seed), list(text)
    for place in range(edits):
        at = (place * len(text) // edits + chosen.randrange(max(1, len(text) // edits - 5))) if edits else 0
        out[at] = f"x{chosen.randrange(10**6)}"
    return out
