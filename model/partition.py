"""Which rank holds which part of a parameter under each ZeRO stage, and a checkpoint read by parameter, whatever stage and ranks wrote it.

    place = pieces(engine)                               # every trainable parameter, and this rank's part of it
    restore(engine, Path("checkpoints/step-00001000"))   # weights and optimizer state, written by other ranks or another stage

The same idea as DeepSpeed's universal checkpoints (Lian et al. 2024), but nothing is converted on disk: the files of all ranks are mapped,
one parameter at a time is put together from them, and each rank keeps its part. A kill at any time leaves the checkpoint as it was.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.errors import CheckpointError

WEIGHT = "weight"
"""Name of the fp32 weights among the states of a parameter; the others are the optimizer's (exp_avg, exp_avg_sq, step)."""


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that this rank updates: `size` elements from `start` of the flattened parameter, at `begin` of `flat`."""

    name: str
    parameter: nn.Parameter
    flat: Tensor
    """What the optimizer updates: the parameter itself at stage 0, else this rank's part of a group of parameters, fp32."""
    begin: int
    start: int
    size: int
    """0 where this rank holds nothing of the parameter."""

    def of(self, flat: Tensor) -> Tensor:
        """This piece of a tensor laid out as `flat`, [size]."""
        return flat.view(-1).narrow(0, self.begin, self.size)


def base_optimizer(engine: Any) -> Any:
    """The torch optimizer that DeepSpeed wraps; at stage 0 it does not."""
    return engine.optimizer.optimizer if engine.zero_optimization() or engine.bfloat16_enabled() else engine.optimizer


def pieces(engine: Any) -> list[Piece]:
    """A piece of each trainable parameter, in the order of the optimizer's groups, the same on every rank."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    wrapped, found = engine.optimizer, []
    if hasattr(wrapped, "fp32_partitioned_groups_flat"):  # stage 3: each parameter is cut into equal parts, the last one padded
        for flat, group in zip(wrapped.fp32_partitioned_groups_flat, wrapped.fp16_groups, strict=True):
            begin = 0
            for parameter in group:
                part = parameter.ds_tensor.ds_numel
                start = min(dist.get_rank() * part, parameter.ds_numel)
                found.append(Piece(names[parameter], parameter, flat, begin, start, min(part, parameter.ds_numel - start)))
                begin += part
        return found
    groups = getattr(wrapped, "bit16_groups", None) or getattr(wrapped, "bf16_groups", None)
    if groups is None:
        return [Piece(names[p], p, p, 0, 0, p.numel()) for group in wrapped.param_groups for p in group["params"]]
    for group, of_group in zip(groups, base_optimizer(engine).param_groups, strict=True):  # a group laid end to end is cut into equal parts
        for parameter in group:
            link = parameter._hp_mapping
            begin, start, size = (
                (link.hp_fragment_address.start, link.lp_fragment_address.start, link.hp_fragment_address.numel) if link else (0, 0, 0)
            )
            found.append(Piece(names[parameter], parameter, of_group["params"][0], begin, start, size))
    return found


@torch.no_grad()
def restore(engine: Any, path: Path, order: list[str]) -> None:
    """Weights and optimizer state of a checkpoint that any number of ranks at any stage wrote, into a new engine.

    On every rank; `order`: names of all trained parameters as the optimizer of a whole model has them. Takes memory for one parameter and its states. Raises CheckpointError if a parameter is missing or has another size.
    """
    place = pieces(engine)
    saved = Saved(path, order)
    state = base_optimizer(engine).state
    whole = hasattr(engine.optimizer, "checkpoint_event_prologue")
    if whole:
        engine.optimizer.checkpoint_event_prologue()
    for piece in place:
        parameter, found = piece.parameter, saved.states(piece.name)
        weight = found.pop(WEIGHT)
        if weight.numel() != (parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()):
            raise CheckpointError(
                f"{path} holds {weight.numel():,} elements of {piece.name}, the model has another number. It is of another model."
            )
        here = slice(piece.start, piece.start + piece.size)
        piece.of(piece.flat.data).copy_(weight[here])
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data.view(-1)[: piece.size].copy_(weight[here])
        elif piece.flat is not parameter:
            parameter.data.copy_(weight.view(parameter.shape))
        of_flat = state[piece.flat]
        for key, value in found.items():
            if value.numel() == 1 and key == "step":
                of_flat[key] = value.to(piece.flat.device, copy=True)
                continue
            if key not in of_flat:
                of_flat[key] = torch.zeros_like(piece.flat.data)
            piece.of(of_flat[key]).copy_(value[here])
    if whole:
        engine.optimizer.checkpoint_event_epilogue()


class Saved:
    """The states of each parameter in a checkpoint of DeepSpeed 0.19, its files mapped, not read. `order`: names as the optimizer of a whole model
    has them. Stages of a pipeline each have files of their own (mp_rank), with their parameters only."""

    def __init__(self, path: Path, order: list[str]):
        self._parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in order}
        shards = sorted(path.glob("*zero_pp_rank_*_mp_rank_*_optim_states.pt"), key=_rank)
        try:
            if not shards:
                for whole in list(path.glob("mp_rank_*_model_states.pt")) or [path / "mp_rank_00_model_states.pt"]:
                    self._stage_0(_mapped(whole), order)
            for shard in shards:
                held = _mapped(shard)["optimizer_state_dict"]
                if "fp32_flat_groups" in held:
                    shapes = _mapped(path / f"zero_pp_rank_{_rank(shard)}_mp_rank_00_model_states.pt")["param_shapes"]
                    self._stage_3(held, shapes, _rank(shard), len(shards))
                else:
                    self._stage_1(held)
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is not laid out as DeepSpeed 0.19 lays out checkpoints ({error!r}). Resume it as it was saved."
            ) from None

    def states(self, name: str) -> dict[str, Tensor]:
        """The fp32 weights and each optimizer state of a parameter, flat, [numel]; `step` as it is."""
        parts = self._parts[name]
        if not parts:
            raise CheckpointError(f"the checkpoint holds nothing of {name}. It is of another model.")
        return {key: parts[0][key] if key == "step" else torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _add(self, name: str, flats: dict[str, Any], begin: int, size: int) -> None:
        if name in self._parts and size:
            self._parts[name].append({key: flat if key == "step" else flat.view(-1).narrow(0, begin, size) for key, flat in flats.items()})

    def _stage_0(self, held: dict[str, Any], order: list[str]) -> None:
        for number, name in enumerate(name for name in order if name in held["module"]):
            weight = held["module"][name]
            self._add(name, {WEIGHT: weight, **held["optimizer"]["state"][number]}, 0, weight.numel())

    def _stage_1(self, held: dict[str, Any]) -> None:
        base = held["base_optimizer_state"]["state"]
        for number, (flat, places) in enumerate(zip(held["single_partition_of_fp32_groups"], held["param_slice_mappings"], strict=True)):
            for name, place in places.items():
                self._add(name, {WEIGHT: flat, **base[number]}, place.start, place.numel)

    def _stage_3(self, held: dict[str, Any], shapes: list[dict[str, torch.Size]], rank: int, ranks: int) -> None:
        base = held["optimizer_state_dict"]["state"]
        for number, (flat, group) in enumerate(zip(held["fp32_flat_groups"], shapes, strict=True)):
            begin = 0
            for name, shape in group.items():
                part = -(-shape.numel() // ranks)
                self._add(name, {WEIGHT: flat, **base[number]}, begin, max(0, min(part, shape.numel() - rank * part)))
                begin += part


def _rank(path: Path) -> int:
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _mapped(path: Path) -> dict[str, Any]:
    # DeepSpeed pickles classes of its own; the sha256 of the file was compared with complete.json before
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
