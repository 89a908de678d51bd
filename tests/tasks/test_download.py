"""Downloads: whole or not at all, whatever the host does; the ingest stage on top of them."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from http_server import Fault, serve

from model.errors import EmptyError, InputError, NetworkError, NotFoundError, SpaceError
from tasks.corpus.address import retry_after
from tasks.corpus.download import DownloadConfig, Fetcher, RateLimit, Request, Wanted, ingest, safe_path

CONFIG = DownloadConfig(rate_bytes=0, requests_per_second=10_000, tries=4, timeout=5, user_agent="test@example.org")
BODY = bytes(range(256)) * 4096  # 1 MiB
SHA1 = f"sha1:{hashlib.sha1(BODY).hexdigest()}"
REPO = Path(__file__).parents[2]


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "x.bin").write_bytes(BODY)
    return folder


def fetch(server, target, waits=None, **more):
    with Fetcher(CONFIG, sleep=(waits if waits is not None else []).append) as net:
        return net.fetch(f"{server.url}/x.bin", target, **({"expect_bytes": len(BODY), "digest": SHA1} | more))


def only(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=503)],
        [Fault(status=429, headers={"Retry-After": "7"})],
        [Fault(cut=300_000)],
        [Fault(cut=300_000, reset=True)],
        [Fault(cut=10), Fault(cut=500_000, reset=True), Fault(status=500)],
        [Fault(cut=300_000), Fault(no_range=True)],
        [Fault(cut=300_000, headers={"ETag": '"old"'})],
        [Fault(cut=300_000, headers={"ETag": ""})],
        [Fault(cut=300_000, headers={"ETag": "", "Last-Modified": ""})],
        [Fault(cut=300_000), Fault(status=416)],
        [Fault(cut=300_000), Fault(headers={"Content-Range": "bytes 5-1048575/1048576"})],
        [Fault(body=BODY[:-1] + b"?")],
        [Fault(body=BODY[:1000])],
        [Fault(headers={"Content-Length": ""})],
    ],
    ids=lambda faults: "+".join(str(f.status if f.status != 200 else f.cut or "bad") for f in faults),
)
def test_a_passing_fault_leaves_the_whole_file_and_nothing_beside_it(host, tmp_path, faults):
    target = tmp_path / "out" / "x.bin"
    with serve(host, {"/x.bin": faults}) as server:
        got = fetch(server, target)
    assert target.read_bytes() == BODY and got.sha256 == hashlib.sha256(BODY).hexdigest() and got.bytes == len(BODY)
    assert only(target.parent) == ["x.bin"]


@pytest.mark.parametrize(
    "fault, error",
    [
        (Fault(status=404), NotFoundError),
        (Fault(status=410), NotFoundError),
        (Fault(status=403), InputError),
        (Fault(status=503), NetworkError),
        (Fault(status=429), NetworkError),
        (Fault(cut=1000), NetworkError),
        (Fault(cut=1000, reset=True), NetworkError),
        (Fault(body=BODY[:1000]), NetworkError),
        (Fault(body=BODY + b"more"), InputError),
        (Fault(body=BODY[:-1] + b"?"), InputError),
    ],
    ids=lambda v: str(v.status if isinstance(v, Fault) else v.__name__),
)
def test_a_lasting_fault_is_an_error_that_names_the_url_and_no_file(host, tmp_path, fault, error):
    target = tmp_path / "out" / "x.bin"
    with serve(host, {"/x.bin": [fault] * 30}) as server, pytest.raises(error, match=r"/x\.bin") as found:
        fetch(server, target)
    assert type(found.value) is error
    assert not target.exists()


@pytest.mark.parametrize("status", [404, 410, 403, 401])
def test_a_refusal_is_not_tried_again(host, tmp_path, status):
    waits = []
    with serve(host, {"/x.bin": [Fault(status=status)] * 9}) as server:
        with pytest.raises(InputError):
            fetch(server, tmp_path / "x", waits)
        assert len(server.asked("/x.bin")) == 1
    assert waits == []


def test_a_checksum_that_differs_twice_is_named_and_leaves_no_bytes_to_resume(host, tmp_path):
    out = tmp_path / "out"
    with serve(host) as server, pytest.raises(InputError, match="sha1 .* where 0{40} is listed, twice"):
        fetch(server, out / "x.bin", digest="sha1:" + "0" * 40)
    assert only(out) == []


def test_a_resumed_download_asks_for_the_rest_only(host, tmp_path):
    with serve(host, {"/x.bin": [Fault(cut=400_000)]}) as server:
        fetch(server, tmp_path / "x")
        asked = server.asked("/x.bin")
    assert [a.status for a in asked] == [200, 206]
    assert asked[1].start > 0 and asked[1].start + asked[1].sent == len(BODY)
    assert asked[1].headers["If-Range"].startswith('"')


def test_a_part_of_another_version_is_not_continued(host, tmp_path):
    target = tmp_path / "x"
    (host / "x.bin").write_bytes(b"?" * len(BODY))
    with serve(host, {"/x.bin": [Fault(cut=400_000)]}) as server:
        with pytest.raises(NetworkError, match="it resumes at byte 400,000"), Fetcher(replace(CONFIG, tries=1)) as net:
            net.fetch(f"{server.url}/x.bin", target)
        (host / "x.bin").write_bytes(BODY)
        assert fetch(server, target).resumed == 0
    assert target.read_bytes() == BODY


def test_a_host_that_continues_another_version_despite_if_range_is_caught(host, tmp_path):
    faults = [Fault(cut=400_000, body=b"?" * len(BODY), headers={"ETag": '"a"'}), Fault(headers={"ETag": '"a"'}), Fault()]
    with serve(host, {"/x.bin": faults}) as server:
        fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_file_that_is_there_is_verified_and_not_fetched_again(host, tmp_path):
    target = tmp_path / "x"
    with serve(host) as server:
        fetch(server, target)
        again = fetch(server, target)
        assert len(server.asked("/x.bin")) == 1 and again.resumed == len(BODY)
        target.write_bytes(BODY[:-1] + b"?")
        fetch(server, target)
    assert target.read_bytes() == BODY


def test_waits_grow_are_jittered_and_follow_retry_after_up_to_a_cap(host, tmp_path):
    date = formatdate(time.time() + 100, usegmt=True)
    waits = []
    with serve(host, {"/x.bin": [Fault(status=503, headers={"Retry-After": after}) for after in ("9", date, "86400")]}) as server:
        fetch(server, tmp_path / "a", waits)
    assert 9 <= waits[0] < 10 and 90 < waits[1] <= 101 and waits[2] == 300
    waits = []
    with serve(host, {"/x.bin": [Fault(status=503)] * 3}) as server:
        fetch(server, tmp_path / "b", waits)
    assert all(2**n * 0.5 <= wait <= 2**n * 1.5 for n, wait in enumerate(waits)) and len(set(waits)) == 3


def test_tries_count_only_while_nothing_comes(tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "x.bin").write_bytes(BODY * 12)
    with serve(tmp_path / "host", {"/x.bin": [Fault(cut=2 << 20)] * 6}) as server:  # 7 requests, CONFIG has 4 tries
        fetch(server, tmp_path / "x", expect_bytes=12 << 20, digest="")
        assert len(server.asked("/x.bin")) > CONFIG.tries
    assert (tmp_path / "x").read_bytes() == BODY * 12


def test_a_stalled_host_ends_in_a_time_out(host, tmp_path):
    with serve(host, {"/x.bin": [Fault(cut=1000, stall=3)]}) as server:
        with Fetcher(replace(CONFIG, timeout=0.3, tries=1)) as net, pytest.raises(NetworkError, match="ReadTimeout"):
            net.fetch(f"{server.url}/x.bin", tmp_path / "x")
        with Fetcher(replace(CONFIG, timeout=0.5)) as net:
            assert net.fetch(f"{server.url}/x.bin", tmp_path / "x").resumed == 1000


def test_a_host_that_dribbles_counts_as_stalled(host):
    clock = iter(range(0, 10**6, 20))  # each look at the clock is 20 s later
    (host / "few").write_bytes(b"x" * 900)
    with serve(host) as server, Fetcher(replace(CONFIG, timeout=10, tries=1), now=lambda: next(clock), sleep=lambda s: None) as net:
        assert len(net.read_small(f"{server.url}/x.bin")) == len(BODY)
        with pytest.raises(NetworkError, match="stalls: 900 bytes"):
            net.read_small(f"{server.url}/few")


def test_an_unreachable_host_is_a_network_error(tmp_path):
    with Fetcher(CONFIG, sleep=lambda s: None) as net, pytest.raises(NetworkError, match="tries: 4"):
        net.fetch("http://127.0.0.1:9/x", tmp_path / "x")


def test_local_folders_and_file_urls_pass_the_same_checks(host, tmp_path):
    with Fetcher(CONFIG, sleep=lambda s: None) as net:
        for url in (str(host / "x.bin"), f"file://{host}/x.bin"):
            assert net.size(url) == len(BODY)
            assert net.fetch(url, tmp_path / "x", expect_bytes=len(BODY), digest=SHA1).sha256 == hashlib.sha256(BODY).hexdigest()
            (tmp_path / "x").unlink()
            with pytest.raises(InputError, match="twice"):
                net.fetch(url, tmp_path / "x", digest="sha1:0")
            with pytest.raises(NotFoundError, match="none"):
                net.fetch(url.replace("x.bin", "none"), tmp_path / "x")
        with pytest.raises(InputError, match="ftp"):
            net.size("ftp://example.org/x")
    assert not (tmp_path / "x").exists()


def test_an_index_is_bounded_packed_and_unpacked(host):
    import gzip

    (host / "bomb.gz").write_bytes(gzip.compress(bytes(5_000_000)))
    (host / "two.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    (host / "clipped.gz").write_bytes(gzip.compress(os.urandom(1000))[:500])
    with serve(host) as server, Fetcher(CONFIG, sleep=lambda s: None) as net:
        assert net.read_small(f"{server.url}/two.gz") == b"a\nb\n"
        for name, problem in (("x.bin", "longer"), ("bomb.gz", "unpacks to more"), ("clipped.gz", "clipped gzip")):
            with pytest.raises(InputError, match=problem):
                net.read_small(f"{server.url}/{name}", 100_000)


def test_requests_name_ingot_and_ask_for_the_bytes_as_they_are(host, tmp_path):
    with serve(host) as server:
        fetch(server, tmp_path / "x")
        headers = server.asked("/x.bin")[0].headers
    assert headers["User-Agent"].startswith("ingot/0") and "test@example.org" in headers["User-Agent"]
    assert headers["Accept-Encoding"] == "identity"


def test_a_rate_limit_spreads_units_and_gives_no_credit_for_idle_time():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    limit = RateLimit(100, sleep, lambda: now[0])
    for _ in range(11):
        limit.take(50)
    assert now[0] == pytest.approx(5.0)
    now[0] += 1000
    limit.take(50)
    limit.take(50)
    assert now[0] == pytest.approx(1005.5)


@pytest.mark.parametrize(
    "value, seconds", [(None, None), ("5", 5), ("soon", None), ("Thu, 01 Jan 1970 00:01:40 GMT", 50), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)]
)
def test_retry_after_reads_seconds_and_dates(value, seconds):
    assert retry_after(value, now=50.0) == seconds


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "", "a/./b", "_work/x", "a\\b", "a b", "a/\n"])
def test_a_listed_path_that_could_leave_the_store_is_unsafe(path):
    assert not safe_path(path)


def request(server_url, **more):
    files = (Wanted("crawl/a.gz", "", f"{server_url}/a.gz", 1000), Wanted("crawl/b.gz", "", f"{server_url}/b.gz", 3 << 20))
    return Request("commoncrawl", "source", "CC-MAIN-2026-40", "terms", more.get("files", files), {"left_out": []})


def quiet(done, total, unit):
    pass


@pytest.fixture
def two(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.gz").write_bytes(os.urandom(1000))
    (folder / "b.gz").write_bytes(os.urandom(3 << 20))
    return folder


def test_ingest_balances_its_books_reports_bytes_and_is_found_again_from_any_host(two, store):
    told = []
    with serve(two) as server:
        made = ingest(store, "t", request(server.url), CONFIG, lambda *state: told.append(state), False, False)
        asked = len(server.asked())
        again = ingest(store, "t", request(server.url), CONFIG, quiet, False, False)
        assert len(server.asked()) == asked
    moved = ingest(store, "t", request("http://127.0.0.1:9"), CONFIG, quiet, False, False)
    total = 1000 + (3 << 20)
    assert (made.seen, made.kept, made.rejected, len(made.files)) == (2, 2, {}, 2)
    assert told[-1] == (total, total, "bytes") and [t[0] for t in told] == sorted(t[0] for t in told)
    assert again.skipped and moved.skipped and not made.skipped
    assert made.info == {"source": "commoncrawl", "snapshot": "CC-MAIN-2026-40", "license": "terms", "role": "source", "left_out": []}
    assert [p.name for p in store.dir(made.address).rglob("*.part*")] == []


def test_ingest_content_follows_bytes_and_what_documents_inherit_not_the_host(two, store, tmp_path):
    a = ingest(store, "t", request(str(two)), CONFIG, quiet, False, False)
    from tasks.corpus.manifest import Store

    other = Store(tmp_path / "elsewhere")
    b = ingest(other, "t", request(f"file://{two}"), CONFIG, quiet, False, False)
    c = ingest(other, "t", replace(request(str(two)), license="other"), CONFIG, quiet, False, False)
    (two / "a.gz").write_bytes(os.urandom(1000))
    d = ingest(other, "t", request(str(two)), CONFIG, quiet, True, False)
    assert a.content == b.content and a.fingerprint == b.fingerprint
    assert len({a.content, c.content, d.content}) == 3


def test_an_ingest_that_cannot_fit_says_so_before_it_begins(two, store, monkeypatch):
    monkeypatch.setattr("tasks.corpus.manifest.free_bytes", lambda store: 3 << 20)
    with serve(two) as server:
        with pytest.raises(SpaceError, match="byte budget"):
            ingest(store, "t", request(server.url), CONFIG, quiet, False, False)
        assert server.asked() == []


def test_an_empty_file_is_whole_and_a_note_left_by_a_kill_goes(tmp_path):
    (tmp_path / "none").touch()
    target = tmp_path / "out" / "x"
    with Fetcher(CONFIG) as net:
        assert net.fetch(str(tmp_path / "none"), target, expect_bytes=0).bytes == 0
        target.with_name("x.part.json").write_text("{}")
        net.fetch(str(tmp_path / "none"), target, expect_bytes=0)
    assert only(target.parent) == ["x"]


def test_ingest_of_nothing_is_an_error(store):
    with pytest.raises(EmptyError, match="byte_budget"):
        ingest(store, "t", request("", files=()), CONFIG, quiet, False, False)


CHILD = """
import sys
sys.path.insert(0, {repo!r}); sys.path.insert(0, {tests!r})
from test_download import *
from tasks.corpus.manifest import Store
slow = replace(CONFIG, rate_bytes=1_500_000)
ingest(Store({store!r}), "t", request({url!r}), slow, quiet, False, False)
"""


def test_kill_9_in_the_middle_of_a_download_resumes_by_range_with_the_same_bytes(two, store):
    with serve(two) as server:
        code = CHILD.format(repo=str(REPO), tests=str(Path(__file__).parent), store=str(store.base), url=server.url)
        env = os.environ | {"PYTHONPATH": str(REPO / "tests")}
        child = subprocess.Popen([sys.executable, "-c", code], env=env)
        try:
            limit = time.monotonic() + 60
            while sum(p.stat().st_size for p in store.base.rglob("b.gz.part")) < 500_000 and time.monotonic() < limit:
                assert child.poll() is None, "the download ended before it could be killed"
                time.sleep(0.01)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        (part,) = store.base.rglob("b.gz.part")
        had = part.stat().st_size
        assert store.addresses("ingest") and store.manifest(store.addresses("ingest")[0]) is None
        made = ingest(store, "t", request(server.url), CONFIG, quiet, False, False)
        last = server.asked("/b.gz")[-1]
    assert 0 < had < 3 << 20
    assert (last.status, last.start, last.sent) == (206, had, (3 << 20) - had)
    assert len(server.asked("/a.gz")) == 1
    for name in ("a.gz", "b.gz"):
        assert (store.dir(made.address) / "crawl" / name).read_bytes() == (two / name).read_bytes()
