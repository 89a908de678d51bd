"""Imports run one way: flows → tasks → deploy → model; the corpus code knows neither Prefect nor torch."""

import ast
from pathlib import Path

import pytest

LAYERS = ["flows", "tasks", "deploy", "model"]
REPO = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def files(folder: str) -> list[Path]:
    return sorted((REPO / folder).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_no_layer_to_its_left(layer):
    left = LAYERS[: LAYERS.index(layer)]
    wrong = {
        str(path.relative_to(REPO)): names & set(left)
        for path in files(layer)
        if (names := {n.split(".")[0] for n in imports(path)}) & set(left)
    }
    assert files(layer) and wrong == {}


def test_corpus_code_knows_neither_prefect_nor_torch_nor_mlflow():
    wrong = {
        p.name: n
        for p in files("tasks/corpus")
        if (n := {i.split(".")[0] for i in imports(p)} & {"prefect", "torch", "deepspeed", "mlflow"})
    }
    assert wrong == {}


MLFLOW = {
    "tasks/mlflow_client.py",
    "tasks/tracking.py",
    "tasks/gate.py",
    "tasks/registry.py",
    "deploy/mlflow_model.py",
    "deploy/mlflow_package.py",
}


def test_only_the_registrys_rooms_and_what_mlflow_loads_import_mlflow():
    users = {str(p.relative_to(REPO)) for layer in LAYERS for p in files(layer) if "mlflow" in {i.split(".")[0] for i in imports(p)}}
    assert users == MLFLOW
