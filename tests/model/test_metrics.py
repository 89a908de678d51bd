"""Properties of model/metrics.py: equal to scikit-learn's and to hand-counted values of CMRC's script."""

import numpy as np
import pytest

from model.metrics import accuracy, answer_f1, exact_match, macro_f1


def test_accuracy_and_macro_f1_are_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, said = ([f"l{n}" for n in rng.integers(0, high, 200)] for high in (5, 7))
    assert accuracy(truth, said) == pytest.approx(metrics.accuracy_score(truth, said))
    assert macro_f1(truth, said) == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert macro_f1(["a", "b"], [None, "b"]) == pytest.approx((0 + 1) / 2)


@pytest.mark.parametrize(
    ("said", "answers", "f1", "exact"),
    [("《踢爆》", ["踢爆"], 1.0, 1.0), ("4分钟内", ["4分钟"], 6 / 7, 0.0), ("IPhone 手机", ["iphone手机", "手"], 1.0, 1.0), ("", ["踢爆"], 0.0, 0.0), ("甲丙乙", ["甲乙"], 2 / 5, 0.0)],
)  # fmt: skip
def test_an_extracted_answer_is_compared_by_characters_and_its_longest_common_run(said, answers, f1, exact):
    assert answer_f1(said, answers) == pytest.approx(f1)
    assert exact_match(said, answers) == exact
