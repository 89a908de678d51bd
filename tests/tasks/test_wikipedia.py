"""Wikipedia dumps: dates and parts by dumpstatus.json, and the reader of their XML."""

import bz2
import gzip
import hashlib
import json
import tracemalloc
from xml.sax.saxutils import escape

import pytest
from http_server import serve
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError, InputError, NotFoundError
from tasks.corpus import wikipedia
from tasks.corpus.download import DownloadConfig
from tasks.corpus.wikipedia import WikipediaConfig, articles

DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=10_000, tries=1, timeout=5, user_agent="")
HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en"><siteinfo><namespaces>'
HEAD += '<namespace key="0" /><namespace key="1">Talk</namespace><namespace key="-1">Special</namespace></namespaces></siteinfo>\n'


def page(title="T", text="words", ns="<ns>0</ns>", number=7, redirect=""):
    return (
        f"<page><title>{escape(title)}</title>{ns}<id>{number}</id>{redirect}<revision><id>{number + 100}</id><parentid>1</parentid>"
        f"<timestamp>2026-10-01T00:00:00Z</timestamp><contributor><username>U</username><id>9</id></contributor><comment>c</comment>"
        f'<model>wikitext</model><text xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


def dump(*pages):
    return HEAD + "".join(pages) + "</mediawiki>\n"


def read(path, raw):
    path.write_bytes(raw)
    return list(articles(path))


def test_a_page_has_its_own_ids_not_those_of_its_contributor(tmp_path):
    (found,) = read(tmp_path / "x.xml", dump(page("A & B", "x < y\n" * 3, number=12)).encode())
    assert found == wikipedia.Page("A & B", 0, 12, 112, "2026-10-01T00:00:00Z", "", "x < y\n" * 3, 1)


PACKINGS = {
    "plain": lambda raw: raw,
    "bz2": bz2.compress,
    "multistream": lambda raw: b"".join(bz2.compress(raw[n : n + 97]) for n in range(0, len(raw), 97)),
    "gzip": gzip.compress,
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_every_packing_and_encoding_gives_the_same_pages(tmp_path, packing, encoding):
    text = dump(page("柏林", "首都𠀀"), page("Б", "текст"))
    raw = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    found = read(tmp_path / "x", PACKINGS[packing](raw))
    assert [(p.title, p.text, p.number) for p in found] == [("柏林", "首都𠀀", 1), ("Б", "текст", 2)]


def test_redirects_namespaces_and_missing_parts_are_told(tmp_path):
    found = read(
        tmp_path / "x",
        dump(
            page("R", redirect='<redirect title="A &amp; B" />'),
            page("Talk:R", ns="<ns>1</ns>"),
            page("Talk:Old", ns=""),
            page("No:Space", ns=""),
            "<page><title>Bare</title><ns>x</ns><id></id></page>",
        ).encode(),
    )
    assert [(p.redirect, p.ns) for p in found] == [("A & B", 0), ("", 1), ("", 1), ("", 0), ("", -1)]
    assert (found[4].page_id, found[4].revision_id, found[4].text) == (-1, -1, "")


def test_of_several_revisions_the_last_stands(tmp_path):
    raw = page().replace("</page>", "<revision><id>999</id><text>newer</text></revision></page>")
    (found,) = read(tmp_path / "x", dump(raw).encode())
    assert (found.revision_id, found.text, found.page_id) == (999, "newer", 7)


def gather(path):
    found = []
    with pytest.raises(InputError) as problem:
        for p in articles(path):
            found.append(p.number)
    return found, str(problem.value)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("share", [0.999, 0.6, 0.2])
def test_a_clipped_dump_gives_the_whole_pages_and_then_says_after_which_it_ends(tmp_path, packing, share):
    words = "".join(hashlib.sha256(b"%d" % n).hexdigest() for n in range(200))  # does not pack: the packed end lies within the pages
    raw = PACKINGS[packing](dump(*(page(str(n), words, number=n) for n in range(1, 101))).encode())
    path = tmp_path / "x.xml"
    path.write_bytes(raw[: int(len(raw) * share)])
    found, problem = gather(path)
    assert found == list(range(1, len(found) + 1)) and len(found) <= 100
    assert f"x.xml is damaged after page {len(found)}:" in problem
    if packing == "plain":
        assert len(found) == int(len(raw) * share - len(HEAD)) // len(page("10", words, number=10).encode())


@pytest.mark.parametrize(
    "raw, told",
    [
        (dump(page(), "<page><title>x</page>").encode(), "mismatched tag"),
        (dump(page()).encode()[:-5] + b"\xff\xff", "invalid token"),
        (b"", "no element"),
        (b"BZh9 nothing like it", "Invalid data stream"),
        (b"<html><page></page></html>", "root is <html>"),
        (b"\x00" * 5000, "x.xml"),
    ],
)
def test_broken_xml_is_named(tmp_path, raw, told):
    (tmp_path / "x.xml").write_bytes(raw)
    assert told in gather(tmp_path / "x.xml")[1]


def test_declared_entities_are_refused_before_they_can_grow(tmp_path):
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY a{n} "{"&a;" * 10}">' for n in range(9)) + "]>"
    (tmp_path / "x.xml").write_text('<?xml version="1.0"?>' + bomb + dump(page("T", "&a8;")))
    found, told = gather(tmp_path / "x.xml")
    assert found == [] and "document type" in told


def test_nesting_costs_no_square_and_no_crash(tmp_path):
    (tmp_path / "x.xml").write_text(HEAD + "<a>" * 200_000)
    assert gather(tmp_path / "x.xml")[0] == []


def test_memory_stays_flat_while_the_dump_grows(tmp_path):
    def peak(pages):
        path = tmp_path / f"{pages}.gz"
        path.write_bytes(gzip.compress(dump(*(page(str(n), "word " * 1000) for n in range(pages))).encode()))
        tracemalloc.start()
        assert sum(1 for _ in articles(path)) == pages
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(1000) < 1.5 * peak(200)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=60)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=5), st.sampled_from(sorted(PACKINGS)))
@settings(max_examples=60, deadline=None)
def test_any_titles_and_texts_come_back_as_they_were(tmp_path_factory, pages, packing):
    path = tmp_path_factory.mktemp("dump") / "x"
    found = read(path, PACKINGS[packing](dump(*(page(*p) for p in pages)).encode()))
    assert [(p.title, p.text) for p in found] == pages


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_garbage_in_the_middle_never_raises_anything_else(tmp_path_factory, junk, place):
    path = tmp_path_factory.mktemp("dump") / "x"
    raw = dump(page()).encode()
    path.write_bytes(raw[:place] + junk + raw[place:])
    try:
        assert len(list(articles(path))) <= 2
    except InputError:
        pass


def wiki(root, name, date, parts=None, status="done"):
    """One dump of one wiki on a mirror."""
    folder = root / name / date
    folder.mkdir(parents=True)
    files = {}
    for part in parts or [""]:
        raw = bz2.compress(dump(page(part)).encode())
        file = f"{name}-{date}-pages-articles{part}.bz2" if part else f"{name}-{date}-pages-articles.xml.bz2"
        (folder / file).write_bytes(raw)
        files[file] = {"size": len(raw), "url": f"/{name}/{date}/{file}", "sha1": hashlib.sha1(raw).hexdigest()}
    (folder / "dumpstatus.json").write_text(json.dumps({"jobs": {"articlesdump": {"status": status, "files": files}}}))
    return folder


PARTS = ["2.xml-p41243p151573", "10.xml-p4045403p5399366", "1.xml-p1p41242", "10.xml-p2p4"]


@pytest.fixture
def host(tmp_path):
    root = tmp_path / "wikimedia"
    wiki(root, "enwiki", "20261001", PARTS)
    wiki(root, "zhwiki", "20261001")
    wiki(root, "enwiki", "20261101", PARTS)
    wiki(root, "zhwiki", "20261101", status="in-progress")
    wiki(root, "zhwiki", "20261201")
    return root


def config(base, **more):
    return WikipediaConfig(
        **({"wikis": ("enwiki", "zhwiki"), "date": "latest", "files": 99, "byte_budget": 1 << 30, "base_url": base} | more)
    )


def test_latest_is_the_newest_date_that_all_wikis_have_done(host):
    with serve(host) as server:
        assert wikipedia.latest(config(server.url), DOWNLOAD) == "20261001"
        assert wikipedia.latest(config(server.url, wikis=("zhwiki",)), DOWNLOAD) == "20261201"
    assert wikipedia.latest(config(str(host), wikis=("enwiki",)), DOWNLOAD) == "20261101"


def test_parts_come_in_page_order_and_files_limits_each_wiki(host):
    found = [f.path.rpartition("articles")[2] for f in wikipedia.resolve(config(str(host)), DOWNLOAD).files]
    assert found == [f"{PARTS[n]}.bz2" for n in (2, 0, 3, 1)] + [".xml.bz2"]
    assert len(wikipedia.resolve(config(str(host), files=2), DOWNLOAD).files) == 3


def test_the_byte_budget_is_shared_by_turns_and_says_what_it_left_out(host):
    whole = wikipedia.resolve(config(str(host)), DOWNLOAD)
    sizes = {f.path: f.size for f in whole.files}
    budget = whole.files[0].size + whole.files[4].size
    asked = wikipedia.resolve(config(str(host), byte_budget=budget), DOWNLOAD)
    assert [f.path for f in asked.files] == [whole.files[0].path, whole.files[4].path]
    assert len(asked.info["left_out"]) == 3 and sum(sizes.values()) > budget
    with pytest.raises(ConfigError, match="byte_budget is 9"):
        wikipedia.resolve(config(str(host), byte_budget=9), DOWNLOAD)


@pytest.mark.parametrize("date", ["20261101", "20260101"])
def test_a_date_that_is_not_done_or_not_there_is_answered_with_one_that_is(host, date):
    with pytest.raises(NotFoundError, match=f"zhwiki has no finished article dump of {date}.*Newest for all wikis: 20261001"):
        wikipedia.resolve(config(str(host), wikis=("zhwiki", "enwiki"), date=date), DOWNLOAD)


def test_an_unknown_wiki_is_not_found(host):
    with serve(host) as server, pytest.raises(NotFoundError, match="xxwiki"):
        wikipedia.resolve(config(server.url, wikis=("xxwiki",)), DOWNLOAD)


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"jobs": {"articlesdump": {"status": "done", "files": {"../x.bz2": {"size": 1}}}}},
        [1],
        {"jobs": {"articlesdump": {"status": "done", "files": {}}}},
    ],
)
def test_a_status_that_is_none_or_names_a_strange_file_is_refused(host, status):
    (host / "enwiki/20261001/dumpstatus.json").write_text(json.dumps(status))
    with pytest.raises(InputError, match=r"dumpstatus\.json"):
        wikipedia.resolve(config(str(host), date="20261001"), DOWNLOAD)


def test_run_verifies_sha1_and_names_the_dates(host, store):
    made = wikipedia.run(store, "t", config(str(host)), DOWNLOAD)
    assert made.info["snapshots"] == {"enwiki": "20261001", "zhwiki": "20261001"} and made.info["snapshot"] == "20261001"
    assert made.kept == 5 and all(len(list(articles(store.path(made, f)))) == 1 for f in made.files)
    damaged = host / "zhwiki/20261001/zhwiki-20261001-pages-articles.xml.bz2"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"zhwiki-20261001.*sha1 .* is listed, twice"):
        wikipedia.run(store, "t", config(str(host)), DOWNLOAD, rebuild=True)


@pytest.mark.realdata
def test_the_real_excerpts_are_read_whole(realdata):
    counts = {p.parent.name + "/" + p.name[:6]: sum(1 for _ in articles(p)) for p in sorted(realdata.glob("wikipedia/**/*.bz2"))}
    assert counts == {
        "de/wiki.x": 2,
        "ja/wiki.x": 1,
        "simple/wiki.x": 1,
        "zh/wiki.x": 1,
        "gensim/bgwiki": 3,
        "gensim/enwiki": counts["gensim/enwiki"],
    }


@pytest.mark.realdata
def test_the_utf_16_dump_is_read(realdata):
    pages = list(articles(realdata / "wikipedia/gensim/bgwiki-latest-pages-articles-shortened.xml.bz2"))
    assert "Уикипедия" in pages[-1].title and len(pages[-1].text) > 100_000
