"""Training curves: the rows of a stage's metrics.jsonl, which of their numbers MLflow gets, and a plot of the loss."""

import json
from collections.abc import Sequence
from typing import Any

from tasks.corpus.manifest import Manifest, Store

Row = dict[str, Any]
STREAMED = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "valid_loss",
    "valid_bits_per_token",
    "valid_accuracy",
    "valid_margin",
    "rss_bytes",
    "gpu_bytes",
)
"""Numbers of a row that are shown over steps."""


def curve(store: Store, manifest: Manifest) -> list[Row]:
    """Rows of a training stage's metrics.jsonl that have a step and a loss; empty for other stages."""
    found = next((f for f in manifest.files if f.path == "metrics.jsonl"), None)
    if found is None:
        return []
    with open(store.path(manifest, found), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if "step" in row and ("loss" in row or "valid_loss" in row)]


def points(row: Row) -> dict[str, float]:
    """The numbers of a row that are shown; empty for an event."""
    return {name: float(row[name]) for name in STREAMED if row.get(name) is not None} if "step" in row else {}


def place(row: Row) -> tuple[int, bool]:
    """What tells rows apart: a step has one training row and at most one of validation."""
    return int(row["step"]), "valid_loss" in row


def loss_figure(rows: Sequence[Row], title: str) -> Any:
    """A matplotlib figure of training and validation loss over steps. Made without pyplot, so no display and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (("loss", "training", "-"), ("valid_loss", "validation", "o-")):
        shown = [(row["step"], row[name]) for row in rows if name in row]
        if shown:
            axes.plot(*zip(*shown, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
