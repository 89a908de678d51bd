"""Block-lists: every form of a list is read, an address is found as a naive matcher finds it, and what is on no list passes; millions of entries fit."""

import gzip
import tracemalloc

import pytest
from corpora import ENGINE, document, files_of, output_of, rows_of, run_inline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import recipes
from model.errors import ConfigError, InputError
from tasks.corpus import files, quality
from tasks.corpus.blocklist import Blocklist, compile_lists

SAMPLE = {
    "ut1/domains": "casino.example\nwww.poker.example\n203.0.113.9\nbücher.example\n",
    "ut1/urls": "blog.example/bad/page\nhttps://wiki.example/w/index.php?title=Bad\n",
    "hosts.txt": "# a hosts file\n127.0.0.1 localhost\n0.0.0.0 ads.example tracker.example # two\n::1 ip6-localhost\n",
    "plain.txt": "\ufeff.spam.example\n*.junk.example\r\n\n  # comment\nhttp://whole.example/\n",
    "words.txt": "viagra\n赌场\n",
}
BLOCKED = {
    "https://casino.example/": ("blocked_domain", "casino.example"),
    "http://WWW.Casino.Example:8080/a?b#c": ("blocked_domain", "casino.example"),
    "https://play.eu.casino.example": ("blocked_domain", "casino.example"),
    "https://poker.example/x": ("blocked_domain", "poker.example"),
    "http://203.0.113.9/": ("blocked_domain", "203.0.113.9"),
    "https://xn--bcher-kva.example/": ("blocked_domain", "xn--bcher-kva.example"),
    "https://laden.BÜCHER.example/": ("blocked_domain", "xn--bcher-kva.example"),
    "http://blog.example/bad/page/": ("blocked_url", "blog.example/bad/page"),
    "https://user:pw@www.blog.example:443/bad/page#top": ("blocked_url", "blog.example/bad/page"),
    "https://wiki.example/w/index.php?title=Bad": ("blocked_url", "wiki.example/w/index.php?title=Bad"),
    "https://tracker.example./x": ("blocked_domain", "tracker.example"),
    "https://a.spam.example/": ("blocked_domain", "spam.example"),
    "https://junk.example/": ("blocked_domain", "junk.example"),
    "https://whole.example/any": ("blocked_domain", "whole.example"),
    "https://shop.example/buy-Viagra-now": ("blocked_word", "viagra"),
    "https://shop.example/%E8%B5%8C%E5%9C%BA/1": ("blocked_word", "赌场"),
}
PASSED = (
    "", "https://example/", "https://mycasino.example/", "https://casino.example.org/", "https://1.203.0.113.9/", "https://blog.example/bad",
    "https://blog.example/bad/page2", "https://blog.example/Bad/page", "https://wiki.example/w/index.php", "https://localhost/", "not an address",
    "https://shop.example/viagrande",
)  # fmt: skip


def write(folder, lists):
    paths = []
    for name, text in lists.items():
        path = folder / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    counts = compile_lists(write(folder, SAMPLE), folder / "made")
    assert counts == {"domains": 9, "urls": 2, "words": 2, "unread": 0}
    return Blocklist(folder / "made")


@pytest.mark.parametrize("url", BLOCKED)
def test_every_form_of_entry_blocks_what_it_means(lists, url):
    assert lists.find(url) == BLOCKED[url]


@pytest.mark.parametrize("url", PASSED)
def test_what_only_looks_like_an_entry_passes(lists, url):
    assert lists.find(url) == ("", "")


LABELS = st.sampled_from(["a", "b", "shop", "x-1", "bücher", "例子", "com", "org"])
ASCII = {"bücher": "xn--bcher-kva", "例子": "xn--fsqu00a"}
HOSTS = st.lists(LABELS, min_size=2, max_size=4).map(tuple)
PATHS = st.sampled_from(["/p", "/p/q", "/P", "/p?id=1", "/p?id=2", "/buy/cheap-pills", "/b%C3%BCcher"])


@st.composite
def rendered(draw, host):
    """A host as somebody may write it."""
    puny, upper = draw(st.booleans()), draw(st.booleans())
    name = ".".join(ASCII.get(label, label) if puny else label for label in host)
    return draw(st.sampled_from(["", "www."])) + (name.upper() if upper else name)


@st.composite
def entries(draw):
    """(what a line means, the line)."""
    kind, host = draw(st.sampled_from(["domain", "url"])), draw(HOSTS)
    name = draw(rendered(host))
    if kind == "domain":
        return ("domain", host, ""), draw(st.sampled_from(["{}", "0.0.0.0 {}", "http://{}/", "{} # why", "  {}  ", "{}:80"])).format(name)
    path = draw(PATHS)
    return ("url", host, path), draw(st.sampled_from(["{}{}", "https://{}{}", "//{}{}", "{}:80{}", "{}{}/", "{}{}#x"])).format(name, path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    made=st.lists(entries(), max_size=12),
    host=HOSTS,
    path=PATHS,
    words=st.sets(st.sampled_from(["pills", "bücher", "shop", "p"])),
)
def test_an_address_is_found_as_a_naive_matcher_finds_it(tmp_path, data, made, host, path, words):
    """The naive one knows what lines and address were made of, and compares that one by one."""
    compile_lists(
        write(tmp_path, {"l.txt": "\n".join(line for _, line in made) + "\n", "words.gz": "\n".join(sorted(words))}), tmp_path / "made"
    )
    name = data.draw(rendered(host))
    url = data.draw(st.sampled_from(["http://{}{}", "HTTPS://{}:444{}", "http://me@{}{}", "https://{}{}#part"])).format(name, path)
    expected = ""
    if any(kind == "domain" and host[-len(other) :] == other for (kind, other, _), _ in made):
        expected = "blocked_domain"
    elif any(kind == "url" and host == other and path == place for (kind, other, place), _ in made):
        expected = "blocked_url"
    else:
        spelt = {part for label in name.lower().split(".") for part in label.split("-")}
        spelt |= {"/p": {"p"}, "/P": {"p"}, "/p/q": {"p"}, "/buy/cheap-pills": {"pills"}, "/b%C3%BCcher": {"bücher"}}.get(path, {"p"})
        expected = "blocked_word" if words & spelt else ""
    assert Blocklist(tmp_path / "made").find(url)[0] == expected


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_address_and_any_line_are_taken_without_an_error(lists, text):
    lists.find(text)
    lists.find("https://" + text)


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_is_an_entry_or_counted(tmp_path, junk):
    path = tmp_path / "junk"
    path.write_bytes(b"known.example\n" + junk)
    compile_lists([path], tmp_path / "made")
    assert Blocklist(tmp_path / "made").find("http://known.example")[0] == "blocked_domain"


def test_lines_that_are_no_entry_are_counted(tmp_path):
    counts = compile_lists(
        write(tmp_path, {"l.txt": "good.example\nno dots here\nlocalhost\ntwo.example words.example\n"}), tmp_path / "made"
    )
    assert counts == {"domains": 1, "urls": 0, "words": 0, "unread": 3}


def test_a_file_without_entries_or_of_damaged_gzip_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"README.*'Lists of'"):
        compile_lists(write(tmp_path, {"README": "Lists of\nmany things\n"}), tmp_path / "made")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a.example\n" * 1000)[:30])
    with pytest.raises(InputError, match=r"cut\.gz"):
        compile_lists([tmp_path / "cut.gz"], tmp_path / "made")


def test_two_hundred_thousand_entries_need_24_bytes_each_and_all_are_found(tmp_path):
    names = [f"s{n}.site{n % 7919}.example" for n in range(200_000)]
    path = write(tmp_path, {"domains": "\n".join(names)})
    tracemalloc.start()
    assert compile_lists(path, tmp_path / "made")["domains"] == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 200_000 + (16 << 20)
    found = Blocklist(tmp_path / "made")
    assert all(found.find(f"http://{name}/")[1] == name for name in names[::997])
    assert found.find("http://s200000.site1.example/") == ("", "")


def test_the_filter_rejects_by_list_before_it_looks_at_the_text(store, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    monkeypatch.setattr(quality, "detect", lambda text: pytest.fail("the text was looked at"))
    rows = [
        document("x", n, "commoncrawl", url=url) for n, url in enumerate(["https://a.casino.example/", "https://blog.example/bad/page"])
    ]
    made = quality.run(
        store, "test", recipes.tiny().filter, {"extract": output_of(store, "extract", [rows]), "blocklist": files_of(store, SAMPLE)}, ENGINE
    )
    assert made.rejected == {"blocked_domain": 1, "blocked_url": 1}
    assert [(row["reason"], row["value"]) for row in rows_of(store, made, "rejects-")] == [
        ("blocked_domain", "casino.example"), ("blocked_url", "blog.example/bad/page"),
    ]  # fmt: skip
    assert made.info["blocklist"]["domains"] == 9


def test_lists_are_known_by_what_they_hold_wherever_they_lie(tmp_path, store):
    """Files of any name; the same content under the same names elsewhere is the same ingest, another content is another."""
    contents = []
    for place, text in (("one", "a.example\n"), ("two", "a.example\n"), ("three", "b.example\n")):
        write(tmp_path / place, {"ut1/domains": text})
        config = files.FilesConfig(("lists/*/domains",), "CC0-1.0", "lists", "blocklist", str(tmp_path / place))
        contents.append(files.run(store, "test", config, recipes.tiny().download).content)
    assert contents[0] == contents[1] != contents[2]


def test_a_bound_without_a_model_and_labels_without_one_are_refused():
    for changes in ({"filter.thresholds": {"quality_low@en": 0.5}}, {"labels": vars(recipes.tiny().examples) | {"role": "labels"}}):
        with pytest.raises(ConfigError, match="quality_model"):
            recipes.resolve(recipes.tiny(), recipes.tiny(), changes)
