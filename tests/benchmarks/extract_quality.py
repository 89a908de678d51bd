"""Main-text extraction: F1 by page type and CPU milliseconds a page, ours beside trafilatura and resiliparse.

    python tests/benchmarks/extract_quality.py --tables FOLDER [--quick] [--record]

Pages: ../shared/data/html, WCXB's 316 development pages and daniel's news. F1 is WCXB's: a bag of words (\\w+, lower case), of characters (\\w) for Chinese, mean
over pages. Ours is judged only on pages of sites that its forests have not seen: FOLDER holds what train_main_text.py --folds makes. CPU time is that of each
extractor from the decoded page to its text, one after the other on the same page, in this process, after one page of warming up. The limit is parsing alone. Beside it: how often the page's
day of publication is what WCXB's annotators noted and its canonical address is the page's, and the CPU seconds that a process needs to load what was compiled once.
"""

import logging
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from figures import REPO, Figure, arguments, conclude, table
from resiliparse.parse.html import HTMLTree
from train_main_text import Example, examples, folds

from tasks.corpus.about import canonical_url
from tasks.corpus.page import Limits, decode, extract

LIMITS = Limits(depth=1 << 12, nodes=1 << 20, chars=1)
KINDS = ("article", "documentation", "service", "product", "listing", "collection", "forum")
WORD, CHARACTER = re.compile(r"\w+"), re.compile(r"\w")
Extractor = Callable[[str], str]


def f1(ours: str, true: str, unit: re.Pattern[str]) -> float:
    """F1 of two bags of words or characters, as WCXB's evaluate.py has it: 1 where both are empty."""
    a, b = Counter(unit.findall(ours.lower())), Counter(unit.findall(true.lower()))
    both = (a & b).total()
    return 2 * both / (a.total() + b.total()) if a or b else 1.0


def peers() -> dict[str, Extractor]:
    """The peers as users call them; datatrove's setting is that of its Trafilatura step."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    return {
        "trafilatura fast": lambda html: trafilatura.extract(html, fast=True, include_comments=False) or "",
        "datatrove's setting": lambda html: trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=True) or "",
        "resiliparse main": lambda html: extract_plain_text(
            html, preserve_formatting=True, main_content=True, alt_texts=False, comments=False
        ),
    }


def ours(tables: Path | None, fold: int) -> Extractor:
    """Our extractor with the forests that have not seen a fold (None: the shipped ones, which have seen all)."""
    more = {} if tables is None else {"table": tables / f"fold-{fold}.json"}
    return lambda html: extract(html, "", LIMITS, **more).get("text", "")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--tables",
        type=Path,
        help="folder of fold-0.json …; without it ours is judged on pages it was trained on, which a quick run alone may",
    )
    given = parser.parse_args()
    if given.tables is None and not given.quick:
        parser.error("--tables is missing: make them with train_main_text.py --folds FOLDER")
    logging.disable(logging.CRITICAL)
    found = examples()
    fold = folds(found)
    if given.quick:
        found = found[:4] + found[-2:]
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    others = peers()
    for number, example in enumerate(found):
        run = {"ours": ours(given.tables, fold[number]), **others}
        for name, extractor in run.items():
            if not number:
                extractor(decode(example.body, "")[0])
            score, seconds = judged(extractor, example)
            scores[name][example.kind].append(score)
            times[name][example.kind].append(seconds)
        times["parsing alone"][example.kind].append(parsing(example))
    rows, means = [], {}
    for name, by_kind in scores.items():
        mixed = [score for kind in KINDS for score in by_kind[kind]]
        means[name] = {kind: float(np.mean(values or [0])) for kind, values in {**by_kind, "all": mixed}.items()}
        cpu = [1000 * float(np.mean([s for kind in kinds for s in times[name][kind]] or [0])) for kinds in (("article",), KINDS, ("zh",))]
        rows.append(
            (name, *(f"{means[name].get(kind, 0):.3f}" for kind in (*KINDS, "all", "zh", "news")), *(f"{value:.2f}" for value in cpu))
        )
    table(("extractor", *KINDS, "all", "zh", "news", "ms article", "ms all", "ms zh"), rows)
    total = {name: sum(sum(values) for values in by_kind.values()) for name, by_kind in times.items()}
    ratio = total["datatrove's setting"] / total["ours"]
    rate = len(times["ours"]["article"]) / sum(times["ours"]["article"])
    us, fast = means["ours"], means["trafilatura fast"]
    kinds = ", ".join(f"{kind} {us.get(kind, 0):.3f}" for kind in (*KINDS, "zh", "news"))
    conclude(
        given,
        [
            Figure("extraction: CPU time, datatrove's setting / ours", f"{ratio:.1f}", "≥ 5", ratio >= 5),
            Figure("extraction: share of the limit, parsing alone", f"{total['parsing alone'] / total['ours']:.2f}"),
            Figure("extraction: F1 by kind of page", kinds),
            Figure(
                "extraction: F1 on articles (trafilatura fast)",
                f"{us['article']:.3f} ({fast['article']:.3f})",
                "≥ fast",
                us["article"] >= fast["article"],
            ),
            Figure(
                "extraction: F1 over all page types (trafilatura fast)", f"{us['all']:.3f} ({fast['all']:.3f})", "≥ .87", us["all"] >= 0.87
            ),
            Figure(
                "extraction: character F1 on Chinese news (trafilatura fast)",
                f"{us['zh']:.3f} ({fast['zh']:.3f})",
                "≥ .90",
                us["zh"] >= 0.9,
            ),
            Figure("extraction: article pages a CPU second", f"{rate:.0f}", "800 at F1 .96", rate >= 800 and us["article"] >= 0.96),
            *said(found),
            Figure("kernels: CPU seconds to load what is compiled, numba included", f"{(loaded := loading()):.2f}", "≤ 2", loaded <= 2),
        ],
    )


def said(pages: Sequence[Example]) -> list[Figure]:
    """What pages say of themselves beside what people read off them (WCXB)."""
    right = given = dated = same = addressed = 0
    for page in pages:
        found = extract(page.body, "", LIMITS)
        if page.published and "text" in found:
            dated += 1
            given += bool(found["published"])
            right += found["published"] == page.published
        if page.url and "text" in found:
            address = canonical_url(found["canonical"], page.url)
            addressed += bool(address)
            same += bare(address) == bare(page.url)
    return [
        Figure("extraction: days of publication right, of those given, of those noted", f"{right}, {given}, {dated}"),
        Figure("extraction: canonical addresses that are the page's but for its query, of those given", f"{same}, {addressed}"),
    ]


def bare(url: str) -> str:
    """An address without what does not tell pages apart."""
    return url.partition("?")[0].partition("//")[2].removeprefix("www.").rstrip("/").lower()


def loading() -> float:
    """CPU seconds of a process from nothing to all kernels of the corpus stages, compiled by an earlier one."""
    code = "import time; import tasks.corpus.blocks, tasks.corpus.kernels, tasks.corpus.rule_kernels; print(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout)


def parsing(example: Example) -> float:
    """CPU seconds of making a page's tree and nothing else."""
    html = decode(example.body, "")[0]
    begun = time.process_time()
    HTMLTree.parse(html)
    return time.process_time() - begun


def judged(extractor: Extractor, example: Example) -> tuple[float, float]:
    """(F1, CPU seconds) of one page."""
    html = decode(example.body, "")[0]
    begun = time.process_time()
    text = extractor(html)
    seconds = time.process_time() - begun
    return f1(text, example.reference, CHARACTER if example.kind == "zh" else WORD), seconds


if __name__ == "__main__":
    main()
