"""Properties of model/batches.py; the stream is checked against a naive reading of all tokens in one list."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import NO_LOSS, PADDING, Batch, Batches, Packed, Pairs, Stream, held_out, plan, plan_path, shuffled
from model.errors import EmptyError, ShardError
from model.shards import Shard, ShardWriter
from model.tokenizer import PAD


def shards(folder: Path, *contents: list[list[int]]) -> list[Shard]:
    """One shard a list of documents."""
    found = []
    for number, documents in enumerate(contents):
        with ShardWriter(folder / f"train-{number}", np.uint16) as writer:
            for ids in documents:
                writer.add(np.array(ids))
        found.append(Shard(folder / f"train-{number}"))
    return found


def examples(folder: Path, sizes: list[int], length: int) -> list[Shard]:
    """A masked, packed shard; example i has ids 10·i, 10·i+1, … and learns its second half."""
    with ShardWriter(folder / "train", np.uint16) as writer:
        for number, size in enumerate(sizes):
            writer.add(10 * number + np.arange(size), np.arange(size) >= size // 2)
    np.save(plan_path(folder / "train"), plan(np.array(sizes), length))
    return [Shard(folder / "train")]


def many(folder: Path, seed: int = 0) -> list[Shard]:
    rng = np.random.default_rng(seed)
    return shards(folder, *([rng.integers(4, 90, size).tolist() for size in rng.integers(1, 40, 20)] for _ in range(3)))


documents = st.lists(st.lists(st.integers(4, 90), min_size=1, max_size=7), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(contents=st.lists(documents, min_size=1, max_size=3), length=st.integers(1, 9))
def test_a_sample_is_its_piece_of_the_stream_with_borders_where_documents_begin(tmp_path_factory, contents, length):
    parts = shards(tmp_path_factory.mktemp("b"), *contents)
    stream = [
        (token, (f"train-{s}", d), first)
        for s, part in enumerate(contents)
        for d, ids in enumerate(part)
        for first, token in enumerate(ids)
    ]
    count = (len(stream) - 1) // length
    if not count:
        with pytest.raises(EmptyError, match="tokens in all; one sample needs"):
            Stream(parts, length)
        return
    source = Stream(parts, length)
    assert source.samples == count
    batch = source.read(np.arange(count))
    predicted = 0
    for k in range(count):
        window = stream[k * length : (k + 1) * length + 1]
        assert batch.tokens[k].tolist() == [token for token, _, _ in window[:-1]]
        expected = [NO_LOSS if following[2] == 0 else following[0] for following in window[1:]]
        assert batch.targets[k].tolist() == expected
        predicted += sum(target != NO_LOSS for target in expected)
        names = list(dict.fromkeys(name for _, name, _ in window[:-1]))
        assert [names[d] for d in batch.documents[k]] == [name for _, name, _ in window[:-1]]
        begins = {name: next(i for i, entry in enumerate(window) if entry[1] == name) for name in names}
        assert batch.positions[k].tolist() == [i - begins[name] for i, (_, name, _) in enumerate(window[:-1])]
        assert source.documents(k) == list(dict.fromkeys(name for _, name, _ in window))
    assert source.targets(np.arange(count)) == predicted


def test_the_end_token_is_predicted_and_the_next_documents_first_token_is_not(tmp_path):
    batch = Stream(shards(tmp_path, [[5, 6, 0], [7, 8, 0]]), 5).read(np.array([0]))
    assert batch.tokens.tolist() == [[5, 6, 0, 7, 8]]
    assert batch.targets.tolist() == [[6, 0, NO_LOSS, 8, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1]] and batch.positions.tolist() == [[0, 1, 2, 0, 1]]


def test_rows_do_not_depend_on_how_a_batch_is_cut(tmp_path):
    batches = Batches(Stream(many(tmp_path), 16), "f", 12, 1)
    whole = batches.rows(5, 0, 12)
    for cut in (1, 3, 4):
        parts = [batches.rows(5, lo, lo + cut) for lo in range(0, 12, cut)]
        for name in ("tokens", "targets", "documents", "positions"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert batches.targets(5) == (whole.targets != NO_LOSS).sum()


def test_a_batch_depends_on_fingerprint_seed_and_step_only(tmp_path):
    source = Stream(many(tmp_path), 4)
    first = Batches(source, "f", 8, 1)
    first.samples(7)
    again = Batches(source, "f", 8, 1)
    assert np.array_equal(first.samples(3), again.samples(3)) and first.digest(3) == again.digest(3)
    others = [Batches(source, "g", 8, 1).digest(3), Batches(source, "f", 8, 2).digest(3), again.digest(4)]
    assert len({first.digest(3), *others}) == 4


@pytest.mark.parametrize("size", [1, 7, 16])
def test_every_epoch_has_every_sample_once_in_another_order(tmp_path, size):
    source = Stream(many(tmp_path), 16)
    batches = Batches(source, "f", size, 3)
    steps = -(-2 * source.samples // size)
    order = np.concatenate([batches.samples(step) for step in range(steps)])
    first, second = order[: source.samples], order[source.samples : 2 * source.samples]
    assert sorted(first) == sorted(second) == list(range(source.samples)) and first.tolist() != second.tolist()


def test_the_documents_of_rows_are_named_once(tmp_path):
    parts = shards(tmp_path, [[5] * 6], [[6] * 2, [7] * 9])
    batches = Batches(Stream(parts, 4), "f", 4, 1)
    assert sorted(batches.documents(0, range(4))) == [("train-0", 0), ("train-1", 0), ("train-1", 1)]


@given(count=st.integers(1, 700), key=st.text(max_size=5))
def test_shuffling_is_a_permutation_that_any_part_can_be_asked_of(count, key):
    whole = shuffled(np.arange(count), count, key)
    assert sorted(whole) == list(range(count))
    assert np.array_equal(shuffled(np.arange(count)[::3], count, key), whole[::3])


def test_the_order_of_samples_never_changes_between_versions():
    assert shuffled(np.arange(10), 10, "golden").tolist() == [8, 7, 1, 6, 4, 2, 3, 5, 9, 0]


def test_shuffled_places_are_as_far_from_home_as_chance_has_it():
    count = 4096
    whole = shuffled(np.arange(count), count, "k")
    assert abs(np.abs(whole - np.arange(count)).mean() / (count / 3) - 1) < 0.05
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.06
    assert (whole == np.arange(count)).sum() < 8


@settings(deadline=None)
@given(sizes=st.lists(st.integers(2, 17), min_size=1, max_size=60))
def test_a_plan_is_first_fit_decreasing(sizes):
    rows: list[int] = []
    expected = {}
    for example in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        need = sizes[example] - 1
        row = next((r for r, filled in enumerate(rows) if filled + need <= 16), len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] += need
        expected[example] = row
    assert plan(np.array(sizes), 16).tolist() == [expected[i] for i in range(len(sizes))]


@pytest.mark.parametrize("size", [1, 18])
def test_an_example_that_fits_no_row_is_refused_by_number(size):
    with pytest.raises(ShardError, match=f"example 1 has {size} tokens; a row takes 2 to 17"):
        plan(np.array([5, size]), 16)


def test_packed_rows_hold_whole_examples_with_loss_on_masked_tokens_and_padding_apart(tmp_path):
    source = Packed(examples(tmp_path, [4, 5, 3], 6), 6)
    assert source.samples == 2
    batch = source.read(np.arange(2))
    assert batch.tokens.tolist() == [[10, 11, 12, 13, 20, 21], [0, 1, 2, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[NO_LOSS, 12, 13, 14, 21, 22], [NO_LOSS, 2, 3, *[NO_LOSS] * 3]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, *[PADDING] * 3]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert source.targets(np.arange(2)) == (batch.targets != NO_LOSS).sum() == 7
    assert source.documents(0) == [("train", 1), ("train", 2)]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=20))
def test_packing_loses_and_repeats_no_example(tmp_path_factory, sizes):
    source = Packed(examples(tmp_path_factory.mktemp("p"), sizes, 8), 8)
    assert sorted(number for row in range(source.samples) for _, number in source.documents(row)) == list(range(len(sizes)))
    batch = source.read(np.arange(source.samples))
    assert (batch.documents != PADDING).sum() == sum(sizes) - len(sizes)


def test_a_plan_for_another_length_or_shard_is_refused(tmp_path):
    parts = examples(tmp_path, [4, 5, 3], 6)
    with pytest.raises(ShardError, match=r"train\.plan\.npy does not pack train's 3 examples into rows of 5"):
        Packed(parts, 5)
    np.save(plan_path(tmp_path / "train"), plan(np.array([4, 5]), 6))
    with pytest.raises(ShardError, match="does not pack"):
        Packed(parts, 6)


def test_a_shard_without_mask_or_plan_is_refused(tmp_path):
    with pytest.raises(ShardError, match="no loss mask or no packing plan"):
        Packed(shards(tmp_path, [[5, 6]]), 8)


@pytest.mark.parametrize("labelled", [False, True])
def test_pairs_are_two_texts_a_row_each_in_its_half(tmp_path, labelled):
    texts = [np.arange(10 * n + 5, 10 * n + 5 + size) for n, size in enumerate((3, 9, 4, 2))]
    with ShardWriter(tmp_path / "a", np.uint16) as writer:
        for text in texts:
            writer.add(text)
    pairs = Pairs([Shard(tmp_path / "a")], 5, labelled)
    assert pairs.samples == (2 if labelled else 4) and pairs.targets(np.array([1, 0])) == 2
    batch = pairs.read(np.array([1, 0]))
    for row, sample in enumerate((1, 0)):
        own = texts[2 * sample : 2 * sample + 2] if labelled else [texts[sample]] * 2
        for half, text in enumerate(own):
            here, size = slice(5 * half, 5 * half + 5), min(5, len(text))
            assert batch.tokens[row, here].tolist() == [*text[:5], *[PAD] * (5 - size)]
            assert batch.documents[row, here].tolist() == [half] * size + [PADDING] * (5 - size)
            assert batch.positions[row, here][:size].tolist() == list(range(size))
    assert batch.count == 2
    assert pairs.documents(1) == ([("a", 2), ("a", 3)] if labelled else [("a", 1)])


def test_an_odd_number_of_documents_makes_no_pairs(tmp_path):
    with ShardWriter(tmp_path / "a", np.uint16) as writer:
        writer.add(np.arange(5))
    with pytest.raises(EmptyError, match="a: 1 documents, which make no pairs"):
        Pairs([Shard(tmp_path / "a")], 5, True)


def test_noise_is_that_of_the_row_and_the_share_done_and_is_made_once_a_step(tmp_path):
    with ShardWriter(tmp_path / "a", np.uint16) as writer:
        writer.add(np.arange(5, 205))
    asked = []

    def noise(batch, keys, done):
        asked.append((keys.tolist(), done))
        return Batch(batch.tokens + 1, np.where(keys[:, None] % np.uint64(2), batch.targets, NO_LOSS), batch.documents, batch.positions)

    batches = Batches(Stream([Shard(tmp_path / "a")], 8), "f", 4, 1, noise, steps=11)
    plain = Batches(Stream([Shard(tmp_path / "a")], 8), "f", 4, 1)
    whole = batches.rows(5, 0, 4)
    assert np.array_equal(whole.tokens, plain.rows(5, 0, 4).tokens + 1) and asked[0][1] == 0.5
    assert np.array_equal(batches.rows(5, 1, 3).tokens, whole.tokens[1:3]) and batches.targets(5) == whole.count and len(asked) == 1
    batches.rows(6, 0, 1)
    assert not set(asked[0][0]) & set(asked[1][0])  # every row of every step has a key of its own
    first, second = (held_out(Stream([Shard(tmp_path / "a")], 8), 6, "f", noise) for _ in range(2))
    assert np.array_equal(first.targets, second.targets) and asked[-1] == asked[-2] and asked[-1][1] == 1.0
