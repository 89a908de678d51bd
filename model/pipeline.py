"""Pipeline parallelism: neighbouring ranks hold some layers of one model each, and micro-batches pass from one to the next (GPipe, Huang et al. 2019).

    model.hold(layers(model.config.layers, stages, stage))   # what this rank computes
    line = Line(engine, grid)                                # called as the engine is; states come from the stage before and go to the next
    for forward, part in order(stages, stage, parts): …      # one forward, one backward, so that few micro-batches are held (PipeDream, Narayanan et al. 2021)
    engine.backward(line.loss(share, …)); line.give(…)

An embedding matrix that is also the output matrix has its place, its gradient and its optimizer state on the first stage; the last borrows it for a step
and gives its part of the gradient back. Shape suffixes: b rows of a micro-batch, T tokens, C width, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def layers(total: int, stages: int, stage: int) -> range:
    """The layers of a stage, as even as they go; the first stages have one more, since the last one has the output matrix."""
    return range(-(-total * stage // stages), -(-total * (stage + 1) // stages))


def order(stages: int, stage: int, parts: int) -> Iterator[tuple[bool, int]]:
    """What a stage does in a step of so many micro-batches: (True, n) is the n-th one's forward, (False, n) its backward.

    Each is in order, and at most stages - stage micro-batches are between the two; of one stage they alternate.
    """
    ahead = min(parts, stages - stage - 1)
    yield from ((True, part) for part in range(ahead))
    for part in range(parts):
        if part + ahead < parts:
            yield True, part + ahead
        yield False, part


class Grid:
    """Which ranks share what, in the words that DeepSpeed asks for (Megatron's mpu): stages of one replica are neighbours and count as model
    parallel ranks; the same stage of all replicas averages gradients. Made by every rank at once."""

    def __init__(self, stages: int):
        rank, world = dist.get_rank(), dist.get_world_size()
        self.stages, self.stage = stages, rank % stages
        self.line = range(rank - self.stage, rank - self.stage + stages)
        """Ranks of this replica, by stage."""
        lines = [range(lo, lo + stages) for lo in range(0, world, stages)]
        # states and gradients by groups of their own: on a GPU, two that meet within one would wait for each other
        self.down, self.up, self.all = ([dist.new_group(line) for line in lines][rank // stages] for _ in range(3))
        peers = [range(stage, world, stages) for stage in range(stages)]
        self.peers = peers[self.stage]
        self.same = [dist.new_group(line) for line in peers][self.stage]

    def get_model_parallel_rank(self) -> int:
        """Number of this stage."""
        return self.stage

    def get_model_parallel_world_size(self) -> int:
        """Number of stages."""
        return self.stages

    def get_model_parallel_group(self) -> Any:
        """Stages of this replica."""
        return self.all

    def get_data_parallel_rank(self) -> int:
        """Number of this replica."""
        return self.peers.index(dist.get_rank())

    def get_data_parallel_world_size(self) -> int:
        """Number of replicas."""
        return len(self.peers)

    def get_data_parallel_group(self) -> Any:
        """This stage of all replicas."""
        return self.same

    def get_data_parallel_group_ranks(self) -> list[int]:
        """The ranks of it."""
        return list(self.peers)


class Line:
    """A rank's engine among those of the other stages; without a grid it holds all layers and passes nothing on."""

    def __init__(self, engine: Any, grid: Grid | None):
        self._engine, self._grid, self.module = engine, grid, engine.module
        self._first = grid is None or grid.stage == 0
        self._last = grid is None or grid.stage == grid.stages - 1
        self._under_way: deque[tuple[Tensor | None, Tensor]] = deque()
        self._sent: list[tuple[Any, Tensor]] = []
        self._received: Tensor | None = None
        self._lent = self._first != self._last and self.module.config.tie_embeddings
        self._gradient: Tensor | None = None

    def begin(self) -> None:
        """Before a step or an evaluation: the last stage gets the output matrix of now, if that is the embedding."""
        if self._lent and self._first:
            self._send(self.module.embed.weight.detach(), -1, "down")
        elif self._lent:
            like = next(self.module.parameters())
            weight_VC = like.new_empty((self.module.vocab, self.module.config.width))
            self.module.output.weight = self._receive(weight_VC, 0, "down").requires_grad_()
            self._gradient = torch.zeros_like(weight_VC, dtype=torch.float32)

    def __call__(self, tokens_bT: Tensor, *given: Any, **named: Any) -> Tensor:
        """The engine's forward pass; the states [b, T, C] of a stage that is not the last."""
        states_bTC: Tensor | None = None
        if not self._first:
            like = next(self.module.parameters())
            states_bTC = self._receive(like.new_empty((*tokens_bT.shape, self.module.config.width)), self._before, "down")
            states_bTC.requires_grad_(torch.is_grad_enabled())
        made = self._engine(tokens_bT, *given, states_BTC=states_bTC, **named)
        if not self._last:
            self._send(made.detach(), self._behind, "down")
        if torch.is_grad_enabled():
            self._under_way.append((states_bTC, made))
        return made

    def loss(self, share: Tensor, part: int, parts: int) -> Tensor:
        """What to go backward from for micro-batch `part` of `parts`, a scalar: the last stage's `share` of the loss; before it, what has its gradient,
        times `parts`: by that DeepSpeed divides, as it did already where the gradient comes from."""
        self._received, made = self._under_way.popleft()
        if self._last:
            return share
        along = (made * self._receive(torch.empty_like(made), self._behind, "up")).sum()
        if part + 1 == parts and self._lent:
            weight_VC = self.module.embed.weight
            along = along + (weight_VC * self._receive(torch.empty_like(weight_VC), -1, "up")).sum()
        return along * parts

    def give(self, last: bool) -> None:
        """After the backward pass: gradients go back to where what was received came from."""
        if self._received is not None:
            assert self._received.grad is not None
            self._send(self._received.grad, self._before, "up")
            self._received = None
        if self._gradient is not None:
            weight_VC = self.module.output.weight
            self._gradient += weight_VC.grad
            weight_VC.grad = None
            if last:
                self._send(self._gradient.to(weight_VC.dtype), 0, "up")

    def end(self) -> None:
        """Wait for what was sent."""
        for work, _ in self._sent:
            work.wait()
        self._sent = []

    def summed(self, number: Tensor) -> Tensor:
        """The sum of the stages' numbers, in place."""
        if self._grid is not None:
            dist.all_reduce(number, group=self._grid.all)
        return number

    def collect(self, state: dict[str, Tensor]) -> None:
        """Add the parameters [any shape], on the CPU, of all stages to those of the first one. Every stage of the replica calls it."""
        if self._grid is None:
            return
        shapes: list[Any] = [None] * self._grid.stages
        dist.all_gather_object(shapes, {name: parameter.shape for name, parameter in state.items()}, group=self._grid.all)
        device = next(self.module.parameters()).device
        for stage, named in enumerate(shapes[1:], 1):
            for name, shape in named.items():
                if self._grid.stage == stage:
                    self._send(state[name].to(device), 0, "up")
                elif self._first:
                    state[name] = self._receive(torch.empty(shape, device=device), stage, "up").cpu()
        self.end()

    @property
    def _before(self) -> int:
        assert self._grid is not None
        return self._grid.stage - 1

    @property
    def _behind(self) -> int:
        assert self._grid is not None
        return self._grid.stage + 1

    def _send(self, tensor: Tensor, stage: int, way: str) -> None:
        assert self._grid is not None
        tensor = tensor.contiguous()
        self._sent.append((dist.isend(tensor, self._grid.line[stage], getattr(self._grid, way)), tensor))

    def _receive(self, tensor: Tensor, stage: int, way: str) -> Tensor:
        assert self._grid is not None
        dist.recv(tensor, self._grid.line[stage], getattr(self._grid, way))
        return tensor
