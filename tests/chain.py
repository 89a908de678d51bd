"""The chain for tests: the sample's corpus by the stages' plain functions, and the real `ingot` command in a process group of its own.

manifests = corpus(store, recipes.demo())               # ingest … encode, no Prefect
done = ingot("run", "tiny", store=folder)               # to its end
said = asked(folder, "verify").output                   # without Prefect, within this process
killed(store, "run", "tiny", when=condition)            # kill -9 of all its processes at a moment
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from click.testing import Result
from typer.testing import CliRunner

from flows.recipes import Recipe
from model.config import fingerprint
from tasks.corpus import commoncrawl, contamination, dedup, encode, extract, files, index, quality, quality_model, wikipedia
from tasks.corpus.document import file_sha256
from tasks.corpus.manifest import Manifest, Store

REPO = Path(__file__).parents[1]
INGOT = Path(sys.executable).with_name("ingot")
DATA_STAGES = ("ingest", "extract", "filter", "dedup", "decontaminate", "index", "tokenizer", "encode")
STAGES = (*DATA_STAGES, "pretrain", "finetune", "evaluate", "register")


def corpus(store: Store, r: Recipe) -> dict[str, Manifest]:
    """Ingest to encode; manifests by stage, and of ingests by role (commoncrawl, wikipedia, files, evaluation)."""
    raw = {}
    if r.common_crawl:
        raw["commoncrawl"] = commoncrawl.run(store, r.name, r.common_crawl, r.download)
    if r.wikipedia:
        raw["wikipedia"] = wikipedia.run(store, r.name, r.wikipedia, r.download)
    if r.files:
        raw["files"] = files.run(store, r.name, r.files, r.download)
    found = raw | {"evaluation": files.run(store, r.name, r.evaluation, r.download)}
    found["extract"] = extract.run(store, r.name, r.extract, raw, r.engine)
    judged = {"extract": found["extract"]}
    if r.blocklists:
        judged["blocklist"] = files.run(store, r.name, r.blocklists, r.download)
    if r.quality_model:
        judged["quality_model"] = quality_model.run(store, r.name, r.quality_model, {"extract": found["extract"]})
    found["filter"] = quality.run(store, r.name, r.filter, judged, r.engine)
    found["dedup"] = dedup.run(store, r.name, r.dedup, {"filter": found["filter"]}, r.engine)
    cleaned = {"dedup": found["dedup"], "evaluation": found["evaluation"]}
    found["decontaminate"] = contamination.run(store, r.name, r.decontaminate, cleaned, r.engine)
    found["index"] = index.run(store, r.name, r.dedup.signatures, {"documents": found["decontaminate"]}, r.engine)
    parts = {"corpus-000": found["decontaminate"]}
    found["tokenizer"] = encode.train_tokenizer(store, r.name, r.tokenizer, parts)
    found["encode"] = encode.run(store, r.name, r.encode, parts | {"tokenizer": found["tokenizer"]})
    return found


def environment(**more: str) -> dict[str, str]:
    """This process's variables without those that would lead a child to somebody's own Prefect, MLflow or store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "INGOT_"))}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"} | more


def asked(store: Path | str, *args: str) -> Result:
    """`ingot ARGS` within this process, for commands that do not start Prefect; variables are put back afterwards."""
    from flows.cli import app

    before = dict(os.environ)
    try:
        for name in [name for name in before if name.startswith(("PREFECT_", "MLFLOW_", "INGOT_")) and name != "INGOT_CACHE"]:
            del os.environ[name]
        os.environ["COLUMNS"] = "200"
        return CliRunner().invoke(app, [*args, "--store", str(store)])
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(*args: str, store: Path, log: Path, url: str = "", **env: str) -> "subprocess.Popen[bytes]":
    """`ingot ARGS` on a store (or on one at a URL, beside a folder of this name), in a session of its own, output to a file."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(INGOT), *args, "--store", url or str(store)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=store.parent, env=environment(**env), start_new_session=True,
        )  # fmt: skip


def ingot(*args: str, store: Path, timeout: float = 500.0, **env: str) -> "subprocess.CompletedProcess[str]":
    """`ingot ARGS` to its end; output and errors as text. A run that takes too long is ended with all its processes."""
    log = store.parent / f"{store.name}-{args[0]}.log"
    log.unlink(missing_ok=True)
    process = start(*args, store=store, log=log, **env)
    try:
        process.wait(timeout)
    finally:
        end(process)
    return subprocess.CompletedProcess(args, process.returncode, log.read_text(errors="replace"), "")


def killed(*args: str, store: Path, when: Callable[[], bool], timeout: float = 300.0, **env: str) -> None:
    """Start `ingot ARGS`, and kill -9 its process group as soon as a condition holds. AssertionError if it ended before, or processes are left."""
    log = store.parent / f"{store.name}-killed.log"
    process = start(*args, store=store, log=log, **env)
    limit = time.monotonic() + timeout
    family: dict[int, psutil.Process] = {}
    try:
        while not when():
            said = log.read_text(errors="replace")[-3000:]
            assert process.poll() is None, f"it ended ({process.returncode}) before the moment came: {said}"
            assert time.monotonic() < limit, f"the moment did not come in {timeout:g} s: {said}"
            time.sleep(0.005)
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(list(family.values()), timeout=10)
    left = [" ".join(child.cmdline()) for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    for child in alive:
        child.kill()
    assert not left, f"processes outlived a kill -9: {left}"
    assert not of_store(store), f"processes outlived a kill -9: {of_store(store)}"


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a command with everything it started."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def of_store(store: Path) -> list[str]:
    """Command lines of running processes that name a store."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(str(store) in word for word in words):
                found.append(" ".join(words))
    return found


def by_stage(store: Store) -> dict[str, list[Manifest]]:
    """All complete outputs of a store."""
    found: dict[str, list[Manifest]] = {}
    for address in store.addresses():
        manifest = store.manifest(address)
        if manifest is not None:
            found.setdefault(manifest.stage, []).append(manifest)
    return found


def content(store: Store, stages: tuple[str, ...] = DATA_STAGES) -> dict[str, str]:
    """sha256 of every part file of these stages, by address and path, as the files are now."""
    found = {}
    for stage in stages:
        for manifest in by_stage(store).get(stage, []):
            found |= {f"{manifest.address}/{f.path}": file_sha256(store.dir(manifest.address) / f.path) for f in manifest.files}
    return found


def without(prepared: Path, copy: Path, *stages: str) -> Store:
    """A copy of a finished store that lacks these stages, what is published, and all of Prefect and MLflow."""
    left_out = {*(f"stages/{stage}" for stage in stages), "corpora", "tokenizers", "models", "prefect", "mlflow", "locks", "extensions"}

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(folder) / name).relative_to(prepared).as_posix() in left_out]

    shutil.copytree(prepared, copy, ignore=ignore)
    return Store(copy)


def golden_of(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    """Of each stage of a corpus after ingest: its revision, its fingerprint, and one hash of its files, which is the same on any machine."""
    found = {stage: manifests[stage] for stage in DATA_STAGES[1:]}
    return {
        stage: {
            "revision": m.made_of["revision"],
            "made_of": m.fingerprint[:16],
            "files": fingerprint([(f.path, f.sha256) for f in m.files])[:16],
        }
        for stage, m in found.items()
    }


def facts(manifest: Manifest) -> Mapping[str, Any]:
    """What must not depend on when and where a stage ran."""
    return {name: getattr(manifest, name) for name in ("address", "fingerprint", "content", "made_of", "files", "seen", "kept", "rejected")}
