"""Properties of tasks/adopt.py: a model made elsewhere becomes a stage output that encode, pretrain and finetune read; its content decides."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from models import ELSEWHERE, elsewhere

from model import families, tokenizer
from model.config import ModelConfig, from_dict, roberta
from model.errors import NotFoundError
from tasks import adopt
from tasks.adopt import ADOPT, StartConfig, request
from tasks.corpus.manifest import Store, lookup


def test_what_is_taken_in_is_a_tokenizer_and_a_model_of_one_vocabulary(store: Store, tmp_path: Path) -> None:
    config = StartConfig(str(elsewhere(tmp_path / "gpt2")), "", ("lighthouse",))
    manifest = adopt.adopt.fn(store, "test", config)
    folder = store.dir(manifest.address)
    model, words = families.load(folder / "model"), tokenizer.load(folder / "tokenizer")
    assert from_dict(ModelConfig, manifest.info["model"]) == model.config == ELSEWHERE
    assert manifest.info["vocab"] == model.vocab == tokenizer.vocab_size(words)
    assert manifest.info["tokenizer"] == tokenizer.fingerprint(words) == tokenizer.fingerprint(tokenizer.load(folder / "model"))
    assert words.token_to_id("lighthouse") == words.get_vocab_size() - 1
    assert manifest.info["source"] == "gpt2"
    store.verify(manifest)


def test_the_content_decides_and_not_the_place(store: Store, tmp_path: Path) -> None:
    config = StartConfig(str(elsewhere(tmp_path / "here")), "", ())
    made = adopt.adopt.fn(store, "test", config)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there/README.md").write_text("not read")
    moved = replace(config, model=str(tmp_path / "there"))
    assert adopt.adopt.fn(store, "test", moved).skipped and lookup(store, ADOPT, "test", request(moved)[1], {}).address == made.address
    assert lookup(store, ADOPT, "test", request(replace(config, tokens=("lamp",)))[1], {}) is None
    other = replace(config, model=str(elsewhere(tmp_path / "other", seed=1)))
    assert lookup(store, ADOPT, "test", request(other)[1], {}) is None


def test_an_absent_directory_is_refused_and_an_encoder_taken_in(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="neither a directory nor a hub id"):
        adopt.adopt.fn(store, "test", StartConfig(str(tmp_path / "absent"), "", ()))
    encoder = elsewhere(tmp_path / "roberta", roberta(32, 2, 4, 48, 128, 0.0))
    made = adopt.adopt.fn(store, "test", StartConfig(str(encoder), "", ()))
    assert made.info["model"]["kind"] == "encoder" and families.load(store.dir(made.address) / "model").config.kind == "encoder"
