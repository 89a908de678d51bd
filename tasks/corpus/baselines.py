"""What a tuned model has to beat: answers that need no neural model, from the same training examples.

majority(train_labels, count)                    # the commonest label
tfidf(train_texts, train_labels, texts)          # logistic regression over weighted words and pairs of words
likeliest_sentence(context, question)            # the part of a context that shares most with the question
"""

import re
from collections import Counter
from collections.abc import Sequence

from model.metrics import answer_tokens

SENTENCE = re.compile(r"[^。！？!?.\n]+[。！？!?.\n]*")


def majority(labels: Sequence[str], count: int) -> list[str]:
    """The commonest of the training labels (of several the first by name), `count` times."""
    counted = Counter(labels)
    return [min(counted, key=lambda label: (-counted[label], label))] * count


def tfidf(train: Sequence[str], labels: Sequence[str], texts: Sequence[str], seed: int = 0) -> list[str]:
    """Labels of texts by logistic regression (C = 10) over tf-idf of words and pairs of words, of Chinese characters and their pairs. With one
    training label, that one."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(set(labels)) < 2:
        return majority(labels, len(texts))
    weights = TfidfVectorizer(tokenizer=answer_tokens, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(weights, LogisticRegression(C=10.0, max_iter=1000, random_state=seed))
    model.fit(train, labels)
    return [str(label) for label in model.predict(texts)]


def likeliest_sentence(context: str, question: str) -> str:
    """The sentence of the context that shares the largest part of its pairs of characters with the question (a sliding window's way, Richardson et al.
    2013, MCTest); of several the first."""
    asked = Counter(question[n : n + 2] for n in range(len(question) - 1))

    def shared(sentence: str) -> int:
        return sum((Counter(sentence[n : n + 2] for n in range(len(sentence) - 1)) & asked).values())

    sentences = [sentence.strip() for sentence in SENTENCE.findall(context) if sentence.strip()] or [context]
    return max(sentences, key=shared)
