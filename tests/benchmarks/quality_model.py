"""The quality model on real texts: unseen labels, unseen sites, beside the length of a text and the rules; the same bytes twice; documents/s.

    python tests/benchmarks/quality_model.py [--quick] [--record]

Labels: ../shared/data/quality, 253 English web documents that people called good or bad. (1) A model of Wikipedia articles against crawled pages, as a
recipe trains it without labels, is asked for them, having seen none. (2) Models trained on the labels, each asked for the fifth of them that it has not
seen. Unseen figures are those of the stage's own manifest: every text by the model of the half that it is not in, crawled pages by site. CPU time; a
training's is that of its process.
"""

import gzip
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}
REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"
SOURCES = {"wikipedia": "wikipedia", "page, main": "commoncrawl", "crawl, main": "commoncrawl"}
FOLDS = 5


def documents(folder: Path) -> list[dict]:
    """Wikipedia's articles (Chinese ones are the sample's), and the main text of crawled pages and of WCXB's, a site each where its name is not known."""
    from corpora import document
    from real_texts import real_texts

    from tasks.corpus import wikipedia, wikitext

    found = []
    for article in wikipedia.articles(next((REPO / "tests" / "samples" / "wikimedia" / "zhwiki").rglob("*.bz2"))):
        if not article.redirect and article.ns == 0:
            found.append(document(wikitext.plain(article.text, "Hans"), article.page_id, "wikipedia", "sample"))
    for number, (kind, text) in enumerate(real_texts(folder)):
        if kind in SOURCES:
            found.append(document(text, number, SOURCES[kind], url=f"https://site-{number}.example/"))
    return found


def labelled(folder: Path) -> list[dict]:
    """text and label (1 good, 0 bad)."""
    return [json.loads(line) for line in gzip.decompress((folder / "quality" / "dclm-majority.jsonl.gz").read_bytes()).splitlines()]


def crossed(rows: Sequence[dict], judge: Callable[[list[dict], list[dict]], list[float]]) -> list[float]:
    """Scores of every row by a judge made of the other folds."""
    order = random.Random(5).sample(range(len(rows)), len(rows))
    scores = [0.0] * len(rows)
    for fold in range(FOLDS):
        asked = order[fold::FOLDS]
        learnt = sorted(set(order) - set(asked))
        for place, score in zip(asked, judge([rows[n] for n in learnt], [rows[n] for n in asked]), strict=True):
            scores[place] = score
    return scores


def asked_both(models: Any, text: str) -> float:
    """The mean of both halves' models, for a text that neither has seen."""
    return ((models.score(text, "en", 0) or 0.0) + (models.score(text, "en", 1) or 0.0)) / 2


def main() -> None:
    from figures import Figure, arguments, conclude, table

    given = arguments(__doc__).parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the real sample data at {DATA}")
    from corpora import files_of, output_of, parts_of, rows_of

    from flows import recipes
    from model.config import override
    from tasks.corpus import quality, quality_model
    from tasks.corpus.manifest import Store
    from tasks.corpus.quality_model import Models, metrics, of_manifest

    config = override(
        recipes.quality_model(("en", "zh")),
        {"min_documents": 10, "min_precision": 0.0, "epochs": 60} | ({"epochs": 2} if given.quick else {}),
    )
    rows: list[tuple[str, str, str]] = []
    labels = labelled(DATA)[: 60 if given.quick else None]
    truth, texts = [row["label"] == 1 for row in labels], [row["text"] for row in labels]

    def tell(name: str, scores: Sequence[float]) -> None:
        found = metrics(truth, scores)
        top = sorted(zip(scores, truth, strict=True), reverse=True)[: sum(truth)]
        rows.append((name, f"{found['auc']:.3f}", f"{sum(good for _, good in top) / len(top):.3f}"))

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "one")
        every = documents(DATA)
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        source = {"extract": output_of(store, "extract", [every])}
        made = quality_model.run(store, "bench", config, source)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        again = Store(Path(folder) / "two")
        same = parts_of(store, made) == parts_of(
            again, quality_model.run(again, "bench", config, {"extract": output_of(again, "extract", [every])})
        )
        held, chinese = (
            made.info["languages"].get(language, dict.fromkeys(("texts", "precision", "auc"), 0.0)) for language in ("en", "zh")
        )
        model = Models(**of_manifest(store, made))
        begun_scoring = time.process_time()
        scores = [asked_both(model, text) for text in texts]
        rate = 2 * len(texts) / (time.process_time() - begun_scoring)
        examples = rows_of(store, made, "examples")
        page = {row["id"]: row["text"] for row in every}
        bad = [e for e in examples if not e["good"] and e["language"] == "en"]
        by_heart = sum(model.score(page[e["id"]], "en", 1 - e["half"]) or 0.0 for e in bad) / len(bad)
        fair = sum(e["score"] for e in bad) / len(bad)

        def learnt(train: list[dict], asked: list[dict]) -> list[float]:
            lines = "\n".join(map(json.dumps, train))
            fold = quality_model.run(
                store,
                "bench",
                override(config, {"good": [], "bad": []}),
                {"labels": files_of(store, {"labels.jsonl": lines})},
            )
            judge = Models(**of_manifest(store, fold))
            return [asked_both(judge, row["text"]) for row in asked]

        tell("length in characters", [float(len(text)) for text in texts])
        tell(
            "all rules: 1 for a document that they keep",
            [
                float(quality.decide(quality.rules_of("en"), quality.signals_of(text, "en", True, True, True, True).values) is None)
                for text in texts
            ],
        )
        tell("model of Wikipedia against crawl, no label seen", scores)
        tell(f"models of labels, {FOLDS} folds", crossed(labels, learnt))
    print(f"{len(labels)} labelled documents, {sum(truth)} of them good\n")
    table(("judge", "AUC", f"precision of the best {sum(truth)}"), rows)
    auc = {name: float(area) for name, area, _ in rows}
    length, wiki, own = (
        auc["length in characters"],
        auc["model of Wikipedia against crawl, no label seen"],
        auc[f"models of labels, {FOLDS} folds"],
    )
    spent = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    conclude(
        given,
        [
            Figure("quality model, Wikipedia against crawl: unseen texts' precision, AUC", f"{held['precision']:.3f}, {held['auc']:.3f} on {held['texts']} texts", "≥ .9", held["precision"] >= 0.9),
            Figure(
                "quality model, Chinese, the sample's articles against news pages: unseen texts' precision, AUC",
                f"{chinese['precision']:.3f}, {chinese['auc']:.3f} on {chinese['texts']:.0f} texts",
            ),
            Figure("quality model, trained on labels: AUC on unseen labels (length alone)", f"{own:.3f} ({length:.3f})", "> length", own > length),
            Figure("quality model, Wikipedia against crawl: AUC on labels, none seen (length alone)", f"{wiki:.3f} ({length:.3f})", "> length", wiki > length),
            Figure("quality model: mean score of bad texts by the model that has learnt them, and by the other, which judges", f"{by_heart:.3f}, {fair:.3f}"),
            Figure("quality model: trained twice, the same bytes", "yes" if same else "no", "yes", same),
            Figure(f"quality model: CPU seconds of a training on {held['texts']} texts", f"{spent:.1f}"),
            Figure("quality model: documents scored a CPU second", f"{rate:,.0f}"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
