"""Continuous batching: company changes nothing, rows are freed, streams add up, stops hold back what might be one."""

import random
import threading
import time
from dataclasses import replace

import pytest
import torch

from deploy.batching import BusyError, Engine, Piece, Request, _Row, collected
from model import generate, tokenizer
from model.config import article_formula, gpt2, gpt_neo, llama, qwen3
from model.errors import ConfigError, InputError
from model.transformer import Transformer

SHAPES = {
    "qwen3": qwen3(32, 2, 4, 2, 48, 48),
    "llama": llama(32, 2, 4, 2, 48, 48),
    "gpt2": gpt2(32, 2, 4, 48, 48, 0.0),
    "gpt_neo": gpt_neo(32, 2, 4, 48, 48, 5, 0.0),
    "article": article_formula("decoder", 32, 2, 4, 48, 48, 0.0),
    "soft prompt": replace(qwen3(32, 2, 4, 2, 48, 48), prompt=3),
}


@pytest.fixture(scope="module")
def words():
    return tokenizer.train(["the lamp of the lighthouse was lit every night; 灯塔的灯每夜点亮。"] * 5, 512)


def model_of(shape, words, seed=0):
    made = Transformer(shape, tokenizer.vocab_size(words))
    made.init_weights(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)) * 0.1)
    return made


@pytest.fixture(scope="module")
def engine(words):
    made = Engine(model_of(SHAPES["qwen3"], words), words, slots=4, waiting=64)
    yield made
    made.close()


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_in_company_are_those_of_a_request_alone(words, name):
    """Three rows for eleven requests of unequal prompts, lengths and settings, so that rows are given on while others write."""
    model, chance = model_of(SHAPES[name], words), random.Random(1)
    requests = [
        Request(
            [chance.randrange(5, words.get_vocab_size()) for _ in range(chance.randrange(1, 20))],
            chance.randrange(1, 40),
            temperature,
            0.9,
            seed,
        )
        for seed, temperature in enumerate([0.0, 1.0, 0.0, 0.7, 0.0, 1.5, 0.0, 0.0, 1.0, 0.0, 0.0])
    ]
    engine = Engine(model, words, slots=3, waiting=64)
    found = collected(engine, requests)
    engine.close()
    for request, (tokens, text, end) in zip(requests, found, strict=True):
        [alone] = generate.generate(model, words, [request.ids], request.max_new, request.temperature, request.top_p, request.seed)
        assert (tokens, text, end) == (alone.ids, alone.text, alone.finished)


def test_pieces_add_up_and_half_a_character_is_held_back(engine, words):
    pieces, done = [], threading.Event()

    def emit(piece: Piece) -> None:
        pieces.append(piece)
        if piece.end:
            done.set()

    engine.submit(Request(tokenizer.encode(words, "灯"), 30, 1.3, 1.0, 3, emit=emit))
    assert done.wait(30)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(piece.text for piece in pieces) == words.decode(tokens)
    told: list[str] = []
    row = _Row(Request([1], 9, emit=lambda piece: told.append(piece.text)), words, 9)
    ids = tokenizer.encode(words, "鑫a")
    assert len(ids) == 4  # three bytes that the tokenizer has never seen together
    for token in ids:
        row.add(token, None)
    assert told == ["鑫", "a"]


def test_an_answer_ends_before_a_stop_text_that_tokens_cut_across(engine, words):
    [(tokens, text, _)] = collected(engine, [Request([40, 41], 30, 1.0, 1.0, 11)])
    for start in range(3, len(text) - 4):
        word = text[start : start + 4]
        [(_, cut, end)] = collected(engine, [Request([40, 41], 30, 1.0, 1.0, 11, stop=("never there", word))])
        assert (cut, end) == (text[: text.index(word)], "stop")
    assert len(tokens) == 30 or text


def test_logprobs_are_those_of_the_model(engine, words):
    pieces, done = [], threading.Event()
    emit = lambda piece: (pieces.append(piece), done.set() if piece.end else None)  # noqa: E731
    engine.submit(Request([40, 41], 6, logprobs=2, emit=emit))
    assert done.wait(30)
    logprobs = [one for piece in pieces for one in piece.logprobs]
    ids = [40, 41]
    for one in logprobs:
        with torch.no_grad():
            truth = engine.model(torch.tensor([ids]))[0, -1, : words.get_vocab_size()].log_softmax(-1)
        assert one.value == pytest.approx(float(truth[one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == truth.topk(2).indices.tolist() and one.top[0][0] == one.token
        ids.append(one.token)


def test_a_cancelled_request_frees_its_row_at_once(words):
    engine = Engine(model_of(SHAPES["qwen3"], words), words, slots=1, waiting=4)
    begun = threading.Event()
    first = Request([40], 40, 1.0, 1.0, 3, emit=lambda piece: begun.set() if not piece.end else None)
    second = Request([40, 41], 40)
    engine.submit(first)
    first.cancel()
    waiting = Request([50], 40)
    waiting.cancel()
    engine.submit(waiting)
    assert len(collected(engine, [second])[0][0]) > 0
    engine.close()
    assert engine.steps < 45 and engine.active == 0  # the first two made next to nothing


def test_more_than_the_queue_holds_is_refused_and_a_closed_engine_ends_what_it_has(words):
    engine = Engine(model_of(SHAPES["qwen3"], words), words, slots=1, waiting=2)
    ends, wait = [], threading.Event()
    slow = Request([40], 3, emit=lambda piece: wait.wait(20))
    engine.submit(slow)
    time.sleep(0.3)
    for _ in range(2):
        engine.submit(Request([41], 5, emit=lambda piece: ends.append(piece.end) if piece.end else None))
    with pytest.raises(BusyError, match="2 requests are waiting"):
        engine.submit(Request([41], 5))
    engine.close(wait=False)
    with pytest.raises(BusyError, match="being stopped"):
        engine.submit(Request([41], 5))
    wait.set()
    engine.close()
    assert len(ends) == 2 and set(ends) <= {"stop", "length"}


def test_what_cannot_be_answered_is_refused_before_it_is_queued(engine):
    with pytest.raises(InputError, match="48 tokens"):
        engine.submit(Request([40] * 48, 4))
    with pytest.raises(InputError, match="0 tokens"):
        engine.submit(Request([], 4))
    with pytest.raises(ConfigError, match="temperature"):
        engine.submit(Request([40], 4, temperature=-1))


def test_a_failing_pass_ends_its_requests_with_the_error_and_not_the_engine(words, monkeypatch):
    engine = Engine(model_of(SHAPES["qwen3"], words), words, slots=2, waiting=4)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "logits", lambda states: 1 / 0)
        pieces, done = [], threading.Event()
        engine.submit(Request([40], 4, emit=lambda piece: (pieces.append(piece), done.set())))
        assert done.wait(10)
    assert pieces[-1].end == "error" and "ZeroDivisionError" in pieces[-1].error
    assert collected(engine, [Request([40], 4)])[0][2] in ("stop", "length")
    engine.close()
