"""Properties of model/room.py: a failed allocation names the setting to lower and a value that would have fitted."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flows import recipes
from model import room
from model.config import Run, qwen3
from model.errors import RoomError

GIB = 2**30
CPU = torch.device("cpu")
TRAIN = recipes.train(10, 96, 1024, 1.0, 4, save_every=5, keep=1, ranks=2, micro_batch=16, device="cpu", timeout=60.0)
RUN = Run(
    data="stream", fingerprint="f", data_fingerprint="d", model=qwen3(32, 2, 4, 2, 64, 1024), train=TRAIN, vocab=64,
    shards=("a",), valid=(), tokenizer="t", start=None, out="o",
)  # fmt: skip


def said(resident: float, needed: float, there: float, world: int = 2, **changes) -> str:
    run = replace(RUN, train=replace(TRAIN, **changes))
    return room.advice(run, world, resident * GIB, needed * GIB, there * GIB)


@pytest.mark.parametrize(
    "needed, size",
    [(31, 12), (34, 12), (34.1, 8), (50, 8), (50.1, 6)],  # 10 resident, 18 left; 48 rows a rank: 12, 8, 6 cut the batch evenly
)
def test_the_largest_micro_batch_that_fits_and_cuts_the_batch_evenly_is_named(needed, size):
    share = (28 - 10) / (needed - 10)
    size = max(n for n in range(1, 16) if 48 % n == 0 and n <= 16 * share)
    assert f"Lower train.micro_batch from 16 to {size}; batch stays 96" in said(10, needed, 28)


def test_what_comes_next_where_not_even_one_row_fits():
    lack = (10, 1000, 11)
    assert "Set train.checkpointing to true and train.micro_batch from 16 to 1" in said(*lack)
    assert said(*lack, micro_batch=1) == "Set train.checkpointing to true."
    assert "Raise train.zero from 1 to 3" in said(*lack, checkpointing=True)
    assert "Lower train.length from 1024 to 512" in said(10, 20, 15, world=1, checkpointing=True, micro_batch=1)
    assert "Lower train.length from 1024 to 512" in said(10, 20, 15, checkpointing=True, micro_batch=1, zero=3)
    assert "take 14.00 GiB: take a smaller model" in said(14, 16, 14, checkpointing=True, micro_batch=1, zero=3)


def huge_numpy() -> None:
    np.ones(2**46)


def huge_torch() -> None:
    torch.empty(2**50)


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB")


@pytest.mark.parametrize("fail, asked", [(huge_numpy, 2**19), (huge_torch, 2**22), (cuda, 20)])
def test_each_kind_of_failed_allocation_is_told_with_what_was_asked(fail, asked):
    with (
        pytest.raises(RoomError, match="out of memory: at least .* GiB needed on cpu, .* GiB there.* train") as error,
        room.told(RUN, 2, CPU),
    ):
        fail()
    needed = float(re.search(r"least ([\d,.]+) GiB", str(error.value))[1].replace(",", ""))
    assert asked <= needed < asked + 24


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as error, room.told(RUN, 1, CPU):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(error.value, RoomError)


def test_on_a_gpu_what_is_there_is_the_card(monkeypatch):
    fake = {"memory_allocated": 10 * GIB, "max_memory_allocated": 40 * GIB, "mem_get_info": (0, 50 * GIB)}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    device = SimpleNamespace(type="cuda")
    message = r"least 60.00 GiB needed .*, 50.00 GiB there. Lower train.micro_batch from 16 to 12;"
    with pytest.raises(RoomError, match=message), room.told(RUN, 2, device):
        cuda()


@pytest.mark.full
def test_a_rank_without_memory_leaves_the_advice(tmp_path, repo):
    from model.config import to_dict
    from model.shards import ShardWriter
    from model.tokenizer import save, train

    save(train(["some text"], 512), tmp_path / "tokenizer")
    with ShardWriter(tmp_path / "train", np.uint16) as writer:
        writer.add(np.arange(1, 60_000) % 50 + 4)
    settings = replace(TRAIN, batch=8, micro_batch=4, length=64, ranks=1)
    run = replace(
        RUN, train=settings, vocab=512, shards=(str(tmp_path / "train"),), tokenizer=str(tmp_path / "tokenizer"), out=str(tmp_path)
    )
    (tmp_path / "run.json").write_text(json.dumps(to_dict(run)))
    code = "import sys, pathlib, torch, model.objectives as o, model.train as t; o.cross_entropy = lambda *_: torch.empty(2**50); "
    code += "t.main(pathlib.Path(sys.argv[1]))"
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "run.json"], cwd=repo, env={**os.environ, **place}, capture_output=True)
    error = json.loads((tmp_path / "error.json").read_text())
    assert ended.returncode == 3 and error["type"] == "RoomError"
    assert "train.checkpointing to true and train.micro_batch from 4 to 1" in error["message"]
