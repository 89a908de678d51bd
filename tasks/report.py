"""What people see of a run: progress while a stage works, a table and a report at its end.

`Watch` turns a stage's progress calls into a Prefect artifact (long stages only) and into whatever the command line listens with.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from tasks.corpus.manifest import Manifest
from tasks.space import told
from tasks.tracking import run_name

Listener = Callable[[str, float, float, str], None]
"""listener(stage, done, total, unit); total 0 where it is not known; unit 'done' when the stage has ended."""
listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
ARTIFACT_EVERY = 5.0
"""Seconds before the first, and between updates of, a stage's progress artifact."""


@contextmanager
def watch(stage: str) -> Iterator[Callable[[float, float, str], None]]:
    """A progress function for one stage; shows in Prefect's UI once the stage has taken a while, and in the terminal at once."""
    listen = listener.get()
    artifact: Any = None
    last = time.monotonic()

    def progress(done: float, total: float, unit: str) -> None:
        nonlocal artifact, last
        if listen:
            listen(stage, done, total, unit)
        if total and time.monotonic() - last > ARTIFACT_EVERY:
            from prefect.artifacts import create_progress_artifact, update_progress_artifact

            last = time.monotonic()
            share = min(100.0, 100 * done / total)
            if artifact is None:
                artifact = create_progress_artifact(share, key=progress_key(stage), description=f"{stage}: {unit}")
            else:
                update_progress_artifact(artifact, share)

    if listen:
        listen(stage, 0, 0, "")
    yield progress
    if artifact is not None:
        from prefect.artifacts import update_progress_artifact

        update_progress_artifact(artifact, 100.0)


def progress_key(stage: str) -> str:
    """A key that Prefect takes: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{stage} progress".lower())


def ended(manifest: Manifest) -> Manifest:
    """Tell the terminal and the run's log that a stage has ended; returns its manifest."""
    listen = listener.get()
    if listen:
        listen(manifest.stage, manifest.kept, manifest.seen, "complete" if manifest.skipped else "done")
    if TaskRunContext.get() is not None:
        cells = row(manifest)
        took = "complete before" if manifest.skipped else f"in {cells['seconds']} s"
        rejected = f", set aside: {cells['rejected']}" if cells["rejected"] else ""
        get_run_logger().info("%s %s: %s in, %s out%s; %s", cells["stage"], took, cells["in"], cells["out"], rejected, cells["where"])
    return manifest


def row(manifest: Manifest) -> dict[str, str]:
    """One line of the closing table."""
    reasons = sorted(manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:4]) + (f", {len(reasons) - 4} more" if len(reasons) > 4 else "")
    return {
        "stage": run_name(manifest),
        "in": f"{manifest.seen:,}",
        "out": f"{manifest.kept:,}",
        "rejected": shown,
        "seconds": "complete" if manifest.skipped else f"{manifest.about['seconds']:.1f}",
        "where": manifest.address,
    }


def finals(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    """The finalists of a sweep's output as rows of a table: name, settings, how many seeds, mean ± standard error or how it ended."""
    rows = []
    for row in manifest.info["finalists"]:
        error = "" if row["error"] is None else f" ± {row['error']:.4f}"
        loss = ", ".join(row["ends"]) if row["mean"] is None else f"{row['mean']:.4f}{error}"
        rows.append((row["name"], told(row["settings"]) or "as they are", str(len(row["losses"])), loss))
    return rows


def markdown(
    title: str, manifests: Sequence[Manifest], metrics: Mapping[str, float], links: Mapping[str, str], curve: Sequence[Mapping[str, Any]]
) -> str:
    """The report of a flow: what came of it, links, counts, all rejection reasons, loss curve, scores, answers."""
    last = {manifest.stage: manifest for manifest in manifests}
    lines = [f"# {title}", "", *(f"- {fact}" for fact in _facts(manifests, last))]
    lines += [f"- {name}: " + (f"[{url}]({url})" if url.startswith("http") else f"`{url}`") for name, url in links.items()]
    lines += _table("Stages", ("stage", "in:", "out:", "set aside:", "seconds:", "where"), [_cells(manifest) for manifest in manifests])
    drawn = sparkline(curve)
    lines += ["", "## Loss of pretraining", "", "```", *drawn, "```"] if drawn else []
    lines += _table("Evaluation", ("metric", "value:", "parts"), _scores(metrics))
    if "sweep" in last:
        lines += _table("Finalists", ("name", "settings", "seeds:", "valid_loss:"), finals(last["sweep"]))
        lines += ["", last["sweep"].info["verdict"]["why"]]
    answers = last["evaluate"].info.get("samples", []) if "evaluate" in last else []
    lines += _table("Answers", ("asked", "answered"), [(sample["prompt"], sample["text"]) for sample in answers])
    rejected = [
        (run_name(m), reason, count, m.seen)
        for m in manifests
        for reason, count in sorted(m.rejected.items(), key=lambda r: -r[1])
        if count
    ]
    lines += _table(
        "Why records were set aside",
        ("stage", "reason", "records:", "share of what came in:"),
        [(stage, reason, f"{count:,}", f"{count / seen:.1%}") for stage, reason, count, seen in rejected],
    )
    return "\n".join(lines) + "\n"


def _facts(manifests: Sequence[Manifest], last: Mapping[str, Manifest]) -> list[str]:
    """What a reader wants first."""
    facts = []
    if "extract" in last and "decontaminate" in last:
        seen, kept = last["extract"].seen, last["decontaminate"].kept
        facts.append(f"**{kept:,} documents** of {seen:,} records ({kept / max(1, seen):.0%})")
    if "encode" in last:
        facts.append(f"**{sum(last['encode'].info['tokens'].values()):,} tokens** in the shards")
    if "register" in last:
        info = last["register"].info
        champion = "now champion" if info["champion"] else "a candidate, not champion"
        facts.append(f"**{info['name']} version {info['version']}** is {champion}: {info['why']}")
    made = [m for m in manifests if not m.skipped]
    facts.append(
        f"{len(made)} stages ran in {sum(m.about['seconds'] for m in made):,.0f} s, {len(manifests) - len(made)} were complete before"
    )
    return facts


def _cells(manifest: Manifest) -> tuple[str, ...]:
    """As `row`, with the number of rejects for their reasons, which have a table of their own."""
    cells = row(manifest) | {"rejected": f"{sum(manifest.rejected.values()):,}", "where": f"`{manifest.address}`"}
    return tuple(cells.values())


def _scores(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Metrics in order, each with its parts (`choice/facts_en` is a part of `choice`) beside it."""
    parts = {name: name.rpartition("/")[0] for name in metrics if name.rpartition("/")[0] in metrics}
    return [
        (name, f"{value:.4f}", ", ".join(f"{part.rpartition('/')[2]} {metrics[part]:.4f}" for part in sorted(parts) if parts[part] == name))
        for name, value in sorted(metrics.items())
        if name not in parts
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A section with a table; nothing without rows. A column whose name ends in a colon stands to the right."""
    if not rows:
        return []
    head = [column.rstrip(":") for column in columns]
    rule = ["---:" if column.endswith(":") else "---" for column in columns]
    body = [[" ".join(cell.replace("|", "\\|").split()) for cell in cells] for cells in rows]
    return ["", f"## {title}", "", *("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))]


def sparkline(curve: Sequence[Mapping[str, Any]], width: int = 60, height: int = 8) -> list[str]:
    """A loss curve in characters: rows {'step', 'loss'} averaged into `width` columns."""
    losses = [float(r["loss"]) for r in curve if "loss" in r]
    if not losses:
        return []
    columns = min(width, len(losses))
    means = [
        sum(part) / len(part) for part in (losses[i * len(losses) // columns : (i + 1) * len(losses) // columns] for i in range(columns))
    ]
    low, high = min(means), max(means)
    level = [round((m - low) / ((high - low) or 1) * (height - 1)) for m in means]
    rows = ["".join("█" if at >= line else " " for at in level) for line in range(height - 1, -1, -1)]
    return [
        f"{high:8.3f} ┤{rows[0]}",
        *(f"         │{r}" for r in rows[1:-1]),
        f"{low:8.3f} ┤{rows[-1]}",
        f"          step 1 … {curve[-1]['step']}",
    ]
