"""The evaluate stage: it scores the sample's evaluation sets, its books balance, and a broken file is named."""

import json
import math

import models
import pytest
import torch

from model.errors import EmptyError, InputError, NonFiniteError
from tasks import compare, evaluate
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
    assert sets == {name.split("/")[1] for name in metrics if name.startswith(("minimal_pairs/", "choice_2shot/"))}
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
    [row] = evaluate.questions(store, models.evaluation(store, {"heldout.jsonl": text})).documents
    assert row == {"text": "one\u2028two", "item": "heldout/line 1"}


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


def test_every_score_has_bounds_around_it_and_its_items_add_up_to_it(stages):
    store, made = stages
    done = run(store, made, models.evaluation(store, most=20))
    metrics, items = done.info["metrics"], compare.grouped(compare.read_items(store, done))
    for name, rows in items.items():
        assert compare.score(name, rows) == pytest.approx(metrics[name]), name
        assert done.info["low"][name] <= metrics[name] <= done.info["high"][name]
    assert {"bits_per_byte", "tuned/bits_per_byte/zh", "choice_norm", "choice_2shot", "minimal_pairs"} <= done.info["low"].keys()
    assert done.info["low"]["bits_per_byte"] < done.info["high"]["bits_per_byte"]


def test_items_that_were_in_the_corpus_are_left_out_of_the_clean_score(stages):
    store, made = stages
    asked = [{"id": f"q{n}", "query": f"the lamp {n} of", "choices": ["the night", "a lighthouse"], "gold": n % 2} for n in range(8)]
    lines = ["".join(json.dumps(row) + "\n" for row in rows) for rows in (asked, [asked[0], *asked[4:]])]
    for content in lines:  # the second file is what the first one is without q1, q2 and q3
        files = {"heldout.jsonl": '{"text": "the lamp burns"}\n', "choice/facts.jsonl": content}
        evaluation = models.evaluation(store, files)
        found = {"facts": ["q1", "q2", "q3"] if content is lines[0] else [], "heldout": []}
        cleaned = models.made(
            store, "decontaminate", {"dedup": made["dedup"], "evaluation": evaluation}, {"overlaps.json": json.dumps(found)}, config=content
        )
        encode = models.made(store, "encode", {"corpus-000": cleaned, "tokenizer": made["tokenizer"]}, config=content)
        base = models.made(store, "pretrain", {"encode": encode}, models.weights(store.home / content[:9], 5), config=content)
        done = run(store, {**made, "pretrain": base, "finetune": base}, evaluation)
        if content is lines[0]:
            clean, counted = done.info["clean"], json.loads((store.dir(done.address) / "metrics.json").read_text())["choice/facts/clean/n"]
    assert counted == 5 and clean["choice/facts"] == pytest.approx(done.info["metrics"]["choice/facts"]) and "bits_per_byte" not in clean
    assert done.info["clean"] == {}


def test_a_corpus_cleaned_of_other_files_says_nothing_of_what_is_clean(stages):
    store, made = stages
    done = run(store, made, models.evaluation(store))
    assert done.info["clean"] == {} and not any("clean" in name for name in done.info["metrics"])
