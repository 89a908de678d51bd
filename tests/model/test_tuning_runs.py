"""Properties of fine-tuning runs under torchrun: what is learnt, what stays frozen, what lies in model/ and adapter/ afterwards.

A run takes some 8 s, so that the quick tests have two; the matrix of objectives, adapters, stages, precisions and ranks is `full`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flows import recipes
from model import adapters, families, heads
from model.batches import reference_path
from model.config import Answers, Causal, Labels, Lora, Preference, Run, SoftPrompt, TrainConfig, bert, qwen3, to_dict
from model.errors import ConfigError
from model.evaluate import log_likelihoods
from model.finetune import encode_examples, encode_labelled, encode_preferences, encode_questions
from model.tokenizer import load as load_tokenizer
from model.tokenizer import render, save, train, vocab_size
from model.train import launch
from model.transformer import Transformer

TRAIN = recipes.train(
    40, 8, 64, 1e-2, 3, weight_decay=0.0, valid_every=20, valid_batches=2, save_every=20, micro_batch=4, device="cpu", timeout=120.0
)
DECODER = qwen3(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=96)
ENCODER = bert(width=32, layers=2, heads=4, ffn_width=64, context=96, dropout=0.0)
LORA = Lora("lora", rank=4, alpha=16.0, dropout=0.0, modules=("q", "v", "up"))
PROMPT = SoftPrompt("prompt", 4)
PLACES = ("harbour", "market", "tower", "station")
TEXTS = [f"please show me the way to the {place} {word} now" for place in PLACES for word in ("soon", "again", "today", "early")]


def label_rows() -> list[dict]:
    return [{"text": text, "label": place} for place in PLACES for text in TEXTS if place in text]


def question_rows() -> list[dict]:
    return [
        {"question": "where to?", "context": text, "answers": [{"text": place, "start": text.index(place)}]}
        for text in TEXTS
        for place in PLACES
        if place in text
    ]


def preference_rows() -> list[dict]:
    asked = [{"messages": [{"role": "user", "content": text}], "word": text.split()[8]} for text in TEXTS]
    return [
        {"messages": row["messages"], "chosen": f"to the left {row['word']}", "rejected": f"to the right {row['word']}"} for row in asked
    ]


def chat_rows() -> list[dict]:
    return [
        {"id": text, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "to the left"}]} for text in TEXTS
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """A decoder and an encoder of random weights with their tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    words = train([*TEXTS, "to the left to the right where to?"] * 3, 512)
    for name, config in (("decoder", DECODER), ("encoder", ENCODER)):
        model = Transformer(config, vocab_size(words))
        model.init_weights(3)
        families.save(model, config, model.vocab, folder / name)
        save(words, folder / name)
    save(words, folder / "tokenizer")
    return folder


def tuned(bases: Path, out: Path, kind: str, settings: TrainConfig) -> tuple[list[dict], dict]:
    """Encode, launch, wait: rows of metrics and the final ones."""
    tokenizer, base = load_tokenizer(bases / "tokenizer"), families.load(bases / kind)
    (out / "examples").mkdir(parents=True)
    objective, adapter, prefix = settings.objective, settings.adapter, out / "examples" / "train"
    soft = range(base.vocab, base.vocab + (adapter.tokens if isinstance(adapter, SoftPrompt) else 0))
    labels = None
    if isinstance(objective, Labels):
        labels = sorted(PLACES)
        counts = encode_labelled(label_rows(), tokenizer, prefix, settings.length, labels, kind, soft)
    elif isinstance(objective, Answers):
        labels = ["start", "end"]
        counts = encode_questions(question_rows(), tokenizer, prefix, settings.length, kind, soft)
    elif isinstance(objective, Preference):
        counts = encode_preferences(preference_rows(), tokenizer, prefix, settings.length, soft)
    else:
        counts = encode_examples(chat_rows(), tokenizer, prefix, settings.length, soft)
    assert counts["kept"] == len(TEXTS)
    run = Run(
        data="packed", fingerprint="f" * 64, data_fingerprint="d" * 64, model=adapters.shaped(base.config, labels, adapter), train=settings,
        vocab=base.vocab, shards=(str(prefix),), valid=(str(prefix),), tokenizer=str(bases / "tokenizer"), start=str(bases / kind), out=str(out),
    )  # fmt: skip
    (out / "run.json").write_text(json.dumps(to_dict(run)))
    rows: list[dict] = []
    launch(out / "run.json", settings.ranks, out / "log", settings.timeout, rows.append, out / "cache", env={"OMP_NUM_THREADS": "1"})
    return rows, json.loads((out / "done.json").read_text())["metrics"]


def check_frozen(bases: Path, out: Path, kind: str, settings: TrainConfig) -> None:
    """All of the base that is not a merged matrix or a head has its bytes in model/; the adapter on the base computes what model/ computes."""
    base, model = families.load(bases / kind), families.load(out / "model")
    moved = ("head.", "output.", "pooler.", "prompt.")
    if isinstance(settings.adapter, Lora):
        moved += tuple(f"blocks.{n}.{part}.{name}." for n in (0, 1) for part in ("attention", "ffn") for name in settings.adapter.modules)
    names = [name for name in base.state_dict() if not name.startswith(moved)]
    assert len(names) > 10 and all(torch.equal(base.state_dict()[name], model.state_dict()[name]) for name in names)
    again = adapters.equipped(base, model.config, 99) if base.config != model.config else base
    adapters.load(again, out / "adapter")
    tokens = torch.tensor([[*model.soft, *range(5, 25)]])
    torch.testing.assert_close(again.eval()(tokens), model.eval()(tokens), atol=1e-5, rtol=1e-5)
    assert sum(file.stat().st_size for file in (out / "adapter").iterdir()) < sum(f.stat().st_size for f in (out / "model").glob("model*"))


def test_a_classifier_learns_beside_a_frozen_encoder_and_answers_by_name(bases, tmp_path):
    settings = replace(TRAIN, objective=Labels("labels"), adapter=LORA, ranks=2, micro_batch=2, zero=2, steps=120, lr=2e-2)
    rows, metrics = tuned(bases, tmp_path, "encoder", settings)
    assert metrics["valid_accuracy"] == 1.0 and rows[0]["loss"] == pytest.approx(np.log(4), abs=0.1)
    assert metrics["trained_parameters"] < metrics["parameters"] / 2
    check_frozen(bases, tmp_path, "encoder", settings)
    model = families.load(tmp_path / "model")
    scores = heads.classify(model, load_tokenizer(tmp_path / "model"), label_rows())
    assert [model.config.labels[n] for n in scores.argmax(1)] == [row["label"] for row in label_rows()]


def test_preferences_are_learnt_beside_a_frozen_decoder_and_the_start_s_judgement_is_kept(bases, tmp_path):
    settings = replace(TRAIN, objective=Preference("preference", 0.1), adapter=LORA, length=96, steps=20)
    rows, metrics = tuned(bases, tmp_path, "decoder", settings)
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # at first the policy is the reference
    assert metrics["valid_accuracy"] == 1.0 and metrics["valid_margin"] > 1
    check_frozen(bases, tmp_path, "decoder", settings)
    tokenizer, base = load_tokenizer(bases / "tokenizer"), families.load(bases / "decoder")
    pieces = []
    for row in preference_rows():
        for answer in (row["chosen"], row["rejected"]):
            ids, mask = render([*row["messages"], {"role": "assistant", "content": answer}], tokenizer)
            pieces.append((tuple(ids[: len(mask) - mask[::-1].index(True)]), mask.index(True)))
    expected = log_likelihoods(base, tokenizer, pieces, 8)
    np.testing.assert_allclose(np.load(reference_path(tmp_path / "examples" / "train")), expected, atol=1e-3)


MATRIX = [
    ("decoder", Labels("labels"), None, {"zero": 0}),
    ("decoder", Labels("labels"), PROMPT, {"steps": 120, "lr": 5e-2}),
    ("encoder", Answers("answers"), None, {"zero": 3, "ranks": 2, "micro_batch": 2}),
    ("decoder", Answers("answers"), LORA, {"zero": 3, "ranks": 2, "micro_batch": 2, "steps": 100, "lr": 2e-2}),
    ("decoder", Preference("preference", 0.1), LORA, {"zero": 3, "ranks": 2, "micro_batch": 2, "length": 96}),
    ("decoder", Preference("preference", 0.1), None, {"zero": 2, "precision": "bf16", "length": 96, "checkpointing": True, "lr": 1e-3}),
    ("decoder", Causal("causal"), PROMPT, {"zero": 0, "lr": 5e-2, "steps": 100}),
    ("decoder", Causal("causal"), LORA, {"precision": "bf16", "zero": 3}),
]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "objective", "adapter", "more"), MATRIX)
def test_every_objective_learns_with_and_without_an_adapter_at_every_stage(bases, tmp_path, kind, objective, adapter, more):
    settings = replace(TRAIN, objective=objective, adapter=adapter, **more)
    rows, metrics = tuned(bases, tmp_path, kind, settings)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.03  # beside a frozen model of random weights little can be learnt
    if adapter is not None:
        check_frozen(bases, tmp_path, kind, settings)
    else:
        assert metrics["trained_parameters"] == metrics["parameters"] and not (tmp_path / "adapter").exists()
    if isinstance(objective, Answers):
        model = families.load(tmp_path / "model")
        found = heads.extract(model, load_tokenizer(tmp_path / "model"), question_rows(), settings.length)
        assert np.mean([answer["text"] == row["answers"][0]["text"] for answer, row in zip(found, question_rows(), strict=True)]) > 0.5


@pytest.mark.full
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_run_with_an_adapter_resumes_from_a_checkpoint_that_holds_only_what_trains(bases, tmp_path, zero):
    settings = replace(TRAIN, objective=Labels("labels"), adapter=LORA, zero=zero)
    rows, _ = tuned(bases, tmp_path, "encoder", settings)
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    held = sum(f.stat().st_size for f in (tmp_path / "checkpoints" / "step-00000040").iterdir())
    assert held < 4 * sum(f.stat().st_size for f in (tmp_path / "adapter").iterdir()) + 200_000
    (tmp_path / "done.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000040")
    again: list[dict] = []
    launch(tmp_path / "run.json", 1, tmp_path / "log", settings.timeout, again.append, tmp_path / "cache", env={"OMP_NUM_THREADS": "1"})
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert again[0]["event"] == "resumed" and again[0]["step"] == 20
    assert [row["loss"] for row in again if "loss" in row] == [losses[step] for step in range(21, 41)]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first


def test_an_adapter_without_a_start_and_a_start_of_another_shape_are_refused(bases):
    from model.loop import _start

    run = Run(
        data="packed", fingerprint="f" * 64, data_fingerprint="d" * 64, model=DECODER, train=replace(TRAIN, adapter=LORA), vocab=384,
        shards=(), valid=(), tokenizer=str(bases / "tokenizer"), start=None, out="",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="give the run a start"):
        _start(run)
    with pytest.raises(ConfigError, match="cannot be tuned as"):
        _start(replace(run, start=str(bases / "decoder"), model=replace(DECODER, layers=3)))
