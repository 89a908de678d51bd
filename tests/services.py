"""Real services for tests: `ingot up` in a folder of its own, asked as another shell asks it, and ended with all that it started.

with started(folder) as services:
    services.shell("ingot run tiny")
"""

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from chain import INGOT, environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def within(seconds: float, what: Callable[[], Any], said: Callable[[], Any] = lambda: "") -> Any:
    """Wait until something is true, and give it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, said()
        time.sleep(0.1)
    return found


@dataclass
class Up:
    """A running `ingot up` in a folder with a home of its own."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def said(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def find(self, words: str) -> psutil.Process | None:
        """The running process whose command line has these words."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    return process
        return None

    def shell(self, command: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """A fresh shell in which nothing but the printed lines was evaluated."""
        lines = "\n".join(line for line in self.said.splitlines() if line.startswith("export "))
        bare = {"HOME": str(self.folder / "home"), "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "200"}
        return subprocess.run(
            ["bash", "-c", f"{lines}\n{command}"],
            cwd="/",
            env=bare,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def api(self, path: str, data: Any = None, method: str = "POST") -> Any:
        [url] = re.findall(r"PREFECT_API_URL=(\S+)", self.said)
        body = json.dumps({} if data is None else data).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}{path}", body, {"Content-Type": "application/json"}, method=method)
        ) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment as another shell does; id of the flow run."""
        words = " ".join(f"--param '{name}={json.dumps(value)}'" for name, value in parameters.items())
        done = self.shell(f"prefect deployment run '{deployment}' {words}")
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"UUID: (\S+)", done.stdout)[0]

    def state(self, run: str) -> str:
        [found] = self.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return found["state_name"]

    def logs(self, run: str) -> str:
        return "\n".join(row["message"] for row in self.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}}))


@contextlib.contextmanager
def started(folder: Path, **env: str) -> Iterator[Up]:
    """`ingot up` until it says that all is there; ended by Ctrl-C, after which nothing may be left."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    command = [str(INGOT), "up", "--store", str(folder / "store"), "--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    with open(folder / "up.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
            env=environment(HOME=str(folder / "home"), OMP_NUM_THREADS="1", **env),
        )  # fmt: skip
    here = Up(folder, process)
    try:
        within(180, lambda: "Ctrl-C stops everything" in here.said or process.poll() is not None, lambda: here.said)
        assert process.poll() is None, here.said
        yield here
        if process.poll() is None:
            family = here.family()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, here.said
            assert here.said.rstrip().endswith("Stopped.")
            assert gone(family)
    finally:
        if process.poll() is None:
            for one in here.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def gone(family: list[psutil.Process]) -> bool:
    """Whether none of these processes is left after a moment."""
    _, left = psutil.wait_procs(family, timeout=20)
    return not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
