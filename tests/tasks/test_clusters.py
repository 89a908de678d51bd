"""Ray and Slurm: the same part files as this machine makes, and a killed worker costs its rank only.

Both run for real: a Ray cluster of two nodes' worth of processes, and Slurm's own daemons (Debian's slurm-wlm and munge); each test file starts its own.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from engines import hashes, place, run, tried

from flows import recipes
from model.config import Run, qwen3, to_dict
from model.errors import ConfigError, InputError
from model.shards import ShardWriter
from model.tokenizer import save, train
from tasks.corpus import commoncrawl, contamination, dedup, extract, files, quality
from tasks.corpus import engine as engines
from tasks.corpus.engine import EngineConfig, local
from tasks.corpus.manifest import Manifest, Store

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1500)]
TESTS = Path(__file__).parents[1]


def ports(count: int) -> list[int]:
    """Free ports."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait(what: str, true: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"{what} did not come in {seconds:g} s"
        time.sleep(0.1)


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def family() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Servers to be ended with all that came of them, whatever happens: also what has left their sessions."""
    servers: list[subprocess.Popen[bytes]] = []
    try:
        yield servers
    finally:
        engines.stop()
        known = {
            child for server in servers for child in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        }
        for process in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for server in servers:
            server.wait()
        assert not psutil.wait_procs(known, timeout=20)[1]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A place with a short name: Unix sockets have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ingot-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        yield patch


@pytest.fixture(scope="module")
def ray(folder, environment) -> Iterator[EngineConfig]:
    """Two nodes of one processor each."""
    pytest.importorskip("ray", reason="Ray is not installed here: pip install -c constraints.txt 'ingot-llm[ray]'")
    (port,) = ports(1)
    address = f"127.0.0.1:{port}"
    words = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--num-cpus=1",
        "--object-store-memory=80000000",
        "--disable-usage-stats",
        "--block",
    ]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
    with family() as servers, open(folder / "ray.log", "wb") as log:
        for more in (head, [f"--address={address}", "--node-ip-address=127.0.0.1"]):
            servers.append(subprocess.Popen([*words, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            wait("a Ray node", lambda: succeeds(sys.executable, "-m", "ray.scripts.scripts", "health-check", f"--address={address}"))
        yield replace(local(2, 300.0), kind="ray", address=address, memory=0.2)


@pytest.fixture(scope="module")
def slurm(folder, environment) -> Iterator[EngineConfig]:
    """One node of two processors, under daemons of its own."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun") if not shutil.which(name)]
    if missing:
        pytest.skip(f"Slurm is not installed here ({', '.join(missing)} missing): apt-get install slurm-wlm munge")
    if os.getuid():
        pytest.skip("Slurm's daemons are started by this test as root only")
    node, (first, second) = socket.gethostname().split(".")[0], ports(2)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=ingot
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={first}
SlurmdPort={second}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    environment.setenv("SLURM_CONF", str(conf))
    munge = [
        f"--{name}={folder}/munge/{end}"
        for name, end in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed"))
    ]
    with family() as servers, open(folder / "slurm.log", "wb") as log:
        for command, ready in (
            (["munged", "--foreground", "--force", *munge], ["munge", "-n", "-S", f"{folder}/munge/socket"]),
            (["slurmctld", "-D", "-f", str(conf)], ["scontrol", "ping"]),
            (["slurmd", "-D", "-f", str(conf)], ["srun", "--immediate=5", "true"]),
        ):
            servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            wait(command[0], lambda ready=ready: succeeds(*ready))
        yield replace(local(2, 300.0), kind="slurm", partition="main", time="10:00", memory=0.5)


@pytest.fixture(params=["ray", "slurm"])
def cluster(request) -> EngineConfig:
    return request.getfixturevalue(request.param)


def stages(store: Store, engine: EngineConfig) -> dict[str, Manifest]:
    """The crawl of the sample through the data-parallel stages."""
    r = recipes.tiny()
    raw = {"commoncrawl": commoncrawl.run(store, r.name, r.common_crawl, r.download)}
    evaluation = files.run(store, r.name, r.evaluation, r.download)
    found = {"extract": extract.run(store, r.name, r.extract, raw, engine)}
    found["filter"] = quality.run(store, r.name, r.filter, {"extract": found["extract"]}, engine)
    found["dedup"] = dedup.run(store, r.name, r.dedup, {"filter": found["filter"]}, engine)
    cleaned = {"dedup": found["dedup"], "evaluation": evaluation}
    found["decontaminate"] = contamination.run(store, r.name, r.decontaminate, cleaned, engine)
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, Manifest]:
    """The same on this machine."""
    return stages(Store(tmp_path_factory.mktemp("here")), local(2, 60.0))


def test_every_stage_makes_the_same_part_files(cluster, here, store):
    there = stages(store, cluster)
    assert {name: hashes(m) for name, m in there.items()} == {name: hashes(m) for name, m in here.items()}
    assert {name: (m.seen, m.kept, m.rejected, m.info) for name, m in there.items()} == {
        name: (m.seen, m.kept, m.rejected, m.info) for name, m in here.items()
    }


def test_a_rank_that_dies_is_run_again_alone_and_gives_the_same_parts(cluster, store):
    killed = run(store, "killed", cluster)
    assert tried(store, "killed", cluster) == [0, 1, 1, 2, 3]
    assert hashes(killed) == hashes(run(store, "none", local(2, 60.0)))


def test_a_mistake_comes_back_as_itself_and_ends_what_runs(cluster, store):
    with pytest.raises(InputError, match=r"b\.txt is wrong: value 7"):
        run(store, "mistake", cluster)
    assert tried(store, "mistake", cluster).count(1) == 1


@pytest.mark.parametrize("who", ["the Ray worker", "datatrove's process in it"])
def test_a_killed_worker_of_ray_costs_its_rank_only(ray, store, who):
    engine = replace(ray, timeout=15.0)
    log = place(store, "hangs", engine) / "ranks.log"

    def kill() -> None:
        wait("rank 1", lambda: log.exists() and 1 in tried(store, "hangs", engine))
        wait("the others", lambda: set(tried(store, "hangs", engine)) == {0, 1, 2, 3})
        pid = next(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("1 "))
        victims = psutil.Process(pid).parents()
        assert "RankWorker" in " ".join(victims[1].cmdline()), victims
        victims[1 if who == "the Ray worker" else 0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    killed = run(store, "hangs", engine)
    killer.join()
    assert tried(store, "hangs", engine) == [0, 1, 1, 2, 3]
    assert hashes(killed) == hashes(run(store, "none", local(2, 60.0)))


def test_a_cluster_that_does_not_answer_is_a_mistake_of_the_settings(environment, store):
    pytest.importorskip("ray")
    (port,) = ports(1)
    with pytest.raises(ConfigError, match=rf"no Ray cluster at 127\.0\.0\.1:{port}.*engine\.address"):
        run(store, "none", replace(local(2, 300.0), kind="ray", address=f"127.0.0.1:{port}"))


def test_a_partition_that_is_not_there_is_told_in_the_words_of_slurm(slurm, store):
    with pytest.raises(ConfigError, match=r"(?s)sbatch refused the job.*engine\.partition.*[Ii]nvalid partition"):
        run(store, "none", replace(slurm, partition="elsewhere"))


def test_a_job_of_slurm_trains_by_the_script_that_ships(slurm, tmp_path):
    with ShardWriter(tmp_path / "train", np.uint16) as writer:
        for number in range(20):
            writer.add(np.append(np.arange(4, 60 + number), 0))
    save(train(["some text"], 512), tmp_path / "tokenizer")
    settings = recipes.train(4, 4, 32, 1e-3, 1, micro_batch=2, device="cpu")
    run_ = Run(
        data="stream", fingerprint="f" * 64, data_fingerprint="d" * 64, model=qwen3(32, 1, 2, 1, 32, 32), train=settings, vocab=512,
        shards=(str(tmp_path / "train"),), valid=(), tokenizer=str(tmp_path / "tokenizer"), start=None, out=str(tmp_path / "out"),
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps(to_dict(run_)))
    script = TESTS.parent / "deploy" / "slurm" / "train.sbatch"
    words = [
        "sbatch",
        "--wait",
        "--nodes=1",
        "--cpus-per-task=2",
        f"--output={tmp_path}/log",
        f"--export=ALL,INGOT_RANKS=2,INGOT_PORT={ports(1)[0]}",
    ]
    done = subprocess.run(
        [*words, str(script), str(tmp_path / "out" / "run.json")], cwd=TESTS.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "out" / "done.json").read_text())["step"] == 4
