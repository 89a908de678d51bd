"""Properties of model/generate.py: parity with transformers, batching, sampling, stopping, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from model import families, generate, tokenizer
from model.config import ModelConfig, article_listing, qwen3
from model.errors import ConfigError, InputError, TokenizerError
from model.transformer import Transformer

VOCAB = 320
PROMPTS = [[40, 41, 42, 43, 44, 45, 46], [50], [60, 61, 62]]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer of exactly VOCAB tokens, so that transformers may choose every row of the vocabulary."""
    made = tokenizer.train(
        ["".join(chr(n) * 2 for n in range(97, 123)), "the then there these other mother lamp lamps night nights" * 20] * 3, VOCAB
    )
    assert made.get_vocab_size() == VOCAB
    return made


def build(config: ModelConfig, vocab: int = VOCAB, seed: int = 0) -> Transformer:
    model = Transformer(config, vocab)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)) * 0.2)
    return model


MODELS = {"rotary": qwen3(32, 2, 4, 2, 48, 40), "learned": replace(article_listing("decoder", 32, 2, 4, 48, 40, 0.1), positions="learned")}


def test_greedy_tokens_equal_transformers_generate_with_stops_and_left_padding(tmp_path: Path, words: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build(MODELS["rotary"])
    middle = generate.generate(model, words, PROMPTS, 6, stop_ids=())[1].ids[-1]
    with torch.no_grad():  # the end of a turn is what row 1 now says in its middle
        model.embed.weight[tokenizer.END_OF_TURN] = 1.02 * model.embed.weight[middle]
    families.save(model, model.config, VOCAB, tmp_path)
    tokenizer.save(words, tmp_path)
    theirs, their_words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ours = generate.generate(model, words, PROMPTS, 20)
    batch = their_words.pad({"input_ids": PROMPTS}, padding_side="left", return_tensors="pt")
    expected = theirs.generate(**batch, max_new_tokens=20)[:, 7:].tolist()
    for one, row in zip(ours, expected, strict=True):
        end = next((place for place, token in enumerate(row) if token in (0, 3)), None)
        assert one.ids == row[:end]
        assert one.finished == ("length" if end is None else "stop")
        assert one.text == their_words.decode(one.ids, skip_special_tokens=True)
    assert {one.finished for one in ours} == {"stop", "length"}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_what_it_is_alone_and_the_context_ends_it(words: Tokenizer, name: str, temperature: float) -> None:
    model = build(MODELS[name])
    together = generate.generate(model, words, PROMPTS, 100, temperature, 0.9, seed=5, stop_ids=())
    for row, prompt in enumerate(PROMPTS):
        assert together[row].finished == "length" and len(together[row].ids) == 40 - len(prompt)
    alone = generate.generate(model, words, PROMPTS[:1], 100, temperature, 0.9, seed=5, stop_ids=())
    assert alone[0].ids == together[0].ids


def test_greedy_equals_the_argmax_of_full_forward_passes(words: Tokenizer) -> None:
    model = build(MODELS["learned"]).eval()
    ids = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate.generate(model, words, PROMPTS, 10, stop_ids=())[0].ids == ids[7:]


def test_a_seed_decides_samples_and_rows_differ(words: Tokenizer) -> None:
    model = build(MODELS["rotary"])

    def draw(seed: int) -> list[list[int]]:
        return [one.ids for one in generate.generate(model, words, [[50]] * 3, 12, 2.0, 1.0, seed, ())]

    first = draw(1)
    torch.manual_seed(99)
    assert draw(1) == first != draw(2)
    assert first[0] != first[1] != first[2]


def test_sampling_follows_the_probabilities_of_the_nucleus() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    chosen = [generate.choose(logits, 1.0, 1.0, [draw])[0] for draw in grid]
    assert [round(chosen.count(token) / 1000, 2) for token in range(4)] == [0.1, 0.5, 0.15, 0.25]
    chosen = [generate.choose(logits, 1.0, 0.7, [draw])[0] for draw in grid]
    assert [round(chosen.count(token) / 1000, 2) for token in range(4)] == [0.0, 0.67, 0.0, 0.33]
    assert {generate.choose(logits, 1.0, 0.01, [draw])[0] for draw in grid} == {1}


def test_padding_rows_of_the_vocabulary_are_never_chosen(words: Tokenizer) -> None:
    model = build(replace(MODELS["rotary"], tie_embeddings=False), VOCAB + 64)
    with torch.no_grad():
        model.output.weight[VOCAB:] *= 100
    for temperature in (0.0, 3.0):
        assert all(token < VOCAB for one in generate.generate(model, words, PROMPTS, 10, temperature) for token in one.ids)


def test_a_chat_is_the_rendered_prompt_and_training_mode_is_restored(words: Tokenizer) -> None:
    model = build(replace(MODELS["learned"], context=64, dropout=0.5)).train()
    messages = [{"role": "user", "content": "other lamp"}]
    prompt, _ = tokenizer.render(messages, words, answer=True)
    answer = generate.chat(model, words, messages, 8)
    assert model.training
    assert answer == generate.generate(model, words, [prompt], 8)[0]


def test_bad_prompts_settings_and_models_are_refused(words: Tokenizer) -> None:
    model = build(MODELS["rotary"])
    with pytest.raises(InputError, match="prompt 1 has 0 tokens"):
        generate.generate(model, words, [[5], []], 4)
    with pytest.raises(InputError, match="prompt 0 has 40 tokens; this model takes 1 to 39"):
        generate.generate(model, words, [[5] * 40], 4)
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ConfigError, match="top_p in"):
            generate.generate(model, words, [[5]], 4, **settings)
    with pytest.raises(ConfigError, match="decoder"):
        generate.generate(build(article_listing("encoder", 16, 1, 2, 16, 16, 0.0)), words, [[5]], 4)
    with pytest.raises(TokenizerError, match="320 tokens, the model rows for 64"):
        generate.generate(build(MODELS["rotary"], 64), words, [[5]], 4)
    assert generate.generate(model, words, [], 4) == []


def test_a_temperature_however_small_takes_the_likeliest_token():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert generate.choose(logits, 5e-324, 1.0, [0.999]) == generate.choose(logits, 0.0, 1.0, [0.0]) == [1]
