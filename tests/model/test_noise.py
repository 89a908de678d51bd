"""Properties of model/noise.py: what is hidden and what becomes of it, whole words in both languages, and texts that come back from their spans."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import noise
from model.batches import NO_LOSS, PADDING, Batch, keys
from model.config import Masked, Mixed, Spans
from model.tokenizer import END_OF_TEXT, MASK, PAD, SPECIALS, encode, train

BERT = Masked("masked", 0.15, 0.15, 0.8, 0.1, whole_words=False)
TEXTS = [
    "the keeper of the lighthouse lit the lamp every night, unbelievably well",
    "灯塔的灯每夜点亮，中华人民共和国的守望人从不失职。",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS, 330)


def a_batch(rows: int, length: int = 200, seed: int = 0, ids: int = 330) -> Batch:
    """Two documents and some padding a row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(len(SPECIALS), ids, (rows, length))
    documents = np.zeros((rows, length), dtype=np.int64)
    documents[:, length // 2 :] = 1
    documents[:, -10:] = PADDING
    tokens[:, length // 2 - 1], tokens[:, -10:] = END_OF_TEXT, PAD
    positions = np.concatenate([np.arange(length // 2), np.arange(length - length // 2)])
    return Batch(tokens, np.roll(tokens, -1, 1), documents, np.tile(positions, (rows, 1)))


def test_of_the_hidden_tokens_eighty_per_cent_are_masked_ten_are_others_and_ten_stay(tokenizer):
    batch = a_batch(400)
    made = noise.Masking(BERT, tokenizer)(batch, keys(1, np.arange(400, dtype=np.uint64)), 0.0)
    hidden = made.targets != NO_LOSS
    able = (batch.tokens >= len(SPECIALS)).sum(1)
    assert (hidden.sum(1) == np.round(0.15 * able)).all()  # of every row as many as can be
    assert not hidden[batch.tokens < len(SPECIALS)].any()
    assert (made.targets[hidden] == batch.tokens[hidden]).all() and (made.tokens[~hidden] == batch.tokens[~hidden]).all()
    fate = Counter(np.where(made.tokens == MASK, "mask", np.where(made.tokens == batch.tokens, "same", "other"))[hidden])
    shares = [fate[name] / hidden.sum() for name in ("mask", "other", "same")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    others = made.tokens[hidden & (made.tokens != MASK) & (made.tokens != batch.tokens)]
    assert others.min() >= len(SPECIALS) and others.max() < 330 and len(set(others.tolist())) > 250
    places = hidden.sum(0)[batch.tokens.min(0) >= len(SPECIALS)]
    assert places.min() > 25 and places.max() < 105  # 60 of 400 rows hide each place, within six sigma


def test_noise_depends_on_the_key_alone_and_the_rate_follows_its_schedule(tokenizer):
    batch, masking = a_batch(8), noise.Masking(Masked("masked", 0.4, 0.1, 0.8, 0.1, whole_words=False), tokenizer)
    key = keys(3, np.arange(8, dtype=np.uint64))
    whole = masking(batch, key, 0.0)
    for row in range(8):
        alone = masking(batch.cut(row, row + 1), key[row : row + 1], 0.0)
        assert np.array_equal(alone.tokens[0], whole.tokens[row]) and np.array_equal(alone.targets[0], whole.targets[row])
    assert not np.array_equal(masking(batch, keys(4, np.arange(8, dtype=np.uint64)), 0.0).targets, whole.targets)
    able = (batch.tokens >= len(SPECIALS)).sum()
    for done, rate in ((0.0, 0.4), (0.5, 0.25), (1.0, 0.1)):
        assert masking(batch, key, done).count == pytest.approx(rate * able, abs=5)


def test_noise_is_the_same_on_every_machine(tokenizer):
    made = noise.Masking(BERT, tokenizer)(a_batch(1), keys(1, np.zeros(1, dtype=np.uint64)), 0.0)
    assert np.flatnonzero(made.targets[0] != NO_LOSS)[:6].tolist() == FIRST


FIRST = [1, 10, 24, 26, 33, 45]


def words_of(tokenizer, text: str) -> list[str]:
    ids = np.array(encode(tokenizer, text))
    starts = np.flatnonzero(noise.Words(tokenizer).begins(ids)).tolist()
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def test_words_are_runs_of_letters_and_in_chinese_what_jieba_cuts(tokenizer):
    assert words_of(tokenizer, "the quickest lamp2, unbelievably") == ["the", " quickest", " lamp2", ",", " unbelievably"]
    characters = train(["中 华 人 民 共 和 国 的 守 望"] * 20, 300)  # its tokens cross no word
    assert words_of(characters, "中华人民共和国的守望人") == ["中华人民共和国", "的", "守望", "人"]
    assert words_of(tokenizer, "灯塔ABC鱷") == ["灯塔", "ABC", "鱷"] and len(encode(tokenizer, "鱷")) == 3


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_word_is_hidden_whole_or_not_at_all(tokenizer, text):
    ids = np.array(encode(tokenizer, text))
    begins = noise.Words(tokenizer).begins(ids)
    assert begins.sum() < len(ids)
    batch = Batch(ids[None], ids[None], np.zeros((1, len(ids)), dtype=np.int64), np.arange(len(ids))[None])
    masking = noise.Masking(Masked("masked", 0.3, 0.3, 0.8, 0.1, whole_words=True), tokenizer)
    sizes = []
    for key in keys(0, np.arange(50, dtype=np.uint64)):
        hidden = masking(batch, np.array([key]), 0.0).targets[0] != NO_LOSS
        for word in np.split(hidden, np.flatnonzero(begins)[1:]):
            assert word.all() or not word.any()
        sizes.append(int(hidden.sum()))
    longest = max(map(len, np.split(begins, np.flatnonzero(begins)[1:])))
    assert min(sizes) >= round(0.3 * len(ids)) and max(sizes) < round(0.3 * len(ids)) + longest


def test_a_masked_row_of_a_decoder_predicts_each_hidden_token_at_the_place_before_it(tokenizer):
    batch = a_batch(200)
    made = noise.Mixing(Mixed("mixed", 0.25, BERT), tokenizer)(batch, keys(1, np.arange(200, dtype=np.uint64)), 0.0)
    assert made.ahead is not None and 25 < made.ahead.sum() < 75
    causal = ~made.ahead
    assert np.array_equal(made.tokens[causal], batch.tokens[causal]) and np.array_equal(made.targets[causal], batch.targets[causal])
    rows, places = np.nonzero(made.targets[made.ahead] != NO_LOSS)
    assert (made.targets[made.ahead][rows, places] == batch.tokens[made.ahead][rows, places + 1]).all()
    assert (batch.documents[made.ahead][rows, places] == batch.documents[made.ahead][rows, places + 1]).all()
    assert (made.tokens[made.ahead] == MASK).any()


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 0.6), st.floats(1, 5), st.integers(0, 2**32))
def test_what_spans_cut_out_comes_back(sizes, rate, mean, key):
    """Putting each span where its mask token stands gives the beginning of the document, to the token."""
    rng = np.random.default_rng(key)
    documents = [np.append(rng.integers(len(SPECIALS), 400, size), END_OF_TEXT) for size in sizes]
    tokens, length = np.concatenate(documents), sum(map(len, documents))
    numbers = np.repeat(np.arange(len(sizes)), [len(d) for d in documents])
    batch = Batch(tokens[None], tokens[None], numbers[None], np.zeros((1, length), dtype=np.int64))
    made = noise.Cutting(Spans("spans", rate, mean))(batch, np.array([key], dtype=np.uint64), 0.0)
    real = made.documents[0] != PADDING
    assert (made.tokens[0][~real] == PAD).all() and (made.targets[0][~real] == NO_LOSS).all()
    for number in sorted(set(made.documents[0][real].tolist())):
        here = made.documents[0] == number
        ids, targets, original = made.tokens[0][here], made.targets[0][here], documents[number][:-1]
        learnt = np.flatnonzero(targets != NO_LOSS)
        first = int(learnt[0])
        assert ids[first] == MASK and learnt.tolist() == list(range(first, len(ids))) and targets[-1] == END_OF_TEXT
        assert np.array_equal(targets[first:-1], ids[first + 1 :]) and np.array_equal(made.positions[0][here], np.arange(len(ids)))
        spans = np.split(ids[first:], np.flatnonzero(ids[first:] == MASK)[1:])
        back: list[int] = []
        queue = iter(spans)
        for token in ids[:first].tolist():
            back += next(queue)[1:].tolist() if token == MASK else [token]
        assert back == original[: len(back)].tolist() and len(back) > 1


def test_spans_have_the_rate_and_mean_length_asked_for():
    batch = a_batch(300, length=512)
    made = noise.Cutting(Spans("spans", 0.15, 3.0))(batch, keys(1, np.arange(300, dtype=np.uint64)), 0.0)
    masks = (made.tokens == MASK).sum() / 2
    learnt = made.count - masks  # all but the mask tokens of the second half, of which the first is none of the targets, and the end
    kept = (made.tokens >= len(SPECIALS)).sum() - learnt
    assert learnt / (learnt + kept) == pytest.approx(0.15, abs=0.01) and learnt / masks == pytest.approx(3.0, abs=0.15)
