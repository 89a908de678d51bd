"""Tokenizer and encode: shards hold the documents whole, in an order that nothing but seed and ids decides."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import document, output_of, parts_of, words

from model.errors import ConfigError, EmptyError, TokenizerError
from model.tokenizer import END_OF_TEXT, TokenizerConfig, load
from tasks.corpus import encode
from tasks.corpus.encode import EncodeConfig, Spool, Weight
from tasks.corpus.manifest import Store

TOKENIZER = TokenizerConfig(vocab=512, sample_bytes=100_000)
CONFIG = EncodeConfig(shard_tokens=3_000, valid_share=0.1, seed=7, mixture=())
CHINESE = "他们在清晨登上塔顶，擦拭灯室的玻璃。"


def rows(count=60):
    """Short English and Chinese documents, one with a special token spelt out."""
    made = [
        document(
            f"{' '.join(words(30, seed=place, vocabulary=80))}\n{CHINESE * (place % 3)}", place, ("wikipedia", "files")[place % 2],
            language=("en", "zh")[place % 3 > 0],
        )
        for place in range(count)
    ]  # fmt: skip
    return [*made, document("A text that says <|endoftext|> and <|im_start|>user is a text. 🦉\u0301\r\n", count, language="en")]


def built(store, documents=None, config=CONFIG, parts=2, tokenizer=TOKENIZER):
    """(corpus, tokenizer manifest, encode manifest)"""
    documents = rows() if documents is None else documents
    corpus = {"corpus-000": output_of(store, "decontaminate", [documents[at::parts] for at in range(parts)])}
    trained = encode.train_tokenizer(store, "test", tokenizer, corpus)
    return corpus, trained, encode.run(store, "test", config, corpus | {"tokenizer": trained})


def read(prefix):
    """An indexed dataset read by its definition, without our reader."""
    index, data = prefix.with_name(prefix.name + ".idx").read_bytes(), prefix.with_name(prefix.name + ".bin").read_bytes()
    magic, version, code, count, borders = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, borders) == (b"MMIDIDX\0\0", 1, count + 1)
    at = struct.calcsize("<9sQBQQ")
    sizes = struct.unpack_from(f"<{count}i", index, at)
    pointers = struct.unpack_from(f"<{count}q", index, at + 4 * count)
    width, sign = {4: (4, "i"), 8: (2, "H")}[code]
    return [list(struct.unpack_from(f"<{size}{sign}", data, pointer)) for size, pointer in zip(sizes, pointers, strict=True)], width


def stored(store, manifest, kind):
    """[(id, token ids)] of all shards of a kind, in order."""
    found = []
    for file in manifest.parts(kind):
        if file.path.endswith(".bin"):
            path = store.path(manifest, file)
            listed = pq.read_table(path.with_suffix(".documents.parquet")).to_pylist()
            sequences, _ = read(path.with_suffix(""))
            assert [row["tokens"] for row in listed] == [len(ids) for ids in sequences]
            found += [(row["id"], ids) for row, ids in zip(listed, sequences, strict=True)]
    return found


def test_every_document_comes_back_whole_from_train_or_valid_and_is_in_one_of_them(store):
    documents = rows()
    _, trained, manifest = built(store, documents)
    tokenizer = load(store.dir(trained.address) / "tokenizer")
    train, valid = stored(store, manifest, "train-"), stored(store, manifest, "valid-")
    assert all(ids[-1] == END_OF_TEXT and END_OF_TEXT not in ids[:-1] for _, ids in train + valid)
    assert {id: tokenizer.decode(ids[:-1], skip_special_tokens=False) for id, ids in train + valid} == {
        r["id"]: r["text"] for r in documents
    }
    assert len(train) + len(valid) == len(documents) == manifest.kept == manifest.seen
    assert 0 < len(valid) < len(documents) / 4
    assert len([f for f in manifest.parts("train-") if f.path.endswith(".bin")]) > 1


def test_info_counts_tokens_by_source_language_and_year_and_names_the_tokenizer(store):
    documents = rows()
    for place, row in enumerate(documents):
        row["date"] = ("2024-05-18T01:02:03Z", "2026-11-24", "", "soon")[place % 4]
    _, trained, manifest = built(store, documents)
    tokens = Counter()
    by_id = {row["id"]: row for row in documents}
    for id, ids in stored(store, manifest, "train-") + stored(store, manifest, "valid-"):
        tokens[by_id[id]["source"]] += len(ids)
        tokens[by_id[id]["language"]] += len(ids)
        tokens[by_id[id]["date"][:4] if by_id[id]["date"][:1] == "2" else "unknown"] += len(ids)
    info = manifest.info
    assert dict(tokens) == info["tokens_by_source"] | info["tokens_by_language"] | info["tokens_by_year"]
    assert all(sum(info[f"tokens_by_{by}"].values()) == sum(info["tokens"].values()) for by in ("source", "language", "year"))
    assert info["tokenizer"] == trained.info["tokenizer"] and info["vocab"] == trained.info["vocab"] and info["vocab"] % 64 == 0
    assert info["dtype"] == "uint16"


def test_the_order_is_the_seeds_and_no_part_or_neighbour_changes_it(store):
    documents = rows()
    _, trained, first = built(store, documents)
    corpus = {
        "corpus-000": output_of(store, "decontaminate", [documents[30:]]),
        "corpus-001": output_of(store, "decontaminate", [documents[:30]]),
    }
    turned = encode.run(store, "test", CONFIG, corpus | {"tokenizer": trained})
    fewer = encode.run(store, "test", CONFIG, {"corpus-000": corpus["corpus-000"], "tokenizer": trained})
    other = encode.run(store, "test", dataclasses.replace(CONFIG, seed=8), corpus | {"tokenizer": trained})
    order = [id for id, _ in stored(store, first, "train-")]
    assert order == [id for id, _ in stored(store, turned, "train-")] != [r["id"] for r in documents if r["id"] in set(order)]
    left = {r["id"] for r in documents[30:]}
    assert [id for id in order if id in left] == [id for id, _ in stored(store, fewer, "train-")]
    assert order != (reordered := [id for id, _ in stored(store, other, "train-")]) and sorted(order) == sorted(reordered)


def test_many_small_ranges_give_the_same_shards_as_one(store, tmp_path, monkeypatch):
    other = Store(tmp_path / "other")
    _, _, one = built(store)
    monkeypatch.setattr(encode, "RANGE_BYTES", 1_000)
    monkeypatch.setattr(encode, "BUFFER_TOKENS", 500)
    _, _, many = built(other)
    assert parts_of(store, one) == parts_of(other, many)


def mixed(store, *weights, documents=None, seed=7):
    """(times of every training id, in order of training; validation ids; manifest) under a mixture."""
    config = dataclasses.replace(CONFIG, mixture=tuple(Weight(*weight) for weight in weights), seed=seed)
    _, _, manifest = built(store, documents, config)
    return [id for id, _ in stored(store, manifest, "train-")], [id for id, _ in stored(store, manifest, "valid-")], manifest


def test_a_mixture_stores_every_training_document_as_often_as_asked_and_says_so(store):
    documents = rows(200)
    kinds = {row["id"]: f"{row['source']}/{row['language']}" for row in documents}
    plain, held, _ = mixed(store, documents=documents)
    train, valid, manifest = mixed(store, ("wikipedia/zh", 3), ("wikipedia/*", 0), ("*/en", 1.5), documents=documents)
    times, told = Counter(train), manifest.info["mixture"]
    assert valid == held and not set(valid) & set(train) and set(train) < set(plain)
    for id in plain:
        assert times[id] in {"wikipedia/zh": (3,), "wikipedia/en": (0,), "files/zh": (1,), "files/en": (1, 2)}[kinds[id]]
    assert {kind: facts["epochs"] for kind, facts in told.items()} == {
        "wikipedia/zh": 3.0, "wikipedia/en": 0.0, "files/zh": 1.0, "files/en": 1.5,
    }  # fmt: skip
    for kind, facts in told.items():
        assert facts["documents"] == sum(kinds[id] == kind for id in plain)
        assert facts["stored"] == sum(kinds[id] == kind for id in train)
        assert facts["epochs_got"] == facts["stored"] / facts["documents"]
    assert told["wikipedia/zh"]["epochs_got"] == 3 and 1.2 < told["files/en"]["epochs_got"] < 1.8
    assert sum(facts["stored_tokens"] for facts in told.values()) == manifest.info["tokens"]["train"]
    gone = sum(kinds[id] == "wikipedia/en" for id in plain)
    assert manifest.rejected == {"mixture": gone} and manifest.kept + gone == manifest.seen == len(documents)


def test_more_epochs_keep_what_fewer_had_and_another_seed_draws_another_part(store):
    documents = rows(200)
    drawn = [Counter(mixed(store, ("*/*", epochs), documents=documents)[0]) for epochs in (0.25, 0.5, 1, 1.5, 2.5)]
    assert all(fewer <= more for fewer, more in pairwise(drawn))
    assert 20 < drawn[0].total() < drawn[1].total() < 130 and drawn[2].total() < drawn[3].total() < drawn[4].total()
    assert set(drawn[1]) != set(mixed(store, ("*/*", 0.5), documents=documents, seed=8)[0])


def test_repeated_documents_are_spread_over_the_whole_order(store):
    train, _, _ = mixed(store, ("wikipedia/*", 4), documents=(documents := rows(400)))
    repeated = {row["id"] for row in documents if row["source"] == "wikipedia"}
    share = sum(id in repeated for id in train) / len(train)
    for part in np.array_split(np.array([id in repeated for id in train]), 5):
        assert abs(part.mean() - share) < 0.1
    neighbours = sum(a == b for a, b in pairwise(train))
    assert neighbours < len(train) / 50


def test_without_a_mixture_and_with_one_epoch_of_everything_the_shards_are_the_same(store):
    one, _, first = mixed(store)
    other, _, second = mixed(store, ("*/*", 1))
    assert one == other and parts_of(store, first) == parts_of(store, second) and first.fingerprint != second.fingerprint


def test_a_line_of_the_mixture_that_fits_nothing_is_refused_with_what_there_is(store):
    with pytest.raises(ConfigError, match=r"2 epochs for 'wikipedia/de'.*it has files/en, files/zh, wikipedia/en, wikipedia/zh"):
        mixed(store, ("wikipedia/de", 2))
    with pytest.raises(EmptyError, match="left out by the mixture"):
        mixed(store, ("*/*", 0))


def test_shards_are_the_same_without_gigatoken_and_the_manifest_says_who_encoded(store, tmp_path, monkeypatch):
    other = Store(tmp_path / "other")
    _, _, through = built(store)
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    _, _, without = built(other)
    assert parts_of(store, through) == parts_of(other, without) and through.fingerprint == without.fingerprint
    assert (through.info["encoder"], through.info["encoder_why"]) == ("gigatoken", "")
    assert without.info["encoder"] == "tokenizers" and "gigatoken" in without.info["encoder_why"]


def test_the_spool_sorts_by_key_and_then_id(tmp_path):
    spool = Spool(tmp_path / "spool", 5, np.dtype("<u2"))
    keys = [2**64 - 1, 0, 2**63, 5, 5, 2**62]
    for number, key in enumerate(keys):
        spool.add(key, f"{9 - number:032x}", np.array([number, number], np.int32))
    assert [int(ids[0]) for _, ids in spool.sorted()] == [1, 4, 3, 5, 2, 0]


def test_an_interrupted_encode_starts_over_with_the_same_bytes(store, tmp_path, monkeypatch):
    other = Store(tmp_path / "other")
    _, _, whole = built(other)
    real, calls = encode._write, []

    def dying(*arguments):
        if not calls:
            calls.append(real(*arguments))
            raise OSError("killed")
        return real(*arguments)

    monkeypatch.setattr(encode, "_write", dying)
    with pytest.raises(OSError, match="killed"):
        built(store)
    assert parts_of(store, built(store)[2]) == parts_of(other, whole)


def test_bytes_are_the_same_at_any_number_of_threads(repo, tmp_path):
    script = (
        "import sys, json, pathlib; sys.path[:0] = ['tests', 'tests/tasks']\n"
        "from tasks.corpus.manifest import Store; import test_encode as t\n"
        "store = Store(sys.argv[1]); _, a, b = t.built(store)\n"
        "print(json.dumps([f.sha256 for m in (a, b) for f in m.files]))"
    )
    sums = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / threads)], cwd=repo, env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "4")
    ]  # fmt: skip
    assert len(json.loads(sums[0])) > 4 and sums[0] == sums[1]


def test_tokenizer_and_shards_are_the_golden_ones(store):
    """Else training, the order or the format changed: raise the stage's revision, then mend the hashes."""
    _, trained, manifest = built(store)
    assert trained.info["tokenizer"][:16] == "4eb28b553daddb83"
    assert {f.path: f.sha256[:16] for f in manifest.files if "-00000." in f.path and not f.path.endswith(".parquet")} == {
        "train-00000.bin": "978347def34ab8b3", "train-00000.idx": "de2cdd9099fc312c",
        "valid-00000.bin": "d43ee81511ea1891", "valid-00000.idx": "d332db4b3a999b9f",
    }  # fmt: skip


def test_a_sample_is_drawn_from_all_parts_and_the_rest_is_counted(store, monkeypatch):
    taken, real = [], encode.take
    monkeypatch.setattr(encode, "take", lambda texts, most: taken.extend(kept := list(real(texts, most))) or kept)
    documents = rows(200)
    size = sum(len(row["text"].encode()) for row in documents)
    corpus = {"corpus-000": output_of(store, "decontaminate", [documents[:150], documents[150:]])}
    manifest = encode.train_tokenizer(store, "test", TokenizerConfig(vocab=512, sample_bytes=size // 4), corpus)
    place = [next(r["origin_offset"] for r in documents if r["text"] == text) for text in taken]
    assert 20 < len(taken) < 80 and max(place) > 150 and place == sorted(place)
    assert manifest.kept == len(taken) and manifest.rejected == {"not_sampled": 201 - len(taken)}


def test_blank_documents_are_set_aside(store):
    _, _, manifest = built(store, [*rows(20), document(" \n", 900)])
    assert manifest.rejected == {"empty": 1} and manifest.kept == 21
    [reject] = pq.read_table(store.dir(manifest.address) / "rejects-00000.parquet").to_pylist()
    assert (reject["stage"], reject["reason"], reject["origin_offset"], reject["source"]) == ("encode", "empty", 900, "files")


def test_an_empty_corpus_says_what_emptied_it(store):
    extracted = output_of(store, "extract", [], rejected={"not_html": 3})
    filtered = output_of(store, "filter", [], {"extract": extracted}, rejected={"gopher_short": 80, "language": 20})
    corpus = {"corpus-000": output_of(store, "decontaminate", [[]], {"dedup": filtered})}
    with pytest.raises(EmptyError, match=r"corpus is empty.*filter: gopher_short 80, filter: language 20, extract: not_html 3.*loosen"):
        encode.train_tokenizer(store, "test", TOKENIZER, corpus)


def test_a_corpus_held_out_whole_is_empty(store):
    documents = rows()
    corpus, trained, _ = built(store, documents)
    with pytest.raises(EmptyError, match="61 are held out"):
        encode.run(store, "test", dataclasses.replace(CONFIG, valid_share=0.9999999), corpus | {"tokenizer": trained})


def test_a_tokenizer_that_does_not_fit_is_refused(store):
    corpus, trained, _ = built(store)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        encode.run(store, "test", CONFIG, corpus)
    other = dataclasses.replace(trained, info=trained.info | {"tokenizer": "0" * 64}, content="other")
    with pytest.raises(TokenizerError, match="its manifest says 000000000000"):
        encode.run(store, "test", CONFIG, corpus | {"tokenizer": other})


def test_a_tokenizer_without_all_bytes_is_refused(store, monkeypatch):
    corpus, trained, _ = built(store)
    path = store.dir(trained.address) / "tokenizer" / "tokenizer.json"
    made = json.loads(path.read_text())
    made["model"]["merges"] = []
    made["model"]["vocab"] = {token: number for token, number in made["model"]["vocab"].items() if number < 200}
    path.write_text(json.dumps(made))
    monkeypatch.setattr(encode, "fingerprint", lambda tokenizer: trained.info["tokenizer"])
    monkeypatch.setattr(type(store), "path", lambda self, manifest, file, verify=True: self.dir(manifest.address) / file.path)
    with pytest.raises(TokenizerError, match="of the 256 bytes"):
        encode.run(store, "test", dataclasses.replace(CONFIG, seed=9), corpus | {"tokenizer": trained})
