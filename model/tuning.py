"""What fine-tuning minimises beside the tokens of answers, as objectives of the loop: labels of texts, answers in a context, preferences (DPO).

Shape suffixes: b rows of a micro-batch, T tokens, K documents of a row, P pairs of a row, N spans or examples.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.batches import NO_LOSS, SPAN, Packed, Preferences, Source, reference_path, targets_path
from model.checkpoint import save_array
from model.config import Answers, Labels, Preference, Run
from model.errors import ConfigError, ShardError
from model.objectives import Rows, Tokens, in_pieces, mean, on_device
from model.shards import Shard


def of(run: Run, wanted: Labels | Answers | Preference) -> Tokens:
    """The objective of a run. ConfigError for a model that cannot serve it."""
    needed = {"labels": "labels", "answers": "spans"}.get(wanted.kind, "linear")
    if run.model.head != needed or (needed == "linear" and run.model.kind != "decoder"):
        raise ConfigError(
            f"objective {wanted.kind} needs a {'decoder' if needed == 'linear' else 'model'} with head {needed}; this one is a {run.model.kind} with head {run.model.head}"
        )
    if isinstance(wanted, Labels):
        return Labelling(run, None)
    return Answering(run, None) if isinstance(wanted, Answers) else Preferring(run, wanted)


class Labelling(Tokens):
    """Cross entropy of a label at the token whose state stands for its text."""

    def source(self, prefixes: tuple[str, ...]) -> Source:
        """As Objective. ShardError for a label that the model has no score for."""
        for prefix in prefixes:
            numbers = np.load(targets_path(Path(prefix)), allow_pickle=False)
            wrong = numbers[(numbers != NO_LOSS) & ((numbers < 0) | (numbers >= len(self._run.model.labels)))]
            if len(wrong):
                raise ShardError(
                    f"{prefix} has label {wrong[0]}, the model scores for {len(self._run.model.labels)}. Encode the examples again"
                )
        return super().source(prefixes)

    def measures(self, observed_N: Tensor, targets: int) -> dict[str, float]:
        """As Objective: nats a text, and the share of texts whose label has the highest score."""
        return {"valid_loss": mean(observed_N[:, 0], targets), "valid_accuracy": mean(observed_N[:, 1], targets)}


class Answering(Labelling):
    """Cross entropy of the places where an answer begins and ends, over the tokens of its context."""

    def source(self, prefixes: tuple[str, ...]) -> Source:
        """As Objective."""
        return Packed([Shard(prefix) for prefix in prefixes], self._run.train.length)

    def sums(self, engine: Any, rows: Rows, prepared: None, here: slice) -> Tensor:
        """As Objective."""
        return engine(rows.tokens, rows.positions, rows.documents, head=lambda x, output: spans(output(x), rows.targets, rows.documents)[0])

    def observe(self, engine: Any, rows: Rows) -> Tensor:
        """Loss and number of answers with both ends found, [b, 2]."""

        def head(states_bTC: Tensor, output: nn.Module) -> Tensor:
            return torch.stack(spans(output(states_bTC), rows.targets, rows.documents), dim=1)

        return engine(rows.tokens, rows.positions, rows.documents, head=head)


class Preferring(Tokens):
    """DPO over pairs of answers. The start's log-probabilities are computed once, by the model before its first step, and kept beside the shards."""

    def __init__(self, run: Run, objective: Preference):
        super().__init__(run, None)
        self._beta = objective.beta

    def source(self, prefixes: tuple[str, ...]) -> Preferences:
        """As Objective."""
        return Preferences([Shard(prefix) for prefix in prefixes], self._run.train.length)

    def begin(self, engine: Any) -> None:
        """As Objective: each rank judges its part of the rows."""
        rank, world, most = dist.get_rank(), dist.get_world_size(), self._run.train.micro_batch
        engine.eval()
        for prefix in (*self._run.shards, *self._run.valid):
            path, source = reference_path(Path(prefix)), self.source((prefix,))
            if path.exists():
                continue
            known_N = torch.zeros(len(Shard(prefix)), dtype=torch.float32, device=engine.device)
            for lo in range(0, source.samples, most * world):
                mine = np.arange(source.samples)[lo + rank * most : lo + (rank + 1) * most]
                # under stage 3 a forward pass is a joint act of all ranks
                rows = on_device(source.read(mine if len(mine) else np.zeros(1, dtype=np.int64)), engine.device)
                with torch.no_grad():
                    found_bK = self._log_probabilities(engine, rows)
                for row, sample in enumerate(mine):
                    examples = [number for _, number in source.documents(int(sample))]
                    known_N[examples] = found_bK[row, : len(examples)]
            dist.all_reduce(known_N)
            if rank == 0:
                save_array(known_N.cpu().numpy(), path)
            dist.barrier()
        engine.train()

    def _log_probabilities(self, engine: Any, rows: Rows) -> Tensor:
        """Of each answer, [b, K]."""
        count = int(rows.documents.max()) + 1

        def judged(logits_bTV: Tensor, places_bT2: Tensor) -> Tensor:
            return log_probabilities(logits_bTV, places_bT2[..., 0], places_bT2[..., 1], count)

        def head(states_bTC: Tensor, output: nn.Module) -> Tensor:
            places_bT2 = torch.stack((rows.targets, rows.documents), dim=-1)
            if self._run.train.checkpointing:
                return in_pieces(judged, states_bTC, output, places_bT2)
            return judged(output(states_bTC), places_bT2)

        return engine(rows.tokens, rows.positions, rows.documents, head=head)

    def _judged(self, engine: Any, rows: Rows) -> tuple[Tensor, Tensor]:
        """Margins of the pairs, and which of them are there, [b, P] each."""
        policy_bK = self._log_probabilities(engine, rows)
        assert rows.reference is not None
        reference_bK = torch.zeros_like(policy_bK).scatter_add(1, rows.documents.clamp(min=0), rows.reference)
        pairs_P = torch.arange(policy_bK.shape[1] // 2, device=policy_bK.device)
        return margins(policy_bK, reference_bK), 2 * pairs_P < rows.documents.amax(dim=1, keepdim=True)

    def sums(self, engine: Any, rows: Rows, prepared: None, here: slice) -> Tensor:
        """As Objective."""
        margins_bP, pairs_bP = self._judged(engine, rows)
        return preference(margins_bP, pairs_bP, self._beta)

    def observe(self, engine: Any, rows: Rows) -> Tensor:
        """Loss, pairs preferred as they should be, margins in nats, and pairs, [b, 4]."""
        margins_bP, pairs_bP = self._judged(engine, rows)
        right_bP, known_bP = (margins_bP > 0) & pairs_bP, margins_bP.where(pairs_bP, 0.0)
        counts = (right_bP.sum(1).float(), known_bP.sum(1), pairs_bP.sum(1).float())
        return torch.stack((preference(margins_bP, pairs_bP, self._beta), *counts), dim=1)

    def measures(self, observed_N: Tensor, targets: int) -> dict[str, float]:
        """As Objective: nats a pair, the share of pairs with a margin above 0, the mean margin in nats."""
        pairs = int(observed_N[:, 3].sum())
        loss, right, margin = (mean(observed_N[:, column], pairs) for column in range(3))
        return {"valid_loss": loss, "valid_accuracy": right, "valid_margin": margin}


def spans(scores_BT2: Tensor, targets_BT: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """-½ (ln p(begin) + ln p(end)), nats, and the number of answers with both likeliest ends right, summed over each row's documents, fp32, [B]
    each; p is a softmax over the tokens from the context's first on (Devlin et al. 2019, §4.2).

    targets_BT: at the first token of a context begin · SPAN + end, counted from it; NO_LOSS elsewhere.
    """
    rows_N, first_N = torch.nonzero(targets_BT != NO_LOSS, as_tuple=True)
    target_N, places_T = targets_BT[rows_N, first_N], torch.arange(targets_BT.shape[1], device=targets_BT.device)
    same_NT = documents_BT[rows_N] == documents_BT[rows_N, first_N][:, None]
    outside_NT = ~same_NT | (places_T < first_N[:, None])
    ends_N2 = torch.stack((target_N // SPAN, target_N % SPAN), dim=1) + first_N[:, None]
    scores_NT2 = scores_BT2[rows_N].float().masked_fill(outside_NT[..., None], -torch.inf)
    costs_N = -scores_NT2.log_softmax(dim=1).gather(1, ends_N2[:, None])[:, 0].mean(dim=1)
    right_N = (scores_NT2.argmax(dim=1) == ends_N2).all(dim=1).float()
    none_B = costs_N.new_zeros(len(targets_BT))
    return none_B.index_add(0, rows_N, costs_N), none_B.index_add(0, rows_N, right_N)


def log_probabilities(logits_BTV: Tensor, targets_BT: Tensor, documents_BT: Tensor, documents: int) -> Tensor:
    """ln p of the targets of each document of a row, nats, summed, fp32, [B, K] for `documents` K; targets of NO_LOSS count nothing."""
    costs_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=NO_LOSS, reduction="none")
    costs_BT = costs_N.view(targets_BT.shape)
    sums_BK = costs_BT.new_zeros(len(costs_BT), documents)
    return sums_BK.scatter_add(1, documents_BT.clamp(min=0), -costs_BT)


def margins(policy_BK: Tensor, reference_BK: Tensor) -> Tensor:
    """How much more than the reference the policy prefers the chosen answer, nats, [B, P]: documents 2p and 2p + 1 are chosen and rejected."""
    gain_BK = policy_BK - reference_BK
    return gain_BK[:, ::2] - gain_BK[:, 1::2]


def preference(margins_BP: Tensor, pairs_BP: Tensor, beta: float) -> Tensor:
    """-ln σ(β · margin), nats, summed over the pairs of each row that `pairs_BP` marks, [B] (DPO, Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * margins_BP).where(pairs_BP, 0.0).sum(dim=1)
