"""Exported ONNX graphs: logits, greedy and sampled tokens, states as torch has them; what is damaged or cannot be said is refused."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from deploy import export_onnx, onnx_model
from model import config as shapes
from model import families, generate, tokenizer
from model.errors import CheckpointError, ConfigError, InputError
from model.objectives import pool
from model.transformer import Transformer

VOCAB = 320
PROMPTS = [[40, 41, 42, 43, 44, 45, 46], [50], [60, 61, 62]]
SIZES = {"width": 64, "layers": 2, "heads": 4, "ffn_width": 96, "context": 40}
NEO = replace(shapes.gpt2(**SIZES, dropout=0.0), attention=("global", "local"), window=5, scaled_scores=False, qkv_bias=False)
SCALED = replace(shapes.qwen3(**SIZES, kv_heads=2), qk_norm=False, rope_scaling=shapes.RopeScaling(8.0, 1.0, 4.0, 16), tie_embeddings=False)
DECODERS = {
    "qwen3": shapes.qwen3(**SIZES, kv_heads=2), "llama": SCALED, "gpt2": shapes.gpt2(**SIZES, dropout=0.0), "gpt_neo": NEO,
    "article, post-norm": shapes.article_formula("decoder", 64, 2, 4, 96, 40, 0.0),
}  # fmt: skip
BERT = shapes.bert(**SIZES, dropout=0.0)
ENCODERS = {
    "bert": BERT, "roberta": shapes.roberta(**SIZES, dropout=0.0), "no masked head": replace(BERT, head="linear"),
    "rotary, grouped": replace(DECODERS["qwen3"], kind="encoder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def words():
    text = "the then there these other mother lamp lamps night nights" * 20
    made = tokenizer.train(["".join(chr(n) * 2 for n in range(97, 123)), text] * 3, VOCAB)
    assert made.get_vocab_size() == VOCAB
    return made


def build(config, vocab=VOCAB, seed=0):
    model = Transformer(config, vocab)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)) * 0.2)
    return model.eval()


def exported(folder, model, precision="fp32"):
    families.save(model, model.config, model.vocab, folder / "model")
    export_onnx.export(folder / "model", folder / precision, precision)
    return onnx_model.load(folder / precision, 1)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_and_sampled_tokens_of_a_ragged_batch_equal_torchs(tmp_path, words, name):
    model = build(DECODERS[name])
    ours = exported(tmp_path, model)
    for settings in ({}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}):
        expected = generate.generate(model, words, PROMPTS, 100, stop_ids=(), **settings)
        assert onnx_model.generate(ours, words, PROMPTS, 100, stop_ids=(), **settings) == expected
        assert [len(one.ids) for one in expected] == [33, 39, 37]  # to the end of the context


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_a_prompt_in_pieces_equal_those_of_one_pass(tmp_path, name):
    model = build(DECODERS[name])
    ours = exported(tmp_path, model)
    tokens = np.random.default_rng(0).integers(4, VOCAB, (1, 20))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens))[0].numpy()
    cache = onnx_model.Cache(ours, 1, 20)
    cuts = [0, 9, 10, 17, 20]
    pieces = [ours(tokens[:, start:end], cache, every=True)[0] for start, end in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=2e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_states_and_logits_of_padded_rows_equal_torchs_alone(tmp_path, name):
    model = build(ENCODERS[name])
    ours = exported(tmp_path, model)
    for row, states, logits in zip(PROMPTS, ours(PROMPTS), ours(PROMPTS, logits=True), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row]), hidden=True)[0]
            np.testing.assert_allclose(states, expected.numpy(), atol=2e-5)
            np.testing.assert_allclose(logits, model.logits(expected).numpy(), atol=2e-5)
    for how in ("mean", "first"):
        with torch.no_grad():
            pooled = [pool(model(torch.tensor([row]), hidden=True), torch.zeros(1, len(row)), how)[0] for row in PROMPTS]
        np.testing.assert_allclose(onnx_model.embed(ours, PROMPTS, how), torch.nn.functional.normalize(torch.stack(pooled)), atol=2e-6)


@pytest.mark.parametrize("config", [DECODERS["qwen3"], DECODERS["llama"], BERT], ids=["tied", "own output", "encoder"])
def test_int8_is_a_quarter_of_the_size_and_near(tmp_path, config):
    model = build(config, 2048)
    whole, small = exported(tmp_path, model), exported(tmp_path, model, "int8")
    size = {kind: (tmp_path / kind / "model.onnx").stat().st_size for kind in ("fp32", "int8")}
    assert size["int8"] < 0.36 * size["fp32"]
    tokens = np.random.default_rng(0).integers(4, 2048, (1, 40))
    logits = [
        one(tokens, onnx_model.Cache(one, 1, 40), every=True)[0] if config.kind == "decoder" else one(tokens.tolist(), logits=True)[0]
        for one in (whole, small)
    ]
    apart = logits[1] - logits[0]
    assert 1e-4 < apart.std() < 0.05 * logits[0].std()


def test_what_does_not_fit_or_cannot_be_said_is_refused(tmp_path, words):
    model = exported(tmp_path, build(DECODERS["qwen3"]))
    cache = onnx_model.Cache(model, 2, 8)
    with pytest.raises(InputError, match="9 tokens does not fit 8"):
        model(np.full((2, 9), 5), cache)
    model(np.full((2, 3), 5), cache)
    with pytest.raises(InputError, match="one by one"):
        model(np.full((2, 2), 5), cache)
    with pytest.raises(InputError, match="prompt 0 has 40 tokens; this model takes 1 to 39"):
        onnx_model.generate(model, words, [[5] * 40], 4)
    with pytest.raises(ConfigError, match="multiple of 16"):
        export_onnx.graph(build(shapes.qwen3(32, 1, 4, 2, 48, 40)), "fp32")
    with pytest.raises(ConfigError, match="soft prompt"):
        export_onnx.graph(build(replace(DECODERS["qwen3"], prompt=2)), "fp32")


def test_a_damaged_file_is_named(tmp_path):
    exported(tmp_path, build(DECODERS["qwen3"]))
    path = tmp_path / "fp32" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.onnx is damaged"):
        onnx_model.load(tmp_path / "fp32")
    path.unlink()
    with pytest.raises(CheckpointError, match="holds no model"):
        onnx_model.load(tmp_path / "fp32")


def test_weights_beyond_one_message_lie_beside_the_graph(tmp_path, words, monkeypatch):
    monkeypatch.setattr(export_onnx, "FILE_LIMIT", 1000)
    model = build(DECODERS["qwen3"])
    ours = exported(tmp_path, model)
    assert (tmp_path / "fp32" / "model.onnx.data").stat().st_size > 10 * (tmp_path / "fp32" / "model.onnx").stat().st_size
    assert onnx_model.generate(ours, words, PROMPTS, 8, stop_ids=()) == generate.generate(model, words, PROMPTS, 8, stop_ids=())
    tokenizer.save(words, tmp_path / "model")
    assert export_onnx.compared(tmp_path / "model", tmp_path / "fp32", "fp32") == {"tensors": "", "graph": ""}
