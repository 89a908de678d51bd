"""Properties of model/tokenizer.py: exact round trips, no injected specials, determinism, parity with transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model import tokenizer as tk
from model.config import from_dict
from model.errors import ConfigError, EmptyError, InputError, TokenizerError

TEXTS = [
    "The lighthouse keeper's lamp burned through 1,024 nights; it didn't fail once.",
    "灯塔守望人的灯燃烧了一千零二十四个夜晚，从未熄灭。2026年11月，灯塔守望人离开了。",
    "def keep(lamp):\n    return lamp + 1\r\n\r\n\tпривет мир, नमस्ते 🙂",
    "======================================================",
] * 4

SPEECH = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from([*tk.SPECIALS, "中文", " Latin", "\n", " ", "123456", "🙂‍↔️", "é", "'s", "\r\n", "\u0301", "\u3000", "\0"])
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tk.train(TEXTS, 512)


@pytest.fixture(scope="module")
def directory(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tk.save(tokenizer, path)
    return path


@given(SPEECH)
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips_and_holds_no_special(tokenizer: Tokenizer, text: str) -> None:
    ids = tk.encode(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(number >= len(tk.SPECIALS) for number in ids)


@given(st.lists(SPEECH, max_size=4))
@settings(deadline=None)
def test_documents_end_with_end_of_text_and_hold_it_nowhere_else(tokenizer: Tokenizer, texts: list[str]) -> None:
    arrays = tk.encode_documents(tokenizer, texts)
    assert [array.dtype for array in arrays] == [np.int32] * len(texts)
    for text, array in zip(texts, arrays, strict=True):
        assert array[-1] == tk.END_OF_TEXT
        assert array[:-1].tolist() == tk.encode(tokenizer, text)
        assert (array[:-1] >= len(tk.SPECIALS)).all()


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(tk.ROLES), "content": SPEECH}), min_size=1, max_size=4)


@given(TURNS, st.booleans())
@settings(deadline=None)
def test_only_an_answer_and_its_end_carry_loss(tokenizer: Tokenizer, messages: list[dict[str, str]], answer: bool) -> None:
    ids, mask = tk.render(messages, tokenizer, answer)
    assert len(ids) == len(mask)
    assert ids.count(tk.START_OF_TURN) == len(messages) + answer and ids.count(tk.END_OF_TURN) == len(messages)
    learned = [number for number, loss in zip(ids, mask, strict=True) if loss]
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert learned == [number for text in answers for number in [*tk.encode(tokenizer, text), tk.END_OF_TURN]]


@given(TURNS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_render_equals_transformers_chat_template(tokenizer: Tokenizer, theirs: Any, messages: list[dict[str, str]], answer: bool) -> None:
    if any(special in message["content"] for message in messages for special in tk.SPECIALS):
        messages = [message | {"content": message["content"].replace("|", "¦")} for message in messages]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    assert theirs.encode(text, add_special_tokens=False) == tk.render(messages, tokenizer, answer)[0]


def test_transformers_reads_the_directory_with_the_same_ids(directory: Path, theirs: Any) -> None:
    ours = tk.load(directory)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tk.END_OF_TEXT, tk.PAD)
    assert theirs.convert_tokens_to_ids(list(tk.SPECIALS)) == [0, 1, 2, 3]
    for text in TEXTS[:4]:
        assert theirs.encode(text) == tk.encode(ours, text)
        assert theirs.decode(theirs.encode(text)) == text


def test_a_generation_prompt_is_how_an_answer_begins(tokenizer: Tokenizer) -> None:
    asked = [{"role": "user", "content": "Who keeps the lamp?"}]
    prompt, _ = tk.render(asked, tokenizer, answer=True)
    whole, mask = tk.render([*asked, {"role": "assistant", "content": "\n The keeper. \n"}], tokenizer)
    assert whole[: len(prompt)] == prompt
    assert mask.index(True) == len(prompt)
    assert tokenizer.decode(whole[len(prompt) :]) == "The keeper.\n"


@pytest.mark.parametrize("message", [{"role": "robot", "content": "x"}, {"role": "user"}, {"role": "user", "content": ["x"]}])
def test_a_message_without_known_role_and_text_is_named(tokenizer: Tokenizer, message: dict[str, str]) -> None:
    with pytest.raises(InputError, match="message 1 has"):
        tk.render([{"role": "user", "content": "x"}, message], tokenizer)


def test_tokens_span_neither_scripts_nor_four_digits_nor_line_ends_of_words(tokenizer: Tokenizer) -> None:
    texts = ["混合Latin文字abc中文" * 50, "20261124 " * 50, "word\nword\n" * 50]
    learned = tk.train(texts, 512)
    for number in range(len(tk.SPECIALS) + 256, learned.get_vocab_size()):
        token = learned.decode([number])
        assert not (any("a" <= char.lower() <= "z" for char in token) and any(char >= "\u4e00" for char in token)), token
        assert sum(char.isdigit() for char in token) <= 3, token
        assert token.strip() == token or not token.strip() or token[0] == " ", token
    longest = max(len(tokenizer.decode([number])) for number in range(4, tokenizer.get_vocab_size()))
    assert 3 <= longest <= 32


PROGRAM = "import sys; from model import tokenizer as tk; print(tk.fingerprint(tk.train(sys.stdin.read().split('|'), 700)))"


def test_training_is_deterministic_at_any_number_of_threads(tokenizer: Tokenizer) -> None:
    root = Path(__file__).resolve().parents[2]
    text = "|".join(TEXTS + [f"{n} {n * n} lamps in house {n}" for n in range(300)])
    found = set()
    for threads in ("1", "3"):
        env = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=text, capture_output=True, text=True, env=env, encoding="utf-8", check=True
        )
        found.add(done.stdout.strip())
    assert found == {tk.fingerprint(tk.train(text.split("|"), 700))}
    assert tk.train(TEXTS, 512).to_str() == tokenizer.to_str()
    assert tk.fingerprint(tk.train(TEXTS[:-2], 512)) != tk.fingerprint(tokenizer)


def test_save_and_load_keep_the_fingerprint_and_the_safety(tokenizer: Tokenizer, directory: Path) -> None:
    loaded = tk.load(directory)
    assert tk.fingerprint(loaded) == tk.fingerprint(tokenizer)
    assert tk.END_OF_TURN not in tk.encode(loaded, "<|im_end|>")


def test_a_small_corpus_yields_fewer_tokens_and_the_matrix_is_padded() -> None:
    tokenizer = tk.train(["ab ab ab"], 5000)
    assert 260 < tokenizer.get_vocab_size() < 270
    assert tk.vocab_size(tokenizer) == 320


def test_the_sample_ends_before_the_text_that_exceeds_it() -> None:
    assert list(tk.take(["ab", "中", "x"], 5)) == ["ab", "中"]
    assert list(tk.take(["too long", "x"], 5)) == ["too long"]


def test_training_on_nothing_is_refused() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(EmptyError, match="every document is empty"):
            tk.train(texts, 512)


def test_half_pairs_are_refused_with_their_place(tokenizer: Tokenizer) -> None:
    for call in (
        lambda: tk.train(["ab\ud800"], 512),
        lambda: tk.encode_documents(tokenizer, ["ab\ud800"]),
        lambda: tk.encode(tokenizer, "ab\ud800"),
    ):
        with pytest.raises(InputError, match="character 2"):
            call()


def test_missing_damaged_and_foreign_tokenizers_are_refused(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        tk.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": ')
    with pytest.raises(TokenizerError, match="cannot be read"):
        tk.load(tmp_path)
    content = (directory / "tokenizer.json").read_text()
    path.write_text(content.replace("<|im_end|>", "</s>"))
    with pytest.raises(TokenizerError, match="</s>"):
        tk.load(tmp_path)


def test_the_config_has_a_floor() -> None:
    with pytest.raises(ConfigError, match="vocab"):
        from_dict(tk.TokenizerConfig, {"vocab": 300, "sample_bytes": 10})


def test_importing_the_module_loads_no_torch() -> None:
    root = Path(__file__).resolve().parents[2]
    program = "import sys, model.tokenizer; print([m for m in ('torch', 'tokenizers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
