"""Properties of model/adapters.py: what trains, what stays as it was, and equality with peft in both directions."""

import json
from dataclasses import replace

import pytest
import torch

from model import adapters, families
from model.config import Lora, SoftPrompt, bert, gpt2, qwen3
from model.errors import CheckpointError, ConfigError, InputError
from model.transformer import Transformer

VOCAB = 64
QWEN3 = qwen3(width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=32)
GPT2 = gpt2(width=16, layers=2, heads=2, ffn_width=24, context=32, dropout=0.0)
BERT = bert(width=16, layers=2, heads=2, ffn_width=24, context=32, dropout=0.0)
LORA = Lora("lora", rank=3, alpha=6.0, dropout=0.0, modules=("q", "v", "down"))
TOKENS = torch.randint(4, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def random(config, seed=0) -> Transformer:
    model = Transformer(config, VOCAB)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def trained(model: Transformer) -> Transformer:
    """As if training had moved all that trains."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def tuned(config, adapter=LORA, labels=None, seed=0) -> tuple[Transformer, Transformer]:
    """A base, and the same with a trained adapter."""
    base = random(config, seed)
    model = adapters.equipped(base, adapters.shaped(config, labels, adapter), 1).eval()
    if isinstance(adapter, Lora):
        adapters.attach(model, adapter, 1)
    adapters.freeze(model, adapter)
    return base, model


def test_a_fresh_pair_changes_no_logit_and_a_merged_one_equals_the_formula():
    base, model = tuned(QWEN3)
    torch.testing.assert_close(model(TOKENS), base(TOKENS), rtol=0, atol=0)
    trained(model)
    expected, state = model(TOKENS), model.state_dict()
    assert not torch.allclose(expected, base(TOKENS), atol=1e-2)
    name = "blocks.1.ffn.down"
    product = LORA.alpha / LORA.rank * state[f"{name}.lora_b"] @ state[f"{name}.lora_a"]
    adapters.merge(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(model.state_dict()[f"{name}.weight"], base.state_dict()[f"{name}.weight"] + product)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [LORA, SoftPrompt("prompt", 4)])
def test_only_the_adapter_and_a_new_head_train_and_all_else_keeps_its_bytes(adapter):
    base, model = tuned(QWEN3, adapter, ("yes", "no"))
    expected = {"output.weight"} | ({"prompt.weight"} if isinstance(adapter, SoftPrompt) else set())
    if isinstance(adapter, Lora):
        expected |= {f"blocks.{n}.{m}.lora_{x}" for n in (0, 1) for m in ("attention.q", "attention.v", "ffn.down") for x in "ab"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    tokens = TOKENS if isinstance(adapter, Lora) else torch.cat((torch.arange(VOCAB, VOCAB + 4).expand(2, 4), TOKENS), dim=1)
    for _ in range(2):  # B is zero at first: A moves from the second step on
        model(tokens)[:, -1].logsumexp(-1).sum().backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == expected
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.state_dict().items() if name != "output.weight")


def test_a_matrix_that_the_model_lacks_is_named():
    with pytest.raises(ConfigError, match="'gate'"):
        adapters.attach(random(GPT2), replace(LORA, modules=("gate",)), 0)


@pytest.mark.parametrize(
    ("config", "labels"), [(QWEN3, None), (GPT2, None), (GPT2, ("a", "b", "c")), (BERT, ("a", "b", "c")), (QWEN3, ("start", "end"))]
)
def test_peft_computes_the_same_from_our_directory_and_we_from_peft_s(config, labels, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    base, model = tuned(config, labels=labels)
    trained(model)
    adapters.save(model, LORA, tmp_path / "adapter", base=str(tmp_path / "base"))
    # the base as peft wants it: a directory with a head of its own, which the adapter replaces
    plain = adapters.equipped(base, model.config, 9)
    families.save(plain, plain.config, VOCAB, tmp_path / "base")
    kind = {None: "CausalLM", ("start", "end"): "QuestionAnswering"}.get(labels, "SequenceClassification")
    theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected, out = model(TOKENS), theirs(input_ids=TOKENS)
    if kind == "QuestionAnswering":
        found = torch.stack((out.start_logits, out.end_logits), dim=-1)
    else:
        found = out.logits
        if labels:
            expected = expected[:, 0 if config.kind == "encoder" else -1]
    torch.testing.assert_close(expected, found, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "back")
    back = families.load(tmp_path / "base").eval()
    adapters.load(back, tmp_path / "back")
    torch.testing.assert_close(back(TOKENS), model(TOKENS), atol=1e-5, rtol=1e-5)
    adapters.merge(back)
    torch.testing.assert_close(back(TOKENS), model(TOKENS), atol=1e-5, rtol=1e-5)


def test_a_soft_prompt_is_peft_s_and_stands_before_each_document_of_a_row(tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    adapter = SoftPrompt("prompt", 4)
    base, model = tuned(QWEN3, adapter)
    trained(model)
    soft = torch.arange(VOCAB, VOCAB + 4).expand(2, 4)
    whole = model(torch.cat((soft, TOKENS), dim=1))
    adapters.save(model, adapter, tmp_path / "adapter")
    families.save(base, QWEN3, VOCAB, tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    torch.testing.assert_close(whole, theirs(input_ids=TOKENS).logits, atol=1e-5, rtol=1e-5)
    packed = torch.cat([part for row in range(2) for part in (soft[:1], TOKENS[row : row + 1])], dim=1)
    documents = torch.arange(2).repeat_interleave(13)[None]
    torch.testing.assert_close(model(packed, documents_BT=documents).view(2, 13, -1), whole, atol=1e-5, rtol=1e-5)
    families.save(model, model.config, VOCAB, tmp_path / "whole")
    again = families.load(tmp_path / "whole").eval()
    torch.testing.assert_close(again(torch.cat((soft, TOKENS), dim=1)), whole, rtol=0, atol=0)


def test_an_adapter_of_another_base_or_kind_is_refused(tmp_path):
    _, model = tuned(QWEN3)
    adapters.save(model, LORA, tmp_path)
    with pytest.raises(CheckpointError, match="do not fit"):
        adapters.load(random(qwen3(width=32, layers=2, heads=2, kv_heads=1, ffn_width=24, context=32)), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to nothing"):
        adapters.load(random(replace(QWEN3, layers=1)), tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora"):
        adapters.load(random(QWEN3), tmp_path)
    with pytest.raises(CheckpointError, match="no adapter directory"):
        adapters.load(random(QWEN3), tmp_path / "nowhere")
