"""Index look-ups against a scan of every line: by domain, URL and column, reading little, with lines that are broken and genuine ones."""

import dataclasses
import gzip
import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_host import add_indexes, cdxj, surt, write_cdx
from http_server import Fault, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError, InputError, NetworkError
from tasks.corpus import cdx
from tasks.corpus.download import DownloadConfig, Fetcher
from tasks.corpus.selection import Place, SelectConfig, matcher

DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=1_000_000, tries=1, timeout=5, user_agent="")
ALL = SelectConfig((), (), (), (), (), "", "", "cdx", 0)
CRAWL, FILE = "CC-MAIN-2026-40", "crawl-data/CC-MAIN-2026-40/segments/1.0/warc/CC-MAIN-1-00000.warc.gz"
HOSTS = ["example.org", "www.example.org", "sub.example.org", "example.com", "example-shop.org", "examples.org", "a.b.c.example.org", "zh.example", "10.0.0.7"]  # fmt: skip
PATHS = ["/", "/docs", "/docs/", "/Docs/A", "/docs/b?q=1", "/docsis", "/d", "/docs/%E4%B8%AD", "/blog/2026/x.html"]


def row(url, number, **more):
    return {
        "file": FILE, "offset": number * 1000, "length": 900, "url": url, "surt": surt(url), "date": f"2026-10-{number % 28 + 1:02d}T00:00:00Z",
        "status": 200, "mime": "text/html", "detected": "text/html", "languages": ("eng", "zho", "zho,eng", "")[number % 4],
    } | more  # fmt: skip


ROWS = [row(f"{scheme}://{host}{port}{path}", n) for n, (scheme, host, port, path) in enumerate(
    (scheme, host, port, path) for host in HOSTS for path in PATHS for scheme, port in (("https", ""), ("http", ""), ("https", ":8443"))
)]  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A crawl of three pages a path on nine hosts."""
    root = tmp_path_factory.mktemp("cc")
    (root / f"crawl-data/{CRAWL}").mkdir(parents=True)
    add_indexes(root, CRAWL, ROWS)
    return root


def places(rows, select):
    wants = matcher(select)
    return {(r["file"], r["offset"]) for r in rows if wants(r["url"], r["date"][:10], r["languages"], r["detected"], r["status"])}


def look(base, select, files=(FILE,)):
    with Fetcher(DOWNLOAD) as net:
        return (cdx.cdx if select.index == "cdx" else cdx.table)(net, str(base), CRAWL, select, files)


SELECTIONS = st.builds(
    SelectConfig,
    domains=st.lists(st.sampled_from([*HOSTS, "org", "nowhere.example", "EXAMPLE.ORG"]), max_size=2).map(tuple),
    urls=st.lists(
        st.sampled_from(
            ["https://example.org/", "https://example.org/docs", "https://www.example.org/Docs/", "http://example.org/docs/%E4", "*://sub.example.org/*b*",
             "https://example.org:8443/docs", "https://10.0.0.7/d"]
        ),
        max_size=2,
    ).map(tuple),
    languages=st.sampled_from([(), ("eng",), ("zho", "fra")]),
    mime=st.sampled_from([(), ("text/html",), ("text/plain",)]),
    statuses=st.sampled_from([(), (200,), (404,)]),
    since=st.sampled_from(["", "2026-10-05"]),
    until=st.sampled_from(["", "2026-10-20"]),
    index=st.sampled_from(["cdx", "table"]),
    gap=st.just(0),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SELECTIONS)
def test_a_look_up_finds_what_a_scan_of_all_rows_finds(host, select):
    if select.index == "cdx" and not (select.domains or select.urls):
        with pytest.raises(ConfigError, match=r"needs select\.domains"):
            look(host, select)
        return
    found = look(host, select)
    assert found.places.keys() == places(ROWS, select) and found.broken == 0
    for place in found.places.values():
        assert (place.url, place.length) == next((r["url"], r["length"]) for r in ROWS if r["offset"] == place.offset)


def test_records_of_other_files_are_not_taken(host):
    for index in ("cdx", "table"):
        assert look(host, dataclasses.replace(ALL, domains=("org",), index=index), ("another.warc.gz",)).places == {}


def many(root, count):
    """A crawl of many hosts, whose index has many windows."""
    (root / f"crawl-data/{CRAWL}").mkdir(parents=True)
    rows = [row(f"https://h{n:06d}.example/{hashlib.sha512(b'%d' % n).hexdigest()}", n) for n in range(count)]
    add_indexes(root, CRAWL, rows, block=2, shards=3, parts=4)
    return rows


def test_one_domain_costs_a_few_small_requests_of_either_index(tmp_path, monkeypatch):
    monkeypatch.setattr(cdx, "WINDOW", 1 << 9)
    rows = many(tmp_path, 4000)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "cc-index").rglob("*") if path.is_file()}
    with serve(tmp_path) as server:
        for n in (0, 1, 1717, 3998, 3999):
            found = look(server.url, dataclasses.replace(ALL, domains=(f"h{n:06d}.example",)))
            assert [p.url for p in found.places.values()] == [rows[n]["url"]]
        asked = server.asked()
        assert len([a for a in asked if a.path.endswith("cluster.idx")]) < 5 * 16  # log2 of some 400 windows, and a few
        assert sum(a.sent for a in asked if a.path.endswith("cluster.idx")) < sizes["cluster.idx"] / 4
        assert sum(a.sent for a in asked if "cdx-" in a.path) < sum(size for name, size in sizes.items() if name.startswith("cdx-")) / 50
        before = len(asked)
        found = look(server.url, dataclasses.replace(ALL, domains=("h001717.example",), index="table"))
        assert [p.url for p in found.places.values()] == [rows[1717]["url"]]
        asked = [a for a in server.asked()[before:] if a.path.endswith(".parquet")]
        rest = [a.sent for a in asked]
    assert found.bytes == sum(rest)
    parquet = {name: size for name, size in sizes.items() if name.endswith(".parquet")}
    # three of four parts give their footer only; of the other one row group of four, and the columns that decide
    assert len(asked) < 4 + 12 and sum(rest) < sum(parquet.values()) / 2


def test_a_column_that_nothing_asks_for_is_not_read(tmp_path):
    many(tmp_path, 400)
    with serve(tmp_path) as server:
        nothing = look(server.url, dataclasses.replace(ALL, languages=("isl",), index="table"))
        footers = nothing.bytes
        some = look(server.url, dataclasses.replace(ALL, languages=("eng",), index="table"))
    assert nothing.places == {} and len(some.places) == 100 and footers < some.bytes


def test_broken_lines_are_counted_and_the_others_found(tmp_path):
    (tmp_path / f"crawl-data/{CRAWL}").mkdir(parents=True)
    rows = [row(f"https://example.org/{n}", n) for n in range(20)]
    broken = [{"length": 0}, {"offset": -1}, {"length": "many"}, {"file": None}, {"url": None}]
    for number, change in enumerate(broken):
        rows[3 * number] = rows[3 * number] | change
    rows[17] = rows[17] | {"status": "-", "languages": ""}
    write_cdx(tmp_path, CRAWL, rows, 7, 2)
    found = look(tmp_path, dataclasses.replace(ALL, domains=("example.org",)))
    assert found.broken == len(broken) and len(found.places) == 20 - len(broken)
    assert next(p for p in found.places.values() if p.offset == 17_000).status is None


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_a_line_are_a_place_or_one_broken_line(line):
    found = cdx.Found()
    cdx._take(line.replace(b"\n", b""), lambda *told: True, (FILE,), found)
    assert found.broken + len(found.places) <= 1 and found.broken == 1 - len(found.places)


@pytest.mark.parametrize("change", ["cluster", "shard", "block", "parquet", "columns", "listing", "no cluster"])
def test_an_index_that_is_none_names_its_file(change, host, tmp_path):
    root = tmp_path / "cc"
    shutil.copytree(host, root)
    folder = root / f"cc-index/collections/{CRAWL}/indexes"
    parts = sorted(root.rglob("subset=warc/*.parquet"))
    select = dataclasses.replace(ALL, domains=("example.org",), index="table" if change in ("parquet", "columns") else "cdx")
    if change == "cluster":
        (folder / "cluster.idx").write_text((folder / "cluster.idx").read_text().replace("cdx-0", "../x"))
        match = "no file of a CDX index"
    elif change in ("shard", "block"):
        for path in folder.glob("cdx-*"):
            path.write_bytes(path.read_bytes()[1:] + b"x" if change == "block" else b"")
        match = "not whole gzip" if change == "block" else "no bytes"
    elif change == "parquet":
        parts[0].write_bytes(b"not parquet at all")
        match = "no parquet file"
    elif change == "columns":
        pq.write_table(pa.table({"url": ["https://example.org/"]}), parts[0])
        match = "no column fetch_time"
    else:
        lines = ["/etc/passwd"] if change == "listing" else [f"cc-index/collections/{CRAWL}/indexes/cdx-00000.gz"]
        (root / f"crawl-data/{CRAWL}/cc-index.paths.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        match = "no path below" if change == "listing" else "names no cluster"
    with pytest.raises(InputError, match=match):
        look(root, select)


def test_a_host_that_fails_while_parquet_is_read_is_a_network_error(host):
    [part, *_] = sorted(path.relative_to(host) for path in host.rglob("subset=warc/*.parquet"))
    with serve(host, {f"/{part}": [Fault(), Fault(status=503)]}) as server, pytest.raises(NetworkError, match="503"):
        look(server.url, dataclasses.replace(ALL, domains=("example.org",), index="table"))


def test_a_host_without_ranges_is_refused_by_name(host):
    cluster = f"/cc-index/collections/{CRAWL}/indexes/cdx-00000.gz"
    with serve(host, {cluster: [Fault(no_range=True)] * 3}) as server, pytest.raises(InputError, match="whole file"):
        look(server.url, dataclasses.replace(ALL, urls=("https://www.example.org/docs/b",)))


@pytest.mark.realdata
def test_genuine_lines_of_common_crawl_are_read(realdata):
    lines = (realdata / "commoncrawl/whirlwind/cdxj-lines-from-README.cdxj").read_bytes().splitlines()
    found = cdx.Found()
    for line in lines:
        name = json.loads(line.split(b" ", 2)[2])["filename"]
        cdx._take(line, lambda *told: True, (name,), found)
    last = Place("crawl-data/CC-MAIN-2024-22/segments/1715971057216.39/warc/CC-MAIN-20240517233122-20240518023122-00000.warc.gz", 80610731, 17423,
                 "https://an.wikipedia.org/wiki/Escopete", "2024-05-18", "", "text/html", 200)  # fmt: skip
    assert found.broken == 0 and list(found.places.values())[-1] == last
    [(low, high)] = cdx.keys(dataclasses.replace(ALL, urls=("https://an.wikipedia.org/wiki/Escopete",)))
    assert all(low.encode() <= line < high.encode() for line in lines)
    count = 0
    for path in sorted((realdata / "commoncrawl/pywb/cdxj").glob("*.cdxj")):
        for line in path.read_bytes().splitlines():
            if b"filename" in line and b" {" in line:
                told = json.loads(line.split(b" ", 2)[2])
                url, key = told["url"], line.split(b" ", 1)[0].decode()
                if "@" in url or url.count("/") < 3 or "?" in url.split("/")[2]:
                    continue  # names no path after its host: nothing that a user's pattern could begin with
                begin = "/".join(url.split("/")[:3]) + "/"
                [(low, high)] = cdx.keys(dataclasses.replace(ALL, urls=(begin,)))
                assert low <= key < high, (url, key)
                [(low, high)] = cdx.keys(dataclasses.replace(ALL, urls=(url,)))
                assert low <= key < high or "?" in url, (url, key, low)
                count += 1
    assert count > 100


def test_a_line_as_the_tests_write_it_is_one_of_common_crawls():
    assert cdxj(row("https://example.org/a", 5)).startswith(
        'org,example)/a 20261006000000 {"url": "https://example.org/a", "mime": "text/html"'
    )
