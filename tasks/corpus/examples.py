"""Supervised examples from files: one's own JSON lines in four plain shapes, and five public formats, told apart by their fields.

    for row in read(path, "banking77/train.csv"): ...      # {"id", "split", …}

| shape | fields beside id and split |
|---|---|
| chat | messages: list of {role, content} |
| label | text, label, and maybe text_b |
| span | context, question, answers: list of {text, start}, start counted in characters |
| preference | messages (ending with the user), chosen, rejected |

Public formats: CSV with text and category or label (banking77); JSON lines with instruction and instances (self-instruct) or output (Alpaca);
SQuAD's JSON (CMRC); CrossWOZ's dialogues. `.gz` and `.zip` are looked through. A row of these without a split of its own is held out by the
hash of its context or id, one in ten; a row of one's own JSON lines trains, unless it says `split`.
"""

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from model.errors import InputError

Row = dict[str, Any]
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv")
"""Files that hold examples; each also as .gz, or alone in a .zip."""
SHAPES: dict[str, dict[str, type]] = {
    "preference": {"messages": list, "chosen": str, "rejected": str},
    "chat": {"messages": list},
    "label": {"text": str, "label": str},
    "span": {"context": str, "question": str, "answers": list},
}
"""Shape → the fields by which a row is known, the most telling shape first."""
SPLITS = ("train", "valid")


def holds_examples(name: str) -> bool:
    """Whether a file of this name can hold examples."""
    return Path(name.removesuffix(".gz").removesuffix(".zip")).suffix in ENDINGS


def shape_of(row: Row) -> str | None:
    """chat, label, span or preference; None for a row that is none."""
    fits = (all(type(row.get(name)) is kind for name, kind in fields.items()) for fields in SHAPES.values())
    return next((shape for shape, good in zip(SHAPES, fits, strict=True) if good), None)


def read(path: Path, name: str) -> Iterator[Row]:
    """Rows of a file in its order; `name` stands in ids and errors. InputError names file, place and value of what is no example."""
    place = "the file"
    try:
        text = _opened(path)
        kind = Path(name.removesuffix(".gz").removesuffix(".zip")).suffix
        found: Iterator[tuple[str, Row | str]] = (
            _lines(text) if kind in (".jsonl", ".ndjson") else _table(text) if kind == ".csv" else _document(text)
        )
        for place, given in found:
            row = _parsed(given) if isinstance(given, str) else given
            public = given is row or shape_of(row) is None
            for part in _plain(row) if public else [row]:
                shape = shape_of(part)
                if shape is None:
                    raise ValueError(f"{json.dumps(part, ensure_ascii=False)[:120]} has the fields of none of {', '.join(SHAPES)}")
                whole = {"id": f"{name}:{place}", "split": "train"} | part
                if public and "split" not in part:
                    whole["split"] = "valid" if xxhash.xxh64_intdigest(whole.get("context", whole["id"]).encode()) % 10 == 0 else "train"
                if whole["split"] not in SPLITS:
                    raise ValueError(f"split is {whole['split']!r}; it is one of {', '.join(SPLITS)}")
                if shape == "span":
                    _check_answers(whole)
                yield whole
    except (ValueError, KeyError, TypeError, csv.Error, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{name}, {place}: {error}. Mend it or take it out of the examples") from None


def _opened(path: Path) -> io.TextIOBase:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if not entry.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"a zip of one file is read, this one holds {len(names)}")
            return io.StringIO(archive.read(names[0]).decode("utf-8-sig"))
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return io.StringIO(file.read().decode("utf-8-sig"), newline="")


def _lines(text: io.TextIOBase) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield f"line {number}", line


def _parsed(line: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it holds {line.strip()[:80]!r}, no object")
    return row


def _table(text: io.TextIOBase) -> Iterator[tuple[str, Row]]:
    rows = csv.DictReader(text)
    for row in rows:
        yield f"line {rows.line_num}", row


def _document(text: io.TextIOBase) -> Iterator[tuple[str, Row]]:
    whole = json.load(text)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield f"question {question['id']}", {"context": paragraph["context"]} | question
    elif isinstance(whole, dict) and all(isinstance(dialogue, dict) and "messages" in dialogue for dialogue in whole.values()):
        for name, dialogue in whole.items():
            yield f"dialogue {name}", {"woz": dialogue["messages"]}
    else:
        raise ValueError("neither SQuAD's `data` nor dialogues by their names with `messages`")


def _plain(row: Row) -> Iterator[Row]:
    """A row of a public format in the plain shapes. One that is none of them comes back as it is."""
    own = {"split": row["split"]} if "split" in row else {}
    if "woz" in row:
        roles = {"usr": "user", "sys": "assistant"}
        yield {"messages": [{"role": roles[turn["role"]], "content": turn["content"]} for turn in row["woz"]]}
    elif "instruction" in row:
        for instance in row.get("instances", [row]):
            asked = "\n\n".join(filter(None, (row["instruction"], instance.get("input", ""))))
            yield own | {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": instance["output"]}]}
    elif "text" in row and ("category" in row or "label" in row):
        more = {"text_b": row["text_b"]} if row.get("text_b") else {}
        yield own | {"text": row["text"], "label": row["category"] if "category" in row else row["label"]} | more
    elif "question" in row and "context" in row:
        answers = [{"text": answer["text"], "start": answer["answer_start"]} for answer in row["answers"]]
        yield own | {"id": row["id"], "context": row["context"], "question": row["question"], "answers": answers}
    else:
        yield row


def _check_answers(row: Row) -> None:
    """An answer stands in the context where it is said to. SQuAD's tools look up those that are counted from elsewhere, and so does this."""
    for answer in row["answers"]:
        if row["context"][answer["start"] : answer["start"] + len(answer["text"])] != answer["text"]:
            found = row["context"].find(answer["text"])
            if found < 0 or not answer["text"]:
                raise ValueError(f"the answer {answer['text'][:60]!r} of {row['id']} does not stand in its context")
            answer["start"] = found
