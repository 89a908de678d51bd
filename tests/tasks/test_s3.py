"""A store on S3: the same contents as a local one, complete or absent, one of two writers wins, damage is found. The server is moto's, on loopback."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chain import asked, corpus, golden_of, ingot

from flows import recipes
from model.config import STRICT
from model.errors import ConfigError, DamageError, NetworkError, StoreError
from tasks.corpus import manifest as m
from tasks.corpus.engine import local
from tasks.corpus.manifest import Result, Stage, Store, run_stage

pytestmark = pytest.mark.xdist_group("s3")
STAGE = Stage("fake", 1)


@dataclass(frozen=True)
class Config:
    __pydantic_config__ = STRICT
    size: int


def body(text="hello", wait=None):
    def write(work):
        for name in ("one.txt", "two.txt"):
            (work.dir / name).write_text(text + name)
        if wait:
            wait.wait(20)
        return Result([("one.txt", 1), ("two.txt", 1)], seen=1, kept=1, rejected={})

    return write


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """Variables that lead to an S3 server with a bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -c constraints.txt 'ingot-llm[s3]'")
    pytest.importorskip("moto.server", reason="moto is not installed: pip install -c constraints.txt 'moto[s3,server]'")
    import fsspec
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield variables
        fsspec.filesystem("s3").clear_instance_cache()
    moto.stop()


@pytest.fixture
def url(server, request) -> str:
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def remote(url, tmp_path) -> Store:
    return Store(url, cache=tmp_path / "cache")


def test_another_machine_finds_what_one_made(remote, url, tmp_path):
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    remote.publish("corpora", "c", "v1", [made], {}, {})
    other = Store(url, cache=tmp_path / "other")
    found = run_stage(other, STAGE, "r", Config(1), {}, lambda work: pytest.fail("made twice"))
    assert found.skipped and other.path(found, found.files[0]).read_text() == "helloone.txt"
    assert [thing.address for thing in other.publications()] == ["corpora/c/v1"]
    assert other.size(made.address) > 20


def test_what_another_machine_writes_later_is_seen(remote, url, tmp_path):
    other = Store(url, cache=tmp_path / "other")
    assert other.addresses() == [] and list(other.publications()) == []
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    remote.publish("corpora", "c", "v1", [made], {}, {})
    assert other.addresses() == [made.address] and len(list(other.publications())) == 1


def test_a_killed_upload_leaves_no_manifest_and_the_next_run_is_whole(remote, url, tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal
        from tasks.corpus.engine import local
        from tasks.corpus.manifest import Result, Stage, Store, run_stage
        store = Store({url!r}, cache={str(tmp_path / "cache")!r})
        put = store.fs.put_file
        def one(here, there, **more):
            if there.endswith("two.txt"):
                os.kill(os.getpid(), signal.SIGKILL)
            put(here, there, **more)
        store.fs.put_file = one
        def body(work):
            for name in ("one.txt", "two.txt"):
                (work.dir / name).write_text("hello" + name)
            return Result([("one.txt", 1), ("two.txt", 1)], seen=1, kept=1, rejected={{}})
        run_stage(store, Stage("fake", 1), "r", local(1, 60.0), {{}}, body)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(Path(m.__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
    (address,) = remote.addresses()
    assert remote.manifest(address) is None and remote._names(address) == ["one.txt"]
    made = run_stage(remote, STAGE, "r", local(1, 60.0), {}, body())
    assert not made.skipped
    remote.verify(made)


def test_of_two_writers_of_the_same_one_wins_and_the_other_finds_it(url, tmp_path):
    both, made = threading.Barrier(2), []

    def work(name):
        made.append(run_stage(Store(url, cache=tmp_path / name), STAGE, "r", Config(1), {}, body(wait=both)))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(manifest.skipped for manifest in made) == [False, True] and made[0] == made[1]


def test_of_two_writers_of_different_things_the_second_is_told(url, tmp_path):
    both, said = threading.Barrier(2), []

    def work(name):
        try:
            run_stage(Store(url, cache=tmp_path / name), STAGE, "r", Config(1), {}, body(name, wait=both))
        except StoreError as error:
            said.append(str(error))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1 and "was written by another run meanwhile" in said[0]


@pytest.mark.parametrize(("content", "refused"), [(1, False), (2, True)])
def test_a_version_that_another_run_publishes_meanwhile_is_found_or_refused(remote, url, tmp_path, monkeypatch, content, refused):
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    first = remote.publish("corpora", "c", "v1", [made], {"corpus": 1}, {})
    late, answers = Store(url, cache=tmp_path / "late"), [None]
    monkeypatch.setattr(late, "published", lambda *name: answers.pop() if answers else Store.published(late, *name))
    if refused:
        with pytest.raises(StoreError, match="corpora/c/v1 exists with another content; these fields differ: corpus"):
            late.publish("corpora", "c", "v1", [made], {"corpus": content}, {})
    else:
        assert late.publish("corpora", "c", "v1", [made], {"corpus": content}, {}) == first
    assert remote.published("corpora", "c", "v1") == first


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_damage_in_the_bucket_is_found_although_the_cache_is_whole_and_mended_on_request(remote, damage):
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    place = f"{remote.root}/{made.address}/two.txt"
    if damage == "missing":
        remote.fs.rm_file(place)
    else:
        remote.fs.pipe_file(place, b"hell" if damage == "shorter" else b"hullotwo.txt")
    with pytest.raises(DamageError, match=r"two\.txt .* --rebuild fake"):
        remote.verify(made)
    remote.verify(run_stage(remote, STAGE, "r", Config(1), {}, body(), rebuild=True))


def test_a_damaged_cache_is_fetched_again(remote):
    made = run_stage(remote, STAGE, "r", Config(1), {}, body())
    (remote.dir(made.address) / "two.txt").write_text("hullotwo.txt")
    assert remote.path(made, made.files[1]).read_text() == "hellotwo.txt"


def test_a_bucket_that_is_not_there_is_told_before_the_work_and_is_not_made(server, tmp_path):
    store = Store("s3://bukket/ingot", cache=tmp_path)
    with pytest.raises(StoreError, match="s3://bukket/ingot is not there.*Make the bucket"):
        run_stage(store, STAGE, "r", Config(1), {}, lambda work: pytest.fail("worked in vain"))
    assert "bukket" not in store.fs.ls("")


def test_a_server_that_does_not_answer_is_tried_again(server, tmp_path, monkeypatch):
    import s3fs

    store = Store("s3://bucket/ingot", cache=tmp_path)
    store.fs = s3fs.S3FileSystem(endpoint_url="http://127.0.0.1:9", config_kwargs={"retries": {"max_attempts": 0}, "connect_timeout": 1})
    store.fs.retries = 1
    with pytest.raises(NetworkError, match="s3://bucket/ingot: .*Could not connect"):
        store.read_json("corpora/c/v1/manifest.json")


def test_a_root_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"no store can be opened at nowhere://x.*INGOT_STORE"):
        Store("nowhere://x")


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_the_corpus_is_the_same_on_s3_and_every_command_reads_it(server, repo, tmp_path, monkeypatch):
    url = "s3://bucket/corpus"
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    store, r = Store(url), recipes.tiny()
    made = corpus(store, r)
    assert golden_of(made) == json.loads((repo / "tests" / "golden" / "stages.json").read_text())
    store.publish("indexes", r.name, r.version, [made["index"]], {}, {})
    store.publish("corpora", r.name, r.version, [made["decontaminate"]], {}, {"documents": made["decontaminate"].kept})
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "another machine"))
    clean = made["decontaminate"].address
    for words, expected in (
        (("show",), f"corpora/tiny/{r.version}"),
        (("show", clean), "documents-00000-000.parquet"),
        (("verify",), clean),
        (("gc",), made["encode"].address[:40]),
        (("report", f"corpora/tiny/{r.version}", "--to", str(tmp_path / "page.html")), "page.html"),
    ):
        said = asked(url, *words)
        assert said.exit_code == 0 and expected in said.output, (words, said.output, said.exception)
    assert "<html" in (tmp_path / "page.html").read_text()


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_whole_chain_runs_on_s3_and_another_machine_finds_it_complete(server, tiny_run, tmp_path):
    """Raw pages to a registered model: what every stage was made of is as in a local store."""
    url = "s3://bucket/chain"
    done = ingot("run", "tiny", store=tmp_path / "home", url=url, timeout=1200, INGOT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout[-4000:]
    local, there = Store(tiny_run.store), Store(url, cache=tmp_path / "cache")
    assert there.addresses() == local.addresses()
    for address in there.addresses():
        assert local.need(address).content == there.need(address).content, address
    assert [(t.address, t.fingerprint) for t in there.publications()] == [(t.address, t.fingerprint) for t in local.publications()]
    before = {address: there.need(address).about for address in there.addresses()}
    again = ingot("run", "tiny", store=tmp_path / "home", url=url, timeout=600, INGOT_CACHE=str(tmp_path / "another machine"))
    assert again.returncode == 0, again.stdout[-4000:]
    assert {address: there.need(address).about for address in there.addresses()} == before
