"""A Common Crawl host of a few files for tests: a folder to which snapshots are added."""

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

OLD, NEW = "CC-MAIN-1970-01", "CC-MAIN-1970-05"


def add_snapshot(root: Path, name: str, warcs: Sequence[Path]) -> None:
    """Add a snapshot of these files to a host, as its newest."""
    paths = []
    for number, warc in enumerate(warcs):
        paths.append(f"crawl-data/{name}/segments/1.{number}/warc/{name}-{number:05d}.warc.gz")
        (root / paths[-1]).parent.mkdir(parents=True)
        shutil.copyfile(warc, root / paths[-1])
    (root / f"crawl-data/{name}/warc.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode(), mtime=0))
    listing = root / "collinfo.json"
    known = json.loads(listing.read_text()) if listing.exists() else []
    listing.write_text(json.dumps([{"id": name}, *known]))
