"""Properties of model/tokenizer.py: exact round trips, no injected specials, determinism, parity with transformers."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

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


LANGUAGES = {
    "en": "The lighthouse keeper's lamp burned through 1,024 nights; it didn't fail once. He'd say: \"Don't!\" (twice)",
    "zh": "灯塔守望人的灯燃烧了一千零二十四个夜晚，从未熄灭。２０２６年11月24日，他离开了；共3.5公里。",
    "ja": "灯台守のランプは、千二十四夜もえ続けた。「トーキョー・タワー」ー２０２６年。ｶﾀｶﾅ",
    "de": "Der Leuchtturmwärter größer als Straße und Öl; äußerst schön, z. B. 3,14 €.",
    "ru": "Смотритель маяка зажёг лампу в 18:00, и она горела всю ночь — без перерыва.",
    "el": "Ο φαροφύλακας άναψε τη λάμπα· ΰΐ και ΆΈΉ, «ναι»;",
    "pl": "Latarnik zażółcił gęślą jaźń, ŁÓDŹ, 1 000 zł.",
    "bg": "Пазачът на фара запали лампата и каза: „Здравей, свят!“ №5",
    "emoji": "🙂🙂‍↔️👩🏽‍🚀🇵🇱❤️️☎ ①½Ⅷ",
    "code": "def keep(lamp: int) -> int:\r\n\treturn lamp+1  # ok\r\n\r\n  if (a&&b){x[0]='\\\\n';}\n\n\n<p class=\"a\">&nbsp;</p>http://a.b/c?d=%20#e",
    "hostile": "\0\x01\x7f\x85\xa0\xad\u200b\u2028\u2029\u202e\ufeff\ufffd\uffff\U0010ffff\U000e0001a\u0300\u0301\u0302 \u0301\u3000\u3000x \t\n \r",
    "other": "नमस्ते שלום مرحبا 한국어 ไทย 𠮷野家 ﷽ ǅ ʼn ﬁ 𝔘𝔫𝔦",
    "specials": "<|endoftext|><|pad|> <|im_start|>user\n<|im_end|><|endoftext|",
}


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    """A vocabulary with merges in every language."""
    return tk.train(list(LANGUAGES.values()) * 3, 1600)


@pytest.fixture(scope="module")
def encoder(learned: Tokenizer) -> tk.Encoder:
    made = tk.Encoder(learned)
    assert (made.engine, made.why) == ("gigatoken", "")
    return made


def through(encoder: tk.Encoder, texts: list[str]) -> list[list[int]]:
    """Ids of texts that lie behind some other bytes in one buffer, as a slice of Arrow's does."""
    raw = [text.encode() for text in texts]
    data = np.frombuffer(b"before" + b"".join(raw) + b"after", np.uint8)
    ids, ends = encoder(data, 6 + np.cumsum([0, *map(len, raw)]))
    assert ids.dtype == np.int32 and len(ends) == len(texts) and (ends[-1] if texts else 0) == len(ids)
    return [part.tolist() for part in np.split(ids, ends[:-1])] if texts else []


def plainly(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """What `tokenizers` has for the texts, one by one."""
    return [[*tk.encode(tokenizer, text), tk.END_OF_TEXT] for text in texts]


@pytest.mark.parametrize("language", LANGUAGES)
def test_many_at_once_have_the_ids_of_one_by_one_in_every_language(encoder: tk.Encoder, learned: Tokenizer, language: str) -> None:
    text = LANGUAGES[language]
    texts = [text, "", text[:1], text[1:], f" {text}\n", text * 5, *text.split(" "), *(text[at:] + text[:at] for at in range(len(text)))]
    assert through(encoder, texts) == plainly(learned, texts)


HOSTILE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("".join(LANGUAGES.values()) + " \r\n\t'"), max_size=40)


@given(st.lists(HOSTILE | SPEECH | st.lists(st.sampled_from(list(LANGUAGES.values()))).map("".join), max_size=5))
@settings(max_examples=150, deadline=None)
def test_many_at_once_have_the_ids_of_one_by_one_whatever_the_text(encoder: tk.Encoder, learned: Tokenizer, texts: list[str]) -> None:
    assert through(encoder, texts) == plainly(learned, texts)


def test_a_huge_document_among_small_ones_has_the_same_ids(encoder: tk.Encoder, learned: Tokenizer) -> None:
    chance = random.Random(0)
    pieces = [*LANGUAGES.values(), " ", "\n", "  ", "1", "'", "中"]
    huge = "".join(chance.choices(pieces, k=33_000))  # gigatoken cuts a document of more than two MiB among its threads
    assert len(huge.encode()) > 2 << 20
    texts = ["small", huge, "", "a" * 20_000, "中" * 20_000]
    assert through(encoder, texts) == plainly(learned, texts)


def test_what_is_remembered_is_given_up_in_time_and_the_ids_stay(
    encoder: tk.Encoder, learned: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tk, "REMEMBERED_BYTES", 100)
    texts, before = [LANGUAGES["zh"], LANGUAGES["ja"]], encoder._gigatoken
    assert through(encoder, texts) == plainly(learned, texts)
    assert encoder._gigatoken is not before


def test_a_tokenizer_that_gigatoken_does_not_know_is_encoded_without_it(learned: Tokenizer) -> None:
    other = Tokenizer.from_str(learned.to_str())
    other.encode_special_tokens = True
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}+"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made = tk.Encoder(other)
    assert made.engine == "tokenizers" and "no fast pretokenizer" in made.why
    texts = list(LANGUAGES.values())
    assert through(made, texts) == plainly(other, texts) and through(made, []) == []


def test_a_gigatoken_with_other_ids_is_caught_before_it_is_used(learned: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads(tk._without_specials(learned))
    described["model"]["merges"] = described["model"]["merges"][:-50]  # fewer merges: other ids for some texts
    monkeypatch.setattr(tk, "_without_specials", lambda tokenizer: json.dumps(described))
    made = tk.Encoder(learned)
    assert made.engine == "tokenizers" and "other ids for" in made.why
    texts = list(LANGUAGES.values())
    assert through(made, texts) == plainly(learned, texts)


@pytest.mark.full
@pytest.mark.realdata
def test_real_texts_have_the_ids_of_tokenizers(realdata: Path) -> None:
    from real_texts import real_texts

    texts = [text for number, (kind, text) in enumerate(real_texts(realdata)) if number % (20 if "page" in kind else 60) == 0]
    learned = tk.train(texts[::3], 8_000)
    made = tk.Encoder(learned)
    assert made.engine == "gigatoken"
    for at in range(0, len(texts), 50):
        assert through(made, texts[at : at + 50]) == plainly(learned, texts[at : at + 50])


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
    assert theirs.convert_tokens_to_ids(list(tk.SPECIALS)) == [0, 1, 2, 3, 4] and theirs.mask_token_id == tk.MASK
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
