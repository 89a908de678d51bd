"""Run forms and deployments: every field has its words and bounds, unknown and bad values are refused by name, and nothing runs by itself."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter
from prefect.deployments import run_deployment
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError

from flows import build, finetune, pretrain, recipes, refresh, register, sweep
from model.config import to_dict
from model.errors import ConfigError

pytestmark = pytest.mark.xdist_group("prefect")
FLOWS: tuple[Flow, ...] = (
    *(build.demo, build.tiny, build.small, build.base, build.roberta, refresh.common_crawl_monthly, refresh.wikipedia_monthly),
    *(pretrain.base, sweep.small, finetune.chat, register.candidate),
)
forms = pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: f"{flow.name}-{flow.fn.__name__}")


def fields(schema: dict, node: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """All fields of a form with their dotted names, sections entered."""
    for choice in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in choice:
            yield from fields(schema, schema["definitions"][choice["$ref"].rpartition("/")[2]], path)
    for name, field in node.get("properties", {}).items():
        yield f"{path}.{name}".lstrip("."), field
        yield from fields(schema, field, f"{path}.{name}")


def leaves(config, path: str) -> Iterator[str]:
    """Dotted names of all fields of a config and of its sections."""
    for field in dataclasses.fields(config):
        yield f"{path}.{field.name}"
        if dataclasses.is_dataclass(getattr(config, field.name)):
            yield from leaves(getattr(config, field.name), f"{path}.{field.name}")


@forms
def test_every_field_of_a_form_is_described(flow):
    schema = flow.parameters.model_dump()
    found = dict(fields(schema, schema))
    assert {f"{name}" for name in leaves(recipes.demo(), "recipe")} <= found.keys()
    assert not [name for name, field in found.items() if not field.get("description", "").strip()]


@forms
def test_defaults_are_a_whole_valid_recipe_in_json(flow):
    default = flow.parameters.model_dump()["properties"]["recipe"]["default"]
    assert json.loads(json.dumps(default)) == default
    validated = flow.validate_parameters({"recipe": default})["recipe"]
    assert to_dict(validated) == default
    assert default["version"] and default["model"]["layers"] > 0


def test_bounds_and_choices_reach_the_form():
    schema = build.demo.parameters.model_dump()
    found = dict(fields(schema, schema))
    assert found["recipe.dedup.threshold"]["exclusiveMinimum"] == 0
    assert found["recipe.dedup.threshold"]["maximum"] == 1
    assert found["recipe.pretrain.steps"]["minimum"] == 1
    assert found["recipe.pretrain.precision"]["enum"] == ["fp32", "bf16"]
    assert found["recipe.keep_raw"]["enum"] == ["all", "used-records", "none"]
    assert not [d for name, d in schema["definitions"].items() if d.get("additionalProperties") is not False]


def wrong(**changes) -> dict:
    """The demo as plain data with one section changed."""
    data = to_dict(recipes.demo())
    for name, section in changes.items():
        data[name] = section(data[name])
    return data


BAD = {
    "recipe.dedup.threshold": wrong(dedup=lambda d: d | {"threshold": 7}),
    "recipe.dedup.treshold": wrong(dedup=lambda d: d | {"treshold": 0.5}),
    "recipe.pretrain.steps": wrong(pretrain=lambda d: d | {"steps": "many"}),
    "recipe.finetune": wrong(finetune=lambda d: {"steps": 5}),
    "recipe.nonsense": wrong() | {"nonsense": 1},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_name_before_anything_runs(prefect_server, name):
    with pytest.raises(ParameterTypeError) as refused:
        build.demo(recipe=BAD[name])
    assert name.rpartition(".")[2] in str(refused.value)


def test_an_unknown_parameter_is_refused_by_name(prefect_server):
    with pytest.raises(TypeError, match="recipes"):
        build.demo(recipes={})


def test_the_server_refuses_bad_parameters_of_a_deployment_by_name(prefect_server):
    deployment = build.demo.to_deployment("form")
    deployment.apply()
    for name, recipe in BAD.items():
        with pytest.raises(PrefectHTTPStatusError) as refused:
            run_deployment("build/form", parameters={"recipe": recipe}, timeout=0)
        assert name.rpartition(".")[2] in refused.value.response.text, name
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=DeploymentFilter(name={"any_": ["form"]}))
    assert found == []


def test_overrides_are_refused_by_name_too(prefect_server, tmp_path):
    for change, said in (
        ({"dedup.treshold": 0.5}, "did you mean 'threshold'"),
        ({"dedup.threshold": 7}, "dedup.threshold"),
        ({"pretrain": {"steps": 5}}, "pretrain.batch"),
        ({"pretrain.batch": 5, "pretrain.micro_batch": 2}, "multiple of micro_batch"),
    ):
        with pytest.raises(ConfigError) as refused:
            build.demo(set=change, store=str(tmp_path))
        assert said in str(refused.value)


@pytest.fixture(scope="module")
def deployments(repo):
    return {d["name"]: d for d in yaml.safe_load((repo / "prefect.yaml").read_text())["deployments"]}


def test_every_deployment_names_a_flow_and_runs_one_at_a_time(deployments):
    assert set(deployments) == {"demo", "small", "common-crawl-monthly", "wikipedia-monthly", "base", "settings", "chat", "candidate"}
    known = {f"flows/{flow.fn.__module__.rpartition('.')[2]}.py:{flow.fn.__name__}" for flow in FLOWS}
    for deployment in deployments.values():
        assert deployment["entrypoint"] in known
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_nothing_runs_by_itself_as_shipped(deployments):
    schedules = [s for d in deployments.values() for s in d.get("schedules", [])]
    triggers = [t for d in deployments.values() for t in d.get("triggers", [])]
    assert len(schedules) == 2 and not any(s["active"] for s in schedules)
    assert len(triggers) == 1 and not any(t["enabled"] for t in triggers)
