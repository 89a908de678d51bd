"""The README files tell the truth: commands parse or run, targets, deployments, files and folders that they name exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from chain import asked

REPO = Path(__file__).parents[1]
READMES = [REPO / "README.md", REPO / "README.zh-CN.md"]
FOLDERS = ["flows", "tasks", "model", "deploy", "tests"]


def commands(readme):
    """Lines of bash blocks, comments cut off, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if shlex.split(line, comments=True)]


def test_both_readmes_give_the_same_commands():
    plain = [
        [re.sub(r"[一-鿿？]+|What is a lighthouse\?|: |STAGE|阶段", "", word) for words in commands(r) for word in words] for r in READMES
    ]
    assert plain[0] == plain[1] and len(commands(READMES[0])) > 10


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_make_targets_exist(readme):
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.M))
    assert {words[1] for words in commands(readme) if words[0] == "make"} <= targets


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_deployments_exist_with_their_flow(readme):
    flows = {}
    for one in yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]:
        file, function = one["entrypoint"].split(":")
        source = (REPO / file).read_text()
        name = re.search(rf'@flow\(name="(\w+)"[^\n]*\)\ndef {function}\(', source)
        assert name, one["entrypoint"]
        flows[f"{name.group(1)}/{one['name']}"] = one
    run = {words[3] for words in commands(readme) if words[:3] == ["prefect", "deployment", "run"]}
    listed = set(re.findall(r"(?<![\w/])((?:build|refresh|pretrain|sweep|finetune|register)/[\w-]+)\b", readme.read_text(encoding="utf-8")))
    assert run and run | listed <= set(flows)


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_linked_files_exist(readme):
    links = re.findall(r"\]\(([^)#:]+)\)", readme.read_text(encoding="utf-8"))
    assert links and [link for link in links if not (REPO / link).exists()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_readme_glosses_every_file_and_only_what_exists(folder):
    text = (REPO / folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.py\b", text))
    paths = {p.name for p in (REPO / folder).rglob("*.py") if "samples" not in p.parts} if folder in ("flows", "model", "deploy") else None
    assert {name for name in named if not list((REPO / folder).rglob(name)) and not (REPO / name).exists()} == set()
    if paths is not None:
        assert paths - {"__init__.py"} <= named, "a file without a gloss"


@pytest.mark.parametrize("words", [w for w in commands(READMES[0]) if w[0].endswith("ingot")], ids=" ".join)
def test_ingot_commands_work_on_a_finished_store(words, tiny_run, tmp_path, monkeypatch):
    """The demo's commands on the store of the tiny recipe, which has the same stages; those that train, serve or fetch are only read."""
    monkeypatch.chdir(tmp_path)
    args = [word.replace("ingot-demo", "ingot-tiny").replace("demo", "tiny") for word in words[1:]]
    if args[0] == "run":
        from flows import recipes
        from flows.cli import overrides

        assert recipes.resolve(recipes.tiny(), recipes.tiny(), overrides(args[2:])).version.startswith("v1+")
        return
    if args[0] == "finetune":  # hours of training, from models and sets that are not here
        from flows import recipes
        from flows.cli import overrides

        made = recipes.TUNINGS[args[1]]()
        assert recipes.resolve(made, made, overrides(args[3:])).name == args[1]
        return
    if args[0] == "sweep":
        from flows import recipes, sweep
        from flows.cli import overrides
        from tasks.space import split

        space, fixed = split(overrides(args[2 : args.index("--trials")]))
        assert space and not fixed
        sweep.check(recipes.by_name(words[2]), space)
        return
    if args[0] in ("serve", "lm-eval"):
        from flows import recipes
        from tasks import registry
        from tasks.corpus.manifest import Store

        assert registry.served(Store(tiny_run.store), recipes.tiny().register, args[1]).folder().is_dir()
        return
    said = asked(tiny_run.store, *args)
    assert said.exit_code == 0, said.output
    assert said.output.strip()


def test_mlflow_serve_line_parses():
    words = next(w for w in commands(READMES[0]) if w[:3] == ["mlflow", "models", "serve"])
    done = subprocess.run([sys.executable, "-m", *words[:3], "--help"], capture_output=True, text=True)
    assert all(word in done.stdout for word in words[3:] if word.startswith("--"))
