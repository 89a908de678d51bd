"""What a sweep varies: dotted fields of a recipe's sections model and pretrain, each with choices or a range, and the settings that a point makes.

    axes, fixed = split({"pretrain.lr": "1e-4..1e-2:log", "pretrain.batch": "8,16", "model.width": "64"})
    space = parse(base, axes)                       # {"pretrain.batch": Choices((8, 16)), "pretrain.lr": Range(1e-4, 1e-2, log=True, whole=False)}
    settled(base, {"pretrain.lr": 3e-3, "pretrain.batch": 16})

Every point sees as many tokens as the recipe and is measured on the same held-out rows: steps and what is counted in them follow the batch.
"""

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model.config import STRICT, ModelConfig, TrainConfig, canonical, identity, override, to_dict, typed
from model.errors import ConfigError

RANGE = re.compile(r"(?P<low>[^,]*?)\.\.(?P<high>[^,]*?)(?P<log>:log)?")
MOST_CHECKED = 2000
"""Points whose settings are checked before anything runs; of more, so many by lot."""
FIXED = {
    "pretrain.objective": "losses of two objectives do not compare",
    "pretrain.length": "validation would measure other texts; set it to one value",
    "pretrain.steps": "every trial sees the same tokens; set it to one value",
    "pretrain.seed": "the best trials are repeated with further seeds: --seeds",
    "pretrain.adapter": "an adapter trains beside a start; set it to one value",
}
"""What no sweep varies, and why."""


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    __pydantic_config__ = STRICT

    values: tuple[Any, ...]
    """Plain data, two or more, no two alike."""


@dataclass(frozen=True)
class Range:
    """Any number from low to high, both included."""

    __pydantic_config__ = STRICT

    low: float
    """Least."""
    high: float
    """Greatest, above low."""
    log: bool
    """Drawn evenly by order of magnitude."""
    whole: bool
    """Whole numbers only."""


Space = dict[str, Choices | Range]
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Sections:
    """The sections of a recipe that a sweep varies."""

    __pydantic_config__ = STRICT

    model: ModelConfig
    """Shape of the model."""
    pretrain: TrainConfig
    """Settings of the loop."""


def split(words: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A command's `field=word` pairs as those that span a space and those that fix one value. JSON objects and lists fix one."""
    axes = {
        name: word
        for name, word in words.items()
        if name.startswith(("model.", "pretrain.")) and (RANGE.fullmatch(word) or len(_choices(word)) > 1)
    }
    return axes, {name: word for name, word in words.items() if name not in axes}


def parse(base: Sections, axes: Mapping[str, Any]) -> Space:
    """The space that words span: `a..b`, `a..b:log`, `a,b,c`, or a list of values. Every point of it (of many: 2,000 by lot) is one that the recipe takes.

    ConfigError names an unknown field, one that no sweep varies, an empty range, or the point that is refused and why.
    """
    if not axes:
        raise ConfigError("a sweep needs a field to vary, for example pretrain.lr=1e-4..1e-2:log or model.width=64,128")
    space = {name: _axis(name, axes[name], _held(base, name)) for name in sorted(axes)}
    batches = space.get("pretrain.batch")
    if isinstance(batches, Range):
        raise ConfigError("pretrain.batch takes choices, for example pretrain.batch=8,16: few numbers divide evenly among ranks")
    rows = base.pretrain.valid_batches * base.pretrain.batch
    for batch in batches.values if batches else ():
        if rows % batch:
            raise ConfigError(
                f"pretrain.batch={batch}: validation has {rows} rows (valid_batches × batch), which must be a multiple of it; "
                f"set pretrain.valid_batches to {math.lcm(batch, base.pretrain.batch) // base.pretrain.batch}"
            )
    for point in _tried(space):
        try:
            made = settled(base, point)
        except ConfigError as error:
            raise ConfigError(f"the space holds {told(point)}, which the recipe refuses: {str(error).removeprefix('Sections: ')}") from None
        if made.pretrain.length > made.model.context:
            raise ConfigError(f"the space holds {told(point)}: pretrain.length ({made.pretrain.length}) exceeds model.context")
    return space


def settled(base: Sections, point: Point) -> Sections:
    """The settings of a point: the base's with these fields, and with as many tokens, validations and held-out rows as the base has."""
    made = override(base, dict(point))
    old, batch = base.pretrain, made.pretrain.batch
    if batch == old.batch:
        return made
    ratio = old.batch / batch
    steps = max(1, round(old.steps * ratio))
    follow = {
        "steps": steps,
        "warmup": int(made.pretrain.warmup * ratio),
        "decay": int(made.pretrain.decay * ratio),
        "valid_every": old.valid_every and max(1, steps * old.valid_every // old.steps),
        "valid_batches": max(1, old.valid_batches * old.batch // batch),
        "save_every": max(1, round(old.save_every * ratio)),
    }
    # at once: with more steps of warm-up than steps, what is between would be refused
    return override(base, {**point, **{f"pretrain.{name}": value for name, value in follow.items()}})


def told(point: Point) -> str:
    """A point as words of the command line."""
    return " ".join(f"{name}={shown(value)}" for name, value in sorted(point.items()))


def shown(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def drawn(axis: Range, value: float) -> int | float:
    """A number of a range with as many digits as a person would type, 4, so that it can be told and found again."""
    return int(value) if axis.whole else min(max(float(f"{value:.4g}"), axis.low), axis.high)


def grid(space: Space, most: int) -> list[dict[str, Any]] | None:
    """All points of a space that has no more than `most`, in order; None where it has more."""
    if not all(isinstance(axis, Choices) for axis in space.values()):
        return None
    values = [axis.values for axis in space.values() if isinstance(axis, Choices)]
    if math.prod(map(len, values)) > most:
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def _held(base: Sections, name: str) -> Any:
    """What a field holds in the base. ConfigError for a name that is no field, or that no sweep varies."""
    why = next((why for field, why in FIXED.items() if name == field or name.startswith(f"{field}.")), "")
    if why:
        raise ConfigError(f"{name} cannot be swept: {why}")
    if not name.startswith(("model.", "pretrain.")):
        raise ConfigError(f"{name} cannot be swept: trials differ in fields of model and pretrain")
    value: Any = to_dict(base)
    override(base, {name: _at(value, name)})  # tells an unknown field
    value = _at(value, name)
    if _at(identity(base), name) is None and value is not None:
        raise ConfigError(f"{name} cannot be swept: it changes no result")
    return value


def _at(data: Any, name: str) -> Any:
    for part in name.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _axis(name: str, word: Any, held: Any) -> Choices | Range:
    found = RANGE.fullmatch(word) if isinstance(word, str) else None
    if found:
        return _range(name, word, found, held)
    values = [typed(text, held) for text in _choices(word)] if isinstance(word, str) else list(word)
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ConfigError(f"{name}={word}: a choice is no finite number")
    kept = {canonical(value): value for value in values}
    if "" in values:
        raise ConfigError(f"{name}={word}: a choice is empty")
    if len(kept) < len(values) or len(values) < 2:
        raise ConfigError(f"{name}={word if isinstance(word, str) else shown(word)}: choices are two or more different values")
    return Choices(tuple(values))


def _range(name: str, word: str, found: re.Match[str], held: Any) -> Range:
    if isinstance(held, bool) or not isinstance(held, int | float):
        raise ConfigError(f"{name}={word}: {name} is no number; give choices, for example {name}={shown(held)},…")
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{name}={word}: a range has a number on either side, for example 1e-4..1e-2:log")
    if low >= high:
        raise ConfigError(f"{name}={word}: the range is empty; the first number must be below the second")
    if found["log"] and low <= 0:
        raise ConfigError(f"{name}={word}: a range by order of magnitude begins above 0")
    whole = isinstance(held, int)
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{name}={word}: {name} takes whole numbers")
    return Range(low, high, bool(found["log"]), whole)


def _choices(word: str) -> list[str]:
    """A word cut at its commas, but for those within brackets and quotes."""
    depth, quoted, parts = 0, False, [""]
    for sign in word:
        quoted ^= sign == '"'
        depth += 0 if quoted else (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _tried(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of choices and ends of ranges; of very many, some by lot."""
    ends = [axis.values if isinstance(axis, Choices) else (drawn(axis, axis.low), drawn(axis, axis.high)) for axis in space.values()]
    if math.prod(map(len, ends)) <= MOST_CHECKED:
        points = list(itertools.product(*ends))
    else:
        chance = random.Random(0)
        points = [tuple(chance.choice(values) for values in ends) for _ in range(MOST_CHECKED)]
    yield from (dict(zip(space, point, strict=True)) for point in points)
