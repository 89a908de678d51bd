"""Signals: each equals a plain count in Python over the reference's words, on any text."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.document import SIGNALS
from tasks.corpus.quality import CHINESE_STOP_WORDS, STOP_WORDS, signals_of

PIECES = st.sampled_from(
    [
        "the",
        "lamp",
        "of",
        "a",
        "keeper",
        "ships",
        "have",
        "be",
        "to",
        ".",
        ",",
        "!",
        "...",
        "…",
        "#",
        "•",
        "-",
        "–",
        "12",
        "3.5",
        "don't",
        "Mr.",
        "he",
        "said:",
        "(yes)",
        "\n",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\u2028",
        "\x0b",
        "\t",
        "\xa0",
        "\u3000",
        "Lorem_ipsum",
        "JavaScript",
        "{",
        "[1]",
        "[edit]",
        "[citation_needed]",
        "privacy_policy",
        "uses_cooKies",
        "terms_of_use",
        "java[2]script",
        "İ",
        "灯塔",
        "守塔人。",
        "的",
        "了",
        "他说，“好”！",
        "在海边",
        "x",
    ]
).map(lambda piece: piece.replace("_", " "))
TEXT = st.lists(st.one_of(PIECES, PIECES, st.just(" "), st.text(max_size=3)), max_size=60).map(
    lambda pieces: "".join(f"{piece} " if piece.strip() else piece for piece in pieces)
)
REPEATED = st.builds(lambda text, times, more: text * times + more, TEXT, st.integers(1, 4), TEXT)


def repeats(pieces):
    """(repeated pieces, their characters)."""
    extra = Counter(pieces) - Counter(dict.fromkeys(pieces, 1))
    return sum(extra.values()), sum(len(piece) * times for piece, times in extra.items())


def grams(words, size, joint):
    return [joint.join(words[at : at + size]) for at in range(len(words) - size + 1)]


def most_frequent(words, size):
    counts = Counter(grams(words, size, " "))
    return max((times for times in counts.values()), default=0), counts


def repeated_characters(words, size):
    seen, at, characters, all_of_them = set(), 0, 0, grams(words, size, "")
    while at < len(all_of_them):
        if all_of_them[at] in seen:
            characters, at = characters + len(all_of_them[at]), at + size
        else:
            seen.add(all_of_them[at])
            at += 1
    return characters


def share(part, whole):
    return part / max(1, whole)


def gopher(text, words, stop_words):
    from datatrove.utils.text import PUNCTUATION_SET

    found = {"characters": len(text), "words": len(words)}
    paragraphs, pieces, lines = re.split("\n\n+", text.strip()), re.split("\n+", text), text.splitlines()
    for name, of in (("para", paragraphs), ("line", pieces)):
        number, characters = repeats(of)
        found[f"gopher_rep_dup_{name}_frac"], found[f"gopher_rep_dup_{name}_char_frac"] = number / len(of), share(characters, len(text))
    for size in (2, 3, 4):
        most, counts = most_frequent(words, size)
        first = next((gram for gram in counts if counts[gram] == most), "")
        found[f"gopher_rep_top_{size}_gram"] = share(len(first) * most, len(text))
    for size in range(5, 11):
        found[f"gopher_rep_duplicated_{size}_n_grams"] = share(repeated_characters(words, size), len(text))
    plain = [word for word in words if set(word) - PUNCTUATION_SET]
    return found | {
        "gopher_words": len(plain),
        "gopher_word_length": sum(map(len, plain)) / len(plain) if plain else None,
        "gopher_hashes": share(text.count("#"), len(words)),
        "gopher_ellipses": share(text.count("...") + text.count("…"), len(words)),
        "gopher_bullet_lines": share(sum(line.strip()[:1] in ("•", "-") and bool(line.strip()) for line in lines), len(lines)),
        "gopher_ellipsis_lines": share(sum(line.strip().endswith(("...", "…")) for line in lines), len(lines)),
        "gopher_letter_words": share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "gopher_stop_words": len(set(words) & set(stop_words)),
    }


def c4(text, count, sentences, spaced):
    lines, dropped, left, first, total = text.splitlines(), 0, [], {}, 0
    looked_at = 0
    for line in (line.strip() for line in lines):
        words = line.split()
        if spaced and (len(words) < 3 or max(map(len, words)) > 1000):
            dropped += 1
            continue
        looked_at += 1
        line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
        low = line.lower()
        if "lorem ipsum" in low:
            first.setdefault("lorem_ipsum", looked_at)
        elif "javascript" in low:
            dropped += 1
            continue
        elif "{" in line:
            first.setdefault("curly_bracket", looked_at)
        elif re.search("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", low):
            dropped += 1
            continue
        left.append(line)
        total += sentences(line) if spaced else 0
    earliest = min(first, key=first.get, default="")
    found = {f"c4_{name}": first[name] if name == earliest else 0 for name in ("lorem_ipsum", "curly_bracket")}
    text = "\n".join(left).strip()
    return text, count(text), found | {"c4_sentences": total if spaced else None, "c4_lines_dropped": dropped}


def fineweb(text, words):
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "fineweb_lines": len(lines),
        "fineweb_line_punct_ratio": share(sum(line[-1] in TERMINAL_PUNCTUATION for line in lines), len(lines)),
        "fineweb_short_line_ratio": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "fineweb_char_dup_ratio": share(repeats(lines)[1], len(text.replace("\n", ""))),
        "fineweb_list_ratio": share(text.count("\n"), words),
    }


@pytest.mark.parametrize("language", ["en", "zh", "de"])
@settings(max_examples=250, deadline=None)
@given(text=REPEATED)
def test_each_signal_equals_its_plain_count(language, text):
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    theirs = load_word_tokenizer("cmn_Hani" if language == "zh" else language)

    def words(some):
        return [word for chunk in (some.split() if language == "en" else [some]) for word in theirs.word_tokenize(chunk)]

    stop_words = CHINESE_STOP_WORDS if language == "zh" else STOP_WORDS
    left, count, of_c4 = c4(text, lambda some: len(words(some)), lambda line: max(1, len(theirs.span_tokenize(line))), language != "zh")
    expected = (
        gopher(text, words(text), stop_words) | of_c4 | fineweb(left, count) | {"left_words": count, "lines_removed": None, "quality": None}
    )
    found = signals_of(text, language, True, True, True, True)
    assert found.values == expected
    assert (found.text, found.words) == (left, count)
    whole = signals_of(text, language, False, False, False, True)
    assert {name: value for name, value in whole.values.items() if name.startswith("fineweb")} == fineweb(text, len(words(text)))


def test_every_signal_is_measured_and_none_that_is_not_asked_for():
    text = "The keeper of the lamp climbs to the tower. He reads by the stove, and that is all."
    for flags, prefixes in (
        ((True, True, True, True), ("characters", "words", "left_words", "gopher_", "c4_", "fineweb_")),
        ((True, False, False, False), ("characters", "words", "left_words", "gopher_rep_")),
        ((False, False, True, False), ("characters", "words", "left_words", "c4_")),
        ((False, False, False, True), ("characters", "words", "left_words", "fineweb_")),
    ):
        found = signals_of(text, "en", *flags)
        assert tuple(found.values) == SIGNALS
        assert {name for name, value in found.values.items() if value is not None} == {n for n in SIGNALS if n.startswith(prefixes)}


def test_c4_names_the_earlier_of_two_reasons():
    line = "The keeper climbs the tower every evening.\n"
    both = line + "Lorem ipsum dolor sit amet.\n" + "Some code { with a bracket.\n"
    assert signals_of(both, "en", False, False, True, False).values["c4_lorem_ipsum"] == 2
    turned = signals_of("Some code { with a bracket.\n" + both, "en", False, False, True, False).values
    assert (turned["c4_lorem_ipsum"], turned["c4_curly_bracket"]) == (0, 1)


def test_a_long_text_is_measured_like_a_short_one():
    """Work space grows, and nothing of a longer text is left in a shorter one's signals."""
    short = "The keeper of the lamp climbs to the tower.\nHe reads by the stove, and that is all.\n" * 3
    before = signals_of(short, "en", True, True, True, True)
    long = signals_of(short * 4_000, "en", True, True, True, True)
    assert long.values["words"] == 4_000 * before.values["words"]
    assert signals_of(short, "en", True, True, True, True) == before
