"""Sequence parallelism (DeepSpeed-Ulysses, Jacobs et al. 2023): neighbouring ranks take a part of every row's tokens each.

Between tokens nothing but attention passes: there ranks exchange, so that each has all tokens of its part of the heads, and exchange back.
Weights are whole on each rank and gradients are sums over tokens, so ZeRO shares them as it does among ranks with rows of their own.
Shape suffixes: B rows, T tokens, t a part of them, H heads, h a part of them, D head size, P ranks that share a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_to_all_single


@dataclass(frozen=True)
class Parts:
    """How a row is shared: among `ranks` of a process group, of which this one is number `rank`."""

    group: Any
    ranks: int
    rank: int

    def own(self, row_BT: Tensor) -> Tensor:
        """This rank's part of what is given a token, [B, t]."""
        return row_BT.chunk(self.ranks, dim=1)[self.rank]

    def to_heads(self, x_BHtD: Tensor) -> Tensor:
        """All tokens of this rank's heads, [B, h, T, D]."""
        parts_PBhtD = self._exchanged(torch.stack(x_BHtD.chunk(self.ranks, dim=1)))
        return torch.cat(parts_PBhtD.unbind(), dim=2)

    def to_tokens(self, x_BhTD: Tensor) -> Tensor:
        """All heads of this rank's tokens, [B, H, t, D]."""
        parts_PBhtD = self._exchanged(torch.stack(x_BhTD.chunk(self.ranks, dim=2)))
        return torch.cat(parts_PBhtD.unbind(), dim=1)

    def _exchanged(self, parts: Tensor) -> Tensor:
        return all_to_all_single(torch.empty_like(parts), parts.contiguous(), group=self.group)
