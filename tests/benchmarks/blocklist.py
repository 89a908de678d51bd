"""Block-lists: seconds and memory to take in a list of domains, and look-ups a second, beside a Python set of the same entries.

    python tests/benchmarks/blocklist.py [--entries 2000000] [--record]

Each side in a process of its own, whose peak memory is told above that of a process that has only imported the module. CPU time. The set is the one that
a few lines of Python would use: every domain lower-cased, a host looked up with all domains above it. Addresses are made up, every second one is listed.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
ASKED = 100_000


def name(number: int) -> str:
    return f"n{number * 2654435761 % 2**32:x}.site{number % 99991}.example"


def side(which: str, lists: str, entries: int) -> None:
    """One side's seconds to load, bytes above the start, seconds of the look-ups and hits, as JSON."""
    from tasks.corpus.blocklist import Blocklist, compile_lists

    urls = [
        f"https://www.{name(n)}/path/{n}?q=1" if n % 2 else f"https://{name(n)}.org/path/{n}"
        for n in range(0, entries, max(1, entries // ASKED))
    ]
    at_start, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if which == "ours":
        compile_lists([Path(lists)], Path(lists).parent / "made")
        known = Blocklist(Path(lists).parent / "made")
    else:
        with open(lists, encoding="utf-8") as file:
            domains = {line.strip().lower() for line in file}
    loaded = time.process_time()
    if which == "ours":
        hits = sum(bool(known.find(url)[0]) for url in urls)
    else:
        hits = 0
        for url in urls:
            labels = (urlsplit(url).hostname or "").split(".")
            hits += any(".".join(labels[n:]) in domains for n in range(len(labels) - 1))
    ended = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"load": loaded - begun, "bytes": (peak - at_start) * 1024, "rate": len(urls) / (ended - loaded), "hits": hits}))


def main() -> None:
    from figures import Figure, arguments, conclude

    parser = arguments(__doc__)
    parser.add_argument("--entries", type=int, default=2_000_000)
    given = parser.parse_args()
    entries = 20_000 if given.quick else given.entries
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder) / "domains"
        with open(lists, "w", encoding="utf-8") as file:  # line by line: a child counts what its parent has held as its own peak
            file.writelines(f"{name(n)}\n" for n in range(entries))
        found = {}
        for which in ("ours", "set"):
            done = subprocess.run(
                [sys.executable, __file__, "--side", which, str(lists), str(entries)],
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            if done.returncode:
                sys.exit(done.stderr)
            found[which] = json.loads(done.stdout)
    ours, peer = found["ours"], found["set"]
    if ours["hits"] != peer["hits"]:
        sys.exit(f"the sides differ: {ours['hits']} and {peer['hits']} addresses are listed")
    smaller = peer["bytes"] / max(1, ours["bytes"])
    conclude(
        given,
        [
            Figure(f"block-list of {entries:,} domains: CPU seconds to take in (set)", f"{ours['load']:.2f} ({peer['load']:.2f})"),
            Figure("block-list: bytes of memory an entry (set)", f"{ours['bytes'] / entries:.0f} ({peer['bytes'] / entries:.0f})", "≤ 32", ours["bytes"] <= 32 * entries),
            Figure("block-list: memory of the set / ours", f"{smaller:.1f}×"),
            Figure("block-list: addresses looked up a second (set)", f"{ours['rate']:,.0f} ({peer['rate']:,.0f})"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
