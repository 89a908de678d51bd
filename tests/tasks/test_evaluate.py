"""The evaluate stage: it scores the sample's evaluation sets, its books balance, and a broken file is named."""

import json
import math

import models
import pytest
import torch

from model.errors import EmptyError, InputError, NonFiniteError
from tasks import evaluate
from tasks.corpus.manifest import run_stage


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    from tasks.corpus.manifest import Store

    folder = tmp_path_factory.mktemp("evaluate")
    store = Store(folder / "store")
    return store, models.chain(store, folder)


def run(store, stages, evaluation, base="pretrain", model="finetune"):
    inputs = {"model": stages[model], "base": stages[base], "evaluation": evaluation}
    return run_stage(store, evaluate.EVALUATE, "test", models.EVALUATE, inputs, lambda work: evaluate.score(work, models.EVALUATE))


def test_the_samples_evaluation_files_are_all_scored_and_the_books_balance(stages):
    store, made = stages
    files = {f"eval/{path.relative_to(models.EVAL)}": path.read_bytes() for path in models.EVAL.rglob("*") if path.is_file()}
    done = run(store, made, models.evaluation(store, files))
    metrics = done.info["metrics"]
    items = sum(1 for path in models.EVAL.rglob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines() if line)
    assert done.seen == items + len(models.EVALUATE.samples) and done.kept == done.seen - done.rejected.get("too_long", 0)
    sets = {path.stem for path in models.EVAL.glob("*/*.jsonl")}
    assert sets == {name.split("/")[1] for name in metrics if name.startswith(("minimal_pairs/", "choice/"))}
    assert {"bits_per_byte", "bits_per_byte/zh", "tuned/bits_per_byte", "minimal_pairs", "choice", "samples/stopped"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values()) and metrics.keys() > done.info["stderr"].keys() >= {"choice"}
    folder = store.dir(done.address)
    assert [s["prompt"] for s in json.loads((folder / "samples.json").read_text())] == list(models.EVALUATE.samples)
    assert json.loads((folder / "metrics.json").read_text()).items() > metrics.items()


def test_items_longer_than_the_context_are_counted_as_rejected(stages):
    store, made = stages
    pair = {"sentence_good": "a lamp", "sentence_bad": "lamp a"}
    long = {"sentence_good": "x" * 900, "sentence_bad": "y" * 900}
    files = {"heldout.jsonl": '{"text": "the lamp"}\n', "blimp/a.jsonl": "".join(json.dumps(row) + "\n" for row in (pair, long, pair))}
    done = run(store, made, models.evaluation(store, files))
    assert (done.seen, done.rejected) == (1 + 3 + 2, {"too_long": 1})


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("blimp/a.jsonl", '{"sentence_good": "x"}\n', InputError, r"blimp/a\.jsonl line 1: sentence_bad"),
        ("choice/a.jsonl", '{"query": "q", "choices": ["a", "b"], "gold": 2}\n', InputError, r"choice/a\.jsonl item 1: choices"),
        ("choice/a.jsonl.gz", b"not gzip", InputError, r"choice/a\.jsonl\.gz line 0"),
        ("heldout-b.jsonl", '{"text": "x"}\n{"text"', InputError, r"heldout-b\.jsonl line 2"),
        ("heldout-b.jsonl", "", InputError, r"heldout-b\.jsonl is empty"),
        ("pairs/a.jsonl", "{}\n", InputError, r"pairs/a\.jsonl .* no known kind: put it into a folder blimp/"),
        ("more/heldout.jsonl", '{"text": "x"}\n', InputError, "two heldout files named heldout"),
    ],
)
def test_a_broken_file_is_an_error_that_names_file_and_line(stages, name, content, error, said):
    store, made = stages
    with pytest.raises(error, match=said):
        run(store, made, models.evaluation(store, {"heldout.jsonl": '{"text": "the lamp"}\n', name: content}))


def test_no_held_out_documents_is_an_error(stages):
    store, made = stages
    with pytest.raises(EmptyError, match=r"no heldout\*\.jsonl"):
        run(store, made, models.evaluation(store, {"README.md": "# about"}))


def test_a_line_separator_inside_a_text_does_not_end_the_line(stages):
    store = stages[0]
    text = json.dumps({"text": "one\u2028two"}, ensure_ascii=False)
    assert evaluate.questions(store, models.evaluation(store, {"heldout.jsonl": text})).documents == [{"text": "one\u2028two"}]


def test_a_stage_without_weights_is_refused_as_model(stages):
    store, made = stages
    with pytest.raises(InputError, match="stages/encode/.* holds no model"):
        run(store, made, models.evaluation(store), base="encode")


def test_diverged_weights_do_not_pass(stages, monkeypatch):
    store, made = stages
    from model import families

    def broken(folder, device):
        model = load(folder, device)
        torch.nn.init.constant_(model.embed.weight, math.nan)
        return model

    load = families.load
    monkeypatch.setattr(families, "load", broken)
    with pytest.raises(NonFiniteError, match="bits_per_byte.* is nan"):
        run(store, made, models.evaluation(store, {"heldout.jsonl": '{"text": "the lamp burns"}\n'}))
