"""The report of a corpus: one HTML page that needs nothing else, for people who want to see what is in it before they train on it.

    page(store, "corpora/demo/v1")  -> "<!doctype html>…"
    write(store, "corpora/demo/v1") -> reports/corpora-demo-v1.html in the store's home

From records to tokens stage by stage, what the version before had not, why records were set aside with samples of their text, the signals on which
that was decided with their thresholds, how long documents are, their languages, sites and dates, who was removed for whom. Counts come from the index's
census; stages, samples and pairs are of the parts that this version adds to the one before. Memory grows with sites and clusters, not with texts.
"""

import difflib
import html
import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.corpus import census, changes
from tasks.corpus.document import SAMPLED_CHARS, read_batches
from tasks.corpus.manifest import Manifest, Publication, Store, ancestors
from tasks.corpus.quality import Rule, rules_of

SAMPLES = 3
"""Texts shown of each reason."""
PAIRS = 6
"""Duplicates shown beside what they were removed for."""
TOP = 20
"""Rows of a ranking."""
SHOWN = 400
"""Characters shown of a text."""
MEASURED = 20_000
"""Documents of a filter's output whose signals are drawn, in whole row groups picked by chance."""
DRAWN = 3
"""Languages whose signals are drawn, those with most documents."""
BINS = 28
ORDER = ("extract", "filter", "dedup", "decontaminate", "takedown")
"""Stages that keep or set aside documents, in the order of the chain."""


def write(store: Store, address: str, seed: int = 0, to: Path | None = None) -> Path:
    """Write the page of an address; returns where."""
    target = to or place(store, address)
    text = page(store, address, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def place(store: Store, address: str) -> Path:
    """Where the page of an address lies unless it is told otherwise."""
    return store.home / "reports" / f"{address.replace('/', '-')}.html"


def page(store: Store, address: str, seed: int = 0) -> str:
    """The report of corpora/NAME/VERSION, or of one stage output of documents. NotFoundError where it is not there."""
    thing = store.version(address) if address.startswith("corpora/") else None
    parts = parts_of(store, address)
    before = store.previous(thing) if thing else None
    chain = family(store, [part for part in parts if not before or part.address not in before.parts])
    counts = changes.held(store, thing) if thing else census.count(paths(store, parts[0], "documents-"))
    tokens = changes.tokens(store, [part.address for part in parts])
    chance = random.Random(seed)
    body = [
        f"<h1>{_(address)}</h1>",
        _facts(counts, tokens, thing),
        *(_since(store, before, thing) if before and thing else ()),
        "<h2>From records to tokens</h2>",
        funnel(chain, tokens),
        "<h2>Why records were set aside</h2>",
        reasons(store, chain, chance),
        "<h2>What the rules measured</h2>",
        signals(store, chain, chance),
        "<h2>What is in it</h2>",
        '<div class="grid">',
        *(chart(title, rows) for title, rows in charts(counts)),
        "</div>",
        "<h2>Duplicates</h2>",
        duplicates(store, chain, chance),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_(address)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<main>{"".join(body)}</main></html>\n'


def parts_of(store: Store, address: str) -> list[Manifest]:
    """The stage outputs that corpora/NAME/VERSION consists of, or the one of this address. NotFoundError where it is not there."""
    thing = store.version(address) if address.startswith("corpora/") else None
    return [store.need(part) for part in thing.parts] if thing else [store.need(address)]


def family(store: Store, parts: Sequence[Manifest]) -> list[Manifest]:
    """The outputs that these parts were made of, themselves included, by stage in the order of the chain."""
    return sorted((m for m in ancestors(store, parts) if m.stage in ORDER), key=lambda m: (ORDER.index(m.stage), m.address))


def paths(store: Store, manifest: Manifest, prefix: str) -> list[Path]:
    """Unverified: a look at a few row groups must not read every file whole."""
    return [store.path(manifest, file, verify=False) for file in manifest.parts(prefix)]


def funnel(chain: Sequence[Manifest], tokens: Mapping[str, Any] | None) -> str:
    """A bar a stage output: what came in, and the share of all records that stays; and the tokens, where the corpus was encoded."""
    top = max((m.seen for m in chain), default=0) or 1
    rows = []
    for m in chain:
        kept = f'<div class="bar"><i style="width:{100 * m.seen / top:.2f}%"></i><b style="width:{100 * m.kept / top:.2f}%"></b></div>'
        rows.append((f"{_(m.stage)}<small>{_(m.address)}</small>", f"{m.seen:,}", f"{m.kept:,}", f"{m.seen - m.kept:,}", kept))
    if tokens:
        by = ", ".join(f"{_(language)} {count:,}" for language, count in sorted(tokens["language"].items(), key=lambda item: -item[1])[:4])
        rows.append((f"tokens<small>{_(tokens['address'])}</small>", "", f"{tokens['all']:,}", "", f"<small>{by}</small>"))
    return _table(("stage", "in", "out", "set aside", ""), rows, "wide")


def reasons(store: Store, chain: Sequence[Manifest], chance: random.Random) -> str:
    """Every reason with its count, its share of what came in, and a few texts; addresses alone where no text was kept."""
    parts = []
    for m in chain:
        texts: dict[str, list[dict[str, Any]]] = {}
        for row in _with_text(paths(store, m, "rejects-"), ["reason", "value", "url", "origin_file", "text"]):
            texts.setdefault(row["reason"], []).append(row)
        bare = m.rejected.keys() - texts.keys() if m.stage != "takedown" else ()  # what was taken down is named in its receipt only
        for row in _first(paths(store, m, "rejects-"), ["reason", "value", "url", "origin_file"], bare):
            texts.setdefault(row["reason"], []).append(row | {"text": ""})
        for reason, count in sorted(m.rejected.items(), key=lambda item: (-item[1], item[0])):
            shown = "".join(
                f"<blockquote><cite>{_(row['url'] or row['origin_file'])} · {_(row['value'])}</cite>{_(row['text'][:SHOWN])}</blockquote>"
                for row in chance.sample(texts.get(reason, []), min(SAMPLES, len(texts.get(reason, []))))
            )
            share = f"{count / max(1, m.seen):.1%}"
            parts.append(
                f"<details><summary><b>{_(reason)}</b> {count:,} <small>{_(m.stage)}, {share} of what came in</small></summary>{shown}</details>"
            )
    return "".join(parts) or "<p>None.</p>"


def signals(store: Store, chain: Sequence[Manifest], chance: random.Random) -> str:
    """A histogram of every signal with its thresholds, a language at a time: documents that stayed, and on top those that some rule rejected."""
    found: dict[str, dict[bool, list[pa.StructArray]]] = {}
    thresholds: dict[str, float] = {}
    for m in chain:
        if m.stage == "filter":
            thresholds |= m.made_of["config"]["thresholds"]
            for kept, prefix in ((True, "documents-"), (False, "rejects-")):
                for table in _some(paths(store, m, prefix), ["language", "signals"], min(1.0, MEASURED / max(1, m.seen)), chance):
                    measured = table.filter(pc.is_valid(table["signals"]))
                    for language in pc.unique(measured["language"]).to_pylist():
                        rows = measured.filter(pc.equal(measured["language"], language))["signals"].combine_chunks()
                        found.setdefault(language, {True: [], False: []})[kept].append(rows)
    order = sorted(found, key=lambda language: (-sum(map(len, found[language][True] + found[language][False])), language))[:DRAWN]
    parts = []
    for language in order:
        by_signal: dict[str, list[Rule]] = {}
        for rule in rules_of(language, tuple(sorted(thresholds.items()))):
            by_signal.setdefault(rule.signal, []).append(rule)
        drawn = [
            histogram(name, rules, *(_values(found[language][kept], name) for kept in (True, False))) for name, rules in by_signal.items()
        ]
        sizes = [sum(map(len, found[language][kept])) for kept in (True, False)]
        parts.append(
            f'<details open><summary><b>{_(language)}</b> {sizes[0]:,} <i class="key kept"></i>stayed, {sizes[1]:,} <i class="key lost"></i>rejected by a rule; '
            f'<i class="key mark"></i>threshold</summary><div class="signals">{"".join(drawn)}</div></details>'
        )
    return "".join(parts) or "<p>No signals were measured.</p>"


def histogram(name: str, rules: Sequence[Rule], stayed: np.ndarray, rejected: np.ndarray) -> str:
    """One signal in SVG. Where values span more than three powers of ten, or counts go into the hundreds, the scale is of their logarithm."""
    both = np.concatenate([stayed, rejected])
    if not len(both):
        return ""
    limits = [limit for rule in rules for limit in (rule.least, rule.most) if math.isfinite(limit)]
    high = float(np.quantile(both, 0.995))
    limits = [limit for limit in limits if limit <= max(10 * high, 1)]  # one that no document comes near stands in the caption only
    top = 1.05 * max(high, *limits, 0.0) or 1.0
    scale = np.log1p if top > 100 else np.asarray
    edges = np.linspace(0, scale(top), BINS + 1)
    counts = [np.histogram(scale(np.clip(values, 0, top)), edges)[0] for values in (stayed, rejected)]
    both_counts = counts[0] + counts[1]
    height = 38 * np.sqrt(both_counts / max(1, both_counts.max()))  # a square root, so that few are seen beside many
    bars, floor = [], np.full(BINS, 40.0)
    for kind, count in zip(("kept", "lost"), counts, strict=True):
        rise = height * count / np.maximum(1, both_counts)
        path = "".join(f"M{5 * n + 0.5} {floor[n]:.1f}v-{rise[n]:.1f}h4v{rise[n]:.1f}z" for n in np.flatnonzero(count).tolist())
        bars.append(f'<path class="{kind}" d="{path}"/>')
        floor = floor - rise
    marks = "".join(f'<path class="mark" d="M{140 * float(scale(limit) / scale(top)):.1f} 0v40"/>' for limit in limits)
    told = ", ".join(f"{'≥' if math.isfinite(r.least) else '≤'} {r.least if math.isfinite(r.least) else r.most:,.6g}" for r in rules)
    outside = int(sum(((values < rule.least) | (values > rule.most)).sum() for rule in rules for values in (both,)))
    return (
        f"<figure><figcaption>{_(name)}<small>{_(told)} · {outside:,} outside</small></figcaption>"
        f'<svg viewBox="0 0 140 41" preserveAspectRatio="none">{"".join(bars)}{marks}</svg><small class="ends"><span>0</span><span>{top:,.{0 if top >= 100 else 3}{"f" if top >= 100 else "g"}}</span></small></figure>'
    )


def duplicates(store: Store, chain: Sequence[Manifest], chance: random.Random) -> str:
    """How large clusters are, and pairs side by side from where they first differ."""
    stages = [m for m in chain if m.stage == "dedup"]
    evidence = [pq.read_table(path) for m in stages for path in paths(store, m, "duplicates-")]
    if not evidence:
        return "<p>None.</p>"
    pairs = pa.concat_tables(evidence)
    removed = {row["id"]: row for m in stages for row in _with_text(paths(store, m, "rejects-"), ["id", "url", "origin_file", "text"])}
    shown = pairs.filter(pc.is_in(pairs["id"], pa.array(list(removed), pa.string()))).to_pylist()
    near = [pair for pair in shown if pair["rule"] == "near"] or shown
    chosen = sorted(chance.sample(near, min(PAIRS, len(near))), key=lambda pair: -pair["similarity"])
    keepers = _rows(store, stages, {pair["kept_id"] for pair in chosen})
    parts = []
    for pair in chosen:
        gone, stays = removed[pair["id"]], keepers.get(pair["kept_id"])
        texts = _differing(stays["text"][:SAMPLED_CHARS] if stays else "", gone["text"])
        sides = "".join(
            f"<blockquote><cite>{label} · {_(row['url'] or row['origin_file'])}</cite>{text}</blockquote>"
            for label, row, text in (("stays", stays, texts[0]), ("removed", gone, texts[1]))
            if row
        )
        parts.append(f'<h3>{_(pair["rule"])}, similarity {pair["similarity"]:.3f}</h3><div class="pair">{sides}</div>')
    sizes = Counter(count.as_py() + 1 for count in pc.value_counts(pairs["kept_id"]).field("counts"))
    return chart("Clusters", [(f"{size:,} documents", n) for size, n in sorted(sizes.items())]) + "".join(parts)


def charts(counts: pa.Table) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """(title, rows) of what a census holds."""
    length = {int(value): documents for value, (documents, _) in census.totals(counts, "length").items()}
    yield "Words a document", [(f"{2**power:,}–{2 ** (power + 1) - 1:,}", n) for power, n in sorted(length.items())]
    for name, title in _TITLES.items():
        rows = ranked(Counter({value: documents for value, (documents, _) in census.totals(counts, name).items() if value}), name)
        if rows:
            yield title, rows


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


def _facts(counts: pa.Table, tokens: Mapping[str, Any] | None, thing: Publication | None) -> str:
    by_source = census.totals(counts, "source").values()
    listed = {"documents": f"{sum(n for n, _ in by_source):,}", "words": f"{sum(n for _, n in by_source):,}"}
    listed |= {"tokens": f"{tokens['all']:,}"} if tokens else {}
    listed |= {"sites": f"{sum(1 for site in census.totals(counts, 'domain') if site):,}"}
    listed |= {"snapshots": ", ".join(thing.info.get("snapshots", []))} if thing else {}
    return "<dl>" + "".join(f"<div><dt>{_(name)}</dt><dd>{_(value)}</dd></div>" for name, value in listed.items()) + "</dl>"


def _since(store: Store, before: Publication, thing: Publication) -> list[str]:
    """What differs from the version before."""
    found = changes.compare(store, before, thing)
    said = "".join(f"<li>{_(surprise)}</li>" for surprise in found["surprises"])
    shown = [
        f"<details{'' if number else ' open'}><summary><b>{_(head[0] or 'in all')}</b></summary>{_table(head, [[*map(_, row)] for row in rows], 'wide plain')}</details>"
        for number, (head, rows) in enumerate(changes.tables(found))
    ]
    return [f"<h2>Since {_(before.address)}</h2>", f'<ul class="surprises">{said}</ul>' if said else "<p>Nothing surprising.</p>", *shown]


def _with_text(files: Sequence[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rejects whose text was kept."""
    for batch in read_batches(files, columns):
        yield from batch.filter(pc.greater(pc.fill_null(pc.binary_length(batch["text"]), 0), 0)).to_pylist()


def _first(files: Sequence[Path], columns: list[str], wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """The first rejects of each of these reasons in every file."""
    for path in files:
        for batch in read_batches([path], columns):
            for reason in wanted:
                yield from batch.filter(pc.equal(batch["reason"], reason)).slice(0, SAMPLES).to_pylist()
            break


def _some(files: Sequence[Path], columns: list[str], share: float, chance: random.Random) -> Iterator[pa.Table]:
    """Row groups picked with a chance."""
    for path in files:
        with pq.ParquetFile(path) as part:
            for group in range(part.num_row_groups):
                if chance.random() < share:
                    yield part.read_row_group(group, columns)


def _values(rows: Sequence[pa.StructArray], name: str) -> np.ndarray:
    """A signal's values, of those documents that have it."""
    found = [pc.struct_field(some, name).drop_null().to_numpy(zero_copy_only=False) for some in rows]
    return np.concatenate([np.empty(0), *found])


def _rows(store: Store, stages: Sequence[Manifest], wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Documents by id, from what dedup kept or from what it compared with; of those the ids are read until all are found."""
    found: dict[str, dict[str, Any]] = {}
    before = [store.need(m.inputs[role]) for m in stages for role in sorted(m.inputs) if role.startswith("previous-")]
    for manifest in [*stages, *before]:
        for path in paths(store, manifest, "documents-"):
            left = pa.array(sorted(wanted - found.keys()), pa.string())
            with pq.ParquetFile(path) as part:
                for group in range(part.num_row_groups if len(left) else 0):
                    if pc.any(pc.is_in(part.read_row_group(group, ["id"])["id"], left)).as_py():
                        table = part.read_row_group(group, ["id", "url", "origin_file", "text"])
                        found |= {row["id"]: row for row in table.filter(pc.is_in(table["id"], left)).to_pylist()}
    return found


def _differing(stays: str, removed: str) -> list[str]:
    """Both texts as HTML, from a little before their first difference, with what only one has marked."""
    same = next((n for n, (a, b) in enumerate(zip(stays, removed, strict=False)) if a != b), min(len(stays), len(removed)))
    start = max(0, same - SHOWN // 4) if same > SHOWN // 2 and stays != removed else 0
    sides = [_PIECE.findall(text[start : start + SHOWN]) for text in (stays, removed)]
    marked = [["…"] if start else [] for _ in sides]
    found = difflib.SequenceMatcher(None, sides[0], sides[1], autojunk=False).get_opcodes()
    for number, (kind, *places) in enumerate(found, 1):
        # what differs where one is cut off may go on alike
        cut = number == len(found) and (min(len(stays), len(removed)) > start + SHOWN or len(removed) >= SAMPLED_CHARS)
        for side, (first, last), out in zip(sides, (places[:2], places[2:]), marked, strict=True):
            text = _("".join(side[first:last]))
            out.append(text if kind == "equal" or cut or not text else f"<mark>{text}</mark>")
    return ["".join(out) for out in marked]


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{_(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    made = f'<table class="{kind}">{f"<tr>{top}</tr>" if top else ""}{lines}</table>'
    return f'<div class="scroll">{made}</div>' if kind else made


def _(text: Any) -> str:
    return html.escape(str(text))


_PIECE = re.compile(r"[^\W\u2e80-\uffef]+|.", re.S)
"""Words, and any other character: a Chinese one is a piece of its own."""
_TITLES = {"language": "Language", "script": "Chinese script", "source": "Source", "domain": "Site", "date": "Month of the record"}
_STYLE = """
:root{color-scheme:light dark;--ink:light-dark(#1c2126,#e8e6e3);--soft:light-dark(#5d6772,#9aa3ad);--line:light-dark(#dfe3e8,#333a41);
--paper:light-dark(#fff,#16191c);--kept:light-dark(#2f6f8f,#6fb3d2);--lost:light-dark(#dd9a6f,#b5764f);--mark:light-dark(#a32020,#ff8f8f);--note:light-dark(#fbe7a8,#5b4a12)}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{max-width:70rem;margin:auto;padding:2rem 1rem}h1{font-size:1.5rem;overflow-wrap:anywhere}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:.8rem 0 .3rem}small,cite,dt{color:var(--soft);font-size:.8rem;font-style:normal}td small{display:block;overflow-wrap:anywhere}
dl{display:flex;flex-wrap:wrap;gap:1rem 2rem}dd{margin:0;font-size:1.3rem;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}
td,th{padding:.15rem .6rem .15rem 0;text-align:left;font-variant-numeric:tabular-nums;vertical-align:top}th{color:var(--soft);font-weight:400}
td:not(:first-child,:last-child),th:not(:first-child,:last-child),.plain :is(td,th):last-child{text-align:right}td:first-child{overflow-wrap:anywhere}
table:not(.plain) td:last-child{width:45%;vertical-align:middle}.plain :is(td,th):not(:first-child){width:6.5rem}
.scroll{overflow-x:auto}.wide{min-width:34rem}.wide td:first-child{min-width:9rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(21rem,100%),1fr));gap:1.5rem}.grid table td:last-child{width:32%}.grid td{font-size:.9rem}
.bar{position:relative;height:.8rem}section{min-width:0}
.bar i,.bar b{position:absolute;inset:0 auto 0 0;border-radius:2px}.bar i{background:var(--lost)}.bar b{background:var(--kept)}
blockquote{margin:.4rem 0;padding:.5rem .8rem;border-left:3px solid var(--line);white-space:pre-wrap;overflow-wrap:anywhere;min-width:0}cite{display:block}
mark{background:var(--note);color:inherit;border-radius:2px}.surprises{border-left:3px solid var(--mark);margin:.8rem 0;padding:.3rem 0 .3rem 1.6rem}
.signals{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13rem,100%),1fr));gap:1rem 1.4rem;margin:.8rem 0}figure{margin:0;min-width:0}
figcaption{font-size:.85rem;overflow-wrap:anywhere}figcaption small,.ends{display:block}.ends{display:flex;justify-content:space-between;line-height:1.2}
svg{width:100%;height:3.2rem;display:block;border-bottom:1px solid var(--line)}svg .kept{fill:var(--kept)}svg .lost{fill:var(--lost)}
svg .mark{stroke:var(--mark);stroke-width:1.5;vector-effect:non-scaling-stroke;fill:none}.key{display:inline-block;width:.7rem;height:.7rem;margin:0 .3rem;border-radius:2px}
.key.kept{background:var(--kept)}.key.lost{background:var(--lost)}.key.mark{background:var(--mark);width:2px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}summary{cursor:pointer;padding:.2rem 0;overflow-wrap:anywhere}@media(max-width:40rem){.pair{grid-template-columns:1fr}}
"""
