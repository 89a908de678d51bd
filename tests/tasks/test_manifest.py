"""The store: found again or made, complete or absent, verified, named once, collected when nothing needs it."""

import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.config import STRICT, resource
from model.errors import BooksError, DamageError, SpaceError, StoreError
from tasks.corpus import manifest as m
from tasks.corpus.manifest import Result, Stage, Store, collectable, run_stage

STAGE = Stage("fake", 1)


@dataclass(frozen=True)
class Config:
    __pydantic_config__ = STRICT
    size: int
    workers: int = resource(default=1)


def body(text="hello"):
    def write(work):
        (work.dir / "part.txt").write_text(text)
        return Result([("part.txt", 1)], seen=3, kept=1, rejected={"short": 2})

    return write


def test_a_stage_is_made_once_and_found_again(store):
    calls = []

    def count(work):
        calls.append(1)
        return body()(work)

    first = run_stage(store, STAGE, "r", Config(1), {}, count)
    second = run_stage(store, STAGE, "r", Config(1, workers=8), {}, count)
    assert (first, len(calls), first.skipped, second.skipped) == (second, 1, False, True)


def test_another_recipe_finds_the_same_output(store):
    first = run_stage(store, STAGE, "one", Config(1), {}, body())
    assert run_stage(store, STAGE, "two", Config(1), {}, body()).address == first.address


def test_a_changed_field_makes_a_new_output_beside_the_old(store):
    addresses = {run_stage(store, STAGE, "r", Config(size), {}, body()).address for size in (1, 2)}
    assert len(addresses) == 2 and set(store.addresses("fake")) == addresses


def test_revision_name_config_and_inputs_decide_the_fingerprint(store):
    source = run_stage(store, Stage("source", 1), "r", Config(1), {}, body())
    made = [
        run_stage(store, stage, "r", Config(size), inputs, body()).fingerprint
        for stage, size, inputs in (
            (STAGE, 1, {}), (Stage("fake", 2), 1, {}), (Stage("other", 1), 1, {}), (STAGE, 2, {}), (STAGE, 1, {"in": source}), (STAGE, 1, {"out": source}),
        )
    ]  # fmt: skip
    assert len(set(made)) == 6


def test_the_content_of_an_input_not_its_request_reaches_downstream(store):
    def same_content(work):
        return Result([], 0, 0, {}, content="c" * 64)

    one, two = (run_stage(store, Stage("ingest", 1), "r", Config(size), {}, same_content) for size in (1, 2))
    assert one.fingerprint != two.fingerprint
    assert (
        run_stage(store, STAGE, "r", Config(1), {"in": one}, body()).address
        == run_stage(store, STAGE, "r", Config(1), {"in": two}, body()).address
    )


def test_books_that_do_not_balance_are_refused(store):
    with pytest.raises(BooksError, match=r"kept 1 \+ rejected 0 is not seen 3"):
        run_stage(store, STAGE, "r", Config(1), {}, lambda work: Result([], 3, 1, {}))


def test_a_body_that_fails_leaves_no_manifest(store):
    with pytest.raises(ZeroDivisionError):
        run_stage(store, STAGE, "r", Config(1), {}, lambda work: 1 / 0)
    assert [store.manifest(a) for a in store.addresses("fake")] == [None]


def test_a_full_disk_is_a_space_error_that_says_what_to_do(store):
    def full(work):
        raise OSError(errno.ENOSPC, "No space left on device", str(work.dir / "part"))

    with pytest.raises(SpaceError, match="ingot gc"):
        run_stage(store, STAGE, "r", Config(1), {}, full)


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_a_part_damaged_afterwards_is_named_and_rebuilt_on_request(store, damage):
    made = run_stage(store, STAGE, "r", Config(1), {}, body())
    part = store.dir(made.address) / "part.txt"
    if damage == "missing":
        part.unlink()
    else:
        part.write_text("hell" if damage == "shorter" else "hullo")
    with pytest.raises(DamageError, match=r"part\.txt .* --rebuild fake"):
        store.verify(made)
    again = run_stage(store, STAGE, "r", Config(1), {}, body(), rebuild=True)
    store.verify(again)
    assert again.files == made.files


def test_publishing_is_immutable_and_names_what_differs(store):
    part = run_stage(store, STAGE, "r", Config(1), {}, body())
    first = store.publish("corpora", "c", "v1", [part], {"corpus": {"filter": {"min": 1}}}, {})
    assert store.publish("corpora", "c", "v1", [part], {"corpus": {"filter": {"min": 1}}}, {}).fingerprint == first.fingerprint
    with pytest.raises(StoreError, match="corpora/c/v1 .*: corpus.filter.min"):
        store.publish("corpora", "c", "v1", [part], {"corpus": {"filter": {"min": 2}}}, {})


def test_only_what_nothing_published_was_made_from_is_collected(store):
    source = run_stage(store, Stage("source", 1), "r", Config(1), {}, body())
    kept = run_stage(store, STAGE, "r", Config(1), {"in": source}, body())
    loose = run_stage(store, STAGE, "r", Config(2), {"in": source}, body())
    alias = run_stage(store, STAGE, "r", Config(3), {"in": source}, body())
    store.dir("stages/fake/r-0000000000").mkdir()
    store.publish("corpora", "c", "v1", [kept], {}, {})
    gone = {address: why for address, _, why in collectable(store, [alias.address])}
    assert gone == {loose.address: "nothing published refers to it", "stages/fake/r-0000000000": "incomplete"}


def test_used_records_stay_readable_at_their_offsets_when_the_rest_is_dropped(store):
    def raw(work):
        for name in ("a.warc", "b.warc", "c.xml"):
            (work.dir / name).write_bytes(bytes(range(256)) * 64)
        return Result([(n, None) for n in ("a.warc", "b.warc", "c.xml")], 3, 3, {})

    made = run_stage(store, Stage("ingest", 1), "r", Config(1), {}, raw)
    freed = store.drop(made, {"a.warc": [(256, 4), (512, 2)], "c.xml": [(1, -1)]})
    folder = store.dir(made.address)
    assert (folder / "a.warc").read_bytes()[256:260] == bytes(range(4)) and not (folder / "b.warc").exists()
    assert (folder / "c.xml").stat().st_size == 256 * 64 and freed == 2 * 256 * 64 - 6
    with pytest.raises(StoreError, match="dropped by keep_raw"):
        store.path(made, made.files[1])
    store.verify(made)
    assert not run_stage(store, Stage("ingest", 1), "r", Config(1), {}, raw, whole=True).skipped


def test_a_second_process_waits_for_the_first_and_finds_its_output(store, tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_manifest import Config, STAGE, body
        from tasks.corpus.manifest import Store, run_stage
        def slow(work):
            print("began", flush=True); time.sleep(1.5); return body()(work)
        print(run_stage(Store({str(store.base)!r}), STAGE, "r", Config(7), {{}}, slow).skipped)
        """
    )
    env = os.environ | {"PYTHONPATH": str(Path(m.__file__).parents[2])}
    first, second = (subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2))
    said = sorted([first.communicate()[0].split(), second.communicate()[0].split()])
    assert said == [["True"], ["began", "False"]]


def test_a_remote_store_works_in_a_cache_and_serves_verified_copies(tmp_path):
    remote = Store("memory://bucket/ingot", cache=tmp_path / "cache-one")
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    other = Store("memory://bucket/ingot", cache=tmp_path / "cache-two")
    found = run_stage(other, STAGE, "r", Config(1), {}, lambda work: pytest.fail("made twice"))
    assert found.skipped and other.path(made, made.files[0]).read_text() == "hello"
    other.publish("corpora", "c", "v1", [found], {}, {})
    assert [p.address for p in remote.publications()] == ["corpora/c/v1"]
    remote.remove(made.address)
    assert remote.manifest(made.address) is None
