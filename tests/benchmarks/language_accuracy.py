"""Language identification: accuracy by language and length of text, ours (a few hundred characters) beside fastText on the whole text, and documents/s.

    python tests/benchmarks/language_accuracy.py [--quick] [--record]

Texts: the Declaration of Human Rights in the languages that the model knows (nltk's udhr2), news (daniel: zh, el, pl, ru), WCXB's pages, wiki excerpts
(bg, de, en, ja, zh), Chinese laws, and Chinese verse (lzh: Tang, Song, the Book of Songs) of which the half is used that the tables in language.py were
not made of. A text of a length is a piece from its middle. Cantonese is a handful of sentences of our own; of Wu there is no text at hand.
Mixed texts are a declaration in one language followed by one in another. CPU time, whole texts, 20 in turn.
"""

import gzip
import json
import os
import random
import re
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1"}
REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"
LENGTHS = (50, 100, 200, 500)
UDHR = {
    "afr": "af", "als": "sq", "amh": "am", "arb": "ar", "bel": "be", "ben": "bn", "bre": "br", "bul": "bg", "cat": "ca", "ces": "cs", "cym": "cy", "dan": "da",
    "deu": "de", "ell_monotonic": "el", "eng": "en", "epo": "eo", "est": "et", "eus": "eu", "fin": "fi", "fra": "fr", "gla": "gd", "gle": "ga", "glg": "gl",
    "guj": "gu", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is", "ita": "it", "jpn": "ja", "kan": "kn", "kat": "ka",
    "kaz": "kk", "khm": "km", "kir": "ky", "kor": "ko", "lao": "lo", "lat": "la", "lav": "lv", "lit": "lt", "ltz": "lb", "mal": "ml", "mar": "mr", "mkd": "mk",
    "mlt": "mt", "khk": "mn", "mya": "my", "nep": "ne", "nld": "nl", "nno": "nn", "nob": "no", "pan": "pa", "pes_1": "fa", "pol": "pl", "por_PT": "pt",
    "ron": "ro", "rus": "ru", "san": "sa", "slk": "sk", "slv": "sl", "spa": "es", "srp_cyrl": "sr", "swe": "sv", "swh": "sw", "tam": "ta", "tat": "tt",
    "tgk": "tg", "tgl": "tl", "tha": "th", "tur": "tr", "uig_arab": "ug", "ukr": "uk", "urd": "ur", "uzn_latn": "uz", "vie": "vi", "ydd": "yi",
    "cmn_hans": "zh", "cmn_hant": "zh",
}  # fmt: skip
CANTONESE = (
    "佢哋喺香港食咗好多嘢，真係好好味呀，我哋聽日再去嗰度睇吓有冇其他嘢食。",
    "你喺邊度做嘢㗎？我喺中環返工，日日都要搭地鐵，好鬼迫，有時仲要企成個鐘頭。",
    "今日落大雨，我冇帶遮，淋到成身濕晒，返到屋企即刻沖涼，唔係實會病㗎。",
    "呢間茶餐廳嘅奶茶好滑，菠蘿包啱啱出爐，不過啲人多到要等位，佢話下次早啲嚟。",
    "我唔知點解佢噉講，可能佢唔鍾意我哋嘅諗法，咁就算啦，唔使嬲。",
)


def texts(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """(language, text) by kind of text."""
    from tasks.corpus import wikipedia, wikitext

    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with zipfile.ZipFile(folder / "text" / "nltk" / "udhr2.zip") as archive:
        for name, code in UDHR.items():
            found["declaration"].append((code, archive.read(f"udhr2/{name}.txt").decode("utf-8-sig")))
    codes = {"Chinese": "zh", "Greek": "el", "Polish": "pl", "Russian": "ru"}
    for row in _rows(folder / "html" / "daniel.jsonl.gz"):
        found["news"].append((codes[row["lang"]], re.sub("</?p>", "", row["reference"])))
    for row in _rows(folder / "html" / "wcxb" / "dev" / "ground-truth.jsonl.gz"):
        found["page"].append(("en", row["ground_truth"]["main_content"]))
    dumps = {
        code: folder / "wikipedia" / "dbpedia-minidumps" / name / "wiki.xml.bz2"
        for code, name in zip(("zh", "ja", "de", "en"), ("zh", "ja", "de", "simple"), strict=True)
    }
    dumps["bg"] = next((folder / "wikipedia" / "gensim").glob("bgwiki*"))
    for code, path in dumps.items():
        for article in wikipedia.articles(path):
            if not article.redirect and article.ns == 0:
                plain = wikitext.plain(article.text, "Hans")
                found["wiki"] += [(code, plain[start : start + 1500]) for start in range(0, len(plain) - 1500, 1500)]
    found["law"] = [("zh", row["text"]) for row in list(_rows(folder / "text" / "zh-laws.jsonl.gz"))[1::2]]
    for path in sorted((folder / "text" / "zh-poetry").rglob("*.gz")):
        for poem in json.loads(gzip.decompress(path.read_bytes()))[1::2]:
            found["verse"].append(("lzh", "\n".join(poem.get("paragraphs") or poem.get("content") or ())))
    found["ours"] = [("yue", text) for text in CANTONESE]
    return found


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def full(text: str) -> tuple[str, float]:
    """fastText on the whole text, as datatrove's filter asks it."""
    from tasks.corpus.language import _predict

    return _predict(text)


def accuracy(pairs: Sequence[tuple[str, str]], judge: Callable[[str], tuple[str, float]]) -> float:
    return sum(judge(text)[0] == code for code, text in pairs) / max(1, len(pairs))


def middle(text: str, length: int) -> str:
    start = max(0, (len(text) - length) // 2)
    return text[start : start + length]


def mixed(pairs: Sequence[tuple[str, str]], share: float, size: int = 6000) -> list[tuple[str, str]]:
    """Texts of `size` characters of which the first share is in the language that is named, the rest in another."""
    long = [(code, text) for code, text in pairs if len(text) >= size and code not in ("ja", "zh")]
    cut = int(share * size)
    return [(code, text[:cut] + "\n" + other[: size - cut]) for (code, text), (_, other) in zip(long, long[7:] + long[:7], strict=True)]


def main() -> None:
    from figures import Figure, arguments, conclude, table

    given = arguments(__doc__).parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the real sample data at {DATA}")
    from tasks.corpus.language import detect
    from tasks.corpus.textnorm import script

    found = texts(DATA)
    dice = random.Random(7)
    most = 6 if given.quick else 400
    found = {kind: dice.sample(pairs, min(most, len(pairs))) for kind, pairs in found.items()}
    by_language: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for kind, pairs in found.items():
        for code, text in pairs:
            pieces = [text[n : n + 1000] for n in range(0, len(text) - 600, 1000)] if kind == "declaration" else [text]
            by_language[kind, code] += [(code, piece) for piece in pieces]
    rows = []
    for (kind, code), pairs in sorted(by_language.items()):
        cells = [f"{accuracy([(c, middle(t, n)) for c, t in pairs], detect):.3f}" for n in LENGTHS]
        rows.append((kind, code, str(len(pairs)), *cells, f"{accuracy(pairs, detect):.3f}", f"{accuracy(pairs, full):.3f}"))
    table(("kind", "language", "texts", *(f"{n} characters" for n in LENGTHS), "whole, ours", "whole, full text"), rows)
    pieces = [pair for (kind, _), pairs in by_language.items() for pair in pairs if kind == "declaration"]
    figures = []
    for n in LENGTHS:
        cut = [(code, middle(text, n)) for code, text in pieces]
        ours, theirs = accuracy(cut, detect), accuracy(cut, full)
        figures.append(
            Figure(
                f"language, declarations in {len(UDHR) - 1} languages, {n} characters: accuracy (fastText)", f"{ours:.4f} ({theirs:.4f})"
            )
        )
    whole = [pair for kind, pairs in found.items() if kind not in ("verse", "ours") for pair in pairs]
    ours, theirs = accuracy(whole, detect), accuracy(whole, full)
    figures.append(
        Figure(
            "language, whole texts: accuracy (fastText on the full text)",
            f"{ours:.4f} ({theirs:.4f})",
            "≥ full − .002",
            ours >= theirs - 0.002,
        )
    )
    for kind, name in (("verse", "Classical Chinese verse"), ("ours", "Cantonese sentences")):
        figures.append(
            Figure(f"language, {name}: labelled so (fastText)", f"{accuracy(found[kind], detect):.3f} ({accuracy(found[kind], full):.3f})")
        )
    modern = [(code, middle(text, 300)) for kind in ("law", "news", "wiki", "declaration") for code, text in found[kind] if code == "zh"]
    figures.append(
        Figure("language, modern Chinese of 300 characters labelled otherwise", f"{1 - accuracy(modern, detect):.4f} of {len(modern)}")
    )
    with zipfile.ZipFile(DATA / "text" / "nltk" / "udhr2.zip") as archive:
        scripts = [(name, archive.read(f"udhr2/cmn_{name.lower()}.txt").decode("utf-8-sig")) for name in ("Hans", "Hant")]
    cut = [(name, text[start : start + 100]) for name, text in scripts for start in range(0, len(text) - 100, 100)]
    right = sum(script(text) == name for name, text in cut)
    figures.append(Figure("script of 100 Chinese characters, Hans or Hant: right", f"{right} of {len(cut)}"))
    for share in (0.9, 0.7, 0.5):
        pairs = mixed(found["declaration"], share)
        score = sum(detect(text)[1] for _, text in pairs) / max(1, len(pairs))
        same = sum(full(text)[1] for _, text in pairs) / max(1, len(pairs))
        figures.append(
            Figure(
                f"language, {share:.0%} of a text in one and the rest in another: named the first, mean score (fastText)",
                f"{accuracy(pairs, detect):.2f}, {score:.2f} ({accuracy(pairs, full):.2f}, {same:.2f})",
            )
        )
    seconds: dict[str, float] = defaultdict(float)
    timed = [text for _, text in whole]
    for start in range(0, len(timed), 20):
        for name, judge in (("ours", detect), ("full", full)):
            begun = time.process_time()
            for text in timed[start : start + 20]:
                judge(text)
            seconds[name] += time.process_time() - begun
    size = sum(map(len, timed)) / len(timed)
    figures.append(
        Figure(
            f"language: documents a CPU second, of {size:,.0f} characters (fastText on the full text)",
            f"{len(timed) / seconds['ours']:,.0f} ({len(timed) / seconds['full']:,.0f})",
        )
    )
    conclude(given, figures)


if __name__ == "__main__":
    main()
