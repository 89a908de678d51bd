"""The engine: the same bytes at any number of workers, a killed rank costs itself only, books add up."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from model.config import STRICT
from model.errors import InputError, RankError
from tasks.corpus.document import new_document, read_rows
from tasks.corpus.engine import books, local, run_ranks
from tasks.corpus.manifest import Stage, Store, run_stage

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fake:
    """How a rank of these tests behaves."""

    __pydantic_config__ = STRICT
    rows: int
    trouble: str


def rank(config, item, out):
    log = Path(item["log"])
    with log.open("a") as handle:
        handle.write(f"{out.rank}\n")
    tries = log.read_text().split().count(str(out.rank))
    for number in range(config.rows):
        row = new_document(f"text {number} of {item['name']}", source="files", snapshot="s", origin_file=item["name"], place=number)
        if number % 3:
            out.keep(row)
        else:
            out.reject(row, "third", number)
        if out.rank == 1 and number == config.rows // 2:
            if (config.trouble == "killed" and tries == 1) or config.trouble == "always":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.trouble == "hangs" and tries == 1:
                import time

                time.sleep(600)
            if config.trouble == "mistake":
                raise InputError("b.txt is wrong: value 7. Mend it.")
    return {"name": item["name"]}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def run(store, trouble, workers=2, names="abcd", timeout=60.0):
    store = Store(store.base / f"{trouble}-{workers}")
    log = store.base / "ranks.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def body(work):
        items = [{"name": name, "log": str(log), "rows": 100} for name in names]
        config = Fake(100, trouble)
        type(config).__module__ = rank.__module__ = "test_engine"
        summaries = run_ranks(work, "test_engine:rank", config, items, local(workers, timeout))
        return books(summaries, names=[s["info"]["name"] for s in summaries])

    return run_stage(store, Stage("fake", 1), "r", Fake(100, trouble), {}, body)


def hashes(manifest):
    return [(f.path, f.sha256) for f in manifest.files]


def test_any_number_of_workers_gives_the_same_parts(store):
    one, three = run(store, "none", workers=1), run(store, "none", workers=3)
    assert hashes(one) == hashes(three) and len(one.parts()) == 4 and one.info["names"] == list("abcd")
    assert (one.seen, one.kept, one.rejected) == (400, 264, {"third": 136})


def test_a_killed_rank_is_run_again_alone_and_gives_the_same_parts(store):
    killed, calm = run(store, "killed", workers=4), run(store, "none", workers=4)
    assert hashes(killed) == hashes(calm)
    assert sorted((store.base / "killed-4" / "ranks.log").read_text().split()) == ["0", "1", "1", "2", "3"]


def test_a_rank_without_a_sign_of_life_is_ended_and_run_again(store):
    assert hashes(run(store, "hangs", workers=4, timeout=5.0)) == hashes(run(store, "none", workers=4))


def test_a_rank_that_always_dies_fails_the_stage_as_transient(store):
    with pytest.raises(RankError, match="rank 1 .* died 3 times"):
        run(store, "always")


def test_a_mistake_in_a_rank_comes_back_as_itself_and_is_not_tried_again(store):
    with pytest.raises(InputError, match=r"b\.txt is wrong: value 7"):
        run(store, "mistake")
    assert (store.base / "mistake-2" / "ranks.log").read_text().split().count("1") == 1


def test_no_process_is_left_behind_but_the_launcher(store):
    run(store, "none", workers=2)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    run(store, "killed", workers=2)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_a_rejects_sample_of_texts_is_bounded_and_does_not_depend_on_order(tmp_path):
    from tasks.corpus.document import SAMPLED_TEXTS, PartWriter

    rows = [new_document(f"t{n}", source="files", snapshot="s", origin_file="f", place=n) for n in range(500)]
    kept = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / name).mkdir()
        with PartWriter(tmp_path / name, 0, "filter") as out:
            for row in order:
                out.reject(row, "short", 1)
        kept.append({r["text"] for r in read_rows([tmp_path / name / "rejects-00000-000.parquet"]) if r["text"]})
    assert kept[0] == kept[1] and len(kept[0]) == SAMPLED_TEXTS


def test_parts_are_cut_by_rows_seen(tmp_path):
    from tasks.corpus.document import PartWriter

    with PartWriter(tmp_path, 3, "filter", part_rows=10) as out:
        for number in range(25):
            row = new_document("x", source="files", snapshot="s", origin_file="f", place=number)
            (out.keep if number % 2 else lambda r: out.reject(r, "even"))(row)
    assert [(f["path"], f["rows"]) for f in out.summary["files"]] == [
        (f"{kind}-00003-{part:03d}.parquet", 5 if part < 2 else rows)
        for part in range(3)
        for kind, rows in (("documents", 2), ("rejects", 3))
    ]
    assert json.dumps(out.summary)
