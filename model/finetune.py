"""Instruction examples → a shard with a loss mask and its packing plan, on which `train` with objective "finetune" learns the answers only.

counts = encode_examples(examples, tokenizer, prefix, length)    # PREFIX.bin, .idx, .mask, .plan.npy
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.batches import plan, plan_path
from model.checkpoint import sync_folder
from model.config import fingerprint
from model.errors import InputError
from model.shards import Shard, ShardWriter, dtype_for
from model.tokenizer import CHAT_TEMPLATE, ROLES, SPECIALS, render, vocab_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REASONS = ("too_long", "no_answer", "bad_roles")
"""Why an example is set aside: more than length + 1 tokens, nothing to learn in it, or messages that are no chat."""


def encode_examples(examples: Iterable[Mapping[str, Any]], tokenizer: "Tokenizer", prefix: Path, length: int) -> dict[str, int]:
    """Write examples {"id", "messages": [{"role", "content"}, …]} as a masked shard in their order, packed into rows of `length` tokens.

    Returns how many were kept and how many rejected, by reason; an example is never cut. A chat is an optional system message, then user
    and assistant in turn; it is learnt up to its last answer.
    """
    counts = dict.fromkeys(("kept", *REASONS), 0)
    with ShardWriter(prefix, dtype_for(vocab_size(tokenizer))) as writer:
        for example in examples:
            ids, mask, reason = _encode(example.get("messages"), tokenizer, length)
            counts[reason or "kept"] += 1
            if not reason:
                writer.add(np.array(ids, dtype=np.int64), np.array(mask))
    path = plan_path(prefix)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.save(file, plan(Shard(prefix).sizes, length))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return counts


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
