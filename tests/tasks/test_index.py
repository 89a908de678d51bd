"""The index: row n of a segment is row n of its part; a look-up finds what a search of everything finds; signatures of another kind are refused."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shingling
from corpora import ENGINE, changed, document, output_of, run_inline, words

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
def test_a_look_up_finds_the_rows_that_share_a_key_or_a_text_and_no_others(store, tmp_path):
    old = [document(" ".join(changed(words(60, seed=number // 3), number % 3 * 4, number)), number) for number in range(90)]
    fresh = [document(" ".join(changed(words(60, seed=number), 1, 500 + number)), 200 + number) for number in range(0, 60, 2)]
    parts = [old[:50], [], old[50:]]
    segment = index.run(store, "test", CONFIG, {"documents": output_of(store, "decontaminate", parts)}, ENGINE)
    new = index.run(store, "test", CONFIG, {"documents": output_of(store, "filter", [fresh, old[7:8]])}, ENGINE)
    files = [store.path(new, file) for file in new.parts("signatures-")]
    there, here = (pa.concat_tables([pq.read_table(store.path(m, f)) for f in m.parts("signatures-")]) for m in (segment, new))
    columns = [key_column(band) for band in range(25)] + ["text_hash"]
    shared = [set(here[name].to_pylist()) for name in columns]
    expected = [n for n, row in enumerate(there.to_pylist()) if any(row[name] in keys for name, keys in zip(columns, shared, strict=True))]
    [found, none] = index.related(store, [segment, segment], files, CONFIG)[:1] + index.related(store, [segment], [], CONFIG)
    assert found.tolist() == expected and 7 in expected and 20 < len(expected) < 80 and none.tolist() == []
    copied = list(index.some(store, segment, found, tmp_path / "some"))
    assert [number for number, _, _ in copied] == [0, 2]
    assert [row + (0, 50)[number > 0] for number, rows, _ in copied for row in rows.tolist()] == expected
    assert pa.concat_tables([pq.read_table(path) for _, _, path in copied]).equals(there.take(expected))


@pytest.mark.usefixtures("inline")
def test_dedup_over_what_a_look_up_finds_is_dedup_over_everything(store, monkeypatch):
    def fresh(seed: int) -> list[dict]:
        return [
            document(" ".join(changed(words(80, seed=seed // 50 + n % 40), n % 3, seed + n)), seed + n, snapshot=f"s{seed}")
            for n in range(120)
        ]

    old, new = fresh(1000), fresh(2000)
    published = [dedup.run(store, "test", DEDUP, {"filter": output_of(store, "filter", [old[:60], old[60:]])}, ENGINE)]
    inputs = {"previous-000": published[0], "index-000": index.run(store, "test", CONFIG, {"documents": published[0]}, ENGINE)}
    inputs["filter"] = output_of(store, "filter", [new[:50], new[50:]])
    some = dedup.run(store, "test", DEDUP, inputs, ENGINE)
    monkeypatch.setattr(index, "related", lambda store, segments, files, config: [np.arange(segment.seen) for segment in segments])
    every = dedup.run(store, "other", DEDUP, inputs, ENGINE, rebuild=True)
    assert [(f.path, f.sha256) for f in some.files] == [(f.path, f.sha256) for f in every.files] and some.info == every.info
    assert {"duplicate_of_previous", "near_duplicate"} <= some.rejected.keys()


@pytest.mark.usefixtures("inline")
def test_of_a_part_only_the_row_groups_are_read_in_which_a_row_lies(store, tmp_path, monkeypatch):
    segment = index.run(store, "test", CONFIG, {"documents": output_of(store, "decontaminate", [texts(3500)])}, ENGINE)
    read, groups = [], pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda self, some, *more: read.append(some) or groups(self, some, *more))
    [(_, rows, path)] = index.some(store, segment, np.array([3, 999, 2000, 3499]), tmp_path / "some")
    assert rows.tolist() == [3, 999, 2000, 3499] and read == [[0, 2, 3]]
    whole = pq.read_table(store.path(segment, segment.parts("signatures-")[0]))
    assert pq.read_table(path).equals(whole.take(rows))


@pytest.mark.usefixtures("inline")
def test_keys_are_mapped_not_loaded(store):
    segment = index.run(store, "test", CONFIG, {"documents": output_of(store, "decontaminate", [texts(5)])}, ENGINE)
    keys = index._mapped(store, segment, "keys-000.npy")
    assert isinstance(keys.base, np.memmap) and (np.diff(keys.astype(object)) >= 0).all()


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
