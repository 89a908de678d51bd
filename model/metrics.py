"""Scores of answers beside the true ones: accuracy and macro-F1 of labels; exact match and F1 of extracted answers as CMRC 2018 counts them."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

TOKEN = re.compile("[\u4e00-\u9fff]|[^\\W_\u4e00-\u9fff]+")


def accuracy(truth: Sequence[object], said: Sequence[object]) -> float:
    """Share of equal pairs; 0 of none."""
    return sum(a == b for a, b in zip(truth, said, strict=True)) / max(1, len(truth))


def macro_f1(truth: Sequence[str], said: Sequence[str]) -> float:
    """Mean over all labels, true or said, of 2·right / (true + said), as scikit-learn has it. None counts as a wrong answer of no label."""
    true, claimed = Counter(truth), Counter(label for label in said if label is not None)
    right = Counter(a for a, b in zip(truth, said, strict=True) if a == b)
    labels = true.keys() | claimed.keys()
    return sum(2 * right[label] / (true[label] + claimed[label]) for label in labels) / max(1, len(labels))


def answer_tokens(text: str) -> list[str]:
    """Chinese characters one by one, other words whole, lower case; signs are left out."""
    return TOKEN.findall(text.lower())


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 if the answer equals one of the true ones in `answer_tokens`, else 0."""
    return float(any(answer_tokens(said) == answer_tokens(answer) for answer in answers))


def answer_f1(said: str, answers: Sequence[str]) -> float:
    """The best F1 over the true answers, of the longest run of tokens in common (Cui et al. 2019, "A Span-Extraction Dataset for Chinese Machine
    Reading Comprehension", evaluation script)."""
    return max((_run_f1(answer_tokens(said), answer_tokens(answer)) for answer in answers), default=0.0)


def _run_f1(said: list[str], true: list[str]) -> float:
    size = SequenceMatcher(None, said, true, autojunk=False).find_longest_match().size
    return 2 * size / (len(said) + len(true)) if size else 0.0
