"""What MLflow shows of a build: a parent run, under it one run a stage with parameters, counts, curves and datasets. The store stays the truth.

    tracker = start(store, uri, "ingot", "demo", "v1")
    tracker.training("pretrain")(row)          while it trains
    tracker.stages(manifests); tracker.finish(report, metrics)

A stage that has a finished run is not written again; a build that adds nothing adds no run.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.card import roomy
from tasks.corpus.manifest import Manifest, Store
from tasks.curves import Row, curve, loss_figure, place, points
from tasks.mlflow_client import answering, connect

log = logging.getLogger("ingot.tracking")
NOTE = "mlflow.note.content"
"""Tag that MLflow's page shows as a description."""
TRIAL = "ingot.trial"
"""Tag of a trial's run: the study and the trial in it."""
NOTE_MOST = 7500
"""Characters of a description; MLflow refuses a tag above 8,000."""
PARAM_MOST = 1000
"""Characters of a parameter that are shown; MLflow refuses one above 6,000."""


def start(store: Store, uri: str, experiment: str, recipe: str, version: str) -> "Tracker":
    """The record of one build. Runs that a killed build of this recipe and version left open are closed. ServiceError when MLflow does not answer."""
    build = f"{recipe} {version}"
    with answering(uri):
        client = connect(uri)
        number = _experiment(client, store, uri, experiment)
        for left in client.search_runs([number], f"tags.`ingot.build` = '{build}' and attributes.status = 'RUNNING'"):
            client.set_terminated(left.info.run_id, "KILLED")
        mine = f"tags.`ingot.report` = '{build}' and attributes.status = 'FINISHED'"
        done = client.search_runs([number], mine, max_results=1, order_by=["attributes.start_time DESC"])
    return Tracker(store, uri, client, number, build, done[0].info.run_id if done else None)


def _experiment(client: Any, store: Store, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        place = str(store.home / "mlflow" / "artifacts") if uri.startswith("sqlite") else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


class Tracker:
    """The MLflow side of one build. Its parent run is made when there is something to record; `last` is the finished one of an earlier build."""

    def __init__(self, store: Store, uri: str, client: Any, experiment: str, build: str, last: str | None):
        self.store, self.uri, self.client, self.experiment, self.build, self.last = store, uri, client, experiment, build, last
        self._began = time.time()
        self._parent: str | None = None
        self._open: dict[str, str] = {}
        self._training: dict[str, _Stream] = {}

    @property
    def run_id(self) -> str:
        """Id of the build's own run."""
        if self._parent is None:
            self._parent = self._run(f"build {self.build}", self._began, {})
        return self._parent

    def _run(self, name: str, began: float, tags: dict[str, str]) -> str:
        made = self.client.create_run(self.experiment, int(began * 1000), {"ingot.build": self.build} | tags, name)
        return str(made.info.run_id)

    def child(self, name: str, began: float | None = None) -> str:
        """Id of this build's open run of a stage; made at the first call."""
        if name not in self._open:
            self._open[name] = self._run(name, began or time.time(), {"mlflow.parentRunId": self.run_id})
        return self._open[name]

    def adopt(self, name: str, run_id: str) -> None:
        """Go on with a stage's run that a killed build left; a finished one is left alone."""
        if self.client.get_run(run_id).info.status == "FINISHED":
            return
        self.client.set_tag(run_id, "mlflow.parentRunId", self.run_id)
        self._open[name] = run_id

    def training(self, stage: str) -> Callable[[Row], None]:
        """A function that takes the rows of metrics.jsonl while that stage trains. A lost MLflow does not stop training: `stages` completes the run."""
        self._training[stage] = _Stream(self, stage)
        return self._training[stage].row

    def trial(self, key: str, name: str, params: Mapping[str, Any]) -> Callable[[Row], None]:
        """As `training`, for one trial of a sweep with a run of its own; that of `key` which a killed sweep left goes on."""
        from mlflow.entities import Param, RunTag

        with answering(self.uri):
            found = self.client.search_runs([self.experiment], f"tags.`{TRIAL}` = '{key}'", max_results=1)
            if found:
                self._open[name] = str(found[0].info.run_id)
                self.client.set_tag(self._open[name], "mlflow.parentRunId", self.run_id)
                self.client.update_run(self._open[name], "RUNNING")
            else:
                self.client.log_batch(self.child(name), params=[Param(n, v) for n, v in flat(params).items()], tags=[RunTag(TRIAL, key)])
        return _Stream(self, name).row

    def trial_ended(self, name: str, values: Mapping[str, float], ended: str, address: str) -> None:
        """Close a trial's run with what came of it."""
        from mlflow.entities import RunTag

        with answering(self.uri):
            run_id = self._open.pop(name)
            self.metrics(run_id, [(values, 0)], time.time())
            self.client.log_batch(run_id, tags=[RunTag("ingot.ended", ended), RunTag("ingot.address", address)])
            self.client.set_terminated(run_id, "FINISHED")

    def find(self, print_: str) -> str | None:
        """Id of the finished run of a stage with this fingerprint."""
        wanted = f"tags.`ingot.fingerprint` = '{print_}' and attributes.status = 'FINISHED'"
        found = self.client.search_runs([self.experiment], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def stages(self, manifests: Sequence[Manifest]) -> None:
        """Record every stage that has no finished run yet: parameters, counts, curves, loss plot, datasets with digest and source."""
        with answering(self.uri):
            for manifest in manifests:
                if self.find(manifest.fingerprint) is None:
                    self._record(manifest)

    def _record(self, manifest: Manifest) -> None:
        from mlflow.entities import Param, RunTag

        name = run_name(manifest)
        run_id = self.child(name, manifest.about["started"])
        counts = {"records/in": manifest.seen, "records/out": manifest.kept, "seconds": manifest.about["seconds"]}
        counts |= {f"rejected/{reason}": count for reason, count in manifest.rejected.items()}
        self.metrics(run_id, [(counts | manifest.info.get("metrics", {}), 0)], manifest.about["finished"])
        params = [Param(key, value) for key, value in flat(manifest.made_of["config"]).items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        self.client.log_inputs(run_id, self._datasets(manifest))
        rows = curve(self.store, manifest)
        if rows:
            sent = self._training[manifest.stage].sent if manifest.stage in self._training else set()
            self.metrics(run_id, [(points(row), row["step"]) for row in rows if place(row) not in sent], manifest.about["finished"])
            self.client.log_figure(run_id, loss_figure(rows, f"{name}, {self.build}"), "loss.png")
        for file in manifest.files:
            if file.path.endswith(".png"):
                self.client.log_artifact(run_id, str(self.store.path(manifest, file)))
        tags = {"ingot.fingerprint": manifest.fingerprint, "ingot.address": manifest.address}
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(run_id, "FINISHED", int(manifest.about["finished"] * 1000))
        del self._open[name]

    def metrics(self, run_id: str, rows: Sequence[tuple[Mapping[str, float], int]], at: float, model_id: str | None = None) -> None:
        """Log named numbers, each row at its step, in batches of the 1,000 that MLflow takes at once."""
        from mlflow.entities import Metric

        when = int(at * 1000)
        found = [Metric(metric_name(n), float(v), when, step, model_id=model_id) for values, step in rows for n, v in values.items()]
        for start in range(0, len(found), 1000):
            self.client.log_batch(run_id, metrics=found[start : start + 1000])

    def _datasets(self, manifest: Manifest) -> list[Any]:
        from mlflow.entities import DatasetInput, InputTag

        sources = {role: self.store.manifest(address) for role, address in manifest.inputs.items()}
        if manifest.stage == "ingest":
            sources["raw"] = manifest
        return [
            DatasetInput(dataset(self.store, m), [InputTag("mlflow.data.context", role)]) for role, m in sources.items() if m is not None
        ]

    def links(self) -> dict[str, str]:
        """Where to look: the page of the build's run, or the command that opens MLflow on this store."""
        if not self.uri.startswith("http"):
            return {"MLflow": f"mlflow server --backend-store-uri {self.uri}", "Store": self.store.url}
        shown = self._parent or self.last
        page = f"{self.uri.rstrip('/')}/#/experiments/{self.experiment}" + (f"/runs/{shown}" if shown else "")
        return {"MLflow": page, "Store": self.store.url}

    def keep(self, page: Path) -> str:
        """Keep a page with the build's run, which shows it; returns where to look at it. Nothing is written when nothing was new."""
        if self._parent is not None or self.last is None:
            with answering(self.uri):
                self.client.log_artifact(self.run_id, str(page))
                self.client.set_tag(self.run_id, "ingot.page", page.as_uri())
        if not self.uri.startswith("http"):
            return page.as_uri()
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment}/runs/{self._parent or self.last}/artifactPath/{page.name}"

    def finish(self, report: str, metrics: Mapping[str, float]) -> None:
        """Close the build's run with its report (as description and file) and scores. Nothing is written when nothing was new."""
        if self._parent is None and self.last is not None:
            return
        with answering(self.uri):
            self.metrics(self.run_id, [(metrics, 0)], time.time())
            self.client.log_text(self.run_id, report, "report.md")
            note = roomy(report)
            self.client.set_tag(self.run_id, NOTE, note if len(note) <= NOTE_MOST else note[:NOTE_MOST].rpartition("\n")[0])
            self.client.set_tag(self.run_id, "ingot.report", self.build)
            self.client.set_terminated(self.run_id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Close the build's runs as failed, with the reason; never hides the error itself."""
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with contextlib.suppress(Exception):
            self.client.set_tag(self.run_id, NOTE, f"**{type(error).__name__}**: {error}"[:NOTE_MOST])
            for run_id in (*self._open.values(), self.run_id):
                self.client.set_terminated(run_id, status)


class _Stream:
    """Step metrics of one training stage, sent at most once a second; `sent` holds the places of rows that MLflow has."""

    def __init__(self, tracker: Tracker, stage: str):
        self.tracker, self.stage = tracker, stage
        self.sent: set[tuple[int, bool]] = set()
        self._waiting: list[Row] = []
        self._next = 0.0

    def row(self, row: Row) -> None:
        if points(row) and place(row) not in self.sent:
            self._waiting.append(row)
        if not self._waiting or time.monotonic() < self._next:
            return
        try:
            self.tracker.metrics(self.tracker.child(self.stage), [(points(one), one["step"]) for one in self._waiting], time.time())
            self.sent |= {place(one) for one in self._waiting}
            self._waiting = []
            self._next = time.monotonic() + 1.0
        except Exception as error:
            # each try may block for seconds, and whoever reads the rows must go on
            self._next = time.monotonic() + 60.0
            log.warning("MLflow did not take the metrics of %s (%s); they are sent again later", self.stage, error)


def run_name(manifest: Manifest) -> str:
    """A stage's name; for ingest with its source, or what its files are for."""
    if manifest.stage != "ingest":
        return manifest.stage
    role = manifest.info.get("role", "source")
    return f"ingest {manifest.info['source'] if role == 'source' else role}"


def metric_name(name: str) -> str:
    """MLflow allows letters, digits, and _ - . space : / in metric names."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def dataset(store: Store, manifest: Manifest) -> Any:
    """A stage's output as MLflow's dataset: digest of its content, its place in the store as source, size as profile."""
    from mlflow.entities import Dataset

    facts = {name: manifest.info[name] for name in ("source", "snapshot", "license") if name in manifest.info}
    profile = {"files": len(manifest.files), "bytes": sum(f.bytes for f in manifest.files), "records": manifest.kept}
    return Dataset(
        name=manifest.address.removeprefix("stages/"),
        digest=manifest.content[:16],
        source_type="local" if store.is_local else store.url.partition("://")[0],
        source=json.dumps({"uri": f"{store.base if store.is_local else store.url}/{manifest.address}"} | facts),
        profile=json.dumps(profile),
    )


def flat(config: Any, path: str = "") -> dict[str, str]:
    """Nested plain data as dotted names and texts of a length that MLflow takes."""
    if isinstance(config, dict):
        return {name: value for key, inner in config.items() for name, value in flat(inner, f"{path}.{key}".lstrip(".")).items()}
    text = config if isinstance(config, str) else json.dumps(config, ensure_ascii=False)
    return {path: text if len(text) <= PARAM_MOST else f"{text[:PARAM_MOST]}… ({len(text):,} characters)"}
