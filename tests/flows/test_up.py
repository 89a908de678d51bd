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
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from chain import REPO, by_stage, facts, of_store
from crawl_host import NEW, add_snapshot
from services import Up, free_port, gone, started, within

from flows import recipes, up
from model.config import differing, to_dict
from model.errors import ConfigError, ServiceError
from tasks.corpus.manifest import Store

pytestmark = pytest.mark.xdist_group("up")


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
