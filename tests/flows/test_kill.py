"""kill -9 of the whole command, between stages and in the middle of each: run again, and what comes out is what an undisturbed run made.

Each test takes a copy of the finished store that lacks one stage, so only that stage is made again; the stages behind it are found, because what they
were made of comes out the same. Two moments are in the quick set, all others in the full one.
"""

import json
from collections.abc import Callable
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


MIDST: dict[str, tuple[str, Moment]] = {
    "ingest, one source": ("ingest", there("ingest", "manifest.json")),
    "ingest, a file of several": ("ingest", there("ingest", "crawl-data/**/*.warc.gz", 2)),
    "extract, at its start": ("extract", there("extract", "_work/job.json")),
    "extract, one part": ("extract", there("extract", "documents-*.parquet")),
    "extract, half of its parts": ("extract", there("extract", "documents-*.parquet", 5)),
    "filter, half of its parts": ("filter", there("filter", "documents-*.parquet", 5)),
    "dedup, signatures": ("dedup", there("dedup", "_work/signatures/signatures-*.parquet", 3)),
    "dedup, sets of shingles": ("dedup", there("dedup", "_work/sets/shingles-*.bin", 3)),
    "dedup, half of its parts": ("dedup", there("dedup", "documents-*.parquet", 5)),
    "decontaminate, half of its parts": ("decontaminate", there("decontaminate", "documents-*.parquet", 5)),
    "index, some of its parts": ("index", there("index", "_work/signatures/signatures-*.parquet", 3)),
    "tokenizer": ("tokenizer", there("tokenizer", "*")),
    "encode": ("encode", there("encode", "_work/spool")),
    "encode, one shard": ("encode", there("encode", "*.bin*")),
    "pretrain, at its start": ("pretrain", there("pretrain", "train.log")),
    "pretrain, a rank just started": ("pretrain", ranks),
    "pretrain, step 5": ("pretrain", step("pretrain", 5)),
    "pretrain, a checkpoint": ("pretrain", torn("pretrain", 6)),
    "pretrain, the last checkpoint": ("pretrain", torn("pretrain", 8)),
    "pretrain, the weights": ("pretrain", there("pretrain", "model*")),
    "finetune, step 4": ("finetune", step("finetune", 4)),
    "finetune, a checkpoint": ("finetune", torn("finetune", 3)),
    "evaluate": ("evaluate", there("evaluate", "")),
    "evaluate, scores": ("evaluate", there("evaluate", "metrics.json")),
    "register": ("register", there("register", "")),
}
QUICK = ("dedup, half of its parts",)


def points() -> list[object]:
    """All moments, those of the quick set unmarked."""
    cases = MIDST | {f"right after {stage}": (stage, settled(stage)) for stage in STAGES}
    return [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.full) for name, case in cases.items()]


@pytest.mark.parametrize(("stage", "moment"), points())
def test_a_killed_run_resumes_to_the_same_bytes(stage, moment, tiny_run, tmp_path):
    store = without(tiny_run.store, tmp_path / "store", stage)
    killed("run", "tiny", store=store.base, when=lambda: moment(store.base))
    before = {address: store.manifest(address) for address in store.addresses()}
    again = ingot("run", "tiny", store=store.base)
    assert again.returncode == 0, again.stdout[-4000:]
    whole = Store(tiny_run.store)
    assert content(store) == content(whole)
    assert weights(store) == weights(whole)
    for kind in ("pretrain", "finetune"):
        assert digests(store, kind) == digests(whole, kind)
    assert len(by_stage(store)["register"]) == 1
    assert versions(store.base) == 1
    assert not [address for address in store.addresses() if store.manifest(address) is None]
    for address, manifest in before.items():
        if manifest is not None and manifest.stage != "register":
            assert store.manifest(address).about == manifest.about, f"{address} was complete and was made again"


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
