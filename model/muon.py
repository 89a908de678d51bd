"""Muon (Jordan et al. 2024) for the matrices inside blocks, AdamW for all the rest, at every ZeRO stage.

Muon moves a matrix by its momentum made orthogonal: M ← β M + (1-β) G, W ← (1 - lr·decay) W - lr · √max(1, rows/columns) · O(G + β (M - G)),
where O brings all singular values near one (`orthogonal`). ZeRO cuts matrices among ranks and O needs them whole: each rank keeps its part
of the momentum, and one matrix at a time is put together for O. DeepSpeed 0.19 has a Muon too: it clips before O under bf16 and after O,
which scales the update, under fp32, and compiles itself. Here clipping comes first, always.
"""

import math
from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor

from model.partition import Piece

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors whose singular values lie between about 0.7 and 1.2, [rows, columns], fp32.

    Newton-Schulz with Jordan's coefficients; in bf16 on a GPU, as published, and in fp32 on a CPU.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` are moved by Muon instead. `bind` before the first step."""

    def bind(self, place: list[Piece]) -> None:
        """Tell which part of which matrix lies where in what this rank updates."""
        self._pieces: dict[Tensor, list[Piece]] = defaultdict(list)
        for piece in place:
            self._pieces[piece.flat].append(piece)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group: DeepSpeed calls it once a group."""
        every = self.param_groups
        for group in every:
            if group["muon"]:
                for flat in group["params"]:
                    self._move(flat, group["lr"], group["weight_decay"], group["momentum"])
        self.param_groups = [group for group in every if not group["muon"]]
        super().step()
        self.param_groups = every

    @torch.no_grad()
    def _move(self, flat: Tensor, lr: float, decay: float, beta: float) -> None:
        state = self.state[flat]
        if not state:
            state["momentum"] = torch.zeros_like(flat)
            state["step"] = torch.zeros((), device=flat.device)
        state["step"] += 1
        assert flat.grad is not None
        momentum = state["momentum"].lerp_(flat.grad, 1 - beta)
        ahead = flat.grad.lerp(momentum, beta)  # Nesterov's
        flat.mul_(1 - lr * decay)
        for piece in self._pieces[flat]:
            shape = getattr(piece.parameter, "ds_shape", piece.parameter.shape)
            if flat is piece.parameter:
                whole = ahead
            else:
                whole = torch.zeros(shape, device=flat.device)
                whole.view(-1)[piece.start : piece.start + piece.size] = piece.of(ahead)
                dist.all_reduce(whole)
            update = orthogonal(whole).flatten()[piece.start : piece.start + piece.size]
            piece.of(flat).sub_(update, alpha=lr * math.sqrt(max(1.0, shape[0] / shape[1])))
