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
    assert len(quick("train_speed.py", tmp_path)) == 7  # and two more where litgpt is


@pytest.mark.full
def test_a_checkpoint_holds_up_training_both_ways(tmp_path):
    assert len(quick("save_stall.py", tmp_path)) == 4


@pytest.mark.full
@pytest.mark.realdata
def test_both_optimizers_are_compared(tmp_path, realdata):
    assert len(quick("optimizers.py", tmp_path)) == 3


@pytest.mark.full
@pytest.mark.timeout(900)
def test_memory_is_told_for_every_data_stage(tmp_path):
    found = quick("memory.py", tmp_path, "--copies", "1")
    assert [figure["name"].split()[3].rstrip(",") for figure in found] == [
        "ingest", "extract", "filter", "dedup", "decontaminate", "index", "tokenizer", "encode", "pretrain",
    ]  # fmt: skip


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_what_objectives_learn_is_told_with_a_curve_a_run(tmp_path, realdata):
    found = quick("learning.py", tmp_path, "--only", "shakespeare", "words", "--plot", str(tmp_path))
    assert [figure["goal"] for figure in found] == ["< 1.88", "< 1.88", "", ""]
    assert len(list(tmp_path.glob("Shakespeare*.png"))) == 2


def test_masking_is_told_by_kind_and_language(tmp_path):
    names = [figure["name"] for figure in quick("pii_quality.py", tmp_path)]
    assert sum(": recall, " in name for name in names) == 22 and sum(": precision, " in name for name in names) == 12


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_languages_are_told_by_length_and_beside_fasttext(tmp_path, realdata):
    assert any("80 languages, 500 characters" in figure["name"] for figure in quick("language_accuracy.py", tmp_path))


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_the_quality_model_is_told_beside_a_baseline(tmp_path, realdata):
    found = [figure["name"] for figure in quick("quality_model.py", tmp_path)]
    assert any("labels" in name for name in found) and any("unseen" in name for name in found)


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_reading_is_timed_on_warc_and_wet(tmp_path, realdata):
    # the script itself fails where a reader sees other pages
    assert len(quick("warc_speed.py", tmp_path)) == 10


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_what_is_kept_of_chinese_is_told_by_kind(realdata, tmp_path):
    assert {figure["name"].partition(":")[0] for figure in quick("rules_kept.py", tmp_path)} >= {
        "Chinese pages, extracted",
        "Chinese news, true text",
    }


@pytest.mark.full
@pytest.mark.timeout(900)
def test_planted_clusters_of_synthetic_signatures_are_found(tmp_path):
    figures = {figure["name"].split(": ")[1]: figure["value"] for figure in quick("dedup_scale.py", tmp_path, "--plot", str(tmp_path))}
    assert float(figures["recall of planted clusters"]) >= 0.99 and figures["precision"] == "1.0000"
    assert (tmp_path / "dedup_scale.png").stat().st_size > 10_000


@pytest.mark.full
@pytest.mark.timeout(900)
def test_dedup_is_timed_beside_its_peers_and_finds_what_it_should(tmp_path):
    figures = {figure["name"]: figure for figure in quick("dedup_speed.py", tmp_path, "--passes")}
    assert figures["recall at .80 to .85, ours"]["met"]
    assert any(name.startswith("dedup parquet to parquet, 60 documents: ours : ") for name in figures)


@pytest.mark.full
@pytest.mark.realdata
@pytest.mark.timeout(900)
def test_a_refresh_finds_what_is_planted_and_its_cost_is_told(realdata, tmp_path):
    tool = realdata.parent / "tools" / "make_mirror.py"
    subprocess.run([sys.executable, str(tool), "--data", str(realdata), "--out", str(tmp_path / "mirror")], check=True, capture_output=True)
    found = {figure["name"]: figure for figure in quick("refresh.py", tmp_path, str(tmp_path / "mirror"))}
    assert [figure["met"] for name, figure in found.items() if "similar enough" in name] == [True, True]
    assert any("CPU seconds" in name for name in found) and any("look-up" in name for name in found)


@pytest.mark.full
def test_a_server_answers_many_at_once_as_it_answers_one(tmp_path):
    found = {figure["name"]: figure for figure in quick("serve_load.py", tmp_path, "--clients", "4")}
    assert found["serve tiny: answers in company that equal those alone"]["met"] and len(found) == 3


@pytest.mark.full
def test_decoders_race_with_the_same_tokens(tmp_path):
    # the script itself fails where fp32 writes other tokens
    assert [figure["met"] is None for figure in quick("decode_speed.py", tmp_path)] == [True, False, False, False, False]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_encoders_race_with_the_same_ids_and_the_stage_gives_the_same_shards(tmp_path):
    found = {figure["name"]: figure for figure in quick("encode_speed.py", tmp_path)}
    other = [figure for name, figure in found.items() if "other ids" in name]
    assert len(other) >= 2 and all(figure["met"] for figure in other)
    assert "encode stage, parquet to shards" in found


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_table_of_the_corpus_engine_has_the_figures_of_its_scripts(tmp_path):
    found = [figure["name"] for figure in quick("corpus.py", tmp_path, "--only", "corpus_cost")]
    assert "whole chain: CPU-hours a TB of raw HTML" in found


def test_the_table_leaves_out_what_is_not_there_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HERE)
    corpus = load("corpus")
    monkeypatch.setattr(corpus, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["corpus.py", "--only", "warc_speed", "--json", str(tmp_path / "out.json")])
    corpus.main()
    assert "left out: warc_speed.py: not in this tree" in capsys.readouterr().out and json.loads((tmp_path / "out.json").read_text()) == []


def test_the_table_names_a_script_that_failed_and_keeps_the_figures_of_the_others(tmp_path, monkeypatch, capsys):
    corpus = load("corpus")
    (tmp_path / "warc_speed.py").write_text("raise SystemExit(3)")
    figure = {"name": "speed", "value": "7", "goal": "≥ 9", "met": False}
    (tmp_path / "dedup_speed.py").write_text(f"import pathlib, sys\npathlib.Path(sys.argv[-1]).write_text({json.dumps([figure])!r})")
    monkeypatch.setattr(corpus, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["corpus.py", "--only", "warc_speed", "dedup_speed"])
    with pytest.raises(SystemExit, match=r"failed: warc_speed.py \(3\)"):
        corpus.main()
    assert "missed: speed: 7, goal ≥ 9" in (said := capsys.readouterr().out) and "0 of 1 goals met" in said


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_workers_are_told_beside_one(tmp_path):
    assert [figure["name"].split()[0] for figure in quick("engine_scaling.py", tmp_path)] == ["extract", "extract", "filter", "filter"]
