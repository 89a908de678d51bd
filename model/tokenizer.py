"""Byte-level BPE: training, directories that transformers reads, encoding of documents and of chats. No torch.

    tokenizer = train(take(texts, config.sample_bytes), config.vocab)
    save(tokenizer, directory); tokenizer = load(directory)
    ids, ends = Encoder(tokenizer)(data, offsets)       # many documents at once, straight from Arrow's buffers, through gigatoken
    arrays = encode_documents(tokenizer, texts)         # a few; each ends with END_OF_TEXT
    ids, carries_loss = render(messages, tokenizer)     # ChatML

Every text round-trips byte for byte: there is no normaliser. What looks like a special token in a text is text: specials are put in by
their ids, here only, and a tokenizer from `train` or `load` never parses them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from model.config import STRICT
from model.config import fingerprint as digest
from model.errors import EmptyError, InputError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
END_OF_TEXT, PAD, START_OF_TURN, END_OF_TURN, MASK = range(5)
ROLES = ("system", "user", "assistant")

REMEMBERED_BYTES = 16 * 2**20
"""Bytes beyond ASCII after which gigatoken starts afresh (0.2 s): it keeps every piece it has seen for ever, and a Chinese clause is seldom seen twice."""
PROBES = (
    "The keeper's lamp didn't fail, I'LL say: 1,024 nights & 3.14159 days -- http://example.com/a_b?c=%20#d\r\n\r\n\tdef f(x):\n    return x  \n \n",
    "灯塔守望人的灯，从未熄灭。２０２６年11月「東京タワー」とカタカナー・ひらがな。𠮷野家 混合Latin文字",
    "Der Größe nach: Straße, ŁÓDŹ żółć; Привет, мир! Здравей. Γειά σου Κόσμε; नमस्ते שלום مرحبا 한국어 ไทย",
    "<|endoftext|><|pad|> <|im_start|>user\n<|im_end|>",
    "🙂‍↔️👩🏽‍🚀 e\u0301\u0301 \u200b\u00a0\u3000\u2028\ufeff\0\x7f\x85 ½ Ⅷ ㊙ \U0010ffff",
    "",
    " ",
    *("".join(map(chr, range(start, 0x110000, 1009))).encode("utf-8", "ignore").decode() for start in range(0, 1009, 97)),
)
"""Texts for which gigatoken must have the ids of `tokenizers` before it is used: languages, spaces, signs, specials, one code point in a hundred."""

CUTS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",  # Chinese and kana apart from other letters: no token spans Chinese and Latin
    "|".join(
        (
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",  # 's, .com
            "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",  # a word with its accents, and the space before it
            " ?[\\p{P}\\p{S}]+[\r\n]*",  # signs with the line ends that follow
            "\\s*[\r\n]+",
            r"\s+(?!\S)",  # all but the last space of a run, which goes with the next word
            r"\s+",
        )
    ),
)
"""Where text is cut before merges, one pattern after the other: no token crosses such a piece. They are DeepSeek-V3's, sign for sign, since engines
know a cut by its text: gigatoken has compiled code for this one, llama.cpp a name."""

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
    """Most UTF-8 bytes of text used for training, drawn from all parts. Training holds every different piece in memory: some ten bytes a byte of English,
    up to fifty of Chinese, whose clauses seldom come twice."""


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
    pieces = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in CUTS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
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
        "mask_token": SPECIALS[MASK],
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


def adopt(directory: Path | str, tokens: Sequence[str] = ()) -> tuple["Tokenizer", list[int | None]]:
    """The tokenizer of a directory made elsewhere as one of ours: SPECIALS first, its other tokens in their order, new `tokens` last.

    Returns it, and for each id the id that the token had, None for a new one. What the directory calls eos (or sep), pad and mask
    become END_OF_TEXT, PAD and MASK. All else is encoded as before; tokens put around a text (BOS, [CLS]) are not added any more. Raises TokenizerError
    for a tokenizer without tokenizer.json or vocabulary by name, or a new token that it could not give back.
    """
    from tokenizers import Tokenizer

    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        hint = "save it once with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        raise TokenizerError(f"{directory} holds no {path.name}; {hint}")
    try:
        original = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} cannot be read: {error}. Fetch it again") from None
    described = json.loads(original.to_str())
    words, added = described["model"].get("vocab"), {token["content"]: token for token in described["added_tokens"]}
    if not isinstance(words, dict):
        raise TokenizerError(
            f"{path} is of kind {described['model'].get('type')}; those with a vocabulary by name are adopted: BPE, WordPiece"
        )
    old = words | {content: token["id"] for content, token in added.items()}
    taken = {special: special for special in SPECIALS if special in old}
    for special, found in _named(path.parent).items():
        if special not in taken and found in old and found not in taken.values():
            taken[special] = found
    others = sorted((content for content in old if content not in taken.values()), key=lambda content: old[content])
    names = [*SPECIALS, *others]
    rows = [old.get(taken.get(special, "")) for special in SPECIALS] + [old[content] for content in others]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    unknown = described["model"].get("unk_token")
    described["model"] |= {"unk_token": next((special for special, found in taken.items() if found == unknown), unknown)} if unknown else {}
    described |= {"post_processor": None, "truncation": None, "padding": None}

    def made(names: Sequence[str], new: Sequence[str]) -> "Tokenizer":
        ids = {name: number for number, name in enumerate((*names, *new))}
        kept = [token | {"id": ids[content]} for content, token in added.items() if content in others]
        first = [plain | {"content": special, "id": number, "special": True} for number, special in enumerate(SPECIALS)]
        last = [plain | {"content": token, "id": ids[token]} for token in new]
        whole = described | {"model": described["model"] | {"vocab": ids}, "added_tokens": [*first, *kept, *last]}
        return _ready(Tokenizer.from_str(json.dumps(whole)), str(path))

    original.encode_special_tokens = True
    same = made(names, ())
    for text in PROBES:
        if [rows[number] for number in encode(same, text)] != original.encode(text, add_special_tokens=False).ids:
            raise TokenizerError(f"{path} would encode {text[:40]!r} otherwise with other ids; train a tokenizer with Ingot instead")
    new = [token for token in dict.fromkeys(tokens) if token not in old and token not in SPECIALS]
    tokenizer = made(names, new)
    for token in new:
        if not token or tokenizer.decode(encode(tokenizer, token)) != token or len(encode(tokenizer, token)) != 1:
            raise TokenizerError(f"the new token {token!r} does not come back from {path} as it was; leave it out")
    return tokenizer, rows + [None] * len(new)


def _named(directory: Path) -> dict[str, str]:
    """What a directory made elsewhere calls END_OF_TEXT, PAD and MASK."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            found |= json.loads((directory / name).read_text())
    named = {key: value["content"] if isinstance(value, dict) else value for key, value in found.items() if key.endswith("_token")}
    words = {END_OF_TEXT: named.get("eos_token") or named.get("sep_token"), PAD: named.get("pad_token"), MASK: named.get("mask_token")}
    return {SPECIALS[place]: word for place, word in words.items() if isinstance(word, str)}


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


class Encoder:
    """Ids of many documents at once, from and to flat buffers: through gigatoken where that gives the ids of `tokenizers`, else through `tokenizers`.

    `engine` says which, `why` what speaks against gigatoken. The ids are the same.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._json = _without_specials(tokenizer)
        self._gigatoken: Any = None
        self._remembered = 0
        self.engine, self.why = "tokenizers", ""
        try:
            self._gigatoken = _gigatoken(self._json)
            self.engine = "gigatoken"
            differing = next((text for text in PROBES if self._ids(text) != encode(tokenizer, text)), None)
        except (ImportError, RuntimeError) as error:  # not installed; a kind of tokenizer that it does not know
            differing, self.why = None, " ".join(str(error).split())[:200]
            self.engine = "tokenizers"
        if differing is not None:
            self.engine, self.why = "tokenizers", f"gigatoken has other ids for {differing[:40]!r}"

    def __call__(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids [T] of the UTF-8 texts data[offsets[n]:offsets[n + 1]], each with END_OF_TEXT at its end, and where each ends [N].

        uint8 [B] and int64 [N + 1] in, int32 and int64 out. The caller sees to it that the bytes are UTF-8.
        """
        if self.engine == "tokenizers":
            texts = [data[start:end].tobytes().decode() for start, end in pairwise(offsets.tolist())]
            found = encode_documents(self._tokenizer, texts)
            return np.concatenate(found or [np.empty(0, np.int32)]), np.cumsum([len(ids) for ids in found], dtype=np.int64)
        bare, sizes = self._batch(data, offsets)
        ends = np.cumsum(sizes + 1)
        ids = np.empty(len(bare) + len(sizes), np.int32)
        text = np.ones(len(ids), bool)
        text[ends - 1] = False
        ids[text] = bare
        ids[ends - 1] = END_OF_TEXT
        return ids, ends

    def _batch(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """gigatoken's ids of all texts, and how many each has."""
        import awkward as ak
        from awkward.contents import ListOffsetArray, NumpyArray
        from awkward.index import Index64

        used = data[offsets[0] : offsets[-1]]
        self._remembered += int(np.count_nonzero(used >= 0x80))
        if self._remembered > REMEMBERED_BYTES:
            self._gigatoken = None  # freed before the next is made
            self._gigatoken, self._remembered = _gigatoken(self._json), 0
        texts = NumpyArray(used, parameters={"__array__": "char"})
        listed = ListOffsetArray(Index64(offsets - offsets[0]), texts, parameters={"__array__": "string"})
        found = self._gigatoken.encode_batch(ak.Array(listed), parallel=True)
        return ak.to_numpy(ak.flatten(found)), ak.to_numpy(ak.num(found)).astype(np.int64)

    def _ids(self, text: str) -> list[int]:
        raw = np.frombuffer(text.encode(), np.uint8)
        return self(raw, np.array([0, len(raw)]))[0][:-1].tolist()


def _gigatoken(described: str) -> Any:
    from gigatoken.gigatoken_rs import load_hf_json

    return load_hf_json(described)


def _without_specials(tokenizer: "Tokenizer") -> str:
    """tokenizer.json without the special tokens: gigatoken would find them in a text, and no setting of the object says not to."""
    described = json.loads(tokenizer.to_str())
    return json.dumps(described | {"added_tokens": []})


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
