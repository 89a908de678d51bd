"""The main text of a serialised page: blocks, two small forests that judge them, and the lines of those chosen.

    page = read(html, nodes=20_000, depth=200)      ->  elements and depth of the page, its blocks
    main_text(page, TABLE)                          ->  ("First line.\\nSecond line.", 0.93)

The first forest sees a block's features (blocks.py), the second also what the first said of the blocks around it: main text stands together. Chosen are the
blocks with the greatest expected F1, so no threshold is set by hand. The forests are in main_text.json, made by tests/benchmarks/train_main_text.py.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.corpus import blocks as b
from tasks.corpus.page import clean


@dataclass(frozen=True)
class Page:
    """A page as `blocks.scan` reads it; `blocks` and `nodes` lack what lies beyond the limits."""

    html: npt.NDArray[np.uint8]
    elements: int
    depth: int
    text: npt.NDArray[np.uint8]
    blocks: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]
    facts: npt.NDArray[np.int64]
    marks: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """Bytes of the serialised page."""
        return len(self.html)


@dataclass(frozen=True)
class Forest:
    """Oblivious trees over named columns: shapes (trees, depth), (trees, depth), (trees, 2^depth)."""

    columns: npt.NDArray[np.int64]
    thresholds: npt.NDArray[np.float32]
    leaves: npt.NDArray[np.float32]

    @classmethod
    def from_table(cls, trees: list[dict[str, Any]], names: tuple[str, ...]) -> "Forest":
        place = {name: number for number, name in enumerate(names)}
        columns = [[place[name] for name, _ in tree["asks"]] for tree in trees]
        thresholds = [[bound for _, bound in tree["asks"]] for tree in trees]
        return cls(np.array(columns, np.int64), np.array(thresholds, np.float32), np.array([tree["leaves"] for tree in trees], np.float32))

    def chances(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The chance of each row that it is main text."""
        scores = np.zeros(len(rows))
        b.forest(rows, self.columns, self.thresholds, self.leaves, scores)
        return 1 / (1 + np.exp(-scores))


@cache
def forests(path: Path) -> tuple[Forest, Forest]:
    """The two forests of a table."""
    table = json.loads(path.read_text())
    return Forest.from_table(table["first"], b.FEATURES), Forest.from_table(table["second"], b.FEATURES + b.CONTEXT)


def read(html: str, nodes: int, depth: int) -> Page:
    """Read what lexbor serialised. A page beyond a limit has `elements` > nodes or `depth` > depth."""
    data = np.frombuffer(html.encode(), np.uint8)
    text, found, tree, facts, marks = b.scan(data, nodes, depth)
    return Page(data, int(facts[0]), int(facts[1]), text, found, tree, facts, marks)


def chances(page: Page, table: Path) -> npt.NDArray[np.float64]:
    """The chance of each block that it is main text."""
    first, second = forests(table)
    rows = b.describe(page.blocks, page.nodes, page.facts, page.size)
    return second.chances(np.hstack([rows, b.context(page.blocks, page.nodes, first.chances(rows))]))


def main_text(page: Page, table: Path) -> tuple[str, float]:
    """The main text, and the F1 that is expected of it. ("", 0.0) where a page has no text."""
    if not len(page.blocks):
        return "", 0.0
    chance = chances(page, table)
    chosen = np.zeros(len(chance), np.bool_)
    expected = b.choose(page.blocks, chance, chosen)
    return written(page, chosen), float(expected)


def written(page: Page, chosen: npt.NDArray[np.bool_]) -> str:
    """The chosen blocks as lines: list items begin with "- ", cells of one table row share a line, preformatted text is as it was."""
    data = page.text.tobytes()
    found = page.blocks[chosen]
    lines: list[str] = []
    last_row = last_item = 0
    for (start, end), (item, row) in zip(found[:, [b.START, b.END]].tolist(), b.lines_of(found, page.nodes).tolist(), strict=True):
        text = data[start:end].decode("utf-8", "replace")
        text = clean(text) if "\n" in text else text.strip()
        if row and row == last_row:
            lines[-1] += " | " + text.replace("\n", " ")
        elif item and item != last_item:
            lines.append("- " + text)
        else:
            lines.append(text)
        last_row, last_item = row, item
    return "\n".join(lines)
