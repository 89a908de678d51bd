"""Dedup against a brute-force oracle: what goes, for whom, and that nothing else matters."""

import dataclasses
import gzip
import random
from collections import Counter

import numpy as np
import pytest
from corpora import ENGINE, changed, document, output_of, parts_of, rows_of, run_inline, words
from hypothesis import given, settings
from hypothesis import strategies as st
from shingling import similarity as true_similarity

from model.config import from_dict, override
from model.errors import ConfigError, DamageError, RankError
from tasks.corpus import dedup, index, keepers
from tasks.corpus.dedup import DedupConfig

CONFIG = DedupConfig(
    threshold=0.8, permutations=128, seed=1, bands=25, rows=5, source_order=("wikipedia", "files", "commoncrawl"), bucket_limit=100
)
CHINESE = "他们在清晨登上塔顶擦拭灯室的玻璃然后记录海上的天气和风向这本日志至今还保存在城里的图书馆中供研究航海历史的人借阅"


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(dedup, "run_ranks", run_inline)
    monkeypatch.setattr(index, "run_ranks", run_inline)


def in_order(rows):
    """The stated order, written anew: source, snapshot, file, place."""
    rank = {source: number for number, source in enumerate(CONFIG.source_order)}
    return sorted(rows, key=lambda r: (rank.get(r["source"], 9), r["source"], r["snapshot"], r["origin_file"], r["origin_offset"], r["id"]))


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


def run(store, rows, previous=(), parts=3, config=CONFIG, engine=ENGINE, recipe="test"):
    inputs = {"filter": output_of(store, "filter", [rows[at::parts] for at in range(parts)])}
    for at, docs in enumerate(previous):
        inputs[f"previous-{at:03d}"] = old = output_of(store, "decontaminate", [docs])
        inputs[f"index-{at:03d}"] = index.run(store, recipe, config.signatures, {"documents": old}, engine)
    return dedup.run(store, recipe, config, inputs, engine)


def evidence(store, manifest):
    return {row["id"]: (row["kept_id"], row["similarity"], row["rule"]) for row in rows_of(store, manifest, "duplicates-")}


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
    by_workers = parts_of(store, run(store, rows))
    assert run(store, rows).skipped
    monkeypatch.setattr(dedup, "run_ranks", run_inline)
    monkeypatch.setattr(index, "run_ranks", run_inline)
    other = Store(tmp_path / "other")
    assert by_workers == parts_of(other, run(other, rows))


@pytest.mark.parametrize("dies_in", [1, 2, 3])
def test_a_run_that_died_in_any_pass_is_taken_up_with_the_same_bytes(store, tmp_path, monkeypatch, dies_in):
    from tasks.corpus.manifest import Store

    rows = planted(seed=2, families=6)
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


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sets(st.integers(0, 12), min_size=6, max_size=9)),
        max_size=14,
        unique_by=lambda d: d[:2],
    ),
    st.randoms(),
)
def test_the_walk_equals_the_oracle_when_all_share_a_bucket(tmp_path_factory, documents, shuffled):
    """The decisions alone, with sets given and every pair a candidate."""
    import pyarrow as pa

    from tasks.corpus.document import record_id, write_table

    folder = tmp_path_factory.mktemp("walk")
    documents = sorted(documents, key=lambda d: d[:2])
    ordered = [(record_id("files", "s", file, place), file, place, frozenset(members)) for file, place, members in documents]
    rows = ordered[:]
    shuffled.shuffle(rows)
    columns = {
        "id": pa.array([r[0] for r in rows], pa.string()),
        "text_hash": pa.array([f"{hash(r[3]) & (2**64 - 1):032x}" for r in rows], pa.string()),
        "source": pa.array(["files"] * len(rows), pa.string()),
        "snapshot": pa.array(["s"] * len(rows), pa.string()),
        "origin_file": pa.array([r[1] for r in rows], pa.string()),
        "origin_offset": pa.array([r[2] for r in rows], pa.int64()),
        keepers.key_column(0): pa.array([7] * len(rows), pa.uint64()),
    }
    write_table(folder / "signatures-00000.parquet", pa.table(columns))
    table = keepers.Documents.load([folder / "signatures-00000.parquet"], [False], ["files"])
    buckets = keepers.Buckets.build(table, 1, 100, folder)
    sets = [np.array(sorted(r[3]), np.uint64) for r in rows]
    decisions = keepers.decide(table, buckets, lambda part, row: sets[row], 0.8)

    kept: list[frozenset[int]] = []
    expected = []
    for _, _, _, members in ordered:
        alike = next((at for at, other in enumerate(kept) if len(members & other) >= 0.8 * len(members | other)), None)
        expected.append(alike is None)
        if alike is None:
            kept.append(members)
    assert (decisions.keeper < 0).tolist() == expected
    gone = decisions.keeper[decisions.keeper >= 0]
    assert (decisions.keeper[gone] < 0).all()


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
