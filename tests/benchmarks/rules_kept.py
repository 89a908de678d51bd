"""What the filter keeps and rejects of real Chinese texts, by kind and reason, with examples to judge the thresholds by; and what the clean-up of lines takes.

    python tests/benchmarks/rules_kept.py [--examples 2] [--record]

Pages are extracted by our own extractor; the news are the same pages' true text; passages are CMRC 2018's, of Wikipedia. The rules are those for crawled
pages, of the default recipe. Kept of true texts is the share that should stay: what is lost of them is the price of the thresholds.
"""

import base64
import gzip
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"


def texts() -> Iterator[tuple[str, str]]:
    """(kind, text) of Chinese."""
    from real_texts import laws

    from tasks.corpus.page import Limits, decode, extract

    limits = Limits(depth=200, nodes=20_000, chars=1)
    for line in gzip.decompress((DATA / "html" / "daniel.jsonl.gz").read_bytes()).splitlines():
        page = json.loads(line)
        if page["lang"] == "Chinese":
            yield "pages, extracted", extract(decode(base64.b64decode(page["html_b64"]), "")[0], "", limits).get("text", "")
            yield "news, true text", re.sub("</?p>", "", page["reference"])
    for law in laws(DATA):
        yield "laws", law
    for path in sorted((DATA / "eval" / "cmrc2018").rglob("*.json.gz")):
        yield from (("passages", text) for text in passages(json.loads(gzip.decompress(path.read_bytes()))))


def passages(data: Any) -> Iterator[str]:
    """Every context of a file of the SQuAD form, wherever it stands."""
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from passages(value)
    if isinstance(data, dict) and isinstance(data.get("context_text", data.get("context")), str):
        yield data.get("context_text") or data["context"]


def main() -> None:
    from figures import Figure, arguments, conclude, table

    from flows.recipes import demo
    from model.config import override
    from tasks.corpus.document import new_document
    from tasks.corpus.lines import KINDS, clean
    from tasks.corpus.quality import judge

    parser = arguments(__doc__)
    parser.add_argument("--examples", type=int, default=0, help="texts to print of each reason")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the real sample data at {DATA}")
    config = override(demo().filter, {"languages": [], "min_language_score": 0.0})
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    shown: dict[str, list[str]] = defaultdict(list)
    gone, characters = defaultdict[str, Counter[str]](Counter), Counter[str]()
    for number, (kind, text) in enumerate(islice(texts(), 12 if given.quick else None)):
        row = new_document(text, source="commoncrawl", snapshot="", origin_file="", place=number)
        reason, value = judge(config, row)
        fates[kind][reason or "kept"] += 1
        if reason:
            shown[reason].append(f"{kind}, {value}: {' '.join(text.split())[:160]}")
        characters[kind] += len(text)
        for name in KINDS:
            left, counts = clean(text, (name,))
            if counts:
                gone[kind][name] += len(text) - len(left)
    reasons = sorted(
        {reason for fate in fates.values() for reason in fate}, key=lambda r: (r != "kept", -sum(f[r] for f in fates.values()))
    )
    table(("reason", *fates), [(reason, *(f"{fate[reason]:,}" for fate in fates.values())) for reason in reasons])
    print("\ncharacters that the clean-up of lines would take, of a thousand")
    table(
        ("kind of line", *fates),
        [(name, *(f"{1000 * gone[kind][name] / max(1, characters[kind]):.1f}" for kind in fates)) for name in KINDS],
    )
    for reason in reasons[1:]:
        for text in random.Random(1).sample(shown[reason], min(given.examples, len(shown[reason]))):
            print(f"\n{reason} | {text}")
    figures = [Figure(f"Chinese {kind}: kept", f"{fate['kept'] / fate.total():.1%} of {fate.total():,}") for kind, fate in fates.items()]
    conclude(given, figures)


if __name__ == "__main__":
    main()
