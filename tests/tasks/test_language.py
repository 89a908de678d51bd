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


def test_the_score_of_a_mixed_text_is_the_share_of_its_language():
    long = {code: TEXTS[code] * (3000 // len(TEXTS[code])) for code in ("en", "ru")}
    whole = detect(long["en"] * 2)[1]
    code, score = detect(long["en"] + long["ru"][:1500])
    assert code == "en"
    assert abs(score - whole * 2 / 3) < 0.15


def test_navigation_in_another_language_does_not_name_the_page():
    assert detect("Home Products News About us Contact Login Privacy Terms of use Sitemap Search Help " * 5 + TEXTS["zh"] * 60)[0] == "zh"
    assert detect(TEXTS["de"] * 30 + "Home Products News About us Contact Login Privacy Terms of use " * 4)[0] == "de"


VERSE = "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"


def test_classical_verse_in_both_scripts_is_apart_from_modern_prose_about_the_same():
    from tasks.corpus.textnorm import simplify

    assert detect(VERSE)[0] == detect(simplify(VERSE))[0] == "lzh"
    assert detect("诗人在床前看见月光，以为是地上的霜。他抬头望着明亮的月亮，低头思念自己的故乡，这首诗大家都学过。")[0] == "zh"


@pytest.mark.parametrize(
    "text",
    [
        "造之「醬油瓜子」檢出環己基磺醯胺酸鹽與糖精超量，衛生局已要求販賣業者下架",
        "449大卡。衛生局指出，若不吃蹄膀豬皮與醬汁，熱量也可大幅降低至140大卡",
    ],
)
def test_short_modern_notices_are_chinese(text):
    assert detect(text)[0] == "zh"


@given(st.text(max_size=2000))
def test_any_text_has_a_score_between_0_and_1(text):
    code, score = detect(text)
    assert 0 <= score <= 1 and isinstance(code, str)
