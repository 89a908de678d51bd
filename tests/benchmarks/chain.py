"""The whole chain in a fresh store, then again: documents/s of every stage, wall time outside stage bodies and where it goes, memory.

    python tests/benchmarks/chain.py [RECIPE] [FIELD=VALUE …] [--quick] [--record]      RECIPE: demo unless given; --quick runs tiny

`ingot run` as a subprocess, as a user runs it. Nothing is patched: stages' times are those of the manifests, the flow's those that Prefect
noted in its database, MLflow's those of the build's run. What comes before the flow's start is imports and the start of Prefect's temporary
server, side by side; imports alone are timed afterwards in a process of their own. Memory is sampled four times a second.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from figures import REPO, Figure, arguments, clean_environment, conclude, run, table

from tasks.corpus.manifest import Manifest, Store
from tasks.tracking import run_name

LONG = 600.0
"""Seconds from which on the goal for time outside stage bodies is 2%, not 5%."""
UNITS = {
    "ingest": "files",
    "extract": "records",
    "pretrain": "sequences",
    "finetune": "examples",
    "evaluate": "items",
    "register": "versions",
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    given = parser.parse_args()
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    recipe = "tiny" if given.quick else given.recipe
    with tempfile.TemporaryDirectory(prefix="ingot-chain-") as name:
        folder = Path(name)
        command = [str(Path(sys.executable).with_name("ingot")), "run", recipe, *given.settings, "--store", str(folder / "store")]
        started, wall, family = run(command, folder, folder / "first.log", clean_environment())
        store = Store(folder / "store")
        manifests = made(store)
        spent = outside(folder / "store", manifests, started, wall)
        _, again, _ = run(command, folder, folder / "second.log", clean_environment())
        if [m.about["finished"] for m in made(store)] != [m.about["finished"] for m in manifests]:
            sys.exit(f"the second run made stages anew: {(folder / 'second.log').read_text()}")
    rows = [(run_name(m), f"{m.seen:,}", unit(m), f"{m.about['seconds']:.1f}", f"{speed(m):,.1f}") for m in manifests]
    print(f"{recipe} in {wall:.1f} s")
    table(("stage", "in", "", "seconds", "a second"), rows)
    total = sum(spent.values())
    print(f"\noutside stage bodies: {total:.1f} s of {wall:.1f} s")
    table(("where", "seconds", "share of the run"), [(what, f"{s:.1f}", f"{s / wall:.1%}") for what, s in spent.items()])
    alone = imports()
    print(f"imports alone take {alone:.1f} s; the server starts beside them")
    goal = 0.02 if wall >= LONG else 0.05
    return [
        Figure(f"{recipe}: documents a second", ", ".join(f"{run_name(m)} {speed(m):,.3g}" for m in manifests if m.stage != "ingest")),
        Figure(f"{recipe}: wall time", f"{wall:.1f} s", "≤ 300 s", wall <= 300) if recipe == "demo" and not given.settings
        else Figure(f"{recipe}: wall time", f"{wall:.1f} s"),
        Figure(f"{recipe}: outside stage bodies", f"{total / wall:.1%} ({total:.1f} s: " + ", ".join(f"{w} {s:.1f}" for w, s in spent.items())
               + f"; imports alone {alone:.1f})", f"≤ {goal:.0%}", total / wall <= goal),
        Figure(f"{recipe}: second run", f"{again:.1f} s", "≤ 20 s", again <= 20),
        Figure(f"{recipe}: peak memory of all processes", f"{family.peak / 2**20:,.0f} MiB in {family.processes} processes, shared pages counted in each"),
    ]  # fmt: skip


def made(store: Store) -> list[Manifest]:
    """All complete outputs in the order in which they were made."""
    found = [store.manifest(address) for address in store.addresses()]
    return sorted((m for m in found if m is not None), key=lambda m: m.about["started"])


def unit(manifest: Manifest) -> str:
    return UNITS.get(manifest.stage, "documents")


def speed(manifest: Manifest) -> float:
    """What came in, a second."""
    return float(manifest.seen / manifest.about["seconds"])


def outside(store: Path, manifests: Sequence[Manifest], started: float, wall: float) -> dict[str, float]:
    """Seconds of the run that no stage's body took, by where they went, in order; their sum is exact."""
    with closing(sqlite3.connect(store / "prefect" / "prefect.db")) as db:
        flow = [moment(text) for text in db.execute("select start_time, end_time from flow_run").fetchone()]
    with closing(sqlite3.connect(store / "mlflow" / "mlflow.db")) as db:
        noted = db.execute("select max(end_time) from runs").fetchone()[0] / 1000
    first, last = manifests[0].about["started"], manifests[-1].about["finished"]
    bodies = sum(m.about["seconds"] for m in manifests)
    return {
        "imports and Prefect's server": flow[0] - started,
        "flow's start and opening MLflow": first - flow[0],
        "between stages": last - first - bodies,
        "MLflow record": noted - last,
        "report": flow[1] - noted,
        "closing answer and exit": started + wall - flow[1],
    }


def moment(text: str) -> float:
    """Seconds since 1970 of a time in Prefect's database, which is UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def imports() -> float:
    """Seconds that a process takes to import the flows, started and ended."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import flows.cli, flows.build"], check=True, cwd=REPO, env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}
    )
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
