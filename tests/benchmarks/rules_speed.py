"""Quality rules: signals and decisions of ours against datatrove's four filters (repetition, quality, C4, FineWeb), on the same real documents.

    python tests/benchmarks/rules_speed.py [--documents 400] [--record]

One process, one thread, 25 documents in turn, CPU time. datatrove's filters run as in its pipeline: a document that one rejects does not reach
the next; ours measures every signal of every document. Each document is seen once, so that nothing remembered helps. The limit is one pass over the
text in memory: its UTF-8 bytes, hashed with xxh3.
"""

import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"
BLOCK = 25
"""Documents that one side reads before the other does."""
KINDS = {"English": ("novel", "article", "labelled", "wikipedia"), "Chinese": ("law",)}


def peer(language: str) -> Callable[[str], bool]:
    """datatrove's four filters in a row."""
    from datatrove.data import Document
    from real_filters import filters

    chain = filters(language)

    def judge(text: str) -> bool:
        document = Document(text=text, id="")
        return all(rule(document) is True for rule in chain)

    return judge


def ours(language: str) -> Callable[[str], bool]:
    """Signals and decision."""
    from tasks.corpus.quality import decide, rules_of, signals_of

    rules = rules_of(language)
    return lambda text: decide(rules, signals_of(text, language, True, True, True, True).values) is None


def limit(text: str) -> None:
    """One pass over the text."""
    import xxhash

    xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def race(texts: list[str], language: str) -> tuple[dict[str, float], int]:
    """CPU seconds of each, and documents on whose fate they differ."""
    runners: dict[str, Callable[[str], Any]] = {"datatrove": peer(language), "ingot": ours(language), "limit": limit}
    for runner in runners.values():
        runner(texts[0])
    seconds: dict[str, float] = defaultdict(float)
    differ = 0
    for start in range(1, len(texts), BLOCK):
        fates = {}
        for name, runner in runners.items():
            begun = time.process_time()
            fates[name] = [runner(text) for text in texts[start : start + BLOCK]]
            seconds[name] += time.process_time() - begun
        differ += sum(a != b for a, b in zip(fates["datatrove"], fates["ingot"], strict=True))
    return seconds, differ


def main() -> None:
    from figures import Figure, arguments, conclude

    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=400, help="of each language")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the real sample data at {DATA}")
    from real_texts import real_texts

    found: dict[str, list[str]] = defaultdict(list)
    for kind, text in real_texts(DATA):
        for language, kinds in KINDS.items():
            if kind in kinds:
                found[language].append(text)
    figures = []
    for language, code in (("English", "en"), ("Chinese", "zh")):
        texts = random.Random(3).sample(found[language], 12 if given.quick else given.documents + 1)
        seconds, differ = race(texts, code)
        count, size = len(texts) - 1, sum(map(len, texts[1:]))
        ratio = seconds["datatrove"] / seconds["ingot"]
        figures += [
            Figure(
                f"{language}: ingot", f"{count / seconds['ingot']:,.0f} documents/s, {size / seconds['ingot'] / 1e6:.1f} M characters/s"
            ),
            Figure(f"{language}: datatrove's four filters", f"{count / seconds['datatrove']:,.1f} documents/s"),
            Figure(f"{language}: ratio", f"{ratio:.0f}×", "100×", ratio >= 100),
            Figure(f"{language}: one pass over memory", f"{seconds['ingot'] / seconds['limit']:.0f} times faster than ingot"),
            Figure(f"{language}: documents with another fate", f"{differ} of {count}", "0", differ == 0),
        ]
    conclude(given, figures)


if __name__ == "__main__":
    main()
