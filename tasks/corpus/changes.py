"""What differs between two versions of a corpus: documents, words and tokens added and removed, what was rejected on the way, and what is surprising.

    found = compare(store, store.published("corpora", "news", "2"), store.published("corpora", "news", "3"))     plain data, of bounded size
    markdown(found)

Parts that both versions refer to are not read: what is in them stands in the index's census. A surprise is a simple statistic past its threshold, said in
a sentence with its numbers; the thresholds stand here. What came in is compared with what was there of the same sources.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import ConfigError
from tasks.corpus import census
from tasks.corpus.index import CENSUS
from tasks.corpus.manifest import Manifest, Publication, Store, ancestors

BY = ("source", "language", "domain")
TOP = 20
"""Rows kept of a dimension, those that changed most; the others together are one more."""
SIGMAS = 4.0
"""Least distance of two shares in standard errors (two-proportion z) for any surprise: chance alone passes it once in 16,000."""
SITE_SHARE, SITE_JUMP = 0.01, 3.0
"""A site is surprising that gives at least this share of what came in, and so many times its share before; or that lost half of such a share."""
MOVED = 0.1
"""A language is surprising whose share of what came in differs by so much from its share before."""
STAGE_MOVED, REASON_MOVED = 0.1, 0.05
"""A stage that rejects so much more or less of what came in than last time, and one reason of it."""
MOSTLY_OLD = 0.5
"""Share of what came to dedup above which it is surprising that so much is a duplicate of what is published."""
NONE_OF = 1_000
"""Documents of which it is surprising that none is a duplicate."""
STAGES = ("extract", "filter", "dedup", "decontaminate", "takedown")
_NOTHING = (0, 0)


def compare(store: Store, old: Publication, new: Publication) -> dict[str, Any]:
    """The differences as plain data. ConfigError where a version's index is not there or has no census."""
    segments = _segments(store, (old, new))
    sides = [{part: segments[part] for part in thing.parts} for thing in (old, new)]
    gone, come = (sorted(set(a) - set(b)) for a, b in (sides, sides[::-1]))
    before, after = (_sum(store, side.values()) for side in sides)
    lost, won = _sum(store, [sides[0][a] for a in gone]), _sum(store, [sides[1][a] for a in come])
    changed = 0
    if gone and come:
        stayed, changed = _common(store, [store.need(a) for a in gone], [store.need(a) for a in come])
        lost, won = census.minus(lost, stayed[0]), census.minus(won, stayed[1])
    books = _books(store, [store.need(a) for a in come], [store.need(a) for a in old.parts])
    last = _last(store, old, {source for source, _ in books})
    encoded = [tokens(store, thing.parts) for thing in (old, new)]
    found = {
        "from": old.address,
        "to": new.address,
        "documents": _four(before, lost, won, after, 0) | {"changed": changed},
        "words": _four(before, lost, won, after, 1),
        "tokens": dict(zip(("before", "after"), encoded, strict=True)),
        "by": {by: _rows(by, before, lost, won, after) for by in BY},
        "rejected": _rejected(books, last),
        "surprises": [*_sites(before, lost, won), *_languages(before, won), *_rates(books, last), *_duplicates(books)],
    }
    return json.loads(json.dumps(found))


def held(store: Store, thing: Publication) -> pa.Table:
    """The census of a version. ConfigError where its index has none."""
    return _sum(store, _segments(store, [thing]).values())


def _segments(store: Store, things: Sequence[Publication]) -> dict[str, Manifest]:
    """The index segment of every part of these versions, by the part's address."""
    indexes = [store.published("indexes", thing.name, thing.version) for thing in things]
    segments = [store.need(address) for index in indexes if index for address in index.parts]
    found = {segment.inputs["documents"]: segment for segment in segments if segment.parts(CENSUS)}
    for thing in things:
        for part in thing.parts:
            if part not in found:
                raise ConfigError(
                    f"indexes/{thing.name}/{thing.version} has no census of {part}: an earlier Ingot published it. Refresh or build {thing.name} again."
                )
    return found


def _sum(store: Store, segments: Iterable[Manifest]) -> pa.Table:
    return census.merge([pq.read_table(store.path(segment, segment.parts(CENSUS)[0])) for segment in segments])


def _common(store: Store, gone: Sequence[Manifest], come: Sequence[Manifest]) -> tuple[list[pa.Table], int]:
    """Censuses of the records that both sides' own parts hold, as either has them, and of how many the text differs. Memory: the ids of these parts."""

    def read(parts: Sequence[Manifest]) -> pa.Table:
        paths = [store.path(part, file) for part in parts for file in part.parts()]
        return pa.concat_tables([pq.read_table(path, columns=["id", "text_hash", *census.COLUMNS]) for path in paths])

    one, other = read(gone), read(come)
    one, other = (a.filter(pc.is_in(a["id"], b["id"].combine_chunks())).sort_by("id") for a, b in ((one, other), (other, one)))
    return [census.of(one), census.of(other)], int(pc.sum(pc.not_equal(one["text_hash"], other["text_hash"])).as_py() or 0)


def _four(before: pa.Table, lost: pa.Table, won: pa.Table, after: pa.Table, which: int) -> dict[str, int]:
    named = {"before": before, "removed": lost, "added": won, "after": after}
    return {name: sum(counts[which] for counts in census.totals(table, "source").values()) for name, table in named.items()}


def _rows(by: str, before: pa.Table, lost: pa.Table, won: pa.Table, after: pa.Table) -> list[dict[str, Any]]:
    """What changed most of one dimension, and one row for the others."""
    sides = {name: census.totals(table, by) for name, table in (("before", before), ("removed", lost), ("added", won), ("after", after))}
    moved = Counter(
        {
            value: sides["removed"].get(value, _NOTHING)[0] + sides["added"].get(value, _NOTHING)[0]
            for value in sides["after"] | sides["before"]
        }
    )
    order = sorted(moved, key=lambda value: (-moved[value], -sides["before"].get(value, _NOTHING)[0], value))
    groups = [(value, [value]) for value in order[:TOP]] + ([(f"{len(order) - TOP:,} more", order[TOP:])] if order[TOP:] else [])
    return [
        {"value": name}
        | {
            f"{side}{suffix}": sum(counts.get(value, _NOTHING)[which] for value in values)
            for side, counts in sides.items()
            for which, suffix in enumerate(("", "_words"))
        }
        for name, values in groups
    ]


def _books(store: Store, parts: Sequence[Manifest], known: Sequence[Manifest] = ()) -> dict[tuple[str, str], Counter[str]]:
    """By source and stage: records by reason, '' for what stays, of all stages that these parts came through and the known ones did not."""
    found: dict[tuple[str, str], Counter[str]] = {}
    passed = {manifest.address for manifest in ancestors(store, known)}
    for manifest in ancestors(store, parts):
        if manifest.stage not in STAGES or manifest.address in passed:
            continue
        for file in manifest.files:
            kind = file.path.partition("-")[0]
            if kind not in ("documents", "rejects"):
                continue
            table = pq.read_table(
                store.path(manifest, file, verify=False), columns=["source", "reason"] if kind == "rejects" else ["source"]
            )
            for row in table.group_by(table.column_names).aggregate([([], "count_all")]).to_pylist():
                found.setdefault((row["source"], manifest.stage), Counter())[row.get("reason", "")] += row["count_all"]
    return found


def _last(store: Store, old: Publication, sources: Collection[str]) -> dict[tuple[str, str], Counter[str]]:
    """The same books of the last part before, for each of these sources."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for address in reversed(old.parts):
        missing = set(sources) - {source for source, _ in found}
        if missing:
            found |= {key: books for key, books in _books(store, [store.need(address)]).items() if key[0] in missing}
    return found


def _rejected(books: Mapping[tuple[str, str], Counter[str]], last: Mapping[tuple[str, str], Counter[str]]) -> list[dict[str, Any]]:
    """Every reason with its count, its share of what came in, and the share last time (None where there was none of that source)."""
    return [
        {
            "source": source,
            "stage": stage,
            "reason": reason,
            "documents": count,
            "share": count / seen.total(),
            "last": last[source, stage][reason] / last[source, stage].total() if (source, stage) in last else None,
        }
        for (source, stage), seen in sorted(books.items(), key=lambda item: (item[0][0], STAGES.index(item[0][1])))
        for reason, count in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        if reason
    ]


def tokens(store: Store, parts: Sequence[str]) -> dict[str, Any] | None:
    """Tokens of a version by source and language, where it was encoded; the latest encoding, by whichever tokenizer."""
    made = [m for m in map(store.manifest, store.addresses("encode")) if m is not None]
    of = [m for m in made if [a for role, a in sorted(m.inputs.items()) if role.startswith("corpus-")] == list(parts)]
    if not of:
        return None
    made_last = max(of, key=lambda m: m.about["finished"])
    info = made_last.info
    return {"address": made_last.address, "all": sum(info["tokens"].values()), "tokenizer": info["tokenizer"]} | {
        by: info.get(f"tokens_by_{by}", {}) for by in ("source", "language")
    }


def _sites(before: pa.Table, lost: pa.Table, won: pa.Table) -> list[str]:
    sources = set(census.totals(won, "source"))
    there, come, gone = census.totals(before, "domain", sources), census.totals(won, "domain"), census.totals(lost, "domain")
    base, new = (sum(documents for documents, _ in side.values()) for side in (there, come))
    found = []
    for site, (count, _) in sorted(come.items(), key=lambda item: (-item[1][0], item[0])):
        old = there.get(site, _NOTHING)[0]
        share = old / base if base else 0.0
        if site and count / new >= max(SITE_SHARE, SITE_JUMP * share) and _sigmas(count, new, old, base) >= SIGMAS:
            found.append(f"{site} gives {count / new:.1%} of what came in ({count:,} documents); before it gave {share:.1%}.")
    whole = census.totals(before, "domain")
    total = sum(documents for documents, _ in whole.values())
    for site, (count, _) in sorted(gone.items(), key=lambda item: (-item[1][0], item[0])):
        old = whole[site][0]
        if site and old / total >= SITE_SHARE and count >= old / 2:
            found.append(f"{site} lost {count:,} of its {old:,} documents.")
    return _few(found, "sites")


def _languages(before: pa.Table, won: pa.Table) -> list[str]:
    sources = set(census.totals(won, "source"))
    there, come = census.totals(before, "language", sources), census.totals(won, "language")
    base, new = (sum(documents for documents, _ in side.values()) for side in (there, come))
    found = []
    for language in sorted(there.keys() | come.keys()) if base and new else ():
        now, then = come.get(language, _NOTHING)[0], there.get(language, _NOTHING)[0]
        if abs(now / new - then / base) >= MOVED and abs(_sigmas(now, new, then, base)) >= SIGMAS:
            found.append(
                f"{language or 'no language'} is {now / new:.1%} of what came in; before it was {then / base:.1%} of the same sources."
            )
    return _few(found, "languages")


def _rates(books: Mapping[tuple[str, str], Counter[str]], last: Mapping[tuple[str, str], Counter[str]]) -> list[str]:
    """Stages, and reasons, that reject another share than last time. Duplicates of what is published are left out: last time may have had less to meet."""
    found = []
    for (source, stage), seen in sorted(books.items()):
        then = last.get((source, stage), Counter())
        if not then.total():
            continue
        for reason, least in [
            ("", STAGE_MOVED),
            *((reason, REASON_MOVED) for reason in sorted((seen | then).keys() - {"", "duplicate_of_previous"})),
        ]:
            now, old = (
                books_[reason] if reason else books_.total() - books_[""] - books_["duplicate_of_previous"] for books_ in (seen, then)
            )
            a, b = now / seen.total(), old / then.total()
            if abs(a - b) >= least and abs(_sigmas(now, seen.total(), old, then.total())) >= SIGMAS:
                found.append(f"{stage} rejects {a:.1%} of {source}{f' for {reason}' if reason else ''}; last time it was {b:.1%}.")
    return _few(found, "rejection rates")


def _duplicates(books: Mapping[tuple[str, str], Counter[str]]) -> list[str]:
    found = []
    for (source, stage), seen in sorted(books.items()):
        if stage == "dedup":
            share = seen["duplicate_of_previous"] / seen.total()
            if share >= MOSTLY_OLD:
                found.append(f"{share:.1%} of what came in of {source} is published already.")
            if seen.total() >= NONE_OF and seen[""] == seen.total():
                found.append(f"Not one of {seen.total():,} documents of {source} is a duplicate.")
    return found


def _sigmas(a: int, of_a: int, b: int, of_b: int) -> float:
    """Distance of two shares in standard errors of their difference, were both samples of one thing."""
    if not of_a or not of_b:
        return 0.0
    pooled = (a + b) / (of_a + of_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of_a + 1 / of_b))
    return (a / of_a - b / of_b) / error if error else 0.0


def _few(found: list[str], what: str) -> list[str]:
    return found[:TOP] + ([f"{len(found) - TOP:,} more {what} are surprising."] if len(found) > TOP else [])


def markdown(found: Mapping[str, Any]) -> str:
    """The differences to read: surprises first."""
    lines = [f"# From {found['from']} to {found['to']}", "", *_section("Surprises", found["surprises"])]
    for head, rows in tables(found):
        lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * 1 + " ---: |" * (len(head) - 1)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _section(title: str, found: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *([f"- {one}" for one in found] or ["None."]), ""]


def tables(found: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """(head, rows) of every table there is to show: the whole, each dimension, why records were rejected."""
    sides = ("before", "added", "removed", "after")
    whole = [(name, *(f"{found[name][side]:,}" for side in sides)) for name in ("documents", "words")]
    encoded = found["tokens"]
    if any(encoded.values()):
        whole.append(("tokens", *(f"{encoded[side]['all']:,}" if encoded.get(side) else "" for side in sides)))
    made: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [(("", *sides), whole)]
    for by, rows in found["by"].items():
        cells = [
            (row["value"] or "(none)", *(f"{row[side]:,}" for side in sides), f"{row['added_words']:,}", f"{row['removed_words']:,}")
            for row in rows
        ]
        made.append(((by, *sides, "words added", "words removed"), cells))
    rejected: list[tuple[str, ...]] = [
        (
            f"{row['source']} {row['stage']} {row['reason']}",
            f"{row['documents']:,}",
            f"{row['share']:.1%}",
            "" if row["last"] is None else f"{row['last']:.1%}",
        )
        for row in found["rejected"]
    ]
    if rejected:
        made.append((("rejected of what came in", "documents", "share", "last time"), rejected))
    return made
