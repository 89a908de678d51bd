"""The index: row n of a segment is row n of its part; signatures of another kind are refused; a killed stage resumes."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import shingling
from corpora import ENGINE, document, output_of, run_inline, words

from flows import recipes
from model.errors import ConfigError
from tasks.corpus import dedup, index, minhash
from tasks.corpus.keepers import IDENTITY, key_column

DEDUP = recipes.tiny().dedup
CONFIG = DEDUP.signatures


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(index, "run_ranks", run_inline)
    monkeypatch.setattr(dedup, "run_ranks", run_inline)


def texts(count: int) -> list[dict]:
    return [document(" ".join(words(60, seed=number)), number) for number in range(count)]


@pytest.mark.usefixtures("inline")
def test_a_row_has_the_identity_and_the_band_keys_of_the_same_row_of_its_part(store):
    parts = [texts(7), [], texts(9)[7:]]
    made = index.run(store, "test", CONFIG, {"documents": output_of(store, "decontaminate", parts)}, ENGINE)
    assert made.seen == made.kept == 9 and made.info["signature"] == minhash.header(128, 1, 25, 5)
    assert [file.rows for file in made.parts("signatures-")] == [7, 0, 2]
    for file, rows in zip(made.parts("signatures-"), parts, strict=True):
        table = pq.read_table(store.path(made, file))
        assert table.select(IDENTITY).to_pylist() == [{name: row[name] for name in IDENTITY} for row in rows]
        keys = np.array([table[key_column(band)].to_numpy() for band in range(25)], np.uint64).reshape(25, len(rows)).T
        signed = np.array([shingling.signature(row["text"]) for row in rows], np.uint32).reshape(len(rows), 128)
        assert keys.tolist() == minhash.bands(signed, 25, 5).tolist()


@pytest.mark.usefixtures("inline")
def test_no_old_text_is_read_where_nothing_new_resembles_it(store):
    old, new = output_of(store, "decontaminate", [texts(20)]), output_of(store, "filter", [[document("something new " * 9, 99)]])
    segment = index.run(store, "test", CONFIG, {"documents": old}, ENGINE)
    (store.dir(old.address) / old.files[0].path).unlink()
    made = dedup.run(store, "test", DEDUP, {"filter": new, "previous-000": old, "index-000": segment}, ENGINE)
    assert (made.seen, made.kept) == (1, 1)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("field", "value"), [("seed", 2), ("permutations", 256), ("bands", 20), ("rows", 4)])
def test_signatures_of_another_kind_are_refused_by_the_name_of_the_parameter(store, field, value):
    documents = output_of(store, "decontaminate", [texts(3)])
    other = index.run(store, "test", dataclasses.replace(CONFIG, **{field: value}), {"documents": documents}, ENGINE)
    inputs = {"filter": output_of(store, "filter", [texts(2)]), "previous-000": documents, "index-000": other}
    with pytest.raises(ConfigError, match=rf"{field} {value} there, {getattr(CONFIG, field)} here"):
        dedup.run(store, "test", DEDUP, inputs, ENGINE)


def test_a_stage_killed_while_it_moves_its_files_goes_on_from_there(store, monkeypatch):
    parts = [texts(3), texts(6)[3:], texts(9)[6:]]
    documents = output_of(store, "decontaminate", parts)
    moved, replace = [], index.os.replace

    def die(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index.os, "replace", die)
        index.run(store, "test", CONFIG, {"documents": documents}, ENGINE)
    made = index.run(store, "test", CONFIG, {"documents": documents}, ENGINE)
    assert [file.rows for file in made.parts("signatures-")] == [3, 3, 3]
