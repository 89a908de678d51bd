"""Takedown: documents that must go from a corpus and must not come back with a refresh.

    asked = ask(store, "news", Tombstones(urls=("https://example.org/a",)), "letter of 3 May", parts, "corpora/news/1")
    made = run(store, "news", tombstones(store, "news"), {"documents": manifest}) -> manifest without them, or the same one where it holds none

`takedowns/<corpus>.json` holds a receipt a takedown, oldest first; what they name together are the corpus's tombstones: record ids, addresses, domains
(with their subdomains), and the text_hash of every document that was found, so that the same text does not come back from elsewhere. A near copy at
an address that nobody named is another document. Older versions and the stages before still hold the text: the receipt lists them.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.config import fingerprint
from tasks.corpus.document import PartWriter, read_rows
from tasks.corpus.engine import books
from tasks.corpus.manifest import Manifest, Progress, Publication, Result, Stage, Store, Work, ancestors, locked, run_stage

STAGE = Stage("takedown", 1)
SUFFIX = "-takedown-"


@dataclass(frozen=True)
class Tombstones:
    """What must not be in a corpus, each sorted."""

    ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(*(tuple(sorted({*a, *b})) for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def reason(self, row: Mapping[str, Any]) -> str:
        """Why a document must go: takedown_id, takedown_url, takedown_domain, takedown_text; '' where it may stay."""
        parts = row["domain"].split(".")
        if row["id"] in self.ids:
            return "takedown_id"
        if row["url"] and row["url"] in self.urls:
            return "takedown_url"
        if row["domain"] and any(".".join(parts[at:]) in self.domains for at in range(len(parts))):
            return "takedown_domain"
        return "takedown_text" if row["text_hash"] in self.hashes else ""


def receipts(store: Store, corpus: str) -> list[dict[str, Any]]:
    """All takedowns of a corpus, oldest first."""
    return list((store.read_json(f"takedowns/{corpus}.json") or {"takedowns": []})["takedowns"])


def tombstones(store: Store, corpus: str) -> Tombstones:
    """Everything that the takedowns of a corpus name."""
    whole = Tombstones()
    for receipt in receipts(store, corpus):
        asked = {name: tuple(values) for name, values in receipt["asked"].items()}
        whole |= Tombstones(**asked) | Tombstones(hashes=tuple(receipt["hashes"]))
    return whole


def ask(store: Store, corpus: str, asked: Tombstones, why: str, parts: Sequence[Manifest], before: str) -> dict[str, Any]:
    """Write down what must go, with what of it `parts`, those of the version `before`, hold now; from here on no refresh brings it back. The same asked
    again is the same receipt."""
    found = matches(store, asked, parts)
    named = dataclasses.asdict(asked)
    hashes = sorted({row["text_hash"] for row in found})
    receipt = {
        "number": fingerprint(named)[:10],
        "asked": named,
        "why": why,
        "time": time.time(),
        "before": before,
        "documents": found,
        "hashes": hashes,
    }
    with locked(store, f"takedowns/{corpus}"):
        known = receipts(store, corpus)
        if all(one["number"] != receipt["number"] for one in known):
            store.write_json(f"takedowns/{corpus}.json", {"takedowns": [*known, receipt]})
    return next(one for one in receipts(store, corpus) if one["number"] == receipt["number"])


def close(store: Store, corpus: str, receipt: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a receipt what was done."""
    done = {**receipt, **more}
    with locked(store, f"takedowns/{corpus}"):
        known = [done if one["number"] == receipt["number"] else one for one in receipts(store, corpus)]
        store.write_json(f"takedowns/{corpus}.json", {"takedowns": known})
    return done


def matches(store: Store, asked: Tombstones, parts: Sequence[Manifest]) -> list[dict[str, Any]]:
    """id, url, text_hash, source, address and reason of the documents of these outputs that must go."""
    found = []
    for manifest in parts:
        for row in read_rows([store.path(manifest, file) for file in manifest.parts()], _COLUMNS):
            if reason := asked.reason(row):
                found.append({name: row[name] for name in _FOUND} | {"reason": reason, "address": manifest.address})
    return found


def run(
    store: Store,
    recipe: str,
    asked: Tombstones,
    inputs: Mapping[str, Manifest],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """The input "documents" without what must go: parts that hold none of it are linked, the others written anew. Itself, where all may stay."""
    source = inputs["documents"]
    if asked == Tombstones() or not matches(store, asked, [source]):
        return source

    def body(work: Work) -> Result:
        summaries, done = [], 0
        for rank, file in enumerate(source.parts()):
            path = store.path(source, file)
            if not any(asked.reason(row) for row in read_rows([path], _COLUMNS)):
                name = f"documents-{rank:05d}-000.parquet"
                _link(path, work.dir / name)
                rows = file.rows or 0
                summaries.append({"files": [{"path": name, "rows": rows}], "seen": rows, "kept": rows, "rejected": {}, "info": {}})
                continue
            with PartWriter(work.dir, rank, STAGE.name) as out:
                for row in read_rows([path]):
                    reason = asked.reason(row)
                    if reason:
                        out.reject(row | {"text": None}, reason)  # a takedown keeps no sample of the text
                    else:
                        out.keep(row)
            summaries.append(out.summary | {"info": {}})
            done += file.rows or 0
            work.progress(done, source.kept, "documents")
        return books(summaries)

    return run_stage(store, STAGE, recipe, asked, inputs, body, progress, rebuild)


def version(store: Store, corpus: str, base: str, parts: Sequence[Manifest]) -> str:
    """Name of the version that has these parts: the one that is published with them, else the next of base-takedown-N."""
    content = [part.content for part in parts]
    line = [thing for thing in store.versions("corpora", corpus) if thing.version.partition(SUFFIX)[0] == base.partition(SUFFIX)[0]]
    held = next((thing.version for thing in line if thing.made_of["parts"] == content), None)
    taken = [int(thing.version.partition(SUFFIX)[2] or 0) for thing in line]
    return held or f"{base.partition(SUFFIX)[0]}{SUFFIX}{max(taken, default=0) + 1}"


def dependents(store: Store, addresses: Sequence[str]) -> list[Manifest]:
    """All complete stage outputs that were made of these, at however many removes, sorted by address."""
    everything = [manifest for manifest in map(store.manifest, store.addresses()) if manifest is not None]
    found: dict[str, Manifest] = {}
    reached = set(addresses)
    while new := [m for m in everything if m.address not in reached and reached & set(m.inputs.values())]:
        found |= {m.address: m for m in new}
        reached |= found.keys()
    return [found[address] for address in sorted(found)]


def holders(store: Store, parts: Sequence[Manifest], keep: Publication, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Addresses that still hold the text of `found` (see matches): what these outputs were made of, themselves, and published versions that refer to them,
    but for `keep` and for raw files of other sources."""
    sources = {document["source"] for document in found}
    named = [
        t.address
        for t in store.publications()
        if t.kind == "corpora" and t.address != keep.address and set(t.parts) & {p.address for p in parts}
    ]
    return [
        *named,
        *(
            m.address
            for m in ancestors(store, parts)
            if m.stage != "ingest" or (m.info["role"] == "source" and m.info["source"] in sources)
        ),
    ]


_FOUND = ("id", "url", "text_hash", "source")
_COLUMNS = [*_FOUND, "domain"]


def _link(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """A second name of the same file, or a copy where the file system has none."""
    if os.path.exists(target):
        os.remove(target)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
