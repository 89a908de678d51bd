"""Properties of model/families.py: directories that transformers reads, and clear refusals of those that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import families
from model.config import ModelConfig, article_formula, article_listing, qwen3
from model.errors import CheckpointError, InputError
from model.transformer import Transformer

VOCAB = 64
DEFAULT = replace(qwen3(32, 2, 4, 2, 48, 96), head_dim=12, rope_theta=50_000.0, norm_eps=1e-4)
OWN = [
    article_formula("decoder", 16, 2, 4, 24, 32, 0.1),
    article_listing("encoder", 16, 1, 2, 24, 32, 0.0),
    replace(article_listing("decoder", 16, 1, 2, 24, 32, 0.0), positions="learned", tie_embeddings=False),
]


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config, VOCAB).eval()
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(2))


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    families.save(build(DEFAULT), DEFAULT, VOCAB, tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
def test_the_default_loads_in_transformers_with_equal_logits_and_greedy_tokens(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    config = replace(DEFAULT, tie_embeddings=tied)
    model = build(config)
    families.save(model, config, VOCAB, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
        generated = theirs.generate(ids[:1], max_new_tokens=12, do_sample=False, eos_token_id=VOCAB + 1)
        greedy = ids[:1]
        for _ in range(12):
            greedy = torch.cat([greedy, model(greedy)[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == greedy.tolist()


def test_a_directory_written_by_transformers_loads_here(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, head_dim=16, rope_parameters=rope, tie_word_embeddings=False, **shape)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = families.load(tmp_path).eval()
    assert (ours.config.head_dim, ours.config.rope_theta, ours.config.context) == (16, 1e6, 32768)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [DEFAULT, replace(DEFAULT, tie_embeddings=False), *OWN])
def test_save_then_load_gives_the_same_shape_and_weights(tmp_path: Path, config: ModelConfig) -> None:
    model = build(config)
    families.save(model, config, VOCAB, tmp_path)
    again = families.load(tmp_path)
    assert (again.config, again.vocab) == (config, VOCAB)
    assert (again.output.weight is again.embed.weight) == config.tie_embeddings
    expected, found = dict(model.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) and found[name].requires_grad for name in expected)


def test_shapes_that_qwen3_cannot_say_are_written_as_our_own(tmp_path: Path) -> None:
    for number, config in enumerate([*OWN, replace(DEFAULT, dropout=0.1), replace(DEFAULT, qk_norm=False)]):
        families.save(build(config), config, VOCAB, tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["model_type"] == "ingot"


def test_bf16_on_disk_is_half_the_size_and_loads(tmp_path: Path) -> None:
    model = build(DEFAULT)
    families.save(model, DEFAULT, VOCAB, tmp_path, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    again = families.load(tmp_path)
    assert again.embed.weight.dtype == torch.float32
    assert torch.equal(again.embed.weight, model.embed.weight.bfloat16().float())


def test_generation_stops_at_the_end_of_text_and_of_a_turn(saved: Path) -> None:
    generation = json.loads((saved / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([0, 3], 1)


def test_each_missing_extra_and_misshapen_tensor_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        families.load(saved)
    message = str(caught.value)
    assert "model.norm.weight is missing" in message
    assert "model.layers.9.mlp.up_proj.weight is not a tensor" in message
    assert "model.layers.0.mlp.up_proj.weight has shape [3, 4] instead of [48, 32]" in message
    assert str(saved) in message


def test_a_model_of_another_vocabulary_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"embed\.weight has shape \[64, 32\] instead of \[128, 32\]"):
        families.save(build(DEFAULT), DEFAULT, 128, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_tied_weights_that_differ_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, metadata={"format": "pt"})
    families.load(saved)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        families.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
        ({"use_sliding_window": True}, "sliding attention"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_key_value_heads": 3}, "must be a multiple of kv_heads"),
        ({"hidden_size": "wide"}, "width"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused_by_name(saved: Path, changes: dict[str, object], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError, match=message):
        families.load(saved)


def test_an_own_config_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    families.save(build(OWN[0]), OWN[0], VOCAB, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())["config"]
    edit(tmp_path, config=content | {"widht": 3})
    with pytest.raises(InputError, match="widht"):
        families.load(tmp_path)


def test_damaged_and_absent_files_are_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        families.load(saved)
    path.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        families.load(saved)
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')
    with pytest.raises(InputError, match="not a file of this directory"):
        families.load(saved)
    (saved / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match="is not JSON"):
        families.load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        families.load(saved)
