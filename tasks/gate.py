"""The gate: whether a candidate becomes champion, and why (not)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.compare import lower_is_better
from tasks.corpus.manifest import Manifest
from tasks.evaluate import EVALUATE
from tasks.mlflow_client import is_lost


@dataclass(frozen=True)
class Standing:
    """What the gate compares with: a version, what it was scored on and by, and its scores."""

    version: str
    evaluation: str
    scores: Mapping[str, float]


def standing(client: Any, name: str, alias: str) -> Standing | None:
    """The version that an alias refers to, with the scores of its logged model; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, alias)
        scores = {m.key: m.value for m in client.get_logged_model(model_id(version)).metrics or ()}
    except MlflowException as error:
        if is_lost(error):
            raise
        return None
    return Standing(str(version.version), version.tags.get("ingot.evaluation", ""), scores)


def model_id(version: Any) -> str:
    """Id of a version's logged model; on sqlite the field is empty when the version was looked up by alias."""
    return str(version.model_id or version.source.rsplit("/", 1)[-1])


def evaluation_of(manifest: Manifest) -> str:
    """What scores are comparable on: the same evaluation files, scored by the same revision of evaluate."""
    return f"{EVALUATE.revision}-{manifest.content}"


def gate(metric: str, margin: float, scores: Mapping[str, float], evaluation: str, champion: Standing | None) -> tuple[bool, str]:
    """Whether a version with these scores becomes champion, and why (not). Scores of different evaluation sets are not compared."""
    score = scores[metric]
    if champion is None:
        return True, f"first version; {metric} {score:.4f}"
    against = f"champion {champion.version}"
    if champion.evaluation != evaluation:
        return False, f"not comparable with {against}: it was scored on other evaluation files"
    if metric not in champion.scores:
        return False, f"not comparable with {against}: it has no {metric}"
    theirs = champion.scores[metric]
    gain = theirs - score if lower_is_better(metric) else score - theirs
    verdict = "better" if gain > margin else "not better"
    return gain > margin, f"{metric} {score:.4f} against {theirs:.4f} of {against}: {verdict} by more than {margin:g}"
