"""Properties of model/adopt.py and tokenizer.adopt: a model made elsewhere computes under Ingot's ids what it computed, and new rows disturb nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from model import adopt, families, generate, tokenizer
from model.config import ModelConfig, bert, gpt2, llama, roberta
from model.errors import InputError, TokenizerError
from model.transformer import Transformer

TEXTS = ["the keeper of the lighthouse lit the lamp every night", "the other lamps were lit by the other keepers", "灯塔的灯每夜点亮"] * 3
SENTENCES = [*TEXTS[:3], "what the lamp said:  </s> [SEP] <pad>\n", "naïve keepers 123"]
DECODERS: dict[str, ModelConfig] = {
    "tied": gpt2(32, 2, 4, 48, 64, 0.0),
    "untied": replace(llama(32, 2, 4, 2, 48, 64), tie_embeddings=False),
}


def foreign(directory: Path, kind: str) -> Tokenizer:
    """A tokenizer as other houses make them, and its files."""
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False))
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        named: dict[str, Any] = {"sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        specials = {"roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "gpt2": []}[kind]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(TEXTS, trainer)
        if kind == "gpt2":
            made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
            made.add_tokens(["<think>"])
            named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        else:
            made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
            named = {"eos_token": {"content": "</s>", "special": True}, "pad_token": "<pad>", "mask_token": "<mask>"}
    directory.mkdir(exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return made


def build(config: ModelConfig, vocab: int) -> Transformer:
    model = Transformer(config, vocab).eval()
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "wordpiece"])
def test_an_adopted_tokenizer_has_ingots_specials_first_and_encodes_as_before(tmp_path: Path, kind: str) -> None:
    original = foreign(tmp_path, kind)
    ours, rows = tokenizer.adopt(tmp_path)
    assert [ours.id_to_token(number) for number in range(5)] == list(tokenizer.SPECIALS)
    end, pad, mask = {"gpt2": ("<|endoftext|>", "", ""), "roberta": ("</s>", "<pad>", "<mask>"), "wordpiece": ("[SEP]", "[PAD]", "[MASK]")}[
        kind
    ]
    assert rows[:5] == [original.token_to_id(end), original.token_to_id(pad), None, None, original.token_to_id(mask)]
    assert sorted(row for row in rows if row is not None) == list(range(original.get_vocab_size()))
    for number, row in enumerate(rows[5:], 5):
        assert ours.id_to_token(number) == original.id_to_token(row)
    original.encode_special_tokens = True
    for text in SENTENCES:
        assert [rows[number] for number in tokenizer.encode(ours, text)] == original.encode(text, add_special_tokens=False).ids
    tokenizer.save(ours, tmp_path / "ours")
    assert tokenizer.fingerprint(tokenizer.load(tmp_path / "ours")) == tokenizer.fingerprint(ours)


def test_new_tokens_come_last_and_come_back(tmp_path: Path) -> None:
    original = foreign(tmp_path, "gpt2")
    ours, rows = tokenizer.adopt(tmp_path, ("lighthouse", "灯塔", "the", "lighthouse", "<|pad|>"))
    assert rows[-2:] == [None, None] and len(rows) == original.get_vocab_size() + 4 + 2
    ids = tokenizer.encode(ours, "a lighthouse, 灯塔的")
    assert {len(rows) - 2, len(rows) - 1} <= set(ids) and ours.decode(ids) == "a lighthouse, 灯塔的"
    for token in ("naïve", ""):  # letters that the byte alphabet takes for bytes
        with pytest.raises(TokenizerError, match="new token .* does not come back"):
            tokenizer.adopt(tmp_path, (token,))


def test_tokenizers_that_cannot_be_adopted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json; save it once with transformers"):
        tokenizer.adopt(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        tokenizer.adopt(tmp_path)
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="of kind Unigram; those with a vocabulary by name"):
        tokenizer.adopt(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["tied", "untied", "masked"])
def test_new_rows_are_the_mean_and_disturb_no_old_token(form: str, dtype: torch.dtype) -> None:
    old = 301
    config = DECODERS.get(form, bert(32, 2, 4, 48, 64, 0.0))
    model = build(config, old).to(dtype)
    wide = adopt.extend(model, [*range(old), *[None] * 19])
    assert wide.vocab == 320 and (wide.output.weight is wide.embed.weight) == config.tie_embeddings
    for before, after in ((model.embed.weight, wide.embed.weight), (model.output.weight, wide.output.weight)):
        assert torch.equal(before, after[:old])
        mean = before.double().mean(0).to(dtype)
        assert all(torch.equal(row, mean) for row in after[old:])
    ids = torch.randint(0, old, (3, 40), generator=torch.Generator().manual_seed(2))
    states, logits, found = model(ids, hidden=True), model(ids), wide(ids)
    again = wide(ids, hidden=True)
    assert torch.equal(again, states)
    bias = None if wide.output.bias is None else wide.output.bias[:old]
    assert torch.equal(torch.nn.functional.linear(wide.head(again), wide.output.weight[:old], bias), logits)
    near = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found[..., :old], logits, atol=near, rtol=near)  # a wider matrix: a BLAS may sum in another order
    if dtype is torch.float32:
        torch.testing.assert_close(found[..., old:], logits.mean(-1, keepdim=True).expand(-1, -1, 19), atol=1e-5, rtol=1e-4)
        taken = found.softmax(-1)[..., old:].sum(-1)
        assert (taken <= 19 / 320 + 1e-6).all()
        kept = found.log_softmax(-1)[..., :old] - logits.log_softmax(-1)
        assert (kept >= math.log(old / 320) - 1e-5).all() and (kept <= 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize("form", ["tied", "untied"])
def test_an_adopted_directory_computes_the_same_under_other_ids(tmp_path: Path, form: str) -> None:
    original = foreign(tmp_path / "theirs", "gpt2")
    vocab = original.get_vocab_size() + 7  # rows beyond the tokenizer, as Qwen's
    model = build(DECODERS[form], vocab)
    families.save(model, model.config, vocab, tmp_path / "theirs")
    adopt.adopt(tmp_path / "theirs", tmp_path / "ours", ("lighthouse",))
    ours, words = families.load(tmp_path / "ours").eval(), tokenizer.load(tmp_path / "ours")
    assert (ours.config, ours.vocab) == (model.config, tokenizer.vocab_size(words))
    rows = tokenizer.adopt(tmp_path / "theirs", ("lighthouse",))[1]
    old = {row: number for number, row in enumerate(rows) if row is not None}
    ids = original.encode("the keeper lit the other lamp").ids
    expected, found = model(torch.tensor([ids])), ours(torch.tensor([[old[number] for number in ids]]))
    torch.testing.assert_close(found[..., list(old.values())], expected[..., list(old)], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(ours.embed.weight[number], model.embed.weight[row]) for row, number in old.items())
    assert all(torch.equal(ours.output.weight[number], model.output.weight[row]) for row, number in old.items())
    mean = model.embed.weight[sorted(old)].double().mean(0).float()
    for number in (1, 2, 3, len(rows) - 1, ours.vocab - 1):  # pad, the turns, the new word, padding of the matrix
        assert torch.equal(ours.embed.weight[number], mean)
    said = generate.generate(ours, words, [tokenizer.encode(words, "the lighthouse")], 4)[0]
    assert len(said.ids) == 4 or said.finished == "stop"


def test_an_encoder_is_adopted_with_its_padding_where_it_counts_positions_from(tmp_path: Path) -> None:
    original = foreign(tmp_path, "roberta")
    config = roberta(32, 2, 4, 48, 64, 0.0)
    families.save(build(config, original.get_vocab_size()), config, original.get_vocab_size(), tmp_path)
    adopt.adopt(tmp_path, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["pad_token_id"] == tokenizer.PAD
    assert families.load(tmp_path / "ours").config == config
    other = replace(config, position_offset=4)
    families.save(build(other, original.get_vocab_size()), other, original.get_vocab_size(), tmp_path)
    with pytest.raises(InputError, match="counts positions from 4"):
        adopt.adopt(tmp_path, tmp_path / "refused")


def test_rows_that_the_model_lacks_are_refused() -> None:
    model = build(DECODERS["tied"], 64)
    for rows in ([0, 64], [-1, 3], [None], []):
        with pytest.raises(InputError, match="must name some of the 64 rows"):
            adopt.extend(model, rows)
