"""Decontamination: planted evaluation items go, attributed; short ones and clean documents stay."""

import dataclasses
import gzip
import json

import pytest
from corpora import ENGINE, document, files_of, output_of, rows_of, run_inline
from hypothesis import given
from hypothesis import strategies as st

from model.config import override
from model.errors import ConfigError, InputError
from tasks.corpus import contamination
from tasks.corpus.contamination import DecontaminateConfig, Needles, sequences, texts

CONFIG = DecontaminateConfig(words=13, min_words=8, characters=20, min_characters=12, min_matches=1)
QUESTION = (
    "A keeper climbs one hundred and ninety-nine steps to reach the lamp, and each step is seventeen centimetres high. How high is it?"
)
CHINESE = "一位守塔人每天清晨要登上一百九十九级台阶去擦拭灯室的玻璃，每级台阶高十七厘米，请问灯室离塔底大约有多高？"
PAIR = {"sentence_good": "The owls sleep.", "sentence_bad": "The owls sleeps.", "UID": "agreement", "pairID": "7"}
FILES = {
    "eval/blimp/Subject-Verb.jsonl": json.dumps(PAIR) + "\n",
    "eval/choice/facts_en.jsonl": json.dumps({"id": "en-1", "query": QUESTION, "choices": ["34 m", "12 m"], "gold": 0}) + "\n",
    "eval/choice/facts_zh.jsonl": json.dumps({"id": "zh-1", "query": CHINESE, "choices": ["34米", "12米"], "gold": 0}, ensure_ascii=False)
    + "\n",
    "eval/heldout.jsonl.gz": gzip.compress(
        b'{"id": "h-1", "text": "Salt was carried over the pass on mules, and every village took a share of it for the upkeep of the road."}\n'
    ),
    "eval/README.md": "# what these are",
}


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(contamination, "run_ranks", run_inline)


def run(store, rows, files=FILES, config=CONFIG, parts=2):
    inputs = {"dedup": output_of(store, "dedup", [rows[at::parts] for at in range(parts)]), "evaluation": files_of(store, files)}
    return contamination.run(store, "test", config, inputs, ENGINE)


def needles(*given, config=CONFIG):
    made = Needles(config)
    for number, some in enumerate(given):
        made.add("set", str(number), some)
    return made


def test_a_document_with_an_item_goes_under_its_set_and_item_and_others_stay(store):
    rows = [
        document(f"Quiz night! “{QUESTION.upper()}” — answers next week.", 0),
        document(f"前言。{CHINESE}后记。", 1),
        document("They said that salt was carried over the pass, on mules; and every village took\na share of it.", 2),
        document("The owls sleep. A keeper climbs one hundred steps to reach the lamp, and he rests. Salt was carried over the pass.", 3),
        document("一位守塔人每天清晨要登上台阶。灯室离塔底很高。", 4),
    ]
    manifest = run(store, rows)
    assert {r["origin_offset"] for r in rows_of(store, manifest)} == {3, 4}
    assert {r["origin_offset"]: (r["reason"], r["value"]) for r in rows_of(store, manifest, "rejects-")} == {
        0: ("contaminated_facts_en", "en-1"), 1: ("contaminated_facts_zh", "zh-1"), 2: ("contaminated_heldout", "h-1"),
    }  # fmt: skip
    assert manifest.info["evaluation"] == {
        "subject_verb": {"items": 1, "silent": 1, "documents": 0}, "facts_en": {"items": 1, "silent": 0, "documents": 1},
        "facts_zh": {"items": 1, "silent": 0, "documents": 1}, "heldout": {"items": 1, "silent": 0, "documents": 1},
    }  # fmt: skip
    assert manifest.info["not_read"] == ["eval/README.md"]
    assert manifest.kept + sum(manifest.rejected.values()) == manifest.seen == 5


@pytest.mark.usefixtures("inline")
def test_a_document_with_items_of_several_sets_has_the_firsts_reason_and_counts_for_each(store):
    manifest = run(store, [document(f"{CHINESE} {QUESTION}", 0)])
    assert manifest.rejected == {"contaminated_facts_en": 1}
    assert {name: found["documents"] for name, found in manifest.info["evaluation"].items()} == {
        "subject_verb": 0, "facts_en": 1, "facts_zh": 1, "heldout": 0,
    }  # fmt: skip


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.lists(st.sampled_from("abcdefgh"), max_size=20))
def test_words_match_exactly_where_a_needle_is_in_the_text(text, item):
    config = DecontaminateConfig(words=6, min_words=3, characters=6, min_characters=3, min_matches=1)
    spelt = f" {' '.join(text)} "
    pieces = [item[at : at + 6] for at in range(len(item) - 5)] or ([item] if len(item) >= 3 else [])
    expected = any(f" {' '.join(piece)} " in spelt for piece in pieces)
    assert bool(needles([" ".join(item)], config=config).found_in("\n".join(text).upper())) == expected


@given(st.text("的是在茶竹", max_size=40), st.text("的是在茶竹", max_size=12))
def test_chinese_matches_exactly_where_a_needle_is_in_the_text(text, item):
    config = DecontaminateConfig(words=6, min_words=3, characters=6, min_characters=3, min_matches=1)
    pieces = [item[at : at + 6] for at in range(len(item) - 5)] or ([item] if len(item) >= 3 else [])
    assert bool(needles([item], config=config).found_in("，".join(text))) == any(piece in text for piece in pieces)


def test_short_items_count_as_a_whole_from_the_least_length_on():
    seven, eight = "one two three four five six seven", "one two three four five six seven eight"
    made = needles([seven], [eight], ["竹子是一种草本植物它生长"], ["竹子是一种草本植物"])
    assert made.silent["set"] == 2
    assert made.found_in(f"zero {eight} nine") == [("set", "1")]
    assert made.found_in(f"zero {seven} nine") == []
    assert made.found_in("竹子是一種草本植物，它生長得很快") == [("set", "2")]


def test_min_matches_asks_for_several_needles_or_all_that_an_item_has():
    config = dataclasses.replace(CONFIG, min_matches=3)
    long = [f"w{n}" for n in range(30)]
    made = needles([" ".join(long)], [" ".join(long[:13])], config=config)
    assert made.found_in(" ".join(long[5:19])) == []
    assert made.found_in(" ".join(long[5:20])) == [("set", "0")]
    assert made.found_in(" ".join(long[:13])) == [("set", "1")]


def test_signs_case_and_width_hide_nothing():
    assert sequences("“Ｈｅｌｌｏ,” she-said; 圖，書") == (["hello", "she", "said"], "图书")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (PAIR, ["The owls sleep.", "The owls sleeps."]),
        ({"query": "q", "choices": ["a", "b"], "gold": 1}, ["q", "q a", "q b"]),
        ({"context": "c", "continuation": "d"}, ["c", "c d"]),
        ({"context": "c", "answer": "d"}, ["c", "c d"]),
        ({"context_options": ["c", "d"], "continuation": "e", "gold": 0}, ["c e", "d e"]),
        ({"id": 1, "text": "t"}, ["t"]),
    ],
)
def test_every_known_format_gives_its_texts(item, expected):
    assert texts(item, "here") == expected


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "fine"}\n{"txt": 1}\n', r"x\.jsonl line 2.*txt"),
        ('{"text": ', r"x\.jsonl"),
        ("[1]\n", "line 1.*list"),
        (b"\xff\xfe\n", r"x\.jsonl"),
    ],
)
def test_a_broken_evaluation_file_is_named(store, content, told):
    with pytest.raises(InputError, match=told):
        run(store, [document("a text", 0)], {"eval/x.jsonl": content})


def test_least_lengths_above_the_lengths_are_refused():
    with pytest.raises(ConfigError, match="min_words"):
        override(CONFIG, {"min_words": 14})


@pytest.mark.realdata
def test_real_minimal_pairs_and_questions_leave_real_news_alone(realdata):
    made = Needles.of(
        [
            (path.name, str(path))
            for folder in ("blimp/data", "llm-foundry")
            for path in sorted((realdata / "eval" / folder).rglob("*.jsonl.gz"))
        ],
        CONFIG,
    )
    articles = gzip.decompress((realdata / "neardup/mccormick/data/articles_1000.train.gz").read_bytes()).decode().splitlines()
    assert len(made.items) > 33_000
    assert [found for article in articles if (found := made.found_in(article))] == []
