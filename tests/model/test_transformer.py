"""Properties of model/transformer.py, against torch's own layers, transformers' Qwen3 and the formulas themselves."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from model import transformer
from model.config import (
    ModelConfig,
    RopeScaling,
    article_formula,
    article_listing,
    bert,
    from_dict,
    gpt2,
    gpt_neo,
    llama,
    qwen3,
    roberta,
    to_dict,
)
from model.errors import ConfigError, InputError
from model.transformer import PADDING, Cache, Transformer

VOCAB = 48


def build(config: ModelConfig, seed: int = 1) -> Transformer:
    """A model whose every weight is random, also norms and biases, so that no mistake hides behind ones and zeros."""
    model = Transformer(config, VOCAB)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def article(form: str, kind: str, layers: int = 2) -> ModelConfig:
    factory = article_formula if form == "formula" else article_listing
    return factory(kind, width=16, layers=layers, heads=4, ffn_width=24, context=32, dropout=0.0)


def torch_stack(model: Transformer) -> nn.TransformerEncoder:
    """torch's encoder with the weights of ours copied in."""
    config = model.config
    pre = config.norm_place == "pre"
    layer = nn.TransformerEncoderLayer(config.width, config.heads, config.ffn_width, dropout=0.0, norm_first=pre, batch_first=True)
    stack = nn.TransformerEncoder(layer, config.layers, norm=nn.LayerNorm(config.width) if pre else None, enable_nested_tensor=False)
    with torch.no_grad():
        for theirs, ours in zip(stack.layers, model.blocks, strict=True):
            qkv = (ours.attention.q, ours.attention.k, ours.attention.v)
            theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in qkv]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in qkv]))
            pairs = [(theirs.self_attn.out_proj, ours.attention.o), (theirs.linear1, ours.ffn.up), (theirs.linear2, ours.ffn.down)]
            pairs += [(theirs.norm1, ours.attention_norm), (theirs.norm2, ours.ffn_norm)]
            for target, source in pairs:
                target.load_state_dict(source.state_dict())
        if pre:
            stack.norm.load_state_dict(model.norm.state_dict())
    return stack


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("form", ["formula", "listing"])
def test_article_forms_equal_torch_encoder_layers_in_values_and_gradients(form: str, kind: str, layers: int, padded: bool) -> None:
    model = build(article(form, kind, layers))
    stack = torch_stack(model)
    ids = tokens(3, 9)
    real = torch.ones(3, 9, dtype=torch.bool)
    if padded:
        real[0, 6:] = False
        real[2, 2:] = False
    documents = torch.where(real, 0, PADDING) if padded else None
    ours = model(ids, documents_BT=documents, hidden=True)
    table = model.embed.weight.detach().clone().requires_grad_()
    entry = table[ids] * math.sqrt(16) + transformer.sinusoids(torch.arange(9).expand(3, 9), 16)
    blocked = torch.ones(9, 9, dtype=torch.bool).triu(1) if kind == "decoder" else None
    theirs = stack(entry, mask=blocked, src_key_padding_mask=~real if padded else None)
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)

    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)) * real[..., None]
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(model.embed.weight.grad, table.grad, atol=1e-4, rtol=1e-4)
    for reference, block in zip(stack.layers, model.blocks, strict=True):
        qkv = torch.cat([part.weight.grad for part in (block.attention.q, block.attention.k, block.attention.v)])
        torch.testing.assert_close(qkv, reference.self_attn.in_proj_weight.grad, atol=1e-4, rtol=1e-4)
        pairs = [(block.attention.o, reference.self_attn.out_proj), (block.ffn.up, reference.linear1), (block.ffn.down, reference.linear2)]
        pairs += [(block.attention_norm, reference.norm1), (block.ffn_norm, reference.norm2)]
        for one, other in pairs:
            torch.testing.assert_close(one.weight.grad, other.weight.grad, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.bias.grad, other.bias.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_default_equals_transformers_qwen3_in_logits_and_gradients(kv_heads: int, tied: bool) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = replace(qwen3(32, 2, 4, kv_heads, 40, 64), tie_embeddings=tied, head_dim=12)
    model = build(config)
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=12,
            max_position_embeddings=64,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=tied,
        )
    )
    own = dict(model.named_parameters())
    parts = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn": "attention", "mlp": "ffn"}
    parts |= {"layers": "blocks", "embed_tokens": "embed", "lm_head": "output"}
    parts |= {f"{part}_proj": part for part in ("q", "k", "v", "o", "gate", "up", "down")}
    theirs = {}
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            ours = ".".join(parts.get(part, part) for part in name.removeprefix("model.").split("."))
            parameter.copy_(own[ours])
            theirs[ours] = parameter
    assert theirs.keys() == own.keys()
    ids = tokens(2, 50)
    logits, expected = model(ids), reference(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    logits.logsumexp(-1).mean().backward()
    expected.logsumexp(-1).mean().backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


CONFIGS = {
    "qwen3": qwen3(16, 2, 4, 2, 24, 32),
    "formula decoder": article("formula", "decoder"),
    "listing decoder": article("listing", "decoder"),
    "formula encoder": article("formula", "encoder"),
    "learned gelu": replace(article("listing", "decoder"), positions="learned", activation="gelu"),
    "gpt2": gpt2(16, 2, 4, 24, 32, 0.0),
    "gpt_neo": gpt_neo(16, 3, 4, 24, 32, 4, 0.0),
    "llama": replace(llama(16, 2, 4, 2, 24, 32), rope_scaling=RopeScaling(4.0, 1.0, 4.0, 16)),
    "bert": bert(16, 2, 4, 24, 32, 0.0),
    "roberta": roberta(16, 2, 4, 24, 32, 0.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_documents_in_one_row_compute_what_each_computes_alone(name: str) -> None:
    model = build(CONFIGS[name])
    sizes = [5, 1, 9, 3]
    ids = tokens(1, sum(sizes))
    documents = torch.tensor([[7] * 5 + [8] + [9] * 9 + [PADDING] * 3])
    together = model(ids, documents_BT=documents)
    begin = 0
    for size in sizes:
        alone = model(ids[:, begin : begin + size])
        torch.testing.assert_close(together[:, begin : begin + size], alone, atol=1e-5, rtol=1e-5)
        begin += size


def documents_of(length: int) -> torch.Tensor:
    """Two rows of documents that begin at other places than blocks of a mask do; the first ends in padding."""
    documents = torch.stack((torch.arange(length) // 37, torch.arange(length) // 171))
    documents[0, -40:] = PADDING
    return documents


@pytest.mark.parametrize("kind", ["decoder", "encoder", "both"])
@pytest.mark.parametrize("length", [300, 256])
@torch.no_grad()
def test_a_mask_by_blocks_gives_the_logits_of_the_dense_one(monkeypatch, kind: str, length: int) -> None:
    ahead = torch.tensor([False, True]) if kind == "both" else None
    model = build(replace(CONFIGS["qwen3"], kind="encoder" if kind == "encoder" else "decoder", context=512))
    ids, documents = tokens(2, length), documents_of(length)
    dense = model(ids, documents_BT=documents, ahead_B=ahead)
    monkeypatch.setattr(transformer, "compiled", lambda function: function)  # uncompiled it runs on a CPU too
    monkeypatch.setattr(model, "_mask", lambda documents, *rest: transformer.block_mask(documents, kind != "encoder", ahead))
    torch.testing.assert_close(model(ids, documents_BT=documents, ahead_B=ahead), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [False, True])
@torch.no_grad()
def test_rows_that_see_ahead_compute_what_an_encoder_does_and_the_others_what_a_decoder_does(split: bool) -> None:
    decoder = build(replace(CONFIGS["qwen3"], context=64))
    encoder = Transformer(replace(decoder.config, kind="encoder"), decoder.vocab).eval()
    encoder.load_state_dict(decoder.state_dict())
    ids, documents = tokens(2, 20), (torch.arange(20) // 8).expand(2, 20) if split else None
    both = decoder(ids, documents_BT=documents, ahead_B=torch.tensor([False, True]))
    torch.testing.assert_close(both[0], decoder(ids, documents_BT=documents)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1], encoder(ids, documents_BT=documents)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on a GPU only")
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_mask_by_blocks_gives_the_gradients_of_the_dense_one_on_a_gpu(kind: str) -> None:
    model, ids = build(replace(qwen3(64, 2, 4, 2, 128, 512), kind=kind)).cuda(), tokens(2, 300).cuda()
    found = []
    for model._flexible in (False, True):
        logits = model(ids, documents_BT=documents_of(300).cuda())
        logits.square().sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["qwen3", "learned gelu"])
def test_checkpointing_changes_neither_logits_nor_gradients(name: str) -> None:
    model, ids = build(replace(CONFIGS[name], dropout=0.2)), tokens(2, 12)
    found = []
    for model.checkpointing in (False, True):
        torch.manual_seed(3)
        logits = model(ids)
        logits.square().sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
        model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_head_gets_the_last_states_and_the_output_matrix() -> None:
    model, ids = build(CONFIGS["qwen3"]), tokens(2, 12)
    assert torch.equal(model(ids, head=lambda states, output: output(states)[:, -1]), model(ids)[:, -1])


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.kind == "decoder"])
@pytest.mark.parametrize("pieces", [[12], [4, 1, 1, 6], [1] * 12])
def test_a_cache_changes_no_logit(name: str, pieces: list[int]) -> None:
    model = build(CONFIGS[name]).eval()
    ids = tokens(2, 12)
    with torch.no_grad():
        whole = model(ids)
        cache = Cache(model.config, 2, 12)
        parts = [model(part, cache=cache) for part in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_left_padding_in_a_cache_changes_no_logit() -> None:
    model = build(CONFIGS["learned gelu"]).eval()
    long, short = tokens(1, 8, seed=1), tokens(1, 5, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1)])
    documents = torch.tensor([[0] * 8, [PADDING] * 3 + [0] * 5])
    following = torch.tensor([[3], [4]])
    with torch.no_grad():
        cache = Cache(model.config, 2, 9)
        first = model(batch, documents_BT=documents, cache=cache)
        then = model(following, positions_BT=torch.tensor([[8], [5]]), cache=cache)
        for row, prompt in enumerate((long, short)):
            alone = model(torch.cat([prompt, following[row : row + 1]], dim=1))[0]
            padding = 8 - prompt.shape[1]
            torch.testing.assert_close(torch.cat([first[row, padding:], then[row]]), alone, atol=1e-5, rtol=1e-5)


def test_a_decoder_sees_no_future_and_an_encoder_sees_all() -> None:
    ids = tokens(1, 10)
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % VOCAB
    for name, sees in (("qwen3", False), ("formula encoder", True)):
        model = build(CONFIGS[name])
        moved = (model(ids) - model(changed)).abs().amax(-1)[0] > 1e-6
        assert moved[6:].all() and moved[:6].any() == sees, name


def attention_by_hand(attention: transformer.Attention, x: torch.Tensor, kv_heads: int, sees: Callable[[int, int], bool], scale: float):
    """head_h = softmax(q_h kᵀ_g · scale) v_g over what a token sees, g the group of h; then concat(heads) W_o: one product at a time."""
    T, heads = x.shape[1], 4
    q = attention.q(x)[0].view(T, heads, 4)
    k, v = (part(x)[0].view(T, kv_heads, 4) for part in (attention.k, attention.v))
    out = torch.zeros(T, heads, 4)
    for head in range(heads):
        group = head // (heads // kv_heads)
        for i in range(T):
            seen = [j for j in range(T) if sees(i, j)]
            scores = [math.exp(float(q[i, head] @ k[j, group]) * scale) for j in seen]
            out[i, head] = sum(score / sum(scores) * v[j, group] for j, score in zip(seen, scores, strict=True))
    return attention.o(out.reshape(T, heads * 4))


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "causal", "scale"),
    [
        (article("formula", "decoder", 1), True, 0.5),
        (article("formula", "encoder", 1), False, 0.5),
        (replace(article("formula", "decoder", 1), kv_heads=2), True, 0.5),
        (replace(gpt_neo(16, 1, 4, 24, 32, 3, 0.0), attention=("global",), window=0), True, 1.0),
    ],
)
def test_attention_is_softmax_of_products_scaled_by_the_root_of_the_head_or_not(config: ModelConfig, causal: bool, scale: float) -> None:
    attention = build(config).blocks[0].attention
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = attention_by_hand(attention, x, config.kv_heads, lambda i, j: j <= i or not causal, scale)
    torch.testing.assert_close(attention(x, None, None, causal, None)[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_local_layer_sees_the_last_window_of_tokens_of_its_document() -> None:
    config = replace(gpt_neo(16, 1, 4, 24, 32, 3, 0.0), attention=("local",))
    model = build(config)
    ids = tokens(1, 9)
    x = model.embed(ids) + model.place(torch.arange(9))[None]
    block = model.blocks[0]
    after = x[0] + attention_by_hand(block.attention, block.attention_norm(x), 4, lambda i, j: i - 3 < j <= i, 1.0)
    expected = model.norm(after + block.ffn(block.ffn_norm(after)))
    torch.testing.assert_close(model(ids, hidden=True)[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "swiglu"])
def test_feed_forward_is_its_definition_at_each_place(activation: str) -> None:
    def phi(z: float) -> float:
        if activation == "relu":
            return max(0.0, z)
        if activation == "gelu":
            return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
        if activation == "gelu_tanh":
            return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return z / (1 + math.exp(-z))

    ffn = build(replace(article("formula", "encoder", 1), activation=activation)).blocks[0].ffn
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)) * 4
    for place in range(3):
        inner = []
        for f in range(24):
            up = float(ffn.up.weight[f] @ x[0, place] + ffn.up.bias[f])
            inner.append(phi(float(ffn.gate.weight[f] @ x[0, place] + ffn.gate.bias[f])) * up if ffn.gate is not None else phi(up))
        expected = [sum(float(w) * z for w, z in zip(ffn.down.weight[c], inner, strict=True)) + float(ffn.down.bias[c]) for c in range(16)]
        torch.testing.assert_close(ffn(x)[0, place], torch.tensor(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encoders_add_types_norm_the_sum_and_pool_the_first_state() -> None:
    for name in ("bert", "roberta"):
        model = build(CONFIGS[name])
        ids, types = tokens(2, 7), torch.arange(7).expand(2, 7) % model.config.types
        places = model.place.weight[model.config.position_offset + torch.arange(7)]
        total = model.embed.weight[ids] + model.types.weight[types] + places
        centred = total - total.mean(-1, keepdim=True)
        x = (
            centred / (centred.pow(2).mean(-1, keepdim=True) + model.config.norm_eps).sqrt() * model.embed_norm.weight
            + model.embed_norm.bias
        )
        for block in model.blocks:
            x = block(x, None, None, False, None)
        torch.testing.assert_close(model(ids, types_BT=types, hidden=True), x, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(ids), model(ids, types_BT=torch.zeros_like(ids)))
        state = model.head.norm(nn.functional.gelu(x @ model.head.dense.weight.T + model.head.dense.bias))
        expected = state @ model.embed.weight.T + model.output.bias
        torch.testing.assert_close(model(ids, types_BT=types), expected, atol=1e-5, rtol=1e-5)
    model = build(CONFIGS["bert"])
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(model.pooler(x), torch.tanh(x[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias))


def test_norms_equal_their_definitions() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    layer = transformer.norm(article("formula", "encoder"), 16)
    rms = transformer.norm(qwen3(16, 1, 2, 2, 16, 16), 16)
    with torch.no_grad():
        for module in (layer, rms):
            for parameter in module.parameters():
                parameter.uniform_(-1, 1)
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * rms.weight)


def test_sinusoids_equal_their_definition() -> None:
    table = transformer.sinusoids(torch.arange(20)[None], 10)[0]
    for position in (0, 1, 7, 19):
        for i in range(5):
            angle = position / 10_000 ** (2 * i / 10)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_products_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> float:
        turned = []
        for x, position in ((q, i), (k, j)):
            phase = transformer.angles(torch.tensor([[position]]), 8, 10_000.0).repeat(1, 1, 2)[:, None]
            turned.append(transformer.rotate(x, (phase.cos(), phase.sin())))
        return float((turned[0] * turned[1]).sum())

    assert product(9, 4) == pytest.approx(product(25, 20), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)
    assert product(3, 3) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_initialisation_depends_on_the_seed_alone() -> None:
    config = qwen3(32, 3, 4, 2, 48, 32)
    states = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)
        model = Transformer(config, VOCAB)
        model.init_weights(seed)
        states.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["embed.weight"], states[2]["embed.weight"])


def test_initialisation_has_the_stated_scales() -> None:
    config = replace(article("listing", "decoder", layers=4), width=64, heads=4, head_dim=16, ffn_width=256)
    model = Transformer(config, VOCAB)
    model.init_weights(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
        else:
            std = 0.02 / math.sqrt(8) if name.endswith(("o.weight", "down.weight")) else 0.02
            assert float(parameter.detach().std()) == pytest.approx(std, rel=0.1), name


def test_dropout_acts_in_training_only() -> None:
    model = build(replace(article("listing", "decoder"), dropout=0.5))
    ids = tokens(1, 8)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_parameters_are_counted_once_and_flops_follow_palm() -> None:
    config = qwen3(16, 2, 4, 2, 24, 32)
    block = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24 + 2 * 16 + 2 * 4
    assert transformer.parameter_counts(config, VOCAB) == (2 * block + 16 + VOCAB * 16, 2 * block + 16)
    untied = replace(config, tie_embeddings=False)
    assert transformer.parameter_counts(untied, VOCAB) == (2 * block + 16 + 2 * VOCAB * 16, 2 * block + 16)
    expected = 6 * (2 * block + 16 + VOCAB * 16) + 12 * 2 * 4 * 4 * 32
    assert transformer.flops_per_token(config, VOCAB, 32) == transformer.flops_per_token(untied, VOCAB, 32) == expected


def test_counts_and_flops_leave_out_what_no_token_is_multiplied_by() -> None:
    config = CONFIGS["bert"]
    block = 4 * (16 * 16 + 16) + 2 * 16 * 24 + 24 + 16 + 4 * 16
    inner = 2 * block + 2 * 16 + (16 * 16 + 16 + 2 * 16)  # blocks, norm of the embeddings, masked head
    outer = VOCAB * 16 + VOCAB + 32 * 16 + 2 * 16 + (16 * 16 + 16) + (2 * 16 + 2)  # tables, output bias, pooler
    assert transformer.parameter_counts(config, VOCAB) == (inner + outer, inner)
    assert transformer.flops_per_token(config, VOCAB, 32) == 6 * (inner + VOCAB * 16) + 12 * 2 * 4 * 4 * 32
    local = CONFIGS["gpt_neo"]  # global, local, global
    inner = transformer.parameter_counts(local, VOCAB)[1]
    assert transformer.flops_per_token(local, VOCAB, 32) == 6 * (inner + VOCAB * 16) + 12 * 4 * 4 * (32 + 4 + 32)


def test_shapes_that_contradict_themselves_are_refused() -> None:
    for changes, message in (
        ({"attention": ("global", "local")}, "needs a decoder and a window, not decoder and 0"),
        ({"attention": ("local",), "window": 4, "kind": "encoder"}, "not encoder and 4"),
        ({"attention": ()}, "attention"),
        ({"rope_scaling": {"factor": 2.0, "low": 4.0, "high": 4.0, "original": 64}}, "must exceed low"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(ModelConfig, to_dict(CONFIGS["qwen3"]) | changes)


def test_bf16_stays_near_fp32_at_late_positions() -> None:
    model = build(qwen3(32, 2, 4, 2, 48, 2048)).eval()
    ids = tokens(1, 2000)
    with torch.no_grad():
        exact = model(ids)[0, -50:]
        rounded = model.bfloat16()(ids)[0, -50:].float()
    assert float((rounded - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_a_sequence_beyond_the_context_is_refused() -> None:
    model = build(CONFIGS["qwen3"])
    with pytest.raises(InputError, match="33 tokens does not fit 32"):
        model(tokens(1, 33))
    with pytest.raises(InputError, match="7 tokens does not fit 6"):
        model(tokens(1, 7), cache=Cache(model.config, 1, 6))


def test_an_encoder_has_no_cache() -> None:
    with pytest.raises(ConfigError, match="needs a decoder"):
        Cache(CONFIGS["formula encoder"], 1, 8)
