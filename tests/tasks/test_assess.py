"""Properties of tasks/assess.py and its baselines: each score stands beside its baseline and equals one computed by hand."""

import json
from pathlib import Path

import pytest
from models import SHAPE, TEXTS, made

from model import adapters, families, tokenizer
from model.config import bert
from model.errors import ConfigError, EmptyError, InputError
from model.heads import classify
from model.templates import by_name, rate
from model.transformer import Transformer
from tasks import assess
from tasks.assess import ASSESS, AssessConfig, PromptsConfig
from tasks.corpus import baselines
from tasks.corpus.manifest import Manifest, Store, run_stage
from tasks.train import examples, labels_of

ROWS = [
    {"text": f"{word} {n}", "label": label, "split": "valid" if n > 5 else "train"}
    for n in range(8)
    for word, label in (("the lamp", "lamp"), ("灯塔", "tower"))
]
PROMPTS = PromptsConfig("", ("intent_en", "intent_zh"), 2, 3, 8)


def ingested(store: Store, rows: list[dict]) -> Manifest:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return made(store, "ingest", {}, {"a.jsonl": text}, {"role": "examples"}, config=text)


def model_stage(store: Store, folder: Path, stage: str, labels=None, config=SHAPE, seed=0) -> Manifest:
    """A stage with a model of random weights, with a head of `labels` if there are any."""
    words = tokenizer.train(TEXTS, 512)
    model = Transformer(config, tokenizer.vocab_size(words))
    model.init_weights(seed)
    model = adapters.equipped(model, adapters.shaped(config, labels), seed + 1)
    families.save(model, model.config, model.vocab, folder)
    tokenizer.save(words, folder)
    return made(
        store,
        stage,
        {},
        {f"model/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())},
        config=(stage, seed, labels, config.kind),
    )


def scored(store: Store, folder: Path, objective: str, rows: list[dict], labels=None, prompts=PROMPTS, config=SHAPE) -> Manifest:
    inputs = {"start": model_stage(store, folder / "start", "pretrain", config=config), "examples": ingested(store, rows)}
    inputs["model"] = model_stage(store, folder / "model", "finetune", labels, config, 5)
    made_with = AssessConfig(objective, 64, prompts)
    return run_stage(store, ASSESS, "test", made_with, inputs, lambda work: assess.score(work, made_with))


def test_labels_are_scored_beside_majority_tfidf_and_the_start_by_each_template(store, tmp_path):
    manifest = scored(store, tmp_path, "labels", ROWS, ["lamp", "tower"])
    found = manifest.info["metrics"]
    held = [row for row in ROWS if row["split"] == "valid"]
    model, words = families.load(tmp_path / "model"), tokenizer.load(tmp_path / "model")
    said = [model.config.labels[n] for n in classify(model, words, held).argmax(1)]
    assert found["accuracy"] == sum(a == row["label"] for a, row in zip(said, held, strict=True)) / 4
    assert found["accuracy/majority"] == 0.5 and found["accuracy/tfidf"] == 1.0 and found["macro_f1/majority"] == pytest.approx(1 / 3)
    start = families.load(tmp_path / "start")
    expected = rate(start, words, by_name("intent_zh"), held[:3], ["lamp", "tower"]).argmax(1)
    right = [["lamp", "tower"][n] == row["label"] for n, row in zip(expected, held, strict=False)]
    assert found["accuracy/zero_shot/intent_zh"] == pytest.approx(sum(right) / 3) and "accuracy/few_shot/intent_en" in found
    lines = [json.loads(line) for line in (store.dir(manifest.address) / "predictions.jsonl").read_text().splitlines()]
    assert [line["said"] for line in lines] == said and manifest.kept == 4


def test_answers_preferences_and_chats_are_scored_beside_theirs(store, tmp_path):
    context = "The lamp is old. 灯塔很高。 Nobody knows why."
    span = [{"context": context, "question": "灯塔高吗？", "answers": [{"text": "很高", "start": context.index("很高")}], "split": "valid"}]
    found = scored(store, tmp_path / "a", "answers", span, ["start", "end"], config=bert(16, 1, 2, 16, 128, 0.0)).info["metrics"]
    assert (
        found["answer_f1/sentence"] == pytest.approx(2 * 2 / (4 + 2))
        and {"exact_match", "answer_f1", "exact_match/sentence"} <= found.keys()
    )
    asked = [{"role": "user", "content": "what is a lighthouse?"}]
    pairs = [{"messages": asked, "chosen": f"the lamp {n}", "rejected": "a night", "split": "valid"} for n in range(3)]
    found = scored(store, tmp_path / "b", "preference", pairs).info["metrics"]
    assert found.keys() == {"accuracy", "accuracy/start"}
    chats = [{"messages": [*asked, {"role": "assistant", "content": "the lamp"}], "split": "valid"}]
    found = scored(store, tmp_path / "c", "causal", chats).info["metrics"]
    assert found.keys() == {"answer_loss", "answer_loss/start"} and 5 < found["answer_loss"] < 7  # ln 320 of random weights


def test_chats_made_by_a_template_are_scored_as_labels_by_what_the_model_writes(store, tmp_path):
    found = scored(store, tmp_path, "causal", ROWS, prompts=PromptsConfig("intent_en", (), 0, 0, 8)).info["metrics"]
    assert {"accuracy", "macro_f1", "parsed", "accuracy/tfidf", "answer_loss"} <= found.keys() and 0 <= found["parsed"] <= 1
    (row, *_) = examples(store, ingested(store, ROWS), "causal", "intent_en")
    assert row["messages"] == [{"role": "user", "content": "Customer: the lamp 0\nIntent:"}, {"role": "assistant", "content": "lamp"}]


def test_examples_that_an_objective_cannot_use_are_refused_by_name(store):
    labelled = ingested(store, ROWS)
    with pytest.raises(
        InputError, match="a.jsonl:line 1 is an example of shape label; objective causal learns from chat; or name a template"
    ):
        list(examples(store, labelled, "causal"))
    with pytest.raises(InputError, match="objective answers learns from span"):
        list(examples(store, labelled, "answers"))
    with pytest.raises(ConfigError, match="contrastive learns from a corpus"):
        list(examples(store, labelled, "contrastive"))
    with pytest.raises(InputError, match=r"1 label \(lamp\)"):
        labels_of("labels", [row for row in ROWS if row["label"] == "lamp"])


def test_without_held_out_examples_nothing_is_scored(store, tmp_path):
    with pytest.raises(EmptyError, match="holds out no example"):
        scored(store, tmp_path, "labels", [row | {"split": "train"} for row in ROWS], ["lamp", "tower"])


def test_an_unknown_template_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no template 'intents'"):
        PromptsConfig("", ("intents",), 0, 0, 1)


def test_the_likeliest_sentence_shares_most_with_the_question():
    assert baselines.likeliest_sentence("甲很大。灯塔很高！乙。", "灯塔高吗") == "灯塔很高！"
    assert baselines.likeliest_sentence("", "x") == "" and baselines.majority(["b", "a"], 2) == ["a", "a"]
