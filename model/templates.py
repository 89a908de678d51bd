"""Named prompt templates: examples as questions in words, their labels as answers in words, answers back as labels. English and Chinese.

    template = TEMPLATES["intent_en"]
    template.messages(row, labels)                                  # a chat to train on (model/finetune.py)
    template.query(row, labels, shots)                              # a plain text to continue, zero- or few-shot
    template.parse("Card arrival.", labels)                         # "card_arrival"
    scores_NL = rate(model, tokenizer, template, rows, labels)      # log-likelihood of each label's words after each query

A query ends where the answer begins; shots are whole queries with their answers, a blank line between them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.transformer import Transformer

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """One way to put a task into words."""

    name: str
    language: str
    text: str
    """The query: {text}, {text_b}, {context} and {question} are the row's fields, {labels} the words of all labels."""
    answer: str = " {answer}"
    """How an answer follows the query, its space included where the language has one."""
    words: Mapping[str, str] | None = None
    """Verbaliser: label → its words; None: the label itself, _ as a space."""
    joint: str = ", "
    """Between the words of {labels}."""

    def verbalise(self, label: str) -> str:
        """The words of a label. ConfigError for one that the verbaliser lacks."""
        if self.words is None:
            return label.replace("_", " ")
        if label not in self.words:
            raise ConfigError(f"template {self.name} has no words for label {label!r}; it has some for {', '.join(self.words)}")
        return self.words[label]

    def query(self, row: Row, labels: Sequence[str] = (), shots: Sequence[Row] = ()) -> str:
        """The text whose continuation is the answer, behind `shots` that have theirs. InputError names a field that a row lacks."""
        parts = [self._filled(shot, labels) + self.answer.format(answer=self.said(shot)) for shot in shots]
        return "\n\n".join([*parts, self._filled(row, labels)])

    def messages(self, row: Row, labels: Sequence[str] = ()) -> list[dict[str, str]]:
        """The query and its answer as a chat."""
        return [{"role": "user", "content": self._filled(row, labels)}, {"role": "assistant", "content": self.said(row)}]

    def said(self, row: Row) -> str:
        """The answer of a row in words: of its label, or the first of its `answers`."""
        return self.verbalise(row["label"]) if "label" in row else row["answers"][0]["text"]

    def parse(self, answer: str, labels: Sequence[str]) -> str | None:
        """The label that an answer means: the one whose words it begins with, the longest of several; else the only one that it holds.

        Case, spaces and signs around do not count. None for an answer that means no label, or several.
        """
        said = _plain(answer.strip().split("\n")[0])
        words = {label: _plain(self.verbalise(label)) for label in labels}
        begun = [label for label in labels if said.startswith(words[label])]
        if begun:
            return max(begun, key=lambda label: len(words[label]))
        held = [label for label in labels if words[label] in said]
        widest = max(held, key=lambda label: len(words[label]), default=None)
        return widest if widest and all(words[label] in words[widest] for label in held) else None

    def _filled(self, row: Row, labels: Sequence[str]) -> str:
        try:
            return self.text.format_map({**row, "labels": self.joint.join(map(self.verbalise, labels))})
        except KeyError as error:
            raise InputError(
                f"template {self.name} needs {error.args[0]!r}, which row {row.get('id', '')!r} lacks; choose another"
            ) from None


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()


TEMPLATES = {
    template.name: template
    for template in (
        Template("intent_en", "en", "Customer: {text}\nIntent:"),
        Template("intent_list_en", "en", "Choose the intent of the message from: {labels}.\nMessage: {text}\nIntent:"),
        Template("about_en", "en", "{text}\nThis message is about"),
        Template("intent_zh", "zh", "顾客：{text}\n意图：", "{answer}", joint="、"),
        Template("intent_list_zh", "zh", "从下列意图中选择一个：{labels}。\n消息：{text}\n意图：", "{answer}", joint="、"),
        Template("question_en", "en", "{context}\n\nQuestion: {question}\nAnswer:"),
        Template("question_zh", "zh", "{context}\n\n问题：{question}\n答案：", "{answer}"),
        Template("ask_zh", "zh", "阅读下文，用原文中的词语回答。\n{context}\n{question}\n", "{answer}"),
    )
}


def by_name(name: str) -> Template:
    """The template of a name. ConfigError lists the names there are."""
    if name not in TEMPLATES:
        raise ConfigError(f"no template {name!r}; templates are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def rate(
    model: "Transformer",
    tokenizer: "Tokenizer",
    template: Template,
    rows: Sequence[Row],
    labels: Sequence[str],
    shots: Sequence[Row] = (),
    batch: int = 32,
) -> np.ndarray:
    """Summed log-likelihood of each label's words behind each row's query, [N, L], nats. A query that leaves no room loses its beginning.

    InputError if a label's words alone fill the context.
    """
    from model.evaluate import log_likelihoods
    from model.tokenizer import encode

    answers = [encode(tokenizer, template.answer.format(answer=template.verbalise(label))) for label in labels]
    longest, context = max(map(len, answers)), model.room
    if longest >= context:
        raise InputError(f"the words of a label have {longest:,} tokens, the model's context {context:,}; give it shorter words")
    pieces = []
    for row in rows:
        query = encode(tokenizer, template.query(row, labels, shots))[-(context - longest) :]
        pieces += [((*query, *answer), max(1, len(query))) for answer in answers]
    return np.array(log_likelihoods(model, tokenizer, pieces, batch)).reshape(len(rows), len(labels))


def contextual(scores_NL: np.ndarray, empty_L: np.ndarray) -> np.ndarray:
    """Scores less those behind an empty input, so that words likely anywhere gain nothing by it (Zhao et al. 2021, "Calibrate before use")."""
    return scores_NL - empty_L
