"""Properties of model/objectives.py: one mean over all targets of a global batch, however its rows are spread."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from model.batches import NO_LOSS, PADDING
from model.config import Contrastive, qwen3
from model.objectives import Contrast, Rows, cross_entropy, in_pieces, info_nce, mean, pool, share
from model.transformer import Transformer

VOCAB = 11


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [8, 5, 6] and targets [8, 5], of which rows have very different numbers."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, VOCAB, (8, 5), generator=generator)
    for row, count in enumerate([5, 1, 0, 5, 2, 4, 3, 1]):
        targets[row, count:] = NO_LOSS
    return torch.randn(8, 5, 6, generator=generator), targets


def test_sums_are_those_of_the_definition():
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
    sums = cross_entropy(logits, torch.tensor([[1, NO_LOSS], [0, 1]]))
    assert torch.allclose(sums, torch.tensor([-math.log(3 / 4), 2 * math.log(2)]))


def test_logits_in_bf16_are_summed_in_fp32():
    logits = torch.zeros(1, 2000, 3, dtype=torch.bfloat16)
    assert cross_entropy(logits, torch.zeros(1, 2000, dtype=torch.long)).item() == pytest.approx(2000 * math.log(3), rel=1e-5)


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (1, 4), (2, 2), (4, 1), (2, 4)])
def test_ranks_and_accumulation_change_neither_loss_nor_gradient(ranks, accumulation):
    inputs, targets = rows()
    count = int((targets != NO_LOSS).sum())
    reference = torch.randn(VOCAB, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = torch.nn.functional.cross_entropy((inputs @ reference.T).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS)
    expected.backward()
    parts = ranks * accumulation
    sums, gradient = torch.zeros(8), torch.zeros_like(reference)
    for number, here in enumerate(torch.arange(8).chunk(parts)):
        weight = reference.detach().clone().requires_grad_()
        row_sums = cross_entropy(inputs[here] @ weight.T, targets[here])
        share(row_sums, count, parts).backward()
        gradient += weight.grad / accumulation / ranks  # what DeepSpeed does with every micro-batch of every rank
        sums[here] = row_sums.detach()
        assert number < parts
    assert mean(sums, count) == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(gradient, reference.grad, atol=1e-6)


def test_z_loss_is_in_the_gradient_by_its_definition_and_not_in_the_value():
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 5, 7)).requires_grad_()
    targets = torch.randint(0, 7, (2, 5))
    targets[0, 2] = NO_LOSS
    cross_entropy(logits, targets, 0.01).sum().backward()
    found, logits.grad = logits.grad, None
    z_BT = logits.exp().sum(-1)
    (cross_entropy(logits, targets).sum() + 0.01 * (z_BT.log() ** 2)[targets != NO_LOSS].sum()).backward()
    assert torch.allclose(found, logits.grad, atol=1e-6) and logits.grad[0, 2].abs().max() == 0
    assert torch.allclose(cross_entropy(logits, targets, 0.01), cross_entropy(logits, targets), atol=1e-6)


def test_the_mean_is_that_of_exact_sums():
    sums = torch.tensor([1e8, 1.0, -1e8, 1.0], dtype=torch.float32)
    assert mean(sums, 4) == 0.5


@pytest.mark.parametrize("tokens", [1, 8, 24, 1000])
def test_a_loss_taken_piece_by_piece_is_the_whole_one_in_value_and_gradient(tokens):
    inputs, targets = rows()
    found = []
    for pieces in (False, True):
        output = torch.nn.Linear(6, VOCAB, bias=False)
        torch.nn.init.normal_(output.weight, generator=torch.Generator().manual_seed(1))
        states = inputs.clone().requires_grad_()
        sums = in_pieces(cross_entropy, states, output, targets, tokens) if pieces else cross_entropy(output(states), targets)
        (sums * torch.arange(8)).sum().backward()
        found.append((sums.detach(), states.grad, output.weight.grad))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


def test_a_loss_taken_piece_by_piece_holds_no_logits_of_another_piece():
    inputs, targets = rows()
    seen = []

    def objective(logits: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return cross_entropy(logits, here)

    in_pieces(objective, inputs.requires_grad_(), torch.nn.Linear(6, VOCAB), targets, 16).sum().backward()
    forward = [(8, 2, VOCAB), (8, 2, VOCAB), (8, 1, VOCAB)]
    assert seen == forward + forward[::-1]  # the second time for backward


def test_info_nce_is_cross_entropy_of_each_among_all_seconds():
    vectors = torch.nn.functional.normalize(torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(1)), dim=-1)
    for row in range(5):
        scores = [math.exp(float(vectors[row, 0] @ vectors[other, 1]) / 0.1) for other in range(5)]
        assert float(info_nce(vectors, 0.1)[row]) == pytest.approx(-math.log(scores[row] / sum(scores)), abs=1e-5)


def test_a_pooled_text_is_the_mean_of_its_states_or_the_first():
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, -1, -1]])
    assert torch.allclose(pool(states, documents, "mean"), torch.stack((states[0].mean(0), states[1, :2].mean(0))))
    assert torch.equal(pool(states, documents, "first"), states[:, 0])


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def two_texts(rows: int, length: int) -> Rows:
    """Rows of a text beside itself, some shorter than their half."""
    tokens = torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))
    documents = torch.where(torch.arange(length) < torch.arange(rows)[:, None] + 2, 0, PADDING)
    twice = [torch.cat((a, a), dim=1) for a in (tokens, documents, torch.arange(length).expand(rows, -1))]
    return Rows(twice[0], torch.full_like(twice[0], NO_LOSS), twice[1], twice[2], None)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_cached_gradients_are_those_of_the_whole_batch_under_the_same_dropout(alone, pooling):
    """Gao et al. 2021: micro-batches of 2 rows, the loss over all 6; a text's two vectors differ by dropout alone."""
    model = Transformer(replace(qwen3(width=16, layers=2, heads=2, kv_heads=1, ffn_width=32, context=16), dropout=0.3), VOCAB)
    model.init_weights(1)
    objective = Contrast(SimpleNamespace(), Contrastive("contrastive", "dropout", 0.1, pooling))
    rows = two_texts(6, 8)
    cut = [(here, Rows(*(None if a is None else a[here] for a in rows))) for here in (slice(0, 2), slice(2, 4), slice(4, 6))]

    torch.manual_seed(5)
    vectors = torch.cat([objective._vectors(model, part) for _, part in cut])
    assert (vectors[:, 0] - vectors[:, 1]).norm(dim=1).min() > 1e-2
    losses = info_nce(vectors, 0.1)
    expected = torch.autograd.grad(losses.sum(), list(model.parameters()))

    torch.manual_seed(5)
    prepared = objective.prepare(model, iter(cut), 6, 16)
    torch.manual_seed(5)
    found = []
    for here, part in cut:
        sums = objective.sums(model, part, prepared, here)
        sums.sum().backward()
        found.append(sums.detach())
    assert torch.allclose(torch.cat(found), losses)
    assert all(torch.allclose(p.grad, e, atol=1e-6) for p, e in zip(model.parameters(), expected, strict=True))
