"""WARC reading: exact ranges, every byte accounted for, damage set aside without losing what follows, HTTP codings undone."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcs import http, member, page, record

from tasks.corpus.warc import HEAD, by_fastwarc, parse, plain, records, split

CAP = 1 << 20
FIVE = [member(f"http://e.example/{n}", http(page() + b"<!-- %d -->" % n)) for n in range(5)]
WHOLE = b"".join(FIVE)
STARTS = [sum(map(len, FIVE[:n])) for n in range(6)]


def read(tmp_path, data, name="x.warc.gz", cap=CAP):
    path = tmp_path / name
    path.write_bytes(data)
    return list(records(path, cap))


def sound(found):
    return [record.url.rpartition("/")[2] for record in found if not record.problem]


def test_one_range_read_gives_each_record_back(tmp_path):
    found = read(tmp_path, WHOLE)
    assert [(r.offset, r.length) for r in found] == list(zip(STARTS, map(len, FIVE), strict=False))
    for r in found:
        again = gzip.decompress(WHOLE[r.offset : r.offset + r.length])
        assert parse(again, 0, 1, CAP, len(again)).body == r.body


def test_plain_files_give_the_same_records_with_their_own_ranges(tmp_path):
    plain = b"".join(gzip.decompress(m) for m in FIVE)
    found = read(tmp_path, plain, "x.warc")
    assert [r.body for r in found] == [r.body for r in read(tmp_path, WHOLE)]
    for r in found:
        assert plain[r.offset : r.offset + r.length].startswith(b"WARC/1.0")
        assert f"{r.url}\r\n".encode() in plain[r.offset : r.offset + r.length]


def test_several_records_in_one_member_are_told_apart_and_have_no_range(tmp_path):
    found = read(tmp_path, gzip.compress(b"".join(gzip.decompress(m) for m in FIVE)))
    assert [(r.offset, r.length) for r in found] == [(n, -1) for n in range(5)]
    assert sound(found) == list("01234")


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (flip(WHOLE, STARTS[2] + 100), "malformed_record"),
        (flip(WHOLE, STARTS[3] - 6), "malformed_record"),
        (flip(WHOLE, STARTS[2]), "malformed_record"),
        (b"".join([*FIVE[:2], b"garbage!" * 9, *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], gzip.compress(b"no record\r\n\r\n"), *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], member("http://e.example/2", http(page()), length=10**7), *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], member("http://e.example/2", http(page()), extra="X: " + "a" * (2 * HEAD) + "\r\n"), *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], member("http://e.example/2", http(page(), head="X: " + "a" * (2 * HEAD))), *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], member("http://e.example/2", b"no HTTP here"), *FIVE[3:]]), "malformed_record"),
        (b"".join([*FIVE[:2], member("http://e.example/2", http(b"x" * 3 * CAP)), *FIVE[3:]]), "too_large"),
        (b"".join([*FIVE[:2], member("http://e.example/2", http(gzip.compress(b"x" * 3 * CAP), "Content-Encoding: gzip")), *FIVE[3:]]), "too_large"),
    ],
)  # fmt: skip
def test_a_bad_record_is_one_problem_and_the_others_are_read(data, problem, tmp_path):
    found = read(tmp_path, data)
    assert sound(found) == list("0134")
    assert [(r.offset, r.problem) for r in found if r.problem] == [(STARTS[2], problem)]


@pytest.mark.parametrize("end", [STARTS[4] + 200, STARTS[4] + 60, STARTS[4] + 5, STARTS[4] + 2, STARTS[5] - 4])
def test_a_clipped_file_gives_what_is_whole_and_one_problem_at_its_end(end, tmp_path):
    found = read(tmp_path, WHOLE[:end])
    assert sound(found) == list("0123")
    assert [(r.offset, r.length, r.problem) for r in found if r.problem] == [(STARTS[4], end - STARTS[4], "clipped_archive")]


@pytest.mark.parametrize("pad", [b"", b"\r\n\r\n", bytes(5000), gzip.compress(b"")], ids=["none", "line ends", "zeros", "empty member"])
def test_padding_between_members_is_no_record(pad, tmp_path):
    found = read(tmp_path, b"".join([*FIVE[:2], pad, *FIVE[2:], pad]))
    assert sound(found) == list("01234")
    assert not any(r.problem for r in found)


def test_plain_files_go_on_at_the_next_record_after_a_wrong_length(tmp_path):
    plain = [record(f"http://e.example/{n}", http(page())) for n in range(4)]
    plain[1] = record("http://e.example/1", http(page()), length=7)
    found = read(tmp_path, b"".join(plain), "x.warc")
    assert [name for name in sound(found) if name != "1"] == list("023")
    assert any(r.problem == "malformed_record" for r in found)


def test_a_big_incompressible_member_ends_where_it_ends(tmp_path):
    """zlib says twice what is left over at a member's end; taking both once made the reader go round in circles."""
    import random

    noise = random.Random(0).randbytes(900_000)
    found = read(
        tmp_path,
        member("http://e.example/big", http(noise)) + FIVE[0] + member("http://e.example/big", http(noise * 2)) + FIVE[1],
        cap=4 << 20,
    )
    assert [r.url.rpartition("/")[2] for r in found] == ["big", "0", "big", "1"]
    assert found[2].body == noise * 2


H = page()
CODINGS = {
    "as it is": http(H),
    "chunked": http(b"%x\r\n" % len(H) + H + b"\r\n0\r\n\r\n", "Content-Type: text/html\r\nTransfer-Encoding: chunked"),
    "chunked, says the header": http(H, "Content-Type: text/html\r\nTransfer-Encoding: chunked"),
    "gzip": http(gzip.compress(H), "Content-Type: text/html\r\nContent-Encoding: gzip"),
    "gzip, says the header": http(H, "Content-Type: text/html\r\nContent-Encoding: gzip"),
    "x-gzip": http(gzip.compress(H), "Content-Type: text/html\r\nContent-Encoding: x-gzip"),
    "deflate": http(zlib.compress(H), "Content-Type: text/html\r\nContent-Encoding: deflate"),
    "deflate without its frame": http(zlib.compress(H)[2:-4], "Content-Type: text/html\r\nContent-Encoding: deflate"),
    "unknown": http(H, "Content-Type: text/html\r\nContent-Encoding: none"),
    "bare line feeds": http(H).replace(b"\r\n", b"\n"),
    "undone by the crawler": http(H, "Content-Type: text/html\r\nX-Crawler-Content-Encoding: gzip"),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_http_codings_are_undone_true_or_not(coding, tmp_path):
    (found,) = read(tmp_path, member("http://e.example/", CODINGS[coding]))
    assert (found.problem, found.status, found.content_type) == ("", 200, "text/html")
    assert found.body == H


def test_brotli_is_undone(tmp_path):
    import brotli

    (found,) = read(tmp_path, member("http://e.example/", http(brotli.compress(H), "Content-Encoding: br")))
    assert found.body == H


def test_chunks_with_a_wrong_size_keep_their_bytes(tmp_path):
    block = http(b"ffff\r\n" + H + b"\r\n0\r\n\r\n", "Content-Type: text/html\r\nTransfer-Encoding: chunked")
    (found,) = read(tmp_path, member("http://e.example/", block))
    assert H in found.body


def test_a_body_shorter_than_promised_is_marked_truncated(tmp_path):
    (found,) = read(tmp_path, member("http://e.example/", http(H, "Content-Type: text/html\r\nContent-Length: 99999")))
    assert "warc-truncated" in found.headers


def test_arc_files_are_one_problem_that_says_what_to_do(tmp_path):
    for name, data in (("x.arc", b"filedesc://x 0 1\n"), ("x.arc.gz", gzip.compress(b"filedesc://x 0 1\n") + gzip.compress(b"more"))):
        (found,) = read(tmp_path, data, name)
        assert found.problem == "arc_file"
        assert "warcio" in found.value


LINES = st.lists(
    st.tuples(
        st.sampled_from(["Content-Type", "content-length", "X-A", "x-a", "Content-Encoding", "Transfer-Encoding", "", "A b", "X-Ü", "WARC-Truncated", "Server"]),
        st.sampled_from([": ", ":", ":\t", " : ", ""]),
        st.sampled_from(["", "text/html", "Text/HTML; Charset=GBK", 'text/html;charset="utf-8"', "5", "99999", "identity", "gzip", "chunked", "a ", "\u00e9", "a\r\n b", "\x00", "x;y"]),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=400)
@given(
    st.sampled_from(["WARC/1.0", "WARC/1.1", "WARC/0.18", "WARC/1.0 ", "warc/1.0"]),
    st.sampled_from(["response", "request", "conversion", "resource", "metadata", "RESPONSE", "revisit", "new", ""]),
    st.sampled_from(["application/http; msgtype=response", "application/http", "text/plain", ""]),
    LINES,
    st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.0 404", "HTTP/2 200", "HTTP/1.1 200", "HTTP/1.1 20 x", "200 OK", "HTTP/1.1  200 OK", "HTTP/1.1 200 \u00fc", ""]),
    LINES,
    st.sampled_from([b"", b"x", b"<p>page</p>", b"\r\n\r\n", b"a\r\n\r\nb", b"y" * 300, b"5\r\nabcde\r\n0\r\n\r\n"]),
    st.sampled_from([0, 0, 0, -1, 1, 50]),
    st.sampled_from(["\r\n", "\r\n", "\n"]),
    st.sampled_from([b"", b"\r\n\r\n", b"\r\n\r\n\r\n", b"junk"]),
)  # fmt: skip
def test_what_is_read_here_is_what_fastwarc_reads(version, kind, declared, more, status, fields, body, lie, feed, pad):
    def lines(pairs):
        return "".join(name + colon + value + feed for name, colon, value in pairs)

    block = (status + feed + lines(fields) + feed).encode() + body
    head = (
        f"{version}{feed}WARC-Type: {kind}{feed}Content-Type: {declared}{feed}Content-Length: {len(block) + lie}{feed}{lines(more)}{feed}"
    )
    data = head.encode() + block + pad
    found = plain(data, 3, 7, 200)
    if found is not None:
        [(start, stop, problem)] = split(data)
        assert (start, problem) == (0, "") and found == by_fastwarc(data[:stop], 3, 7, 200, stop)
    if version == "WARC/1.0" and kind == "response" and feed == "\r\n" and not more and not fields and body and lie == 0 and pad != b"junk":
        assert (found is not None) == (
            declared.endswith("msgtype=response") and status in ("HTTP/1.1 200 OK", "HTTP/1.0 404", "HTTP/1.1 200")
        )


@given(
    st.lists(
        st.one_of(st.binary(max_size=200), st.sampled_from([*FIVE, *(m[:150] for m in FIVE), *(gzip.decompress(m) for m in FIVE)])),
        max_size=6,
    )
)
def test_any_bytes_give_records_or_problems_in_order_and_never_an_exception(tmp_path_factory, pieces):
    data = b"".join(pieces)
    path = tmp_path_factory.mktemp("warc") / "x.warc.gz"
    path.write_bytes(data)
    found = list(records(path, CAP))
    places = [r.offset for r in found]
    assert places == sorted(set(places))
    assert all(r.offset + max(r.length, 0) <= len(data) for r in found)
    if not found:
        assert not data.strip(b"\r\n\t \0") or data[:3] == b"\x1f\x8b\x08"


@pytest.mark.realdata
def test_real_and_malformed_archives_are_read_to_their_end(realdata):
    folder = realdata / "commoncrawl"
    counts = {}
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith((".warc", ".warc.gz", ".bad", ".arc", ".arc.gz", ".warc.wet.gz"))):
        found = list(records(path, 8 << 20))
        assert found or path.stat().st_size == 0
        counts[f"{path.parent.name}/{path.name}"] = (sum(not r.problem for r in found), sorted({r.problem for r in found if r.problem}))
    assert counts["resiliparse/clipped.warc.gz"] == (0, ["clipped_archive"])
    assert counts["resiliparse/warcfile.warc.gz"] == (50, [])
    assert counts["warcio-malformed/example.warc.gz"] == counts["warcio-malformed/example.warc"] == (6, [])
    assert counts["warcio-malformed/example-wrong-chunks.warc.gz"][1] == ["malformed_record"]
    assert counts["warcio-malformed/example.arc.gz"][1] == ["arc_file"]
    assert counts["whirlwind/whirlwind.warc.gz"] == (4, [])
