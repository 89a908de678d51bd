"""The sweep flow: trials are stages, the bad ones leave nothing, the best are repeated; killed anywhere and run again, no trial is doubled or lost."""

import json
import math
import shutil

import pytest
from chain import ingot, killed

from flows import sweep
from model.errors import ConfigError, NonFiniteError
from tasks import train
from tasks.corpus.manifest import Result, Store, run_stage
from tasks.mlflow_client import connect
from tasks.train import PRETRAIN

pytestmark = pytest.mark.xdist_group("prefect")
SPACE = {"pretrain.lr": "1e-4..1e-1:log"}


@pytest.fixture
def copy(tiny_run, tmp_path) -> Store:
    """The store of a finished tiny build, without its Prefect."""
    shutil.copytree(tiny_run.store, tmp_path / "store", ignore=shutil.ignore_patterns("prefect", "logs"))
    return Store(tmp_path / "store")


class Trainings:
    """In the place of pretraining: losses by a formula, least at lr = .003; `calls` are those that ran, `fail` ends the one of that number."""

    def __init__(self, monkeypatch, fail: int | None = None):
        self.calls: list[tuple[float, int]] = []
        self.fail = fail
        monkeypatch.setattr(train, "pretrained", self.pretrained)

    def pretrained(self, store, recipe, config, inputs, on_row, progress, rebuild=False, beside=1):
        def body(work):
            self.calls.append((config.train.lr, config.train.seed))
            number, rows = len(self.calls), []
            for step in range(1, config.train.steps + 1):
                if number == self.fail and step == 5:
                    raise RuntimeError("killed")
                if config.train.lr > 0.05:
                    raise NonFiniteError("the loss of step 1 is not finite")
                loss = 2 + abs(math.log10(config.train.lr / 0.003)) + 1 / step + 0.001 * (config.train.seed % 3)
                rows += [{"step": step, "loss": loss, "tokens_per_s": 1.0}, {"step": step, "valid_loss": loss}]
                for row in rows[-2:]:
                    on_row(row)
            (work.dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            return Result([("metrics.jsonl", None)], 1, 1, {}, {"final": {"valid_loss": loss}, "model": {"kind": "decoder"}, "vocab": 512})

        return run_stage(store, PRETRAIN, recipe, config, inputs, body, progress)


def trials(store: Store, address: str) -> list[dict]:
    text = (store.dir(address) / "trials.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_sweep_prunes_repeats_compares_and_is_found_again(prefect_server, copy, monkeypatch):
    ran, before = Trainings(monkeypatch), set(copy.addresses("pretrain"))
    made = sweep.named("tiny", SPACE, trials=9, parallel=2, seeds=2, store=copy.url)
    manifest, rows = copy.need(made["address"]), trials(copy, made["address"])
    ended = [row["ended"] for row in rows]
    assert len(rows) == manifest.seen == 9 and manifest.kept == ended.count("complete")
    assert manifest.rejected == {why: ended.count(why) for why in set(ended) - {"complete"}} and "pruned" in manifest.rejected
    assert len(set(ran.calls)) == len(ran.calls) == 9 + 2 * 3  # no point twice; two finalists and the recipe with two further seeds
    assert {seed for _, seed in ran.calls[9:]} == {2, 3}
    complete = [row for row in rows if row["ended"] == "complete"]
    assert set(copy.addresses("pretrain")) - before == {row["address"] for row in complete} | {
        address for row in manifest.info["finalists"] for address in row["addresses"]
    }
    best = sorted(complete, key=lambda row: row["valid_loss"])[:2]
    assert {row["name"] for row in manifest.info["finalists"]} == {*(f"trial {row['trial']}" for row in best), "recipe"}
    means = [row["mean"] for row in manifest.info["finalists"]]
    assert means == sorted(means) and manifest.info["best"]["settings"] == manifest.info["finalists"][0]["settings"]
    assert copy.versions("models", "tiny-sweep")[0].parts == (manifest.info["best"]["address"], manifest.address)

    client = connect(f"sqlite:///{copy.base}/mlflow/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("ingot").experiment_id], "tags.`ingot.trial` != ''")
    assert len(runs) == 15 and len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert sorted(run.data.tags["ingot.ended"] for run in runs) == sorted([*ended, *["complete"] * 6])
    assert all(float(run.data.params["pretrain.lr"]) in {lr for lr, _ in ran.calls} for run in runs if "pretrain.lr" in run.data.params)
    parent = client.search_runs(["1"], f"tags.`ingot.fingerprint` = '{manifest.fingerprint}'")[0]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"importance.png", "parallel.png"}

    calls = len(ran.calls)
    again = sweep.named("tiny", SPACE, trials=9, parallel=2, seeds=2, store=copy.url)
    assert again["address"] == made["address"] and len(ran.calls) == calls


@pytest.mark.full
def test_more_trials_go_on_with_the_study(prefect_server, copy, monkeypatch):
    ran = Trainings(monkeypatch)
    made = sweep.named("tiny", SPACE, trials=5, seeds=1, store=copy.url)
    calls = len(ran.calls)
    more = sweep.named("tiny", SPACE, trials=7, seeds=1, store=copy.url)
    assert trials(copy, more["address"])[:5] == trials(copy, made["address"])
    assert [seed for _, seed in ran.calls[calls : calls + 2]] == [1, 1] and 1 not in {seed for _, seed in ran.calls[calls + 2 :]}


@pytest.mark.full
def test_a_sweep_that_breaks_off_goes_on_to_what_an_unbroken_one_finds(prefect_server, copy, tmp_path, monkeypatch):
    shutil.copytree(copy.base, tmp_path / "other")
    whole = Trainings(monkeypatch)
    made = sweep.named("tiny", SPACE, trials=6, seeds=1, finalists=1, store=copy.url)
    other = Store(tmp_path / "other")
    broken = Trainings(monkeypatch)
    for fail in (3, 8):  # within the search, and within the repeats
        broken.fail = fail
        with pytest.raises(RuntimeError, match="killed"):
            sweep.named("tiny", SPACE, trials=6, seeds=1, finalists=1, store=other.url)
    broken.fail = None
    again = sweep.named("tiny", SPACE, trials=6, seeds=1, finalists=1, store=other.url)
    assert trials(other, again["address"]) == trials(copy, made["address"])
    assert set(broken.calls) == set(whole.calls) and len(broken.calls) == len(whole.calls) + 2  # the two that were broken off began again
    finals = [other.need(again["address"]).info[name] for name in ("finalists", "verdict", "best")]
    assert finals == [copy.need(made["address"]).info[name] for name in ("finalists", "verdict", "best")]


def test_a_space_of_few_choices_is_tried_whole_and_an_equal_trial_is_found_again(prefect_server, copy, monkeypatch):
    ran = Trainings(monkeypatch)
    sets = {"pretrain.lr": [0.001, 0.003, 0.09]}
    made = sweep.named("tiny", sets, trials=50, seeds=0, store=copy.url)
    rows = trials(copy, made["address"])
    assert [row["settings"]["pretrain.lr"] for row in rows] == [0.001, 0.003, 0.09]
    assert [row["ended"] for row in rows] == ["complete", "complete", "diverged"] and rows[2]["valid_loss"] is None
    assert len(ran.calls) == 2  # the build had made lr = .003, which is the recipe's
    verdict = copy.need(made["address"]).info["verdict"]
    assert verdict["beyond"] is None and "one seed" in verdict["why"]


def test_a_space_that_cannot_be_is_told_before_anything_is_made(prefect_server, tmp_path):
    for space, said in (({"pretrain.lrr": "1,2"}, "did you mean 'lr'"), ({"pretrain.lr": "2..1"}, "empty"), ({}, "needs a field")):
        with pytest.raises(ConfigError, match=said):
            sweep.named("tiny", space, store=str(tmp_path / "store"))
    assert not (tmp_path / "store" / "stages").exists()


@pytest.mark.full
def test_a_sweep_that_is_killed_ends_with_the_trials_of_an_unbroken_one(copy, tmp_path):
    """kill -9 of all processes within the second trial."""
    shutil.copytree(copy.base, tmp_path / "other")
    words = ("sweep", "tiny", "pretrain.lr=1e-3..1e-2:log", "model.width=16,32", "--trials", "2", "--seeds", "0", "--pruner", "none")
    whole = ingot(*words, store=copy.base)
    assert whole.returncode == 0, whole.stdout[-3000:]
    other, known = Store(tmp_path / "other"), set(copy.addresses("pretrain"))

    def within() -> bool:
        """Whether a second training beside the build's has made four steps."""
        begun = [path for path in map(other.dir, other.addresses("pretrain")) if (path / "run.json").exists()]
        last = max(begun, key=lambda path: (path / "run.json").stat().st_mtime) / "metrics.jsonl"
        return len(begun) == 3 and last.exists() and '"step": 4,' in last.read_text()

    killed(*words, store=other.base, when=within)
    again = ingot(*words, store=other.base)
    assert again.returncode == 0, again.stdout[-3000:]
    (address,) = other.addresses("sweep")
    assert trials(other, address) == trials(copy, address)
    assert set(other.addresses("pretrain")) == known
