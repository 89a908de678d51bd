"""Properties of model/muon.py: what is orthogonal, and which update each parameter gets, computed here from the papers' formulas."""

import math
from copy import deepcopy

import pytest
import torch

from flows import recipes
from model import zero
from model.config import gpt2, qwen3
from model.muon import Muon, orthogonal
from model.partition import Piece
from model.transformer import Transformer

MUON = recipes.train(10, 8, 32, 3e-3, 4, optimizer="muon", momentum=0.9, save_every=5, keep=1, micro_batch=2, device="cpu", timeout=60.0)
INNER = ("attention.q.weight", "attention.k.weight", "attention.v.weight", "attention.o.weight")
INNER += ("ffn.gate.weight", "ffn.up.weight", "ffn.down.weight")


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.mT @ orthogonal(matrix) @ v.mT
    values = found.diagonal()[s > 0.02 * s.max()]  # five steps do not lift what is smaller than that
    assert values.min() > 0.6 and values.max() < 1.3
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def test_a_matrix_of_zeros_stays_one():
    assert orthogonal(torch.zeros(4, 8)).abs().max() == 0


def bound(model: Transformer) -> Muon:
    optimizer = zero.optimizer(model, MUON)
    assert isinstance(optimizer, Muon)
    optimizer.bind([Piece(name, p, p, 0, 0, p.numel()) for name, p in model.named_parameters()])
    return optimizer


@pytest.mark.parametrize("shape", [qwen3(32, 2, 4, 2, 64, 64), gpt2(32, 2, 4, 48, 64, 0.0)])
def test_matrices_inside_blocks_move_by_muon_and_all_the_rest_by_adam(shape):
    model = Transformer(shape, 96)
    model.init_weights(1)
    optimizer = bound(model)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    torch.manual_seed(0)
    for step in (1, 2, 3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            grad, weight = parameter.grad.double(), expected[name]
            if name.startswith("blocks.") and name.endswith(INNER):
                first[name] = 0.9 * first[name] + 0.1 * grad
                u, s, v = torch.linalg.svd(0.1 * grad + 0.9 * first[name], full_matrices=False)
                s = s / s.norm()
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                weight *= 1 - 0.02 * MUON.weight_decay
                weight -= 0.02 * math.sqrt(max(1, weight.shape[0] / weight.shape[1])) * (u @ s.diag() @ v)
            else:
                first[name] = MUON.beta1 * first[name] + (1 - MUON.beta1) * grad
                second[name] = MUON.beta2 * second[name] + (1 - MUON.beta2) * grad**2
                weight *= 1 - MUON.lr * (MUON.weight_decay if weight.ndim == 2 else 0)
                size = (second[name] / (1 - MUON.beta2**step)).sqrt() + MUON.eps
                weight -= MUON.lr * first[name] / (1 - MUON.beta1**step) / size
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], atol=2e-5), name
    moved = {name for name, p in model.named_parameters() if "momentum" in optimizer.state[p]}
    assert moved == {f"blocks.{layer}.{name}" for layer in (0, 1) for name in INNER} & expected.keys()


def test_each_group_has_a_rate_of_its_own():
    groups = bound(Transformer(qwen3(32, 2, 4, 2, 64, 64), 96)).param_groups
    assert [(g["muon"], g["lr"], g["share"], g["weight_decay"]) for g in groups] == [
        (True, 0.02, 0.02 / 3e-3, 0.1),
        (False, 3e-3, 1.0, 0.1),
        (False, 3e-3, 1.0, 0.0),
    ]


def test_state_can_be_saved_and_loaded():
    model = Transformer(qwen3(32, 1, 4, 2, 64, 64), 96)
    model.init_weights(1)
    optimizer = bound(model)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = parameter.detach().sin()
        optimizer.step()

    step()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}, deepcopy(optimizer.state_dict())
    step()
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(kept[0], strict=False)
    model.tie()
    optimizer = bound(model)
    optimizer.load_state_dict(kept[1])
    step()
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())
