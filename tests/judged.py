"""Texts that the quality rules keep, and such that each of them rejects.

BAD["gopher_short_doc"]          rejected under that reason
random_texts(250)                English-like, from fine to bad in every way
"""

import random
from collections.abc import Iterator

from tasks.corpus.quality import FilterConfig

CONFIG = FilterConfig(("en", "zh"), 0.5, True, True, True, True, ("commoncrawl",), True, thresholds={}, clean_lines=())
WORDS = [
    "the",
    "lamp",
    "of",
    "keeper",
    "climbs",
    "tower",
    "and",
    "that",
    "every",
    "evening",
    "have",
    "ships",
    "with",
    "harbour",
    "to",
    "sea",
    "night",
    "boat",
    "be",
    "stove",
    "winter",
    "glass",
    "oil",
    "reads",
]
EN = (
    "The keeper climbs the tower every evening and lights the lamp. He trims the wick and wipes the glass, so that ships can find the harbour.\n"
    "In winter the nights are long, and he reads by the stove between his rounds. The supply boat comes once a month with oil and bread.\n"
    "When the fog lies on the water he winds the clockwork of the bell. It has to be done with care, because the spring is old and strong."
)
ZH = (
    "守塔人每天傍晚都要登上灯塔，把灯点亮。他先修剪灯芯，再擦干净玻璃，这样远处的船只才能看见港口的方向。\n"
    "冬天的夜晚很长，他在两次巡查之间坐在火炉旁边读书。补给船每个月来一次，带来灯油和面包，也带来岸上的消息和家里的信。\n"
    "如果海面上起了雾，他就要给钟上发条。这件事情必须非常小心，因为那根弹簧已经用了很多年，又旧又硬，稍不注意就会伤到手。"
)


BAD = {
    "language": "Le gardien monte chaque soir dans la tour et allume la lampe pour que les navires trouvent le port. Il lit près du poêle.",
    "gopher_short_doc": EN.split("\n")[0],
    "gopher_rep_dup_line_frac": "\n".join(["The keeper climbs the tower and lights the lamp for ships.", EN.split("\n")[0]] * 6),
    "gopher_rep_top_2_gram": "buy lamps " * 80 + EN,
    "gopher_too_many_ellipsis": EN.replace(" ", " ... "),
    "c4_lorem_ipsum": EN + "\nLorem ipsum dolor sit amet, and so it goes on and on.",
    "c4_curly_bracket": EN + "\nThe function begins with { and ends some lines below that.",
    "c4_too_few_sentences": " ".join(EN.replace(".", ",").split()) + ".",
    "fineweb_line_punct_ratio": "\n".join(line.strip(".") + " and on" for line in EN.replace(". ", ".\n").split("\n") for _ in "x"),
}


def random_texts(number: int) -> Iterator[str]:
    """English-like texts from fine to bad in many ways, so that every rule decides some of them."""
    dice = random.Random(5)
    for _ in range(number):
        lines = []
        for _ in range(dice.randint(1, 12)):
            size = dice.choice((3, 8, 20))
            words = [
                dice.choice(WORDS if dice.random() < 0.9 else ["#", "...", "•", "12", "{", "supercalifragilistic"]) for _ in range(size)
            ]
            lines.append(" ".join(words).capitalize() + dice.choice((".", ".", "", "...", "!")))
        if dice.random() < 0.3:
            lines += lines[: dice.randint(1, 4)]
        yield dice.choice(("\n", "\n\n")).join(lines)
