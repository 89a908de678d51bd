"""All pages accounted for: which pages of real files datatrove's reader drops without a word, why, and what becomes of each of them here.

datatrove's process_record returns nothing for a page (1) whose detected type is not HTML, (2) that libmagic, asked where the crawler named no type, takes for
something else, (3) that is not UTF-8 and whose encoding cchardet cannot tell, (4) that cannot be decoded by the encoding that cchardet tells, strictly.
None of them is counted. Its reader then drops documents without text.
"""

import gzip
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from crawl_host import members

from tasks.corpus import extract
from tasks.corpus.document import PartWriter, read_rows
from tasks.corpus.extract import ExtractConfig

pytestmark = [pytest.mark.realdata, pytest.mark.full]
CONFIG = ExtractConfig(5 << 20, 200, 20_000, 100, 30.0)


def theirs(path):
    """For each response or conversion, in order: (URL, '' or why datatrove's reader drops it)."""
    import cchardet
    import magic
    from datatrove.pipeline.readers.warc import process_record
    from warcio.archiveiterator import ArchiveIterator

    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type not in ("response", "conversion"):
                continue
            content = record.content_stream().read()
            told = record.rec_headers.get("WARC-Identified-Payload-Type")
            url = record.rec_headers.get("WARC-Target-URI") or ""
            kept = process_record(_Again(record, content))
            if kept is not None:
                yield url, "" if kept["text"].strip() else "no text"
            elif told is not None and told not in ("text/html", "application/xhtml+xml"):
                yield url, "type named by the crawler"
            elif told is None and magic.from_buffer(content, mime=True) not in ("text/html", "application/xhtml+xml"):
                yield url, "type guessed by libmagic"
            else:
                encoding = cchardet.detect(content)["encoding"]
                yield url, "no encoding found" if not encoding or encoding == "UTF-8" else "not decodable by the encoding found"


class _Again:
    """A record whose content is read a second time."""

    def __init__(self, record, content):
        self.rec_type, self.rec_headers, self._content = record.rec_type, record.rec_headers, content

    def content_stream(self):
        return self

    def read(self):
        return self._content


def ours(path, folder):
    """URL → what became of its records here: '' for a document, else the reason."""
    item = {"path": str(path), "source": "commoncrawl", "snapshot": "CC-TEST", "license": "", "origin_file": path.name}
    folder.mkdir()
    with PartWriter(folder, 0, "extract") as out:
        extract.extract_rank(CONFIG, item, out)
    found = defaultdict(list)
    for kind in ("documents", "rejects"):
        for row in read_rows(sorted(folder.glob(f"{kind}-*"))):
            found[row["url"]].append(row.get("reason", ""))
    return found, out


def without_types(source, target):
    """A WARC file as crawls before 2017 and other crawlers write it: no MIME type that the crawler detected."""
    named = b"WARC-Identified-Payload-Type: text/html\r\n"
    target.write_bytes(b"".join(gzip.compress(data.replace(named, b"", 1), mtime=0) for _, _, data in members(source)))
    return target


def test_no_page_of_real_files_is_lost_without_a_reason(realdata, tmp_path, record_property):
    mirror = tmp_path / "mirror"
    tool = realdata.parent / "tools" / "make_mirror.py"
    subprocess.run([sys.executable, str(tool), "--data", str(realdata), "--out", str(mirror)], check=True, stdout=subprocess.DEVNULL)
    crawl = sorted(mirror.glob("commoncrawl/crawl-data/CC-MAIN-2026-40/segments/*/warc/*.warc.gz"))
    paths = [crawl[0], *(without_types(path, tmp_path / path.name) for path in crawl)]
    paths += [
        realdata / "commoncrawl" / name for name in ("aut/warc/example.warc.gz", "dolma/sample-0000.warc.gz", "pywb/warcs/iana.warc.gz")
    ]
    dropped, fate, pages = Counter(), defaultdict(Counter), 0
    for number, path in enumerate(paths):
        found, out = ours(path, tmp_path / f"out-{number}")
        assert out.seen == sum(map(len, found.values()))
        for url, why in theirs(path):
            pages += 1
            here = found[extract.sound_url(url)]
            assert here, f"{url} of {path.name} has no fate here"
            if why:
                dropped[why] += 1
                fate[why][here[0] or "kept"] += 1
    lines = [
        f"{why}: {n} of {pages} pages dropped there; here " + ", ".join(f"{k} {f}" for f, k in fate[why].most_common())
        for why, n in dropped.items()
    ]
    print(*lines, sep="\n")
    record_property("dropped", lines)
    assert dropped.keys() == {"type guessed by libmagic"}
    # libmagic takes some pages for JavaScript: 52 of the 691 of the mirror
    assert fate["type guessed by libmagic"]["kept"] > 20
