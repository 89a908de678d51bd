"""The assess task: how well a tuned model does on its held-out examples, with a baseline beside each score.

Tuned model, the model it started from and the examples in; metrics.json and predictions.jsonl out. A score stands under its measure, those of others
under measure/other: accuracy, accuracy/majority, accuracy/tfidf, accuracy/zero_shot/intent_en; answer_loss, answer_loss/start.

| objective | measures | beside them |
|---|---|---|
| labels | accuracy, macro_f1 | majority, tfidf (with logistic regression), the start by each template of prompts.rated, zero- and few-shot |
| answers | exact_match, answer_f1 | sentence: the one most like the question |
| preference | accuracy: pairs with the chosen answer more probable | start |
| causal | answer_loss, nats a token; with a trained template accuracy, parsed | start; majority, tfidf |
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from prefect import task
from pydantic import Field

from model.config import STRICT, TrainConfig, resource
from model.errors import EmptyError
from model.metrics import accuracy, answer_f1, exact_match, macro_f1
from model.templates import TEMPLATES, by_name, rate
from tasks import policy
from tasks.corpus import baselines
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage
from tasks.evaluate import model_directory
from tasks.report import ended, watch
from tasks.train import examples, labels_of

ASSESS = Stage("assess", 1)
Rows = Sequence[Mapping[str, Any]]
Metrics = dict[str, float]
Models = Mapping[str, tuple[Any, Any]]
"""model and start → model and tokenizer."""


@dataclass(frozen=True)
class PromptsConfig:
    """Tasks in words."""

    __pydantic_config__ = STRICT

    trained: str
    """Template that makes chats of labelled texts or questions, to tune on with objective causal; '' for none. Names: model/templates.py."""
    rated: tuple[str, ...]
    """Templates by which the model before tuning is rated on labelled texts; none without such examples, or for an encoder."""
    shots: Annotated[int, Field(ge=0)]
    """Training examples shown before the question, the rating beside the zero-shot one; 0 for none."""
    items: Annotated[int, Field(ge=0)]
    """Most held-out examples that are rated so: each costs a pass a label."""
    batch: Annotated[int, Field(ge=1)] = resource()
    """Sequences in one forward pass."""

    def __post_init__(self) -> None:
        for name in (*self.rated, *filter(None, (self.trained,))):
            if name not in TEMPLATES:
                raise ValueError(f"no template {name!r}; templates are {', '.join(TEMPLATES)}")


@dataclass(frozen=True)
class AssessConfig:
    """What decides the scores beside model and examples."""

    objective: str
    length: int
    prompts: PromptsConfig


@task(name="assess", **policy.COMPUTE)
def assess(
    store: Store, recipe: str, train: TrainConfig, prompts: PromptsConfig, inputs: Mapping[str, Manifest], rebuild: bool = False
) -> Manifest:
    """Score a tuned model on held-out examples. Inputs: model, start, examples."""
    config = AssessConfig(train.objective.kind, train.length, prompts)
    with watch("assess") as progress:
        return ended(run_stage(store, ASSESS, recipe, config, inputs, lambda work: score(work, config), progress, rebuild=rebuild))


def score(work: Work, config: AssessConfig) -> Result:
    """The stage's body. EmptyError without held-out examples."""
    import torch

    from model.families import load
    from model.tokenizer import load as load_tokenizer

    rows = list(examples(work.store, work.inputs["examples"], config.objective, config.prompts.trained))
    train, held = ([row for row in rows if row["split"] == split] for split in ("train", "valid"))
    if not held:
        raise EmptyError(f'{work.inputs["examples"].address} holds out no example: give some rows "split": "valid".')
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folders = {role: model_directory(work.store, work.inputs[role]) for role in ("model", "start")}
    pairs = {role: (load(folder, device), load_tokenizer(folder)) for role, folder in folders.items()}
    scorer = {"labels": _labels, "answers": _answers, "preference": _preferences, "causal": _chats}[config.objective]
    metrics, said = scorer(pairs, train, held, config)
    work.progress(1, 1, "parts")
    (work.dir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    lines = [json.dumps({"id": row["id"], "said": one}, ensure_ascii=False) + "\n" for row, one in zip(held, said, strict=True)]
    (work.dir / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    return Result([("metrics.json", None), ("predictions.jsonl", None)], len(held), len(held), {}, {"metrics": metrics})


def _labels(pairs: Models, train: Rows, held: Rows, config: AssessConfig) -> tuple[Metrics, list[Any]]:
    from model.heads import classify

    model, tokenizer = pairs["model"]
    scores_NL = classify(model, tokenizer, held, config.prompts.batch)
    said = [model.config.labels[number] for number in scores_NL.argmax(1)]
    start, tokenizer = pairs["start"]
    more = _rated(start, tokenizer, train, held, config) if start.config.kind == "decoder" else {}
    return _named({"": said} | _guessed(train, held), held) | more, said


def _guessed(train: Rows, held: Rows) -> dict[str, list[str]]:
    """What the baselines say."""
    texts, labels = [_text(row) for row in train], [row["label"] for row in train]
    return {"/majority": baselines.majority(labels, len(held)), "/tfidf": baselines.tfidf(texts, labels, [_text(row) for row in held])}


def _named(said: Mapping[str, Sequence[Any]], held: Rows) -> Metrics:
    truth = [row["label"] for row in held]
    return {f"{measure.__name__}{who}": measure(truth, told) for who, told in said.items() for measure in (accuracy, macro_f1)}


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(filter(None, (row["text"], row.get("text_b"))))


def _rated(start: Any, tokenizer: Any, train: Rows, held: Rows, config: AssessConfig) -> Metrics:
    """Of the start, by each template: zero-shot, and with the first training examples of different labels before the question."""
    labels, some = labels_of("labels", list(map(dict, train))) or [], held[: config.prompts.items]
    first = {row["label"]: row for row in reversed(train)}
    shots = [first[label] for label in labels[:: max(1, len(labels) // max(1, config.prompts.shots))]][: config.prompts.shots]
    metrics: Metrics = {}
    for name in config.prompts.rated if some else ():
        for how, shown in (("zero_shot", []), ("few_shot", shots)):
            if how == "few_shot" and not shown:
                continue
            scores_NL = rate(start, tokenizer, by_name(name), some, labels, shown, config.prompts.batch)
            metrics |= _named({f"/{how}/{name}": [labels[number] for number in scores_NL.argmax(1)]}, some)
    return metrics


def _answers(pairs: Models, train: Rows, held: Rows, config: AssessConfig) -> tuple[Metrics, list[Any]]:
    from model.heads import extract

    model, tokenizer = pairs["model"]
    found = [answer["text"] for answer in extract(model, tokenizer, held, config.length, config.prompts.batch)]
    sentences = [baselines.likeliest_sentence(row["context"], row["question"]) for row in held]
    truth = [[answer["text"] for answer in row["answers"]] for row in held]
    metrics = {
        f"{measure.__name__}{who}": sum(map(measure, said, truth)) / len(held)
        for who, said in (("", found), ("/sentence", sentences))
        for measure in (exact_match, answer_f1)
    }
    return metrics, found


def _preferences(pairs: Models, train: Rows, held: Rows, config: AssessConfig) -> tuple[Metrics, list[Any]]:
    metrics: Metrics = {}
    right: dict[str, list[bool]] = {}
    for role, who in (("start", "/start"), ("model", "")):
        chats = [[*row["messages"], {"role": "assistant", "content": row[answer]}] for row in held for answer in ("chosen", "rejected")]
        sums = [total for total, _ in _judged(*pairs[role], chats, config)]
        right[who] = [chosen > rejected for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]
        metrics[f"accuracy{who}"] = sum(right[who]) / len(held)
    return metrics, ["chosen" if one else "rejected" for one in right[""]]


def _chats(pairs: Models, train: Rows, held: Rows, config: AssessConfig) -> tuple[Metrics, list[Any]]:
    metrics: Metrics = {}
    said: list[Any] = []
    for role, who in (("start", "/start"), ("model", "")):
        judged = _judged(*pairs[role], [row["messages"] for row in held], config)
        metrics[f"answer_loss{who}"] = -sum(total for total, _ in judged) / max(1, sum(count for _, count in judged))
        said = [{"log_probability": total, "tokens": count} for total, count in judged]
    if not config.prompts.trained or "label" not in held[0]:
        return metrics, said
    template, labels = by_name(config.prompts.trained), labels_of("labels", list(map(dict, train))) or []
    answers = _written(*pairs["model"], [row["messages"][:1] for row in held], config)
    meant = [template.parse(answer, labels) for answer in answers]
    metrics |= (
        _named({"": meant}, held) | _named(_guessed(train, held), held) | {"parsed": sum(one is not None for one in meant) / len(held)}
    )
    return metrics, answers


def _judged(model: Any, tokenizer: Any, chats: Sequence[Any], config: AssessConfig) -> list[tuple[float, int]]:
    """Log-probability of each chat's last answer and how many tokens that is, its end included. A chat too long for the model loses its beginning."""
    from model.evaluate import log_likelihoods
    from model.tokenizer import render

    pieces = []
    for chat in chats:
        while chat and chat[-1]["role"] != "assistant":
            chat = chat[:-1]
        ids, mask = render(chat, tokenizer)
        end = len(mask) - mask[::-1].index(True)
        before = next((place for place in range(end - 1, -1, -1) if not mask[place]), -1)
        cut = max(0, end - model.room)
        pieces.append((tuple(ids[cut:end]), max(1, before + 1 - cut)))
    totals = log_likelihoods(model, tokenizer, pieces, config.prompts.batch)
    return [(total, len(ids) - first) for total, (ids, first) in zip(totals, pieces, strict=True)]


def _written(model: Any, tokenizer: Any, chats: Sequence[Any], config: AssessConfig) -> list[str]:
    """Greedy answers, at most 32 tokens."""
    from model.generate import generate
    from model.tokenizer import render

    room, said = model.room - 32, []
    for lo in range(0, len(chats), config.prompts.batch):
        prompts = [render(chat, tokenizer, answer=True)[0][-room:] for chat in chats[lo : lo + config.prompts.batch]]
        said += [written.text for written in generate(model, tokenizer, prompts, 32)]
    return said
