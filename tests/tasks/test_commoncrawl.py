"""Common Crawl by snapshot: what is asked of the hosts, what is drawn, and what a mistake says."""

import gzip
import hashlib
import json
from itertools import pairwise

import pytest
from http_server import Fault, serve

from model.config import from_dict, to_dict
from model.errors import ConfigError, InputError, NetworkError, NotFoundError
from tasks.corpus import commoncrawl
from tasks.corpus.commoncrawl import CommonCrawlConfig
from tasks.corpus.download import DownloadConfig

DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=10_000, tries=1, timeout=5, user_agent="")
NAMES = ["CC-MAIN-2008-2009", "CC-MAIN-2026-40", "CC-MAIN-2026-44", "CC-MAIN-2025-51", "CC-MAIN-2012"]
PATHS = [f"crawl-data/CC-MAIN-2026-40/segments/17{n:09d}.1/warc/CC-MAIN-2026-{n:05d}.warc.gz" for n in range(8)]


def config(base, **more):
    return CommonCrawlConfig(
        **(
            {
                "snapshot": "CC-MAIN-2026-40",
                "files": 3,
                "byte_budget": 1 << 30,
                "base_url": base,
                "index_url": base,
                "format": "warc",
                "select": None,
            }
            | more
        )
    )


@pytest.fixture
def host(tmp_path):
    root = tmp_path / "cc"
    (root / "crawl-data/CC-MAIN-2026-40").mkdir(parents=True)
    (root / "collinfo.json").write_text(json.dumps([{"id": name} for name in NAMES]))
    (root / "crawl-data/CC-MAIN-2026-40/warc.paths.gz").write_bytes(gzip.compress("\n".join(PATHS).encode() + b"\n"))
    for n, path in enumerate(PATHS):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(gzip.compress(b"WARC/1.0 %d" % n))
    return root


def test_latest_is_the_newest_weekly_snapshot_whatever_the_listing_order(host):
    with serve(host) as server:
        assert commoncrawl.latest(config(server.url), DOWNLOAD) == "CC-MAIN-2026-44"
    assert commoncrawl.latest(config(str(host)), DOWNLOAD) == "CC-MAIN-2026-44"


def test_latest_resolves_to_exact_paths(host):
    (host / "collinfo.json").write_text(json.dumps([{"id": "CC-MAIN-2026-40"}]))
    assert commoncrawl.resolve(config(str(host), snapshot="latest"), DOWNLOAD) == commoncrawl.resolve(config(str(host)), DOWNLOAD)


def test_the_draw_keeps_its_first_files_when_it_grows_and_stays_in_listed_order(host):
    draws = [[f.path for f in commoncrawl.resolve(config(str(host), files=n), DOWNLOAD).files] for n in range(1, 10)]
    assert [len(d) for d in draws] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    for smaller, larger in pairwise(draws):
        assert set(smaller) <= set(larger) and larger == [p for p in PATHS if p in larger]
    assert draws[0] == [min(PATHS, key=lambda p: hashlib.sha256(p.encode()).digest())]


def test_the_byte_budget_ends_the_draw_and_says_what_it_left_out(host):
    sizes = {p: (host / p).stat().st_size for p in PATHS}
    asked = commoncrawl.resolve(config(str(host), files=8, byte_budget=sum(sizes.values()) - 1), DOWNLOAD)
    assert len(asked.files) == 7 and asked.bytes < sum(sizes.values())
    assert [entry["reason"] for entry in asked.info["left_out"]] == ["byte_budget"]
    assert {f.path for f in asked.files} | {entry["path"] for entry in asked.info["left_out"]} == set(PATHS)
    with pytest.raises(ConfigError, match="byte_budget is 5"):
        commoncrawl.resolve(config(str(host), byte_budget=5), DOWNLOAD)


def test_an_unknown_snapshot_is_answered_with_the_nearest_and_the_newest(host):
    with (
        serve(host) as server,
        pytest.raises(NotFoundError, match=r"no snapshot CC-MAIN-2026-41 .*CC-MAIN-2026-40.*newest: CC-MAIN-2026-44"),
    ):
        commoncrawl.resolve(config(server.url, snapshot="CC-MAIN-2026-41"), DOWNLOAD)


def test_a_snapshot_name_of_another_form_is_refused_by_name():
    with pytest.raises(ConfigError, match="snapshot"):
        from_dict(CommonCrawlConfig, to_dict(config("")) | {"snapshot": "2026-40"})


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'["x"]'])
def test_a_listing_that_is_none_names_its_url(host, body):
    (host / "collinfo.json").write_bytes(body)
    with pytest.raises(InputError, match=r"collinfo\.json"):
        commoncrawl.latest(config(str(host)), DOWNLOAD)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "crawl-data/../../x.warc.gz"])
def test_a_listed_path_outside_the_host_is_refused(host, path):
    (host / "crawl-data/CC-MAIN-2026-40/warc.paths.gz").write_bytes(gzip.compress(f"{PATHS[0]}\n{path}\n".encode()))
    with pytest.raises(InputError, match="no path below"):
        commoncrawl.resolve(config(str(host)), DOWNLOAD)


def test_a_missing_file_and_a_busy_host_are_told_apart(host):
    listing = "/crawl-data/CC-MAIN-2026-40/warc.paths.gz"
    with serve(host, {listing: [Fault(status=503)]}) as server, pytest.raises(NetworkError, match="503"):
        commoncrawl.resolve(config(server.url), DOWNLOAD)
    (host / PATHS[0]).unlink()
    with serve(host) as server, pytest.raises(NotFoundError, match="00000.warc.gz"):
        commoncrawl.resolve(config(server.url, files=8), DOWNLOAD)


def test_run_keeps_the_host_paths_and_the_same_request_is_complete(host, store):
    with serve(host) as server:
        made = commoncrawl.run(store, "t", config(server.url), DOWNLOAD)
        again = commoncrawl.run(store, "t", config(server.url, byte_budget=10**12), DOWNLOAD)
    assert again.skipped and again.address == made.address
    assert made.info["source"] == "commoncrawl" and made.info["snapshot"] == "CC-MAIN-2026-40" and made.info["role"] == "source"
    for file in made.files:
        assert store.path(made, file).read_bytes() == (host / file.path).read_bytes() and file.path in PATHS


def test_rebuild_and_whole_make_a_dropped_ingest_anew(host, store):
    made = commoncrawl.run(store, "t", config(str(host)), DOWNLOAD)
    store.drop(made, {})
    assert commoncrawl.run(store, "t", config(str(host)), DOWNLOAD).skipped
    whole = commoncrawl.run(store, "t", config(str(host)), DOWNLOAD, whole=True)
    assert not whole.skipped and whole.content == made.content and not store.dropped(whole)
    assert not commoncrawl.run(store, "t", config(str(host)), DOWNLOAD, rebuild=True).skipped
