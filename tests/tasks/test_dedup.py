"""Dedup against a brute-force oracle: what goes, for whom, and that nothing else matters."""

import dataclasses
import gzip
import random
from collections import Counter

import numpy as np
import pytest
from corpora import ENGINE, changed, document, output_of, parts_of, rows_of, run_inline, words
from deduping import CONFIG, evidence, in_order, run
from deduping import inline as inline
from hypothesis import given, settings
from hypothesis import strategies as st
from shingling import similarity as true_similarity

from model.config import from_dict, override
from model.errors import ConfigError, DamageError, RankError, RemovalError
from tasks.corpus import dedup, index, keepers
from tasks.corpus.dedup import DedupConfig

CHINESE = "他们在清晨登上塔顶擦拭灯室的玻璃然后记录海上的天气和风向这本日志至今还保存在城里的图书馆中供研究航海历史的人借阅"


def oracle(rows, previous=()):
    """id -> ids of the keepers it may go for, by comparing every document with every keeper."""
    kept, gone = list(in_order(previous)), {}
    for row in in_order(rows):
        alike = [k["id"] for k in kept if true_similarity(row["text"], k["text"]) >= CONFIG.threshold]
        if alike:
            gone[row["id"]] = alike
        else:
            kept.append(row)
    return gone


def planted(seed=0, families=60):
    """Documents of which many resemble one another to all degrees, over three sources and files."""
    chosen, rows = random.Random(seed), []
    for family in range(families):
        base = words(chosen.randrange(40, 300), seed=1000 * seed + family)
        for copy in range(chosen.randrange(1, 7)):
            edits = chosen.choice([0, 1, 1, 2, 3, 4, 8, 20])
            text = " ".join(changed(base, min(edits, len(base) // 10), seed=copy))
            source = chosen.choice(["commoncrawl", "wikipedia", "files", "elsewhere"])
            rows.append(document(text, 7 * family + copy, source, chosen.choice(["s1", "s2"]), chosen.choice(["a", "b"])))
    chosen.shuffle(rows)
    return rows


@pytest.mark.usefixtures("inline")
def test_removals_equal_the_oracles_and_every_one_is_verified_with_a_keeper_that_stays(store):
    rows = planted()
    manifest = run(store, rows)
    found, expected = evidence(store, manifest), oracle(rows)
    text = {row["id"]: row["text"] for row in rows}
    kept = {row["id"] for row in rows_of(store, manifest)}
    assert len(expected) > 40 and len(kept) > 40
    assert len(found.keys() & expected.keys()) >= 0.99 * len(expected)
    assert kept | found.keys() == text.keys() and not kept & found.keys()
    for gone, (keeper, similarity, rule) in found.items():
        assert keeper in kept
        assert similarity == true_similarity(text[gone], text[keeper]) >= CONFIG.threshold
        assert rule == ("exact" if text[gone] == text[keeper] else "near")
    assert {gone: keeper in expected[gone] for gone, (keeper, _, _) in found.items() if gone in expected} == dict.fromkeys(
        found.keys() & expected.keys(), True
    )
    assert manifest.seen == len(rows) and manifest.kept + sum(manifest.rejected.values()) == manifest.seen
    assert manifest.info["untried"] == 0


@pytest.mark.usefixtures("inline")
def test_the_order_of_inputs_and_the_number_of_parts_change_no_decision(store):
    rows = planted(seed=1, families=15)
    first = run(store, rows)
    turned = run(store, rows[::-1], parts=5)
    assert first.address != turned.address
    assert evidence(store, first) == evidence(store, turned)
    assert {r["id"] for r in rows_of(store, first)} == {r["id"] for r in rows_of(store, turned)}


def test_worker_processes_give_the_same_bytes_as_one_process_and_a_second_run_is_skipped(store, tmp_path, monkeypatch):
    from tasks.corpus.manifest import Store

    rows = planted(seed=2, families=10)
    at_once = parts_of(store, run(store, rows))
    assert run(store, rows).skipped
    monkeypatch.setattr(dedup, "HELD", 0)
    other = Store(tmp_path / "other")
    assert at_once == parts_of(other, run(other, rows))


@pytest.mark.parametrize("dies_in", [1, 2, 3])
def test_a_run_that_died_in_any_pass_is_taken_up_with_the_same_bytes(store, tmp_path, monkeypatch, dies_in):
    from tasks.corpus.manifest import Store

    rows = planted(seed=2, families=6)
    monkeypatch.setattr(dedup, "HELD", 0)
    monkeypatch.setattr(dedup, "run_ranks", run_inline)
    monkeypatch.setattr(index, "run_ranks", run_inline)
    whole = parts_of(other := Store(tmp_path / "other"), run(other, rows))
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == dies_in:
            run_inline(*arguments[:3], arguments[3][:1], arguments[4])
            raise RankError("killed")
        return run_inline(*arguments)

    monkeypatch.setattr(dedup, "run_ranks", dying)
    with pytest.raises(RankError):
        run(store, rows)
    assert parts_of(store, run(store, rows)) == whole


@pytest.mark.usefixtures("inline")
def test_a_chain_removes_the_middle_and_keeps_the_end(store):
    base = words(120, seed=5)
    a, b = base, [*base[8:], *words(8, seed=6)]
    c = [*b[8:], *words(8, seed=7)]
    rows = [document(" ".join(text), place) for place, text in enumerate((a, b, c))]
    texts = [row["text"] for row in rows]
    assert true_similarity(texts[0], texts[1]) >= 0.8 <= true_similarity(texts[1], texts[2])
    assert true_similarity(texts[0], texts[2]) < 0.8
    manifest = run(store, rows, parts=1)
    assert [r["id"] for r in rows_of(store, manifest)] == [rows[0]["id"], rows[2]["id"]]
    assert evidence(store, manifest)[rows[1]["id"]][0] == rows[0]["id"]


@pytest.mark.usefixtures("inline")
def test_one_who_is_unlike_the_first_keeper_goes_for_the_next(store):
    base = words(120, seed=5)
    a, b = base, [*base[20:], *words(20, seed=6)]
    c = [*b[3:], *words(3, seed=7)]
    rows = [document(" ".join(text), place) for place, text in enumerate((a, b, c))]
    assert true_similarity(rows[0]["text"], rows[2]["text"]) < 0.8 <= true_similarity(rows[1]["text"], rows[2]["text"])
    assert evidence(store, run(store, rows, parts=1))[rows[2]["id"]][0] == rows[1]["id"]


@pytest.mark.usefixtures("inline")
def test_copies_of_a_text_that_went_go_for_the_same_keeper_at_the_same_similarity(store):
    base = words(200, seed=3)
    near = " ".join(changed(base, 2, seed=1))
    rows = [document(" ".join(base), 0), document(near, 1), document(near.upper(), 2)]
    manifest = run(store, rows, parts=1)
    found = evidence(store, manifest)
    assert found[rows[1]["id"]] == found[rows[2]["id"]] == (rows[0]["id"], true_similarity(near, rows[0]["text"]), "near")
    assert manifest.rejected == {"near_duplicate": 2}


@pytest.mark.usefixtures("inline")
def test_published_documents_stay_and_are_never_in_the_output(store):
    base, other = words(150, seed=1), words(150, seed=2)
    old = document(" ".join(base), 0, "commoncrawl", "CC-MAIN-2026-40")
    again = document(" ".join(base), 0, "commoncrawl", "CC-MAIN-2026-40")
    copy = document(" ".join(base).upper(), 1, "wikipedia")
    near = document(" ".join(changed(base, 2, seed=9)), 2, "wikipedia")
    new, twin = document(" ".join(other), 3), document(" ".join(other), 4)
    manifest = run(store, [again, copy, near, new, twin], previous=[[old], [document("something else entirely, a short text", 9)]])
    assert [r["id"] for r in rows_of(store, manifest)] == [new["id"]]
    assert manifest.rejected == {"duplicate_of_previous": 3, "exact_duplicate": 1}
    assert {kept for kept, _, _ in evidence(store, manifest).values()} == {old["id"], new["id"]}
    assert manifest.seen == 5


@pytest.mark.usefixtures("inline")
def test_the_better_source_stays(store):
    text = " ".join(words(80, seed=4))
    rows = [document(text, 1, source) for source in ("elsewhere", "commoncrawl", "files", "wikipedia")]
    [kept] = rows_of(store, run(store, rows, parts=2))
    assert kept["source"] == "wikipedia"
    files_first = dataclasses.replace(CONFIG, source_order=("files",))
    [kept] = rows_of(store, run(store, rows, parts=2, config=files_first))
    assert kept["source"] == "files"


@pytest.mark.usefixtures("inline")
def test_chinese_near_duplicates_go_whatever_their_script_and_signs(store):
    from opencc import OpenCC

    text = "，".join([CHINESE, CHINESE[::-1], CHINESE[10:] + CHINESE[:10]])
    rows = [
        document(text, 0), document(OpenCC("s2t").convert(text), 1), document(text.replace("，", "。\n"), 2),
        document(text.replace("清晨", "傍晚"), 3), document(CHINESE[25:] + CHINESE[5::-1] * 3, 4),
    ]  # fmt: skip
    manifest = run(store, rows, parts=1)
    assert [r["id"] for r in rows_of(store, manifest)] == [rows[0]["id"], rows[4]["id"]]


@pytest.mark.usefixtures("inline")
def test_short_texts_are_duplicates_only_of_their_like(store):
    rows = [
        document(text, place)
        for place, text in enumerate(["three short words", "Three  short\nwords", "three other words", "茶", "茶 ", ""])
    ]
    manifest = run(store, rows, parts=1)
    assert [r["text"] for r in rows_of(store, manifest)] == ["three short words", "three other words", "茶", ""]


@pytest.mark.usefixtures("inline")
def test_a_bucket_over_its_limit_is_counted(store):
    """A band key of one row: texts that share half their shingles share many keys and are no duplicates."""
    loose = dataclasses.replace(CONFIG, bands=64, rows=1, bucket_limit=1)
    common = words(60, seed=0)
    rows = [document(" ".join([*common, *words(60, seed=100 + place)]), place) for place in range(6)]
    limited = run(store, rows, config=loose)
    assert limited.kept == 6 and limited.info["untried"] > 0
    free = run(store, rows, config=dataclasses.replace(loose, bucket_limit=10))
    assert free.info["untried"] == 0 and free.info["comparisons"] > limited.info["comparisons"]


@pytest.mark.usefixtures("inline")
def test_no_document_and_empty_parts_are_nothing_to_do(store):
    assert run(store, [], parts=1).seen == 0
    assert run(store, [document("one text that is alone in its corpus", 0)], parts=3).kept == 1
    inputs = {"filter": output_of(store, "filter", [])}
    assert dedup.run(store, "none", CONFIG, inputs, ENGINE).kept == 0


def copies(source, texts, each, start=0, **more):
    """Documents of a source: some texts, each so many times."""
    return [
        document(" ".join(words(30, seed=start + number)), start + number * each + copy, source, url=f"https://{source}.example/{number}/{copy}", **more)
        for number in range(texts)
        for copy in range(each)
    ]  # fmt: skip


@pytest.mark.parametrize("held", [True, False])
def test_a_source_of_which_too_much_would_go_stops_the_stage_with_examples_and_a_raised_field_lets_it_on(store, monkeypatch, held):
    if not held:
        monkeypatch.setattr(dedup, "HELD", 0)
        monkeypatch.setattr(dedup, "run_ranks", run_inline)
    rows = copies("commoncrawl", 6, 20) + copies("files", 120, 1, start=5000)
    with pytest.raises(RemovalError) as stopped:
        run(store, rows)
    monkeypatch.setattr(dedup, "run_ranks", run_inline)
    told = str(stopped.value)
    assert "114 of the 120 documents of commoncrawl (95.0%; dedup.max_removed is 0.9), all for 6 that stay" in told
    shown = [line for line in told.splitlines() if line.startswith("exact, similarity 1.000: https://commoncrawl.example/")]
    assert len(shown) == 3 and all(line.count("w") > 10 and "would go for https://commoncrawl.example/" in line for line in shown)
    assert "raise dedup.max_removed" in told
    made = run(store, rows, config=dataclasses.replace(CONFIG, max_removed=0.95))
    assert made.kept == 126
    assert run(store, rows).skipped, "what is allowed once is found again: the guardrail changes no result"


@pytest.mark.usefixtures("inline")
def test_what_goes_for_published_documents_and_a_handful_are_not_the_guardrails(store):
    old = copies("wikipedia", 150, 1, snapshot="old")
    new = copies("wikipedia", 150, 1, snapshot="new")
    manifest = run(store, [*new, *copies("files", 1, 60, start=9000)], previous=[old])
    assert manifest.rejected == {"duplicate_of_previous": 150, "exact_duplicate": 59}


@pytest.mark.usefixtures("inline")
def test_a_damaged_part_is_named(store):
    inputs = {"filter": output_of(store, "filter", [[document("a text", 0)]])}
    path = store.dir(inputs["filter"].address) / "documents-00000-000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match="documents-00000-000"):
        dedup.run(store, "test", CONFIG, inputs, ENGINE)


def test_more_minima_in_bands_than_in_the_signature_are_refused():
    with pytest.raises(ConfigError, match="exceed permutations"):
        override(CONFIG, {"rows": 6})
    with pytest.raises(ConfigError, match="bucket_limit"):
        from_dict(
            DedupConfig, {name: getattr(CONFIG, name) for name in ("threshold", "permutations", "seed", "bands", "rows", "source_order")}
        )


class Held:
    """Sets in memory, for keepers.decide: one part, a set a row."""

    def __init__(self, sets):
        self.sets = [np.array(sorted(one), np.uint64) for one in sets]

    def __call__(self, part, row):
        some = [self.sets[at] for at in row.tolist()]
        return np.array([one.ctypes.data for one in some], np.uint64), np.array(list(map(len, some)), np.int64)


def reference(documents, order, limit, urls):
    """The walk in plain Python, as keepers.py states it: (keeper, similarity, rule) of each that goes; who was not compared with all."""
    kept, gone, untried, held = [], {}, 0, {}
    for d in order:
        one = documents[d]
        buckets = [held.setdefault((band, key), []) for band, key in enumerate(one["keys"])]
        if not one["published"]:
            texts = [k for k in kept if documents[k]["text"] == one["text"]]
            addresses = [k for k in kept if urls and one["url"] and documents[k]["url"] == one["url"]]
            others = sorted({k for bucket in buckets for k in bucket[:limit]}, key=order.index)
            alike = [(k, jaccard(one["set"], documents[k]["set"])) for k in others]
            near = [(k, found) for k, found in alike if found >= CONFIG.threshold]
            if texts:
                gone[d] = texts[0], 1.0, "exact"
            elif addresses:
                gone[d] = addresses[0], jaccard(one["set"], documents[addresses[0]]["set"]), "url"
            elif near:
                gone[d] = *near[0], "near"
            else:
                untried += any(len(bucket) > limit for bucket in buckets)
        if d not in gone:
            first = urls or not any(documents[k]["text"] == one["text"] for k in kept)  # a later published copy of a text is in no bucket
            kept.append(d)
            for bucket in buckets if first else ():
                bucket.append(d)
    return gone, untried


def jaccard(a, b):
    return len(a & b) / len(a | b)


DOCUMENT = st.fixed_dictionaries(
    {
        "published": st.booleans(), "source": st.sampled_from(["files", "wikipedia", "other"]), "file": st.sampled_from("ab"),
        "set": st.sampled_from([frozenset(range(start, start + size)) for start in range(0, 24, 2) for size in (9, 10, 11)]),
        "url": st.sampled_from(["", "", "u1", "u2", "u3"]), "date": st.sampled_from(["", "2026-10-01", "2026-10-02T00:00:00Z"]),
    }
)  # fmt: skip


@pytest.mark.parametrize("urls", ["off", "first", "newest"])
def test_the_walk_equals_a_plain_one_whatever_the_size_of_its_runs_and_batches(tmp_path_factory, urls, monkeypatch):
    """The decisions alone, with sets and band keys given: any documents, any buckets, any limit."""
    import pyarrow as pa

    from tasks.corpus.document import record_id, write_table
    from tasks.corpus.urls import KEYS, date_number

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(DOCUMENT, max_size=24), st.integers(1, 4), st.integers(1, 3), st.sampled_from([(2, 3, 4), (5, 100, 2), (100, 100, 100)])
    )
    def equal(documents, limit, parts, sizes):
        for name, size in zip(("RUN", "MERGED", "WALKED"), sizes, strict=True):
            monkeypatch.setattr(keepers, name, size)
        folder = tmp_path_factory.mktemp("walk")
        for place, one in enumerate(documents):
            one |= {
                "place": place,
                "id": record_id(one["source"], "s", one["file"], place),
                "text": min(one["set"]) * 100 + len(one["set"]),
            }
            one["keys"] = [min(one["set"]) // 4, (min(one["set"]) + 2) // 4, len(one["set"])]
        documents = sorted(documents, key=lambda one: one["published"])  # parts of new documents come first
        fresh = [one for one in documents if not one["published"]]
        pieces = [fresh[at::parts] for at in range(parts)] + [[one for one in documents if one["published"]]]
        documents = [one for piece in pieces for one in piece]
        files, addresses = [], []
        for number, piece in enumerate(pieces):
            columns = {name: pa.array([one[name] for one in piece], pa.string()) for name in ("id", "source")}
            columns |= {
                "text_hash": pa.array([f"{one['text']:032x}" for one in piece], pa.string()),
                "snapshot": pa.array(["s"] * len(piece), pa.string()),
                "origin_file": pa.array([one["file"] for one in piece], pa.string()),
                "origin_offset": pa.array([one["place"] for one in piece], pa.int64()),
            }
            columns |= {keepers.key_column(band): pa.array([one["keys"][band] << 60 for one in piece], pa.uint64()) for band in range(3)}
            files.append(folder / f"signatures-{number:05d}.parquet")
            write_table(files[-1], pa.table(columns))
            addresses.append(folder / f"urls-{number:05d}.npy")
            np.save(addresses[-1], np.array([(1, hash(o["url"]) & 255, date_number(o["date"]) if o["url"] else -1) for o in piece], KEYS))
        order = sorted(
            range(len(documents)),
            key=lambda d: (not documents[d]["published"], ["files", "other", "wikipedia"].index(documents[d]["source"]), documents[d]["file"], documents[d]["place"]),
        )  # fmt: skip
        if urls == "newest":
            best = {}
            for d in order:
                one = documents[d]
                if one["url"] and not one["published"] and date_number(one["date"]) > best.get(one["url"], (-1, 0))[0]:
                    best[one["url"]] = date_number(one["date"]), d
            older = [d for d in order if documents[d]["url"] and not documents[d]["published"] and best[documents[d]["url"]][1] != d]
            order = [d for d in order if d not in older] + older
        table = keepers.Documents.load(
            files, [False] * parts + [True], ["files"], folder, addresses if urls != "off" else (), urls == "newest"
        )
        part, row = table.where(np.arange(len(documents)))
        flat = [sum(map(len, pieces[:p])) + r for p, r in zip(part.tolist(), row.tolist(), strict=True)]
        assert flat == order
        buckets = keepers.Buckets.build(table, files, 3, folder)
        held = Held([documents[d]["set"] for d in range(len(documents))])
        starts = np.cumsum([0, *map(len, pieces)])
        decisions = keepers.decide(table, buckets, lambda part, row: held(part, starts[part] + row), CONFIG.threshold, limit)
        gone, untried = reference(documents, order, limit, urls != "off")
        found = {
            flat[place]: (flat[keeper], similarity, keepers.RULES[rule])
            for place, keeper, similarity, rule in zip(*(getattr(decisions, n).tolist() for n in ("place", "keeper", "similarity", "rule")), strict=True)
        }  # fmt: skip
        assert found == gone
        assert decisions.untried == untried
        assert not {keeper for keeper, _, _ in found.values()} & found.keys()

    equal()


@pytest.mark.realdata
@pytest.mark.usefixtures("inline")
def test_the_known_pairs_of_real_articles_are_found(store, realdata):
    folder = realdata / "neardup/mccormick/data"
    lines = gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()
    texts = dict(line.split(" ", 1) for line in lines)
    rows = [document(text, place, origin_file=name) for place, (name, text) in enumerate(texts.items())]
    by_id = {row["id"]: row["origin_file"] for row in rows}
    pairs = [tuple(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()]
    manifest = run(store, rows, parts=4)
    found = {frozenset((by_id[gone], by_id[keeper])) for gone, (keeper, _, _) in evidence(store, manifest).items()}
    alike = {frozenset(pair) for pair in pairs if true_similarity(texts[pair[0]], texts[pair[1]]) >= CONFIG.threshold}
    assert len(alike) == len(pairs) and found == alike
    assert Counter(manifest.rejected) == {"near_duplicate": len(alike)}
