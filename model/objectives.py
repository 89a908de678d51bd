"""What is minimised. Rows in, one sum a row out; how sums become a loss is said here once, and what the loop asks of an objective.

    objective = of(run); objective.begin(engine)
    objective.source(prefixes), objective.noise              # what a row is
    objective.prepare(engine, mine, place)                   # before a step's micro-batches: what each of them needs of all
    objective.sums(engine, rows, prepared, here)             # one micro-batch: the loss of each of its rows, to go backward from
    objective.observe(engine, rows), objective.measures(...) # validation

Tokens: cross entropy of the tokens that targets name (causal, masked, spans, mixed; instruction tuning). Contrast: InfoNCE over pairs. Labels,
answers and preferences: model/tuning.py.
Shape suffixes: B rows of a global batch, b of a micro-batch, T tokens, C width, V vocabulary, N held-out rows.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import noise, tokenizer
from model.batches import NO_LOSS, PADDING, Batch, Noise, Packed, Pairs, Source, Stream
from model.config import EXAMPLES, Answers, Contrastive, Labels, Masked, Mixed, Preference, Run, Spans
from model.errors import ConfigError
from model.shards import Shard
from model.transformer import compiled


class Rows(NamedTuple):
    """A micro-batch on its device; as model/batches.py's Batch."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor
    ahead: Tensor | None
    reference: Tensor | None = None


def on_device(batch: Batch, device: torch.device) -> Rows:
    """A batch's rows on the device."""
    arrays = torch.from_numpy(np.stack((batch.tokens, batch.targets, batch.documents, batch.positions)))
    ahead, reference = (None if array is None else torch.from_numpy(array) for array in (batch.ahead, batch.reference))
    if device.type == "cuda":  # from pageable memory a copy would wait for all that the GPU still has to do
        arrays = arrays.pin_memory().to(device, non_blocking=True)
        ahead, reference = (None if tensor is None else tensor.to(device) for tensor in (ahead, reference))
    tokens, targets, documents, positions = arrays.unbind()
    return Rows(tokens, targets, documents, positions, ahead, reference)


class Objective(Protocol):
    """What the loop asks of one. Where ranks share rows, sums and what is observed are of a rank's own tokens, to be added up."""

    noise: Noise | None
    """What is done to rows before they are learnt."""

    def begin(self, engine: Any) -> None:
        """What must be known of the weights that training starts from, before anything else is asked."""

    def source(self, prefixes: tuple[str, ...]) -> Source:
        """The samples of shards."""

    def prepare(self, engine: Any, mine: Iterable[tuple[slice, Rows]], batch: int, width: int) -> Any:
        """What the micro-batches of a step need of the whole global batch; `mine`: this rank's micro-batches with their rows in it."""

    def sums(self, engine: Any, rows: Rows, prepared: Any, here: slice) -> Tensor:
        """The loss of each row, summed over its targets, [b], from one call of the engine. `here`: their rows in the global batch."""

    def observe(self, engine: Any, rows: Rows) -> Tensor:
        """What validation keeps of each row, [b, any]."""

    def measures(self, observed_N: Tensor, targets: int) -> dict[str, float]:
        """Validation's figures from all held-out rows in order: valid_loss, valid_accuracy, …"""


def of(run: Run) -> Objective:
    """The objective of a run. ConfigError for one that the model or the data cannot serve."""
    wanted, model = run.train.objective, run.model
    if (run.data == "packed") > isinstance(wanted, EXAMPLES):
        raise ConfigError(
            f"examples are learnt by objectives causal, labels, answers and preference, not {wanted.kind}: set finetune.objective"
        )
    if isinstance(wanted, Labels | Answers | Preference):
        from model import tuning  # made of what is here

        if run.data != "packed":
            raise ConfigError(f"objective {wanted.kind} learns from examples, not from a corpus: set it in finetune.objective")
        return tuning.of(run, wanted)
    if model.labels:
        raise ConfigError(f"the start scores {len(model.labels)} labels, and objective {wanted.kind} needs one that scores tokens")
    if isinstance(wanted, Contrastive):
        if run.train.z_loss:
            raise ConfigError("objective contrastive has no softmax over tokens for z_loss to hold; set z_loss to 0")
        return Contrast(run, wanted)
    kind = "encoder" if isinstance(wanted, Masked) else "decoder"
    if model.kind != kind:
        what = "fills in tokens from both sides" if kind == "encoder" else "predicts the next token"
        raise ConfigError(f"objective {wanted.kind} {what} and needs model.kind={kind}; it is {model.kind}")
    if isinstance(wanted, Mixed) and "local" in model.attention:
        raise ConfigError("objective mixed needs layers that see a whole document; model.attention has local ones")
    made: Noise | None = None
    if isinstance(wanted, Masked):
        made = noise.Masking(wanted, tokenizer.load(run.tokenizer))
    elif isinstance(wanted, Mixed):
        made = noise.Mixing(wanted, tokenizer.load(run.tokenizer))
    elif isinstance(wanted, Spans):
        made = noise.Cutting(wanted)
    return Tokens(run, made)


class Tokens:
    """Cross entropy in nats of the tokens that a row's targets name."""

    def __init__(self, run: Run, noise: Noise | None):
        self.noise, self._run = noise, run

        def loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
            return cross_entropy(logits_BTV, targets_BT, run.train.z_loss)

        self._loss = compiled(loss) if run.train.compile else loss

    def begin(self, engine: Any) -> None:
        """Nothing."""

    def source(self, prefixes: tuple[str, ...]) -> Source:
        """As Objective."""
        shards, length = [Shard(prefix) for prefix in prefixes], self._run.train.length
        return Packed(shards, length) if self._run.data == "packed" else Stream(shards, length)

    def prepare(self, engine: Any, mine: Iterable[tuple[slice, Rows]], batch: int, width: int) -> None:
        """Nothing: a row's loss is its own."""

    def sums(self, engine: Any, rows: Rows, prepared: None, here: slice) -> Tensor:
        """As Objective."""
        targets_bT = engine.module.own(rows.targets)

        def head(states_bTC: Tensor, output: nn.Module) -> Tensor:
            if self._run.train.checkpointing:
                return in_pieces(self._loss, states_bTC, output, targets_bT)
            return self._loss(output(states_bTC), targets_bT)

        return engine(rows.tokens, rows.positions, rows.documents, ahead_B=rows.ahead, head=head)

    def observe(self, engine: Any, rows: Rows) -> Tensor:
        """Loss and number of targets that are the likeliest token, [b, 2]."""
        targets_bT = engine.module.own(rows.targets)

        def head(states_bTC: Tensor, output: nn.Module) -> Tensor:
            logits_bTV = output(states_bTC)
            right_bT = logits_bTV.argmax(-1) == targets_bT
            return torch.stack((self._loss(logits_bTV, targets_bT), right_bT.sum(1).float()), dim=1)

        return engine(rows.tokens, rows.positions, rows.documents, ahead_B=rows.ahead, head=head)

    def measures(self, observed_N: Tensor, targets: int) -> dict[str, float]:
        """As Objective."""
        loss, right = mean(observed_N[:, 0], targets), mean(observed_N[:, 1], targets)
        return {"valid_loss": loss, "valid_bits_per_token": loss / math.log(2), "valid_accuracy": right}


@dataclass(frozen=True)
class Cached:
    """Of a global batch: each row's loss [B], and its gradient by the row's two vectors [B, 2, C]."""

    losses: Tensor
    gradients: Tensor


class Contrast:
    """InfoNCE over the pairs of a whole global batch, however many micro-batches it is cut into: vectors of all rows first, without gradients; the
    loss by them; then each micro-batch's gradients from that of the loss by its vectors (Gao et al. 2021, "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup"). Both passes must have the same dropout."""

    def __init__(self, run: Run, objective: Contrastive):
        self.noise: Noise | None = None
        self._run, self._objective = run, objective

    def begin(self, engine: Any) -> None:
        """Nothing."""

    def source(self, prefixes: tuple[str, ...]) -> Source:
        """As Objective."""
        return Pairs([Shard(prefix) for prefix in prefixes], self._run.train.length, self._objective.pairs == "labelled")

    def _vectors(self, engine: Any, rows: Rows) -> Tensor:
        """Unit vectors of both texts of each row, fp32, [b, 2, C]."""
        length = rows.tokens.shape[1] // 2
        tokens, positions, documents = (tensor.reshape(-1, length) for tensor in (rows.tokens, rows.positions, rows.documents.clamp(max=0)))
        pooled = pool(engine(tokens, positions, documents, hidden=True), documents, self._objective.pooling)
        return F.normalize(pooled.float(), dim=-1).view(len(rows.tokens), 2, -1)

    def prepare(self, engine: Any, mine: Iterable[tuple[slice, Rows]], batch: int, width: int) -> Cached:
        """As Objective."""
        vectors_B2C: Tensor | None = None
        with torch.no_grad():
            for here, rows in mine:
                made = self._vectors(engine, rows)
                if vectors_B2C is None:
                    vectors_B2C = made.new_zeros((batch, 2, width))
                vectors_B2C[here] = made
        assert vectors_B2C is not None
        dist.all_reduce(vectors_B2C)
        vectors_B2C.requires_grad_()
        losses_B = info_nce(vectors_B2C, self._objective.temperature)
        (gradients_B2C,) = torch.autograd.grad(losses_B.sum(), vectors_B2C)
        return Cached(losses_B.detach(), gradients_B2C)

    def sums(self, engine: Any, rows: Rows, prepared: Cached, here: slice) -> Tensor:
        """The loss as it is, with the gradient that the cached one gives."""
        along_b = (self._vectors(engine, rows) * prepared.gradients[here]).sum(dim=(1, 2))
        return prepared.losses[here] + along_b - along_b.detach()

    def observe(self, engine: Any, rows: Rows) -> Tensor:
        """The vectors, [b, 2·C]."""
        return self._vectors(engine, rows).flatten(1)

    def measures(self, observed_N: Tensor, targets: int) -> dict[str, float]:
        """Among the pairs of all held-out rows."""
        vectors_N2C = observed_N.view(len(observed_N), 2, -1)
        right = (vectors_N2C[:, 0] @ vectors_N2C[:, 1].T).argmax(1) == torch.arange(len(observed_N), device=observed_N.device)
        return {
            "valid_loss": mean(info_nce(vectors_N2C, self._objective.temperature), targets),
            "valid_accuracy": mean(right.float(), targets),
        }


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float = 0.0) -> Tensor:
    """In nats, summed over the targets of each row, fp32, [B]; targets of NO_LOSS count nothing.

    `z_loss` times log² Z of each target is minimised with it, which keeps the softmax's normaliser Z near one (PaLM, Chowdhery et al. 2022: 1e-4);
    it is in the gradient, not in the value, so that losses with and without it compare.
    """
    logits_NV, targets_N = logits_BTV.float().flatten(0, 1), targets_BT.flatten()
    losses_N = F.cross_entropy(logits_NV, targets_N, ignore_index=NO_LOSS, reduction="none")
    if z_loss:
        pull_N = z_loss * logits_NV.logsumexp(dim=-1).square() * (targets_N != NO_LOSS)
        losses_N = losses_N + (pull_N - pull_N.detach())
    return losses_N.view(targets_BT.shape).sum(dim=1)


def info_nce(vectors_B2C: Tensor, temperature: float) -> Tensor:
    """-log softmax over the batch's second vectors of each first one's cosine with its own, divided by the temperature, [B]."""
    scores_BB = vectors_B2C[:, 0] @ vectors_B2C[:, 1].T / temperature
    return F.cross_entropy(scores_BB, torch.arange(len(scores_BB), device=scores_BB.device), reduction="none")


def pool(states_BTC: Tensor, documents_BT: Tensor, how: str) -> Tensor:
    """A vector a row, [B, C]: the state of its first token, or the mean of all but padding's."""
    if how == "first":
        return states_BTC[:, 0]
    real_BT1 = (documents_BT != PADDING).unsqueeze(-1)
    return (states_BTC * real_BT1).sum(dim=1) / real_BT1.sum(dim=1)


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
