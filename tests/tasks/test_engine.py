"""The engine: the same bytes at any number of workers, a killed rank costs itself only, books add up."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from engines import hashes, place, run, tried

from model.errors import ConfigError, InputError, RankError
from tasks.corpus import engine as engines
from tasks.corpus.document import new_document, read_rows
from tasks.corpus.engine import EngineConfig, local

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def test_any_number_of_workers_gives_the_same_parts(store):
    one, three = run(store, "none", local(1, 60.0)), run(store, "none", local(3, 60.0))
    assert hashes(one) == hashes(three) and len(one.parts()) == 4 and one.info["names"] == list("abcd")
    assert (one.seen, one.kept, one.rejected) == (400, 264, {"third": 136})


def test_a_killed_rank_is_run_again_alone_and_gives_the_same_parts(store):
    engine = local(4, 60.0)
    assert hashes(run(store, "killed", engine)) == hashes(run(store, "none", engine))
    assert tried(store, "killed", engine) == [0, 1, 1, 2, 3]


def test_one_slot_works_on_rank_after_rank_and_only_the_killed_one_is_run_again(store):
    engine = local(1, 60.0)
    assert hashes(run(store, "killed", engine)) == hashes(run(store, "none", local(2, 60.0)))
    assert tried(store, "killed", engine) == [0, 1, 1, 2, 3]


def test_a_rank_without_a_sign_of_life_is_ended_and_run_again(store):
    engine = local(4, 5.0)
    assert hashes(run(store, "hangs", engine)) == hashes(run(store, "none", engine))


def test_a_rank_that_always_dies_fails_the_stage_as_transient(store):
    with pytest.raises(RankError, match=r"rank 1 .* died 3 times \(exit -9\)"):
        run(store, "always", local(2, 60.0))


def test_a_mistake_in_a_rank_comes_back_as_itself_and_is_not_tried_again(store):
    engine = local(2, 60.0)
    with pytest.raises(InputError, match=r"b\.txt is wrong: value 7"):
        run(store, "mistake", engine)
    assert tried(store, "mistake", engine).count(1) == 1


def test_no_process_is_left_behind_but_the_launcher(store):
    def children() -> set[int]:
        return {p.pid for p in psutil.Process().children(recursive=True)}

    engines.stop()
    others = children()  # servers of other tests
    run(store, "none", local(2, 60.0))
    run(store, "killed", local(2, 60.0))
    assert children() - others == {engines._launcher.process.pid}
    engines.stop()
    assert children() <= others


def test_a_killed_launcher_costs_a_try_and_not_the_stage(store):
    engine = local(2, 60.0)
    run(store, "none", engine)
    os.kill(engines._launcher.process.pid, signal.SIGKILL)
    assert hashes(run(store, "none", local(3, 60.0))) == hashes(run(store, "killed", engine))


def test_slots_and_launcher_end_with_a_killed_stage(store, tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(TESTS)!r})
        from engines import run
        from tasks.corpus.engine import local
        from tasks.corpus.manifest import Store
        run(Store({str(store.base)!r}), "hangs", local(2, 600.0))
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    )
    engine = local(2, 600.0)
    log, limit = place(store, "hangs", engine) / "ranks.log", time.monotonic() + 60
    while not (log.exists() and 1 in tried(store, "hangs", engine)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(family) >= 2 and not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "slurm"}, "kind=slurm needs a partition"),
        ({"kind": "slurm", "partition": "main", "sbatch": ("account",)}, "sbatch holds name=value.*'account'"),
    ],
)
def test_settings_of_a_cluster_that_cannot_be_are_refused(change, words):
    from model.config import from_dict, to_dict

    with pytest.raises(ConfigError, match=words):
        from_dict(EngineConfig, to_dict(local(2, 60.0)) | change)


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
