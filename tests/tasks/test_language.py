"""Language identification: right on plain texts of many languages, Cantonese and Classical Chinese apart, sure of nothing without letters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.corpus.language import detect

TEXTS = {
    "en": "The keeper climbs the tower every evening and lights the lamp so that ships can find the harbour.",
    "zh": "今天天气很好，我们去公园散步，孩子们在湖边放风筝，大家都很高兴。",
    "fr": "Le gardien monte chaque soir dans la tour et allume la lampe pour que les navires trouvent le port.",
    "de": "Der Wärter steigt jeden Abend auf den Turm und zündet die Lampe an, damit die Schiffe den Hafen finden.",
    "es": "El guardián sube cada noche a la torre y enciende la lámpara para que los barcos encuentren el puerto.",
    "ru": "Смотритель каждый вечер поднимается на башню и зажигает лампу, чтобы корабли нашли гавань.",
    "ja": "灯台守は毎晩塔に登り、船が港を見つけられるようにランプに火をともします。",
    "yue": "佢哋喺香港食咗好多嘢，真係好好味呀，我哋聽日再去嗰度睇吓有冇其他嘢食。",
    "lzh": "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？曾子曰：吾日三省吾身。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_plain_sentences_are_recognised(code):
    assert detect(TEXTS[code])[0] == code


def test_han_characters_without_kana_are_never_japanese():
    assert detect("加微信领取优惠券，" * 60)[0] == "zh"
    assert detect(TEXTS["ja"])[0] == "ja"


def test_every_sample_article_has_its_language(sample):
    wrong = []
    for line in (sample / "eval" / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if detect(row["text"])[0] != row["language"]:
            wrong.append(row["id"])
    assert wrong == []


@pytest.mark.parametrize("text", ["", "   ", "123 456 !!!", "\n"])
def test_without_letters_there_is_no_language(text):
    assert detect(text) == ("", 0.0)


def test_a_text_that_changes_language_is_less_sure():
    assert detect(TEXTS["en"] * 9 + TEXTS["ru"] * 9)[1] < detect(TEXTS["en"] * 18)[1] - 0.2


@given(st.text(max_size=2000))
def test_any_text_has_a_score_between_0_and_1(text):
    code, score = detect(text)
    assert 0 <= score <= 1 and isinstance(code, str)
