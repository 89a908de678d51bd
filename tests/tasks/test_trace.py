"""Lineage: what became of a record at every stage, who has it, and what a model was made of; asked by address and id, and by `ingot trace`."""

import pyarrow as pa
import pytest
from chain import asked
from corpora import ENGINE, document, output_of, run_inline
from judged import BAD, CONFIG, EN, ZH
from models import made

from model.errors import NotFoundError
from tasks.corpus import quality, trace
from tasks.corpus.document import DUPLICATES, SCHEMA, read_rows, write_table

HERE = "https://example.org/lamp"


def parquet(folder, table) -> bytes:
    write_table(folder / "x.parquet", table)
    return (folder / "x.parquet").read_bytes()


@pytest.fixture
def stages(store, monkeypatch, tmp_path):
    """extract → filter → dedup → encode → pretrain → register of four documents: one is too short, one near the first, one is held out."""
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    texts = {"lamp": EN, "short": BAD["gopher_short_doc"], "copy": EN + " Again.", "deng": ZH}
    rows = [document(text, n, "commoncrawl", url=f"https://example.org/{name}") for n, (name, text) in enumerate(texts.items())]
    raw = {"source": "commoncrawl", "role": "source", "snapshot": "CC-MAIN-1970-01", "license": "x"}
    ingest = made(store, "ingest", {}, {"a.warc.gz": "x"}, raw)
    extract = output_of(store, "extract", [rows], {"commoncrawl": ingest})
    filtered = quality.run(store, "test", CONFIG, {"extract": extract}, ENGINE)
    lamp, copy, deng = read_rows([store.path(filtered, file) for file in filtered.parts()])
    evidence = pa.Table.from_pylist([{"id": copy["id"], "kept_id": lamp["id"], "similarity": 0.93, "rule": "near"}], DUPLICATES)
    origin = {name: copy[name] for name in ("id", "url", "snapshot", "origin_file", "origin_offset", "origin_length")}
    rejects = pa.Table.from_pylist([origin | {"reason": "near_duplicate", "value": "0.93"}])
    files = {
        "documents-00000-000.parquet": pa.Table.from_pylist([lamp, deng], SCHEMA),
        "rejects-00000-000.parquet": rejects,
        "duplicates-00000.parquet": evidence,
    }
    held = {name: parquet(tmp_path, table) for name, table in files.items()}
    single = made(store, "dedup", {"filter": filtered}, held, rejected={"near_duplicate": 1}, kept=2)
    published = store.publish("corpora", "test", "v1", [single], {}, {"documents": 2, "snapshots": ["CC-MAIN-1970-01"]})
    ids = {"train-00000": [lamp["id"]], "valid-00000": [deng["id"]]}
    shards = {f"{name}.documents.parquet": parquet(tmp_path, pa.table({"id": held})) for name, held in ids.items()}
    encode = made(store, "encode", {"corpus-000": single}, shards | {f"{name}.bin": "1234" for name in ids})
    pretrain = made(store, "pretrain", {"encode": encode})
    register = made(store, "register", {"model": pretrain}, info={"name": "ingot-test", "version": "3"})
    return {
        "filter": filtered,
        "dedup": single,
        "encode": encode,
        "pretrain": pretrain,
        "register": register,
        "corpus": published,
        "rows": rows,
    }


def test_a_kept_record_tells_why_and_who_has_it(store, stages):
    (found,) = trace.documents(store, urls=[HERE])
    assert [(step.address.split("/")[1], step.kept) for step in found.steps] == [("extract", True), ("filter", True), ("dedup", True)]
    why = [step.why for step in found.steps]
    assert why[1].startswith("en ") and "rules hold, the nearest" in why[1] and why[2] == "stands for 1 that are near it or the same"
    assert found.corpora == ["corpora/test/v1"] and found.shards == [f"{stages['encode'].address}/train-00000 document 0"]
    assert found.models == [stages["pretrain"].address, "ingot-test version 3"]
    assert found.origin == "test: a.txt @ 0"


@pytest.mark.parametrize(
    ("name", "last", "why"),
    [("short", "filter", "gopher_short_doc "), ("copy", "dedup", "near of {lamp}, similarity 0.930")],
)
def test_a_record_that_was_set_aside_tells_where_and_why_and_nobody_has_it(store, stages, name, last, why):
    number = ["lamp", "short", "copy", "deng"].index(name)
    (found,) = trace.documents(store, ids=[stages["rows"][number]["id"]])
    step = found.steps[-1]
    assert step.address == stages[last].address and not step.kept and step.why.startswith(why.format(lamp=stages["rows"][0]["id"]))
    assert (found.corpora, found.shards, found.models) == ([], [], [])


def test_a_model_was_not_trained_on_what_was_held_out(store, stages):
    (found,) = trace.documents(store, urls=["https://example.org/deng"])
    assert found.shards == [f"{stages['encode'].address}/valid-00000 document 0"] and found.models == []
    assert found.corpora == ["corpora/test/v1"]


def test_the_other_way_a_model_leads_to_corpora_snapshots_files_and_shards(store, stages):
    found = trace.model(store, stages["register"])
    assert [thing.address for thing in found.corpora] == ["corpora/test/v1"] and found.snapshots == ["CC-MAIN-1970-01"]
    assert found.raw == ["a.warc.gz"]
    assert found.shards == [(f"{stages['encode'].address}/{name}-00000.bin", 4) for name in ("train", "valid")]
    assert [m.stage for m in found.stages][-1] == "register" and found.stages[0].stage == "ingest"


def test_an_address_that_nobody_has_is_answered_with_those_near_it(store, stages):
    with pytest.raises(
        NotFoundError, match="https://example.org/lamps is in none of 3 stage outputs of .*Near it: https://example.org/lamp"
    ):
        trace.documents(store, urls=["https://example.org/lamps"])
    with pytest.raises(NotFoundError, match=r"abc is in none .*ingot show"):
        trace.documents(store, ids=["abc"])


def test_the_command_shows_both_directions(store, stages):
    said = asked(store.url, "trace", "--url", HERE).output
    assert all(word in said for word in (stages["rows"][0]["id"], "stands for 1", "corpora/test/v1", "ingot-test version 3"))
    said = asked(store.url, "trace", stages["pretrain"].address).output
    assert all(word in said for word in ("corpora/test/v1, 2 documents", "a.warc.gz", "train-00000.bin, 4 bytes"))
    assert "either a model" in str(asked(store.url, "trace").exception)
