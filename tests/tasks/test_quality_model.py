"""The quality model: tells planted good texts from bad ones that it has not seen, the same bytes each time, stops where it is no good, survives kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from corpora import ENGINE, document, files_of, output_of, parts_of, rows_of, run_inline

from flows import build, recipes
from model.config import override
from model.errors import DamageError, EmptyError, InputError, JudgeError, RankError
from tasks.corpus import commoncrawl, extract, quality, quality_model, wikipedia
from tasks.corpus.manifest import Store
from tasks.corpus.quality_model import Models, QualityModelConfig, features, metrics, of_manifest
from tasks.corpus.recount import recount

CONFIG = QualityModelConfig(("wikipedia",), ("commoncrawl",), ("en", "zh"), 1000, 20, 2000, 0.8, 25, 0.5, 8, 2, 1 << 12)
COMMON = [
    "the keeper of this old tower climbs up",
    "every evening he lights a lamp",
    "so that all ships can find their way",
    "into the harbour",
]
FINE = ["history", "century", "species", "north", "region", "river", "population", "named", "kingdom", "science"]
POOR = ["buy", "cheap", "click", "now", "offer", "free", "price", "deal", "shop", "discount"]
COMMON_ZH = ["守塔人每天傍晚都要登上灯塔，", "他把灯点亮了，", "这样远处的船只就能看见港口的方向，", "他在火炉旁边读书，"]
FINE_ZH = ["历史", "世纪", "地区", "人口", "科学", "研究", "河流", "王朝"]
POOR_ZH = ["优惠券", "点击", "购买", "特价", "包邮", "领取", "秒杀", "折扣"]


def text(seed: int, good: bool, chinese: bool, planted: float = 0.5) -> str:
    """A text of common phrases and, by a share, of words that only good or only bad texts have."""
    dice = random.Random(f"{seed} {good} {chinese}")
    common, own = (COMMON_ZH, FINE_ZH if good else POOR_ZH) if chinese else (COMMON, FINE if good else POOR)
    words = [dice.choice(own if dice.random() < planted else common) for _ in range(50)]
    return "".join(words) + "他读的是书。" if chinese else " ".join(words) + "."


def rows(planted: float = 0.5, count: int = 60):
    """As many good as bad documents in English and Chinese, two bad ones a site."""
    return [
        document(
            text(n, good, chinese, planted), 4 * n + 2 * good + chinese, "wikipedia" if good else "commoncrawl",
            url=f"https://s{n // 2}.example/{n}" if not good else "https://en.wikipedia.org/x",
        )
        for n in range(count) for good in (True, False) for chinese in (True, False)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, the stage's output) on planted documents."""
    store = Store(tmp_path_factory.mktemp("made"))
    source = output_of(store, "extract", [[*rows(), document("Le gardien monte dans la tour.", 9999, "wikipedia"), document("x", 10000)]])
    return store, quality_model.run(store, "test", CONFIG, {"extract": source})


def test_unseen_good_texts_score_above_bad_ones_in_each_language(made):
    store, manifest = made
    models = Models(**of_manifest(store, manifest))
    for language, chinese in (("en", False), ("zh", True)):
        assert manifest.info["languages"][language]["auc"] > 0.98
        good, bad = ([models.score(text(n, kind, chinese), language, n % 2) for n in range(500, 520)] for kind in (True, False))
        assert min(good) > max(bad)
    assert models.score("Le gardien monte", "fr", 0) is None
    assert models.score("", "en", 0) is not None


def test_the_books_balance_and_every_example_is_named(made):
    store, manifest = made
    examples = rows_of(store, manifest, "examples")
    assert manifest.seen == 242 and manifest.kept == len(examples)
    assert manifest.rejected["language"] == manifest.rejected["other_source"] == 1
    for language in ("en", "zh"):
        for half in (0, 1):
            sides = [sum(e["good"] == good for e in examples if e["language"] == language and e["half"] == half) for good in (True, False)]
            assert sides[0] == sides[1] > 5
    assert manifest.info["metrics"]["zh/precision"] == manifest.info["languages"]["zh"]["precision"]


def test_no_site_is_both_learnt_from_and_proved_on(made):
    store, manifest = made
    sites = {row["id"]: row["domain"] for row in rows()}
    bad = [e for e in rows_of(store, manifest, "examples") if not e["good"]]
    learnt, proved = ({sites[e["id"]] for e in bad if e["half"] == half} for half in (0, 1))
    assert learnt and proved and not learnt & proved


def test_what_was_learnt_by_heart_is_judged_by_the_model_that_has_not_learnt_it(store):
    """Good and bad texts of the same words, each with a name of its own: a model knows its own by heart, and the score of the other one says nothing."""
    own = rows(planted=0.0)
    for number, row in enumerate(own):
        name = str(number).translate({48 + digit: 97 + digit for digit in range(10)})
        row["text"] = row["text"][:600] + f" {name}zq" * 60
    blind = override(CONFIG, {"min_precision": 0.0, "languages": ["en"], "epochs": 100})
    manifest = quality_model.run(store, "test", blind, {"extract": output_of(store, "extract", [own])})
    models, texts = Models(**of_manifest(store, manifest)), {row["id"]: row for row in own}
    learnt = [(e["good"], texts[e["id"]]["text"], quality_model.half_of(texts[e["id"]])) for e in rows_of(store, manifest, "examples")]
    by_heart, fair = (
        metrics([g for g, _, _ in learnt], [models.score(t, "en", abs(flip - h)) for _, t, h in learnt])["auc"] for flip in (1, 0)
    )
    assert by_heart > 0.9
    assert 0.3 < fair < 0.7
    assert fair == manifest.info["languages"]["en"]["auc"]


def test_the_same_documents_in_other_parts_give_the_same_bytes(made, store):
    every = [*rows(), document("Le gardien monte dans la tour.", 9999, "wikipedia"), document("x", 10000)]
    again = quality_model.run(store, "test", CONFIG, {"extract": output_of(store, "extract", [every[100:], every[:100]])})
    assert parts_of(store, again) == parts_of(*made)


def test_a_model_no_better_than_chance_stops_the_stage_with_its_precision(store):
    source = output_of(store, "extract", [rows(planted=0.0)])
    with pytest.raises(JudgeError, match=r"quality_model for en.*precision 0\.\d+, below quality_model\.min_precision 0\.8"):
        quality_model.run(store, "test", CONFIG, {"extract": source})
    assert store.manifest(store.addresses("quality_model")[0]) is None


def test_a_language_with_few_texts_has_no_model_and_none_at_all_is_an_error(store):
    few = [row for row in rows() if row["text"].isascii()] + [row for row in rows(count=6) if not row["text"].isascii()]
    manifest = quality_model.run(store, "test", CONFIG, {"extract": output_of(store, "extract", [few])})
    assert [f.path for f in manifest.parts("model-")] == ["model-en-0.bin", "model-en-1.bin"]
    assert manifest.rejected["few_documents"] == 12
    with pytest.raises(EmptyError, match="min_documents"):
        quality_model.run(store, "test", override(CONFIG, {"min_documents": 500}), {"extract": output_of(store, "extract", [few])})


def test_documents_beyond_the_draw_are_counted(store):
    manifest = quality_model.run(store, "test", override(CONFIG, {"documents": 80}), {"extract": output_of(store, "extract", [rows()])})
    assert manifest.rejected["not_drawn"] == 80
    assert manifest.seen == 240


def test_labelled_texts_train_a_model_and_lines_without_a_label_are_counted(store):
    lines = [
        {"text": text(n, good, False), "label": label}
        for n in range(40)
        for good, label in ((True, (1, "good", True)[n % 3]), (False, (0, "bad", False)[n % 3]))
    ]
    lines += [{"text": "The lamp of the tower."}, {"text": "The lamp.", "label": "so so"}]
    content = "\n".join(map(json.dumps, lines)) + "\nnot json\n"
    manifest = quality_model.run(store, "test", CONFIG, {"labels": files_of(store, {"labels.jsonl": content})})
    assert manifest.rejected["no_label"] == 3
    assert manifest.info["languages"]["en"]["precision"] > 0.9
    with pytest.raises(InputError, match=r"other\.jsonl.*label"):
        quality_model.run(store, "test", CONFIG, {"labels": files_of(store, {"other.jsonl": '{"text": "The lamp."}\n'})})


def test_what_ends_in_nan_is_trained_again_and_a_process_that_always_dies_is_told(store, monkeypatch):
    source, plain, tries = output_of(store, "extract", [rows()]), subprocess.run, []

    def failing(times):
        def run(command, **more):
            if "tasks.corpus.fasttext_training" not in command:
                return plain(command, **more)
            tries.append(command)
            assert more["env"]["MALLOC_PERTURB_"] == "85"
            return subprocess.CompletedProcess(command, 3, "", "Encountered NaN.") if len(tries) <= times else plain(command, **more)

        return run

    monkeypatch.setattr(quality_model.subprocess, "run", failing(times=99))
    with pytest.raises(RankError, match=r"Encountered NaN.*3 times"):
        quality_model.run(store, "test", CONFIG, {"extract": source})
    tries.clear()
    monkeypatch.setattr(quality_model.subprocess, "run", failing(times=2))
    quality_model.run(store, "test", CONFIG, {"extract": source})
    assert len(tries) == 6  # three for the first model, one for each of the others


def test_a_killed_training_resumes_to_the_same_bytes_and_leaves_no_process(made, tmp_path):
    store = Store(tmp_path)
    source = output_of(store, "extract", [[*rows(), document("Le gardien monte dans la tour.", 9999, "wikipedia"), document("x", 10000)]])
    run = f"from test_quality_model import *; quality_model.run(Store({str(tmp_path)!r}), 'test', CONFIG, {{'extract': Store({str(tmp_path)!r}).need({source.address!r})}})"
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here), os.path.dirname(os.path.dirname(here))])
    process = subprocess.Popen([sys.executable, "-c", run], env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
    folder = None
    until = time.monotonic() + 120
    while folder is None and time.monotonic() < until:  # in the second training: the first model stands
        assert process.poll() is None
        folder = next(tmp_path.glob("stages/quality_model/*/_work/model-en-1.txt"), None)
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = next(tmp_path.glob("stages/quality_model/*/model-en-0.bin"))
    stamp = first.stat().st_mtime_ns
    until = time.monotonic() + 20
    while _trainings(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert _trainings(tmp_path) == []
    again = quality_model.run(store, "test", CONFIG, {"extract": source})
    assert parts_of(store, again) == parts_of(*made)
    assert first.stat().st_mtime_ns == stamp


def _trainings(folder):
    from chain import of_store

    return of_store(folder)


def test_a_model_whose_bytes_have_changed_is_not_loaded(tmp_path):
    store = Store(tmp_path)
    manifest = quality_model.run(store, "test", CONFIG, {"extract": output_of(store, "extract", [rows()])})
    path = store.dir(manifest.address) / "model-en-0.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamageError, match=r"model-en-0\.bin"):
        of_manifest(Store(tmp_path), manifest)


def test_the_filter_scores_crawled_pages_and_rejects_below_the_bound_of_their_language(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "run_ranks", run_inline)
    store = Store(tmp_path)
    source = output_of(store, "extract", [rows()])
    model = quality_model.run(store, "test", CONFIG, {"extract": source})
    fresh = [
        document(text(n, good, chinese), 2 * n + chinese, "commoncrawl", "fresh", url="https://new.example/")
        for n, good in enumerate([True, False] * 10, 700)
        for chinese in (True, False)
    ]
    fresh.append(document(text(800, False, False), 9000, "wikipedia"))
    pages = output_of(store, "extract", [fresh])
    plain = override(recipes.demo().filter, dict.fromkeys(("gopher", "repetition", "c4", "fineweb"), False) | {"min_language_score": 0.0})
    inputs = {"extract": pages, "quality_model": model}
    every = rows_of(store, quality.run(store, "test", plain, inputs, ENGINE))
    assert len(every) == 41
    assert [row["signals"]["quality"] is None for row in every] == [row["source"] == "wikipedia" for row in every]
    made = quality.run(store, "test", override(plain, {"thresholds": {"quality_low@en": 0.5}}), inputs, ENGINE)
    assert made.rejected == {"quality_low": 10}
    both = [*rows_of(store, made), *rows_of(store, made, "rejects-")]
    assert all(
        row["language"] == "en" and row["signals"]["quality"] < 0.5 and float(row["value"]) < 0.5 for row in both if row.get("reason")
    )
    assert recount(store, [made], {}).rejected["quality_low"] == [10, 10]
    assert recount(store, [made], {"quality_low@zh": 0.5}).rejected["quality_low"] == [10, 20]
    assert recount(store, [made], {"quality_low@en": 0.0}).total.documents_then == 41


def test_a_refresh_is_judged_by_the_model_of_what_is_published(made, monkeypatch):
    store, manifest = made
    old = output_of(store, "filter", [rows()[:1]], {"quality_model": manifest})
    part = output_of(store, "decontaminate", [rows()[:1]], {"dedup": old})
    recipe = replace(recipes.tiny(), quality_model=CONFIG)
    monkeypatch.setattr(build.quality_model, "quality_model", lambda *_: pytest.fail("it was trained anew"))
    noted = []
    found = build.judges(SimpleNamespace(recipe=recipe, store=store, rebuild=(), note=lambda m: noted.append(m) or m), part, [part])
    assert found == {"quality_model": manifest} and noted == [manifest]


@pytest.mark.full
def test_the_sample_from_ingest_to_filter_has_scores(store):
    """The embedded sample is too small for a model that means something: what is shown is that the chain stands."""
    r = recipes.tiny()
    raw = {
        "commoncrawl": commoncrawl.run(store, r.name, r.common_crawl, r.download),
        "wikipedia": wikipedia.run(store, r.name, r.wikipedia, r.download),
    }
    extracted = extract.run(store, r.name, r.extract, raw, r.engine)
    model = quality_model.run(store, r.name, override(CONFIG, {"min_precision": 0.0, "epochs": 100}), {"extract": extracted})
    made = quality.run(store, r.name, r.filter, {"extract": extracted, "quality_model": model}, r.engine)
    found = rows_of(store, made)
    assert all((row["signals"]["quality"] is None) == (row["source"] == "wikipedia") for row in found)
    assert {row["language"] for row in found if row["signals"]["quality"] is not None} == {"en", "zh"}
    plain = quality.run(store, r.name, r.filter, {"extract": extracted}, r.engine)
    assert [row["id"] for row in rows_of(store, plain)] == [row["id"] for row in found]


def test_what_a_model_reads_is_words_signs_and_chinese_characters():
    assert features("The  Lamp,\nlit in 1984!", 100) == "the lamp , lit in 0000 !"
    assert features("ＡＢ灯塔very亮", 100) == "ab 灯 塔 very 亮"
    assert features("abcdef", 3) == "abc"
    assert "\n" not in features("a\u2028b\x85c\x0bd", 100)


def test_metrics_are_those_of_their_definitions():
    found = metrics([True, True, False, False], [0.9, 0.4, 0.6, 0.1])
    assert found == {"precision": 0.5, "recall": 0.5, "accuracy": 0.5, "auc": 0.75}
    assert metrics([True, False], [0.5, 0.5])["auc"] == 0.5
    assert metrics([True, False], [0.1, 0.2])["precision"] == 0.0
