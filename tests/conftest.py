"""Shared fixtures: a store in a temporary folder, one run of the tiny recipe for all, and the paths of the sample and of the real data beside the repository."""

import fcntl
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
REPO = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def sample() -> Path:
    return REPO / "tests" / "samples"


@pytest.fixture(scope="session")
def realdata() -> Path:
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real sample data is not at {folder}")
    return folder


@pytest.fixture
def store(tmp_path):
    from tasks.corpus.manifest import Store

    return Store(tmp_path / "store")


@dataclass(frozen=True)
class TinyRun:
    """`ingot run tiny` on a store of its own, which tests read or copy, never change."""

    store: Path
    status: int
    said: str


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, worker_id) -> TinyRun:
    """Made once, by whichever xdist worker comes first."""
    from chain import ingot

    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    record = shared / "tiny.json"
    with open(shared / "tiny.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            done = ingot("run", "tiny", store=shared / "tiny")
            record.write_text(json.dumps({"status": done.returncode, "said": done.stdout}))
    return TinyRun(shared / "tiny", **json.loads(record.read_text()))


@pytest.fixture(scope="session")
def sample_run(tiny_run):
    """(store, manifests by stage) of the sample's corpus. tiny and demo have the same corpus: see tests/flows/test_chain.py."""
    from chain import corpus

    from flows import recipes
    from tasks.corpus.manifest import Store

    store = Store(tiny_run.store)
    return store, corpus(store, recipes.tiny())
