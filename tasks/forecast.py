"""What a training will take here, by how fast earlier ones were; and how far off that was.

    made = forecast(store, recipe.model, recipe.pretrain, vocab)        before: memory, tokens, FLOPs, seconds, and by what it is known
    told(manifest)                                                      after: forecast beside what happened

Speed is FLOP/s: that of the pretraining in the store that is nearest in FLOPs a token, on the same device in the same precision; where there is
none, of a probe of a second or two.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig, TrainConfig, from_dict
from tasks.corpus.manifest import Manifest, Store
from tasks.curves import Row, curve

if TYPE_CHECKING:
    from model.forecast import Memory, Work

OBJECTIVES = ("causal", "masked", "spans", "mixed", "contrastive")
"""What forecasts know; of heads and adapters on a start they say nothing."""


@dataclass(frozen=True)
class Forecast:
    """Of one training."""

    work: "Work"
    """Parameters, tokens, FLOPs."""
    memory: "Memory"
    """Of one rank, bytes."""
    speed: float
    """FLOP/s of all ranks together."""
    tokens_per_s: float
    """The same in tokens of training."""
    by: str
    """What the speed is known by."""
    device: str
    """Name of what it runs on."""
    devices: int
    """How many of these are paid for: GPUs, or one machine."""
    resident: int
    """Most bytes of one rank: on a CPU the copy of a checkpoint lies in the same memory."""

    @property
    def seconds(self) -> float:
        """Training and validation, without start and saving."""
        return self.work.flops / self.speed

    def cost(self, price: float) -> float:
        """At a price per device and hour."""
        return self.seconds / 3600 * self.devices * price


def knows(shape: ModelConfig, train: TrainConfig) -> bool:
    """Whether a training can run and is of a kind that a forecast can be made of."""
    return train.adapter is None and train.objective.kind in OBJECTIVES and train.length <= shape.context


def forecast(store: Store, shape: ModelConfig, train: TrainConfig, vocab: int, valid: bool = True) -> Forecast:
    """Of a training as configured, on this machine. `valid`: there is text to validate on."""
    from model import forecast as model
    from model.peak import named
    from model.transformer import flops_per_token

    device = model.device_of(train)
    cuda, name, each = device.type == "cuda", named(device), flops_per_token(shape, vocab, train.length)
    known = nearest(store, name, train.precision, each)
    if known:
        manifest, speed = known
        by = f"{manifest.address}, {speed / each:,.0f} tokens/s at this size"
        if cuda:
            speed *= train.ranks / manifest.info["ranks"]
    else:
        tried = model.probe(shape, train, vocab)
        speed = tried.step * (train.ranks if cuda else 1)
        of = f" of a matrix product's {tried.product / 1e9:,.0f}" if tried.product else ""
        by = f"a probe of {tried.seconds:.1f} s: {tried.step / 1e9:,.0f} GFLOP/s{of}"
    memory = model.memory(shape, train, vocab, cuda)
    resident = memory.peak + (0 if cuda else memory.copy)
    return Forecast(model.work(shape, train, vocab, valid), memory, speed, speed / each, by, name, train.ranks if cuda else 1, resident)


def nearest(store: Store, device: str, precision: str, flops: float) -> tuple[Manifest, float] | None:
    """Of the pretrainings that had the device to themselves, that whose FLOPs a token are nearest, and its FLOP/s; None where there is none."""
    from model.transformer import flops_per_token

    found: list[tuple[float, float, Manifest, float]] = []
    for address in store.addresses("pretrain"):
        manifest = store.manifest(address)
        if manifest is None or manifest.info.get("beside") != 1 or manifest.info["final"].get("device") != device:
            continue
        settings = manifest.made_of["config"]["train"]
        rate = pace(curve(store, manifest))
        if settings["precision"] == precision and rate:
            theirs = flops_per_token(from_dict(ModelConfig, manifest.info["model"]), manifest.info["vocab"], settings["length"])
            found.append((abs(math.log(theirs / flops)), -manifest.about["finished"], manifest, rate * theirs))
    _, _, manifest, speed = min(found, key=lambda one: one[:2]) if found else (0.0, 0.0, None, 0.0)
    return None if manifest is None else (manifest, speed)


def pace(rows: Sequence[Row]) -> float:
    """Tokens/s of the middle step, the first left out; 0 where there is none."""
    rates = [row["tokens_per_s"] for row in rows if "tokens_per_s" in row]
    return statistics.median(rates[1:] or rates or [0.0])


def record(made: Forecast | None, rows: Sequence[Row], final: Row) -> dict[str, Any]:
    """What a manifest's info says of a forecast and of what happened."""
    took = sum(row.get("seconds", 0.0) + row.get("valid_seconds", 0.0) for row in rows)
    happened = {"seconds": took, "tokens_per_s": pace(rows), "bytes": final["bytes"]}
    said = None if made is None else {"seconds": made.seconds, "tokens_per_s": made.tokens_per_s, "bytes": made.resident, "by": made.by}
    return {"forecast": said, "happened": happened}


def told(manifest: Manifest) -> str:
    """A line on how far off the forecast was; '' where none was made."""
    said, was = manifest.info.get("forecast"), manifest.info.get("happened")
    if not said or not was:
        return ""
    took = f"forecast {said['seconds']:,.1f} s, took {was['seconds']:,.1f} ({was['seconds'] / said['seconds'] - 1:+.0%})"
    room = f"memory of a rank {said['bytes'] / 2**20:,.0f} MiB, was {was['bytes'] / 2**20:,.0f} ({was['bytes'] / said['bytes'] - 1:+.0%})"
    return f"{took}; {room}; by {said['by']}"
