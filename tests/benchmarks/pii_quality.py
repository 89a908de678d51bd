"""Masking of personal data: recall and precision by kind and language over planted, made-up data and look-alikes; what is masked in real texts; speed.

    python tests/benchmarks/pii_quality.py [--plants 2000] [--record]

A plant counts as found if it goes whole, under its own kind of tag, and nothing beside it. Precision of a kind of tag: plants found over these and what
was masked wrongly under that tag in plants and look-alikes, which are as many as the plants of a kind. Real texts: laws and novels, which hold next to none.
"""

import random
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"
GOAL = 0.95


def main() -> None:
    from figures import Figure, arguments, conclude
    from personal_data import score

    parser = arguments(__doc__)
    parser.add_argument("--plants", type=int, default=2000, help="of each kind and language")
    parser.add_argument("--wrong", type=int, default=0, help="print so many of what was masked wrongly")
    given = parser.parse_args()
    figures = []
    for language in ("en", "zh"):
        recall, precision, stray = score(language, 40 if given.quick else given.plants, 7)
        figures += [Figure(f"{language}: recall, {kind}", f"{value:.3f}", "≥ .95", value >= GOAL) for kind, value in recall.items()]
        figures += [
            Figure(f"{language}: precision, <{tag.upper()}>", f"{value:.3f}", "≥ .95", value >= GOAL) for tag, value in precision.items()
        ]
        for text in random.Random(1).sample(sorted(stray), min(given.wrong, len(stray))):
            print(text)
    if DATA.is_dir():
        from real_texts import laws, novels

        from tasks.corpus.pii import mask

        for kind, source in (("laws", laws), ("novels", novels)):
            texts = list(islice(source(DATA), 40 if given.quick else None))
            begun = time.process_time()
            counts = sum((mask(text)[1] for text in texts), Counter[str]())
            seconds, size = time.process_time() - begun, sum(map(len, texts))
            shown = ", ".join(f"{count} {tag}" for tag, count in counts.items()) or "nothing"
            figures += [
                Figure(f"real texts, {kind}: masked in {size / 1e6:.1f} M characters", shown),
                Figure(f"real texts, {kind}: speed", f"{size / seconds / 1e6:.1f} M characters/s"),
            ]
    conclude(given, figures)


if __name__ == "__main__":
    main()
