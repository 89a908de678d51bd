"""kill -9 of the whole command, between stages and in the middle of each: run again, and what comes out is what an undisturbed run made.

Each test takes a copy of the finished store that lacks some stages, so only those are made again; the stages behind them are found, because what they
were made of comes out the same. It is killed at one moment after another, each time resuming what the last kill left, and then runs to its end.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from chain import STAGES, by_stage, content, ingot, killed, of_store, without

from tasks.corpus.manifest import Store

Moment = Callable[[Path], bool]
"""Whether the moment has come, by what lies in the store."""


def settled(stage: str) -> Moment:
    """Right after a stage."""
    return lambda store: any((store / "stages" / stage).glob("*/manifest.json"))


def there(stage: str, pattern: str, count: int = 1) -> Moment:
    """In a stage's midst: so many files of a pattern are in its folder."""
    return lambda store: len(list((store / "stages" / stage).glob(f"*/{pattern}"))) >= count


def step(stage: str, number: int) -> Moment:
    """After a step of training has been written down."""

    def come(store: Path) -> bool:
        rows = [row for file in (store / "stages" / stage).glob("*/metrics.jsonl") for row in file.read_text().splitlines()]
        return any(f'"step": {number},' in row for row in rows)

    return come


def torn(stage: str, number: int) -> Moment:
    """While a checkpoint is being written."""

    def come(store: Path) -> bool:
        folders = (store / "stages" / stage).glob(f"*/checkpoints/step-{number:08d}")
        return any(any(folder.iterdir()) and not (folder / "complete.json").exists() for folder in folders)

    return come


def ranks(store: Path) -> bool:
    """When a rank of the training has just been started."""
    return any("model.train" in words and "torch.distributed.run" not in words for words in of_store(store))


MIDST: dict[str, dict[str, Moment]] = {
    "ingest": {"one source": there("ingest", "manifest.json"), "a file of several": there("ingest", "crawl-data/**/*.warc.gz", 2)},
    "extract": {
        "its start": there("extract", "_work/job.json"),
        "one part": there("extract", "documents-*.parquet"),
        "half of its parts": there("extract", "documents-*.parquet", 5),
    },
    "filter": {"half of its parts": there("filter", "documents-*.parquet", 5)},
    "dedup": {
        "signatures": there("dedup", "_work/signatures/signatures-*.parquet", 3),
        "sets of shingles": there("dedup", "_work/sets/shingles-*.bin", 3),
        "half of its parts": there("dedup", "documents-*.parquet", 5),
    },
    "decontaminate": {"half of its parts": there("decontaminate", "documents-*.parquet", 5)},
    "index": {"some of its parts": there("index", "_work/signatures/signatures-*.parquet", 3)},
    "tokenizer": {"its start": there("tokenizer", "*")},
    "encode": {"its start": there("encode", "_work/spool"), "one shard": there("encode", "*.bin*")},
    "pretrain": {
        "its start": there("pretrain", "train.log"),
        "a rank just started": ranks,
        "step 5": step("pretrain", 5),
        "a checkpoint": torn("pretrain", 6),
        "the last checkpoint": torn("pretrain", 8),
        "the weights": there("pretrain", "model*"),
    },
    "finetune": {"a checkpoint": torn("finetune", 3), "step 4": step("finetune", 4)},
    "evaluate": {"its start": there("evaluate", ""), "scores": there("evaluate", "metrics.json")},
    "register": {"its start": there("register", "")},
}
"""Moments in the order in which they come."""


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(["decontaminate"], id="decontaminate"),
        *(
            pytest.param(stages, id=f"{stages[0]} to {stages[-1]}", marks=pytest.mark.full)
            for stages in (STAGES[:3], STAGES[3:6], STAGES[6:8], STAGES[8:9], STAGES[9:])
        ),
    ],
)
def test_a_run_killed_again_and_again_resumes_to_the_same_bytes(stages, tiny_run, tmp_path):
    store, complete = without(tiny_run.store, tmp_path / "store", *stages), {}
    for stage in stages:
        for name, moment in (MIDST[stage] | {"its end": settled(stage)}).items():
            if moment(store.base):
                continue  # the last kill came late
            killed("run", "tiny", store=store.base, when=partial(moment, store.base))
            for address in store.addresses():
                found = store.manifest(address)
                if found is not None and found.stage != "register":
                    about = complete.setdefault(address, found.about)
                    assert found.about == about, f"killed at {stage}, {name}: {address} was complete and was made again"
    again = ingot("run", "tiny", store=store.base)
    assert again.returncode == 0, again.stdout[-4000:]
    assert {address: store.need(address).about for address in complete} == complete
    whole = Store(tiny_run.store)
    assert content(store) == content(whole)
    assert weights(store) == weights(whole)
    for kind in ("pretrain", "finetune"):
        assert digests(store, kind) == digests(whole, kind)
    assert len(by_stage(store)["register"]) == 1
    assert versions(store.base) == 1
    assert not [address for address in store.addresses() if store.manifest(address) is None]


def weights(store: Store) -> dict[str, str]:
    """sha256 of the final weights."""
    found = content(store, ("pretrain", "finetune"))
    return {name: digest for name, digest in found.items() if "/model/" in name}


def digests(store: Store, stage: str) -> list[tuple[int, str, float]]:
    """(step, digest of the global batch, loss) of a training."""
    manifest = by_stage(store)[stage][0]
    rows = [json.loads(line) for line in (store.dir(manifest.address) / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["batch"], row["loss"]) for row in rows if "batch" in row]


def versions(folder: Path) -> int:
    """Registered versions in the store's own MLflow."""
    from tasks.mlflow_client import connect

    return len(connect(f"sqlite:///{folder}/mlflow/mlflow.db").search_model_versions())
