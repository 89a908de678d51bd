"""Byte-level BPE: training, directories that transformers reads, encoding of documents and of chats. No torch.

    tokenizer = train(take(texts, config.sample_bytes), config.vocab)
    save(tokenizer, directory); tokenizer = load(directory)
    arrays = encode_documents(tokenizer, texts)         # each ends with END_OF_TEXT
    ids, carries_loss = render(messages, tokenizer)     # ChatML

Every text round-trips byte for byte: there is no normaliser. What looks like a special token in a text is text: specials are put in by
their ids, here only, and a tokenizer from `train` or `load` never parses them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from model.config import STRICT
from model.config import fingerprint as digest
from model.errors import EmptyError, InputError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, PAD, START_OF_TURN, END_OF_TURN = range(4)
ROLES = ("system", "user", "assistant")

CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
PATTERN = "|".join(
    (
        r"'(?i:s|t|re|ve|m|ll|d)",  # English contractions
        rf"[{CJK}]+",  # apart from other letters: no token spans Chinese and Latin
        rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?[\p{{L}}\p{{M}}&&[^{CJK}]]+",  # a word with its accents, and the space or sign before it
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # signs with the line ends that follow
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # all but the last space of a run, which goes with the next word
        r"\s+",
    )
)
"""Where text is cut before merges: no token crosses such a piece."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML. Content is trimmed: a leading line end would merge with the one after the role and hide where the answer begins."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Training of a tokenizer."""

    __pydantic_config__ = STRICT

    vocab: Annotated[int, Field(ge=512)]
    """Tokens wanted, specials and the 256 bytes included; a small corpus may yield fewer."""
    sample_bytes: Annotated[int, Field(ge=1)]
    """Most UTF-8 bytes of text used for training, taken in stored order."""


def take(texts: Iterable[str], most_bytes: int) -> Iterator[str]:
    """Whole texts from the front, as long as their UTF-8 bytes together stay within `most_bytes`; always at least the first."""
    taken = 0
    for number, text in enumerate(texts):
        taken += len(text.encode("utf-8", "surrogatepass"))
        if taken > most_bytes and number:
            return
        yield text


def train(texts: Iterable[str], vocab: int) -> "Tokenizer":
    """Learn at most `vocab` tokens. Deterministic: the same texts in the same order give the same tokenizer at any number of threads.

    Raises EmptyError without texts, InputError for text that is not Unicode.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    counted = 0

    def fed() -> Iterator[str]:
        nonlocal counted
        for text in texts:
            counted += bool(_unicode(text))
            yield text

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        special_tokens=[AddedToken(special, special=True, normalized=False) for special in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,  # bytes; rows of dashes and other debris would fill the vocabulary with their lengths
    )
    tokenizer.train_from_iterator(fed(), trainer)
    if not counted:
        raise EmptyError("no text to train a tokenizer on: every document is empty. Look at what filter and dedup removed")
    return _ready(tokenizer, "the trained tokenizer")


def save(tokenizer: "Tokenizer", out_dir: Path | str) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers loads with its chat template and special tokens."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out_dir / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[END_OF_TEXT],
        "pad_token": SPECIALS[PAD],
        "additional_special_tokens": [SPECIALS[START_OF_TURN], SPECIALS[END_OF_TURN]],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def load(directory: Path | str) -> "Tokenizer":
    """The tokenizer of a directory. Raises TokenizerError if it is missing, damaged or has other special tokens."""
    from tokenizers import Tokenizer

    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no tokenizer: {path.name} is missing. Run encode, or give the directory of a model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} cannot be read: {error}. Write it again with the tokenizer stage") from None
    return _ready(tokenizer, str(path))


def _ready(tokenizer: "Tokenizer", where: str) -> "Tokenizer":
    found = tuple(tokenizer.id_to_token(number) for number in range(len(SPECIALS)))
    if found != SPECIALS:
        raise TokenizerError(f"{where} has {found} as its first ids; Ingot's special tokens are {SPECIALS}. Train a tokenizer with Ingot")
    tokenizer.encode_special_tokens = True  # a setting of the object, kept in no file
    return tokenizer


def fingerprint(tokenizer: "Tokenizer") -> str:
    """sha256 of what the tokenizer is; equal before and after save and load."""
    return digest(json.loads(tokenizer.to_str()))


def vocab_size(tokenizer: "Tokenizer") -> int:
    """Rows of an embedding matrix for this tokenizer: its tokens, padded to a multiple of 64 for the matrix kernels."""
    return -(-tokenizer.get_vocab_size() // 64) * 64


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a text, nothing added; special strings in it are ordinary text. Raises InputError if it is not Unicode."""
    return tokenizer.encode(_unicode(text), add_special_tokens=False).ids


def encode_documents(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text with END_OF_TEXT at its end, int32, in order; texts are encoded in parallel threads.

    Raises InputError if a text is not Unicode.
    """
    encoded = tokenizer.encode_batch_fast([_unicode(text) for text in texts], add_special_tokens=False)
    return [np.array([*encoding.ids, END_OF_TEXT], dtype=np.int32) for encoding in encoded]


def render(messages: Sequence[dict[str, str]], tokenizer: "Tokenizer", answer: bool = False) -> tuple[list[int], list[bool]]:
    """A chat as token ids, and which of them carry loss: the assistant's content and the END_OF_TURN after it.

    The ids equal transformers' apply_chat_template, except that special strings in a content stay text. With `answer` the chat ends where
    the assistant begins to speak. Raises InputError naming a message without a known role and a content.
    """
    ids: list[int] = []
    mask: list[bool] = []

    def put(part: list[int], loss: bool = False) -> None:
        ids.extend(part)
        mask.extend([loss] * len(part))

    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            given = f"role {role!r} and content of type {type(content).__name__}"
            raise InputError(f"message {number} has {given}; it needs a role of {', '.join(ROLES)} and a content of text")
        put([START_OF_TURN, *encode(tokenizer, f"{role}\n")])
        put([*encode(tokenizer, content.strip()), END_OF_TURN], role == "assistant")
        put(encode(tokenizer, "\n"))
    if answer:
        put([START_OF_TURN, *encode(tokenizer, "assistant\n")])
    return ids, mask


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of a text is {text[error.start]!r}, half a pair and no Unicode; decode it anew"
        ) from None
    return text
