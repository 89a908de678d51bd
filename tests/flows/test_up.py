"""`ingot up`: servers and worker really start, what it prints is all that another shell needs, and nothing outlives it, however it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from chain import INGOT, REPO, by_stage, environment, facts, of_store
from crawl_host import NEW, add_snapshot

from flows import recipes, up
from model.config import differing, to_dict
from model.errors import ConfigError, ServiceError
from tasks.corpus.manifest import Store

pytestmark = pytest.mark.xdist_group("up")


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


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("up"), PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS="2") as here:
        yield here


def tiny(**more: Any) -> dict[str, Any]:
    """Overrides that make the demo as small as the tiny recipe."""

    def get(data: Any, path: str) -> Any:
        for part in path.split("."):
            data = data[part]
        return data

    wanted = to_dict(recipes.tiny())
    return {path: get(wanted, path) for path in differing(to_dict(recipes.demo()), wanted)} | more


def test_a_fresh_shell_finds_everything_by_the_printed_lines(running, repo):
    listed = running.shell("prefect deployment ls && ingot show && printenv INGOT_STORE")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    names = (
        "build/demo",
        "build/small",
        "refresh/common-crawl",
        "refresh/wikipedia",
        "pretrain/base",
        "sweep/settings",
        "finetune/chat",
        "register/candidate",
    )
    assert all(name in listed.stdout for name in names), listed.stdout
    assert listed.stdout.rstrip().endswith(str(running.store))
    deployments = running.api("/deployments/filter")
    clone = [{"prefect.deployments.steps.set_working_directory": {"directory": str(repo)}}]
    assert [d["pull_steps"] for d in deployments] == [clone] * 8
    assert all(d["concurrency_options"]["collision_strategy"] == "ENQUEUE" for d in deployments)
    assert all("recipe" in d["parameter_openapi_schema"]["properties"] for d in deployments)
    assert not any(s["active"] for d in deployments for s in d["schedules"])
    assert [a["enabled"] for a in running.api("/automations/filter")] == [False]


def test_state_lies_in_the_store_and_nothing_in_the_home(running):
    assert (running.store / "prefect" / "prefect.db").exists()
    assert (running.store / "mlflow" / "mlflow.db").exists()
    assert {log.name for log in (running.store / "logs").iterdir()} >= {
        "prefect-server.log",
        "mlflow-server.log",
        "worker.log",
        "deploy.log",
    }
    assert list((running.folder / "home").iterdir()) == []


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for ports in ((port, free_port()), (free_port(), port)):
            with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 is taken.*(PREFECT|MLFLOW)_PORT=NUMBER"):
                up.up(Store(tmp_path), "127.0.0.1", *ports, print)


def test_a_child_that_dies_is_told_with_the_end_of_its_log(tmp_path):
    children = up.Children(tmp_path, dict(os.environ))
    children.start("mlflow-server", sys.executable, "-c", "print('the database is locked'); raise SystemExit(3)")
    with pytest.raises(ServiceError, match=r"mlflow-server has ended by itself \(exit 3\).*mlflow-server.log: the database is locked"):
        children.wait_for("mlflow-server", f"http://127.0.0.1:{free_port()}/health")


def test_a_command_that_fails_is_told_with_its_output(tmp_path):
    children = up.Children(tmp_path, dict(os.environ))
    with pytest.raises(ServiceError, match="deploy failed.*no such flow"):
        children.once("deploy", sys.executable, "-c", "raise SystemExit('no such flow')")


FAKE = """
import subprocess, sys, time
from pathlib import Path
from flows import up
def watch(store, host, prefect_port, mlflow_port, say):
    children = up.Children(Path(sys.argv[1]), {})
    grandchild = "import subprocess, time; subprocess.Popen(['sleep', sys.argv[1]], start_new_session=True); time.sleep(600)".replace("sys.argv[1]", "'600'")
    try:
        children.start("server", sys.executable, "-c", grandchild)
        print("ready", flush=True)
        while True:
            children.check()
            time.sleep(0.1)
    finally:
        children.stop()
up._watch = watch
up.up(None, "127.0.0.1", int(sys.argv[2]), int(sys.argv[3]), print)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "kill -9", "kill -9 of the inner process", "a child dies"])
def test_nothing_outlives_it_not_even_grandchildren_in_sessions_of_their_own(tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE, str(tmp_path), str(free_port()), str(free_port())],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        family = within(20, lambda: len(found := psutil.Process(process.pid).children(recursive=True)) == 3 and found)
        inner, service, _ = family
        {
            "ctrl-c": lambda: os.killpg(process.pid, signal.SIGINT),
            "SIGTERM": process.terminate,
            "kill -9": process.kill,
            "kill -9 of the inner process": inner.kill,
            "a child dies": service.kill,
        }[how]()
        process.wait(30)
        assert gone(family), [one.cmdline() for one in family if one.is_running()]
        assert (process.returncode == 0) == (how in ("ctrl-c", "SIGTERM"))
    finally:
        for one in [process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_crashed_run_run_again_resumes_where_it_was(running):
    settings = tiny(name="crash", **{"register.model": "ingot-crash"})
    store = Store(running.store)
    first = running.run("build/demo", set=settings)
    within(300, lambda: list(store.dir("stages").glob("pretrain/crash-*/checkpoints/step-*/complete.json")), lambda: running.logs(first))
    engine = running.find("prefect.engine")
    assert engine is not None
    family = engine.children(recursive=True)
    engine.kill()
    within(60, lambda: running.state(first) == "Crashed", lambda: running.state(first))
    assert gone(family)
    done = {m.address: facts(m) for ms in by_stage(store).values() for m in ms}
    assert {address.split("/")[1] for address in done} >= {"ingest", "extract", "filter", "dedup", "decontaminate", "encode"}
    assert not any(address.startswith("stages/pretrain") for address in done)
    times = {address: (store.dir(address) / "manifest.json").stat().st_mtime_ns for address in done}
    again = running.shell(f"prefect deployment run build/demo --watch --param 'set={json.dumps(settings)}'", 600)
    assert again.returncode == 0, again.stdout[-3000:]
    assert "Completed" in again.stdout
    assert {address: (store.dir(address) / "manifest.json").stat().st_mtime_ns for address in done} == times
    assert {address: facts(store.need(address)) for address in done} == done
    [pretrained] = [m for m in by_stage(store)["pretrain"] if "crash-" in m.address]
    steps = [
        json.loads(line)["step"] for line in (store.dir(pretrained.address) / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == list(range(1, recipes.tiny().pretrain.steps + 1))


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_build_demo_goes_green(running):
    done = running.shell("prefect deployment run 'build/demo' --watch", 1400)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "finished successfully in 'Completed'" in done.stdout
    [report] = [a for a in running.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["report"]}}}) if "Build demo" in a["data"]]
    assert "stages/register/demo-" in report["data"]
    with urllib.request.urlopen(re.findall(r"MLFLOW_TRACKING_URI=(\S+)", running.said)[0] + "/health") as answer:
        assert answer.status == 200


@pytest.mark.full
@pytest.mark.timeout(900)
def test_of_two_refreshes_at_once_one_waits(running, sample):
    host = running.folder / "host"
    add_snapshot(host, NEW, sorted(sample.glob("commoncrawl/crawl-data/**/*.warc.gz"))[:1])
    settings = {"common_crawl.base_url": str(host), "common_crawl.index_url": str(host), "name": "queue"}
    runs = [running.run("refresh/common-crawl-monthly", set=settings) for _ in range(2)]
    waited = within(
        120, lambda: sorted(map(running.state, runs)) == ["AwaitingConcurrencySlot", "Running"], lambda: list(map(running.state, runs))
    )
    assert waited
    within(400, lambda: [running.state(run) for run in runs] == ["Completed"] * 2, lambda: list(map(running.state, runs)))
    assert [p.version for p in Store(running.store).versions("corpora", "queue")] == [NEW]
    within(30, lambda: sorted("nothing new: corpora/queue holds" in running.logs(run) for run in runs) == [False, True])  # logs come last


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_published_corpus_starts_pretraining_once_the_trigger_is_on(running):
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    [automation] = running.api("/automations/filter")
    running.api(f"/automations/{automation['id']}", {"enabled": True}, "PATCH")
    address = "corpora/nowhere/v7"  # so that the run ends at once, by name
    resource = {"prefect.resource.id": "ingot.corpus.nowhere", "prefect.resource.name": address, "ingot.corpus.address": address}
    [url] = re.findall(r"PREFECT_API_URL=(\S+)", running.said)

    def triggered() -> list[dict]:
        return [
            r
            for r in running.api("/flow_runs/filter", {"deployments": {"name": {"any_": ["base"]}}})
            if r["parameters"].get("corpus") == address
        ]

    def published() -> list[dict]:
        """Say it, and wait a while: the server learns late, when it is busy, that the automation is on."""
        with temporary_settings({PREFECT_API_URL: url}):
            emit_event("corpus.published", resource)
            EventsWorker.drain_all(at_exit=False)
        end = time.monotonic() + 20
        while not triggered() and time.monotonic() < end:
            time.sleep(0.5)
        return triggered()

    try:
        run = within(200, published, lambda: (running.store / "logs" / "prefect-server.log").read_text()[-3000:])[0]
        within(120, lambda: running.state(run["id"]) == "Failed", lambda: running.state(run["id"]))
        within(60, lambda: f"{address} is not published" in running.logs(run["id"]), lambda: running.logs(run["id"]))  # logs come last
    finally:
        running.api(f"/automations/{automation['id']}", {"enabled": False}, "PATCH")


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["outer", "inner"])
def test_a_kill_9_in_the_middle_of_a_run_leaves_nothing_and_the_next_up_goes_on(tmp_path, how):
    settings = tiny(name="kill")
    with started(tmp_path / "first") as here:
        store = Store(here.store)
        run = here.run("build/demo", set=settings)
        within(120, lambda: list(store.dir("stages").glob("extract/kill-*/_work/rank-*.seen")), lambda: here.logs(run))
        family = here.family()
        family[0 if how == "outer" else 1].kill()
        here.process.wait(60)
        assert gone(family)
        assert of_store(here.store) == []
    with started(tmp_path / "first") as here:
        assert here.state(run) == "Crashed"
        again = here.shell(f"prefect deployment run build/demo --watch --param 'set={json.dumps(settings)}'", 600)
        assert again.returncode == 0, again.stdout[-3000:]
