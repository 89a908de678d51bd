"""Ingest from the mirror of the real hosts, over HTTP: two crawls and two dates of the wikis, made of real pages."""

import json
import subprocess
import sys

import pytest
from http_server import serve

from tasks.corpus import commoncrawl, wikipedia
from tasks.corpus.commoncrawl import CommonCrawlConfig
from tasks.corpus.download import DownloadConfig
from tasks.corpus.wikipedia import WikipediaConfig, articles

pytestmark = [pytest.mark.realdata, pytest.mark.full]
DOWNLOAD = DownloadConfig(rate_bytes=0, requests_per_second=10_000, tries=2, timeout=10, user_agent="")


@pytest.fixture(scope="module")
def mirror(realdata, tmp_path_factory):
    """The mirror, built once and served."""
    out = tmp_path_factory.mktemp("mirror")
    tool = realdata.parent / "tools" / "make_mirror.py"
    subprocess.run([sys.executable, str(tool), "--data", str(realdata), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    with serve(out) as server:
        yield server


def test_both_snapshots_come_whole_and_latest_is_the_second(mirror, store):
    base = f"{mirror.url}/commoncrawl"
    counts = json.loads((mirror.folder / "planted.json").read_text())["responses"]
    for name, snapshot in (("CC-MAIN-2026-40",) * 2, ("latest", "CC-MAIN-2026-44")):
        made = commoncrawl.run(store, "t", CommonCrawlConfig(name, 100, 1 << 30, base, base, format="warc", select=None), DOWNLOAD)
        assert made.info["snapshot"] == snapshot and made.kept == -(-counts[snapshot] // 100)
        assert all(store.path(made, f).read_bytes() == (mirror.folder / "commoncrawl" / f.path).read_bytes() for f in made.files)


def test_both_wikis_come_at_both_dates_and_the_later_has_more_pages(mirror, store):
    pages = {}
    for name, date in (("20261001", "20261001"), ("latest", "20261101")):
        made = wikipedia.run(store, "t", WikipediaConfig(("enwiki", "zhwiki"), name, 9, 1 << 30, f"{mirror.url}/wikimedia"), DOWNLOAD)
        assert made.info["snapshots"] == {"enwiki": date, "zhwiki": date}
        pages[date] = [sum(1 for _ in articles(store.path(made, f))) for f in made.files]
    assert pages["20261001"][0] < pages["20261101"][0] == 206 and pages["20261001"][1] == pages["20261101"][1] == 1
