"""Properties of model/sequence.py, with the ranks of a group played one after another."""

import torch

from model.sequence import Parts

P, B, H, T, D = 2, 3, 4, 6, 5


def played(monkeypatch, method: str, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """What each rank gets when all call a method with their own tensor: an all-to-all hands part r of each to rank r."""
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(Parts, "_exchanged", lambda self, parts: (sent.append(parts), parts)[1])
    for rank, tensor in enumerate(given):
        getattr(Parts(None, P, rank), method)(tensor)
    found = []
    for rank, tensor in enumerate(given):
        monkeypatch.setattr(Parts, "_exchanged", lambda self, parts, rank=rank: torch.stack([all_of[rank] for all_of in sent]))
        found.append(getattr(Parts(None, P, rank), method)(tensor))
    return found


def test_ranks_exchange_tokens_for_heads_and_back(monkeypatch):
    whole = torch.arange(B * H * T * D, dtype=torch.float32).view(B, H, T, D)
    by_token, by_head = list(whole.chunk(P, dim=2)), list(whole.chunk(P, dim=1))
    assert all(torch.equal(a, b) for a, b in zip(played(monkeypatch, "to_heads", by_token), by_head, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(played(monkeypatch, "to_tokens", by_head), by_token, strict=True))


def test_each_rank_takes_its_own_tokens_in_order():
    row = torch.arange(12).view(2, 6)
    assert torch.equal(torch.cat([Parts(None, P, rank).own(row) for rank in range(P)], dim=1), row)
