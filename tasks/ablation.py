"""Data ablation: what a choice in the corpus does to a model, as differences of scores with the noise of the seeds.

    manifest = ablation(store, recipe, config, {"base-1": evaluate manifest, …, "changed-1": …}) -> ablation.json; info: a row a score

Both sides were trained on the same number of tokens, in the same words, with the same seeds. The band is Welch's t at 95% over seeds.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import task

from model.config import STRICT
from tasks import policy
from tasks.compare import SAID, lower_is_better
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage
from tasks.report import ended, watch

ABLATION = Stage("ablation", 1)
SIDES = ("base", "changed")
SCORES = ("bits_per_byte", "minimal_pairs")
"""Shown, with what stands below them; multiple choice says nothing of models this small."""


@dataclass(frozen=True)
class AblationConfig:
    """What is compared."""

    __pydantic_config__ = STRICT

    changed: dict[str, Any]
    """Settings of the changed side, dotted."""
    seeds: int
    """Trainings of each side."""


@task(name="ablation", **policy.COMPUTE)
def ablation(store: Store, recipe: str, config: AblationConfig, inputs: Mapping[str, Manifest], rebuild: bool = False) -> Manifest:
    """Compare evaluate stages, seed by seed."""
    with watch("ablation") as progress:
        return ended(run_stage(store, ABLATION, recipe, config, inputs, lambda work: _body(work, config), progress, rebuild))


def _body(work: Work, config: AblationConfig) -> Result:
    sides = [[work.inputs[f"{side}-{seed}"].info["metrics"] for seed in range(1, config.seeds + 1)] for side in SIDES]
    names = [name for name in sorted(sides[0][0]) if name.partition("/")[0] in SCORES]
    rows = [compared(name, *([metrics[name] for metrics in side] for side in sides)) for name in names]
    (work.dir / "ablation.json").write_text(json.dumps(rows, indent=1))
    return Result([("ablation.json", None)], len(work.inputs), len(work.inputs), {}, {"scores": rows})


def compared(name: str, base: list[float], changed: list[float]) -> dict[str, Any]:
    """Means and deviations of both sides, their difference, half the width of its band (None with one seed), and what the changed side is."""
    from scipy.stats import ttest_ind

    means = [statistics.fmean(values) for values in (base, changed)]
    row: dict[str, Any] = {"score": name, "base": means[0], "changed": means[1], "difference": means[1] - means[0]}
    if len(base) < 2:
        return row | {"deviations": None, "band": None, "verdict": "one seed says nothing of noise"}
    row["deviations"] = [statistics.stdev(values) for values in (base, changed)]
    if not any(row["deviations"]):
        band = 0.0
    else:
        interval = ttest_ind(changed, base, equal_var=False).confidence_interval(0.95)
        band = float(interval.high - interval.low) / 2
    better = (row["difference"] < 0) == lower_is_better(name)
    verdict = SAID[2] if abs(row["difference"]) <= band else SAID[0] if better else SAID[1]
    return row | {"band": band, "verdict": verdict}
