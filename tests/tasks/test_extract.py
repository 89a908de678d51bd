"""The extract stage: every record kept or rejected with a reason, from WARC, WET, dumps and local files; nothing hangs, nothing is lost."""

import bz2
import gzip
import itertools
import json

import pytest
from corpora import ENGINE, document, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from warcs import SENTENCES, http, member, page

from model.config import override
from tasks.corpus import extract
from tasks.corpus.document import PartWriter, read_rows, record_id
from tasks.corpus.extract import ExtractConfig, article_url, extract_rank, sound_url
from tasks.corpus.manifest import Result, Stage, run_stage

CONFIG = ExtractConfig(max_bytes=1 << 20, max_depth=200, max_nodes=20_000, min_chars=100, page_seconds=10.0)
NUMBERS = itertools.count()


def run(folder, name, data, source="commoncrawl", config=CONFIG, snapshot="CC-TEST"):
    """(kept rows, rejected rows, info) of one raw file."""
    out_dir = folder / f"out-{next(NUMBERS)}"
    out_dir.mkdir()
    (folder / name).write_bytes(data)
    item = {"path": str(folder / name), "source": source, "snapshot": snapshot, "license": "CC0-1.0", "origin_file": f"raw/{name}"}
    with PartWriter(out_dir, 0, "extract") as out:
        info = extract_rank(config, item, out)
    kept = list(read_rows(sorted(out_dir.glob("documents-*"))))
    rejected = list(read_rows(sorted(out_dir.glob("rejects-*"))))
    assert (out.kept, out.seen) == (len(kept), len(kept) + len(rejected))
    assert len({row["id"] for row in kept + rejected}) == out.seen
    return kept, rejected, info


URL = "http://e.example/a"
BAD = {
    "http_status": member(URL, http(page(), status="404 Not Found")),
    "not_html": member(URL, http(page(), "Content-Type: application/json")),
    "empty": member(URL, http(b"")),
    "truncated": member(URL, http(page()), extra="WARC-Truncated: length\r\n"),
    "too_large": member(URL, http(page() + b" " * (2 << 20))),
    "too_deep": member(URL, http(b"<html><body>" + b"<div>" * 5000 + page())),
    "too_many_nodes": member(URL, http(b"<html><body>" + b"<p>x</p>" * 30_000)),
    "no_main_text": member(URL, http(page("Short."))),
    "malformed_record": member(URL, b"no HTTP"),
    "clipped_archive": member(URL, http(page()))[:-30],
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_is_rejected_by_its_reason_and_its_neighbour_is_kept(reason, tmp_path):
    good = member("http://e.example/good", http(page()))
    kept, rejected, info = run(tmp_path, "x.warc.gz", good + BAD[reason])
    assert [row["url"] for row in kept] == ["http://e.example/good"]
    assert [(row["reason"], row["origin_offset"], row["origin_length"]) for row in rejected] == [(reason, len(good), len(BAD[reason]))]
    assert info["reproducible"]


def test_a_50_mb_page_is_counted_and_costs_no_memory_to_speak_of(tmp_path):
    import tracemalloc

    huge = member(URL, http(b"<html><body>" + b"<p>word</p>" * 4_700_000))
    assert len(huge) < 1 << 20
    tracemalloc.start()
    kept, rejected, _ = run(tmp_path, "x.warc.gz", huge + member("http://e.example/good", http(page())))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ([row["url"] for row in kept], [row["reason"] for row in rejected]) == (["http://e.example/good"], ["too_large"])
    assert peak < 16 << 20


def test_a_page_that_takes_too_long_is_slow_and_the_manifest_will_say_so(tmp_path):
    endless = b"<html><body><div " + b" ".join(b"a%d=1" % n for n in range(120_000)) + b">x</div></body></html>"
    good = member("http://e.example/good", http(page()))
    config = override(CONFIG, {"page_seconds": 1.0, "max_bytes": 4 << 20})
    kept, rejected, info = run(tmp_path, "x.warc.gz", member(URL, http(endless)) + good, config=config)
    assert [row["reason"] for row in rejected] == ["slow"]
    assert len(kept) == 1
    assert not info["reproducible"]


def test_a_document_has_its_origin_and_what_the_record_says(tmp_path):
    first = member(URL, http(page(title="A &amp; B")))
    data = first + member("http://E.example:80/b", http(page("<b>" + SENTENCES + "</b>")))
    (a, b), rejected, _ = run(tmp_path, "x.warc.gz", data)
    assert not rejected
    assert (a["title"], a["date"], a["license"], a["source"], a["snapshot"]) == (
        "A & B",
        "2026-10-01T00:00:00Z",
        "CC0-1.0",
        "commoncrawl",
        "CC-TEST",
    )
    assert (a["text"], a["origin_file"], b["domain"]) == (SENTENCES, "raw/x.warc.gz", "e.example")
    assert (b["origin_offset"], b["origin_length"]) == (len(first), len(data) - len(first))
    assert b["id"] == record_id("commoncrawl", "CC-TEST", "raw/x.warc.gz", len(first))
    assert URL.encode() in gzip.decompress(data[a["origin_offset"] : a["origin_offset"] + a["origin_length"]])


def test_a_page_keeps_its_day_and_canonical_address_and_none_from_the_future(tmp_path):
    head = "<link rel=canonical href='/whole#top'><meta property='article:published_time' content='{}'>"
    data = b"".join(member(f"{URL}?{n}", http(page(head=head.format(day)))) for n, day in enumerate(("2026-09-30T10:00:00Z", "2026-10-02")))
    kept, _, _ = run(tmp_path, "x.warc.gz", data + member(f"{URL}?2", http(page())))
    assert [row["published"] for row in kept] == ["2026-09-30", "", ""]
    assert [row["canonical_url"] for row in kept] == ["http://e.example/whole"] * 2 + [""]


def test_records_that_are_no_pages_are_counted_not_seen(tmp_path):
    data = b"".join(member(URL, b"a: b\r\n", kind) for kind in ("warcinfo", "request", "metadata", "revisit")) + member(URL, http(page()))
    kept, rejected, info = run(tmp_path, "x.warc.gz", data)
    assert (len(kept), len(rejected)) == (1, 0)
    assert info["records"] == {"warcinfo": 1, "request": 1, "metadata": 1, "revisit": 1, "response": 1}


def test_wet_records_are_text_already(tmp_path):
    data = member(URL, f"{SENTENCES}\n\n{SENTENCES}".encode(), "conversion") + member("http://e.example/b", b"Short.", "conversion")
    kept, rejected, _ = run(tmp_path, "x.warc.wet.gz", data)
    assert [row["text"] for row in kept] == [f"{SENTENCES}\n\n{SENTENCES}"]
    assert [row["reason"] for row in rejected] == ["no_main_text"]


def test_html_without_a_content_type_is_recognised(tmp_path):
    kept, rejected, _ = run(tmp_path, "x.warc.gz", member(URL, http(page(), "X: y")) + member(URL, http(b"just words " * 50, "X: y")))
    assert (len(kept), [row["reason"] for row in rejected]) == (1, ["not_html"])


def dump(*pages, encoding="utf-8", end="</mediawiki>"):
    body = "".join(
        f"<page><title>{title}</title><ns>{ns}</ns><id>{number}</id><revision><id>{number + 100}</id><timestamp>2026-09-0{number}T00:00:00Z</timestamp>"
        f"<text>{text}</text></revision></page>"
        for number, (title, ns, text) in enumerate(pages, 1)
    )
    return f'<?xml version="1.0" encoding="{encoding}"?><mediawiki>{body}{end}'.encode(encoding)


PAGES = (
    ("Light house", 0, f"'''It''' stands. {SENTENCES}\n== See also ==\n* [[Sea]]"),
    ("Old name", 0, "#REDIRECT [[Light house]]"),
    ("Light", 0, "Light may be: {{disambig}}"),
    ("Talk:Light", 1, SENTENCES),
    ("Stub", 0, "A stub."),
    ("Nothing", 0, ""),
)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("utf-8", bz2.compress), ("utf-16", bz2.compress), ("utf-8", gzip.compress), ("utf-16", bytes)]
)
def test_dump_pages_are_kept_or_set_aside_by_reason(encoding, pack, tmp_path):
    kept, rejected, _ = run(tmp_path, "wiki.xml.bz2", pack(dump(*PAGES, encoding=encoding)), "wikipedia", snapshot="enwiki-20261001")
    assert [row["reason"] for row in rejected] == ["redirect", "disambiguation", "namespace", "no_main_text", "empty"]
    (row,) = kept
    assert row["text"] == f"It stands. {SENTENCES}"
    assert (row["title"], row["url"], row["date"]) == ("Light house", "https://en.wikipedia.org/wiki/Light_house", "2026-09-01T00:00:00Z")
    assert (row["page_id"], row["revision_id"], row["origin_offset"], row["origin_length"]) == (1, 101, 1, -1)
    assert (row["canonical_url"], row["published"]) == (row["url"], "")


@pytest.mark.parametrize(
    "cut",
    [
        lambda data: bz2.compress(data)[:-40],
        lambda data: bz2.compress(data[: len(data) * 2 // 3]),
        lambda data: b"<?xml version='1.0'?><!DOCTYPE x>" + data[21:],
    ],
)
def test_a_damaged_dump_is_one_rejection_after_what_is_whole(cut, tmp_path):
    articles = [(f"Page {n}", 0, f"{n} {SENTENCES}") for n in range(9)]
    kept, rejected, _ = run(tmp_path, "wiki.xml.bz2", cut(dump(*articles)), "wikipedia", snapshot="enwiki-20261001")
    assert [row["reason"] for row in rejected] == ["truncated_dump"]
    assert len(kept) < 9
    assert rejected[0]["origin_offset"] == len(kept) + 1


def test_traditional_pages_show_their_own_side_of_variant_markup(tmp_path):
    traditional, simplified = (
        "這是一個關於圖書館與電腦的長條目，說明書籍、資料與讀者之間的關係。" * 6,
        "这是一个关于图书馆与电脑的长条目，说明书籍、资料与读者之间的关系。" * 6,
    )
    markup = "-{zh-cn:软件;zh-tw:軟體}-"
    kept, _, _ = run(
        tmp_path,
        "wiki.xml.bz2",
        dump(("甲", 0, traditional + markup), ("乙", 0, simplified + markup)),
        "wikipedia",
        snapshot="zhwiki-20261001",
    )
    assert [row["text"][-2:] for row in kept] == ["軟體", "软件"]


def test_local_files_of_each_kind_give_documents_and_problems(tmp_path):
    lines = "\n".join(
        [
            json.dumps({"text": SENTENCES, "title": "T", "url": "http://e.example/j"}),
            "{broken",
            json.dumps({"text": "Short."}),
            json.dumps([1]),
        ]
    )
    kept, rejected, _ = run(tmp_path, "a.jsonl", lines.encode(), "files", snapshot="mine")
    assert [(row["text"], row["title"], row["origin_offset"], row["url"]) for row in kept] == [(SENTENCES, "T", 1, "http://e.example/j")]
    assert [(row["reason"], row["origin_offset"]) for row in rejected] == [("broken_json", 2), ("no_main_text", 3), ("not_an_object", 4)]
    kept, rejected, _ = run(tmp_path, "b.html", page(), "files", snapshot="mine")
    assert [(row["text"], row["title"]) for row in kept] == [(SENTENCES, "The lighthouse")]
    kept, rejected, _ = run(tmp_path, "c.txt", SENTENCES.encode("utf-16"), "files", snapshot="mine")
    assert [row["text"] for row in kept] == [SENTENCES]


def test_the_stage_reads_all_sources_and_its_books_balance(store, tmp_path):
    def ingest(source, name, data, snapshot):
        def body(work):
            path = work.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return Result([(name, None)], 1, 1, {}, {"source": source, "snapshot": snapshot, "license": f"licence of {source}"})

        return run_stage(store, Stage("ingest", 1), "test", {"name": name, "bytes": len(data)}, {}, body)

    inputs = {
        "files": ingest("files", "c.txt", SENTENCES.encode(), "mine"),
        "wikipedia": ingest("wikipedia", "enwiki/20261001/x.xml.bz2", bz2.compress(dump(*PAGES)), "20261001"),
        "commoncrawl": ingest(
            "commoncrawl",
            "crawl-data/x.warc.gz",
            member(URL, http(page())) + BAD["http_status"] + member(URL, b"a: b\r\n", "request"),
            "CC-TEST",
        ),
    }
    made = extract.run(store, "test", CONFIG, inputs, ENGINE)
    rows = rows_of(store, made)
    assert [row["source"] for row in rows] == ["commoncrawl", "wikipedia", "files"]
    assert [row["snapshot"] for row in rows] == ["CC-TEST", "enwiki-20261001", "mine"]
    assert {row["license"] for row in rows} == {f"licence of {row['source']}" for row in rows}
    assert (made.seen, made.kept, made.rejected["http_status"], made.rejected["redirect"]) == (9, 3, 1, 1)
    assert made.info["records"] == {"request": 1, "response": 2}
    assert made.reproducible
    assert extract.run(store, "test", CONFIG, inputs, ENGINE).skipped


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://a.example/x?y=[1]", "http://a.example/x?y=[1]"),
        ("http://[bad/x", "http://%5Bbad/x"),
        ("http://[::1]/x", "http://[::1]/x"),
        (" http://a.example/a b\r\n", "http://a.example/ab"),
        ("http://a\udcff.example/", "http://a.example/"),
        ("http://a℀.example/", ""),
        ("", ""),
    ],
)
def test_urls_are_made_sound(given, kept):
    assert sound_url(given) == kept


@given(st.text())
def test_any_url_can_be_stored(url):
    document("text", 1, url=sound_url(url))["url"].encode()


def test_article_addresses():
    assert article_url("zhwiki", "茶") == "https://zh.wikipedia.org/wiki/茶"
    assert article_url("simplewiki", "What is 5%?") == "https://simple.wikipedia.org/wiki/What_is_5%25%3F"


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=400),
        st.binary(max_size=300).map(lambda body: member(URL, http(body))),
        st.binary(max_size=300).map(lambda body: member(URL, body)),
    )
)
def test_any_bytes_balance(tmp_path_factory, data):
    run(tmp_path_factory.mktemp("any"), "x.warc.gz", data)


@pytest.mark.realdata
def test_real_archives_give_text_and_balance(realdata, tmp_path):
    folder = realdata / "commoncrawl"
    for name, kept_at_least in (
        ("resiliparse/warcfile.warc.gz", 8), ("resiliparse/clipped.warc.gz", 0), ("whirlwind/whirlwind.warc.gz", 1), ("whirlwind/whirlwind.warc.wet.gz", 1),
        ("pywb/warcs/iana.warc.gz", 12), ("dolma/sample-0000.warc.gz", 20), ("warcio-malformed/example-bad.warc.gz.bad", 1),
    ):  # fmt: skip
        kept, _, info = run(tmp_path, "x.warc.gz", (folder / name).read_bytes())
        assert len(kept) >= kept_at_least, name
        assert info["reproducible"]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "wiki", "least"),
    [
        ("gensim/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", "enwiki", 95),
        ("gensim/bgwiki-latest-pages-articles-shortened.xml.bz2", "bgwiki", 1),  # UTF-16
        ("gensim/enwiki-table-markup.xml.bz2", "enwiki", 5),
        ("dbpedia-minidumps/zh/wiki.xml.bz2", "zhwiki", 1),
    ],
)
def test_real_dumps_give_text_without_markup(name, wiki, least, realdata, tmp_path):
    kept, rejected, _ = run(tmp_path, "x.xml.bz2", (realdata / "wikipedia" / name).read_bytes(), "wikipedia", snapshot=f"{wiki}-20261001")
    assert len(kept) >= least
    assert not [row["title"] for row in kept for mark in ("[[", "]]", "{{", "}}", "<ref", "'''", "{|", "-{") if mark in row["text"]]
    assert {row["reason"] for row in rejected} <= {"redirect", "namespace", "disambiguation", "no_main_text"}
