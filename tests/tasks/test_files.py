"""Local files: which are taken, under which names, and what each kind of file gives, whole or broken."""

import gzip
import io
import json
import os
import zipfile
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError, EmptyError, InputError, NotFoundError
from tasks.corpus import epub, files
from tasks.corpus.download import DownloadConfig
from tasks.corpus.files import DOCUMENT_CHARS, FilesConfig, kind_of, records

DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=10_000, tries=1, timeout=5, user_agent="")


def config(base, *paths, **more):
    return FilesConfig(**({"paths": paths, "license": "CC0-1.0", "name": "mine", "role": "source", "base": str(base)} | more))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    (root / "books" / "old").mkdir(parents=True)
    (root / "books/a.txt").write_text("A.")
    (root / "books/old/b.md").write_text("# B")
    (root / "books/cover.png").write_bytes(b"png")
    (root / "books/.hidden.txt").write_text("no")
    (root / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    return root


def names(request):
    return [f.path for f in request.files]


def test_files_folders_and_globs_are_taken_by_name_below_base(folder):
    assert names(files.resolve(config(folder, "books"))) == ["books/a.txt", "books/old/b.md"]
    assert names(files.resolve(config(folder, "rows.jsonl.gz", "books/*.txt", "books"))) == [
        "books/a.txt",
        "books/old/b.md",
        "rows.jsonl.gz",
    ]
    assert names(files.resolve(config(folder, "**/*.md"))) == ["books/old/b.md"]
    assert names(files.resolve(config("/", str(folder / "books")))) == [f"{str(folder)[1:]}/books/{n}" for n in ("a.txt", "old/b.md")]
    assert names(files.resolve(config(folder / "books", str(folder / "rows.jsonl.gz")))) == ["rows.jsonl.gz"]


def test_a_file_of_no_known_kind_is_listed_and_an_error_where_it_is_named(folder):
    assert files.resolve(config(folder, "books")).info["left_out"] == [{"path": "books/cover.png", "reason": "unknown_kind"}]
    with pytest.raises(InputError, match=r"cover\.png.*\.jsonl"):
        files.resolve(config(folder, "books/cover.png"))


@pytest.mark.parametrize("path", ["nothing", "books/*.epub", "books/a.txt/x"])
def test_a_missing_path_is_named(folder, path):
    with pytest.raises(NotFoundError, match=r"does not exist"):
        files.resolve(config(folder, path))


def test_two_files_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "other" / "books").mkdir(parents=True)
    (tmp_path / "other/books/a.txt").write_text("another")
    with pytest.raises(ConfigError, match=r"books/a\.txt"):
        files.resolve(config(folder, "books", str(tmp_path / "other" / "books")))


def test_moving_the_folder_changes_nothing_and_editing_a_file_makes_a_new_ingest(folder, store, tmp_path):
    made = files.run(store, "t", config(folder, "books"), DOWNLOAD)
    os.rename(folder, tmp_path / "moved")
    moved = files.run(store, "t", config(tmp_path / "moved", "books"), DOWNLOAD)
    assert moved.skipped and made.info["license"] == "CC0-1.0" and made.info["snapshot"] == "mine" and made.kept == 2
    (tmp_path / "moved/books/a.txt").write_text("B.")
    edited = files.run(store, "t", config(tmp_path / "moved", "books"), DOWNLOAD)
    assert not edited.skipped and edited.content != made.content
    other = files.run(store, "t", config(tmp_path / "moved", "books", role="evaluation"), DOWNLOAD)
    assert other.info["role"] == "evaluation" and not other.skipped and other.content == edited.content


def test_a_folder_without_readable_files_is_an_error(folder, store):
    (folder / "empty").mkdir()
    with pytest.raises(EmptyError, match="paths"):
        files.run(store, "t", config(folder, "empty"), DOWNLOAD)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.TXT", "txt"),
        ("a.b.md", "md"),
        ("a.jsonl.gz", "jsonl"),
        ("a.htm", "html"),
        ("a.epub", "epub"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a", None),
    ],
)
def test_kinds_go_by_the_ending(name, kind):
    assert kind_of(name) == kind


def read(path, raw, kind=None):
    path.write_bytes(raw)
    return list(records(path, kind or kind_of(path)))


TEXT = {
    "zh": "今天天气很好，我们一起去图书馆看书，然后喝茶。\n" * 40,
    "ru": "Сегодня хорошая погода, и мы идём в библиотеку.\n" * 40,
    "en": "Café, naïve.\n" * 9,
}


@pytest.mark.parametrize(
    "language, encoding",
    [("zh", e) for e in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk")]
    + [("ru", e) for e in ("utf-8", "cp1251", "koi8-r", "utf-16-be")]
    + [("en", e) for e in ("utf-8", "cp1252", "utf-16-le")],
)
@pytest.mark.parametrize("name", ["x.txt", "x.md"])
def test_text_files_are_read_in_their_encoding(tmp_path, language, encoding, name):
    (record,) = read(tmp_path / name, TEXT[language].encode(encoding))
    assert record.text == TEXT[language].strip() and record.place == 1 and record.title == "x"


def test_one_bad_byte_does_not_turn_utf_8_into_another_encoding(tmp_path):
    raw = (TEXT["zh"] * 3).encode()
    (record,) = read(tmp_path / "x.txt", raw + b"\xff\n")
    assert record.text == (TEXT["zh"] * 3 + "\ufffd").strip()


@given(st.lists(st.sampled_from(["word", "a longer line of words.", "\n", "\n\n", " ", "字" * 30_000]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_long_text_is_cut_into_bounded_pieces_that_join_to_the_whole(tmp_path_factory, parts):
    text = " ".join(parts)
    found = read(tmp_path_factory.mktemp("t") / "x.txt", text.encode())
    if not text.strip():
        assert [r.problem for r in found] == ["empty"]
    else:
        assert "".join("".join(r.text for r in found).split()) == "".join(text.split())
        assert all(0 < len(r.text) <= DOCUMENT_CHARS for r in found) and [r.place for r in found] == list(range(1, len(found) + 1))


def test_a_long_text_is_cut_between_paragraphs_where_it_has_them(tmp_path):
    paragraph = "A sentence of this paragraph. " * 40
    found = read(tmp_path / "x.txt", (f"{paragraph}\n\n" * 100).encode())
    assert len(found) == 3 and all(r.text.startswith("A sentence") and r.text.endswith("paragraph.") for r in found)


def test_markdown_loses_its_marks_and_keeps_its_words(tmp_path):
    raw = """---
title: "The Well"
---
# How a *well* is dug #

Some **bold**, _soft_, `code` and a [link](https://example.org/a_b) to snake_case_names, 2 * 3 * 4.
![picture](x.png) <!-- note --> End.

> Quoted.

***
```python
x = [1](2)
```
- item __one__
"""
    (record,) = read(tmp_path / "x.md", raw.encode())
    assert record.title == "The Well"
    lines = [line.strip() for line in record.text.splitlines() if line.strip()]
    assert lines == [
        "How a well is dug",
        "Some bold, soft, code and a link to snake_case_names, 2 * 3 * 4.",
        "End.",
        "Quoted.",
        "x = [1](2)",
        "- item one",
    ]


@given(st.text(alphabet="*_`[]()!#>- ab~\n", max_size=300))
@settings(max_examples=150, deadline=1000)
def test_markdown_never_raises_and_keeps_every_letter_outside_links(tmp_path_factory, text):
    found = read(tmp_path_factory.mktemp("m") / "x.md", text.encode())
    if not any(mark in text for mark in ("](", "][", "```", "~~~", "---")):
        assert sum(c in "ab" for r in found for c in r.text) == sum(c in "ab" for c in text)


def test_jsonl_gives_one_record_a_line_and_names_the_broken_ones(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "one", "title": "T", "url": "https://e.org", "date": "2026-10-01"}', b"", b'{"content": "two"}', b'{"text": "clip',
        b"[1]", b'{"text": ""}', b'{"title": "only"}', b'{"text": "\xff"}', b'{"text": "\\ud800x"}', b"[" * 100_000, b'{"text": "last"}',
    ]  # fmt: skip
    found = read(tmp_path / "x.jsonl", b"\n".join(lines))
    assert [(r.place, r.text, r.problem) for r in found] == [
        (1, "one", ""), (3, "two", ""), (4, "", "broken_json"), (5, "", "not_an_object"), (6, "", "no_text"), (7, "", "no_text"),
        (8, "", "broken_json"), (9, "\ufffd\ufffd\ufffdx", ""), (10, "", "broken_json"), (11, "last", ""),
    ]  # fmt: skip
    assert (found[0].title, found[0].url, found[0].date) == ("T", "https://e.org", "2026-10-01")
    assert "line 4" in found[2].value


def test_an_endless_line_is_one_problem_and_the_next_line_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD", 1000)
    raw = b'{"text": "' + b"x" * 5_000_000 + b'"}\n{"text": "next"}\n'
    for name, packed in (("x.jsonl", raw), ("x.jsonl.gz", gzip.compress(raw))):
        assert [(r.place, r.problem, r.text) for r in read(tmp_path / name, packed)] == [(1, "too_large", ""), (2, "", "next")]
    (record,) = read(tmp_path / "x.html", b"x" * 1001)
    assert record.problem == "too_large"


@given(
    st.lists(
        st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" "))
        | st.dictionaries(st.sampled_from(["text", "title"]), st.text()).map(lambda d: json.dumps(d).encode()),
        max_size=20,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_jsonl_gives_exactly_one_record_for_each_line_that_is_not_blank(tmp_path_factory, lines):
    found = read(tmp_path_factory.mktemp("j") / "x.jsonl", b"\n".join(lines))
    filled = [n for n, line in enumerate(lines, 1) if line.strip()]
    assert [r.place for r in found] == (filled or [1])
    assert all(bool(r.text) != bool(r.problem) for r in found)
    for record in found:
        record.text.encode("utf-8")


@pytest.mark.parametrize("name", ["x.txt.gz", "x.md.gz", "x.jsonl.gz", "x.html.gz"])
@pytest.mark.parametrize(
    "raw",
    [gzip.compress(os.urandom(9000).hex().encode() + b"\n")[:4000], b"not gzip", gzip.compress(b"x" * 99)[:-6] + b"??????"],
    ids=["clipped", "not gzip", "wrong end"],
)
def test_damaged_gzip_is_a_counted_problem(tmp_path, name, raw):
    found = read(tmp_path / name, raw)
    assert found[-1].problem == "broken_gzip" and found[-1].place == len(found)


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.jsonl", "x.html", "x.txt.gz"])
@pytest.mark.parametrize("raw", [b"", b" \n\n"])
def test_an_empty_file_is_a_counted_problem(tmp_path, name, raw):
    assert [r.problem for r in read(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw)] == ["empty"]


def test_parquet_gives_a_record_a_row(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"content": ["one", None, "three"], "date": [date(2026, 10, 1), None, None], "other": [1, 2, 3]}), path)
    assert [(r.place, r.text, r.date, r.problem) for r in records(path, "parquet")] == [
        (1, "one", "2026-10-01", ""),
        (2, "", "", "no_text"),
        (3, "three", "", ""),
    ]
    pq.write_table(pa.table({"other": [1]}), path)
    assert [r.problem for r in records(path, "parquet")] == ["no_text"]
    for raw in (b"PAR1 nothing", b"", path.read_bytes()[:-20]):
        assert [r.problem for r in read(path, raw)] == ["broken_parquet"]


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></container>'
)
OPF = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>A &amp; B</dc:title><dc:title>sub</dc:title>
<dc:date>1911</dc:date></metadata><manifest><item id="nav" href="nav.xhtml" properties="nav"/><item id="one" href="c%201.xhtml"/><item id="two" href="d/2.xhtml"/>
<item id="out" href="../../../etc/passwd"/></manifest><spine><itemref idref="nav"/><itemref idref="two"/><itemref idref="one"/>{}</spine></package>"""
BOOK = {
    "META-INF/container.xml": CONTAINER,
    "O/c.opf": OPF.format(""),
    "O/nav.xhtml": "nav",
    "O/c 1.xhtml": "<p>1</p>",
    "O/d/2.xhtml": "<p>2</p>",
}


def book(**members):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (BOOK | members).items():
            archive.writestr(name, text)
    return raw.getvalue()


def test_an_epub_gives_its_chapters_in_reading_order(tmp_path):
    found = read(tmp_path / "x.epub", book())
    assert [(r.place, r.html, r.title, r.date) for r in found] == [(1, b"<p>2</p>", "A & B", "1911"), (2, b"<p>1</p>", "A & B", "1911")]


def test_a_chapter_outside_the_archive_or_missing_is_a_problem_and_the_others_stay(tmp_path):
    found = read(tmp_path / "x.epub", book(**{"O/c.opf": OPF.format('<itemref idref="out"/><itemref idref="none"/>')}))
    assert [r.problem for r in found] == ["", "", "missing_chapter", "missing_chapter"]


def test_a_chapter_that_swells_and_a_locked_one_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(epub, "MAX_CHAPTER", 100_000)
    locked = "<encryption><EncryptedData><CipherData><CipherReference URI='O/c%201.xhtml'/></CipherData></EncryptedData></encryption>"
    found = read(tmp_path / "x.epub", book(**{"O/d/2.xhtml": "\0" * 10_000_000, "META-INF/encryption.xml": locked}))
    assert [r.problem for r in found] == ["too_large", "encrypted"]


def test_a_book_that_swells_in_many_chapters_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(epub, "MAX_BOOK", 10)
    assert [r.problem for r in read(tmp_path / "x.epub", book())] == ["", "too_large"]
    monkeypatch.setattr(epub, "MAX_MEMBERS", 3)
    assert [r.problem for r in read(tmp_path / "x.epub", book())] == ["broken_epub"]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no zip",
        book()[:300],
        book(**{"META-INF/container.xml": "<x/>"}),
        book(**{"O/c.opf": "<x>"}),
        book(**{"O/c.opf": BOMB + OPF.format("")}),
    ],
    ids=["empty", "no-zip", "clipped", "no-root", "bad-xml", "entities"],
)
def test_what_is_no_epub_is_a_counted_problem(tmp_path, raw):
    assert [r.problem for r in read(tmp_path / "x.epub", raw)] == ["broken_epub"]


def test_html_is_handed_on_as_bytes(tmp_path):
    (record,) = read(tmp_path / "x.html.gz", gzip.compress("<p>茶</p>".encode("gbk")))
    assert record.html == "<p>茶</p>".encode("gbk") and record.text == ""


def test_the_sample_files_are_all_read(sample):
    for path in sorted((sample / "files").iterdir()):
        found = list(records(path, kind_of(path)))
        assert found and not any(r.problem for r in found)


@pytest.mark.realdata
def test_real_books_and_a_gb18030_file_are_read(realdata):
    novel = list(records(realdata / "text/100-english-novels/Dickens_Bleak_1853.txt.gz", "txt"))
    assert len(novel) > 30 and all(len(r.text) <= DOCUMENT_CHARS for r in novel)
    (medical,) = (realdata / "finetune/zh-medical").glob("*.csv.gz")
    text = "".join(r.text for r in records(medical, "txt"))
    assert text.count("\ufffd") == 0 and text.count("医") > 100
