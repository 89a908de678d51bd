"""The benchmarks still run, and record what they print. Their figures are not looked at: a loaded machine has any."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name: str):
    """A script as a module; the folder is on no path, since two files named chain.py would meet there."""
    spec = spec_from_file_location(f"benchmarks_{name}", HERE / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def quick(script: str, folder: Path, *words: str) -> list[dict]:
    """Figures of a smoke run; its failure is the test's, with what it said."""
    left = folder / "figures.json"
    before = (HERE / "RESULTS.md").read_bytes()
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words, "--quick", "--record", "--json", str(left)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (HERE / "RESULTS.md").read_bytes() == before, "a quick run was recorded"
    return json.loads(left.read_text())


def test_a_recorded_row_has_a_cell_for_every_column(tmp_path):
    figures = load("figures")
    path = tmp_path / "RESULTS.md"
    path.write_text((HERE / "RESULTS.md").read_text())
    figures.record(path, [figures.Figure("a | b", "1.0", "≤ 2", True), figures.Figure("c", "3")], "python x.py")
    head = next(line for line in path.read_text().splitlines() if line.startswith("| date"))
    rows = path.read_text().splitlines()[-2:]
    assert [row.count("|") for row in rows] == [head.count("|")] * 2
    assert "a / b" in rows[0] and rows[0].rstrip().endswith("≤ 2, met |")


def test_the_peak_of_a_family_holds_its_children_too(tmp_path):
    figures = load("figures")
    held = "import time; x = bytearray(60 << 20); time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    _, seconds, family = figures.run([sys.executable, "-c", parent], tmp_path, tmp_path / "log", figures.clean_environment())
    assert seconds > 1.4
    assert family.peak > 60 << 20
    assert family.processes == 2


def test_a_failed_command_ends_a_benchmark_with_its_last_words(tmp_path):
    figures = load("figures")
    with pytest.raises(SystemExit, match="out of luck"):
        figures.run([sys.executable, "-c", "raise ValueError('out of luck')"], tmp_path, tmp_path / "log", figures.clean_environment())


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_chain_runs_twice_and_its_time_outside_stages_adds_up(tmp_path):
    names = [figure["name"] for figure in quick("chain.py", tmp_path)]
    assert any("outside stage bodies" in name for name in names) and any("second run" in name for name in names)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_our_loop_and_the_plain_ones_have_the_same_losses(tmp_path):
    # the script itself fails where losses differ
    assert len(quick("train_speed.py", tmp_path)) == 5


@pytest.mark.full
@pytest.mark.timeout(900)
def test_memory_is_told_for_every_data_stage(tmp_path):
    found = quick("memory.py", tmp_path, "--copies", "1")
    assert [figure["name"].split()[3].rstrip(",") for figure in found] == [
        "ingest", "extract", "filter", "dedup", "decontaminate", "index", "tokenizer", "encode", "pretrain",
    ]  # fmt: skip


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_workers_are_told_beside_one(tmp_path):
    assert [figure["name"].split()[0] for figure in quick("engine_scaling.py", tmp_path)] == ["extract", "extract", "filter", "filter"]
