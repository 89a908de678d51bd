"""The flows beside build: pretrain → finetune → register each alone, from what is published; and a build whose Prefect knows nothing of an earlier one."""

import dataclasses
import shutil

import pytest
from models import ELSEWHERE, elsewhere

from flows import planning, recipes
from model.errors import ConfigError, NotFoundError
from tasks.adopt import StartConfig
from tasks.corpus.manifest import Store

pytestmark = pytest.mark.xdist_group("prefect")


@pytest.fixture
def copy(tiny_run, tmp_path) -> Store:
    """The store of a finished tiny build, without its Prefect."""
    shutil.copytree(tiny_run.store, tmp_path / "store", ignore=shutil.ignore_patterns("prefect", "logs"))
    return Store(tmp_path / "store")


def one_more(recipe, **changes):
    """A recipe of another version, with other training."""
    return dataclasses.replace(
        recipe, version="v2", **{name: dataclasses.replace(getattr(recipe, name), **c) for name, c in changes.items()}
    )


def test_a_wiped_prefect_loses_nothing(prefect_server, copy):
    from flows import build

    done = build.tiny(store=copy.url)
    assert len(done["manifests"]) == 16
    assert all(manifest.skipped for manifest in done["manifests"])


def test_pretrain_finetune_and_register_follow_each_other_on_what_is_published(prefect_server, copy):
    from flows import finetune, pretrain, register

    recipe = recipes.tiny()
    weights = pretrain.base(corpus="corpora/tiny", recipe=recipe, store=copy.url)
    assert copy.published("models", "tiny-pretrained", "v1").parts == (weights,)
    tuned = finetune.chat(model="models/tiny-pretrained", recipe=recipe, store=copy.url)
    assert copy.published("models", "tiny-chat", "v1").parts == (tuned, weights)
    assert register.candidate(model="models/tiny-chat/v1", recipe=recipe, store=copy.url) == "models:/ingot-tiny/1"
    # the build had made all of them
    assert len(copy.addresses("pretrain")) == len(copy.addresses("finetune")) == len(copy.addresses("register")) == 1


@pytest.mark.full
@pytest.mark.timeout(900)
def test_another_recipe_on_the_same_corpus_trains_and_registers_a_second_version(prefect_server, copy):
    from flows import finetune, pretrain, register

    recipe = one_more(recipes.tiny(), pretrain={"steps": 12}, finetune={"steps": 7})
    weights = pretrain.base(corpus="corpora/tiny/v1", recipe=recipe, store=copy.url)
    tuned = finetune.chat(model="models/tiny-pretrained/v2", recipe=recipe, store=copy.url)
    uri = register.candidate(model=tuned, recipe=recipe, store=copy.url)
    assert uri == "models:/ingot-tiny/2"
    assert [len(copy.addresses(stage)) for stage in ("encode", "pretrain", "finetune", "register")] == [1, 2, 2, 2]
    assert copy.need(tuned).inputs["start"] == weights


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_model_made_elsewhere_is_pretrained_further_or_tuned_at_once(prefect_server, copy, tmp_path):
    from mlflow import MlflowClient

    from flows import finetune, pretrain, register
    from model.families import load
    from tasks import registry

    source = StartConfig(str(elsewhere(tmp_path / "gpt2")), "", ("lighthouse", "灯塔"))
    recipe = dataclasses.replace(recipes.tiny(), version="v2", start=source)
    weights = pretrain.base(corpus="corpora/tiny/v1", recipe=recipe, store=copy.url)
    made = copy.need(weights)
    taken = copy.need(made.inputs["start"])
    assert made.inputs["tokenizer"] == taken.address and taken.stage == "adopt"
    before, after = (load(copy.dir(address) / "model") for address in (taken.address, weights))
    assert before.config == after.config == ELSEWHERE and after.vocab == before.vocab
    steps = planning.plan("tiny", {"version": "v2", "start": dataclasses.asdict(source)}, copy).steps
    assert [step.state for step in steps if step.stage in ("adopt", "encode", "pretrain")] == ["complete"] * 3
    tuned = finetune.chat(model="models/tiny-pretrained/v2", recipe=recipe, store=copy.url)
    uri = register.candidate(model=tuned, recipe=recipe, store=copy.url)
    assert uri == "models:/ingot-tiny/2"
    card = MlflowClient(registry.tracking_uri(copy, recipe.register)).get_model_version("ingot-tiny", "2").description
    assert "It began as gpt2, a model made elsewhere" in card
    at_once = finetune.chat(model="start", recipe=dataclasses.replace(recipe, version="v3"), store=copy.url)
    assert copy.need(at_once).inputs["start"] == taken.address
    with pytest.raises(ConfigError, match="recipe tiny names no start"):
        finetune.chat(model="start", recipe=recipes.tiny(), store=copy.url)


def test_what_is_not_published_is_named_with_what_is(prefect_server, copy):
    from flows import finetune, pretrain, register

    for flow, name, given in (
        (pretrain.base, "corpus", "corpora/tinny"),
        (finetune.chat, "model", "models/tiny/v9"),
        (register.candidate, "model", "stages/finetune/no-0123456789"),
    ):
        with pytest.raises(NotFoundError, match=given) as refused:
            flow(**{name: given}, recipe=recipes.tiny(), store=copy.url)
        assert "corpora/tiny/v1" in str(refused.value) or "ingot show" in str(refused.value)
