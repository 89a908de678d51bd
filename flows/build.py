"""The whole chain: ingest → extract → (quality model) → filter → dedup → decontaminate → tokenizer → encode → pretrain → finetune → evaluate → register.

One entrypoint a recipe (`flows/build.py:demo`), so that a deployment's form shows that recipe's values. The other flows are made of the parts here.

    prefect deployment run 'build/demo' --watch
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows import recipes
from flows.recipes import Recipe
from model.config import ModelConfig, fingerprint, from_dict, identity
from model.errors import ConfigError, StoreError
from tasks import adopt, decontaminate, dedup, encode, evaluate, extract, filter, ingest, quality_model, registry, takedown, train
from tasks.card import lineage
from tasks.corpus import overview, selection
from tasks.corpus import takedown as takedowns
from tasks.corpus.document import read_rows
from tasks.corpus.extract import STAGE as EXTRACT
from tasks.corpus.manifest import Manifest, Publication, Store, ancestors, check_space, lookup
from tasks.corpus.trace import snapshots_of
from tasks.curves import curve
from tasks.report import markdown
from tasks.tracking import Tracker

STAGES = (
    "ingest",
    "extract",
    "quality_model",
    "filter",
    "dedup",
    "decontaminate",
    "takedown",
    "index",
    "tokenizer",
    "adopt",
    "encode",
    "pretrain",
    "finetune",
    "evaluate",
    "register",
)


@dataclass
class Build:
    """One run of (part of) the chain: the recipe as resolved, the store, which stages to make anew, and the manifests so far, in order."""

    recipe: Recipe
    store: Store
    rebuild: frozenset[str] = frozenset()
    manifests: list[Manifest] = field(default_factory=list)
    corpus: Publication | None = None

    def note(self, manifest: Manifest) -> Manifest:
        self.manifests.append(manifest)
        return manifest

    def of(self, stage: str) -> Manifest:
        """The latest manifest of a stage in this build."""
        return [m for m in self.manifests if m.stage == stage][-1]


def start(base: Recipe, recipe: Recipe, set: Mapping[str, Any], store: str | None, rebuild: Iterable[str]) -> Build:
    """Resolve a recipe with its overrides and open the store. ConfigError for an unknown field, value or stage name."""
    unknown = sorted(frozenset(rebuild) - frozenset(STAGES))
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]!r} in rebuild; stages are {', '.join(STAGES)}")
    build = Build(recipes.resolve(base, recipe, set), open_store(store), frozenset(rebuild))
    check_space(build.store, 64 << 20)
    return build


def open_store(url: str | None) -> Store:
    """The store of a URL or path, of INGOT_STORE, or ./.ingot."""
    return Store(url or os.environ.get("INGOT_STORE") or ".ingot")


def sources(build: Build, whole: bool = False) -> dict[str, Manifest]:
    """Ingest the sources that the recipe names."""
    r, again = build.recipe, "ingest" in build.rebuild and not whole
    found = {}
    if r.common_crawl:
        found["commoncrawl"] = ingest.common_crawl(build.store, r.name, r.common_crawl, r.download, again, whole)
    if r.wikipedia:
        found["wikipedia"] = ingest.wiki_dumps(build.store, r.name, r.wikipedia, r.download, again, whole)
    if r.files:
        found["files"] = ingest.local_files(build.store, r.name, r.files, r.download, again, whole)
    if not found:
        raise ConfigError(f"recipe {r.name} names no source; set common_crawl, wikipedia or files")
    return found


def make_corpus(build: Build, previous: Publication | None = None, refresh: bool = False) -> Publication:
    """Sources to a published corpus version. With `previous`, its documents only make removals, and the new version refers to its parts before the new
    one. The index of the same version is published first: it alone changes nothing for anybody. Where a takedown takes documents out, the version's name says so.
    A refresh's version says so in its info. StoreError where `previous` is not the newest any more.
    """
    r, store = build.recipe, build.store
    raw = sources(build)
    if any(store.dropped(m) for m in raw.values()) and (
        "extract" in build.rebuild or lookup(store, EXTRACT, r.name, r.extract, raw) is None
    ):
        raw = sources(build, whole=True)
    evaluation = ingest.local_files(store, r.name, r.evaluation, r.download, "ingest" in build.rebuild)
    for manifest in (*raw.values(), evaluation):
        build.note(manifest)
    old = [store.need(address) for address in previous.parts] if previous else []
    extracted = build.note(extract.extract(store, r.name, r.extract, raw, r.engine, "extract" in build.rebuild))
    judged = {"extract": extracted} | judges(build, extracted, old)
    filtered = build.note(filter.filter_(store, r.name, r.filter, judged, r.engine, "filter" in build.rebuild))
    segments = [dedup.index(store, r.name, r.dedup, documents, r.engine) for documents in old]
    before = {f"previous-{place:03d}": documents for place, documents in enumerate(old)}
    before |= {f"index-{place:03d}": segment for place, segment in enumerate(segments)}
    single = build.note(dedup.dedup(store, r.name, r.dedup, {"filter": filtered} | before, r.engine, "dedup" in build.rebuild))
    clean = build.note(
        decontaminate.decontaminate(
            store, r.name, r.decontaminate, {"dedup": single, "evaluation": evaluation}, r.engine, "decontaminate" in build.rebuild
        )
    )
    over = previous.address if previous else ""
    if takedowns.receipts(store, r.name):
        withdrawn = takedown.withdraw(store, r.name, clean)
        if withdrawn.address != clean.address:
            clean = build.note(withdrawn)
            r = build.recipe = replace(r, version=takedowns.version(store, r.name, r.version, [*old, clean]))
            if held := store.published("corpora", r.name, r.version):  # the takedown's own, published over the version that it cleaned
                over = held.made_of["previous"]
    segments.append(build.note(dedup.index(store, r.name, r.dedup, clean, r.engine, "index" in build.rebuild)))
    snapshots = sorted({s for m in raw.values() for s in snapshots_of(m)} | set(previous.info["snapshots"] if previous else ()))
    parts = [*old, clean]
    made_of = {"corpus": recipes.corpus_identity(r), "previous": over}
    info = {"snapshots": snapshots, "documents": sum(p.kept for p in parts), "new": clean.kept, "refresh": refresh}
    newest = store.versions("corpora", r.name)[-1:]
    if previous and newest[0].address not in (previous.address, f"corpora/{r.name}/{r.version}"):
        raise StoreError(
            f"{newest[0].address} was published while a version over {previous.address} was made, which would lack what it adds. "
            "Run again: what is made already is found."
        )
    store.publish("indexes", r.name, r.version, segments, made_of, {"documents": info["documents"]})
    build.corpus = store.publish("corpora", r.name, r.version, parts, made_of, info)
    return build.corpus


def judges(build: Build, extracted: Manifest, old: Sequence[Manifest]) -> dict[str, Manifest]:
    """What the filter judges by, beside its rules: block-lists, and the quality model where the recipe names them. What is added to a corpus is judged by
    the model that judged its first part: scores stay comparable, and a new crawl need not bring good texts to learn from."""
    r, store, again = build.recipe, build.store, "ingest" in build.rebuild
    found = {}
    if r.blocklists:
        found["blocklist"] = build.note(ingest.local_files(store, r.name, r.blocklists, r.download, again))
    if r.quality_model:
        known = lineage(store, old[0]).get("quality_model") if old else None
        inputs = {"extract": extracted}
        if r.labels and not known:
            inputs["labels"] = build.note(ingest.local_files(store, r.name, r.labels, r.download, again))
        made = (
            quality_model.quality_model(store, r.name, r.quality_model, inputs, "quality_model" in build.rebuild) if not known else known[0]
        )
        found["quality_model"] = build.note(made)
    return found


def make_shards(build: Build, corpus: Publication) -> dict[str, Manifest]:
    """A published corpus to what pretraining takes: shards, tokenizer, and the model that the recipe starts from."""
    r, store = build.recipe, build.store
    parts = {f"corpus-{place:03d}": store.need(address) for place, address in enumerate(corpus.parts)}
    if r.start:
        tokens = taken_in(build)
    else:
        tokens = build.note(encode.tokenizer(store, r.name, r.tokenizer, parts, "tokenizer" in build.rebuild))
    shards = build.note(encode.encode(store, r.name, r.encode, parts | {"tokenizer": tokens}, "encode" in build.rebuild))
    made_of = {"start": tokens.content} if r.start else {"tokenizer": identity(r.tokenizer), "corpus": corpus.fingerprint}
    store.publish("tokenizers", r.name, r.version, [tokens], made_of, {})
    return {"encode": shards, "tokenizer": tokens} | ({"start": tokens} if r.start else {})


def make_model(build: Build, corpus: Publication, tracker: Tracker) -> Manifest:
    """A published corpus to a pretrained model: of fresh weights, or of the model that the recipe starts from, with its tokenizer and shape."""
    r, store, inputs = build.recipe, build.store, make_shards(build, corpus)
    config = train.PretrainConfig(shape(build, inputs), r.pretrain)
    return build.note(train.pretrain(store, r.name, config, inputs, tracker.training("pretrain"), "pretrain" in build.rebuild))


def shape(build: Build, inputs: Mapping[str, Manifest]) -> ModelConfig:
    """The recipe's model, or the start's."""
    return from_dict(ModelConfig, inputs["start"].info["model"]) if "start" in inputs else build.recipe.model


def taken_in(build: Build) -> Manifest:
    """The model that the recipe starts from. ConfigError where it names none."""
    if build.recipe.start is None:
        raise ConfigError(f"recipe {build.recipe.name} names no start; set start to a model's directory or hub id, revision and new tokens")
    return build.note(adopt.adopt(build.store, build.recipe.name, build.recipe.start, "adopt" in build.rebuild))


def tune(build: Build, start_from: Manifest, tracker: Tracker) -> Manifest:
    """A pretrained model, or one that was taken in, to one that answers."""
    r = build.recipe
    tokens = build.store.need(start_from.inputs["tokenizer"]) if "tokenizer" in start_from.inputs else start_from
    pairs = build.note(ingest.local_files(build.store, r.name, r.examples, r.download, "ingest" in build.rebuild))
    inputs = {"start": start_from, "examples": pairs, "tokenizer": tokens}
    return build.note(
        train.finetune(
            build.store,
            r.name,
            train.finetune_config(r.finetune, r.prompts.trained),
            inputs,
            tracker.training("finetune"),
            "finetune" in build.rebuild,
        )
    )


def judge(build: Build, model: Manifest, base: Manifest, evaluation: Manifest, tracker: Tracker) -> Manifest:
    """Evaluate a model and register it as candidate; the gate decides on champion."""
    r, store = build.recipe, build.store
    inputs = {"model": model, "base": base, "evaluation": evaluation}
    scores = build.note(evaluate.evaluate(store, r.name, r.evaluate, inputs, "evaluate" in build.rebuild))
    store.publish("models", r.name, r.version, [model, base, scores], {"model": model.content, "evaluation": evaluation.content}, {})
    return build.note(
        registry.register(
            store,
            r.name,
            r.register,
            inputs | {"evaluate": scores},
            tracker,
            r.version,
            fingerprint(identity(r)),
            "register" in build.rebuild,
        )
    )


def publish_pretrained(build: Build, model: Manifest) -> None:
    """A pretrained model under the name of its own: of an encoder, which answers nothing, the end of the chain."""
    r = build.recipe
    build.store.publish("models", f"{r.name}-pretrained", r.version, [model], {"pretrain": identity(r.pretrain)}, {})


def drop_raw(store: Store, keep: str, corpus: Publication) -> None:
    """What keep_raw says: after a corpus stands, the raw files of its last part may go, since every record can be fetched again by its origin."""
    if keep == "all":
        return
    clean = store.need(corpus.parts[-1])
    used: dict[str, list[tuple[int, int]]] = {}
    if keep == "used-records":
        paths = [store.path(clean, f) for f in clean.parts()]
        for row in read_rows(paths, ["origin_file", "origin_offset", "origin_length"]):
            used.setdefault(row["origin_file"], []).append((row["origin_offset"], row["origin_length"]))
    for manifest in ancestors(store, [clean]):
        if manifest.stage == "ingest" and manifest.info["role"] == "source":
            store.drop(manifest, used | selection.used_in(store, manifest, used))


def finish(build: Build, tracker: Tracker, title: str, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Record every stage in MLflow, write the corpus's page and the report artifact, and return what the command line shows. `metrics`: those of the
    evaluate stage, if none are given."""
    tracker.stages(build.manifests)
    stages = {m.stage for m in build.manifests}
    if metrics is None and "evaluate" in stages:
        metrics = build.of("evaluate").info["metrics"]
    elif metrics is None and "pretrain" in stages:
        metrics = {name: value for name, value in build.of("pretrain").info["final"].items() if name.startswith("valid_")}
    metrics = metrics or {}
    rows = curve(build.store, build.of("pretrain")) if "pretrain" in stages else []
    links = tracker.links()
    if build.corpus:
        seen = overview.place(build.store, build.corpus.address)
        if not seen.exists() or not all(m.skipped for m in build.manifests):
            overview.write(build.store, build.corpus.address)
        links |= {"Report": tracker.keep(seen)}
        create_link_artifact(links["Report"], f"Report of {build.corpus.address}", key="corpus-report", description=str(seen))
    report = markdown(title, build.manifests, metrics, links, rows)
    create_markdown_artifact(report, key="report", description=title)
    tracker.finish(report, metrics)
    return {
        "manifests": build.manifests,
        "metrics": metrics,
        "links": links,
        "corpus": build.corpus.address if build.corpus else "",
        "recipe": build.recipe,
    }


def _build(base: Recipe, recipe: Recipe, set: Mapping[str, Any], store: str | None, rebuild: Sequence[str]) -> dict[str, Any]:
    build = start(base, recipe, set, store, rebuild)
    tracker = registry.open_tracker(build.store, build.recipe.register, build.recipe.name, build.recipe.version)
    try:
        corpus = make_corpus(build)
        base_model = make_model(build, corpus, tracker)
        if base_model.info["model"]["kind"] == "decoder":
            model = tune(build, base_model, tracker)
            judge(build, model, base_model, next(m for m in build.manifests if m.info.get("role") == "evaluation"), tracker)
        else:
            publish_pretrained(build, base_model)
        drop_raw(build.store, build.recipe.keep_raw, corpus)
    except BaseException as error:
        tracker.fail(error)
        raise
    get_run_logger().info("%s %s is made", build.recipe.name, build.recipe.version)
    return finish(build, tracker, f"Build {build.recipe.name} {build.recipe.version}")


@flow(name="build", flow_run_name="build demo")
def demo(recipe: Recipe = recipes.demo(), set: dict[str, Any] = {}, store: str | None = None, rebuild: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """The whole chain on the embedded sample, in minutes.

    Args:
        recipe: every setting of every stage.
        set: dotted overrides on top of it, for example {"pretrain.steps": 100}.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
        rebuild: stages to make anew although complete.
    """
    return _build(recipes.demo(), recipe, set, store, rebuild)


@flow(name="build", flow_run_name="build tiny")
def tiny(recipe: Recipe = recipes.tiny(), set: dict[str, Any] = {}, store: str | None = None, rebuild: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """The whole chain as the tests run it, with a model of a few thousand parameters.

    Args:
        recipe: every setting of every stage.
        set: dotted overrides on top of it, for example {"pretrain.steps": 100}.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
        rebuild: stages to make anew although complete.
    """
    return _build(recipes.tiny(), recipe, set, store, rebuild)


@flow(name="build", flow_run_name="build small")
def small(recipe: Recipe = recipes.small(), set: dict[str, Any] = {}, store: str | None = None, rebuild: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """A model of about 30M parameters from one Common Crawl snapshot and two wikis.

    Args:
        recipe: every setting of every stage.
        set: dotted overrides on top of it, for example {"pretrain.steps": 100}.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
        rebuild: stages to make anew although complete.
    """
    return _build(recipes.small(), recipe, set, store, rebuild)


@flow(name="build", flow_run_name="build base")
def base(recipe: Recipe = recipes.base(), set: dict[str, Any] = {}, store: str | None = None, rebuild: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """A model of 124M parameters and more, bf16 under ZeRO-1, on a GPU where there is one.

    Args:
        recipe: every setting of every stage.
        set: dotted overrides on top of it, for example {"pretrain.steps": 100}.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
        rebuild: stages to make anew although complete.
    """
    return _build(recipes.base(), recipe, set, store, rebuild)


@flow(name="build", flow_run_name="build roberta")
def roberta(
    recipe: Recipe = recipes.roberta(),
    set: dict[str, Any] = {},  # noqa: B006
    store: str | None = None,
    rebuild: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """A masked language model by RoBERTa's recipe on the embedded sample; ends with pretraining.

    Args:
        recipe: every setting of every stage; those behind pretrain are not used.
        set: dotted overrides on top of it, for example {"pretrain.steps": 100}.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
        rebuild: stages to make anew although complete.
    """
    return _build(recipes.roberta(), recipe, set, store, rebuild)
