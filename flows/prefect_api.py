"""The Prefect API that a command's own flow talks to: the address that is set, which must answer; else a temporary server that ends with the command.

    with api(logs) as ready:
        from flows import build          # the server starts meanwhile
        ready()

Prefect's own temporary server starts after all imports, gives up after 20 s on a busy machine, and outlives a kill -9 of the command.
"""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from model.errors import ServiceError
from tasks import databases
from tasks.corpus.engine import die_with_parent

WAIT = 120.0
"""Seconds a temporary server may take to answer: 5 on an idle laptop."""
TRIES = 3
"""Questions to an address that is set, 2 s apart, before it counts as unreachable."""


@contextlib.contextmanager
def api(logs: Path) -> Iterator[Callable[[], None]]:
    """Gives a function that waits until the API answers; sets PREFECT_API_URL where it is not set. ServiceError when it does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        need(url)
        yield lambda: None
        return
    logs.mkdir(parents=True, exist_ok=True)
    log, port = logs / "prefect-temporary.log", free_port()
    if "PREFECT_HOME" in os.environ:
        databases.begin(Path(os.environ["PREFECT_HOME"]) / "prefect.db")
    server = _start(log, port)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    # not at the end of the block: Prefect's own exit handlers, registered later and so called earlier, still have events to send
    atexit.register(_stop, server)
    try:
        yield lambda: _wait(server, log, port)
    except BaseException:
        _stop(server)
        raise


def need(url: str) -> None:
    """ServiceError, within 20 s, when no Prefect answers at an address."""
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers; what it lets us do is seen when it is asked for more
        except OSError as error:
            if not left:
                raise ServiceError(
                    f"Prefect at {url} does not answer ({getattr(error, 'reason', error)}). Start it (`make up`), or unset PREFECT_API_URL: "
                    "then `ingot run` has a temporary one of its own."
                ) from None
            time.sleep(2)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(log: Path, port: int) -> "subprocess.Popen[bytes]":
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip


def _wait(server: "subprocess.Popen[bytes]", log: Path, port: int) -> None:
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise ServiceError(
        f"the temporary Prefect server does not answer (exit {server.poll()}). The end of {log}: {log.read_text(errors='replace')[-1500:]}"
    )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
