"""Properties of model/tuning.py: losses equal to plain references written from their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from model import tuning
from model.batches import NO_LOSS, SPAN
from model.transformer import PADDING


def test_a_span_costs_the_mean_of_two_cross_entropies_over_its_context():
    scores = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.full((2, 8), NO_LOSS)
    targets[0, 1], targets[0, 5], targets[1, 2] = 1 * SPAN + 2, 2 * SPAN + 2, 0 * SPAN + 1
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, PADDING, PADDING]])
    found, _ = tuning.spans(scores, targets, documents)

    def cost(row: int, context: slice, first: int, last: int) -> torch.Tensor:
        here = scores[row, context]
        return (F.cross_entropy(here[None, :, 0], torch.tensor([first])) + F.cross_entropy(here[None, :, 1], torch.tensor([last]))) / 2

    expected = torch.stack((cost(0, slice(1, 4), 1, 2) + cost(0, slice(5, 8), 2, 2), cost(1, slice(2, 6), 0, 1)))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad[1, 6:] == 0).all() and (scores.grad[0, 0] == 0).all()
    sure = torch.full((2, 8, 2), -5.0)
    sure[0, 2, 0] = sure[0, 3, 1] = sure[1, 2, 0] = sure[1, 3, 1] = 5.0
    sure[0, 7] = 5.0
    assert tuning.spans(sure, targets, documents)[1].tolist() == [2.0, 1.0]
    sure[0, 1, 0] = 9.0
    assert tuning.spans(sure, targets, documents)[1].tolist() == [1.0, 1.0]


def test_log_probabilities_are_those_of_each_document_s_targets():
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[NO_LOSS, 3, 4, 5, NO_LOSS]])
    found = tuning.log_probabilities(logits, targets, torch.tensor([[0, 0, 1, 1, PADDING]]), 4)
    logs = logits.log_softmax(-1)[0]
    torch.testing.assert_close(found, torch.tensor([[logs[1, 3], logs[2, 4] + logs[3, 5], 0.0, 0.0]]))


def test_a_preference_costs_what_the_formula_of_dpo_says():
    policy, reference = (
        torch.tensor([[-3.0, -4.0, -1.0, -1.0], [-2.0, -9.0, 0.0, 0.0]]),
        torch.tensor([[-3.5, -3.0, -1.0, -2.0], [-2.0, -9.0, 0.0, 0.0]]),
    )
    pairs = torch.tensor([[True, True], [True, False]])
    found = tuning.preference(tuning.margins(policy, reference), pairs, beta=0.5)

    def cost(margin: float) -> float:
        return -math.log(1 / (1 + math.exp(-0.5 * margin)))

    assert found.tolist() == pytest.approx([cost(0.5 + 1.0) + cost(0.0 - 1.0), cost(0.0)], abs=1e-6)
    assert cost(0.0) == pytest.approx(math.log(2))
