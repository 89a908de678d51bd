"""Supervised examples → a shard with what is learnt of each token and a packing plan: PREFIX.bin, .idx, .plan.npy, and .mask or .targets.npy.

counts = encode_examples(chats, tokenizer, prefix, length)                      # answers only
counts = encode_labelled(rows, tokenizer, prefix, length, labels, kind)         # the label of each text
counts = encode_questions(rows, tokenizer, prefix, length, kind)                # which tokens of the context answer
counts = encode_preferences(rows, tokenizer, prefix, length)                    # the answers of each pair, side by side

`soft` ids (a soft prompt's) stand before every example and are never learnt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.batches import NO_LOSS, SPAN, plan, plan_path, targets_path
from model.checkpoint import save_array
from model.config import fingerprint
from model.errors import InputError
from model.shards import Shard, ShardWriter, dtype_for
from model.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, ROLES, SPECIALS, START_OF_TURN, encode, render, vocab_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REASONS = ("too_long", "no_answer", "bad_roles")
"""Why an example is set aside: more than length + 1 tokens, nothing to learn in it, or messages that are no chat."""
LABEL_REASONS = ("too_long", "empty", "unknown_label")
QUESTION_REASONS = ("too_long", "no_answer")
PREFERENCE_REASONS = (*REASONS, "no_difference")
FIRST = ("[CLS]", "<s>")
"""What other houses put first into an encoder; ours begins with START_OF_TURN."""
Rows = Iterable[Mapping[str, Any]]


def encode_examples(examples: Rows, tokenizer: "Tokenizer", prefix: Path, length: int, soft: Sequence[int] = ()) -> dict[str, int]:
    """Write examples {"id", "messages": [{"role", "content"}, …]} as a masked shard in their order, packed into rows of `length` tokens.

    Returns how many were kept and how many rejected, by reason; an example is never cut. A chat is an optional system message, then user
    and assistant in turn; it is learnt up to its last answer.
    """
    counts = dict.fromkeys(("kept", *REASONS), 0)
    with ShardWriter(prefix, _dtype(tokenizer, soft)) as writer:
        for example in examples:
            ids, mask, reason = _encode(example.get("messages"), tokenizer, length - len(soft))
            counts[reason or "kept"] += 1
            if not reason:
                writer.add(np.array([*soft, *ids], dtype=np.int64), np.array([*[False] * len(soft), *mask]))
    save_array(plan(Shard(prefix).sizes, length), plan_path(prefix))
    return counts


def encode_labelled(
    examples: Rows, tokenizer: "Tokenizer", prefix: Path, length: int, labels: Sequence[str], kind: str, soft: Sequence[int] = ()
) -> dict[str, int]:
    """Write examples {"text", "text_b"?, "label"}: the label's number is the target of the token whose state stands for the text.

    Returns how many were kept and rejected, by reason; a text is never cut. `kind`: encoder or decoder.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    counts = dict.fromkeys(("kept", *LABEL_REASONS), 0)
    with _Targeted(prefix, _dtype(tokenizer, soft)) as writer:
        for row in examples:
            texts = [text for text in (row["text"], row.get("text_b")) if text and text.strip()]
            ids = [*soft, *sequence(tokenizer, kind, texts)] if texts else []
            reason = "empty" if not texts else "too_long" if len(ids) > length else "unknown_label" if row["label"] not in numbers else ""
            counts[reason or "kept"] += 1
            if not reason:
                targets = np.full(len(ids), NO_LOSS)
                targets[0 if kind == "encoder" else -1] = numbers[row["label"]]
                writer.add(ids, targets)
    save_array(plan(Shard(prefix).sizes, length), plan_path(prefix))
    return counts


def encode_questions(
    examples: Rows, tokenizer: "Tokenizer", prefix: Path, length: int, kind: str, soft: Sequence[int] = ()
) -> dict[str, int]:
    """Write examples {"context", "question", "answers": [{"text", "start"}]} as windows that hold the first answer whole. The target of the
    context's first token says where in the context the answer begins and ends, `span(first, last)`.

    Returns how many examples were kept and rejected, by reason: too_long for a question without room beside it or an answer that fits no window.
    """
    counts = dict.fromkeys(("kept", *QUESTION_REASONS), 0)
    with _Targeted(prefix, _dtype(tokenizer, soft)) as writer:
        for row in examples:
            if not row["answers"]:
                counts["no_answer"] += 1
                continue
            begin = row["answers"][0]["start"]
            end, kept = begin + len(row["answers"][0]["text"]), False
            for window in windows(tokenizer, kind, row["question"], row["context"], length - len(soft)):
                covered = np.array(window.offsets).reshape(-1, 2)
                if not len(covered) or covered[0, 0] > begin or covered[-1, 1] < end:
                    continue
                targets = np.full(len(soft) + len(window.ids), NO_LOSS)
                within = np.flatnonzero((covered[:, 0] < end) & (covered[:, 1] > begin))
                targets[len(soft) + window.begin] = span(int(within[0]), int(within[-1]))
                writer.add([*soft, *window.ids], targets)
                kept = True
            counts["kept" if kept else "too_long"] += 1
    save_array(plan(Shard(prefix).sizes, length), plan_path(prefix))
    return counts


def encode_preferences(examples: Rows, tokenizer: "Tokenizer", prefix: Path, length: int, soft: Sequence[int] = ()) -> dict[str, int]:
    """Write examples {"messages" (up to the question), "chosen", "rejected"} as two chats each, chosen first, both in one row of the plan.

    Returns how many were kept and rejected, by reason; no answer is cut.
    """
    counts = dict.fromkeys(("kept", *PREFERENCE_REASONS), 0)
    sizes = []
    with ShardWriter(prefix, _dtype(tokenizer, soft)) as writer:
        for row in examples:
            reason, pair = "no_difference" if row["chosen"].strip() == row["rejected"].strip() else "", []
            for answer in (row["chosen"], row["rejected"]):
                chat, learnt, wrong = _encode([*row["messages"], {"role": "assistant", "content": answer}], tokenizer, length)
                pair.append((np.array([*soft, *chat], dtype=np.int64), np.array([*[False] * len(soft), *learnt])))
                reason = reason or wrong
            places = sum(len(ids) - 1 for ids, _ in pair)
            reason = reason or ("too_long" if places > length else "")
            counts[reason or "kept"] += 1
            if not reason:
                sizes.append(places + 1)
                for ids, mask in pair:
                    writer.add(ids, mask)
    save_array(np.repeat(plan(np.array(sizes, dtype=np.int64), length), 2), plan_path(prefix))
    return counts


def sequence(tokenizer: "Tokenizer", kind: str, texts: Sequence[str]) -> list[int]:
    """Ids of one text or two: an END_OF_TEXT after each; before them, in an encoder, the token whose state stands for the whole.

    A decoder's whole is in its last token, an encoder's in its first.
    """
    ids = [number for text in texts for number in (*encode(tokenizer, text), END_OF_TEXT)]
    return [_first(tokenizer), *ids] if kind == "encoder" else ids


@dataclass(frozen=True)
class Window:
    """A question with a part of its context."""

    ids: list[int]
    begin: int
    """Place of the context's first token here."""
    offsets: list[tuple[int, int]]
    """Characters of the context that each of its tokens covers."""


def windows(tokenizer: "Tokenizer", kind: str, question: str, context: str, length: int) -> list[Window]:
    """The question before each part of the context, at most `length` tokens a window; neighbours share half. [] for a question that leaves
    no room for 16 tokens."""
    head = sequence(tokenizer, kind, [question])
    room = length - len(head) - 1
    if room < 16:
        return []
    encode(tokenizer, context)  # refuses what is not Unicode
    encoded = tokenizer.encode(context, add_special_tokens=False)
    found = []
    for start in range(0, max(1, len(encoded.ids)), room // 2):
        part = slice(start, start + room)
        found.append(Window([*head, *encoded.ids[part], END_OF_TEXT], len(head), encoded.offsets[part]))
        if part.stop >= len(encoded.ids):
            break
    return found


def span(first: int, last: int) -> int:
    """Two places, each below SPAN, as one target."""
    return first * SPAN + last


class _Targeted:
    """A shard of which each token has a target of its own, int32 in PREFIX.targets.npy, instead of the token that follows."""

    def __init__(self, prefix: Path, dtype: np.dtype):
        self._prefix, self._writer = prefix, ShardWriter(prefix, dtype)
        self._targets: list[np.ndarray] = []

    def __enter__(self) -> "_Targeted":
        self._writer.__enter__()
        return self

    def add(self, ids: Sequence[int], targets: np.ndarray) -> None:
        """One example; a packed row never shows an example's last token, so one more is put behind."""
        self._writer.add(np.array([*ids, END_OF_TEXT], dtype=np.int64))
        self._targets.append(np.append(targets, NO_LOSS).astype(np.int32))

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)
        if error[0] is None:
            save_array(np.concatenate(self._targets or [np.empty(0, np.int32)]), targets_path(self._prefix))


def _dtype(tokenizer: "Tokenizer", soft: Sequence[int]) -> np.dtype:
    return dtype_for(max(vocab_size(tokenizer), *(number + 1 for number in soft)) if soft else vocab_size(tokenizer))


def template_hash() -> str:
    """sha256 of all that decides how a chat becomes tokens, beside the tokenizer; it belongs into the fingerprint of encoded examples."""
    return fingerprint({"template": CHAT_TEMPLATE, "roles": ROLES, "specials": SPECIALS})


def _encode(messages: Any, tokenizer: "Tokenizer", length: int) -> tuple[list[int], list[bool], str]:
    """Ids, loss mask and, instead of them, the reason why this is no example."""
    if not _is_chat(messages):
        return [], [], "bad_roles"
    while messages and messages[-1]["role"] != "assistant":  # a question without its answer teaches nothing
        messages = messages[:-1]
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        return [], [], "no_answer"
    try:
        ids, mask = render(messages, tokenizer)
    except InputError:
        return [], [], "bad_roles"
    return (ids, mask, "") if len(ids) <= length + 1 else ([], [], "too_long")


def _is_chat(messages: Any) -> bool:
    if not isinstance(messages, list | tuple) or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages):
        return False
    roles = [m.get("role") for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return bool(turns) and all(role == ("user", "assistant")[place % 2] for place, role in enumerate(turns))


def _first(tokenizer: "Tokenizer") -> int:
    return next((number for name in FIRST if (number := tokenizer.token_to_id(name)) is not None), START_OF_TURN)
