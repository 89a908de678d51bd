"""Scores with their uncertainty: 95% intervals of one model's, and of the difference of two that were asked the same items.

    rows = intervals(items)                      # score -> (low, high)
    table = compare(store, one, other)           # evaluate manifests -> a Difference a score

Bootstrap over items (Efron and Tibshirani 1993), percentiles, seeded. What two models contribute to one item goes together (paired), so that what makes
an item hard for both is no noise. The interval of a mean over files resamples each file. A score without its own items has none.
"""

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from model.errors import InputError, NotFoundError
from model.evaluate import Item
from tasks.corpus.manifest import Manifest, Store

ITEMS = "items.parquet"
"""File of an evaluate stage: what each item contributes to each score."""
DRAWS = 1000
SAID = ("better", "worse", "within the noise")


@dataclass(frozen=True)
class Difference:
    """One score of two models, of the items that both were scored on."""

    score: str
    one: float
    other: float
    items: int | None
    """How many they are; None where the score has none of its own."""
    low: float | None
    """Bounds of 95% of other - one; None where the score has no items of its own."""
    high: float | None
    verdict: str
    """What the other is to the one: one of SAID, or '' without bounds."""


def lower_is_better(score: str) -> bool:
    """Bits per byte and losses count as better when lower, all else when higher."""
    return "bits_per_byte" in score or "loss" in score


def read_items(store: Store, manifest: Manifest) -> list[Item]:
    """Items of an evaluate stage. InputError for one that was scored before they were kept."""
    file = next((file for file in manifest.files if file.path == ITEMS), None)
    if file is None:
        raise InputError(f"{manifest.address} keeps no items: it was scored by an older Ingot. Run its recipe again.")
    table = pq.read_table(store.path(manifest, file))
    return [Item(*row) for row in zip(*(table[name].to_pylist() for name in Item._fields), strict=True)]


def intervals(items: Iterable[Item]) -> dict[str, tuple[float, float]]:
    """Bounds of 95% of each score and of each mean over files."""
    return {name: bounds(draws) for name, draws in resampled({n: [_pairs(rows)] for n, rows in grouped(items).items()}).items()}


def bounds(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of draws."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def grouped(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Items by score."""
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.score].append(item)
    return dict(found)


def resampled(scores: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """DRAWS values of each score, of two models that of the second less that of the first, and of means over files.

    `scores`: of each model (value, size) an item, [items, 2], in the same order.
    """
    found: dict[str, np.ndarray] = {}
    members: dict[str, list[str]] = defaultdict(list)
    for name, models in scores.items():
        count = len(models[0])
        random = np.random.default_rng([count, zlib.crc32(name.encode())])  # files of equal length are drawn from apart
        draws = []
        for _ in range(DRAWS):
            chosen = random.integers(0, count, count)
            made = [_score(name, rows[chosen]) for rows in models]
            draws.append(made[0] if len(made) == 1 else made[1] - made[0])
        found[name] = np.array(draws)
        if (head := _mean_over(name, scores)) is not None:
            members[head].append(name)
    return found | {head: np.mean([found[name] for name in names], axis=0) for head, names in members.items()}


def _mean_over(name: str, scores: Collection[str]) -> str | None:
    """The mean that a file's score goes into: choice of choice/facts; None of bits per byte, whose whole has items of its own."""
    head, _, file = name.partition("/")
    return head if file and head not in scores else None


def score(name: str, rows: Sequence[Item]) -> float:
    """The score of these items alone."""
    return _score(name, _pairs(rows))


def _score(name: str, rows: np.ndarray) -> float:
    values, sizes = rows[:, 0], rows[:, 1]
    if name.startswith("similarity"):
        from scipy.stats import spearmanr

        return float(spearmanr(values, sizes).statistic) if len(set(values)) > 1 < len(set(sizes)) else 0.0
    return float(values.sum() / sizes.sum())


def _pairs(rows: Sequence[Item]) -> np.ndarray:
    return np.array([(row.value, row.size) for row in rows], dtype=np.float64)


def compare(store: Store, one: Manifest, other: Manifest) -> list[Difference]:
    """Every score that two evaluate stages share. InputError where they were asked different items, since that compares the questions."""
    if one.inputs["evaluation"] != other.inputs["evaluation"] and (
        store.need(one.inputs["evaluation"]).content != store.need(other.inputs["evaluation"]).content
    ):
        raise InputError(
            f"{one.address} was scored on {one.inputs['evaluation']}, {other.address} on {other.inputs['evaluation']}: scores of different items do "
            "not compare. Evaluate both on the same files (evaluation.paths)."
        )
    first, second = (grouped(read_items(store, manifest)) for manifest in (one, other))
    paired: dict[str, list[np.ndarray]] = {}
    for name in first.keys() & second.keys():
        sides = [{row.item: row for row in rows[name]} for rows in (first, second)]
        shared = sorted(sides[0].keys() & sides[1].keys())  # one of them may have set some aside as too long
        if shared:
            paired[name] = [_pairs([side[item] for item in shared]) for side in sides]
    draws, alone = resampled(paired), {name: [_score(name, rows) for rows in models] for name, models in paired.items()}
    counts = {name: len(models[0]) for name, models in paired.items()}
    for name in list(alone):
        if (head := _mean_over(name, paired)) is not None:
            files = [file for file in paired if _mean_over(file, paired) == head]
            alone[head] = [sum(alone[file][side] for file in files) / len(files) for side in (0, 1)]
            counts[head] = sum(counts[file] for file in files)
    rows = []
    for name in sorted(one.info["metrics"].keys() & other.info["metrics"].keys()):
        ours, theirs = alone.get(name, [one.info["metrics"][name], other.info["metrics"][name]])
        rows.append(_difference(name, ours, theirs, counts.get(name), draws.get(name)))
    return rows


def _difference(name: str, one: float, other: float, items: int | None, draws: np.ndarray | None) -> Difference:
    if draws is None:
        return Difference(name, one, other, None, None, None, "")
    low, high = bounds(draws)
    within = low <= 0 <= high
    better = (other < one) == lower_is_better(name)
    return Difference(name, one, other, items, low, high, SAID[2] if within else SAID[0] if better else SAID[1])


def scored(store: Store, one: Manifest, other: Manifest) -> tuple[Manifest, Manifest]:
    """The newest evaluate stages of two models (or these, if they are such stages), of the same items if there are any. NotFoundError where one has none."""
    sides = []
    for manifest in (one, other):
        if manifest.stage == "evaluate":
            sides.append([manifest])
            continue
        every = (store.manifest(address) for address in store.addresses() if address.startswith("stages/evaluate/"))
        mine = [made for made in every if made and manifest.address in (made.inputs["model"], made.inputs["base"])]
        if not mine:
            raise NotFoundError(
                f"{manifest.address} was not evaluated in {store.url}. Run its recipe to the end, or name an evaluate stage."
            )
        sides.append(sorted(mine, key=lambda made: made.about["finished"], reverse=True))
    alike = ((a, b) for a in sides[0] for b in sides[1] if a.inputs["evaluation"] == b.inputs["evaluation"])
    return next(alike, (sides[0][0], sides[1][0]))


def figure(table: Sequence[Difference], names: tuple[str, str]) -> Any:
    """A matplotlib figure of the gains with their intervals; to the right the second model is better."""
    from matplotlib.figure import Figure

    shown = [row for row in reversed(table) if row.low is not None]
    made = Figure(figsize=(8, 1.2 + 0.28 * len(shown)), layout="constrained")
    axes = made.add_subplot()
    for place, row in enumerate(shown):
        assert row.low is not None and row.high is not None
        sign = -1 if lower_is_better(row.score) else 1
        colour = dict(zip(SAID, ("tab:green", "tab:red", "tab:gray"), strict=True))[row.verdict]
        axes.plot((sign * row.low, sign * row.high), (place, place), color=colour, linewidth=2)
        axes.plot(sign * (row.other - row.one), place, "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row.score for row in shown])
    made.supxlabel(f"gain of {names[1]}\nover {names[0]}, 95% of a paired bootstrap", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    return made


def written(items: Sequence[Item], path: Path) -> None:
    """Write items.parquet."""
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(item, name) for item in items] for name in Item._fields}
    pq.write_table(pa.table(columns), path, compression="zstd")
