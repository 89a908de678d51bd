"""The gate of exports: what is written as it should be agrees in every format; one thing changed in an export is named."""

import json
from dataclasses import replace

import models
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from deploy import export_gguf, export_hf, export_onnx, parity
from model import adopt, families, tokenizer
from model import config as shapes
from model.errors import ConfigError, TokenizerError
from model.transformer import Transformer

VOCAB = 512
SIZES = {"width": 64, "layers": 2, "heads": 4, "ffn_width": 96, "context": 96}
QWEN3 = shapes.qwen3(**SIZES, kv_heads=2)
LLAMA = replace(QWEN3, qk_norm=False, rope_scaling=shapes.RopeScaling(8.0, 1.0, 4.0, 16), tie_embeddings=False)
GPT2 = shapes.gpt2(**SIZES, dropout=0.0)
BERT = shapes.bert(**SIZES, dropout=0.0)
FAMILIES = {"qwen3": QWEN3, "llama": LLAMA, "gpt2": GPT2, "bert": BERT, "roberta": shapes.roberta(**SIZES, dropout=0.0)}
CASES = [
    pytest.param(name, to, marks=[] if name == "qwen3" and to in ("onnx", "gguf") else pytest.mark.full)
    for name, shape in FAMILIES.items()
    for to in parity.FORMATS
    if to != "gguf" or shape.kind == "decoder"
]


@pytest.fixture(scope="module")
def words():
    made = tokenizer.train(["The keeper of the lighthouse lit the lamp. 灯塔守望人点亮了灯，每夜不熄。水在100度时沸腾。" * 3] * 4, VOCAB)
    return made


def directory(folder, shape, words, seed=0, ends=False):
    """A model directory of random weights. ends: what row 0 says third is the end of a turn."""
    vocab = tokenizer.vocab_size(words)
    model = Transformer(shape, vocab)
    model.init_weights(seed)
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
        model.output.weight[words.get_vocab_size() :] = 0  # padding's rows are never the likeliest after training
        if ends:
            from model.generate import generate

            third = generate(model, words, [tokenizer.encode(words, parity.PROMPTS[0])], 3, stop_ids=())[0].ids[-1]
            model.embed.weight[tokenizer.END_OF_TURN] = 1.1 * model.embed.weight[third]
    families.save(model, shape, vocab, folder)
    tokenizer.save(words, folder)
    return folder


def write(model, out, to):
    if to == "hf":
        export_hf.export(model, out)
    elif to == "gguf":
        export_gguf.export(model, out)
    else:
        export_onnx.export(model, out, "int8" if to == "onnx-int8" else "fp32")
    return out


def failed(model, out, to):
    return {check.name for check in parity.check(model, out, to).failed}


@pytest.mark.parametrize(("name", "to"), CASES)
def test_every_family_agrees_in_every_format(tmp_path, words, name, to):
    model = directory(tmp_path / "model", FAMILIES[name], words)
    report = parity.check(model, write(model, tmp_path / to, to), to)
    assert report.agrees, report.verdict
    kept = json.loads(parity.keep(report, tmp_path / to).read_text())
    assert kept["agrees"] is True and kept["format"] == to and "model.safetensors" in kept["model"] and kept["files"] == report.files
    names = [check.name for check in report.checks]
    assert ("end of turn" in names) == (FAMILIES[name].kind == "decoder") and ("states" in names) == (FAMILIES[name].kind == "encoder")


@pytest.mark.full
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 3), shared=st.integers(1, 3), size=st.sampled_from([16, 32]), layers=st.integers(1, 3), seed=st.integers(0, 99),
    tied=st.booleans(), ends=st.booleans(),
)  # fmt: skip
def test_random_shapes_of_the_house_default_agree(tmp_path_factory, words, groups, shared, size, layers, seed, tied, ends):
    heads = groups * shared
    shape = replace(shapes.qwen3(heads * size, layers, heads, groups, 32 * heads, 96), tie_embeddings=tied)
    folder = tmp_path_factory.mktemp("shape")
    model = directory(folder / "model", shape, words, seed, ends and tied)
    for to in ("onnx", "gguf"):
        report = parity.check(model, write(model, folder / to, to), to)
        assert report.agrees, report.verdict


@pytest.mark.full
@pytest.mark.parametrize("to", parity.FORMATS)
def test_an_answer_that_ends_by_itself_ends_in_every_format_and_a_lost_stop_is_named(tmp_path, words, to):
    model = directory(tmp_path / "model", QWEN3, words, ends=True)
    out = write(model, tmp_path / to, to)
    report = parity.check(model, out, to)
    assert report.agrees, report.verdict
    ended = next(check.found for check in report.checks if check.name == "end of turn")
    assert int(ended.split("; ")[1].split()[0]) > 0
    if to == "gguf":
        return
    path = out / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))
    assert failed(model, out, to) >= {"end of turn", "writing"} - ({"writing"} if to == "onnx-int8" else set())


def change_a_weight(out, to, by):
    """One weight of an export, changed; in int8 by one step, or for a large change the scale of a norm."""
    if to == "hf":
        state = load_file(out / "model.safetensors")
        state["model.layers.0.mlp.up_proj.weight"][3, 5] += by
        save_file(state, out / "model.safetensors", {"format": "pt"})
    elif to == "gguf":
        _, arrays = export_gguf._read(out)
        weights = np.array(arrays["blk.0.ffn_up.weight"])
        whole = (out / "model.gguf").read_bytes()
        place = whole.index(weights.tobytes()) + 4 * 7
        (out / "model.gguf").write_bytes(whole[:place] + np.float32(weights.flat[7] + by).tobytes() + whole[place + 4 :])
    else:
        graph = onnx.load(out / "model.onnx")
        name = "blocks.0.ffn.down.turned" if to == "onnx" else "norm.weight" if by > 0.1 else "blocks.0.ffn.down.int8"
        tensor = next(one for one in graph.graph.initializer if one.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        array.flat[7] += by if to == "onnx" else 8 * by if by > 0.1 else 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(graph, out / "model.onnx")


@pytest.mark.parametrize(("by", "named"), [(1e-4, {"tensors"}), (1.0, {"tensors", "logits"})], ids=["little", "much"])
@pytest.mark.parametrize("to", ["onnx", *(pytest.param(to, marks=pytest.mark.full) for to in parity.FORMATS if to != "onnx")])
def test_one_changed_weight_is_caught(tmp_path, words, to, by, named):
    model = directory(tmp_path / "model", QWEN3, words)
    out = write(model, tmp_path / to, to)
    change_a_weight(out, to, by)
    report = parity.check(model, out, to)
    assert {check.name for check in report.failed} >= named
    assert report.verdict.startswith("disagrees: ") and json.loads(parity.keep(report, out).read_text())["agrees"] is False


def test_a_changed_node_is_caught(tmp_path, words):
    model = directory(tmp_path / "model", QWEN3, words)
    out = write(model, tmp_path / "onnx", "onnx")
    graph = onnx.load(out / "model.onnx")
    next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention").attribute[-1].i += 1
    onnx.save(graph, out / "model.onnx")
    assert "graph" in failed(model, out, "onnx")


def test_an_exporter_that_is_wrong_itself_is_caught_by_what_is_said(tmp_path, words, monkeypatch):
    model = directory(tmp_path / "model", QWEN3, words)
    with monkeypatch.context() as patch:  # as if the writer took query heads for key heads: reading back finds nothing
        patch.setitem(export_gguf.MODULES, "attention.q_norm", "attn_k_norm")
        patch.setitem(export_gguf.MODULES, "attention.k_norm", "attn_q_norm")
        out = write(model, tmp_path / "gguf", "gguf")
    report = parity.check(model, out, "gguf")
    assert {"tensors", "logits"} <= {check.name for check in report.failed}
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx._Graph, "activated", lambda self, x: self.add("Relu", x))
        out = write(model, tmp_path / "onnx", "onnx")
        assert {"logits"} <= failed(model, out, "onnx") <= {"logits", "tokens", "writing"}


def test_another_tokenizer_or_template_is_caught(tmp_path, words):
    model = directory(tmp_path / "model", QWEN3, words)
    out = write(model, tmp_path / "onnx", "onnx")
    described = json.loads((out / "tokenizer_config.json").read_text())
    (out / "tokenizer_config.json").write_text(json.dumps(described | {"chat_template": described["chat_template"].replace(" | trim", "")}))
    assert failed(model, out, "onnx") == {"chat template"}
    tokenizer.save(words, out)
    whole = json.loads((out / "tokenizer.json").read_text())
    whole["model"]["merges"] = whole["model"]["merges"][:-40]
    (out / "tokenizer.json").write_text(json.dumps(whole))
    assert "tokenizer" in failed(model, out, "onnx")
    gguf = write(model, tmp_path / "gguf", "gguf")
    whole = (gguf / "model.gguf").read_bytes()
    (gguf / "model.gguf").write_bytes(whole.replace(b"deepseek-v3", b"deepseek-v2"))
    assert failed(model, gguf, "gguf") == {"metadata", "runs"}


@pytest.mark.parametrize(("to", "name"), [("hf", "model.safetensors"), ("onnx", "model.onnx"), ("gguf", "model.gguf")])
def test_what_is_torn_or_missing_is_a_check_that_fails(tmp_path, words, to, name):
    model = directory(tmp_path / "model", QWEN3, words)
    out = write(model, tmp_path / to, to)
    path = out / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert failed(model, out, to) == {"runs"}
    path.unlink()
    assert failed(model, out, to) == {"runs"}


def test_a_score_that_is_no_number_does_not_agree():
    measured = parity._Measured(parity.TOLERANCES["onnx-int8"], 4)
    measured.add(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0, np.nan, 3.0, 4.0]]))
    measured.add(np.ones((1, 4)) * np.arange(4), np.ones((1, 4)) * np.arange(4))
    assert not measured.checks("logits")[0].agrees


def test_int8_tokens_may_part_only_where_torch_hardly_prefers_one():
    torchs = np.array([[0.0, 0.0, 1.0, 1.1], [0.0, 0.0, 1.0, 3.0]])
    parted = np.array([[0.0, 0.0, 1.1, 1.0], [0.0, 0.0, 1.0, 3.0]])
    for lead, agrees in ((0.1, False), (0.5, True)):
        measured = parity._Measured(parity.Tolerance(9.0, lead), 4)
        assert measured.add(torchs, parted) == (2 if lead < 0.19 else 0)
        tokens = measured.checks("logits")[1]
        assert tokens.agrees == agrees and tokens.found.startswith("1 of 2 likeliest tokens differ")


def test_transformers_own_reader_of_gguf_gives_the_same_logits(tmp_path, words):
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in ("qwen3", "llama", "gpt2"):
        model = directory(tmp_path / name, FAMILIES[name], words)
        write(model, tmp_path / f"{name}-gguf", "gguf")
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path / f"{name}-gguf", gguf_file="model.gguf", config=AutoConfig.from_pretrained(model), dtype=torch.float32
        )
        ids = torch.tensor(
            [tokenizer.encode(words, text)[:8] + [9] * (8 - len(tokenizer.encode(words, text)[:8])) for text in parity.PROMPTS[:4]]
        )
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()(ids).logits, families.load(model).eval()(ids), atol=2e-5, rtol=1e-5)


def test_what_a_format_cannot_say_is_refused_with_another_way(tmp_path, words):
    article = directory(tmp_path / "article", shapes.article_formula("decoder", 64, 2, 4, 96, 96, 0.0), words)
    for to in ("hf", "gguf"):
        with pytest.raises(ConfigError, match="--to onnx"):
            write(article, tmp_path / to, to)
    bert = directory(tmp_path / "bert", BERT, words)
    with pytest.raises(ConfigError, match="not for bert"):
        write(bert, tmp_path / "gguf", "gguf")
    other = directory(tmp_path / "other", QWEN3, words)
    whole = json.loads((other / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}"
    (other / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(TokenizerError, match="no name for how this tokenizer cuts"):
        write(other, tmp_path / "gguf", "gguf")


@pytest.mark.parametrize("to", [pytest.param("hf", marks=pytest.mark.full), "gguf"])
def test_an_adopted_model_with_new_words_agrees(tmp_path, to):
    adopt.adopt(models.elsewhere(tmp_path / "theirs", shapes.gpt2(**SIZES, dropout=0.0)), tmp_path / "model", ("lighthouse", "灯塔"))
    report = parity.check(tmp_path / "model", write(tmp_path / "model", tmp_path / to, to), to)
    assert report.agrees, report.verdict
    if to == "gguf":
        fields, _ = export_gguf._read(tmp_path / to)
        kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
        assert fields["tokenizer.ggml.pre"] == "gpt-2" and {"<|im_end|>": 3, "灯塔": 4, "a": 1}.items() <= kinds.items()
