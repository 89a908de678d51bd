"""Checkpoints: complete or absent. Plain files, no torch.

    step-00001000/    DeepSpeed's files, and complete.json (step, fingerprint, config, metrics, size and sha256 of each file), written last

DeepSpeed writes in place, so a process killed while saving leaves a torn directory, and a name used again destroys what was there. Hence:
`clear` before all ranks save, a barrier; `deliver` on each rank when its files are written, `collect` and `complete` on one; `latest` trusts
nothing that complete.json does not vouch for.
"""

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import CheckpointError

NAME = re.compile(r"step-(\d{8})")
RECORD = "complete.json"
PART = "rank-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose files are as they were written."""

    path: Path
    step: int
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A directory that `latest` did not take, and why."""

    name: str
    reason: str


def step_name(step: int) -> str:
    """step-00001000"""
    return f"step-{step:08d}"


def latest(directory: Path, fingerprint: str) -> tuple[Checkpoint | None, list[Skipped]]:
    """The highest complete checkpoint of this run whose files all have the size and sha256 on record, and what was passed over above it.

    Raises CheckpointError if a checkpoint is of another run.
    """
    skipped: list[Skipped] = []
    for path in reversed(_all(directory)):
        record, problem = _examine(path)
        if record and record["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{path} is of run {record['fingerprint'][:12]}, not of {fingerprint[:12]}. Give this run a directory of its own."
            )
        if record and not problem:
            return Checkpoint(path, record["step"], record["config"], record["metrics"]), skipped
        skipped.append(Skipped(path.name, problem))
    return None, skipped


def clear(directory: Path, step: int) -> None:
    """Make room for `step`: what lies under its name is removed, unless it is a good checkpoint, which is a CheckpointError."""
    path = directory / step_name(step)
    if path.exists():
        if not _examine(path)[1]:
            raise CheckpointError(f"{path} is complete; training that would write it again did not resume from it. Move it away first.")
        _remove(path)
    directory.mkdir(parents=True, exist_ok=True)


def deliver(path: Path, rank: int, files: list[Path]) -> None:
    """Sync the files that a rank wrote and leave their sizes and sha256 beside them, for `collect`."""
    write_json(path / f"{PART}{rank:05d}.json", _sealed(path, files))


def collect(path: Path, ranks: int) -> dict[str, Any]:
    """Wait until all ranks have delivered; sizes and sha256 of all their files."""
    parts = [path / f"{PART}{rank:05d}.json" for rank in range(ranks)]
    files: dict[str, Any] = {}
    for part in parts:
        while not part.exists():
            time.sleep(0.02)
        files |= json.loads(part.read_text(encoding="utf-8"))
    for part in parts:
        part.unlink()
    return files


def complete(
    directory: Path, step: int, fingerprint: str, config: dict[str, Any], metrics: dict[str, Any], files: dict[str, Any] | None = None
) -> Path:
    """Vouch for a checkpoint that all ranks have written: sync its files, but for those that `collect` gave, then write complete.json by rename."""
    path = directory / step_name(step)
    known = files or {}
    files = known | _sealed(
        path, [file for file in path.rglob("*") if file.is_file() and str(file.relative_to(path)) not in {*known, RECORD}]
    )
    if not files:
        raise CheckpointError(f"{path} holds no file: nothing was saved. Look at the log of the ranks.")
    record = {"step": step, "fingerprint": fingerprint, "config": config, "metrics": metrics, "files": files}
    for folder in sorted({(path / name).parent for name in files}):
        sync_folder(folder)
    write_json(path / RECORD, record)
    sync_folder(directory)
    return path


def prune(directory: Path, keep: int) -> list[str]:
    """Remove all but the `keep` highest complete checkpoints, and the incomplete ones below the highest; returns the names removed."""
    found = _all(directory)
    done = [path for path in found if (path / RECORD).exists()]
    torn = [path for path in found if path not in done and done and path.name < done[-1].name]
    removed = sorted(done[:-keep] + torn)
    for path in removed:
        _remove(path)
    return [path.name for path in removed]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON so that it is there whole or not at all: synced under a temporary name, renamed, the folder synced."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=1, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def save_array(array: np.ndarray, path: Path) -> None:
    """Write a .npy file, complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _all(directory: Path) -> list[Path]:
    """Directories named like checkpoints, by step."""
    return sorted(path for path in directory.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def _examine(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The record of a checkpoint (None where it has none that can be read), and what is wrong with it ('' if nothing)."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        step, files = record["step"], record["files"]
        if step_name(step) != path.name or not {"fingerprint", "config", "metrics"} <= record.keys():
            return None, f"{RECORD} is of step {step} or lacks a field"
        for name, told in files.items():
            file = path / name
            if not file.is_file():
                return record, f"{name} is missing"
            if file.stat().st_size != told["bytes"]:
                return record, f"{name} has {file.stat().st_size:,} bytes; {RECORD} says {told['bytes']:,}"
            with open(file, "rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != told["sha256"]:
                    return record, f"{name} has another sha256 than {RECORD} says"
    except FileNotFoundError:
        return None, f"no {RECORD}: it was not written to its end"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{RECORD} cannot be read ({error!r})"
    return record, ""


def _sealed(path: Path, files: list[Path]) -> dict[str, Any]:
    """Size and sha256 of files under `path`, by relative name, once they are on the disk."""
    found = {}
    for file in sorted(files):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        found[str(file.relative_to(path))] = {"bytes": file.stat().st_size, "sha256": digest}
    return found


def _remove(path: Path) -> None:
    (path / RECORD).unlink(missing_ok=True)  # first: a directory half removed is incomplete, not damaged
    shutil.rmtree(path)
