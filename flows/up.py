"""`ingot up`: a Prefect server, an MLflow server and a worker under one supervisor in the foreground.

Ports 4200 and 5000 unless given; state inside the store, or in the databases that PREFECT_API_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI name;
a log file each in <store>/logs. Ctrl-C, SIGTERM or the death of one child ends them all.
A kill -9 leaves nothing behind either: `up` is two processes, of which each ends everything when the other is gone.
"""

import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from model.errors import ConfigError, ServiceError
from tasks import databases
from tasks.corpus.engine import die_with_parent
from tasks.corpus.manifest import Store

ROOT = Path(__file__).parents[1]
WAIT = 120.0
"""Seconds a server may take to answer."""
QUICK = {"PREFECT_WORKER_QUERY_SECONDS": "2", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For the services alone: a run starts within 2 s instead of 10, and MLflow leaves out its job queue (seven processes, a gigabyte)."""


def environment(store: Store) -> dict[str, str]:
    """Variables that keep Prefect and MLflow inside the store, quiet and off the network. What the user has set wins."""
    wanted = {
        "PREFECT_HOME": str(store.home / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MPLCONFIGDIR": str(store.home / "matplotlib"),
        "INGOT_STORE": str(store.base) if store.is_local else store.url,
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def need_port(host: str, port: int, variable: str) -> None:
    """ConfigError when a port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} is taken ({error.strerror}). Stop what listens there, or choose another: {variable}=NUMBER."
            ) from None


class Children:
    """Started processes, each in its own session with a log file; `stop` leaves none behind."""

    def __init__(self, logs: Path, env: dict[str, str]):
        self.logs, self.env = logs, env
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *command: str) -> None:
        """Start a service. The kernel kills it when the thread that calls this ends: call it from the main one."""
        with open(self.log(name), "ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.env,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def once(self, name: str, *command: str) -> None:
        """Run a command to its end. ServiceError with its output when it fails."""
        self.check()
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.log(name).write_text(done.stdout + done.stderr)
        if done.returncode:
            raise ServiceError(f"{name} failed. The end of {self.log(name)}: {_tail(self.log(name))}")

    def wait_for(self, name: str, url: str) -> None:
        """Wait until a service answers. ServiceError with the end of its log when it dies or takes too long."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            self.check()
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise ServiceError(f"{name} does not answer at {url} after {WAIT:.0f} s. The end of {self.log(name)}: {_tail(self.log(name))}")

    def check(self) -> None:
        """ServiceError with the end of its log when a service has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise ServiceError(
                    f"{name} has ended by itself (exit {process.returncode}). The end of {self.log(name)}: {_tail(self.log(name))}"
                )

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def stop(self, patience: float = 10.0) -> None:
        """Ask each to end, in the reverse order of starting; then kill what is left of all of them."""
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        end_descendants()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-1500:]


def adopt_orphans() -> None:
    """From here on this process becomes the parent of descendants whose own parent dies (Linux: prctl PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1)


def end_descendants() -> None:
    """Kill everything below this process, whatever sessions it has made for itself; needs adopt_orphans."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def end_lost_runs(api: str) -> None:
    """Say of the pool's open runs that they crashed: no worker is there yet, and each would hold its deployment's one slot for ever."""
    open_states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    for run in _post(f"{api}/flow_runs/filter", {"flow_runs": open_states, "work_pools": {"name": {"any_": ["local"]}}}):
        state = {
            "type": "CRASHED",
            "name": "Crashed",
            "message": "It ended with the `ingot up` that ran it. Run it again: what is complete stays.",
        }
        _post(f"{api}/flow_runs/{run['id']}/set_state", {"state": state})


def _post(url: str, data: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(data).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@contextlib.contextmanager
def services(
    store: Store, host: str, prefect_port: int, mlflow_port: int, say: Callable[[str], None]
) -> Iterator[tuple[Children, dict[str, str]]]:
    """Both servers and a worker, healthy and with all deployments; gives the children and the variables another shell needs."""
    exports = environment(store) | {
        "PREFECT_API_URL": f"http://{host}:{prefect_port}/api",
        "MLFLOW_TRACKING_URI": f"http://{host}:{mlflow_port}",
    }
    children = Children(store.home / "logs", os.environ | exports | QUICK)
    python = sys.executable
    mlflow = store.home / "mlflow"  # where a run without a server records too
    mlflow.mkdir(parents=True, exist_ok=True)
    if "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ:
        databases.begin(Path(exports["PREFECT_HOME"]) / "prefect.db")
    backend = os.environ.get("MLFLOW_BACKEND_STORE_URI")
    if not backend:
        backend = f"sqlite:///{mlflow}/mlflow.db"
        databases.begin(mlflow / "mlflow.db")
    try:
        children.start("prefect-server", python, "-m", "prefect", "server", "start", "--host", host, "--port", str(prefect_port))
        children.start(
            "mlflow-server", python, "-m", "mlflow", "server", "--host", host, "--port", str(mlflow_port), "--workers", "1",
            "--backend-store-uri", backend, "--default-artifact-root", str(mlflow / "artifacts"), "--no-serve-artifacts",
        )  # fmt: skip
        children.wait_for("prefect-server", f"http://{host}:{prefect_port}/api/health")
        say(f"Prefect server  http://{host}:{prefect_port}")
        end_lost_runs(exports["PREFECT_API_URL"])
        children.start("worker", python, "-m", "prefect", "worker", "start", "--pool", "local", "--type", "process", "--name", "local")
        children.wait_for("worker", f"{exports['PREFECT_API_URL']}/work_pools/local")  # which it makes
        children.once("deploy", python, "-m", "prefect", "--no-prompt", "deploy", "--all")
        say("Worker          pool local, all deployments of prefect.yaml")
        children.wait_for("mlflow-server", f"http://{host}:{mlflow_port}/health")
        say(f"MLflow server   http://{host}:{mlflow_port}")
        yield children, exports
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C shall not cut the stopping short
        children.stop()


def up(store: Store, host: str, prefect_port: int, mlflow_port: int, say: Callable[[str], None]) -> None:
    """Run until a signal comes or a child dies (ServiceError). ConfigError when a port is taken.

    The forked process starts and watches the services; this one passes signals on to it. Orphans of either come back to it to be ended, and when
    this one dies, the kernel sends the other SIGTERM.
    """
    need_port(host, prefect_port, "PREFECT_PORT")
    need_port(host, mlflow_port, "MLFLOW_PORT")
    adopt_orphans()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.setsid()  # Ctrl-C in the terminal comes once, through the parent
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        adopt_orphans()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        with contextlib.suppress(KeyboardInterrupt):
            if os.getppid() == parent:
                _watch(store, host, prefect_port, mlflow_port, say)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_descendants()
    if code < 0:
        raise ServiceError(f"the supervisor was killed (signal {-code}); everything that it had started is ended.")
    if code:
        sys.exit(code)
    say("Stopped.")


def _watch(store: Store, host: str, prefect_port: int, mlflow_port: int, say: Callable[[str], None]) -> None:
    with services(store, host, prefect_port, mlflow_port, say) as (children, exports):
        say(f"Logs            {children.logs}\n\nIn another shell:\n")
        for name, value in exports.items():
            say(f"export {name}={shlex.quote(value)}")
        say(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
        say("\nprefect deployment run 'build/demo' --watch\n\nCtrl-C stops everything.")
        while True:
            children.check()
            time.sleep(0.5)
