"""What runs in the processes that engine.py starts: the launcher, its slots, and a rank as a step of datatrove's pipelines.

    launch(fd)                         the launcher: forks a slot for every request that comes over its socket
    RankStep(job).run(data, rank)      item `rank` of a job, in whatever executor: LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

A slot tells its watchdog through its socket when a rank is done; the launcher, how the slot ended. Everything else passes through files in the job's
scratch folder, which is the same for every engine: rank-NNNNN.seen (the sign of life), rank-NNNNN.json (the summary), error.json, datatrove/.
"""

import fcntl
import importlib
import json
import logging
import os
import select
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from model.config import from_dict
from model.errors import ConfigError, FatalError, IngotError, RankError
from tasks.corpus.document import PartWriter
from tasks.corpus.engine import TRIES, EngineConfig, cancel_jobs, die_with_parent
from tasks.corpus.manifest import translate, versions

IDLE = 60.0
"""Seconds without a slot after which a launcher ends."""
BEAT = 0.5
"""Seconds between two signs of life."""
FAILED = 3
"""Exit status of a process that has left an error.json."""


def launch(control: int) -> None:
    """Serve requests ({"scratch", "rank", "variables"}, with the slot's socket) until the other side is gone, or no slot ran for IDLE seconds."""
    sys.meta_path.insert(0, Without())
    asked = socket.socket(fileno=control)
    slots: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([control, *slots], [], [], None if slots else IDLE)
        if not ready:
            return
        for handle in set(ready) & slots.keys():
            pid, channel = slots.pop(handle)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            _say(channel, f"exit {status}")
            channel.close()
            os.close(handle)
        if control in ready:
            message, handles, _, _ = socket.recv_fds(asked, 1 << 16, 1)
            if not message:
                return
            request = json.loads(message)
            os.environ.clear()
            os.environ.update(request["variables"])
            more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            sys.path[:0] = [folder for folder in more if folder and folder not in sys.path]
            try:
                job = load.__wrapped__(
                    f"{request['scratch']}/job.json"
                )  # this process keeps no job: the next of this folder may be another
                prepare = getattr(sys.modules[job.function.__module__], "prepare", None)
                if prepare:
                    prepare(job.config)
            except Exception:
                traceback.print_exc()  # the slot will say it where it is heard
            channel = socket.socket(fileno=handles[0])
            parent, pid = os.getpid(), os.fork()
            if not pid:
                die_with_parent(parent)
                for other in (asked, *(other for _, other in slots.values())):
                    other.close()
                os._exit(_slot(Path(request["scratch"]), request["rank"], channel))
            slots[os.pidfd_open(pid)] = (pid, channel)
            _say(channel, str(pid))


class Without(MetaPathFinder):
    """No rank uses these: pyarrow would import pandas, half a second in every slot, to ask whether a list is one of its series; spaCy torch, 1.3 s, because
    it is there."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in ("pandas", "torch"):
            raise ImportError(name)


def _say(channel: socket.socket, words: str) -> None:
    try:
        channel.send(words.encode())
    except OSError:
        pass  # the watchdog has given up on the slot


def _slot(scratch: Path, rank: int | None, channel: socket.socket) -> int:
    """One slot, from fork to exit status."""
    os.setsid()
    with open(scratch / f"slot-{os.getpid()}.log", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.register_at_fork(after_in_child=die_with_parent)  # a guarded page's process too
    try:
        job = load(str(scratch / "job.json"))
        if rank is None:
            {"ray": _ray, "slurm": _slurm}[job.engine.kind](job)
            return 0
        executor = LocalPipelineExecutor([], tasks=len(job.items), workers=1, logging_dir=str(scratch / "datatrove"))
        while True:
            # not run(): that starts a manager process, for the sake of one worker
            executor.pipeline = [RankStep(str(scratch / "job.json"))]
            executor._run_for_rank(rank)
            _say(channel, "done")
            asked = channel.recv(1 << 10)
            if not asked:
                return 0
            rank = int(asked)
    except BaseException as error:
        traceback.print_exc()
        if not (scratch / "error.json").exists():
            _report(scratch, error, scratch, "the engine")
        return FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass(frozen=True)
class Job:
    """What engine.run_ranks wrote down."""

    scratch: Path
    directory: Path
    stage: str
    name: str
    function: Callable[..., dict[str, Any] | None]
    config: Any
    items: list[dict[str, Any]]
    engine: EngineConfig
    packages: dict[str, str]


@lru_cache(maxsize=1)
def load(path: str) -> Job:
    """The job of a job.json."""
    job = json.loads(Path(path).read_text())
    module, name = job["type"].split(":")
    return Job(
        scratch=Path(path).parent, directory=Path(job["directory"]), stage=job["stage"], name=job["name"], items=job["items"], packages=job["packages"],
        function=getattr(importlib.import_module(job["module"]), job["function"]), engine=from_dict(EngineConfig, job["engine"]),
        config=from_dict(getattr(importlib.import_module(module), name), job["config"]),
    )  # fmt: skip


class RankStep(PipelineStep):
    """Our function as a datatrove step: rank r works on item r and writes its own files. It carries the job's path only, so it travels to any node."""

    type = "INGOT"
    name = "Ingot rank"

    def __init__(self, job: str):
        super().__init__()
        self.job = job

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        with self.track_time():
            job = load(self.job)
            if job.engine.kind == "ray":
                _apart(job, rank)
            else:
                _reported(job, rank)
            self.stat_update("seen", value=json.loads((job.scratch / f"rank-{rank:05d}.json").read_text())["seen"])
        yield from ()


def _apart(job: Job, rank: int) -> None:
    """A rank in a process of its own. Under Ray, datatrove runs us in a pool that waits for ever for a killed process; here its death is seen."""
    die_with_parent()
    for _ in range(TRIES):
        parent, pid = os.getpid(), os.fork()
        if not pid:
            status = FAILED
            try:
                die_with_parent(parent)
                _reported(job, rank)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            return
        if status == FAILED:
            break
    else:
        _report(job.scratch, RankError(f"rank {rank} of {job.directory} died {TRIES} times (exit {status})."), job.directory, "")
    raise RuntimeError(f"rank {rank} left {job.scratch / 'error.json'}")


def _reported(job: Job, rank: int) -> None:
    """A rank's work; what it raises is left for the stage to raise."""
    try:
        with _held(job, rank):
            _work(job, rank)
    except Exception as error:
        _report(job.scratch, error, job.directory, job.function.__name__)
        raise


@contextmanager
def _held(job: Job, rank: int) -> Iterator[None]:
    """Only one process works on a rank: one that a cluster has not yet ended is waited for."""
    with open(job.scratch / f"rank-{rank:05d}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _work(job: Job, rank: int) -> None:
    other = {} if job.engine.kind == "local" else {n: version for n, version in versions().items() if version != job.packages.get(n)}
    if other:
        told = ", ".join(f"{name} {version} (there {job.packages.get(name, 'none')})" for name, version in sorted(other.items()))
        raise ConfigError(
            f"{socket.gethostname()} has other packages than where the stage was started: {told}. Install the same on every node."
        )
    counter = job.scratch / f"rank-{rank:05d}.seen"
    last = 0.0

    def beat(seen: int) -> None:
        nonlocal last
        if time.monotonic() - last > BEAT:
            last = time.monotonic()
            counter.write_text(str(seen))

    beat(0)
    with PartWriter(job.directory, rank, job.stage, beat=beat) as out:
        info = job.function(job.config, job.items[rank], out)
    counter.write_text(str(out.seen))
    _write(job.scratch / f"rank-{rank:05d}.json", out.summary | {"info": info or {}})


def _report(scratch: Path, error: BaseException, directory: Path, what: str) -> None:
    """Leave the error for the stage to raise."""
    known = translate(error, directory) if isinstance(error, Exception) else error
    if not isinstance(known, IngotError):
        known = FatalError(f"a defect in {what}: {''.join(traceback.format_exception(error))}")
    _write(scratch / "error.json", {"type": type(known).__name__, "message": str(known)})


def _write(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data))
    os.replace(temporary, path)


def _ray(job: Job) -> None:
    """All ranks on a Ray cluster, which ends them when this process ends."""
    try:
        import ray
    except ImportError:
        raise ConfigError("engine.kind=ray needs Ray: pip install -c constraints.txt 'ingot-llm[ray]', on every node.") from None

    address = job.engine.address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address != "auto":  # Ray itself would ask for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=20).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address} ({error}). Start one (`ray start --head`), or set engine.address.") from None
    executor = RayPipelineExecutor(
        [RankStep(str(job.scratch / "job.json"))], tasks=len(job.items), workers=job.engine.workers, logging_dir=str(job.scratch / "datatrove"),
        cpus_per_task=job.engine.cpus, mem_per_cpu_gb=job.engine.memory,
    )  # fmt: skip
    executor.run()
    if executor.get_incomplete_ranks() and not (job.scratch / "error.json").exists():
        _need_shared(job.scratch)


def _need_shared(scratch: Path) -> None:
    """ConfigError that names the nodes of the Ray cluster which do not see a file that was just written here, or cannot import Ingot."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = scratch / f"probe-{os.urandom(8).hex()}"
    probe.touch()
    look = ray.remote(num_cpus=0)(_sees)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe)): node for node in nodes}
    for answer, node in asked.items():
        try:
            seen = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise ConfigError(f"node {nodes[node]} of the Ray cluster cannot run Ingot ({error}). Install it there as here.") from None
        if not seen:
            raise ConfigError(
                f"node {nodes[node]} of the Ray cluster does not see {scratch}. Put the store (of a remote store: INGOT_CACHE) on a file system "
                "that all nodes share under the same path, or set engine.kind=local."
            )
    probe.unlink()


def _sees(path: str) -> bool:
    return os.path.exists(path)


class _Slurm(SlurmPipelineExecutor):
    """Datatrove's, started by this Python, and without the last job that adds up statistics: it would wait for ever for an array that failed."""

    def launch_merge_stats(self) -> None:
        pass

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        command = f"{shlex.quote(sys.executable)} -m datatrove.tools.launch_pickled_pipeline"
        return str(super().get_launch_file_contents(sbatch_args, run_script.replace("launch_pickled_pipeline", command)))


def _slurm(job: Job) -> None:
    """All ranks as an array of Slurm jobs, one a rank. What a killed run left in the queue is cancelled first, and waited for."""
    for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del os.environ[name]  # of a job that we may be in ourselves: sbatch would take them for wishes
    cancel_jobs(job.name)
    while _queued(job.name):
        time.sleep(1)
    executor = _Slurm(
        [RankStep(str(job.scratch / "job.json"))], tasks=len(job.items), workers=job.engine.workers, logging_dir=str(job.scratch / "datatrove"),
        time=job.engine.time, partition=job.engine.partition, cpus_per_task=job.engine.cpus, job_name=job.name, qos="", requeue=False,
        env_command=f"export PYTHONPATH={shlex.quote(_import_path())}",
        sbatch_args={"mem-per-cpu": f"{int(job.engine.memory * 1024)}M", "chdir": str(job.scratch)} | dict(word.split("=", 1) for word in job.engine.sbatch),
    )  # fmt: skip
    try:
        executor.run()
    except FileNotFoundError:
        raise ConfigError("engine.kind=slurm needs Slurm's commands (sbatch, squeue, scancel) on this machine.") from None
    except subprocess.CalledProcessError as error:
        log = job.scratch / f"slot-{os.getpid()}.log"
        raise ConfigError(
            f"sbatch refused the job (exit {error.returncode}); set engine.partition, engine.time, engine.memory or engine.sbatch. "
            f"It said: {log.read_text(errors='replace')[-500:]}"
        ) from None
    while executor.get_incomplete_ranks() and _queued(job.name):
        time.sleep(1)


def _queued(name: str) -> bool:
    """Whether jobs of a name wait or run; yes while Slurm does not answer."""
    asked = subprocess.run(["squeue", "--noheader", "--me", "--name", name, "--format", "%i"], capture_output=True, text=True)
    return asked.returncode != 0 or bool(asked.stdout.strip())


def _import_path() -> str:
    """PYTHONPATH of a process on another node: this Ingot first."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
