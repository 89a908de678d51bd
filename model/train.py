"""The training process, from both sides: a rank's `main`, and `launch`, which starts ranks under torchrun and watches them.

    launch(Path("run.json"), ranks=2, log=…, timeout=…, on_metrics=print, cache=…)         # from a task
    torchrun --standalone --nproc-per-node 2 -m model.train run.json                       # by hand

Run (run.json) → metrics.jsonl, checkpoints/, at the end model/ and done.json, all under run.out, which several nodes see on one file system.
Only done.json proves that a run ended well: exit codes of launchers lie. A mistake is left in error.json (exit 3) and raised by `launch`;
a rank that dies is a RankError there, and starting again resumes from the last complete checkpoint. The loop itself: model/loop.py.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from model import checkpoint, errors
from model.config import Run, from_dict
from model.errors import FatalError, RankError

Row = dict[str, Any]
FATAL = 3
"""Exit status of a rank that left error.json."""


def main(run_json: Path) -> None:
    """One rank."""
    from model.loop import train

    die_with_parent()
    launcher = os.environ.get("INGOT_LAUNCHER")
    if launcher and psutil.Process(os.getppid()).ppid() != int(launcher):
        os._exit(1)  # all was killed before this process could ask to die with it: a rank that goes on alone would write into the next run
    run = from_dict(Run, json.loads(run_json.read_text()))
    try:
        train(run)
    except FatalError as error:
        checkpoint.write_json(Path(run.out) / "error.json", {"type": type(error).__name__, "message": str(error)})
        raise SystemExit(FATAL) from error


def launch(
    run_json: Path,
    ranks: int,
    log: Path,
    timeout: float,
    on_metrics: Callable[[Row], None],
    cache: Path,
    env: Mapping[str, str] | None = None,
    nodes: int = 1,
    endpoint: str | None = None,
    beside: int = 1,
) -> None:
    """Run the loop under torchrun with `ranks` processes here and return when done.json is there; `on_metrics` gets each new row.

    cache: where DeepSpeed keeps what it compiles. timeout: seconds without a new row after which the run counts as hung. nodes, endpoint
    (host:port): as torchrun's --nnodes and --rdzv-endpoint; call it on each node. beside: launches at a time that share the cores. On failure, a time-out or an exception in `on_metrics`
    every process is killed; if this process is killed, they die with it.
    Raises the FatalError that a rank left in error.json, or RankError with the end of the log.
    """
    run = from_dict(Run, json.loads(run_json.read_text()))
    out = Path(run.out)
    if _done(out, run.fingerprint):
        return
    (out / "error.json").unlink(missing_ok=True)
    place = ["--standalone"] if nodes == 1 else [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    if nodes > 1:
        place.append(f"--rdzv-id={run.fingerprint[:16]}")
    command = [sys.executable, "-m", "torch.distributed.run", *place, f"--nproc-per-node={ranks}", "-m", "model.train", str(run_json)]
    threads = max(1, len(os.sched_getaffinity(0)) // (ranks * beside))
    home = str(Path(__file__).parents[1])
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on busy cores make small matrices ten times slower
        "TORCH_EXTENSIONS_DIR": str(cache),
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "INGOT_LAUNCHER": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH")))),
    }
    rows = Tail(out / "metrics.jsonl")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **settings, **(env or {})},
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        heard = time.monotonic()
        while True:
            ended = process.poll() is not None
            for row in rows.new():
                on_metrics(row)
                heard = time.monotonic()
            if ended:
                break
            if time.monotonic() - heard > timeout:
                raise RankError(f"training made no step for {timeout:g} s and was ended; log {log}: {_end_of(log)}")
            time.sleep(0.1)
    finally:
        _kill(process)
    if _done(out, run.fingerprint):
        return
    if (out / "error.json").exists():
        left = json.loads((out / "error.json").read_text())
        raise getattr(errors, left["type"])(left["message"])
    raise RankError(f"training ended with status {process.returncode} before it was complete; log {log}: {_end_of(log)}")


class Tail:
    """The rows that a run now started appends to metrics.jsonl. It replaces the file at its start by one that begins as the old one did."""

    def __init__(self, path: Path):
        self._path = path
        self._old = path.read_bytes() if path.exists() else b""
        self._before = path.stat().st_ino if path.exists() else None
        self._place: int | None = None

    def new(self) -> list[Row]:
        """Complete lines since the last call."""
        if not self._path.exists() or (self._place is None and self._path.stat().st_ino == self._before):
            return []
        with open(self._path, "rb") as file:
            if self._place is None:
                text = file.read(len(self._old))
                same = next((n for n, (old, new) in enumerate(zip(self._old, text, strict=False)) if old != new), len(text))
                self._place = text.rfind(b"\n", 0, same) + 1
            file.seek(self._place)
            lines = file.read()
        end = lines.rfind(b"\n") + 1
        self._place += end
        return [json.loads(line) for line in lines[:end].splitlines()]


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it dies, however it dies; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End torchrun and every rank it started, which are sessions of their own."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
    process.wait()


def _done(out: Path, fingerprint: str) -> bool:
    path = out / "done.json"
    return path.exists() and json.loads(path.read_text())["fingerprint"] == fingerprint


def _end_of(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
