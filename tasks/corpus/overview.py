"""The report of a corpus: one HTML page that needs nothing else, for people who want to see what is in it before they train on it.

    page(store, "corpora/demo/v1") -> "<!doctype html>…"

From records to documents stage by stage, why records were set aside with samples of their text, how long documents are, their languages, sites and
dates, who was removed for whom. One pass over the columns and one over the bounded samples; memory grows with sites and clusters, not with texts.
"""

import html
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.corpus.document import read_rows
from tasks.corpus.manifest import Manifest, Store, ancestors

SAMPLES = 3
"""Texts shown of each reason."""
PAIRS = 6
"""Duplicates shown beside what they were removed for."""
TOP = 20
"""Rows of a ranking."""
SHOWN = 400
"""Characters shown of a text."""
ORDER = ("extract", "filter", "dedup", "decontaminate", "takedown")


@dataclass
class Counts:
    """What one pass over the documents counts."""

    documents: int = 0
    words: int = 0
    length: Counter[int] = field(default_factory=Counter)
    """By power of two of the number of words."""
    by: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("source", "language", "script", "domain", "date")}
    )

    def add(self, row: Mapping[str, Any]) -> None:
        words = row["words"] or 0
        self.documents += 1
        self.words += words
        self.length[int(math.log2(words)) if words else 0] += 1
        for name, count in self.by.items():
            value = row[name][:7] if name == "date" else row[name]
            if value:
                count[value] += 1


def page(store: Store, address: str, seed: int = 0) -> str:
    """The report of corpora/NAME/VERSION, or of one stage output of documents. NotFoundError where it is not there."""
    if address.startswith("corpora/") and address.count("/") == 2:
        thing = store.version(address)
        parts, facts = [store.need(part) for part in thing.parts], thing.info
    else:
        parts, facts = [store.need(address)], {}
    chain = family(store, parts)
    counts = Counts()
    for part in parts:
        for row in read_rows(paths(store, part, "documents-"), ["words", *counts.by]):
            counts.add(row)
    chance = random.Random(seed)
    body = [
        f"<h1>{_(address)}</h1>",
        _facts(counts, facts),
        "<h2>From records to documents</h2>",
        funnel(chain),
        "<h2>Why records were set aside</h2>",
        reasons(store, chain, chance),
        "<h2>What is in it</h2>",
        '<div class="grid">',
        chart("Words a document", [(f"{2**power:,}–{2 ** (power + 1) - 1:,}", n) for power, n in sorted(counts.length.items())]),
        *(chart(title, ranked(counts.by[name], name)) for name, title in _TITLES.items() if counts.by[name]),
        "</div>",
        "<h2>Duplicates</h2>",
        duplicates(store, chain, chance),
    ]
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_(address)}</title><style>{_STYLE}</style><main>{"".join(body)}</main></html>\n'


def family(store: Store, parts: Sequence[Manifest]) -> list[Manifest]:
    """The outputs that these parts were made of, themselves included, by stage in the order of the chain."""
    return sorted((m for m in ancestors(store, parts) if m.stage in ORDER), key=lambda m: (ORDER.index(m.stage), m.address))


def paths(store: Store, manifest: Manifest, prefix: str) -> list[Any]:
    return [store.path(manifest, file) for file in manifest.parts(prefix)]


def funnel(chain: Sequence[Manifest]) -> str:
    """A bar a stage output: what came in, and the share of all records that stays."""
    top = max((m.seen for m in chain), default=0) or 1
    rows = []
    for m in chain:
        kept = f'<div class="bar"><i style="width:{100 * m.seen / top:.2f}%"></i><b style="width:{100 * m.kept / top:.2f}%"></b></div>'
        rows.append((f"{_(m.stage)}<small>{_(m.address)}</small>", f"{m.seen:,}", f"{m.kept:,}", f"{m.seen - m.kept:,}", kept))
    return _table(("stage", "in", "out", "set aside", ""), rows)


def reasons(store: Store, chain: Sequence[Manifest], chance: random.Random) -> str:
    """Every reason with its count, its share of what came in, and a few texts."""
    parts = []
    for m in chain:
        texts: dict[str, list[dict[str, Any]]] = {}
        for row in read_rows(paths(store, m, "rejects-"), ["reason", "value", "url", "origin_file", "text"]):
            if row["text"]:
                texts.setdefault(row["reason"], []).append(row)
        for reason, count in sorted(m.rejected.items(), key=lambda item: (-item[1], item[0])):
            shown = "".join(
                f"<blockquote><cite>{_(row['url'] or row['origin_file'])} · {_(row['value'])}</cite>{_(row['text'][:SHOWN])}</blockquote>"
                for row in chance.sample(texts.get(reason, []), min(SAMPLES, len(texts.get(reason, []))))
            )
            share = f"{count / max(1, m.seen):.1%}"
            parts.append(
                f"<details><summary><b>{_(reason)}</b> {count:,} <small>{_(m.stage)}, {share} of what came in</small></summary>{shown or '<p>No text was kept.</p>'}</details>"
            )
    return "".join(parts) or "<p>None.</p>"


def duplicates(store: Store, chain: Sequence[Manifest], chance: random.Random) -> str:
    """How large clusters are, and pairs side by side."""
    stages = [m for m in chain if m.stage == "dedup"]
    kept: Counter[str] = Counter()
    pairs: list[dict[str, Any]] = []
    for m in stages:
        for row in read_rows(paths(store, m, "duplicates-")):
            kept[row["kept_id"]] += 1
            pairs.append(row)
    if not pairs:
        return "<p>None.</p>"
    removed = {
        row["id"]: row
        for m in stages
        for row in read_rows(paths(store, m, "rejects-"), ["id", "url", "origin_file", "text"])
        if row["text"]
    }
    near = [pair for pair in pairs if pair["id"] in removed and pair["rule"] == "near"] or [pair for pair in pairs if pair["id"] in removed]
    chosen = chance.sample(near, min(PAIRS, len(near)))
    wanted = {pair["kept_id"] for pair in chosen}
    keepers = {
        row["id"]: row
        for m in stages
        for row in read_rows(paths(store, m, "documents-"), ["id", "url", "origin_file", "text"])
        if row["id"] in wanted
    }
    shown = []
    for pair in chosen:
        sides = "".join(
            f"<blockquote><cite>{label} · {_(row['url'] or row['origin_file'])}</cite>{_(row['text'][:SHOWN])}</blockquote>"
            for label, row in (("stays", keepers.get(pair["kept_id"])), ("removed", removed[pair["id"]]))
            if row
        )
        shown.append(f'<h3>{_(pair["rule"])}, similarity {pair["similarity"]:.3f}</h3><div class="pair">{sides}</div>')
    sizes = Counter(count + 1 for count in kept.values())
    return chart("Documents in a cluster", [(f"{size:,}", n) for size, n in sorted(sizes.items())]) + "".join(shown)


def ranked(count: Counter[str], name: str) -> list[tuple[str, int]]:
    """The most frequent values; dates in their own order."""
    if name == "date":
        return sorted(count.items())[-TOP:]
    top = sorted(count.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in top[TOP:])
    return top[:TOP] + ([(f"{len(top) - TOP:,} more", rest)] if rest else [])


def chart(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """Bars with their numbers."""
    top = max((n for _, n in rows), default=0) or 1
    lines = [(_(label), f"{n:,}", f'<div class="bar"><b style="width:{100 * n / top:.2f}%"></b></div>') for label, n in rows]
    return f"<section><h3>{_(title)}</h3>{_table((), lines)}</section>"


def _facts(counts: Counts, facts: Mapping[str, Any]) -> str:
    listed = {"documents": f"{counts.documents:,}", "words": f"{counts.words:,}", "sites": f"{len(counts.by['domain']):,}"}
    listed |= {name: ", ".join(value) if isinstance(value, list) else f"{value}" for name, value in facts.items() if name == "snapshots"}
    return "<dl>" + "".join(f"<div><dt>{_(name)}</dt><dd>{_(value)}</dd></div>" for name, value in listed.items()) + "</dl>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{_(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{lines}</table>"


def _(text: Any) -> str:
    return html.escape(str(text))


_TITLES = {"language": "Language", "script": "Chinese script", "source": "Source", "domain": "Site", "date": "Month of the record"}
_STYLE = """
:root{color-scheme:light dark;--ink:light-dark(#1c2126,#e8e6e3);--soft:light-dark(#6b7480,#9aa3ad);--line:light-dark(#dfe3e8,#333a41);
--paper:light-dark(#fff,#16191c);--kept:light-dark(#2f6f8f,#6fb3d2);--lost:light-dark(#e3c9b8,#5c4436)}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{max-width:70rem;margin:auto;padding:2rem 1rem}h1{font-size:1.5rem;overflow-wrap:anywhere}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:.8rem 0 .3rem}small,cite,dt{color:var(--soft);font-size:.8rem;font-style:normal}td small{display:block;overflow-wrap:anywhere}
dl{display:flex;flex-wrap:wrap;gap:2rem}dd{margin:0;font-size:1.3rem}table{border-collapse:collapse;width:100%}
td,th{padding:.15rem .6rem .15rem 0;text-align:left;font-variant-numeric:tabular-nums;vertical-align:top}td:not(:first-child,:last-child),th:not(:first-child,:last-child){text-align:right}td:last-child{width:45%;vertical-align:middle}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1.5rem}.bar{position:relative;height:.8rem}
.bar i,.bar b{position:absolute;inset:0 auto 0 0;border-radius:2px}.bar i{background:var(--lost)}.bar b{background:var(--kept)}
blockquote{margin:.4rem 0;padding:.5rem .8rem;border-left:3px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere}cite{display:block}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}summary{cursor:pointer;padding:.2rem 0}@media(max-width:40rem){.pair{grid-template-columns:1fr}}
"""
