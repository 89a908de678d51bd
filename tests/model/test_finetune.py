"""Properties of model/finetune.py: which examples are kept, what of them is learnt, and that none is cut."""

import numpy as np
import pytest

from model.batches import NO_LOSS, SPAN, Packed, Preferences, reference_path
from model.errors import ShardError
from model.finetune import REASONS, encode_examples, encode_labelled, encode_preferences, encode_questions, sequence, template_hash, windows
from model.shards import Shard
from model.tokenizer import END_OF_TEXT, END_OF_TURN, START_OF_TURN, encode, render, train

LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer():
    return train(["What is the capital of France? Paris is the capital. 谁是你?"] * 4, 512)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def example(question: str, answer: str) -> dict:
    return {"id": question, "messages": [turn("user", question), turn("assistant", answer)]}


def decoded(tokenizer, ids: np.ndarray) -> str:
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def test_only_answers_and_their_ends_are_learnt(tmp_path, tokenizer):
    messages = [
        turn("system", "Be brief"),
        turn("user", "capital?"),
        turn("assistant", "Paris"),
        turn("user", "who?"),
        turn("assistant", "你"),
    ]
    assert encode_examples([{"id": "a", "messages": messages}], tokenizer, tmp_path / "train", LENGTH)["kept"] == 1
    shard = Shard(tmp_path / "train")
    assert shard[0].tolist() == render(messages, tokenizer)[0]
    batch = Packed([shard], LENGTH).read(np.array([0]))
    learnt = batch.targets[batch.targets != NO_LOSS]
    assert decoded(tokenizer, learnt) == "Paris<|im_end|>你<|im_end|>" and (learnt == END_OF_TURN).sum() == 2


def test_every_example_is_kept_or_counted_by_its_reason(tmp_path, tokenizer):
    examples = [
        example("capital?", "Paris"),
        example("capital?", "the capital of France is Paris and " * 20),
        {"id": "b", "messages": [turn("user", "capital?")]},
        example("capital?", "  "),
        {"id": "c", "messages": [turn("assistant", "Paris"), turn("user", "capital?")]},
        {"id": "d", "messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")]},
        {"id": "e", "messages": [turn("tool", "a"), turn("assistant", "c")]},
        {"id": "f", "messages": []},
        {"id": "g"},
        {"id": "h", "messages": "hello"},
        {"id": "i", "messages": [{"role": "user"}, turn("assistant", "c")]},
        {"id": "j", "messages": [turn("user", "a\ud800"), turn("assistant", "c")]},
    ]
    counts = encode_examples(examples, tokenizer, tmp_path / "train", LENGTH)
    assert counts == {"kept": 1, "too_long": 1, "no_answer": 2, "bad_roles": 8} and set(counts) == {"kept", *REASONS}
    assert len(Shard(tmp_path / "train")) == 1


def test_a_question_after_the_last_answer_is_left_out(tmp_path, tokenizer):
    messages = [turn("user", "capital?"), turn("assistant", "Paris")]
    encode_examples([{"id": "a", "messages": [*messages, turn("user", "who?")]}], tokenizer, tmp_path / "train", LENGTH)
    assert Shard(tmp_path / "train")[0].tolist() == render(messages, tokenizer)[0]


def test_an_example_of_length_plus_one_tokens_fits_and_one_more_does_not(tmp_path, tokenizer):
    size = len(render(example("capital?", "Paris")["messages"], tokenizer)[0])
    for length, kept in ((size - 1, 1), (size - 2, 0)):
        assert encode_examples([example("capital?", "Paris")], tokenizer, tmp_path / f"{length}", length)["kept"] == kept


def test_special_tokens_in_an_answer_stay_text(tmp_path, tokenizer):
    encode_examples([example("who?", "<|im_end|>")], tokenizer, tmp_path / "train", LENGTH)
    ids = Shard(tmp_path / "train")[0]
    assert (ids == END_OF_TURN).sum() == 2


def test_the_same_examples_give_the_same_bytes(tmp_path, tokenizer):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        encode_examples([example(f"{n}?", "Paris " * n) for n in range(1, 9)], tokenizer, tmp_path / name / "train", LENGTH)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["train.bin", "train.idx", "train.mask", "train.plan.npy"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_no_example_at_all_gives_an_empty_shard(tmp_path, tokenizer):
    assert encode_examples([], tokenizer, tmp_path / "train", LENGTH)["kept"] == 0
    assert len(Shard(tmp_path / "train")) == 0


def test_the_template_has_a_hash_of_its_own(monkeypatch):
    before = template_hash()
    monkeypatch.setattr("model.finetune.CHAT_TEMPLATE", "{{ messages }}")
    assert len(before) == 64 and template_hash() != before


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("soft", [(), (600, 601)])
def test_the_target_of_a_text_is_its_label_at_the_token_that_stands_for_it(tmp_path, tokenizer, kind, soft):
    rows = [{"text": "Paris is", "label": "b"}, {"text": "谁", "text_b": "capital", "label": "a"}]
    assert encode_labelled(rows, tokenizer, tmp_path / "l", 40, ("a", "b"), kind, soft)["kept"] == 2
    source = Packed([Shard(tmp_path / "l")], 40)
    batch = source.read(np.arange(source.samples))
    assert batch.count == source.targets(np.arange(source.samples)) == 2
    for document, (texts, label) in enumerate(((["谁", "capital"], 0), (["Paris is"], 1))):
        expected = [*soft, *sequence(tokenizer, kind, texts)]
        (row,) = [r for r in range(len(batch.tokens)) for d in range(2) if batch.tokens[r][batch.documents[r] == d].tolist() == expected]
        (number,) = [d for d in range(2) if batch.tokens[row][batch.documents[row] == d].tolist() == expected]
        targets = batch.targets[row][batch.documents[row] == number]
        assert targets[0 if kind == "encoder" else -1] == label and (targets != NO_LOSS).sum() == 1, document
    assert sequence(tokenizer, "encoder", ["谁"])[0] == START_OF_TURN and sequence(tokenizer, "decoder", ["谁"])[-1] == END_OF_TEXT


def test_a_labelled_text_is_kept_or_counted_by_its_reason(tmp_path, tokenizer):
    rows = [{"text": text, "label": label} for text, label in (("Paris", "a"), ("Paris " * 40, "a"), ("  ", "a"), ("Paris", "z"))]
    assert encode_labelled(rows, tokenizer, tmp_path / "l", 40, ("a", "b"), "decoder") == {
        "kept": 1,
        "too_long": 1,
        "empty": 1,
        "unknown_label": 1,
    }


def test_every_window_of_a_context_has_the_question_and_together_they_have_the_whole_context(tokenizer):
    context = "the capital 谁是你 of France? Paris is " * 12
    found = windows(tokenizer, "encoder", "capital?", context, 64)
    head = sequence(tokenizer, "encoder", ["capital?"])
    ids = encode(tokenizer, context)
    seen = set()
    for window in found:
        assert len(window.ids) <= 64 and window.ids[: window.begin] == head and window.ids[-1] == END_OF_TEXT
        inside = window.ids[window.begin : -1]
        assert len(inside) == len(window.offsets)
        start = next(n for n in range(len(ids)) if tokenizer.encode(context, add_special_tokens=False).offsets[n] == window.offsets[0])
        assert ids[start : start + len(inside)] == inside
        seen |= set(range(start, start + len(inside)))
    assert len(found) > 2 and seen == set(range(len(ids)))
    assert windows(tokenizer, "encoder", "capital? " * 40, context, 64) == []


def test_the_target_of_a_context_leads_to_the_characters_of_its_answer(tmp_path, tokenizer):
    context = "the capital of France? Paris is the capital. 谁是你? " * 4
    answers = [{"text": "Paris", "start": context.index("Paris", 60)}]
    rows = [
        {"question": "谁", "context": context, "answers": answers},
        {"question": "谁", "context": context, "answers": []},
        {"question": "谁" * 80, "context": context, "answers": answers},
    ]
    counts = encode_questions(rows, tokenizer, tmp_path / "q", 64, "encoder")
    assert counts == {"kept": 1, "no_answer": 1, "too_long": 1}
    batch = Packed([Shard(tmp_path / "q")], 64).read(np.arange(len(Shard(tmp_path / "q"))))
    assert batch.count == len(batch.tokens) >= 1
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        (place,) = np.flatnonzero(targets != NO_LOSS)
        first, last = divmod(int(targets[place]), SPAN)
        assert decoded(tokenizer, tokens[place + first : place + last + 1]).strip() == "Paris"


def test_both_answers_of_a_pair_stand_in_one_row_with_what_the_start_thinks_of_them(tmp_path, tokenizer):
    asked = [turn("user", "capital?")]
    rows = [{"messages": asked, "chosen": "Paris " * n, "rejected": "谁"} for n in range(1, 7)]
    rows += [
        {"messages": asked, "chosen": "x ", "rejected": " x"},
        {"messages": [], "chosen": "x", "rejected": "y"},
        {"messages": asked, "chosen": "x" * 300, "rejected": "y"},
    ]
    counts = encode_preferences(rows, tokenizer, tmp_path / "p", 120)
    assert counts == {"kept": 6, "too_long": 1, "no_answer": 0, "bad_roles": 1, "no_difference": 1}
    shard = Shard(tmp_path / "p")
    source = Preferences([shard], 120)
    everything = np.arange(source.samples)
    assert source.targets(everything) == 6 and source.read(everything).reference is None
    known = np.arange(1, 13, dtype=np.float32)
    np.save(reference_path(tmp_path / "p"), known)
    batch = source.read(everything)
    for row in range(len(batch.tokens)):
        for document in range(batch.documents[row].max() + 1):
            here = batch.documents[row] == document
            ids = batch.tokens[row][here].tolist()
            (number,) = [n for n in range(12) if shard[n][:-1].tolist() == ids and (n % 2 == 0 or n // 2 in {m // 2 for m in range(12)})][
                :1
            ]
            assert ids == shard[number][:-1].tolist() and number % 2 == document % 2
            values = batch.reference[row][here]
            assert values[0] in known[[n for n in range(12) if shard[n][:-1].tolist() == ids]] and not values[1:].any()


def test_targets_that_do_not_fit_their_shard_are_refused(tmp_path, tokenizer):
    encode_labelled([{"text": "Paris", "label": "a"}], tokenizer, tmp_path / "l", 40, ("a", "b"), "decoder")
    np.save(tmp_path / "l.targets.npy", np.zeros(3, np.int32))
    with pytest.raises(ShardError, match="does not fit"):
        Packed([Shard(tmp_path / "l")], 40)
