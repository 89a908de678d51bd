"""A fake stage for tests of the engines: four small ranks, of which number 1 may be killed, hang or make a mistake.

manifest = run(store, "killed", local(2, 60.0))          # the rank as its first try goes wrong
tried(store, "killed")                                   # [0, 1, 1, 2, 3]: every start of a rank
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from model.config import STRICT
from model.errors import InputError
from tasks.corpus.document import new_document
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.manifest import Manifest, Stage, Store, run_stage


@dataclass(frozen=True)
class Fake:
    """How a rank of these tests behaves."""

    __pydantic_config__ = STRICT
    rows: int
    trouble: str


def rank(config, item, out):
    log = Path(item["log"])
    with log.open("a") as handle:
        handle.write(f"{out.rank} {os.getpid()}\n")
    first = [line.split()[0] for line in log.read_text().splitlines()].count(str(out.rank)) == 1
    for number in range(config.rows):
        row = new_document(f"text {number} of {item['name']}", source="files", snapshot="s", origin_file=item["name"], place=number)
        if number % 3:
            out.keep(row)
        else:
            out.reject(row, "third", number)
        if out.rank == 1 and number == config.rows // 2:
            if (config.trouble == "killed" and first) or config.trouble == "always":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.trouble == "hangs" and first:
                time.sleep(600)
            if config.trouble == "mistake":
                raise InputError("b.txt is wrong: value 7. Mend it.")
    return {"name": item["name"]}


def place(store: Store, trouble: str, engine: EngineConfig) -> Path:
    """Folder of the store of a run, with the log of its ranks beside it."""
    return store.base / f"{trouble}-{engine.kind}-{engine.workers}"


def run(store: Store, trouble: str, engine: EngineConfig, names: str = "abcd") -> Manifest:
    """The fake stage in a store of its own."""
    folder = place(store, trouble, engine)
    folder.mkdir(parents=True)

    def body(work):
        items = [{"name": name, "log": str(folder / "ranks.log"), "rows": 100} for name in names]
        summaries = run_ranks(work, f"{__name__}:rank", Fake(100, trouble), items, engine)
        return books(summaries, names=[s["info"]["name"] for s in summaries])

    return run_stage(Store(folder), Stage("fake", 1), "r", Fake(100, trouble), {}, body)


def tried(store: Store, trouble: str, engine: EngineConfig) -> list[int]:
    """Every start of a rank."""
    return sorted(int(line.split()[0]) for line in (place(store, trouble, engine) / "ranks.log").read_text().splitlines())


def hashes(manifest: Manifest) -> list[tuple[str, str]]:
    return [(f.path, f.sha256) for f in manifest.files]
