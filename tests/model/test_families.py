"""Properties of model/families.py and layouts.py: directories that transformers reads, and clear refusals of those that cannot be read."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from http_server import Fault, Server, serve
from safetensors.torch import load_file, save_file

from model import families, layouts
from model.config import ModelConfig, RopeScaling, article_formula, article_listing, bert, gpt2, gpt_neo, llama, qwen3, roberta
from model.errors import CheckpointError, InputError, NetworkError, NotFoundError, TokenizerError
from model.transformer import PADDING, Cache, Transformer

VOCAB = 64
DEFAULT = replace(qwen3(32, 2, 4, 2, 48, 96), head_dim=12, rope_theta=50_000.0, norm_eps=1e-4)
OWN = [
    article_formula("decoder", 16, 2, 4, 24, 32, 0.1),
    article_listing("encoder", 16, 1, 2, 24, 32, 0.0),
    replace(gpt2(16, 1, 2, 24, 32, 0.0), positions="rotary"),
]
SCALED = RopeScaling(4.0, 1.0, 4.0, 32)
FAMILIES = {
    "gpt2": gpt2(32, 2, 4, 48, 64, 0.1),
    "gpt_neo": gpt_neo(32, 3, 4, 48, 64, 4, 0.1),
    "llama": replace(llama(32, 2, 4, 2, 48, 64), rope_scaling=SCALED, tie_embeddings=False),
    "qwen3": DEFAULT,
    "bert": bert(32, 2, 4, 48, 64, 0.1),
    "roberta": roberta(32, 2, 4, 48, 64, 0.1),
}


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


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTARY = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
LEARNED = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
NEO = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 40, "window_size": 5}
ENCODED = ROTARY | {"intermediate_size": 48}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", LEARNED),
    "gpt2 untied": ("GPT2LMHeadModel", LEARNED | {"tie_word_embeddings": False, "n_inner": 24, "activation_function": "gelu"}),
    "gpt2 relu": ("GPT2LMHeadModel", LEARNED | {"activation_function": "relu"}),
    "gpt_neo": ("GPTNeoForCausalLM", NEO | {"attention_types": [[["global", "local"], 2]]}),
    "gpt_neo untied": ("GPTNeoForCausalLM", NEO | {"attention_types": [[["global"], 1], [["local"], 3]], "tie_word_embeddings": False}),
    "llama": ("LlamaForCausalLM", ROTARY | {"num_key_value_heads": 2, "rope_parameters": ROPE}),
    "llama tied": ("LlamaForCausalLM", ROTARY | {"num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True}),
    "llama biased": ("LlamaForCausalLM", ROTARY | {"attention_bias": True, "mlp_bias": True}),
    "llama scaled": ("LlamaForCausalLM", ROTARY | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}),
    "qwen3": ("Qwen3ForCausalLM", ROTARY | {"num_key_value_heads": 2, "head_dim": 12}),
    "qwen3 tied": ("Qwen3ForCausalLM", ROTARY | {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True}),
    "bert": ("BertForPreTraining", ENCODED),
    "bert masked": ("BertForMaskedLM", ENCODED | {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert untied": ("BertForMaskedLM", ENCODED | {"tie_word_embeddings": False}),
    "bert bare": ("BertModel", ENCODED),
    "roberta": ("RobertaForMaskedLM", ENCODED | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta untied": ("RobertaForMaskedLM", ENCODED | {"tie_word_embeddings": False, "pad_token_id": 3}),
    "roberta bare": ("RobertaModel", ENCODED),
}


def theirs(name: str, directory: Path, **how: Any) -> Any:
    """A model of transformers with every weight random, and its directory."""
    import transformers

    kind, shape = THEIRS[name]
    torch.manual_seed(3)
    made = getattr(transformers, kind)
    ids = {"bos_token_id": 0, "eos_token_id": VOCAB - 1, "pad_token_id": 1}
    model = made(made.config_class(**({"vocab_size": VOCAB} | ids | shape))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(directory, **how)
    return model


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 20 tokens, of which 20, 13 and 6 are real; padding is 1."""
    ids = torch.randint(4, VOCAB, (3, 20), generator=torch.Generator().manual_seed(2))
    real = torch.ones(3, 20, dtype=torch.bool)
    for row, count in ((1, 13), (2, 6)) if side != "none" else ():
        real[row, count:] = False
    real = real.flip(1) if side == "left" else real
    return ids.where(real, 1), real


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_each_family_computes_what_transformers_computes_with_padding_on_either_side(tmp_path: Path, name: str) -> None:
    reference = theirs(name, tmp_path)
    ours = families.load(tmp_path).eval()
    encoder = ours.config.kind == "encoder"
    for side in ("none", "right", "left"):
        ids, real = batch(side)
        # RoBERTa counts positions itself, by the id of padding; the others are told where a row begins
        pad = reference.config.pad_token_id
        ids = ids.where(real, pad)
        places = (real.long().cumsum(1) - 1).clamp(min=0)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
        inputs |= {} if name.startswith("roberta") else {"position_ids": places}
        types = torch.arange(20).expand(3, 20) // 7 % ours.config.types if encoder else None
        inputs |= {"token_type_ids": types} if encoder else {}
        out = reference(**inputs)
        documents = torch.where(real, 0, PADDING) if side != "none" else None
        states = ours(ids, documents_BT=documents, types_BT=types, hidden=True)
        expected = out[0] if "logits" not in out and "prediction_logits" not in out else out.get("prediction_logits", out.get("logits"))
        found = states if name.endswith("bare") else ours.logits(states)
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
        if ours.pooler is None:
            continue
        first = real[:, 0]  # padded on the left, a row's first slot is none of its tokens
        if name.endswith("bare"):
            torch.testing.assert_close(ours.pooler(states)[first], out.pooler_output[first], atol=1e-5, rtol=1e-5)
        else:
            scores = ours.pooler.next_sentence(ours.pooler(states))
            torch.testing.assert_close(scores[first], out.seq_relationship_logits[first], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, (kind, _) in THEIRS.items() if not kind.startswith(("Bert", "Roberta"))])
def test_cached_greedy_tokens_of_each_decoder_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    reference = theirs(name, tmp_path)
    ours = families.load(tmp_path).eval()
    ids, real = batch("left")
    expected = reference.generate(ids, attention_mask=real.long(), max_new_tokens=14, do_sample=False, eos_token_id=VOCAB + 1)[:, 20:]
    cache, tokens, places = Cache(ours.config, 3, 34), ids, (real.long().cumsum(1) - 1).clamp(min=0)
    documents: torch.Tensor | None = torch.where(real, 0, PADDING)
    greedy = []
    for _ in range(14):
        tokens = ours(tokens, places, documents, cache)[:, -1:].argmax(-1)
        greedy.append(tokens)
        places, documents = places[:, -1:] + 1, None
    assert torch.cat(greedy, dim=1).tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_a_directory_there_and_back_keeps_every_tensor_and_loads_without_code_of_ours(tmp_path: Path, name: str) -> None:
    reference = theirs(name, tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs/model.safetensors.index.json").exists()
    ours = families.load(tmp_path / "theirs")
    families.save(ours, ours.config, VOCAB, tmp_path / "ours", tokenizer=tmp_path / "theirs")
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert written["architectures"] == [THEIRS[name][0]] and (written["eos_token_id"], written["bos_token_id"]) == (VOCAB - 1, 0)
    again, report = type(reference).from_pretrained(tmp_path / "ours", trust_remote_code=False, output_loading_info=True)
    unused = {"bert untied": {"cls.predictions.bias"}, "roberta untied": {"lm_head.bias"}}.get(name, set())
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (unused, set())
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - unused)
    told, known = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("theirs", "ours"))
    assert reference.config.to_dict().get("attention_layers") == again.config.to_dict().get("attention_layers")
    shared = {key for key, value in told.items() if key in known and value is not None} - {"attention_types"}
    assert {key: told[key] for key in shared} == {key: known[key] for key in shared} and len(shared) > 12


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_of_ours_is_written_as_its_family_and_computes_the_same_there(tmp_path: Path, name: str) -> None:
    import transformers

    config = FAMILIES[name]
    model = build(config)
    families.save(model, config, VOCAB, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name
    kind = "AutoModelForCausalLM" if config.kind == "decoder" else "AutoModelForMaskedLM"
    reference = getattr(transformers, kind).from_pretrained(tmp_path, trust_remote_code=False)
    ids = tokens().clamp(min=2)
    torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)
    again = families.load(tmp_path)
    assert (again.config, again.vocab) == (config, VOCAB)


def test_rotary_settings_are_read_where_transformers_4_wrote_them(tmp_path: Path) -> None:
    theirs("llama scaled", tmp_path)
    expected = families.load(tmp_path).config
    content = json.loads((tmp_path / "config.json").read_text())
    rope = content.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(content | {"rope_scaling": rope, "rope_theta": theta}))
    assert families.load(tmp_path).config == expected
    (tmp_path / "config.json").write_text(json.dumps(content | {"rope_scaling": None, "rope_theta": theta}))
    assert families.load(tmp_path).config == replace(expected, rope_scaling=None)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama tied"])
def test_old_files_without_prefix_with_buffers_and_with_old_names_load(tmp_path: Path, name: str) -> None:
    theirs(name, tmp_path)
    expected = families.load(tmp_path).state_dict()
    path = tmp_path / "model.safetensors"
    prefix = layouts.LAYOUTS[name.split()[0]].prefix
    older = {key.removeprefix(prefix): tensor for key, tensor in load_file(path).items()}
    older = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for key, t in older.items()}
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    buffers |= {"embeddings.position_ids": torch.arange(64)[None]}
    chosen = {"gpt2": "h.0", "llama tied": "layers.0", "bert": "embeddings"}[name]
    save_file(older | {key: tensor for key, tensor in buffers.items() if key.startswith(chosen)}, path, metadata={"format": "pt"})
    found = families.load(tmp_path).state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


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


def test_shapes_that_no_family_can_say_are_written_as_our_own(tmp_path: Path) -> None:
    strange = [replace(DEFAULT, dropout=0.1), replace(FAMILIES["bert"], norm_place="pre"), replace(FAMILIES["gpt2"], kv_heads=2)]
    strange += [replace(FAMILIES["bert"], head="linear", tie_embeddings=False), replace(FAMILIES["llama"], qkv_bias=True)]
    for number, config in enumerate([*OWN, *strange]):
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
        ({"use_sliding_window": True}, "use_sliding_window True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding attention"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, r"rope_scaling\.factor"),
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


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"activation_function": "selu"}, "activation 'selu' is not supported; gelu, gelu_new, relu are"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported, only False"),
        ("gpt2", {"n_head": 5}, "width 32 is no multiple of 5 heads"),
        ("gpt_neo", {"num_layers": 5}, "attention_types names 4 layers, num_layers 5"),
        ("llama", {"mlp_bias": True}, "attention_bias False without the same mlp_bias"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"hidden_size": None, "num_attention_heads": "many"}, "768 is no multiple of 'many' heads"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_what_a_family_may_say_and_we_cannot_compute_is_refused(
    tmp_path: Path, name: str, changes: dict[str, object], message: str
) -> None:
    theirs(name, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        families.load(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta"])
def test_tensors_that_do_not_fit_are_named_as_the_file_names_them(tmp_path: Path, name: str) -> None:
    theirs(name, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    block, part = {"gpt2": ("transformer.h.0", "attn.c_attn.weight"), "bert": ("bert.encoder.layer.0", "intermediate.dense.weight")}.get(
        name, ("roberta.encoder.layer.0", "intermediate.dense.weight")
    )
    changed = tensors | {f"{block}.{part}": tensors[f"{block}.{part}"].T.contiguous(), f"{block}.adapter.weight": torch.zeros(2)}
    last = sorted(key for key in tensors if key.endswith("bias"))[-1]
    del changed[last]
    save_file(changed, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        families.load(tmp_path)
    found, wanted = changed[f"{block}.{part}"].shape, tensors[f"{block}.{part}"].shape
    assert f"{block}.{part} has shape {list(found)} instead of {list(wanted)}" in str(caught.value)
    assert f"{block}.adapter.weight is not a tensor" in str(caught.value) and f"{last} is missing" in str(caught.value)


class Evil:
    """A pickle of it runs a command where it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_a_pickle_is_read_as_weights_only_or_not_at_all(tmp_path: Path) -> None:
    theirs("gpt2", tmp_path)
    expected = families.load(tmp_path).state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = families.load(tmp_path).state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    torch.save(tensors | {"evil": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle that is more than weights, and is not read .*convert"):
        families.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError, match="more than weights"):
        families.load(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds list instead of tensors by name"):
        families.load(tmp_path)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(saved: Path) -> None:
    path = saved / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 63}}, "added_tokens": []}))
    families.load(saved)
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 64, "content": "<new>"}]}))
    with pytest.raises(TokenizerError, match=r"token ids up to 64, the weights rows for 64\. Use"):
        families.load(saved)


@contextmanager
def hub(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers as the hub does for someone/model, whose files are those of a directory."""
    from huggingface_hub import constants

    commit, names = "a" * 40, [path.name for path in source.iterdir()]
    listed = [{"type": "file", "path": name, "size": (source / name).stat().st_size, "oid": "b" * 40} for name in names]
    for place, content in (("revision/v1", {"id": "someone/model", "sha": commit}), (f"tree/{commit}", listed)):
        path = folder / "hub/api/models/someone/model" / place
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    shutil.copytree(source, folder / "hub/someone/model/resolve" / commit)
    faults = {f"/someone/model/resolve/{commit}/{name}": [Fault(headers={"X-Repo-Commit": commit})] * 2 for name in names}
    faults["/api/models/someone/absent/revision/main"] = [Fault(status=404, headers={"X-Error-Code": "RepoNotFound"})]
    with serve(folder / "hub", faults) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        yield server


def test_a_hub_id_loads_as_its_directory_does_and_only_data_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    theirs("gpt2", source)
    expected = families.load(source).state_dict()
    for name in ("modeling_evil.py", "pytorch_model.bin", "tokenizer.json", "training_args.bin", "flax_model.msgpack"):
        (source / name).write_text("{}")
    with hub(tmp_path, source, monkeypatch) as server:
        found = families.load("someone/model", revision="v1").state_dict()
        fetched = sorted(asked.path.split("/")[-1] for asked in server.asked() if "/resolve/" in asked.path)
        with pytest.raises(NotFoundError, match="someone/absent is no directory here and not on the hub"):
            families.load("someone/absent")
    assert fetched == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    again = families.load("someone/model", revision="v1")  # the hub is gone: what was fetched stays
    assert torch.equal(again.embed.weight, expected["embed.weight"])
    with pytest.raises(NetworkError, match="someone/model is no directory here, and the hub does not give it"):
        families.load("someone/model", revision="v2")


def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "a/b/c"):
        with pytest.raises(NotFoundError, match="neither a directory nor a hub id"):
            families.load(name)


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
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; fetch it"):
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
