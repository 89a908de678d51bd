"""What happens to a finished store: parts damaged and made again, raw files dropped and fetched again, outputs nobody needs collected.

Copies of the tiny run's store; stages by their plain functions, flows' parts without a Prefect server.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chain import DATA_STAGES, asked, by_stage, content, corpus, facts, ingot, without

from flows import build as flow
from flows import recipes
from model.errors import DamageError, StoreError
from tasks import decontaminate, dedup, extract, filter, ingest, report
from tasks.corpus import commoncrawl, contamination, encode
from tasks.corpus import dedup as plain_dedup
from tasks.corpus.document import read_rows
from tasks.corpus.manifest import Store

TRAINING = ("pretrain", "finetune", "evaluate", "register")
TINY = recipes.tiny()


@pytest.fixture
def copy(tiny_run, tmp_path):
    return without(tiny_run.store, tmp_path / "store", *TRAINING)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def clip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, clip, Path.unlink], ids=["a flipped bit", "a lost byte", "a lost file"])
@pytest.mark.parametrize("stage", DATA_STAGES)
def test_verify_names_the_damaged_file_and_the_way_out(stage, harm, copy):
    manifest = by_stage(copy)[stage][0]
    name = manifest.files[len(manifest.files) // 2].path
    harm(copy.dir(manifest.address) / name)
    done = asked(copy.base, "verify")
    assert isinstance(done.exception, DamageError)
    assert f"{manifest.address}/{name}" in str(done.exception)
    assert f"--rebuild {stage}" in str(done.exception)


def test_the_stage_that_reads_a_damaged_part_names_it(copy):
    filtered, single = (by_stage(copy)[stage][0] for stage in ("filter", "dedup"))
    name = filtered.parts()[-1].path
    flip(copy.dir(filtered.address) / name)
    copy.remove(single.address)
    with pytest.raises(DamageError, match=f"{filtered.address}/{name} has sha256"):
        plain_dedup.run(copy, "tiny", TINY.dedup, {"filter": filtered}, TINY.engine)
    assert copy.manifest(single.address) is None


def test_a_damaged_part_is_rebuilt_and_all_behind_it_is_found(copy):
    before, found = content(copy), {m.address: facts(m) for ms in by_stage(copy).values() for m in ms}
    clean = by_stage(copy)["decontaminate"][0]
    flip(copy.dir(clean.address) / clean.parts()[0].path)
    inputs = {role: copy.need(address) for role, address in clean.inputs.items()}
    made = contamination.run(copy, "tiny", TINY.decontaminate, inputs, TINY.engine, rebuild=True)
    assert not made.skipped
    assert content(copy) == before
    assert all(manifest.skipped for manifest in corpus(copy, TINY).values())
    assert {m.address: facts(m) for ms in by_stage(copy).values() for m in ms} == found


@pytest.mark.full
def test_the_command_rebuilds_on_request(tiny_run, tmp_path):
    store = without(tiny_run.store, tmp_path / "store")
    single = by_stage(store)["dedup"][0]
    flip(store.dir(single.address) / single.parts()[0].path)
    named = ingot("verify", store=store.base)
    assert named.returncode == 1
    assert single.parts()[0].path in named.stdout
    done = ingot("run", "tiny", "--rebuild", "dedup", store=store.base)
    assert done.returncode == 0, done.stdout[-4000:]
    assert content(store) == content(Store(tiny_run.store))
    assert store.need(single.address).about["finished"] > single.about["finished"]


class StopHereError(Exception):
    """Raised behind the stage that a test is about."""


@pytest.fixture
def chain(monkeypatch):
    """flows.build with its tasks called as plain functions, up to and with extract."""

    def stop(*args, **more):
        raise StopHereError

    for module, names in ((ingest, ("common_crawl", "wiki_dumps", "local_files")), (extract, ("extract",)), (dedup, ("dedup", "index"))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name).fn)
    monkeypatch.setattr(decontaminate, "decontaminate", decontaminate.decontaminate.fn)
    monkeypatch.setattr(filter, "filter_", filter.filter_.fn)
    monkeypatch.setattr(report, "ARTIFACT_EVERY", float("inf"))  # a progress artifact would start a Prefect server
    return lambda: monkeypatch.setattr(filter, "filter_", stop)


def built(store: Store, keep_raw: str) -> flow.Build:
    """The corpus of a store, all of it found, and its raw files treated as keep_raw says."""
    build = flow.Build(replace(TINY, keep_raw=keep_raw), store)
    corpus = flow.make_corpus(build)
    assert all(manifest.skipped for manifest in build.manifests)
    flow.drop_raw(store, keep_raw, corpus)
    return build


def raw_files(build: flow.Build) -> dict[str, Path]:
    """Raw files of the sources by name, there or not."""
    found = [m for m in build.manifests if m.stage == "ingest" and m.info["role"] == "source"]
    return {f.path: build.store.dir(m.address) / f.path for m in found for f in m.files}


@pytest.mark.usefixtures("chain")
def test_without_raw_files_the_store_is_whole_and_evaluation_files_stay(copy):
    build = built(copy, "none")
    assert not any(path.exists() for path in raw_files(build).values())
    evaluation = next(m for m in build.manifests if m.info.get("role") == "evaluation")
    assert all((copy.dir(evaluation.address) / f.path).exists() for f in evaluation.files)
    assert asked(copy.base, "verify").exit_code == 0
    assert "to run" not in asked(copy.base, "plan", "tiny").output.split("tokenizer")[0]
    assert all(manifest.skipped for manifest in built(copy, "none").manifests), "a second run fetched again"


@pytest.mark.usefixtures("chain")
def test_used_records_stay_readable_at_their_offsets(copy, sample):
    build = built(copy, "used-records")
    raw = raw_files(build)
    kept = 0
    for row in read_rows([copy.path(build.of("decontaminate"), f) for f in build.of("decontaminate").parts()]):
        if row["origin_length"] > 0:
            place = slice(row["origin_offset"], row["origin_offset"] + row["origin_length"])
            assert raw[row["origin_file"]].read_bytes()[place] == (sample / "commoncrawl" / row["origin_file"]).read_bytes()[place]
            kept += 1
    assert kept > 50
    for name, path in raw.items():
        if name.endswith(".warc.gz"):
            assert path.read_bytes() != (sample / "commoncrawl" / name).read_bytes(), f"{name} is still whole"
    assert asked(copy.base, "verify").exit_code == 0


@pytest.mark.parametrize("keep_raw", ["none", pytest.param("used-records", marks=pytest.mark.full)])
def test_a_later_change_of_extract_fetches_raw_files_again(keep_raw, copy, chain, sample):
    build = built(copy, keep_raw)
    raw = raw_files(build)
    chain()
    changed = flow.Build(replace(TINY, extract=replace(TINY.extract, min_chars=101), keep_raw=keep_raw), copy)
    with pytest.raises(StopHereError):
        flow.make_corpus(changed)
    assert all(path.exists() for path in raw.values())
    name, path = next((name, path) for name, path in raw.items() if name.endswith(".warc.gz"))
    assert path.read_bytes() == (sample / "commoncrawl" / name).read_bytes()
    assert len(by_stage(copy)["extract"]) == 2


@pytest.mark.usefixtures("chain")
def test_reading_a_dropped_file_says_how_to_get_it_back(copy):
    build = built(copy, "none")
    manifest = next(m for m in build.manifests if m.info.get("source") == "commoncrawl")
    with pytest.raises(StoreError, match="dropped by keep_raw.*--rebuild ingest"):
        copy.path(manifest, manifest.files[0])
    made = commoncrawl.run(copy, "tiny", TINY.common_crawl, TINY.download, whole=True)
    assert copy.path(made, made.files[0]).exists()


def test_gc_after_a_changed_field_removes_only_what_nothing_published_refers_to(copy):
    corpus_made = by_stage(copy)["decontaminate"][0]
    tokens, shards = by_stage(copy)["tokenizer"][0], by_stage(copy)["encode"][0]
    copy.publish("corpora", "tiny", "v1", [corpus_made], {}, {})
    copy.publish("tokenizers", "tiny", "v1", [tokens], {}, {})
    parts = {"corpus-000": corpus_made, "tokenizer": tokens}
    other = encode.run(copy, "tiny", replace(TINY.encode, seed=7), parts)
    torn = copy.dir("stages/filter/tiny-0123456789")
    torn.mkdir()
    (torn / "documents-00000-000.parquet").write_bytes(bytes(1000))
    examples = {m.address for m in by_stage(copy)["ingest"] if m.info["role"] == "examples"}
    needless = {other.address, shards.address, "stages/filter/tiny-0123456789"} | examples
    listed = asked(copy.base, "gc").output
    assert {address for address in copy.addresses() if address in listed} == needless
    needed = content(copy).keys() - {name for name in content(copy) if name.rpartition("/")[0].startswith(tuple(needless))}
    assert set(copy.addresses()) >= needless, "a dry run removed something"
    assert asked(copy.base, "gc", "--yes").exit_code == 0
    assert not needless & set(copy.addresses())
    assert set(content(copy)) == set(needed)
    assert asked(copy.base, "verify").exit_code == 0


@pytest.mark.full
def test_a_kept_version_and_a_changed_one_stand_side_by_side(tiny_run, tmp_path):
    store = without(tiny_run.store, tmp_path / "store")
    first = ingot("run", "tiny", store=store.base)
    assert first.returncode == 0, first.stdout[-3000:]
    changed = ingot("run", "tiny", "encode.seed=7", store=store.base)
    assert changed.returncode == 0, changed.stdout[-3000:]
    assert {stage: len(found) for stage, found in by_stage(store).items() if len(found) > 1} == {
        "ingest": 5, "encode": 2, "pretrain": 2, "finetune": 2, "evaluate": 2, "register": 2,
    }  # fmt: skip
    names = [thing.version for thing in store.versions("models", "tiny")]
    assert names[0] == "v1"
    assert names[1].startswith("v1+")
    assert len(names) == 2
    assert json.loads((store.base / "models/tiny/v1/manifest.json").read_text())["version"] == "v1"
    listed = asked(store.base, "gc").output
    needless = {address for address in store.addresses() if address in listed}
    # champion and candidate may both be the second version now; then the record of the first registration is needed by nothing
    assert needless <= set(store.addresses("register"))
    assert len(needless) <= 1
