"""The tiny recipe end to end by the real command: raw pages in, a registered model out; run again, nothing to do; and the commands that look at its store."""

import json
import re
from functools import partial

import pytest
from chain import STAGES, asked, by_stage, content, facts, ingot, of_store

from flows import build, planning, recipes
from model.errors import ConfigError, NotFoundError
from tasks.corpus.manifest import Store


@pytest.fixture
def place(tiny_run):
    return Store(tiny_run.store)


@pytest.fixture
def call(tiny_run):
    """`ingot ARGS` on the shared store, within this process."""
    return partial(asked, tiny_run.store)


def versions(folder):
    """Registered versions of a store's own MLflow: (name, version, aliases)."""
    from tasks.mlflow_client import connect

    client = connect(f"sqlite:///{folder}/mlflow/mlflow.db")
    return [(v.name, int(v.version), sorted(client.get_model_version(v.name, v.version).aliases)) for v in client.search_model_versions()]


def test_it_ends_well_and_says_what_it_did(tiny_run):
    assert tiny_run.status == 0, tiny_run.said[-4000:]
    for word in (*STAGES, "is asked: What is a lighthouse?", "Champion: yes", "Next:", "ingot sample ingot-tiny@candidate"):
        assert word in tiny_run.said, word
    assert "Traceback" not in tiny_run.said
    assert "Warning" not in tiny_run.said, tiny_run.said


def test_it_leaves_no_process_behind(tiny_run):
    assert of_store(tiny_run.store) == []


def test_every_stage_has_a_manifest_and_its_books_balance(place):
    found = by_stage(place)
    assert set(found) == set(STAGES)
    assert {stage: len(manifests) for stage, manifests in found.items()} == dict.fromkeys(STAGES, 1) | {"ingest": 5}
    for manifests in found.values():
        for manifest in manifests:
            assert manifest.seen == manifest.kept + sum(manifest.rejected.values()), manifest.address
            assert manifest.kept > 0, manifest.address
            assert manifest.reproducible, manifest.address
            place.verify(manifest)
    assert not [address for address in place.addresses() if place.manifest(address) is None], "incomplete outputs are left"
    assert not list(place.base.glob("stages/*/*/_work"))


def test_what_one_stage_keeps_is_what_the_next_sees(place):
    found = {stage: manifests[0] for stage, manifests in by_stage(place).items()}
    for before, after in (("extract", "filter"), ("filter", "dedup"), ("dedup", "decontaminate"), ("decontaminate", "encode")):
        assert found[after].seen == found[before].kept, after


def test_demo_and_tiny_have_the_same_corpus():
    assert recipes.corpus_identity(recipes.demo()) == recipes.corpus_identity(recipes.tiny())


def test_corpus_tokenizer_and_model_are_published_and_name_complete_outputs(place):
    assert [thing.address for thing in place.publications()] == [
        "corpora/tiny/v1",
        "indexes/tiny/v1",
        "tokenizers/tiny/v1",
        "models/tiny/v1",
    ]
    for thing in place.publications():
        for address in thing.parts:
            assert place.need(address)


def test_one_version_is_registered_as_candidate_and_champion(tiny_run):
    assert versions(tiny_run.store) == [("ingot-tiny", 1, ["candidate", "champion"])]


def test_training_saw_every_step_once_with_falling_loss(place):
    for stage, steps in (("pretrain", recipes.tiny().pretrain.steps), ("finetune", recipes.tiny().finetune.steps)):
        manifest = by_stage(place)[stage][0]
        rows = [json.loads(line) for line in (place.dir(manifest.address) / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, steps + 1))
        assert losses[-1] < losses[0]


def test_a_second_run_skips_everything_and_changes_nothing(tiny_run, place):
    before, manifests = content(place, STAGES), {m.address: facts(m) for ms in by_stage(place).values() for m in ms}
    again = ingot("run", "tiny", store=tiny_run.store)
    assert again.returncode == 0, again.stdout[-4000:]
    table = [line for line in again.stdout.splitlines() if line.split()[:1] and line.split()[0] in STAGES and "stages/" in line]
    assert len(table) == 16
    assert all("complete" in line for line in table), again.stdout
    assert content(place, STAGES) == before
    assert {m.address: facts(m) for ms in by_stage(place).values() for m in ms} == manifests
    assert versions(tiny_run.store) == [("ingot-tiny", 1, ["candidate", "champion"])]
    assert of_store(tiny_run.store) == []


def test_plan_says_that_everything_is_complete(call):
    done = call("plan", "tiny")
    assert done.exit_code == 0, done.output
    assert "to run" not in done.output
    assert done.output.count("complete") == 16


def test_plan_of_a_changed_field_names_what_would_run(call):
    done = call("plan", "tiny", "dedup.threshold=0.7")
    states = dict(re.findall(r"^\s*([a-z]+(?: [a-z]+)?)\s+(complete|to run)\b", done.output, re.MULTILINE))
    assert {stage for stage, state in states.items() if state == "to run"} == set(STAGES[STAGES.index("dedup") :])


def test_show_prints_counts_reasons_and_documents(call, place):
    manifest = by_stage(place)["filter"][0]
    done = call("show", manifest.address)
    assert done.exit_code == 0, done.output
    assert f"{manifest.seen:,}" in done.output
    assert all(reason in done.output for reason in manifest.rejected)
    everything = call("show")
    assert all(address in everything.output for address in (*place.addresses(), "corpora/tiny/v1"))
    assert manifest.address.partition("/")[0] in call("show", "corpora/tiny/v1").output


def test_show_of_what_is_not_there_says_how_to_go_on(call):
    done = call("show", "stages/filter/nothing-0000000000")
    assert isinstance(done.exception, NotFoundError)
    assert "ingot show" in str(done.exception)
    assert isinstance(call("show", "corpora/tiny/v9").exception, NotFoundError)


def test_verify_looks_at_every_output(call, place):
    done = call("verify")
    assert done.exit_code == 0, done.output
    assert all(address in done.output for address in place.addresses())


def test_gc_finds_nothing_to_remove(call):
    done = call("gc")
    assert done.exit_code == 0, done.output
    assert "would free 0 bytes" in done.output


def test_the_registered_model_answers(call):
    for model in ("ingot-tiny@candidate", "ingot-tiny@champion", "ingot-tiny/1", "models/tiny/v1"):
        done = call("sample", model, "What is a lighthouse?", "--max-new", "4")
        assert done.exit_code == 0, (model, done.output, done.exception)


def test_mistakes_in_the_call_are_named(call):
    """Before Prefect starts: within this process it would take the user's own profile."""
    for words, said in (
        (("run", "tinny"), "recipes are demo, tiny, small, base, roberta"),
        (("run", "tiny", "dedup.treshold=1"), "did you mean 'threshold'"),
        (("run", "tiny", "dedup.threshold=2"), "dedup.threshold"),
        (("run", "tiny", "steps"), "field=value"),
    ):
        error = call(*words).exception
        assert isinstance(error, ConfigError), (words, error)
        assert said in str(error), (words, error)


def test_an_unknown_stage_to_rebuild_is_named(place):
    with pytest.raises(ConfigError, match="'filtr'.*stages are ingest, extract"):
        build.start(recipes.tiny(), recipes.tiny(), {}, place.url, ["filtr"])


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_the_demo_answers_and_stops_by_itself(tmp_path):
    store = tmp_path / "demo"
    done = ingot("run", "demo", store=store, timeout=1400)
    assert done.returncode == 0, done.stdout[-4000:]
    scores = by_stage(Store(store))["evaluate"][0].info
    assert [answer["finished"] for answer in scores["samples"]].count("stop") >= 2, scores["samples"]
    assert scores["metrics"]["bits_per_byte"] < 3.5
    asked = ingot("sample", "ingot-demo@candidate", "What is paper made of?", store=store)
    assert len(asked.stdout.split()) >= 3


@pytest.mark.full
def test_the_chain_of_an_encoder_ends_with_pretraining_and_the_plan_says_so(tmp_path):
    store = tmp_path / "store"
    changes = ("pretrain.steps=6", "pretrain.warmup=1", "pretrain.decay=5", "pretrain.ranks=1", "version=short")
    done = ingot("run", "roberta", *changes, store=store)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "valid_accuracy" in done.stdout and "valid_loss" in done.stdout
    [published] = [thing for thing in Store(store).publications() if thing.address.startswith("models/")]
    assert published.address == "models/roberta-pretrained/short"
    assert not {"finetune", "evaluate", "register"} & set(by_stage(Store(store)))
    steps = planning.plan("roberta", dict(change.split("=") for change in changes), Store(store)).steps
    assert steps[-1].stage == "pretrain" and {step.state for step in steps} == {"complete"}
