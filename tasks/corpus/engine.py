"""Data-parallel stages: one datatrove pipeline, one rank an input, run by datatrove's executors on this machine, on Ray or on Slurm, under a watchdog.

    summaries = run_ranks(work, "tasks.corpus.quality:filter_rank", config, items, engine)
    return books(summaries)

A rank function is `f(config, item, out) -> info`: it reads one input, keeps and rejects rows through `out` (a PartWriter; other files it writes into
`out.directory` under a name with `out.rank`, whole or not at all, and appends to `out.files`), and may return a dict of figures of its own.
`item` is plain JSON. Its module may have a `prepare(config)`, which loads what all ranks need, once for all slots. Output depends on (config, item, rank)
alone, so any number of workers and any engine gives the same bytes. A rank is complete when datatrove's completion marker and its summary exist; a
killed one is run again, the others are kept.

This is the watchdog; ranks.py is what runs in the other processes. A launcher, kept from stage to stage, has imported what every rank needs and forks
a slot in milliseconds. A local slot is given one rank after another, the biggest input first; the one slot of Ray or Slurm hands all ranks to the
cluster. All its nodes must see the store's folder (of a remote store: INGOT_CACHE) under the same path and have the same packages.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from model import errors
from model.config import STRICT, resource, to_dict
from model.errors import RankError
from tasks.corpus.manifest import Result, Work, versions

TRIES = 3
"""Starts of a rank before its death counts as the stage's."""
GLANCE = 0.25
"""Seconds between two looks at the counts of a slot's ranks; of a hundred ranks, and for every further hundred, once more."""
START = 600.0
"""Seconds a launcher may take to start and to load what a stage needs: 1 and up to 6 on an idle laptop."""
SINGLE = {"OMP_NUM_THREADS": "1"}
"""A rank uses one processor."""


@dataclass(frozen=True)
class EngineConfig:
    """Where and how data-parallel stages run. Nothing here can change what they write."""

    __pydantic_config__ = STRICT

    workers: Annotated[int, Field(ge=1)] = resource()
    """Ranks at once: processes of this machine, or tasks of the cluster."""
    timeout: Annotated[float, Field(gt=0)] = resource()
    """Seconds without a sign of life after which a worker is ended and its rank started again. Waiting for a cluster does not count."""
    kind: Literal["local", "ray", "slurm"] = resource()
    """Where they run: this machine, a Ray cluster, or Slurm. The last two need the store's folder on a file system that all nodes share."""
    address: str = resource()
    """Ray: host:port of the cluster; '' is RAY_ADDRESS, or the cluster that this machine is part of."""
    cpus: Annotated[int, Field(ge=1)] = resource()
    """Ray and Slurm: processors reserved for a rank, which uses one."""
    memory: Annotated[float, Field(gt=0)] = resource()
    """Ray and Slurm: GiB reserved for each of these processors."""
    partition: str = resource()
    """Slurm: the partition."""
    time: str = resource()
    """Slurm: most time of a rank, as sbatch takes it (24:00:00)."""
    sbatch: tuple[str, ...] = resource()
    """Slurm: more arguments of sbatch, each name=value (account=nlp, qos=normal)."""

    def __post_init__(self) -> None:
        if self.kind == "slurm" and not (self.partition and self.time):
            raise ValueError(f"kind=slurm needs a partition and a time; here they are {self.partition!r} and {self.time!r}")
        odd = [word for word in self.sbatch if self.kind == "slurm" and not word.partition("=")[2]]
        if odd:
            raise ValueError(f"sbatch holds name=value, for example account=nlp, not {odd[0]!r}")


def local(workers: int, timeout: float) -> EngineConfig:
    """The engine of this machine. What only a cluster needs has the values that fit most."""
    return EngineConfig(workers, timeout, "local", address="", cpus=1, memory=2.0, partition="", time="24:00:00", sbatch=())


@dataclass
class Slot:
    """A process at work: its pid, our end of its socket, the ranks it has now; when it was last heard, and what the last look at its ranks found."""

    pid: int
    socket: socket.socket
    ranks: list[int]
    heard: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    signs: dict[int, int] = field(default_factory=dict)

    def hear(self) -> bytes:
        """The next message: b"done" of the slot, b"exit N" of the launcher, b"" where both are gone."""
        try:
            return self.socket.recv(1 << 10)
        except OSError:  # a reset: it had not read its last rank
            return b""

    def end(self) -> None:
        """Kill it with its whole process group and wait."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.socket.settimeout(10)
        while self.hear() == b"done":
            pass
        self.socket.close()


def run_ranks(work: Work, function: str, config: Any, items: Sequence[dict[str, Any]], engine: EngineConfig) -> list[dict[str, Any]]:
    """Run `function` over all items and return the ranks' summaries in order: files, seen, kept, rejected, info.

    An item's `rows`, where it has them, make the total of the progress. Raises the rank's own FatalError, or RankError when one died TRIES times.
    """
    if not items:
        return []
    scratch, here = work.scratch, engine.kind == "local"
    (scratch / "error.json").unlink(missing_ok=True)
    module, name = function.split(":")
    jobs = f"ingot-{work.stage}-{work.fingerprint[:10]}"
    job = {
        "module": module, "function": name, "type": f"{type(config).__module__}:{type(config).__qualname__}", "config": to_dict(config), "items": list(items),
        "directory": str(work.dir), "stage": work.stage, "name": jobs, "engine": to_dict(engine), "packages": versions(),
    }  # fmt: skip
    (scratch / "job.json").write_text(json.dumps(job))
    total = float(sum(item.get("rows") or 0 for item in items))
    seen = [_seen(scratch, rank)[0] for rank in range(len(items))]
    todo = sorted((rank for rank in range(len(items)) if not _done(scratch, rank)), key=lambda rank: (-_bytes(items[rank]), rank))
    tries: Counter[int] = Counter()
    running: list[Slot] = []
    try:
        while todo or running:
            while todo and len(running) < (engine.workers if here else 1):
                ranks, todo = (todo[:1], todo[1:]) if here else (todo, [])
                running.append(start(scratch, ranks, here))
            ready, _, _ = select.select([slot.socket for slot in running], [], [], GLANCE)
            for slot in list(running):
                said = slot.hear() if slot.socket in ready else None
                if said is None and not (scratch / "error.json").exists() and not _silent(scratch, slot, seen, engine):
                    continue
                left = [rank for rank in slot.ranks if not _done(scratch, rank)]
                for rank in set(slot.ranks) - set(left):
                    seen[rank] = _seen(scratch, rank)[0]
                if said == b"done" and todo:
                    _give(scratch, slot, todo.pop(0))
                    continue
                slot.end()
                running.remove(slot)
                if left:
                    _raise_error(scratch)
                    tries[left[0]] += 1
                    if tries[left[0]] >= TRIES:
                        raise RankError(_last_words(scratch, slot, left[0], said, engine))
                    todo = [*left, *todo]
            work.progress(float(sum(seen)), total, "documents")
    finally:
        for slot in running:
            slot.end()
        if engine.kind == "slurm":
            cancel_jobs(jobs)
    return [json.loads((scratch / f"rank-{rank:05d}.json").read_text()) for rank in range(len(items))]


def books(summaries: Sequence[dict[str, Any]], **info: Any) -> Result:
    """Add up the ranks' summaries to a stage's result: documents first, then rejects, each in rank order."""
    files = [(f["path"], f["rows"]) for s in summaries for f in s["files"]]
    rejected: Counter[str] = Counter()
    for summary in summaries:
        rejected.update(summary["rejected"])
    return Result(
        files=sorted(files, key=lambda f: (not f[0].startswith("documents-"), f[0])), seen=sum(s["seen"] for s in summaries),
        kept=sum(s["kept"] for s in summaries), rejected=rejected, info=info, reproducible=all(s["info"].get("reproducible", True) for s in summaries),
    )  # fmt: skip


def _bytes(item: dict[str, Any]) -> int:
    """Size of an item's input: the biggest come first, so that none of them is left over for the end."""
    try:
        return os.stat(item["path"]).st_size
    except (KeyError, OSError):
        return 0


def _done(scratch: Path, rank: int) -> bool:
    return (scratch / "datatrove" / "completions" / f"{rank:05d}").exists() and (scratch / f"rank-{rank:05d}.json").exists()


def _seen(scratch: Path, rank: int) -> tuple[int, int]:
    """Rows that a rank has seen so far, and a number that changes with every sign of life; 0 and 0 where it has not begun."""
    path = scratch / f"rank-{rank:05d}.seen"
    try:
        return int(path.read_text() or 0), path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0, 0


def _silent(scratch: Path, slot: Slot, seen: list[int], engine: EngineConfig) -> bool:
    """Look after a slot's ranks. True when nothing changed for engine.timeout seconds; ranks that wait for a cluster's processors are not expected to."""
    now = time.monotonic()
    if now - slot.looked < GLANCE * (1 + len(slot.ranks) // 100):
        return False
    slot.looked, signs = now, {}
    for rank in slot.ranks:
        seen[rank], sign = _seen(scratch, rank)
        if sign and not _done(scratch, rank):
            signs[rank] = sign
    if signs != slot.signs:
        slot.heard, slot.signs = now, signs
    return now - slot.heard > engine.timeout and (bool(signs) or engine.kind == "local")


def _give(scratch: Path, slot: Slot, rank: int) -> None:
    """Hand a slot its next rank. One that died meanwhile is noticed by its closed socket."""
    (scratch / f"rank-{rank:05d}.seen").unlink(missing_ok=True)
    slot.ranks, slot.heard, slot.signs = [rank], time.monotonic(), {}
    with contextlib.suppress(OSError):
        slot.socket.send(str(rank).encode())


def _raise_error(scratch: Path) -> None:
    path = scratch / "error.json"
    if path.exists():
        error = json.loads(path.read_text())
        path.unlink()
        raise getattr(errors, error["type"])(error["message"])


def _last_words(scratch: Path, slot: Slot, rank: int, said: bytes | None, engine: EngineConfig) -> str:
    log = scratch / f"slot-{slot.pid}.log"
    words = log.read_text(errors="replace")[-2000:] if log.exists() else "nothing"
    how = "gave no sign of life" if said is None else said.decode() or "killed with its launcher"
    shared = "" if engine.kind == "local" else f" Every node of the cluster must see {scratch} and start Ingot from the same folder."
    return f"rank {rank} of {scratch.parent} died {TRIES} times ({how}).{shared} Its last words, in {log}: {words}"


def cancel_jobs(name: str) -> None:
    """Take the jobs of a name out of Slurm, where there is one."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["scancel", "--me", "--name", name], capture_output=True)


class Launcher:
    """A process with everything imported that a rank needs, which forks slots from itself (ranks.py). It ends with this process, or when idle."""

    def __init__(self, log: Path):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.log = log
        command = f"import sys; from tasks.corpus.ranks import launch; launch({theirs.fileno()})"
        with theirs, open(log, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=Path(__file__).parents[2],
                env=os.environ | SINGLE, pass_fds=[theirs.fileno()],
            )  # fmt: skip

    def stop(self) -> None:
        """End it, with the slots it may have; from then on their CPU time counts as that of this process's children."""
        self.socket.close()
        self.process.wait()


_launcher: Launcher | None = None
_lock = threading.Lock()


def stop() -> None:
    """End the launcher that is kept for the next stage."""
    global _launcher
    with _lock:
        if _launcher is not None:
            _launcher.stop()
        _launcher = None


def start(scratch: Path, ranks: list[int], one: bool) -> Slot:
    """A new slot for a job in `scratch`, with its first rank (`one`) or with all of the job that are not complete."""
    global _launcher
    for rank in ranks:
        (scratch / f"rank-{rank:05d}.seen").unlink(missing_ok=True)
    ask = json.dumps({"scratch": str(scratch), "rank": ranks[0] if one else None, "variables": os.environ | SINGLE}).encode()
    for _ in range(2):  # the first may find a launcher that is about to end, having been idle
        with _lock:
            if _launcher is None or _launcher.process.poll() is not None:
                _launcher = Launcher(scratch / "launcher.log")
            launcher = _launcher
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, contextlib.suppress(OSError):
                socket.send_fds(launcher.socket, [ask], [theirs.fileno()])
        if select.select([ours], [], [], START)[0]:
            pid = ours.recv(1 << 10)
            if pid:
                return Slot(int(pid), ours, ranks)
        ours.close()
        launcher.process.kill()
        launcher.process.wait()
    words = launcher.log.read_text(errors="replace")[-2000:] if launcher.log.exists() else "nothing"
    raise RankError(f"the launcher of {scratch.parent} does not start (exit {launcher.process.returncode}). Its last words: {words}")


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies, so that a kill -9 leaves no orphan (Linux: prctl PR_SET_PDEATHSIG; the parent is the
    thread that started it). With `parent`, its pid: exit at once where it died before the asking."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
