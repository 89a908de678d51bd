"""Properties of tasks/corpus/examples.py: four plain shapes and public formats become rows; what is none is named with file, place and value."""

import gzip
import json
import zipfile

import pytest

from model.errors import InputError
from tasks.corpus.examples import holds_examples, read, shape_of

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LABEL = {"text": "丢了", "label": "lost"}
SPAN = {"context": "灯塔很高。", "question": "什么？", "answers": [{"text": "灯塔", "start": 0}]}
PREFERENCE = {"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}


def rows(path, text: str | bytes, name: str = "") -> list[dict]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read(path, name or path.name))


def test_plain_json_lines_keep_their_fields_and_train_unless_they_say_otherwise(tmp_path):
    given = [CHAT, LABEL | {"split": "valid", "id": "x"}, SPAN, PREFERENCE]
    found = rows(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in given) + "\n\n")
    assert [shape_of(row) for row in found] == ["chat", "label", "span", "preference"]
    assert [row["split"] for row in found] == ["train", "valid", "train", "train"]
    assert [row["id"] for row in found] == ["a.jsonl:line 1", "x", "a.jsonl:line 3", "a.jsonl:line 4"]
    assert all(given[n].items() <= found[n].items() for n in range(4))


def test_public_formats_become_the_plain_shapes(tmp_path):
    table = rows(tmp_path / "train.csv", '﻿text,category\n"I lost it,\nhelp",card_lost\nwhere?,card_arrival\n')
    assert [(row["text"], row["label"]) for row in table] == [("I lost it,\nhelp", "card_lost"), ("where?", "card_arrival")]
    seeds = {"instruction": "Say", "instances": [{"input": "x", "output": "y"}, {"input": "", "output": "z"}]}
    found = rows(tmp_path / "s.jsonl", json.dumps(seeds) + "\n" + json.dumps({"instruction": "Do", "input": "", "output": "done"}))
    assert [[message["content"] for message in row["messages"]] for row in found] == [["Say\n\nx", "y"], ["Say", "z"], ["Do", "done"]]
    squad = {
        "data": [
            {
                "paragraphs": [
                    {"context": "灯塔很高。", "qas": [{"id": "q", "question": "什么？", "answers": [{"text": "很高", "answer_start": 1}]}]}
                ]
            }
        ]
    }
    path = tmp_path / "c.json.gz"
    found = rows(path, gzip.compress(json.dumps(squad).encode()))
    assert found[0]["answers"] == [{"text": "很高", "start": 2}] and found[0]["id"] == "q"  # counted from elsewhere, looked up
    with zipfile.ZipFile(tmp_path / "w.json.zip", "w") as archive:
        archive.writestr(
            "w.json", json.dumps({"7": {"messages": [{"role": "usr", "content": "你好"}, {"role": "sys", "content": "您好", "x": 1}]}})
        )
    (dialogue,) = read(tmp_path / "w.json.zip", "w.json.zip")
    assert dialogue["messages"] == [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"}]


def test_one_in_ten_of_a_public_set_is_held_out_the_same_at_every_reading_and_a_context_stays_on_one_side(tmp_path):
    table = "text,label\n" + "".join(f"t{n},l\n" for n in range(2000))
    found = [row["split"] for row in rows(tmp_path / "a.csv", table)]
    assert found == [row["split"] for row in read(tmp_path / "a.csv", "a.csv")] and 140 < found.count("valid") < 260
    paragraph = {"context": "", "qas": [{"id": f"q{n}", "question": "?", "answers": []} for n in range(30)]}
    squad = {"data": [{"paragraphs": [paragraph | {"context": f"c{n}", "qas": paragraph["qas"]}]} for n in range(20)]}
    sides: dict[str, set[str]] = {}
    for row in rows(tmp_path / "b.json", json.dumps(squad)):
        sides.setdefault(row["context"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", json.dumps(LABEL) + "\n{broken", "a.jsonl, line 2: Expecting property name"),
        ("a.jsonl", "[1]", "line 1: it holds '\\[1\\]', no object"),
        ("a.jsonl", json.dumps({"text": "x", "label": 3}), '"label": 3.*has the fields of none of preference, chat, label, span'),
        ("a.jsonl", json.dumps(LABEL | {"split": "test"}), "line 1: split is 'test'; it is one of train, valid"),
        (
            "a.jsonl",
            json.dumps(SPAN | {"answers": [{"text": "塔灯", "start": 0}]}),
            "'塔灯' of a.jsonl:line 1 does not stand in its context",
        ),
        ("a.csv", "question,reply\na,b\n", "has the fields of none"),
        ("a.csv", b"text,label\n\xff\xfe,x\n", "codec can't decode"),
        ("a.json", json.dumps({"rows": []}), "neither SQuAD's `data` nor dialogues"),
        ("a.json", json.dumps({"data": [{"paragraphs": [{"context": "x"}]}]}), "qas"),
    ],
)
def test_what_is_no_example_is_named_with_its_place(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        rows(tmp_path / name, text)


def test_files_of_examples_are_known_by_their_endings():
    assert all(map(holds_examples, ("a.jsonl", "b/a.csv", "a.json.gz", "a.json.zip", "a.csv.gz")))
    assert not any(map(holds_examples, ("a.txt", "README.md", "LICENSE", "a.parquet")))


@pytest.mark.realdata
def test_the_real_sets_are_read_whole(realdata):
    for name, shape, count in (
        ("finetune/banking77/banking_data/train.csv", "label", 10_003),
        ("finetune/crosswoz/data/crosswoz/val.json.zip", "chat", 500),
        ("finetune/self-instruct-seed/seed_tasks.jsonl", "chat", 175),
        ("eval/cmrc2018/squad-style-data/cmrc2018_trial.json.gz", "span", 1002),
    ):
        found = list(read(realdata / name, name))
        assert len(found) == count and {shape_of(row) for row in found} == {shape}
