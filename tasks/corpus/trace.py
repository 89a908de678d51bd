"""Lineage in both directions: what became of a record at every stage and which corpora and models hold it; what a model was made of.

    found = documents(store, urls=("https://example.org/a",))     # every record of these addresses or ids, with its steps
    made_of = model(store, store.need("stages/finetune/demo-…"))  # corpus versions, snapshots, raw files, shards

Read from the parts themselves (their ids and addresses, the rest of a row group only where one is found) and from manifests; MLflow is not asked.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import NotFoundError
from tasks.corpus.manifest import Manifest, Publication, Store, ancestors
from tasks.corpus.overview import ORDER, paths
from tasks.corpus.quality import rules_of

MODELS = ("pretrain", "finetune", "register")
WANTED = ("id", "url", "title", "language", "language_score", "words", "signals", "source", "snapshot", "origin_file", "origin_offset",
          "origin_length", "reason", "value")  # fmt: skip
"""Columns read of a row that is found, of those that its part has."""


@dataclass(frozen=True)
class Step:
    """What one stage output did with a record."""

    address: str
    kept: bool
    why: str


@dataclass
class Trace:
    """One record: where it comes from, what became of it, who has it."""

    row: Mapping[str, Any]
    """Its last known columns, of WANTED."""
    steps: list[Step] = field(default_factory=list)
    corpora: list[str] = field(default_factory=list)
    """Published corpora that hold it."""
    shards: list[str] = field(default_factory=list)
    """Token shards that hold it, with its number within each."""
    models: list[str] = field(default_factory=list)
    """Models trained on these: addresses, of registered ones name and version."""

    @property
    def origin(self) -> str:
        """Snapshot, file and bytes (or number) of the raw record."""
        length = self.row["origin_length"]
        size = f"+{length:,} bytes" if length is not None and length >= 0 else ""
        return f"{self.row['snapshot']}: {self.row['origin_file']} @ {self.row['origin_offset']:,}{size}"


def documents(store: Store, ids: Collection[str] = (), urls: Collection[str] = ()) -> list[Trace]:
    """Every record of these ids or addresses that any complete stage output of the store holds. NotFoundError names addresses that are near."""
    outputs = sorted(_complete(store, ORDER), key=lambda m: (ORDER.index(m.stage), m.about["finished"]))
    traces: dict[str, Trace] = {}
    holders: dict[str, set[str]] = {}
    for m in outputs:
        rows = _rows(store, m, "documents-", ids, urls) + _rows(store, m, "rejects-", ids, urls)
        for row in rows:
            trace = traces.setdefault(row["id"], Trace(row))
            trace.row = dict(trace.row) | {name: value for name, value in row.items() if value not in (None, "")}
            kept = "reason" not in row
            if kept:
                holders.setdefault(m.address, set()).add(row["id"])
            trace.steps.append(Step(m.address, kept, _why(store, m, row, kept)))
    if not traces:
        raise NotFoundError(_nearest(store, outputs, urls, ids))
    corpora = [thing for thing in store.publications() if thing.kind == "corpora"]
    encoded = _complete(store, ("encode",))
    models = [(m, {a.address for a in ancestors(store, [m])}) for m in _complete(store, MODELS)]
    for id_, trace in traces.items():
        here = {address for address, held in holders.items() if id_ in held}
        trace.corpora = [thing.address for thing in corpora if here & set(thing.parts)]
        for m in encoded:
            numbers = _numbers(store, m, id_) if here & set(m.inputs.values()) else []
            trace.shards += [f"{m.address}/{name} document {number:,}" for name, number in numbers]
            if any(name.startswith("train-") for name, _ in numbers):  # a document of the validation shards teaches nothing
                trace.models += [_name(one) for one, made_of in models if m.address in made_of]
    return list(traces.values())


@dataclass(frozen=True)
class Lineage:
    """What a model was made of."""

    stages: list[Manifest]
    """Oldest first, the model itself last."""
    corpora: list[Publication]
    """Published versions that its shards were made of."""
    snapshots: list[str]
    raw: list[str]
    """Files of every source."""
    shards: list[tuple[str, int]]
    """Token shards by address, bytes."""


def model(store: Store, manifest: Manifest) -> Lineage:
    """Everything that a training stage's output, or a register stage's, was made of."""
    stages = sorted(ancestors(store, [manifest]), key=lambda m: m.about["finished"])
    encoded = [m for m in stages if m.stage == "encode"]
    parts = {address for m in encoded for role, address in m.inputs.items() if role.startswith("corpus-")}
    corpora = [t for t in store.publications() if t.kind == "corpora" and set(t.parts) == parts]
    sources = [m for m in stages if m.stage == "ingest" and m.info.get("role", "source") == "source"]
    snapshots = sorted({name for m in sources for name in snapshots_of(m)})
    raw = [file.path for m in sources for file in m.files]
    shards = [(f"{m.address}/{file.path}", file.bytes) for m in encoded for file in m.files if file.path.endswith(".bin")]
    return Lineage(stages, corpora, snapshots, raw, shards)


def snapshots_of(manifest: Manifest) -> list[str]:
    """Names of the snapshots that an ingest holds: CC-MAIN-2026-40, or enwiki-20261001 for every wiki."""
    dates: Mapping[str, str] = manifest.info.get("snapshots", {})
    return [f"{wiki}-{date}" for wiki, date in dates.items()] or [manifest.info["snapshot"]]


def _complete(store: Store, stages: Sequence[str]) -> list[Manifest]:
    return [m for stage in stages for address in store.addresses(stage) if (m := store.manifest(address)) is not None]


def _rows(store: Store, m: Manifest, prefix: str, ids: Collection[str], urls: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a stage's parts with one of these ids or addresses."""
    found = []
    for path in paths(store, m, prefix):
        with pq.ParquetFile(path) as part:
            columns = [name for name in WANTED if name in part.schema_arrow.names]
            for group in range(part.num_row_groups):
                keys = part.read_row_group(group, ["id", "url"])
                here = pc.or_(pc.is_in(keys["id"], pa.array(ids, pa.string())), pc.is_in(keys["url"], pa.array(urls, pa.string())))
                if pc.any(here).as_py():
                    found += part.read_row_group(group, columns).filter(here).to_pylist()
    return found


def _why(store: Store, m: Manifest, row: Mapping[str, Any], kept: bool) -> str:
    if m.stage == "dedup":
        return _duplicate(store, m, row["id"], kept) or ("" if kept else _reason(row))
    if not kept:
        return _reason(row)
    if m.stage == "filter" and row["signals"]:
        return f"{row['language']} {row['language_score']:.2f}, {row['words']:,} words; {_margin(m, row)}"
    return ""


def _reason(row: Mapping[str, Any]) -> str:
    return f"{row['reason']} {row['value']}".strip()


def _duplicate(store: Store, m: Manifest, id_: str, kept: bool) -> str:
    """The evidence of a removal, or how many were removed for this one."""
    evidence = [row for path in paths(store, m, "duplicates-") for row in _evidence(path, "kept_id" if kept else "id", id_)]
    if kept:
        return f"stands for {len(evidence)} that are near it or the same" if evidence else ""
    return "; ".join(f"{row['rule']} of {row['kept_id']}, similarity {row['similarity']:.3f}" for row in evidence)


def _evidence(path: Path, column: str, id_: str) -> list[dict[str, Any]]:
    return pq.read_table(path, filters=pc.field(column) == id_).to_pylist()


def _margin(m: Manifest, row: Mapping[str, Any]) -> str:
    """How many rules it was measured by, and the one that it came nearest to breaking, as a share of the greater of value and limit."""
    limits = tuple(sorted(m.made_of["config"].get("thresholds", {}).items()))
    measured = [
        (rule, row["signals"][rule.signal]) for rule in rules_of(row["language"], limits) if row["signals"][rule.signal] is not None
    ]
    near = []
    for rule, value in measured:
        limit, sign = (rule.most, "≤") if rule.most < inf else (rule.least, "≥")
        if limit:  # of what must not be there at all there is no nearly
            near.append((abs(value - limit) / max(abs(value), abs(limit)), f"{rule.reason} {value:.3g} {sign} {limit:g}"))
    return f"{len(measured)} rules hold" + (f", the nearest {min(near)[1]}" if near else "")


def _numbers(store: Store, m: Manifest, id_: str) -> list[tuple[str, int]]:
    """(shard, number in it) of a document."""
    found = []
    for file in m.files:
        if file.path.endswith(".documents.parquet"):
            ids = pq.read_table(store.path(m, file, verify=False), columns=["id"])["id"]
            number = pc.index(ids, id_).as_py()
            found += [(file.path.removesuffix(".documents.parquet"), number)] if number >= 0 else []
    return found


def _name(m: Manifest) -> str:
    return f"{m.info['name']} version {m.info['version']}" if m.stage == "register" else m.address


def _nearest(store: Store, outputs: Sequence[Manifest], urls: Collection[str], ids: Collection[str]) -> str:
    """What to say where nothing was found: the addresses most like those asked for."""
    asked = ", ".join([*urls, *ids])
    near: list[str] = []
    if urls:
        there: set[str] = set()
        for m in outputs:
            for prefix in ("documents-", "rejects-"):
                for path in paths(store, m, prefix):
                    there.update(pq.read_table(path, columns=["url"])["url"].to_pylist())
        near = [url for asked_for in urls for url in get_close_matches(asked_for, there - {"", None}, 3)]
    hint = f"Near it: {', '.join(near)}." if near else "`ingot show ADDRESS` prints documents with their addresses."
    return f"{asked} is in none of {len(outputs)} stage outputs of {store.url}. {hint}"
