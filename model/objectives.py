"""What is minimised: next-token prediction. Logits and targets in, one sum a row out; how sums become a loss is said here once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.batches import NO_LOSS


def causal(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross entropy in nats, summed over the targets of each row, fp32, [B]; targets of NO_LOSS count nothing."""
    losses_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=NO_LOSS, reduction="none")
    return losses_N.view(targets_BT.shape).sum(dim=1)


def in_pieces(
    objective: Callable[[Tensor, Tensor], Tensor], states_BTC: Tensor, output: nn.Module, targets_BT: Tensor, tokens: int = 4096
) -> Tensor:
    """objective(output(states), targets), [B], with logits of `tokens` tokens at a time, which backward computes again.

    All logits of 16,384 tokens over 32,768 ids take 2 GiB in fp32, and cross entropy holds several such arrays.
    """
    places = max(1, tokens // len(states_BTC))
    parts = zip(states_BTC.split(places, dim=1), targets_BT.split(places, dim=1), strict=True)
    return torch.stack([checkpoint(lambda x, y: objective(output(x), y), x, y, use_reentrant=False) for x, y in parts]).sum(dim=0)


def share(sums_B: Tensor, targets: int, parts: int) -> Tensor:
    """What one micro-batch of one rank gives to backward, a scalar: its part of the mean over all `targets` of the global batch.

    `parts` is ranks × accumulation: DeepSpeed divides every micro-batch's gradient by both, as if all held equally many targets, which
    they do not. Multiplied by it here, sums over parts are exactly the mean over targets, however rows are spread.
    """
    return sums_B.sum() * (parts / max(1, targets))


def mean(sums: Tensor, targets: int) -> float:
    """Loss over all targets, nats a token, from the sum of each row [B] in the order of the batch: the same however rows were spread."""
    return float(sums.to("cpu", torch.float64).sum()) / max(1, targets)
