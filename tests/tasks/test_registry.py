"""MLflow's side of a build: runs and versions are made once, survive kills and wiped databases, and the gate says why."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import models
import pytest
from chain import asked

from model.errors import ConfigError, NotFoundError, ServiceError
from tasks import registry
from tasks.card import roomy
from tasks.corpus.manifest import Store
from tasks.curves import curve
from tasks.gate import Standing, gate
from tasks.mlflow_client import connect

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """A store with an empty MLflow: its migration takes seconds, so tests copy the file."""
    folder = tmp_path_factory.mktemp("registry")
    store = Store(folder / "store")
    stages = models.chain(store, folder)
    connect(registry.tracking_uri(store, models.REGISTRY)).search_experiments()
    return store, stages


@pytest.fixture
def built(migrated, tmp_path, monkeypatch):
    """(store, stages by name, evaluation manifest) of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(migrated[0].base, tmp_path / "store")
    store = Store(tmp_path / "store")
    return store, migrated[1], models.evaluation(store)


def tracker_of(store, config=models.REGISTRY, version="v1"):
    return registry.open_tracker(store, config, "demo", version)


def register(store, inputs, tracker=None, config=models.REGISTRY, **more):
    return registry.register.fn(store, "demo", config, inputs, tracker or tracker_of(store), "v1", "a" * 64, **more)


def versions(store):
    client = connect(registry.tracking_uri(store, models.REGISTRY))
    return sorted(client.search_model_versions("name = 'ingot-test'"), key=lambda v: int(v.version))


def alias(store, name):
    return int(connect(registry.tracking_uri(store, models.REGISTRY)).get_model_version_by_alias("ingot-test", name).version)


def test_a_page_is_kept_with_the_builds_run_and_the_link_leads_to_it(built, tmp_path):
    tracker = tracker_of(built[0])
    page = tmp_path / "corpora-demo-v1.html"
    page.write_text("<!doctype html>")
    assert tracker.keep(page) == page.as_uri() == tracker.client.get_run(tracker.run_id).data.tags["ingot.page"]
    assert [file.path for file in tracker.client.list_artifacts(tracker.run_id)] == [page.name]
    tracker.uri = "http://mlflow:5000/"
    assert tracker.keep(page) == f"http://mlflow:5000/#/experiments/{tracker.experiment}/runs/{tracker.run_id}/artifactPath/{page.name}"


def runs(tracker):
    return {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment])}


def test_a_build_is_a_parent_run_with_one_run_a_stage_holding_params_counts_curves_and_datasets(built):
    store, stages, evaluation = built
    tracker = tracker_of(store)
    row = tracker.training("pretrain")
    for one in models.training(10)[:8]:
        row(one)
    tracker.stages([*stages.values(), evaluation])
    tracker.finish("# report\n\n| a | b |\n|---|---|\n| 1 | 2 |", {"bits_per_byte": 2.5})
    found = runs(tracker)
    parent = found.pop("build demo v1")
    expected = {s for s in stages if s not in ("commoncrawl", "wikipedia", "examples")}
    assert found.keys() == expected | {f"ingest {s}" for s in ("commoncrawl", "wikipedia", "examples", "evaluation")}
    assert {run.info.status for run in (*found.values(), parent)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert parent.data.metrics == {"bits_per_byte": 2.5} and "# report" in parent.data.tags["mlflow.note.content"]
    kept = found["filter"].data.metrics
    assert (kept["records/in"], kept["records/out"], kept["rejected/language"], kept["rejected/too_short"]) == (190, 150, 20, 6)
    train = found["pretrain"]
    assert (train.data.params["config.train.lr"], train.data.params["config.model.kind"]) == ("0.001", "decoder")
    (corpus,) = found["dedup"].inputs.dataset_inputs
    assert corpus.tags[0].value == "filter" and corpus.dataset.digest == stages["filter"].content[:16]
    assert json.loads(corpus.dataset.source)["uri"] == f"{store.base}/{stages['filter'].address}"
    (raw,) = found["ingest wikipedia"].inputs.dataset_inputs
    assert json.loads(raw.dataset.source) | {"uri": ""} == {
        "uri": "", "source": "wikipedia", "snapshot": "20261001", "license": "CC BY-SA 4.0",
    }  # fmt: skip
    for name, count in (("loss", 10), ("valid_loss", 2)):
        assert sorted(m.step for m in tracker.client.get_metric_history(train.info.run_id, name)) == [
            10 // count * n for n in range(1, count + 1)
        ]
    assert [f.path for f in tracker.client.list_artifacts(train.info.run_id)] == ["loss.png"]


def test_a_second_build_of_what_is_recorded_adds_no_run(built):
    store, stages, evaluation = built
    for _ in range(2):
        tracker = tracker_of(store)
        tracker.stages([*stages.values(), evaluation])
        tracker.finish("report", {})
        assert len(runs(tracker)) == len(stages) + 2


def test_training_outlives_a_lost_mlflow_and_the_curve_is_completed(built, monkeypatch, caplog):
    store, stages, _ = built
    tracker = tracker_of(store)
    row = tracker.training("pretrain")
    rows = models.training(10)
    row(rows[1])
    send = tracker.client.log_batch

    def lost(*args, **more):
        raise ConnectionError("gone")

    monkeypatch.setattr(tracker.client, "log_batch", lost)
    monkeypatch.setattr(tracker._training["pretrain"], "_next", 0.0)
    for one in rows[2:]:
        row(one)
    assert "did not take the metrics of pretrain" in caplog.text
    monkeypatch.setattr(tracker.client, "log_batch", send)
    tracker.stages([stages["pretrain"]])
    history = tracker.client.get_metric_history(runs(tracker)["pretrain"].info.run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(r["step"], r["loss"]) for r in rows if "loss" in r]


def test_rows_are_sent_in_batches_that_mlflow_takes(built, tmp_path):
    store = built[0]
    long = models.chain(store, tmp_path, seed=5, steps=400)["pretrain"]
    tracker = tracker_of(store)
    sizes = []
    send = tracker.client.log_batch
    tracker.client.log_batch = lambda run_id, metrics=(), **more: (sizes.append(len(metrics)), send(run_id, metrics=metrics, **more))
    tracker.stages([long])
    assert len(curve(store, long)) == 480 and max(sizes) == 1000 and sum(sizes) > 1700


def test_runs_that_a_killed_build_left_open_are_closed(built):
    store, stages, _ = built
    killed = tracker_of(store)
    killed.training("pretrain")(models.training(2)[1])
    other = tracker_of(store, version="v2")
    other.child("pretrain")
    tracker = tracker_of(store)
    status = {(r.data.tags["ingot.build"], r.info.run_name): r.info.status for r in tracker.client.search_runs([tracker.experiment])}
    assert {status["demo v1", "build demo v1"], status["demo v1", "pretrain"]} == {"KILLED"} and status["demo v2", "pretrain"] == "RUNNING"
    tracker.stages([stages["pretrain"]])
    assert runs(tracker)["pretrain"].info.status == "FINISHED"


def test_a_failed_build_says_why_and_leaves_no_run_open(built):
    tracker = tracker_of(built[0])
    tracker.child("pretrain")
    tracker.fail(ConfigError("unknown field 'steeps'"))
    found = runs(tracker)
    assert {run.info.status for run in found.values()} == {"FAILED"} and len(found) == 2
    assert "unknown field 'steeps'" in found["build demo v1"].data.tags["mlflow.note.content"]


def test_a_version_is_registered_with_lineage_tags_a_card_and_both_aliases(built):
    store, stages, evaluation = built
    done = register(store, models.judged(store, stages, evaluation))
    (version,) = versions(store)
    assert (done.info["version"], done.info["champion"], done.info["why"]) == ("1", True, "first version; bits_per_byte 2.5000")
    assert alias(store, "candidate") == alias(store, "champion") == 1
    tags = {name.removeprefix("ingot."): value for name, value in version.tags.items()}
    assert tags["fingerprint"] == done.fingerprint and tags["address"] == done.address and tags["model"] == stages["finetune"].address
    assert (tags["corpus"], tags["tokenizer"], tags["shards"]) == tuple(stages[s].address for s in ("decontaminate", "tokenizer", "encode"))
    assert (tags["documents"], tags["tokens"], tags["recipe"], tags["recipe_fingerprint"]) == ("124", "41000", "demo v1", "a" * 64)
    assert tags["gate"] == done.info["why"] and int(tags["parameters"]) > 5000
    for words in (
        "Common Crawl terms of use",
        "CC BY-SA 4.0",
        "near_duplicate 25",
        "wikipedia/zh",
        "20,500",
        "2026 41,300, unknown 600",
        "2.9000",
        "ingot sample ingot-test@candidate",
        "models serve",
    ):
        assert words in version.description, words
    assert registry.aliases(store, models.REGISTRY) == [done.address]


def test_registered_again_is_found_and_asks_mlflow_only_once(built):
    store, stages, evaluation = built
    inputs = models.judged(store, stages, evaluation)
    first = register(store, inputs)
    second = register(store, inputs)
    assert second.skipped and second.fingerprint == first.fingerprint and len(versions(store)) == 1


def test_on_a_wiped_mlflow_it_is_registered_again_from_the_store(built, migrated, tmp_path):
    store, stages, evaluation = built
    inputs = models.judged(store, stages, evaluation)
    first = register(store, inputs)
    wiped = Store(tmp_path / "wiped")
    shutil.copytree(store.base / "stages", wiped.base / "stages")
    shutil.copytree(migrated[0].base / "mlflow", wiped.base / "mlflow")
    again = register(wiped, inputs)
    assert not again.skipped and again.fingerprint == first.fingerprint
    assert [v.tags["ingot.fingerprint"] for v in versions(wiped)] == [first.fingerprint]


def test_rebuild_makes_a_new_version_that_takes_the_fingerprint_over(built):
    store, stages, evaluation = built
    inputs = models.judged(store, stages, evaluation)
    first = register(store, inputs)
    second = register(store, inputs, rebuild=True)
    held = [v.version for v in versions(store) if v.tags.get("ingot.fingerprint") == first.fingerprint]
    assert len(versions(store)) == 2 and [int(v) for v in held] == [2] and second.info["champion"] is False
    assert register(store, inputs).skipped


KILLS = (
    "create_logged_model", "log_model_artifacts", "log_outputs", "finalize_logged_model", "create_registered_model", "create_model_version",
    "set_registered_model_alias",
)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "after"),
    [pytest.param(c, a, marks=() if (c, a) == ("create_model_version", True) else pytest.mark.full) for c in KILLS for a in (False, True)],
)
def test_killed_at_any_call_and_run_again_there_is_exactly_one_version(built, call, after):
    store, stages, evaluation = built
    inputs = models.judged(store, stages, evaluation)
    addresses = {role: manifest.address for role, manifest in inputs.items()}
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = [{str(REPO)!r}, {str(REPO / "tests")!r}]
        import mlflow, models
        from tasks import registry
        from tasks.corpus.manifest import Store
        def deadly(client, *args, **more):
            if {after}: real(client, *args, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        real = mlflow.MlflowClient.{call}
        mlflow.MlflowClient.{call} = deadly
        store = Store({str(store.base)!r})
        inputs = {{role: store.need(a) for role, a in {addresses!r}.items()}}
        tracker = registry.open_tracker(store, models.REGISTRY, "demo", "v1")
        registry.register.fn(store, "demo", models.REGISTRY, inputs, tracker, "v1", "a" * 64)
        """
    )
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert died.returncode == -9, died.stderr
    tracker = tracker_of(store)
    done = register(store, inputs, tracker)
    tracker.stages([done])
    (version,) = versions(store)
    assert version.tags["ingot.fingerprint"] == done.fingerprint and (done.info["version"], done.info["champion"]) == ("1", True)
    assert alias(store, "candidate") == alias(store, "champion") == 1 and done.info["why"].startswith("first version")
    made = tracker.client.search_logged_models([tracker.experiment])
    assert [f"models:/{m.model_id}" for m in made] == [version.source]
    run = tracker.client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == tracker.run_id
    assert registry.resolve(store, models.REGISTRY, "ingot-test@champion").is_dir()


@pytest.mark.parametrize(
    ("theirs", "mine", "wins", "said"),
    [
        (2.5, 2.4, True, "bits_per_byte 2.4000 against 2.5000 of champion 1: better"),
        (2.5, 2.6, False, "not better"),
        (2.5, 2.5, False, "not better by more than 0"),
    ],
)
def test_champion_moves_only_to_a_better_version_and_says_why(built, theirs, mine, wins, said):
    store, stages, evaluation = built
    register(store, models.judged(store, stages, evaluation, bits_per_byte=theirs))
    done = register(store, models.judged(store, stages, evaluation, bits_per_byte=mine, choice=0.3))
    assert done.info["champion"] is wins and said in done.info["why"] and versions(store)[1].tags["ingot.gate"] == done.info["why"]
    assert (alias(store, "candidate"), alias(store, "champion")) == (2, 2 if wins else 1)
    assert said in versions(store)[1].description and "2.5000" in versions(store)[1].description


def test_scores_on_other_evaluation_files_are_not_compared(built):
    store, stages, evaluation = built
    register(store, models.judged(store, stages, evaluation, bits_per_byte=2.5))
    other = models.evaluation(store, {"heldout.jsonl": '{"text": "x"}\n'})
    done = register(store, models.judged(store, stages, other, bits_per_byte=0.5))
    assert not done.info["champion"] and "other evaluation files" in done.info["why"] and alias(store, "champion") == 1


def test_the_gate_knows_which_way_is_better_and_asks_for_the_margin():
    champion = Standing("7", "e", {"choice": 0.5, "tuned/bits_per_byte": 2.0})
    assert [gate("choice", 0.1, {"choice": score}, "e", champion)[0] for score in (0.4, 0.55, 0.61)] == [False, False, True]
    assert [gate("tuned/bits_per_byte", 0.1, {"tuned/bits_per_byte": score}, "e", champion)[0] for score in (1.95, 1.85)] == [False, True]
    assert gate("minimal_pairs", 0.0, {"minimal_pairs": 0.9}, "e", champion) == (
        False,
        "not comparable with champion 7: it has no minimal_pairs",
    )


def test_a_metric_that_was_not_measured_is_refused_before_anything_is_registered(built):
    store, stages, evaluation = built
    with pytest.raises(ConfigError, match=r"register\.metric is 'perplexity'.* bits_per_byte, "):
        register(store, models.judged(store, stages, evaluation), config=models.config(metric="perplexity"))
    assert versions(store) == []


def test_a_model_that_does_not_answer_is_not_registered_nor_logged(built, monkeypatch):
    store, stages, evaluation = built
    monkeypatch.setattr("model.generate.generate", lambda *args, **more: 1 / 0)
    tracker = tracker_of(store)
    with pytest.raises(Exception, match="does not answer as an MLflow model .* Nothing is registered"):
        register(store, models.judged(store, stages, evaluation), tracker)
    assert versions(store) == [] and tracker.client.search_logged_models([tracker.experiment]) == [] and runs(tracker) == {}


def test_every_way_to_name_a_model_leads_to_its_directory(built, tmp_path):
    store, stages, evaluation = built
    inputs = models.judged(store, stages, evaluation)
    register(store, inputs)
    store.publish("models", "demo", "v1", [stages["finetune"], stages["pretrain"]], {}, {})
    folder = store.dir(stages["finetune"].address) / "model"
    names = ("ingot-test", "ingot-test@candidate", "ingot-test/1", "models:/ingot-test@champion", "models:/ingot-test/1")
    for name in (*names, stages["finetune"].address, "models/demo/v1", str(folder)):
        assert registry.resolve(store, models.REGISTRY, name) == folder, name
    assert registry.resolve(store, models.REGISTRY, stages["pretrain"].address) == store.dir(stages["pretrain"].address) / "model"


def test_a_model_whose_store_is_gone_is_read_from_mlflow(built, tmp_path):
    store, stages, evaluation = built
    register(store, models.judged(store, stages, evaluation))
    config = models.config(tracking_uri=registry.tracking_uri(store, models.REGISTRY))
    found = registry.resolve(Store(tmp_path / "other"), config, "ingot-test@candidate")
    assert (found / "model.safetensors").read_bytes() == (store.dir(stages["finetune"].address) / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["ingot-tset", "ingot-test@best", "ingot-test/9", "ingot-test/x", "models/demo/v9", "it's", "a/b/c"])
def test_an_unknown_model_lists_what_there_is(built, name):
    store, stages, evaluation = built
    register(store, models.judged(store, stages, evaluation))
    store.publish("models", "demo", "v1", [stages["finetune"]], {}, {})
    with pytest.raises(NotFoundError, match=r"Registered: ingot-test @candidate @champion; published in .*: models/demo/v1"):
        registry.resolve(store, models.REGISTRY, name)


def test_a_store_without_mlflow_has_no_aliases_and_gets_no_database(store):
    assert registry.aliases(store, models.REGISTRY) == []
    with pytest.raises(NotFoundError, match="Registered: nothing; published in .*: nothing"):
        registry.resolve(store, models.REGISTRY, "ingot-test")
    assert not (store.base / "mlflow").exists()


def test_an_unreachable_mlflow_is_a_service_error_within_15_seconds(store):
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        tracker_of(store, replace(models.REGISTRY, tracking_uri="http://127.0.0.1:9"))
    assert time.monotonic() - start < 15


def test_a_tracker_leaves_the_environment_alone_so_that_two_stores_keep_apart(built, tmp_path):
    store, stages, evaluation = built
    register(store, models.judged(store, stages, evaluation))
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert registry.tracking_uri(Store(tmp_path / "other"), models.REGISTRY) == f"sqlite:///{tmp_path}/other/mlflow/mlflow.db"
    assert registry.tracking_uri(Store("memory://there"), models.REGISTRY) == f"sqlite:///{Path.cwd()}/.ingot/mlflow/mlflow.db"


def test_nothing_is_printed_or_warned_on_the_way(built, capfd, caplog, recwarn):
    store, stages, evaluation = built
    with caplog.at_level(logging.WARNING):
        tracker = tracker_of(store)
        register(store, models.judged(store, stages, evaluation), tracker)
        tracker.stages([*stages.values(), evaluation])
        tracker.finish("report", {})
    assert capfd.readouterr() == ("", "") and caplog.records == []
    assert [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)] == []


def test_importing_the_registry_imports_neither_mlflow_nor_torch():
    code = "import sys, tasks.registry, tasks.evaluate; print({'mlflow', 'torch', 'matplotlib', 'pandas'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert said.stdout.strip() == "set()", said.stdout + said.stderr


def test_tables_get_room_and_nothing_else_changes():
    assert roomy("a | b\n| x | y |\n|---|---:|\n| 1 |  |") == "a | b\n|_x_|_y_|\n|---|---:|\n|_1_|__|".replace(
        "|_", "|\u200b\u2002"
    ).replace("_|", "\u2002\u200b|")


def test_champion_goes_forth_and_back_through_those_who_had_it(built, monkeypatch):
    store, stages, evaluation = built
    for score in (2.5, 2.4, 2.6):
        register(store, models.judged(store, stages, evaluation, bits_per_byte=score))
    assert alias(store, "champion") == 2
    assert registry.promote(store, models.REGISTRY, "ingot-test@candidate").version == 3 and alias(store, "champion") == 3
    assert [aliases for _, aliases in registry.listed(store, models.REGISTRY)] == [["candidate", "champion"], [], []]
    from mlflow import MlflowClient

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed between the two writes, and said again: one step back, not two
        patch.setattr(MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            registry.rollback(store, models.REGISTRY, "ingot-test")
    registry.rollback(store, models.REGISTRY, "ingot-test")
    assert alias(store, "champion") == 2
    registry.rollback(store, models.REGISTRY, "ingot-test")
    assert alias(store, "champion") == 1
    with pytest.raises(NotFoundError, match="version 1 is the first champion there was: promote another"):
        registry.rollback(store, models.REGISTRY, "ingot-test")
    with pytest.raises(NotFoundError, match="no model 'ingot-test/9'"):
        registry.promote(store, models.REGISTRY, "ingot-test/9")


def test_the_commands_list_promote_and_roll_back(built):
    store, stages, evaluation = built
    assert "ingot run demo" in str(asked(store.url, "models").exception)
    for score in (2.5, 2.6):
        register(store, models.judged(store, stages, evaluation, bits_per_byte=score))
    assert "ingot-test version 2 is champion" in asked(store.url, "promote", "ingot-test/2").output
    assert "ingot-test version 1 is champion again" in asked(store.url, "rollback", "ingot-test").output
    rows = [line.split() for line in asked(store.url, "models", "ingot-test").output.splitlines() if line.strip().startswith("ingot-test")]
    assert [row[:3] for row in rows] == [["ingot-test", "2", "candidate"], ["ingot-test", "1", "champion"]]
