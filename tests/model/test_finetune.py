"""Properties of model/finetune.py: which examples are kept, what of them is learnt, and that none is cut."""

import numpy as np
import pytest

from model.batches import NO_LOSS, Packed
from model.finetune import REASONS, encode_examples, template_hash
from model.shards import Shard
from model.tokenizer import END_OF_TURN, render, train

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
