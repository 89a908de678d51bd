"""Single records: the same documents as from whole files, and no byte downloaded that was not asked for; killed, damaged and lied to."""

import dataclasses
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
from crawl_host import OLD, add_indexes, add_snapshot, add_wet, pages
from http_server import Fault, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from warcs import http, member, page

from model.config import from_dict, to_dict
from model.errors import ConfigError, EmptyError, NotFoundError
from tasks.corpus import commoncrawl, extract
from tasks.corpus import selection as packs
from tasks.corpus.commoncrawl import CommonCrawlConfig
from tasks.corpus.document import PartWriter, read_rows
from tasks.corpus.download import DownloadConfig
from tasks.corpus.extract import ExtractConfig
from tasks.corpus.manifest import Store
from tasks.corpus.selection import Place, SelectConfig, matcher, origins_path, span_bytes, spans

DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=1_000_000, tries=1, timeout=5, user_agent="")
ALL = SelectConfig((), (), (), (), (), "", "", "table", 0)
NUMBERS = itertools.count()
EXTRACT = ExtractConfig(1 << 20, 200, 20_000, 20, 30.0)


def config(base, select, **more):
    return CommonCrawlConfig(
        **({"snapshot": OLD, "files": 99, "byte_budget": 1 << 30, "base_url": base, "index_url": base, "format": "warc"} | more),
        select=select,
    )


def only(**fields):
    return dataclasses.replace(ALL, **fields)


@pytest.fixture(scope="module")
def host(sample, tmp_path_factory):
    """The sample's pages as a host with both indexes and WET files."""
    root = tmp_path_factory.mktemp("host")
    add_snapshot(root, OLD, sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz")))
    add_indexes(root, OLD)
    add_wet(root, OLD)
    return root


@pytest.fixture(scope="module")
def rows(host):
    return list(pages(host, OLD))


@pytest.fixture(scope="module")
def whole(host, tmp_path_factory):
    """Documents and rejects of the whole files, by format."""
    found = {}
    for form in ("warc", "wet"):
        store = Store(tmp_path_factory.mktemp(form))
        found[form] = extracted(store, commoncrawl.run(store, "t", config(str(host), None, format=form), DOWNLOAD))
    return found


def extracted(store, manifest):
    """(documents, rejects) of an ingest, without the stage's processes."""
    folder = store.base / f"out-{next(NUMBERS)}"
    folder.mkdir()
    for rank, file in enumerate(extract.raw_files(manifest)):
        with PartWriter(folder, rank, "extract") as out:
            extract.extract_rank(EXTRACT, extract._item(store, manifest, file), out)
    return [list(read_rows(sorted(folder.glob(f"{prefix}-*")))) for prefix in ("documents", "rejects")]


def wanted(rows, select):
    wants = matcher(select)
    return {(r["file"], r["offset"]) for r in rows if wants(r["url"], r["date"][:10], r["languages"], r["detected"], r["status"])}


def some_url(rows):
    return max((r["url"] for r in rows), key=lambda url: sum(r["url"].startswith(url[:24]) for r in rows))


SELECTIONS = {
    "domain": lambda rows: only(domains=(some_url(rows).split("/")[2],)),
    "beginning": lambda rows: only(urls=("/".join(some_url(rows).split("/")[:3]) + "/",)),
    "pattern": lambda rows: only(urls=("*://*/*a*",)),
    "language": lambda rows: only(languages=("zho",)),
    "mime": lambda rows: only(mime=("text/html",)),
    "status": lambda rows: only(statuses=(200, 301)),
    "days": lambda rows: only(since=sorted(r["date"] for r in rows)[len(rows) // 3][:10], until=max(r["date"] for r in rows)[:10]),
    "several": lambda rows: only(domains=("example", "com", "org", "example.org"), languages=("eng",), statuses=(200,)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_documents_of_selected_records_are_those_of_whole_files_that_match(name, host, rows, whole, store):
    select = SELECTIONS[name](rows)
    keys = wanted(rows, select)
    if not keys:
        pytest.fail("this selection selects nothing of the sample")
    got = extracted(store, commoncrawl.run(store, "t", config(str(host), select), DOWNLOAD))
    assert sum(map(len, got)) == len(keys)
    assert got == [[row for row in every if (row["origin_file"], row["origin_offset"]) in keys] for every in whole["warc"]]


@pytest.mark.parametrize("name", ["domain", "beginning"])
def test_both_indexes_name_the_same_request(name, host, rows):
    select = SELECTIONS[name](rows)
    requests = [commoncrawl.resolve(config(str(host), dataclasses.replace(select, index=index)), DOWNLOAD) for index in ("cdx", "table")]
    assert [f.path for f in requests[0].files] == [f.path for f in requests[1].files]


def test_only_the_records_that_match_are_downloaded_and_gaps_below_the_limit(host, rows, store):
    select = only(domains=(some_url(rows).split("/")[2],), index="cdx")
    keys = wanted(rows, select)
    assert 1 < len(keys) < len(rows)
    for gap in (0, 100_000):
        with serve(host) as server:
            made = commoncrawl.run(store, f"gap{gap}", config(server.url, dataclasses.replace(select, gap=gap)), DOWNLOAD, rebuild=True)
            asked = [a for a in server.asked() if a.path.endswith(".warc.gz")]
        assert all(a.status == 206 for a in asked)
        got = {(a.path[1:], byte) for a in asked for byte in range(a.start, a.start + a.sent)}
        used = {(r["file"], b) for r in rows if (r["file"], r["offset"]) in keys for b in range(r["offset"], r["offset"] + r["length"])}
        assert used <= got and len(got) == made.info["ranges"]["asked"] and len(used) == made.info["ranges"]["used"]
        assert len(asked) == made.info["ranges"]["requests"]
        if gap == 0:
            assert got == used and len(asked) == len(keys)
        else:
            assert used < got and len(asked) < len(keys)


def test_wet_records_that_do_not_match_are_counted_and_the_others_are_documents_of_the_whole(host, rows, whole, store):
    select = only(languages=("eng",), domains=("org", "com", "example", "net"))
    made = commoncrawl.run(store, "t", config(str(host), select, format="wet"), DOWNLOAD)
    wants = matcher(select)
    matching = [r for r in rows if r["detected"] == "text/html" and r["status"] == 200]
    urls = {r["url"] for r in matching if wants(r["url"], r["date"][:10], r["languages"], "", None)}
    assert 0 < len(urls) < len(matching)
    assert made.rejected == {"not_selected": len(matching) - made.kept} and made.seen == len(matching)
    kept, rejected = extracted(store, made)
    assert kept == [row for row in whole["wet"][0] if row["url"] in urls]
    assert len(kept) + len(rejected) == made.kept == sum(r["url"] in urls for r in matching)


def test_wet_documents_come_end_to_end(whole):
    kept, _ = whole["wet"]
    assert len(kept) > 20 and {row["origin_file"].rpartition(".warc")[2] for row in kept} == {".wet.gz"}
    assert all(row["text"] and row["url"] and row["date"] and row["origin_length"] > 0 for row in kept)


LIES = {
    "another record": {"offset": 1},
    "half a member": {"length": -10},
    "two members": {"length": +40},
    "not a member": {"offset": 7},
    "beyond the end": {"offset": 1 << 30},
    "of another URL": {"url": "http://elsewhere.example/"},
    "far too long": {"length": 100 << 20},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_range_that_is_not_the_record_is_one_problem_and_the_others_are_kept(lie, tmp_path, store):
    (tmp_path / "a.warc.gz").write_bytes(b"".join(member(f"http://e.example/{n}", http(page() + b"<!-- %d -->" % n)) for n in range(5)))
    root = tmp_path / "host"
    add_snapshot(root, OLD, [tmp_path / "a.warc.gz"])
    true = list(pages(root, OLD))
    change = LIES[lie]
    lied = true[2] | {"offset": true[2]["offset"] + change.get("offset", 0), "length": true[2]["length"] + change.get("length", 0)}
    lied["url"] = change.get("url", lied["url"])
    if lie == "another record":
        lied |= {"offset": true[3]["offset"], "length": true[3]["length"]}
        true = [r for r in true if r is not true[3]]
    add_indexes(root, OLD, [*(r for r in true if r["url"] != lied["url"] and r["url"] != "http://e.example/2"), lied])
    for gap in (0, 1 << 20):
        with serve(root) as server:
            made = commoncrawl.run(store, f"g{gap}", config(server.url, only(gap=gap)), DOWNLOAD, rebuild=True)
        kept, [reject] = extracted(store, made)
        assert reject["reason"] == "wrong_record" and len(kept) == len(true) - 1
        assert (reject["url"], reject["origin_offset"], reject["origin_length"]) == (lied["url"], lied["offset"], lied["length"])
        assert reject["value"]


def test_a_range_damaged_on_its_way_is_asked_again(host, rows, store):
    select = only(gap=1 << 20)
    file = "/" + rows[0]["file"]
    size = (host / file[1:]).stat().st_size
    with serve(host, {file: [Fault(body=bytes(size))]}) as server:
        made = commoncrawl.run(store, "t", config(server.url, select), DOWNLOAD)
    assert not [row for row in extracted(store, made)[1] if row["reason"] == "wrong_record"]


def test_a_busy_host_ends_with_its_error_and_the_next_run_goes_on_behind_what_came(host, rows, store):
    select = only()
    paths = sorted({r["file"] for r in rows})
    with serve(host) as server:
        whole = commoncrawl.run(Store(store.base / "other"), "t", config(server.url, select), DOWNLOAD)
        every = len([a for a in server.asked() if a.path.endswith(".warc.gz")])
    assert every == len(rows)
    faults = {"/" + paths[-1]: [Fault()] * 3 + [Fault(status=503)]}
    with serve(host, faults) as server:
        with pytest.raises(Exception, match="503"):
            commoncrawl.run(store, "t", config(server.url, select), DOWNLOAD)
        before = len([a for a in server.asked() if a.path.endswith(".warc.gz") and a.status == 206])
        made = commoncrawl.run(store, "t", config(server.url, select), DOWNLOAD)
        assert len([a for a in server.asked() if a.path.endswith(".warc.gz") and a.status == 206]) == every
    assert 3 < before < every
    assert [(f.path, f.sha256) for f in made.files] == [(f.path, f.sha256) for f in whole.files] and made.content == whole.content


@pytest.mark.full
def test_a_killed_ingest_goes_on_to_the_same_bytes(host, rows, tmp_path):
    """Killed at once, without warning, each time some requests further on."""
    for form in ("warc", "wet"):
        store, kills = tmp_path / form, 0
        for _ in range(40):
            done = subprocess.run([sys.executable, "-c", CHILD, __file__, str(host), str(store), form], capture_output=True, text=True)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            kills += 1
        assert kills >= 1 and done.returncode == 0
        one = Store(tmp_path / f"{form}-at-once")
        asked = commoncrawl.run(one, "t", config(str(host), KILLED, format=form), DOWNLOAD)
        got = Store(store).need(asked.address)
        assert (got.files, got.seen, got.rejected, got.content) == (
            asked.files,
            asked.seen,
            asked.rejected,
            asked.content,
        )


KILLED = SelectConfig(("example", "org", "com"), (), ("eng",), (), (), "", "", "cdx", 0)
CHILD = "import runpy, sys; from pathlib import Path; sys.argv = sys.argv[1:]; sys.path[:0] = [str(Path(sys.argv[0]).parents[n]) for n in (1, 2)]; runpy.run_path(sys.argv[0], run_name='__main__')"


def kill_after(requests: int) -> None:
    """Let the process die at its next look at the host after as many."""
    from tasks.corpus.download import Fetcher

    count, opened = itertools.count(), Fetcher._open

    def open_or_die(self, url, *rest, **more):
        if next(count) == requests and url.endswith((".warc.gz", ".wet.gz")):
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(self, url, *rest, **more)

    Fetcher._open = open_or_die


def test_the_request_is_the_exact_list_of_ranges(host, rows, store):
    first = commoncrawl.run(store, "t", config(str(host), only(languages=("zho",))), DOWNLOAD)
    again = commoncrawl.run(store, "t", config(str(host), only(languages=("zho",), gap=9999)), DOWNLOAD)
    other = commoncrawl.run(store, "t", config(str(host), only(languages=("eng",))), DOWNLOAD)
    assert again.skipped and again.address == first.address != other.address
    wet = [
        commoncrawl.run(store, "t", config(str(host), only(languages=(code,)), format="wet"), DOWNLOAD).address
        for code in ("zho", "eng", "zho")
    ]
    assert wet[0] == wet[2] != wet[1]


def test_the_budget_keeps_its_first_records_when_it_grows_and_says_what_it_left_out(host, rows):
    total = sum(r["length"] for r in rows)
    held = set()
    for budget in (total // 3, total // 2, total):
        asked = commoncrawl.resolve(config(str(host), only(), byte_budget=budget), DOWNLOAD)
        taken = {(p.file, p.offset) for f in asked.files for p in f.get.args[1]}
        assert held <= taken and asked.bytes <= budget
        assert bool(asked.info["left_out"]) == (budget < total)
        held = taken
    assert len(held) == len(rows)
    with pytest.raises(EmptyError, match="byte_budget"):
        commoncrawl.resolve(config(str(host), only(), byte_budget=1), DOWNLOAD)


def test_files_bounds_the_files_from_which_records_come(host, rows):
    asked = commoncrawl.resolve(config(str(host), only(), files=1), DOWNLOAD)
    whole = commoncrawl.resolve(config(str(host), None, files=1), DOWNLOAD)
    assert {p.file for f in asked.files for p in f.get.args[1]} == {whole.files[0].path}
    with pytest.raises(EmptyError, match="none matches.*Raise files"):
        commoncrawl.resolve(config(str(host), only(domains=("nowhere.example",))), DOWNLOAD)


def test_the_newest_snapshot_is_selected_from_like_any_other(host, rows):
    select = only(languages=("zho",))
    assert commoncrawl.resolve(config(str(host), select, snapshot="latest"), DOWNLOAD).files[0].path == (
        commoncrawl.resolve(config(str(host), select), DOWNLOAD).files[0].path
    )


def test_used_records_stay_where_their_pack_holds_them(host, rows, store):
    made = commoncrawl.run(store, "t", config(str(host), only(languages=("zho",))), DOWNLOAD)
    (name, side) = (f.path for f in made.files)
    kept = extracted(store, made)[0][:2]
    path = store.dir(made.address) / name
    before, size = path.read_bytes(), path.stat().st_size
    used = {row["origin_file"]: [] for row in kept}
    for row in kept:
        used[row["origin_file"]].append((row["origin_offset"], row["origin_length"]))
    ranges = packs.used_in(store, made, used)
    store.drop(made, used | ranges)
    assert len(ranges[name]) == 2 and path.stat().st_size == size and (store.dir(made.address) / side).exists()
    for (at, length), row in zip(ranges[name], kept, strict=True):
        data = path.read_bytes()[at : at + length]
        assert data == before[at : at + length] and row["url"].encode() in gzip.decompress(data)
    other = commoncrawl.run(store, "t", config(str(host), only(languages=("eng",))), DOWNLOAD)
    store.drop(other, packs.used_in(store, other, {}))
    assert not any((store.dir(other.address) / f.path).exists() for f in other.files)


def test_what_a_selection_cannot_mean_is_refused_by_name(host):
    def made(**fields):
        form = fields.pop("format", "warc")
        return from_dict(CommonCrawlConfig, to_dict(config("", None)) | {"format": form, "select": to_dict(ALL) | fields})

    made(domains=["example.org"], index="cdx")
    made(urls=["https://example.org/a"], index="cdx")
    for match, fields in {
        "since": {"since": "2026-13"},
        "is after until": {"since": "2026-02-01", "until": "2026-01-01"},
        "domains": {"domains": ["https://example.org/"]},
        "no host name": {"domains": ["a..b"]},
        "languages": {"languages": ["en"]},
        "needs select.domains": {"index": "cdx", "languages": ["eng"]},
        "not known for WET": {"format": "wet", "mime": ["text/html"]},
        "unknown field": {"language": ["eng"]},
    }.items():
        with pytest.raises(ConfigError, match=match):
            made(**fields)


def test_a_snapshot_without_an_index_says_so(host, tmp_path, sample):
    root = tmp_path / "bare"
    add_snapshot(root, OLD, sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz"))[:1])
    for index in ("cdx", "table"):
        with pytest.raises(NotFoundError, match="no such index.*other select.index"):
            commoncrawl.resolve(config(str(root), only(domains=("org",), index=index)), DOWNLOAD)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(1, 9)), max_size=20, unique_by=lambda t: t[:2]),
    st.integers(0, 8),
)
def test_spans_hold_each_record_once_and_only_gaps_up_to_the_limit(drawn, gap):
    places = [Place(file, offset, length, "u") for file, offset, length in sorted(drawn)]
    found = list(spans(places, gap))
    assert [place for part in found for place in part] == places
    for part in found:
        assert len({place.file for place in part}) == 1
        inside = {byte for place in part for byte in range(place.offset, place.offset + place.length)}
        stretch = sorted(inside)
        assert span_bytes(part) == stretch[-1] - stretch[0] + 1
        assert all(b - a <= gap + 1 for a, b in itertools.pairwise(stretch))
    for one, two in itertools.pairwise(found):
        if one[0].file == two[0].file:
            assert two[0].offset > max(p.offset + p.length for p in one) + gap


HOSTS = st.sampled_from(["example.org", "www.example.org", "a.example.org", "notexample.org", "example.org.uk", "org", "[::1]"])


@given(HOSTS, st.sampled_from(["example.org", "org", "a.example.org", "Example.ORG.", "münchen.de", "uk"]), st.sampled_from(["", ":8080"]))
def test_a_domain_is_its_host_and_its_subdomains(name, domain, port):
    wants = matcher(only(domains=(domain,)))
    asked = domain.strip(".").lower()
    assert wants(f"https://{name}{port}/a", "", "", "", None) == (name == asked or name.endswith("." + asked))
    assert matcher(only(domains=("münchen.de",)))("http://www.xn--mnchen-3ya.de/", "", "", "", None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["good", "wrong", "torn"]), min_size=1, max_size=6), st.data())
def test_a_half_made_pack_resumes_behind_its_last_whole_record(tmp_path_factory, kinds, data):
    folder = tmp_path_factory.mktemp("pack")
    path = folder / "records-00000-0123456789abcdef.warc.gz"
    blocks = [
        (Place("f", n, 10 + n, f"u{n}"), b"" if kind == "wrong" else bytes([n]) * (10 + n), "wrong_record" * (kind == "wrong"))
        for n, kind in enumerate(kinds)
    ]

    def write(count, stop):
        pack = packs._Pack(path)
        pack.__enter__()
        begun = pack.records
        for place, block, problem in blocks[pack.records : count]:
            pack.put(place, block, problem)
        pack.__exit__(None if stop is None else KeyboardInterrupt)
        return begun

    count = data.draw(st.integers(0, len(blocks)))
    write(count, "killed")
    lines, part = origins_path(path).with_name(path.name + ".origins.part"), path.with_name(path.name + ".part")
    for file in (lines, part):  # what a killed process had not handed to the kernel
        raw = file.read_bytes()
        file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    whole_lines = lines.read_bytes().count(b"\n")
    assert write(len(blocks), None) <= min(count, whole_lines + 1)
    assert path.read_bytes() == b"".join(block for _, block, _ in blocks)
    assert [line[:4] for line in packs.origins(origins_path(path))] == [place[:4] for place, _, _ in blocks]
    assert json.loads(origins_path(path).read_text().splitlines()[-1]) == {"seen": len(blocks), "rejected": {}}


if __name__ == "__main__":
    kill_after({"warc": 40, "wet": 5}[sys.argv[3]])
    commoncrawl.run(Store(sys.argv[2]), "t", config(sys.argv[1], KILLED, format=sys.argv[3]), DOWNLOAD)
