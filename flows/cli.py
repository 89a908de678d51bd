"""The command line: `ingot run|refresh|finetune|sweep|ablate|plan|show|diff|report|trace|sample|models|compare|lm-eval|export|serve|promote|rollback|verify|takedown|gc|up`. typer and rich; every command ends with what to try next."""

import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows import prefect_api
from flows import up as supervisor
from model.errors import ConfigError, IngotError, NotFoundError, ParityError
from tasks import forecast
from tasks.corpus.manifest import Manifest, Store, collectable, free_bytes

if TYPE_CHECKING:
    from flows.planning import Training

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
PLAIN = None if sys.stdout.isatty() else 140
"""Columns where there is no terminal to ask: a log holds a table's lines whole."""
out = Console(width=PLAIN)
err = Console(stderr=True)

StoreOption = Annotated[str | None, typer.Option("--store", envvar="INGOT_STORE", help="Path or fsspec URL of the store; default ./.ingot")]
Settings = Annotated[
    list[str] | None, typer.Argument(help="field=value, dotted: pretrain.steps=100 common_crawl.files=2", metavar="[FIELD=VALUE]…")
]
NEXT = {
    "hf": "python -c \"from transformers import AutoTokenizer, AutoModel as M; M.from_pretrained('{path}'), AutoTokenizer.from_pretrained('{path}')\"",
    "onnx": "ingot export {model} --to onnx-int8 is about a quarter of the size",
    "onnx-int8": "python -c \"from deploy.onnx_model import load; load('{path}')\"",
    "gguf": "llama-cli -m {path}/model.gguf",
}
"""What to try with an export."""
RecipeName = Annotated[str, typer.Argument(help="demo, tiny, small, base or roberta", metavar="RECIPE")]


def open_store(url: str | None) -> Store:
    """The store; from here on Prefect and MLflow keep to it."""
    store = Store(url or ".ingot")
    os.environ.update(supervisor.environment(store))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes no parents and then does not start
    return store


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """field=value words as a dict. ConfigError for a word without '='."""
    pairs = [word.partition("=") for word in settings or []]
    for name, sign, _ in pairs:
        if not sign:
            raise ConfigError(f"{name!r} is not of the form field=value, for example pretrain.steps=100")
    return {name: value for name, _, value in pairs}


@contextmanager
def bars() -> Iterator[None]:
    """A bar a stage while a flow runs, told by the stages' own progress."""
    from tasks.report import listener

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<22}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, refresh_per_second=4) as progress:
        known: dict[str, TaskID] = {}

        def listen(stage: str, done: float, total: float, unit: str) -> None:
            if unit in ("done", "complete"):
                for name, bar in known.items():
                    if name.split()[0] == stage and not progress.tasks[progress.task_ids.index(bar)].finished:
                        progress.update(bar, total=max(1, int(total)), completed=max(1, int(total)), unit=f"{unit}, {int(done):,} out")
            else:
                if stage not in known:
                    known[stage] = progress.add_task(stage, total=None, unit="")
                bar = known[stage]
                progress.update(bar, total=int(total) or None, completed=int(done), unit=unit)

        token = listener.set(listen)
        try:
            yield
        finally:
            listener.reset(token)


@app.command()
def run(
    recipe: RecipeName,
    settings: Settings = None,
    store: StoreOption = None,
    rebuild: Annotated[list[str] | None, typer.Option(help="Make this stage anew although it is complete; repeat for more")] = None,
) -> None:
    """Run a recipe's whole chain: raw pages in, a registered model out. What is complete is skipped; a killed run resumes.

    Try: `ingot run demo`, `ingot run demo pretrain.steps=50 version=short`, `ingot run small common_crawl.files=1`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # an error comes up as itself, and is told once by main()
    changes = overrides(settings)
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows import build, recipes
        from tasks import registry

        base = recipes.by_name(recipe)
        made = recipes.resolve(base, base, changes)  # a mistake is told at once, not after the server has started
        registry.open_tracker(place, made.register, made.name, made.version)  # MLflow's database is made meanwhile, too: it takes as long
        ready()
    with bars():
        result = getattr(build, recipe)(set=changes, store=place.url, rebuild=rebuild or [])
    out.print(closing_table(result["manifests"]))
    if result["metrics"]:
        shown = [f"{name} {value:.3f}" for name, value in sorted(result["metrics"].items()) if "/" not in name]
        out.print(f"\nEvaluation: {', '.join(shown)}")
    registered = next((m for m in result["manifests"] if m.stage == "register"), None)
    if registered is None:
        return
    name = registered.info["name"]
    question = "What is a lighthouse?"
    out.print(
        Panel(
            answer(place, registered.info["model_uri"], question),
            title=f"{name} version {registered.info['version']} is asked: {question}",
            title_align="left",
            box=box.ROUNDED,
        )
    )
    out.print(f"Champion: {'yes' if registered.info['champion'] else 'no'} ({registered.info['why']})\n")
    last = next(m for m in result["manifests"] if m.stage == "decontaminate")
    out.print("Next:")
    for command in (
        f"ingot sample {name}@candidate '什么是灯塔？'",
        f"ingot show {last.address}",
        f"ingot report {result['corpus']}",
        "ingot plan small",
        "make up        # Prefect and MLflow pages, deployments, schedules",
    ):
        out.print(f"  {command}", highlight=False, markup=False)


@app.command()
def refresh(
    recipe: RecipeName,
    settings: Settings = None,
    store: StoreOption = None,
    source: Annotated[Literal["common-crawl", "wikipedia"], typer.Option(help="What is asked for something new")] = "common-crawl",
) -> None:
    """Publish the next version of a recipe's corpus from the newest snapshot or dumps, or from those that are named, if no version holds them yet.
    A killed refresh goes on.

    Try: `ingot refresh small common_crawl.files=1`, `ingot refresh small --source wikipedia`, `ingot refresh small common_crawl.snapshot=CC-MAIN-2026-38`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    changes = overrides(settings)
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows import recipes
        from flows import refresh as flows

        base = recipes.by_name(recipe)
        recipes.resolve(base, base, changes)
        ready()
    flow = flows.common_crawl_monthly if source == "common-crawl" else flows.wikipedia_monthly
    with bars():
        made = flow(recipe=base, set=changes, store=place.url)
    before = place.previous(place.version(made)) if made != flows.NOTHING_NEW else None
    out.print(made, highlight=False)
    if before:
        out.print(f"Next: ingot diff {before.address} {made}", highlight=False, soft_wrap=True)


@app.command()
def finetune(
    recipe: Annotated[
        str, typer.Argument(help="banking77, cmrc, crosswoz, self_instruct, or a recipe of the whole chain", metavar="RECIPE")
    ],
    model: Annotated[str, typer.Argument(help="stages/pretrain/…, models/NAME[/VERSION], or start: the model that start.model names")],
    settings: Settings = None,
    store: StoreOption = None,
) -> None:
    """Tune a model on examples and score it on those held out, with a baseline beside each score.

    Try: `ingot finetune banking77 models/small-pretrained examples.base=/data/banking77`,
    `ingot finetune small models/small-pretrained 'examples.paths=["mine.jsonl"]' 'finetune.objective={"kind": "labels"}'`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    changes = overrides(settings)
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows import finetune as flow
        from flows import recipes
        from tasks import registry

        base = recipes.tuning(recipe)
        made = recipes.resolve(base, base, changes)
        registry.open_tracker(place, made.register, made.name, made.version)
        ready()
    with bars():
        result = flow.named(recipe=recipe, model=model, set=changes, store=place.url)
    out.print(closing_table(result["manifests"]))
    out.print(score_table(result["metrics"]))
    out.print(f"\nNext:\n  ingot show {result['address']}", highlight=False, markup=False)


@app.command()
def sweep(
    recipe: RecipeName,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="field=a..b, field=a..b:log or field=a,b,c of model and pretrain span the space; field=value sets one", metavar="FIELD=…"
        ),
    ] = None,
    store: StoreOption = None,
    trials: Annotated[int, typer.Option(min=1, help="Points to try; a space of fewer choices is tried whole")] = 12,
    parallel: Annotated[int, typer.Option(min=1, help="Trainings at a time")] = 1,
    seeds: Annotated[int, typer.Option(min=0, help="Further seeds of the best and of the recipe's own settings, for the noise band")] = 3,
    finalists: Annotated[int, typer.Option(min=1, help="How many of the best are repeated")] = 2,
    pruner: Annotated[Literal["median", "asha", "none"], typer.Option(help="What ends a trial early, by its validation loss")] = "median",
    corpus: Annotated[str, typer.Option(help="A published corpus; default: the recipe's own, made if it is not there")] = "",
) -> None:
    """Try settings of pretraining, repeat the best with further seeds, and say whether the winner's lead is more than noise. A killed sweep goes on.

    Try: `ingot sweep demo pretrain.lr=1e-4..1e-2:log pretrain.batch=8,16 model.width=64,128 --trials 12 --parallel 2 --seeds 3`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    from tasks.space import split, told

    space, fixed = split(overrides(settings))
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows import recipes
        from flows import sweep as flow
        from tasks import registry

        base = recipes.by_name(recipe)
        made = recipes.resolve(base, base, fixed)
        flow.check(made, space)
        registry.open_tracker(place, made.register, made.name, made.version)
        ready()
    with bars():
        result = flow.named(recipe, space, fixed, corpus, trials, parallel, seeds, finalists, pruner, place.url)
    done = place.need(result["address"])
    out.print(closing_table(result["manifests"]))
    out.print(sweep_table(done))
    out.print(f"{done.info['verdict']['why']}\n\nNext:\n  ingot show {done.address}", highlight=False, markup=False)
    words = told(fixed | done.info["best"]["settings"])
    out.print(f"  ingot run {recipe} {words}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def ablate(
    recipe: RecipeName,
    settings: Annotated[list[str], typer.Argument(help="field=value of the corpus on the changed side", metavar="FIELD=VALUE…")],
    store: StoreOption = None,
    both: Annotated[list[str] | None, typer.Option("--both", help="field=value of both sides; repeat for more")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each side")] = 3,
) -> None:
    """What a choice in the corpus does to a model: the same small model trained on the recipe's corpus and on a changed one, at equal tokens and seeds.

    Try: `ingot ablate demo filter.gopher=false filter.repetition=false filter.c4=false filter.fineweb=false --both pretrain.steps=300`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    changed, fixed = overrides(settings), overrides(both)
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows import ablation as flow
        from flows import recipes
        from tasks import registry

        base = recipes.by_name(recipe)
        flow.check(*(recipes.resolve(base, base, sides) for sides in (fixed, fixed | changed)))
        registry.open_tracker(place, base.register, f"{base.name} ablation", base.version)
        ready()
    with bars():
        result = flow.named(recipe, changed, fixed, seeds, place.url)
    done = place.need(result["address"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in (
        ("score", False),
        (recipe, True),
        ("changed", True),
        ("difference", True),
        ("95% of it", True),
        ("verdict", False),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in done.info["scores"]:
        band = "" if row["band"] is None else f"± {row['band']:.4f}"
        sides = [
            f"{row[side]:.4f}" + (f" ± {row['deviations'][n]:.4f}" if row["deviations"] else "")
            for n, side in enumerate(("base", "changed"))
        ]
        table.add_row(row["score"], *sides, f"{row['difference']:+.4f}", band, row["verdict"])
    documents = [manifest.kept for manifest in result["manifests"] if manifest.stage == "decontaminate"]
    out.print(table)
    out.print(
        f"Documents: {' and '.join(f'{count:,}' for count in documents)}; equal tokens and words; ± of a side is the deviation over {seeds} seeds."
    )
    out.print(f"Next: ingot show {done.address}", highlight=False)


def sweep_table(manifest: Manifest) -> Table:
    """The finalists of a sweep: settings, losses of further seeds as mean ± standard error, the best first."""
    from tasks.report import finals

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "settings", "seeds", "valid_loss"):
        table.add_column(name, justify="right" if name in ("seeds", "valid_loss") else "left", overflow="fold")
    for row in finals(manifest):
        table.add_row(*row)
    return table


def score_table(metrics: Mapping[str, float]) -> Table:
    """Measures by who was measured: the tuned model first."""
    names = dict.fromkeys(name.partition("/")[0] for name in metrics)
    others = dict.fromkeys(name.partition("/")[2] for name in sorted(metrics, key=lambda name: name.count("/")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("who")
    for name in names:
        table.add_column(name, justify="right")
    for who in others:
        values = (metrics.get(f"{name}/{who}" if who else name) for name in names)
        table.add_row(who or "tuned", *("" if value is None else f"{value:.3f}" for value in values))
    return table


def closing_table(manifests: list[Manifest]) -> Table:
    """Stage, in, out, what was rejected and why, seconds, where it lies."""
    from tasks.report import row

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in (("stage", False), ("in", True), ("out", True), ("rejected", False), ("seconds", True), ("where", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for manifest in manifests:
        table.add_row(*row(manifest).values())
    return table


def answer(store: Store, model: str, prompt: str, max_new: int = 80, temperature: float = 0.0, seed: int = 0) -> str:
    """One chat answer of a model, greedy unless a temperature is given."""
    from flows.recipes import by_name
    from model.families import load
    from model.generate import chat
    from model.tokenizer import load as load_tokenizer
    from tasks import registry

    folder = registry.resolve(store, by_name("demo").register, model)
    said = chat(
        load(folder), load_tokenizer(folder), [{"role": "user", "content": prompt}], max_new=max_new, temperature=temperature, seed=seed
    )
    return said.text


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="Registered name, name@alias, name/version, an address of the store, or a directory")],
    prompt: str,
    store: StoreOption = None,
    max_new: Annotated[int, typer.Option(help="Most tokens to generate")] = 80,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: int = 0,
) -> None:
    """Ask a model. Try: `ingot sample ingot-demo@candidate "What is a lighthouse?"`"""
    out.print(answer(open_store(store), model, prompt, max_new, temperature, seed), highlight=False, markup=False)


@app.command()
def plan(
    recipe: RecipeName,
    settings: Settings = None,
    store: StoreOption = None,
    price: Annotated[float, typer.Option(min=0, help="Per hour of a device, a GPU or this machine: adds the cost")] = 0.0,
) -> None:
    """What would run, what is complete, bytes needed and free; what training takes: memory by ZeRO stage, tokens, time. Exit status 1 when the disk is too small."""
    place = open_store(store)
    from flows import planning

    made = planning.plan(recipe, overrides(settings), place)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "state", "bytes", "where"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for step in made.steps:
        table.add_row(step.stage, step.state, f"{step.bytes:,}", step.address)
    out.print(table)
    for one in made.trainings:
        if training := planning.training(place, *one):
            training_table(training, price)
    needed = sum(step.bytes for step in made.steps if step.state != "complete")
    out.print(f"needs about {needed:,} bytes; {free_bytes(place):,} free in {place.url}")
    planning.check(place, needed)
    out.print(f"Next: ingot run {recipe} {' '.join(settings or [])}", highlight=False)


def training_table(training: "Training", price: float) -> None:
    """What one training takes: bytes of a rank by ZeRO stage, the configured one marked; then tokens, FLOPs, time."""
    made, work = training.forecast, training.forecast.work
    columns = ("", "weights", "gradients", "optimizer", "buffers", "activations", "of these logits", "checkpointed", "peak of a rank")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{training.stage}: memory, MiB", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    for stage, (kept, again) in training.stages.items():
        cells = (
            kept.weights + kept.gathered,
            kept.gradients,
            kept.optimizer,
            kept.buffers,
            kept.activations,
            kept.logits,
            again.activations,
        )
        peak = again.peak if training.train.checkpointing else kept.peak
        mark = " ←" if stage == training.train.zero else ""
        table.add_row(f"ZeRO {stage}{mark}", *(f"{size / 2**20:,.1f}" for size in (*cells, peak)))
    out.print(table)
    cost = f", cost {made.cost(price):,.2f}" if price else ""
    out.print(
        f"{work.parameters:,} parameters, {work.tokens:,} tokens, {work.flops:.3g} FLOP: {duration(made.seconds)} at {made.tokens_per_s:,.0f} tokens/s{cost}\n"
        f"on {made.devices} × {made.device}, known by {made.by}\n",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    units = ((86400, "days"), (3600, "h"), (60, "min"))
    return next((f"{seconds / size:,.1f} {name}" for size, name in units if seconds >= 2 * size), f"{seconds:,.1f} s")


@app.command()
def show(
    address: Annotated[
        str | None, typer.Argument(help="stages/filter/demo-1a2b3c4d5e, corpora/demo/v1 …; without one: everything there is")
    ] = None,
    store: StoreOption = None,
    documents: Annotated[int, typer.Option(help="Random kept and rejected documents to print")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed, other documents")] = 0,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REASON=LIMIT",
            help="Count a filter stage's or a corpus's documents anew as if this rule had this limit; REASON@LANGUAGE=LIMIT for one language; repeat for more",
        ),
    ] = None,
    signals: Annotated[bool, typer.Option("--signals", help="The same table with the limits as they are")] = False,
) -> None:
    """A manifest: what it was made of, counts, reasons, random kept and rejected documents.

    With `--threshold`: what other limits of the quality rules would keep, counted from the signals of kept and rejected documents in seconds; no page is
    read again. Look with `--signals` first: each rule's limit, what it rejects, and the least, 5%, middle, 95% and greatest value of what it measures.

    `ingot show stages/filter/demo-1a2b3c4d5e --threshold gopher_short_doc=30`

    `ingot show corpora/demo/v1 --threshold fineweb_list_ratio@zh=0.25 --threshold gopher_stop_words=1`

    What you like becomes the recipe's: `ingot run demo filter.thresholds.gopher_short_doc=30`.
    """
    place = open_store(store)
    if address is None:
        return list_store(place)
    if threshold or signals:
        return show_thresholds(place, address, threshold or [])
    kind = address.split("/")[0]
    if kind in ("corpora", "tokenizers", "models", "indexes"):
        thing = place.version(address)
        out.print(
            Panel(
                f"fingerprint {thing.fingerprint}\nparts       {', '.join(thing.parts)}\n"
                + "\n".join(f"{k:<11} {v}" for k, v in thing.info.items()),
                title=address,
            )
        )
        return None
    manifest = place.need(address)
    out.print(closing_table([manifest]))
    if line := forecast.told(manifest):
        out.print(line, highlight=False, soft_wrap=True)
    if manifest.stage == "sweep":
        out.print(sweep_table(manifest), manifest.info["verdict"]["why"], highlight=False)
    out.print_json(data={"made_of": manifest.made_of, "inputs": manifest.inputs, "info": manifest.info, "about": manifest.about})
    files = Table("file", "rows", "bytes", "sha256", box=box.SIMPLE_HEAD, pad_edge=False)
    for file in manifest.files[:20]:
        files.add_row(file.path, "" if file.rows is None else f"{file.rows:,}", f"{file.bytes:,}", file.sha256[:12])
    out.print(files)
    for prefix, style in (("documents-", "green"), ("rejects-", "red")):
        for row in pick(place, manifest, prefix, documents, seed):
            head = f"{row['reason']} {row['value']}" if prefix == "rejects-" else f"{row['language']} {row['title']}"
            out.print(
                Panel(
                    (row["text"] or "")[:600], title=f"{head} · {row['url'] or row['origin_file']}", title_align="left", border_style=style
                )
            )
    if manifest.rejected:
        reasons = Table("reason", "records", box=box.SIMPLE_HEAD, pad_edge=False)
        for reason, count in sorted(manifest.rejected.items(), key=lambda item: -item[1]):
            reasons.add_row(reason, f"{count:,}")
        out.print(reasons)
    return None


def show_thresholds(store: Store, address: str, words: list[str]) -> None:
    """Documents and words by rule and by language, as they are and as they would be."""
    from tasks.corpus import overview, recount

    limits: dict[str, float] = {}
    for name, limit in overrides(words).items():
        try:
            limits[name] = float(limit)
        except ValueError:
            raise ConfigError(f"{name}={limit}: a threshold is a number, for example {name}=30") from None
    parts = overview.parts_of(store, address)
    outputs = [m for m in overview.family(store, parts) if m.stage == "filter"]
    made = recount.recount(store, outputs, limits)
    rules = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("rule", "limit", "then", "rejected", "then", "least", "5%", "middle", "95%", "most"):
        rules.add_column(name, justify="left" if name == "rule" else "right", overflow="fold")
    for row in recount.by_rule(made, outputs, limits):
        rules.add_row(*row)
    out.print(rules)
    total = made.total
    languages = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("language", "documents", "then", "", "words", "then", ""):
        languages.add_column(name, justify="left" if name == "language" else "right")
    every = sorted(made.languages.items(), key=lambda item: -item[1].documents_then)
    for name, pair in [*every, ("all", total)]:
        if pair.documents or pair.documents_then:
            documents, count = (pair.documents, pair.documents_then), (pair.words, pair.words_then)
            languages.add_row(name, *(cell for now, then in (documents, count) for cell in (f"{now:,}", f"{then:,}", f"{then - now:+,}")))
    out.print(languages)
    if [m.address for m in parts] != [m.address for m in outputs]:
        here = recount.staying(store, parts, limits).total
        out.print(
            f"Of the {here.documents:,} documents of {address} itself {here.documents_then:,} would stay. What would come in has yet to pass the later "
            "stages: it may be a duplicate of what is there."
        )
    settings = " ".join(f"filter.thresholds.{word}" for word in words) or "filter.thresholds.gopher_short_doc=30"
    out.print(
        f"Next: ingot run {outputs[0].address.split('/')[-1].rsplit('-', 1)[0]} {settings}", highlight=False, markup=False, soft_wrap=True
    )


def pick(store: Store, manifest: Manifest, prefix: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Random rows of a stage's parts; of rejects, those whose text was kept."""
    from tasks.corpus.document import read_rows

    chance = random.Random(seed)
    chosen: list[dict[str, Any]] = []
    rows = read_rows([store.path(manifest, f) for f in manifest.parts(prefix)])
    for place, row in enumerate(r for r in rows if r["text"]):
        if len(chosen) < count:
            chosen.append(row)
        elif (at := chance.randrange(place + 1)) < count:
            chosen[at] = row
    return chosen


def list_store(store: Store) -> None:
    table = Table("address", "in", "out", "bytes", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for thing in store.publications():
        table.add_row(thing.address, "", f"{thing.info.get('documents', '')}", "", "published")
    for address in store.addresses():
        manifest = store.manifest(address)
        if manifest is None:
            table.add_row(address, "", "", "", "incomplete")
        else:
            table.add_row(address, f"{manifest.seen:,}", f"{manifest.kept:,}", f"{sum(f.bytes for f in manifest.files):,}", "")
    out.print(table)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="corpora/demo/v1")],
    new: Annotated[str, typer.Argument(help="corpora/demo/v2")],
    store: StoreOption = None,
) -> None:
    """What differs between two versions of a corpus: documents, words and tokens, by source, language and site; what was rejected; surprises."""
    from tasks.corpus import changes

    place = open_store(store)
    found = changes.compare(place, *(place.version(address) for address in (old, new)))
    for head, rows in changes.tables(found):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        out.print(table)
    for surprise in found["surprises"]:
        out.print(f"[yellow]![/yellow] {escape(surprise)}", highlight=False)
    out.print(f"Next: ingot report {new}", highlight=False)


@app.command()
def report(
    address: Annotated[str, typer.Argument(help="corpora/demo/v1, or a stage's output of documents")],
    store: StoreOption = None,
    to: Annotated[Path | None, typer.Option(help="File to write; default: reports/ in the store")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other samples")] = 0,
) -> None:
    """A page to look at in a browser: from records to tokens, what is new, reasons with samples, signals with thresholds, what is in it, duplicates."""
    from tasks.corpus import overview

    target = overview.write(open_store(store), address, seed, to)
    out.print(f"{target}", highlight=False, soft_wrap=True)


@app.command()
def verify(address: Annotated[str | None, typer.Argument(help="Default: everything complete")] = None, store: StoreOption = None) -> None:
    """Check every file of a stage's output against its sha256; names what is damaged and how to make it anew."""
    place = open_store(store)
    for name in [address] if address else place.addresses():
        manifest = place.need(name) if address else place.manifest(name)
        if manifest is not None:
            place.verify(manifest)
            out.print(f"[green]✓[/green] {name}: {len(manifest.files)} files")


@app.command()
def takedown(
    corpus: Annotated[str, typer.Argument(help="Name of a published corpus")],
    url: Annotated[list[str] | None, typer.Option(help="Address of a document, exactly as the corpus has it; repeat for more")] = None,
    id: Annotated[list[str] | None, typer.Option(help="Id of a record; repeat for more")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Host name, its subdomains too; repeat for more")] = None,
    why: Annotated[str, typer.Option(help="What the receipt shall say of the reason")] = "",
    store: StoreOption = None,
) -> None:
    """Take documents out of a corpus for good: publishes the version without them, and no refresh brings them back. Prints the receipt.

    Try: `ingot takedown demo --url https://example.org/page --why 'letter of 3 May'`
    """
    place = open_store(store)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    with err.status("starting Prefect …"), prefect_api.api(place.base / "logs") as ready:
        from flows.takedown import named, withdraw

        named(place, corpus, id or [], url or [], domain or [])  # a mistake is told at once
        ready()
    receipt = withdraw(corpus, id or [], url or [], domain or [], why, store=place.url)
    if receipt["documents"]:
        out.print(f"{len(receipt['documents'])} documents found; {receipt['before']} is followed by {receipt['version']}")
    else:
        out.print(f"Nothing of that is in {receipt['before']}, which stays as it is; from here on no refresh brings it in.")
    for name, title in (("shards", "Shards"), ("models", "Models"), ("registered", "Registered versions"), ("held_by", "Still held by")):
        for address in receipt[name]:
            out.print(f"{title:<20} {address}", highlight=False)
    out.print(f"Receipt {receipt['number']} in takedowns/{corpus}.json", highlight=False)


@app.command()
def trace(
    model: Annotated[
        str | None, typer.Argument(help="What a model was made of: registered name, name@alias, name/version, or an address of the store")
    ] = None,
    url: Annotated[list[str] | None, typer.Option(help="What became of the records of this address; repeat for more")] = None,
    id: Annotated[list[str] | None, typer.Option(help="What became of this record; repeat for more")] = None,
    store: StoreOption = None,
) -> None:
    """Lineage in both directions: a model's corpora, snapshots and shards; or which corpora and models saw a record, and why it was kept or set aside.

    Try: `ingot trace ingot-demo@champion`, `ingot trace --url https://en.wikipedia.org/wiki/Lighthouse`
    """
    if bool(model) == bool(url or id):
        raise ConfigError("trace takes either a model, or --url and --id")
    place = open_store(store)
    from tasks.corpus import trace as lineage

    if model:
        return trace_model(place, model)
    for found in lineage.documents(place, id or [], url or []):
        out.print(
            f"[bold]{escape(found.row['url'] or found.origin)}[/bold]\n  id {found.row['id']}\n  {escape(found.origin)}", highlight=False
        )
        steps = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("stage", "", "why"):
            steps.add_column(name, overflow="fold")
        for step in found.steps:
            steps.add_row(step.address, "kept" if step.kept else "[red]set aside[/red]", escape(step.why))
        out.print(steps)
        for title, values in (("corpora", found.corpora), ("shards", found.shards), ("models", found.models)):
            out.print(f"  {title:<8} {', '.join(values) or 'none'}", highlight=False, markup=False)
        out.print()
    out.print("Next: ingot takedown CORPUS --id ID takes a document out for good", highlight=False)
    return None


def trace_model(store: Store, reference: str) -> None:
    """What a model was made of."""
    from flows.recipes import by_name
    from tasks import registry
    from tasks.corpus import trace as lineage

    made = lineage.model(store, registry.manifest_of(store, by_name("demo").register, reference))
    out.print(closing_table(made.stages))
    for title, values in (
        ("corpora", [f"{thing.address}, {thing.info['documents']:,} documents" for thing in made.corpora]),
        ("snapshots", made.snapshots),
        ("raw files", made.raw),
        ("shards", [f"{address}, {size:,} bytes" for address, size in made.shards]),
    ):
        more = f"\n{'':<11}and {len(values) - 20:,} more" if len(values) > 20 else ""
        out.print(f"{title:<10} " + f"\n{'':<11}".join(values[:20]) + more, highlight=False, markup=False, soft_wrap=True)
    if made.corpora:
        out.print(f"Next: ingot report {made.corpora[-1].address}; ingot trace --url URL follows one record the other way", highlight=False)


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="Of this registered model only")] = "",
    store: StoreOption = None,
) -> None:
    """Registered versions, newest first: aliases, size, corpus, what the gate said of each, and whether its exports agree with torch."""
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    found = registry.listed(place, by_name("demo").register, name)
    if not found:
        raise NotFoundError(f"no version of {name or 'any model'} is registered for {place.url}; `ingot run demo` makes one")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in (
        ("model", False),
        ("version", True),
        ("aliases", False),
        ("parameters", True),
        ("recipe", False),
        ("corpus", False),
        ("gate", False),
        ("exports", False),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for version, aliases in found:
        tags = {key.removeprefix("ingot."): value for key, value in version.tags.items()}
        size = f"{int(tags.get('parameters', 0)):,}"
        told = (
            version.name,
            str(version.version),
            ", ".join(aliases),
            size,
            tags.get("recipe", ""),
            tags.get("corpus", ""),
            tags.get("gate", ""),
            "\n".join(
                f"{key.removeprefix('export.')}: {value.split(':')[0]}" for key, value in sorted(tags.items()) if key.startswith("export.")
            ),
        )
        table.add_row(*map(escape, told))
    out.print(table)
    first = found[0][0]
    out.print(
        f"Next: ingot trace {first.name}/{first.version}; ingot promote {first.name}/{first.version}; ingot rollback {first.name}",
        highlight=False,
    )


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="NAME@ALIAS (followed when the alias moves), NAME/VERSION, an address of the store, a directory")
    ] = "",
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on")] = 8000,
    api_key: Annotated[str, typer.Option(envvar="INGOT_API_KEY", help="Key that every caller must bring; empty: none")] = "",
    slots: Annotated[int, typer.Option(min=1, help="Answers written at once")] = 16,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait for a place; more get 429")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer")] = 4096,
    threads: Annotated[int, typer.Option(min=0, help="Processors of one step; 0: all")] = 0,
) -> None:
    """Serve a model to OpenAI's clients: chat, completions, embeddings, as a stream or at once. Without MODEL, the newest champion.

    Try: `ingot serve ingot-demo@champion`, then `curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d
    '{"messages": [{"role": "user", "content": "What is a lighthouse?"}]}'`
    """
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    config = by_name("demo").register
    if not model:
        champions = [made.name for made, aliases in registry.listed(place, config) if "champion" in aliases]
        if not champions:
            raise NotFoundError(
                f"no champion is registered for {place.url}; `ingot run demo` makes one, or name a model: ingot serve MODEL"
            )
        model = f"{champions[0]}@champion"
    supervisor.need_port(host, port, "--port")
    with err.status(f"loading {escape(model)} …"):
        import logging

        import torch

        from deploy import serve as server
        from deploy.serving import Serving

        if threads:
            torch.set_num_threads(threads)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("ingot.serve").setLevel(logging.INFO)
        serving = Serving(lambda: registry.served(place, config, model), slots, waiting)
    url, found = f"http://{host}:{port}", serving.current.found

    def ready() -> None:
        out.print(
            f"{found.title} at {url}" + (f", of {found.corpus}" if found.corpus else "") + "; a page to talk to it is there too",
            highlight=False,
        )
        question = '{"messages": [{"role": "user", "content": "What is a lighthouse?"}], "temperature": 0}'
        secret = " -H 'Authorization: Bearer KEY'" if api_key else ""
        line = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{secret} -d '{question}'"
        out.print(f"\n{line}\n\nCtrl-C stops it.", highlight=False, markup=False, soft_wrap=True)

    server.run(serving, server.Limits(output=max_tokens), host, port, api_key, place.home / "feedback" / "chats.jsonl", ready)


@app.command("compare")
def compare_models(
    one: Annotated[str, typer.Argument(help="NAME/VERSION, NAME@ALIAS, or the address of a model's or an evaluate stage")],
    other: Annotated[str, typer.Argument(help="The same, of what is compared with it")],
    store: StoreOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the gains with their intervals here (.png, .svg)")] = None,
) -> None:
    """Two models' scores on the same items: differences with 95% intervals by a paired bootstrap, and which of them are more than noise.

    Try: `ingot compare ingot-demo/1 ingot-demo@champion --plot gains.png`
    """
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import compare, registry

    made = [
        place.need(name) if name.startswith("stages/") else registry.manifest_of(place, by_name("demo").register, name)
        for name in (one, other)
    ]
    scored = compare.scored(place, made[0], made[1])
    rows = compare.compare(place, *scored)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in (
        ("score", False),
        ("items", True),
        (one, True),
        (other, True),
        ("difference", True),
        ("95% of it", True),
        ("verdict", False),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        items = "" if row.items is None else f"{row.items:,}"
        between = f"{row.low:+.4f} to {row.high:+.4f}" if row.low is not None else ""
        table.add_row(row.score, items, f"{row.one:.4f}", f"{row.other:.4f}", f"{row.other - row.one:+.4f}", between, row.verdict)
    out.print(table)
    counted = {verdict: sum(row.verdict == verdict for row in rows) for verdict in compare.SAID}
    out.print(f"{other} is {', '.join(f'{verdict} in {count}' for verdict, count in counted.items())} of {sum(counted.values())} scores.")
    if plot:
        compare.figure(rows, (one, other)).savefig(plot)
        out.print(f"Drawn: {plot}", highlight=False)


@app.command("lm-eval")
def lm_eval_tasks(
    model: Annotated[str, typer.Argument(help="NAME/VERSION, NAME@ALIAS, a training stage's address, or a model directory")],
    tasks: Annotated[list[str], typer.Argument(help="Names of lm-evaluation-harness, as arc_easy")],
    store: StoreOption = None,
    include: Annotated[Path | None, typer.Option(help="Folder with task files (.yaml) of your own")] = None,
    shots: Annotated[int | None, typer.Option(help="Solved examples before each question; default: the task's own")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each task, for a first look")] = None,
) -> None:
    """Score a registered model on tasks of lm-evaluation-harness, whose datasets it fetches from the hub. Needs the extra `eval`.

    Try: `ingot lm-eval ingot-demo@champion arc_easy --limit 100`
    """
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("lm-evaluation-harness is not installed: pip install -c constraints.txt -e '.[eval]'") from None
    from deploy.lm_eval_model import Model

    folder = registry.resolve(place, by_name("demo").register, model)
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise NotFoundError(f"lm-evaluation-harness has no task {unknown[0]!r}; your own come by --include FOLDER")
    result = simple_evaluate(Model(folder), tasks=tasks, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False)
    assert result is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in (("task", False), ("metric", False), ("value", True), ("standard error", True)):
        table.add_column(column, justify="right" if right else "left")
    for task, scores in sorted(result["results"].items()):
        for name, value in sorted(scores.items()):
            metric, _, filtered = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = scores.get(f"{metric}_stderr,{filtered}")
                table.add_row(task, metric, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "")
    out.print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Registered name, name@alias, name/version, an address of the store, or a directory")],
    to: Annotated[str, typer.Option(help="hf, onnx, onnx-int8 or gguf")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: exports/MODEL/FORMAT in the store")] = None,
    store: StoreOption = None,
) -> None:
    """Write a model for other programs, and compare it with torch before it counts: logits, greedy tokens, tokenizer, chat template, end of turn.

    Try: `ingot export ingot-demo@champion --to onnx-int8`. A version with an export that disagrees cannot become champion.
    """
    place = open_store(store)
    from flows.recipes import by_name
    from tasks.export import export as write

    with err.status(f"writing {escape(to)} and comparing it with torch …"):
        made = write(place, by_name("demo").register, model, to, out_dir)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "", "found"):
        table.add_column(name, overflow="fold")
    for check in made.report.checks:
        table.add_row(check.name, "agrees" if check.agrees else "[red]disagrees[/red]", escape(check.found))
    out.print(table)
    told = f" MLflow knows it of {', '.join(made.versions)}." if made.versions else ""
    if not made.report.agrees:
        raise ParityError(
            f"the export to {to} disagrees with torch in {', '.join(check.name for check in made.report.failed)} and does not count. It lies in "
            f"{made.path} with its report, parity.json, to look at. Mend the "
            f"export, or take another format.{told}" + (" No version of these weights becomes champion until it agrees." if told else "")
        )
    size = sum(file.stat().st_size for file in made.path.iterdir())
    out.print(f"{made.path}: {size:,} bytes, all checks agree; the report is parity.json beside it.{told}", highlight=False, soft_wrap=True)
    out.print(f"Next: {NEXT[to].format(path=made.path, model=model)}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS")],
    store: StoreOption = None,
) -> None:
    """Make a registered version champion, whatever its scores, unless an export of it disagrees with torch. Try: `ingot promote ingot-demo@candidate`"""
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    made = registry.promote(place, by_name("demo").register, model)
    out.print(f"{made.name} version {made.version} is champion. Back: ingot rollback {made.name}", highlight=False)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Name of a registered model")],
    store: StoreOption = None,
) -> None:
    """Give champion back to the version that had it before. Try: `ingot rollback ingot-demo`"""
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    made = registry.rollback(place, by_name("demo").register, model)
    out.print(f"{made.name} version {made.version} is champion again. Next: ingot models {made.name}", highlight=False)


@app.command()
def gc(
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it this is a dry run")] = False,
) -> None:
    """List (or remove) stage outputs that nothing published, and no alias of the registry, was made from."""
    place = open_store(store)
    from flows.recipes import by_name
    from tasks import registry

    gone = collectable(place, registry.aliases(place, by_name("demo").register))
    table = Table("address", "bytes", "why", box=box.SIMPLE_HEAD, pad_edge=False)
    for address, size, why in gone:
        table.add_row(address, f"{size:,}", why)
        if yes:
            place.remove(address)
    out.print(table)
    total = sum(size for _, size, _ in gone)
    out.print(f"{'removed' if yes else 'would free'} {total:,} bytes" + ("" if yes or not gone else "; `ingot gc --yes` does it"))


@app.command()
def up(
    store: StoreOption = None,
    host: str = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(envvar="PREFECT_PORT")] = 4200,
    mlflow_port: Annotated[int, typer.Option(envvar="MLFLOW_PORT")] = 5000,
) -> None:
    """Prefect server, MLflow server and a worker in the foreground, with all deployments of prefect.yaml."""
    supervisor.up(
        open_store(store), host, prefect_port, mlflow_port, lambda text: out.print(text, highlight=False, markup=False, soft_wrap=True)
    )


def main() -> None:
    """Entry point: an error raised on purpose is one clear message and exit status 1 (2 for a mistake in the call)."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        app()
    except ConfigError as error:
        err.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        sys.exit(2)
    except IngotError as error:
        err.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        sys.exit(1)
