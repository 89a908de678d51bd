"""What the benchmarks share: a figure with its goal, the table that is printed, the row that is recorded, and the memory of a family of processes.

    given = arguments(__doc__)                        # --quick, --record, --json FILE and what a script adds
    conclude(given, [Figure("second run", "8.1 s")])  # prints; with --record appends to RESULTS.md

Plain and light: a child that is started counts what its parent held at that moment as its own peak (Linux, ru_maxrss).
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

REPO = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures; `met` is None where there is no goal."""

    name: str
    value: str
    goal: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        return self.name, self.value, self.goal + ("" if self.met is None else ", met" if self.met else ", missed")


def arguments(about: str | None) -> argparse.ArgumentParser:
    """The options that every script takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: tiny sizes, figures that mean nothing")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def conclude(given: argparse.Namespace, figures: Sequence[Figure]) -> None:
    """Print the figures, and leave them where the options say. A quick run is never recorded."""
    print()
    table(("figure", "value", "goal"), [figure.cells for figure in figures])
    if given.json:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures]))
    if given.record and not given.quick:
        record(RESULTS, figures, shlex.join(["python", os.path.relpath(sys.argv[0], REPO), *sys.argv[1:]]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns; those of numbers stand to the right."""
    right = [all(row[n] == "" or (row[n][:1].isdigit() and " " not in row[n]) for row in rows) for n in range(len(head))]
    widths = [max(len(line[n]) for line in (head, *rows)) for n in range(len(head))]
    for line in (head, ["-" * width for width in widths], *rows):
        cells = zip(line, widths, right, strict=True)
        print("  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells).rstrip())


def record(path: Path, figures: Sequence[Figure], command: str, facts: tuple[str, str, str] | None = None) -> None:
    """Append one row a figure to a results file; `facts` (date, commit, machine) where they were measured elsewhere."""
    facts = facts or (now(), commit(), machine())
    with open(path, "a", encoding="utf-8") as file:
        for figure in figures:
            file.write("| " + " | ".join(cell.replace("|", "/") for cell in (*facts, f"`{command}`", *figure.cells)) + " |\n")


def now() -> str:
    """The time as rows have it, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def commit() -> str:
    """The commit that was measured, with a + where files differ from it."""
    head, status = (
        subprocess.run(["git", "-C", str(REPO), *words], capture_output=True, text=True).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", ":!tests/benchmarks/RESULTS.md"))
    )
    return head + ("+" if status else "")


def machine() -> str:
    """Processor, cores this process may use, memory; no host name."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def clean_environment(**more: str) -> dict[str, str]:
    """This process's variables without those that would lead a run to somebody's own Prefect, MLflow or store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "INGOT_"))}
    return kept | {"NO_COLOR": "1"} | more


class Family:
    """Peak of the resident bytes of a process and all it started, sampled while the block runs. Pages that processes share count once each."""

    def __init__(self, pid: int, every: float = 0.25):
        self.peak = self.processes = 0
        self._root, self._every, self._over = psutil.Process(pid), every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Family":
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            total = count = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total, count = total + process.memory_info().rss, count + 1
            if total > self.peak:
                self.peak, self.processes = total, count


def run(command: Sequence[str], cwd: Path, log: Path, env: dict[str, str]) -> tuple[float, float, Family]:
    """Run a command to its end: when it started (seconds since 1970), seconds it took, its family's memory. Exits with its last words if it fails."""
    with open(log, "wb") as output:
        started, begun = time.time(), time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env)
        with Family(process.pid) as family:
            status = process.wait()
            seconds = time.perf_counter() - begun
    if status:
        sys.exit(f"{shlex.join(command)} ended with {status}: {log.read_text(errors='replace')[-3000:]}")
    return started, seconds, family
