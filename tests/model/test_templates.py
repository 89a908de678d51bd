"""Properties of model/templates.py: queries word for word, answers back to labels, and scores that are the model's own log-likelihoods."""

import numpy as np
import pytest
import torch

from model import templates
from model.config import qwen3
from model.errors import ConfigError, InputError
from model.templates import TEMPLATES, Template, by_name, rate
from model.tokenizer import encode, train, vocab_size
from model.transformer import Transformer

LABELS = ("card_arrival", "card_lost", "top_up")


def test_a_few_shot_query_is_whole_examples_and_ends_where_the_answer_begins():
    row, shots = {"text": "Where is it?"}, [{"text": "I lost it", "label": "card_lost"}]
    assert by_name("intent_en").query(row, LABELS, shots) == "Customer: I lost it\nIntent: card lost\n\nCustomer: Where is it?\nIntent:"
    zh = Template("t", "zh", "问：{question}\n{context}\n答：", "{answer}")
    assert zh.query({"question": "谁？", "context": "灯塔。"}) == "问：谁？\n灯塔。\n答："
    assert zh.messages({"question": "谁？", "context": "灯塔。", "answers": [{"text": "灯", "start": 0}]})[1] == {
        "role": "assistant",
        "content": "灯",
    }
    listed = by_name("intent_list_en").query(row, LABELS)
    assert "card arrival, card lost, top up." in listed


@pytest.mark.parametrize(
    ("answer", "label"),
    [("Card arrival.", "card_arrival"), (" top-up, please", "top_up"), ("The intent is card lost", "card_lost"), ("card", None), ("card lost or top up?", "card_lost"),
     ("it is a card lost or a top up", None), ("", None), ("card_arrival\nCustomer: card lost", "card_arrival")],
)  # fmt: skip
def test_an_answer_means_the_label_whose_words_it_says(answer, label):
    assert by_name("intent_en").parse(answer, LABELS) == label


def test_every_template_parses_what_it_says_and_the_verbaliser_is_used_both_ways():
    for template in TEMPLATES.values():
        for label in LABELS:
            assert template.parse(template.said({"label": label}), LABELS) == label
    own = Template("t", "zh", "{text}", "{answer}", {"pos": "好评", "neg": "差评"})
    assert own.said({"label": "pos"}) == "好评" and own.parse("差评。", ("pos", "neg")) == "neg"
    with pytest.raises(ConfigError, match="no words for label 'other'"):
        own.said({"label": "other"})


def test_unknown_names_and_missing_fields_are_named():
    with pytest.raises(ConfigError, match="intent_en"):
        by_name("intents")
    with pytest.raises(InputError, match="'question'.*'r7'"):
        by_name("question_en").query({"id": "r7", "context": "x"})


def test_a_rating_is_the_log_probability_of_the_words_after_the_query():
    tokenizer = train(["Customer: where is my card? Intent: card lost"] * 4, 512)
    model = Transformer(qwen3(width=16, layers=1, heads=2, kv_heads=1, ffn_width=16, context=64), vocab_size(tokenizer))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    template, rows = by_name("intent_en"), [{"text": "my card?"}, {"text": "where is it"}]
    found = rate(model, tokenizer, template, rows, LABELS)
    assert found.shape == (2, 3)
    query = encode(tokenizer, template.query(rows[1]))
    words = encode(tokenizer, " top up")
    with torch.no_grad():
        logs = model(torch.tensor([[*query, *words]]))[0].log_softmax(-1)
    expected = sum(float(logs[len(query) - 1 + n, word]) for n, word in enumerate(words))
    assert found[1, 2] == pytest.approx(expected, abs=1e-4)
    empty = rate(model, tokenizer, template, [{"text": "N/A"}], LABELS)
    np.testing.assert_allclose(templates.contextual(empty, empty[0]), 0)
