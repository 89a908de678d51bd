"""A full disk: a SpaceError that says so at whatever stage, nothing half-made under a final name; with room again, the stage resumes to the same bytes.

The disk is a tmpfs of a few megabytes, filled by a file of ballast. Mounting needs root.
"""

import os
import subprocess
from pathlib import Path

import pytest
from chain import by_stage, content, corpus, without

from flows import recipes
from model.errors import SpaceError
from tasks import report, train
from tasks.corpus.manifest import Store

TINY = recipes.tiny()
TRAINING = ("pretrain", "finetune", "evaluate", "register")
SIZE = 24 << 20


@pytest.fixture
def disk(tmp_path):
    """An empty disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Ballast that leaves so many bytes free."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return ballast


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("ingest", 200_000),
        pytest.param("extract", 0, marks=pytest.mark.full),
        pytest.param("extract", 100_000, marks=pytest.mark.full),
        pytest.param("filter", 100_000, marks=pytest.mark.full),
        pytest.param("dedup", 60_000, marks=pytest.mark.full),
        ("decontaminate", 60_000),
        ("tokenizer", 8_192),
        ("encode", 100_000),
    ],
)
def test_a_data_stage_says_that_the_disk_is_full_and_resumes(stage, left, tiny_run, disk):
    store = without(tiny_run.store, disk / "store", stage, *TRAINING)
    ballast = fill(disk, left)
    with pytest.raises(SpaceError, match=r"free|room"):
        corpus(store, TINY)
    assert len(by_stage(store).get(stage, [])) < len(by_stage(Store(tiny_run.store))[stage])
    ballast.unlink()
    corpus(store, TINY)
    assert content(store, (stage,)) == {
        name: digest for name, digest in content(Store(tiny_run.store), (stage,)).items() if name in content(store, (stage,))
    }


@pytest.mark.full
def test_training_says_that_the_disk_is_full_and_resumes(tiny_run, disk, monkeypatch):
    monkeypatch.setattr(report, "ARTIFACT_EVERY", float("inf"))  # a progress artifact would start a Prefect server
    store = without(tiny_run.store, disk / "store", *TRAINING)
    made = by_stage(store)
    inputs = {role: made[role][0] for role in ("encode", "tokenizer")}
    config = train.PretrainConfig(TINY.model, TINY.pretrain)
    ballast = fill(disk, 1_000_000)
    with pytest.raises(SpaceError, match="no room"):
        train.pretrain.fn(store, "tiny", config, inputs, lambda row: None)
    ballast.unlink()
    weights = train.pretrain.fn(store, "tiny", config, inputs, lambda row: None)
    assert [f for f in weights.files if f.path.startswith("model/")] == [
        f for f in by_stage(Store(tiny_run.store))["pretrain"][0].files if f.path.startswith("model/")
    ]
