"""What fine-tuning minimises beside next tokens: spans of answers (extraction) and preferences between answers (DPO). Sums a row, [B].

Classification is `objectives.causal` over labels instead of tokens. Shape suffixes: B rows, T tokens, K documents of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batches import NO_LOSS


def spans(scores_BT2: Tensor, targets_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """-½ (ln p(begin) + ln p(end)), nats, summed over the documents of each row, fp32, [B]; p is a softmax over the context's tokens (Devlin et
    al. 2019, §4.2).

    targets_BT: 1 within the answer, 0 in the rest of the context, NO_LOSS elsewhere. A document without an answer counts nothing.
    """
    seen_BKT, answer_BKT = _within(targets_BT, documents_BT)
    places_T = torch.arange(targets_BT.shape[1], device=targets_BT.device)
    first_BK = places_T.where(answer_BKT, len(places_T)).amin(-1)
    last_BK = places_T.where(answer_BKT, -1).amax(-1)
    answered_BK = last_BK >= 0
    sums_BK = torch.zeros_like(first_BK, dtype=torch.float32)
    for column, place_BK in ((0, first_BK), (1, last_BK)):
        logits_BKT = scores_BT2[..., column].float()[:, None].masked_fill(~seen_BKT, -torch.inf)
        chosen_BK = logits_BKT.gather(-1, place_BK.where(answered_BK, 0)[..., None])[..., 0]
        costs_BK = logits_BKT.where(answered_BK[..., None], 0.0).logsumexp(-1) - chosen_BK
        sums_BK = sums_BK + costs_BK.where(answered_BK, 0.0) / 2
    return sums_BK.sum(dim=1)


def spans_right(scores_BT2: Tensor, targets_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """How many documents of each row have both likeliest ends where their answer has them, fp32, [B]."""
    seen_BKT, answer_BKT = _within(targets_BT, documents_BT)
    places_T = torch.arange(targets_BT.shape[1], device=targets_BT.device)
    ends = (places_T.where(answer_BKT, len(places_T)).amin(-1), places_T.where(answer_BKT, -1).amax(-1))
    likeliest = [scores_BT2[..., n].float()[:, None].masked_fill(~seen_BKT, -torch.inf).argmax(-1) for n in (0, 1)]
    return ((ends[0] == likeliest[0]) & (ends[1] == likeliest[1])).sum(dim=1).float()


def _within(targets_BT: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are context of each document, and which of its answer, [B, K, T] each."""
    numbers_K = torch.arange(int(documents_BT.max()) + 1, device=documents_BT.device)
    own_BKT = documents_BT[:, None] == numbers_K[:, None]
    return own_BKT & (targets_BT != NO_LOSS)[:, None], own_BKT & (targets_BT == 1)[:, None]


def log_probabilities(logits_BTV: Tensor, targets_BT: Tensor, documents_BT: Tensor, documents: int) -> Tensor:
    """ln p of the targets of each document of a row, nats, summed, fp32, [B, K] for `documents` K; targets of NO_LOSS count nothing."""
    costs_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=NO_LOSS, reduction="none")
    costs_BT = costs_N.view(targets_BT.shape)
    sums_BK = costs_BT.new_zeros(len(costs_BT), documents)
    return sums_BK.scatter_add(1, documents_BT.clamp(min=0), -costs_BT)


def margins(policy_BK: Tensor, reference_BK: Tensor) -> Tensor:
    """How much more than the reference the policy prefers the chosen answer, nats, [B, K/2]: documents 2p and 2p + 1 are chosen and rejected."""
    gain_BK = policy_BK - reference_BK
    return gain_BK[:, ::2] - gain_BK[:, 1::2]


def preference(policy_BK: Tensor, reference_BK: Tensor, pairs_BP: Tensor, beta: float) -> Tensor:
    """-ln σ(β · margin), nats, summed over the pairs of each row that `pairs_BP` marks, [B] (DPO, Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * margins(policy_BK, reference_BK)).where(pairs_BP, 0.0).sum(dim=1)
