"""Reading WARC and WET files: our records, which account for every byte, against FastWARC's bare iterator and warcio's, each reading every body.

    python tests/benchmarks/warc_speed.py [--rounds 9] [--record]

The file is the mirror's real pages, one gzip member a record as Common Crawl writes them, copied until it has 60 MB; the WET file is made of the same pages.
One process on one core, the readers in turn, medians of CPU seconds. FastWARC runs with HTTP parsed and nothing decoded, which is its fastest. The limit is
inflating alone: the members unpacked by igzip, nothing parsed.
"""

import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
SHARED = REPO.parent / "shared"
CRAWL = "CC-MAIN-2026-40"
CAP = 8 << 20


def ours(path: Path) -> tuple[int, int]:
    """(pages, bytes of their bodies)."""
    from tasks.corpus.warc import records

    sizes = [len(record.body) for record in records(path, CAP) if record.kind in ("response", "conversion")]
    return len(sizes), sum(sizes)


def bare(path: Path) -> tuple[int, int]:
    """The same by FastWARC."""
    from fastwarc import ArchiveIterator, WarcRecordType

    sizes = []
    with open(path, "rb") as file:
        for record in ArchiveIterator(file, parse_http=True):
            body = record.reader.read()
            if record.record_type in (WarcRecordType.response, WarcRecordType.conversion):
                sizes.append(len(body))
    return len(sizes), sum(sizes)


def warcio(path: Path) -> tuple[int, int]:
    """The same by warcio."""
    from warcio.archiveiterator import ArchiveIterator

    sizes = []
    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            body = record.raw_stream.read()
            if record.rec_type in ("response", "conversion"):
                sizes.append(len(body))
    return len(sizes), sum(sizes)


def limit(path: Path) -> tuple[int, int]:
    """Members unpacked, nothing else."""
    from tasks.corpus.warc import member

    count = at = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        while at < len(raw):
            _, at, _, _ = member(raw, at, CAP)
            count += 1
    return count, 0


READERS: dict[str, Callable[[Path], tuple[int, int]]] = {"ingot": ours, "FastWARC": bare, "limit": limit, "warcio": warcio}


def race(path: Path, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each reader."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        seen = {}
        for name, read in READERS.items():
            if name == "warcio" and number > 2:  # slow, and no goal
                continue
            begun = time.process_time()
            seen[name] = read(path)
            if number:
                seconds[name].append(time.process_time() - begun)
        assert seen["ingot"] == seen["FastWARC"], seen
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def repeated(paths: list[Path], target: Path, size: int) -> Path:
    """The files one after another, again and again, until there are so many bytes."""
    with open(target, "wb") as out:
        while out.tell() < size:
            for path in paths:
                out.write(path.read_bytes())
    return target


def main() -> None:
    from crawl_host import add_wet
    from figures import Figure, arguments, conclude

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"needs the real sample data at {SHARED / 'data'}")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        host = Path(folder) / "mirror" / "commoncrawl"
        tool = SHARED / "tools" / "make_mirror.py"
        subprocess.run(
            [sys.executable, str(tool), "--data", str(SHARED / "data"), "--out", str(host.parent)], check=True, stdout=subprocess.DEVNULL
        )
        add_wet(host, CRAWL)
        for kind, pattern in (
            ("WARC", f"crawl-data/{CRAWL}/segments/*/warc/*.warc.gz"),
            ("WET", f"crawl-data/{CRAWL}/segments/*/wet/*.warc.wet.gz"),
        ):
            path = repeated(
                sorted(host.glob(pattern)), Path(folder) / f"{kind}.gz", (4 if given.quick else 60) << 20 >> (0 if kind == "WARC" else 2)
            )
            taken = race(path, 1 if given.quick else given.rounds)
            packed = path.stat().st_size
            ratio = taken["FastWARC"] / taken["ingot"]
            figures += [
                Figure(f"{kind}: {name}", f"{packed / taken[name] / 1e6:,.0f} MB/s of .gz") for name in ("ingot", "FastWARC", "warcio")
            ]
            figures += [
                Figure(
                    f"{kind}: ingot's speed to FastWARC's",
                    f"{ratio:.2f}×",
                    "0.95×" if kind == "WARC" else "",
                    ratio >= 0.95 if kind == "WARC" else None,
                ),
                Figure(f"{kind}: inflating alone", f"{taken['ingot'] / taken['limit']:.2f} times as fast as ingot"),
            ]
    conclude(given, figures)


if __name__ == "__main__":
    main()
