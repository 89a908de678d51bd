"""Properties of model/checkpoint.py: what latest() trusts, and what is ever removed."""

import json
import threading
import time
from pathlib import Path

import pytest

from model.checkpoint import RECORD, clear, collect, complete, deliver, latest, prune, step_name
from model.errors import CheckpointError

RUN = "a" * 64


def save(directory: Path, step: int, run: str = RUN) -> Path:
    clear(directory, step)
    path = directory / step_name(step)
    (path / "deep").mkdir(parents=True)
    (path / "weights.pt").write_bytes(bytes(range(step % 200, step % 200 + 50)))
    (path / "deep" / "optimizer.pt").write_bytes(b"state" * step)
    return complete(directory, step, run, {"world": 1}, {"loss": step / 10})


def test_the_highest_complete_checkpoint_is_found_with_its_metrics(tmp_path):
    for step in (900, 1000, 100):
        save(tmp_path, step)
    found, skipped = latest(tmp_path, RUN)
    assert (found.path.name, found.step, found.metrics, found.config, skipped) == ("step-00001000", 1000, {"loss": 100.0}, {"world": 1}, [])


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest(tmp_path / "absent", RUN) == (None, [])


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: (path / RECORD).unlink(), "no complete.json"),
        (lambda path: (path / RECORD).write_text('{"step": 20'), "cannot be read"),
        (lambda path: (path / RECORD).write_text('{"step": 21, "files": {}}'), "is of step 21"),
        (lambda path: (path / RECORD).write_text('["step", "files"]'), "cannot be read"),
        (lambda path: (path / "weights.pt").unlink(), "weights.pt is missing"),
        (lambda path: (path / "weights.pt").write_bytes(b"x" * 49), "weights.pt has 49 bytes; complete.json says 50"),
        (lambda path: (path / "weights.pt").write_bytes(b"x" * 50), "weights.pt has another sha256"),
    ],
)
def test_a_torn_or_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, reason):
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    found, skipped = latest(tmp_path, RUN)
    assert found.step == 10 and [s.name for s in skipped] == ["step-00000020"] and reason in skipped[0].reason


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, 10, run="b" * 64)
    with pytest.raises(CheckpointError, match=r"step-00000010 is of run bbbbbbbbbbbb, not of aaaaaaaaaaaa"):
        latest(tmp_path, RUN)


def test_a_name_is_used_again_only_after_a_torn_directory_was_removed(tmp_path):
    (save(tmp_path, 10) / RECORD).unlink()
    (tmp_path / "step-00000010" / "stale.pt").write_bytes(b"old")
    path = save(tmp_path, 10)
    assert not (path / "stale.pt").exists()
    with pytest.raises(CheckpointError, match="is complete"):
        clear(tmp_path, 10)
    assert latest(tmp_path, RUN)[0].step == 10


def test_a_checkpoint_without_files_is_not_vouched_for(tmp_path):
    (tmp_path / step_name(1)).mkdir()
    with pytest.raises(CheckpointError, match="holds no file"):
        complete(tmp_path, 1, RUN, {}, {})


def test_the_record_lists_every_file_and_is_written_whole(tmp_path):
    path = save(tmp_path, 10)
    record = json.loads((path / RECORD).read_text())
    assert sorted(record["files"]) == ["deep/optimizer.pt", "weights.pt"] and record["fingerprint"] == RUN
    assert sorted(p.name for p in path.iterdir()) == [RECORD, "deep", "weights.pt"]


def test_one_rank_vouches_for_what_all_have_delivered(tmp_path):
    path = tmp_path / step_name(10)
    path.mkdir()
    for name in ("0.pt", "1.pt", "script.py"):
        (path / name).write_text(name)
    found: dict = {}
    waiting = threading.Thread(target=lambda: found.update(collect(path, 2)))
    waiting.start()
    deliver(path, 1, [path / "1.pt"])
    time.sleep(0.1)
    assert waiting.is_alive() and latest(tmp_path, RUN)[0] is None
    deliver(path, 0, [path / "0.pt"])
    waiting.join(timeout=10)
    assert sorted(found) == ["0.pt", "1.pt"]
    complete(tmp_path, 10, RUN, {}, {}, found)
    record = json.loads((path / RECORD).read_text())
    assert sorted(record["files"]) == ["0.pt", "1.pt", "script.py"] == sorted(p.name for p in path.iterdir() if p.name != RECORD)
    assert latest(tmp_path, RUN)[0].step == 10


def test_prune_keeps_the_newest_complete_ones_and_removes_torn_ones_below_them(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / step_name(30) / RECORD).unlink()
    (tmp_path / step_name(50)).mkdir()  # being written
    (tmp_path / "zero_to_fp32.py").write_text("")
    assert prune(tmp_path, 2) == ["step-00000010", "step-00000030"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000040", "step-00000050", "zero_to_fp32.py"]


def test_prune_removes_nothing_without_a_complete_checkpoint(tmp_path):
    (tmp_path / step_name(50)).mkdir(parents=True)
    assert prune(tmp_path, 1) == []
