"""Data-parallel stages: one datatrove pipeline, one rank an input, run by datatrove's executor in subprocesses under a watchdog.

    summaries = run_ranks(work, "tasks.corpus.quality:filter_rank", config, items, engine)
    return books(summaries)

A rank function is `f(config, item, out) -> info`: it reads one input, keeps and rejects rows through `out` (a PartWriter; other files it writes into
`out.directory` under a name with `out.rank`, whole or not at all, and appends to `out.files`), and may return a dict of figures of its own.
`item` is plain JSON. Output depends on (config, item, rank) alone, so any number of workers gives the same bytes. A rank is complete when
datatrove's completion marker and its summary exist; a killed one is run again, the others are kept.

A subprocess a slot: `python -m tasks.corpus.engine JOB.json OFFSET COUNT`.
"""

import ctypes
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from model import errors
from model.config import STRICT, from_dict, resource, to_dict
from model.errors import FatalError, IngotError, RankError
from tasks.corpus.document import PartWriter
from tasks.corpus.manifest import Result, Work, translate

TRIES = 3
"""Starts of a slot before its rank's death counts as the stage's."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How data-parallel stages run on this machine."""

    __pydantic_config__ = STRICT

    workers: Annotated[int, Field(ge=1)] = resource()
    """Processes at once."""
    timeout: Annotated[float, Field(gt=0)] = resource()
    """Seconds without a sign of life after which a worker is ended and its rank started again."""
    kind: Literal["local"] = resource()
    """Where they run; ray and slurm come with the corpus engine."""


def run_ranks(work: Work, function: str, config: Any, items: Sequence[dict[str, Any]], engine: EngineConfig) -> list[dict[str, Any]]:
    """Run `function` over all items and return the ranks' summaries in order: files, seen, kept, rejected, info.

    An item's `rows`, where it has them, make the total of the progress. Raises the rank's own FatalError, or RankError when a slot died TRIES times.
    """
    if not items:
        return []
    scratch = work.scratch
    (scratch / "error.json").unlink(missing_ok=True)
    module, name = function.split(":")
    job = scratch / "job.json"
    job.write_text(
        json.dumps(
            {
                "module": module,
                "function": name,
                "type": _type_name(config),
                "config": to_dict(config),
                "items": list(items),
                "directory": str(work.dir),
                "stage": work.stage,
            }
        )
    )
    total = sum(item.get("rows") or 0 for item in items)
    todo = _chunks([rank for rank in range(len(items)) if not _done(scratch, rank)], engine.workers)
    tries: Counter[int] = Counter()
    running: dict[int, tuple[subprocess.Popen[bytes], list[int]]] = {}
    try:
        while todo or running:
            while todo and len(running) < engine.workers:
                ranks = todo.pop(0)
                tries[ranks[0]] += 1
                running[ranks[0]] = (_start(scratch, job, ranks), ranks)
            for slot, (process, ranks) in list(running.items()):
                if process.poll() is None and not _hung(scratch, slot, engine.timeout):
                    continue
                _end(process)
                del running[slot]
                left = [rank for rank in ranks if not _done(scratch, rank)]
                if left:
                    _raise_error(scratch)
                    tries[left[0]] += 1 if left[0] != ranks[0] else 0
                    if tries[left[0]] >= TRIES:
                        log = scratch / f"slot-{slot:05d}.log"
                        raise RankError(
                            f"rank {left[0]} of {work.dir} died {TRIES} times (exit {process.returncode}). Its last words, in {log}: {_tail(log)}"
                        )
                    todo.insert(0, left)
            work.progress(*_seen(scratch, len(items), total))
            time.sleep(0.05)
    finally:
        for process, _ in running.values():
            _end(process)
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


def _chunks(ranks: list[int], workers: int) -> list[list[int]]:
    """Contiguous runs of ranks, about four a worker where there are many, so that a slow file does not hold up the rest."""
    if not ranks:
        return []
    size = max(1, -(-len(ranks) // (workers * 4 if len(ranks) > workers * 8 else workers)))
    chunks: list[list[int]] = []
    for rank in ranks:
        if chunks and len(chunks[-1]) < size and chunks[-1][-1] == rank - 1:
            chunks[-1].append(rank)
        else:
            chunks.append([rank])
    return chunks


def _type_name(config: Any) -> str:
    return f"{type(config).__module__}:{type(config).__qualname__}"


def _done(scratch: Path, rank: int) -> bool:
    return (scratch / "datatrove" / "completions" / f"{rank:05d}").exists() and (scratch / f"rank-{rank:05d}.json").exists()


def _start(scratch: Path, job: Path, ranks: list[int]) -> subprocess.Popen[bytes]:
    log = scratch / f"slot-{ranks[0]:05d}.log"
    _beat(scratch, ranks[0])
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.corpus.engine", str(job), str(ranks[0]), str(len(ranks))],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1", "INGOT_PARENT": str(os.getpid())},
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a slot with its whole process group and wait."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def _beat(scratch: Path, slot: int) -> None:
    (scratch / f"slot-{slot:05d}.alive").touch()


def _hung(scratch: Path, slot: int, timeout: float) -> bool:
    return time.time() - (scratch / f"slot-{slot:05d}.alive").stat().st_mtime > timeout


def _seen(scratch: Path, ranks: int, total: int) -> tuple[float, float, str]:
    """Rows seen so far by all ranks, of how many."""
    counts = [scratch / f"rank-{rank:05d}.seen" for rank in range(ranks)]
    return float(sum(int(path.read_text() or 0) for path in counts if path.exists())), float(total), "documents"


def _raise_error(scratch: Path) -> None:
    path = scratch / "error.json"
    if path.exists():
        error = json.loads(path.read_text())
        path.unlink()
        raise getattr(errors, error["type"])(error["message"])


def _tail(path: Path, chars: int = 2000) -> str:
    return path.read_text(errors="replace")[-chars:] if path.exists() else "nothing"


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that a kill -9 of the worker leaves no orphan (Linux: prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    asked = os.environ.get("INGOT_PARENT")
    if asked and os.getppid() != int(asked):
        os._exit(1)


def main(job_path: str, offset: int, count: int) -> int:
    """One slot: ranks offset … offset+count-1 of a job, in datatrove's local executor with one worker."""
    die_with_parent()
    os.register_at_fork(after_in_child=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))  # datatrove's manager process too
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep

    job = json.loads(Path(job_path).read_text())
    scratch, directory = Path(job_path).parent, Path(job["directory"])
    module, name = job["type"].split(":")
    config = from_dict(getattr(importlib.import_module(module), name), job["config"])
    function: Callable[..., dict[str, Any] | None] = getattr(importlib.import_module(job["module"]), job["function"])

    class RankStep(PipelineStep):
        """Our function as a datatrove step: rank r works on item r and writes its own files."""

        name = f"Ingot {job['function']}"
        type = "INGOT"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            last = 0.0

            def beat(seen: int) -> None:
                nonlocal last
                if time.monotonic() - last > 0.5:
                    last = time.monotonic()
                    _beat(scratch, offset)
                    (scratch / f"rank-{rank:05d}.seen").write_text(str(seen))

            beat(0)
            with self.track_time(), PartWriter(directory, rank, job["stage"], beat=beat) as out:
                info = function(config, job["items"][rank], out)
            self.stat_update("seen", value=out.seen)
            (scratch / f"rank-{rank:05d}.seen").write_text(str(out.seen))
            temporary = scratch / f"rank-{rank:05d}.json.tmp"
            temporary.write_text(json.dumps(out.summary | {"info": info or {}}))
            os.replace(temporary, scratch / f"rank-{rank:05d}.json")
            _beat(scratch, offset)
            yield from ()

    try:
        LocalPipelineExecutor(
            [RankStep()],
            tasks=len(job["items"]),
            workers=1,
            local_tasks=count,
            local_rank_offset=offset,
            logging_dir=str(scratch / "datatrove"),
            skip_completed=True,
        ).run()
    except IngotError as error:
        return _report(scratch, error)
    except Exception as error:
        known = translate(error, directory)
        return _report(
            scratch, known if isinstance(known, IngotError) else FatalError(f"a defect in {job['function']}: {traceback.format_exc()}")
        )
    return 0


def _report(scratch: Path, error: IngotError) -> int:
    """Leave the error for the stage to raise."""
    (scratch / "error.json.tmp").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
    os.replace(scratch / "error.json.tmp", scratch / "error.json")
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
