"""lm-evaluation-harness over a model directory: a shared task has the score that model/evaluate.py gives it, and generations are generate's."""

import json

import models
import pytest
from chain import asked

from model import evaluate, families, generate, tokenizer
from model.evaluate import read_choices, read_pairs

lm_eval = pytest.importorskip("lm_eval")
CHOICE, PAIRS = models.EVAL / "choice" / "facts_en.jsonl", models.EVAL / "blimp" / "determiner_noun_agreement.jsonl"
TASKS = {
    "facts": {
        "data": CHOICE,
        "doc_to_text": "{{query.rstrip() + ('\\nAnswer:' if query.startswith('Question:') else '')}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": " ",
    },
    "pairs": {
        "data": PAIRS,
        "doc_to_text": "",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory of random weights, and task files beside it."""
    place = tmp_path_factory.mktemp("lm-eval")
    models.weights(place / "model", 1)
    (place / "tasks").mkdir()
    for name, settings in TASKS.items():
        task = settings | {
            "task": f"ingot_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(settings["data"])}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "metric_list": [{"metric": "acc"}],
        }
        del task["data"]
        (place / "tasks" / f"{name}.yaml").write_text(json.dumps(task))
    return place


def test_a_shared_task_has_the_same_score(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, words = families.load(folder / "model"), tokenizer.load(folder / "model")
    choice = evaluate.multiple_choice(model, words, {"facts": read_choices(CHOICE)})["choice/facts"]
    pairs = evaluate.minimal_pairs(model, words, {"pairs": read_pairs(PAIRS)})["minimal_pairs/pairs"]
    said = asked(tmp_path, "lm-eval", str(folder / "model"), "ingot_facts", "ingot_pairs", "--include", str(folder / "tasks"))
    assert said.exit_code == 0, said.output
    rows = {
        line.split()[0]: line.split()[2] for line in said.output.splitlines() if line.startswith(" ingot_") or line.startswith("ingot_")
    }
    assert rows == {"ingot_facts": f"{choice:.4f}", "ingot_pairs": f"{pairs:.4f}"} and 0 < choice < 1


def test_requests_are_answered_as_generate_and_the_likelihoods_of_windows_say(folder):
    from lm_eval.api.instance import Instance

    from deploy.lm_eval_model import Model

    def instances(kind, *arguments):
        return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]

    made = Model(folder / "model")
    [one] = generate.generate(made.model, made.tokenizer, [tokenizer.encode(made.tokenizer, "the lamp")], 12, stop_ids=(0,))
    written = made.generate_until(
        instances("generate_until", ("the lamp", {"max_gen_toks": 12}), ("the lamp", {"max_gen_toks": 12, "until": [one.text[3]]}))
    )
    assert written == [one.text, one.text[:3]] or (written[0] == one.text and one.text[3] not in written[1])
    ids = tokenizer.encode(made.tokenizer, one.text)
    [(_, greedy), (_, other)] = made.loglikelihood(instances("loglikelihood", ("the lamp", one.text), ("the lamp", " zzz")))
    assert greedy == (ids == one.ids) and not other
    text = "the lamp of the lighthouse " * 40
    [rolled] = made.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    bits = evaluate.bits_per_byte(made.model, made.tokenizer, [{"text": text}])["bits_per_byte"] * len(text)
    assert rolled == pytest.approx(-bits * 0.6931, rel=0.01)  # which also counts the end of the text


def test_an_unknown_task_is_named(folder, tmp_path):
    said = asked(tmp_path, "lm-eval", str(folder / "model"), "no_such_task")
    assert said.exit_code == 1 and "has no task 'no_such_task'" in str(said.exception)
