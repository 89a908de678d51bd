"""The registry: a version of a model in MLflow with its aliases `candidate` and `champion`, and the way back to its weights.

The store stays the truth: a version carries the fingerprint it was made of as a tag, and on a wiped MLflow `register` makes it again from the store.
Lineage can be walked from a version's tags: model → shards → corpus → raw files.

    register(store, "demo", config, {"model": …, "base": …, "evaluation": …, "evaluate": …}, tracker, "v1", fingerprint_of_recipe)
    folder = resolve(store, config, "ingot-demo@champion")
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import task
from pydantic import Field

from deploy import mlflow_package
from deploy.found import Found
from model.config import STRICT, fingerprint, resource
from model.errors import ConfigError, NotFoundError, ParityError
from tasks import policy, tracking
from tasks.card import card, counts, lineage, roomy
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, made_of, run_stage
from tasks.evaluate import model_directory
from tasks.gate import Standing, evaluation_of, gate, standing
from tasks.mlflow_client import answering, connect, global_address, is_lost
from tasks.report import ended, watch
from tasks.tracking import Tracker

REGISTER = Stage("register", 1)
PRINT = "ingot.fingerprint"
"""Tag of a version and of a logged model: the register stage that made it."""
REIGN = "ingot.champions"
"""Tag of a registered model: the versions that became champion, in order, as JSON."""

EXPORT = "ingot.export."
"""Beginning of a version's tags that say of each format whether its export agrees with torch, and in what it does not."""


@dataclass(frozen=True)
class RegistryConfig:
    """Where models are registered, and what moves the champion."""

    __pydantic_config__ = STRICT

    model: str
    """Name of the registered model."""
    metric: str
    """Metric of the gate, from the evaluate stage; bits_per_byte and losses count as better when lower, all else when higher."""
    margin: Annotated[float, Field(ge=0)]
    """How much better than the champion a candidate must be, in the metric's unit."""
    tracking_uri: str = resource()
    """MLflow's address; empty: MLFLOW_TRACKING_URI, or sqlite inside the store."""
    experiment: str = resource()
    """Name of the MLflow experiment."""


def tracking_uri(store: Store, config: RegistryConfig) -> str:
    """The configured address, MLFLOW_TRACKING_URI, or the store's own sqlite file."""
    return config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.home}/mlflow/mlflow.db"


def open_tracker(store: Store, config: RegistryConfig, recipe: str, version: str) -> Tracker:
    """The MLflow record of one build. ServiceError when MLflow does not answer."""
    return tracking.start(store, tracking_uri(store, config), config.experiment, recipe, version)


@task(name="register", **policy.COMPUTE)
def register(
    store: Store,
    recipe: str,
    config: RegistryConfig,
    inputs: Mapping[str, Manifest],
    tracker: Tracker,
    version: str,
    recipe_fingerprint: str,
    rebuild: bool = False,
) -> Manifest:
    """Register a model as candidate and let the gate decide on champion. Inputs: model, base, evaluation, evaluate.

    Complete only if the registry, too, holds a version with this fingerprint: killed anywhere and run again, exactly one. `rebuild` registers a
    new version, and the fingerprint goes from the old one to it. Raises ConfigError for a metric that evaluate did not measure.
    """
    with watch("register") as progress, answering(tracker.uri):
        print_ = fingerprint(made_of(REGISTER, config, inputs))
        known = store.find(REGISTER.name, recipe, print_)
        held = registered(tracker.client, config.model, print_)
        if known is not None and (rebuild or held is None):
            if held is not None:
                tracker.client.delete_model_version_tag(config.model, held.version, PRINT)
            store.remove(known.address)
        made_by = {"ingot.recipe": f"{recipe} {version}", "ingot.recipe_fingerprint": recipe_fingerprint}
        return ended(run_stage(store, REGISTER, recipe, config, inputs, lambda work: _register(work, config, tracker, made_by), progress))


def registered(client: Any, name: str, print_: str) -> Any | None:
    """The version of a registered model that carries this fingerprint."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{PRINT}` = '{print_}'")
    return found[0] if found else None


def _register(work: Work, config: RegistryConfig, tracker: Tracker, made_by: Mapping[str, str]) -> Result:
    client, scores = tracker.client, work.inputs["evaluate"].info["metrics"]
    if config.metric not in scores:
        raise ConfigError(
            f"register.metric is {config.metric!r}; {work.inputs['evaluate'].address} has {', '.join(sorted(scores))}. Choose one of these."
        )
    champion = standing(client, config.model, "champion")
    wins, why = gate(config.metric, config.margin, scores, evaluation_of(work.inputs["evaluation"]), champion)
    exported = {
        key: tag for same in _versions_of(client, work.inputs["model"].address) for key, tag in same.tags.items() if key.startswith(EXPORT)
    }
    if wins and (wrong := disagreeing(exported)):
        wins, why = False, f"{why}; but the export to {' and '.join(f'{to} {verdict}' for to, verdict in wrong.items())}"
    made = registered(client, config.model, work.fingerprint)
    if made is None:
        made = _make(work, config, tracker, {**made_by, **exported, "ingot.gate": why}, champion)
    else:
        tracker.adopt(REGISTER.name, made.run_id)
        if champion is not None and champion.version == str(made.version):  # a killed run had moved the alias already
            wins, why = True, made.tags.get("ingot.gate", "is champion already")
        else:
            client.set_model_version_tag(config.model, made.version, "ingot.gate", why)
    client.set_registered_model_alias(config.model, "candidate", made.version)
    if wins:
        crown(client, config.model, str(made.version))
    info = {
        "name": config.model,
        "version": str(made.version),
        "champion": wins,
        "why": why,
        "model_uri": f"models:/{config.model}/{made.version}",
        "model": work.inputs["model"].address,
    }
    (work.dir / "registered.json").write_text(json.dumps(info, indent=1))
    return Result([("registered.json", None)], 1, 1, {}, info)


def _make(work: Work, config: RegistryConfig, tracker: Tracker, made_by: Mapping[str, str], champion: Standing | None) -> Any:
    """A new version: packaged, asked, logged, and last, in one request with its tags, registered."""
    from mlflow.exceptions import MlflowException

    client, model = tracker.client, work.inputs["model"]
    package = work.scratch / "package"
    shutil.rmtree(package, ignore_errors=True)
    folder = model_directory(work.store, model)
    mlflow_package.save(folder, package, work.fingerprint)
    said = mlflow_package.prove(package)
    family = lineage(work.store, model)
    size = counts(family, folder / "model.safetensors")
    parts = {"corpus": "decontaminate", "tokenizer": "tokenizer", "shards": "encode", "start": "adopt"}
    tags = {
        PRINT: work.fingerprint,
        "ingot.address": f"stages/{work.stage}/{work.dir.name}",
        "ingot.model": model.address,
        "ingot.evaluation": evaluation_of(work.inputs["evaluation"]),
        **made_by,
        **{f"ingot.{name}": ", ".join(m.address for m in family[stage]) for name, stage in parts.items() if stage in family},
        **{f"ingot.{name}": str(count) for name, count in size.items()},
    }
    asked = (mlflow_package.QUESTION, said)
    description = card(config.model, tags, family, size, work.inputs["evaluate"], champion.scores if champion else {}, asked)
    run_id, made = _log(work, tracker, config.model, package)
    try:
        client.create_registered_model(config.model, description="Chat models built by Ingot: raw pages to a registered model.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with global_address(tracker.uri):  # MLflow's own store looks the logged model up at that address
        return client.create_model_version(
            config.model, f"models:/{made}", run_id, tags=tags, model_id=made, description=roomy(description)
        )


def _log(work: Work, tracker: Tracker, name: str, package: Path) -> tuple[str, str]:
    """Log a package with its scores: (run id, id of the logged model). One that a killed run logged before, and no version refers to, is deleted."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client = tracker.client
    for left in client.search_logged_models([tracker.experiment], f"tags.`{PRINT}` = '{work.fingerprint}'"):
        if not client.search_model_versions(f"source_path = 'models:/{left.model_id}'"):
            client.delete_logged_model(left.model_id)
    run_id = tracker.child(REGISTER.name)
    logged = client.create_logged_model(tracker.experiment, name, run_id, {PRINT: work.fingerprint})
    described = Model.load(str(package))
    described.model_id, described.run_id, described.artifact_path = logged.model_id, run_id, logged.artifact_location
    described.save(str(package / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(package))
    tracker.metrics(run_id, [(work.inputs["evaluate"].info["metrics"], 0)], time.time(), logged.model_id)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    client.finalize_logged_model(logged.model_id, "READY")
    return run_id, logged.model_id


def resolve(store: Store, config: RegistryConfig, reference: str) -> Path:
    """The model directory of a registered name (its newest version), name@alias, name/version, models:/ URI, store address, published model, or
    directory itself. NotFoundError lists what there is."""
    if (Path(reference) / "config.json").exists():
        return Path(reference)
    return _folder(store, config, *_made(store, config, reference))


def located(store: Store, config: RegistryConfig, reference: str) -> tuple[Path, str, list[Any]]:
    """The directory of a model named as for `resolve`, a title for it, and every registered version of the same weights; none of a bare directory."""
    if (Path(reference) / "config.json").exists():
        words = [word for word in Path(reference).absolute().parts if word != "model"]
        return Path(reference), words[-1], []
    manifest, made = _made(store, config, reference)
    address = manifest.address if manifest is not None else made.tags.get("ingot.model", "")
    title = f"{made.name}-{made.version}" if made is not None else address.rsplit("/", 1)[-1]
    folder, uri = _folder(store, config, manifest, made), tracking_uri(store, config)
    if not address or not _begun(uri):
        return folder, title, [made] if made is not None else []
    with answering(uri):
        return folder, title, _versions_of(connect(uri), address)


def served(store: Store, config: RegistryConfig, reference: str) -> Found:
    """What a server answers with for a model named as for `resolve`; asked again, it says where an alias points then. NotFoundError lists what there is."""
    if (Path(reference) / "config.json").exists():
        words = [word for word in Path(reference).absolute().parts if word != "model"]
        return Found(words[-1], "", "", "", lambda: Path(reference))
    manifest, made = _made(store, config, reference)
    if made is None:
        assert manifest is not None
        return Found(reference.replace("/", "-"), "", "", "", lambda: model_directory(store, manifest))
    uri = tracking_uri(store, config)
    page = f"{uri}/#/models/{made.name}/versions/{made.version}" if uri.startswith("http") else ""
    return Found(made.name, str(made.version), made.tags.get("ingot.corpus", ""), page, lambda: _folder(store, config, manifest, made))


def _folder(store: Store, config: RegistryConfig, manifest: Manifest | None, made: Any) -> Path:
    if manifest is not None:
        return model_directory(store, manifest)
    import mlflow

    uri = tracking_uri(store, config)
    with answering(uri), global_address(uri):
        return Path(mlflow.artifacts.download_artifacts(made.source)) / "artifacts" / "model"


def _versions_of(client: Any, address: str) -> list[Any]:
    """The registered versions whose weights a training stage left, oldest first."""
    found = client.search_model_versions(f"tags.`ingot.model` = '{address}'")
    return sorted(found, key=lambda made: (made.name, int(made.version)))


def manifest_of(store: Store, config: RegistryConfig, reference: str) -> Manifest:
    """The training stage of a model named as for `resolve`. NotFoundError where this store lacks it."""
    manifest, made = _made(store, config, reference)
    if manifest is None:
        raise NotFoundError(
            f"{reference} was made of {made.tags.get('ingot.model', 'what nobody wrote down')}, which {store.url} does not hold"
        )
    return manifest


def _made(store: Store, config: RegistryConfig, reference: str) -> tuple[Manifest | None, Any]:
    """The training stage of a model, None where this store lacks it; and its MLflow version, None where the store was asked alone."""
    if reference.startswith("stages/"):
        return store.need(reference), None
    thing = store.published(*reference.split("/")) if reference.startswith("models/") and reference.count("/") == 2 else None
    if thing is not None:
        return store.need(thing.parts[0]), None
    made = _version(store, config, reference.removeprefix("models:/"))
    return store.manifest(made.tags["ingot.model"]) if "ingot.model" in made.tags else None, made


def _version(store: Store, config: RegistryConfig, reference: str) -> Any:
    uri, known = tracking_uri(store, config), []
    if _begun(uri):
        from mlflow.exceptions import MlflowException

        with answering(uri):
            client = connect(uri)
            try:
                if "@" in reference:
                    return client.get_model_version_by_alias(*reference.split("@", 1))
                if "/" in reference:
                    return client.get_model_version(*reference.split("/", 1))
                newest = client.search_model_versions(f"name = '{reference}'", order_by=["version_number DESC"], max_results=1)
                if newest:
                    return newest[0]
            except MlflowException as error:
                if is_lost(error):
                    raise
            known = [f"{m.name}{''.join(f' @{alias}' for alias in sorted(m.aliases))}" for m in _models(client)]
    published = [p.address for p in store.publications() if p.kind == "models"]
    raise NotFoundError(
        f"no model {reference!r} in MLflow at {uri}, and no such directory or address. Registered: {', '.join(known) or 'nothing'}; "
        f"published in {store.url}: {', '.join(published) or 'nothing'}."
    )


def aliases(store: Store, config: RegistryConfig) -> list[str]:
    """Addresses of the register stages that an alias of any registered model refers to; `ingot gc` keeps them."""
    uri = tracking_uri(store, config)
    if not _begun(uri):
        return []
    with answering(uri):
        client = connect(uri)
        found = [client.get_model_version(m.name, v) for m in _models(client) for v in sorted(set(m.aliases.values()))]
    return [v.tags["ingot.address"] for v in found if "ingot.address" in v.tags]


def crown(client: Any, name: str, version: str) -> None:
    """Make a version champion. Whoever was it before stands in the model's tag, so that `rollback` knows; killed anywhere and said again, the same."""
    reigned = _reigned(client, name)
    if reigned[-1:] != [version]:
        client.set_registered_model_tag(name, REIGN, json.dumps([*reigned, version]))
    client.set_registered_model_alias(name, "champion", version)


def promote(store: Store, config: RegistryConfig, reference: str) -> Any:
    """Make name/version or name@alias champion whatever the scores say; its MLflow version. NotFoundError lists what there is, ParityError names an
    export of it that disagrees."""
    made, client = _version(store, config, reference.removeprefix("models:/")), connect(tracking_uri(store, config))
    _sound(made)
    crown(client, made.name, str(made.version))
    return made


def rollback(store: Store, config: RegistryConfig, name: str) -> Any:
    """Give champion back to the version that had it before; that version. NotFoundError where nobody had, ParityError where an export of it disagrees."""
    made, client = _version(store, config, f"{name}@champion"), connect(tracking_uri(store, config))
    reigned = _reigned(client, name)
    # said again after a kill between the two writes, the present champion is no longer in the list
    before = reigned[: len(reigned) - 1 - reigned[::-1].index(str(made.version))] if str(made.version) in reigned else reigned
    if not before:
        raise NotFoundError(
            f"{name} version {made.version} is the first champion there was: promote another by `ingot promote {name}/VERSION`."
        )
    last = client.get_model_version(name, before[-1])
    _sound(last)
    client.set_registered_model_tag(name, REIGN, json.dumps(before))
    client.set_registered_model_alias(name, "champion", before[-1])
    return last


def told(store: Store, config: RegistryConfig, versions: Sequence[Any], to: str, verdict: str, report: Path) -> None:
    """Write what the gate of exports found: a tag of each version, and the report among the artifacts of its run."""
    if not versions:
        return
    uri = tracking_uri(store, config)
    with answering(uri):
        client = connect(uri)
        for made in versions:
            client.log_artifact(made.run_id, str(report), f"exports/{to}")
            client.set_model_version_tag(made.name, made.version, f"{EXPORT}{to}", verdict[:1000])


def verdicts(tags: Mapping[str, str]) -> dict[str, str]:
    """What the gate found of a version's exports, by format: agrees, or disagrees and in what."""
    return {key.removeprefix(EXPORT): value for key, value in sorted(tags.items()) if key.startswith(EXPORT)}


def disagreeing(tags: Mapping[str, str]) -> dict[str, str]:
    """Those that do not agree."""
    return {to: verdict for to, verdict in verdicts(tags).items() if verdict != "agrees"}


def _sound(made: Any) -> None:
    """ParityError for a version that an export of it keeps from being champion."""
    for to, verdict in disagreeing(made.tags).items():
        raise ParityError(
            f"{made.name} version {made.version} cannot become champion: its export to {to} {verdict}. Export it again (`ingot export "
            f"{made.name}/{made.version} --to {to}`): it is free once that agrees. Until then promote another version."
        )


def _reigned(client: Any, name: str) -> list[str]:
    """Versions in the order in which they became champion."""
    return list(json.loads(client.get_registered_model(name).tags.get(REIGN, "[]")))


def listed(store: Store, config: RegistryConfig, name: str = "") -> list[tuple[Any, list[str]]]:
    """All registered versions (of one model), newest first, with their aliases; none where MLflow holds nothing."""
    uri = tracking_uri(store, config)
    if not _begun(uri):
        return []
    with answering(uri):
        client = connect(uri)
        found = []
        for model in _models(client):
            if name in ("", model.name):
                for version in client.search_model_versions(f"name = '{model.name}'", order_by=["version_number DESC"]):
                    found.append((version, sorted(alias for alias, held in model.aliases.items() if str(held) == str(version.version))))
    return found


def _begun(uri: str) -> bool:
    """Whether MLflow can hold anything: asking a database that does not exist would make it."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def _models(client: Any) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
