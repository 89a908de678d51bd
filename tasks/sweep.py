"""A sweep: trials of pretraining at points of a space, the bad ones ended early, the best repeated with further seeds, and whether the best is better.

    manifest = sweep(store, "demo", SweepConfig(…), {"encode": …, "tokenizer": …}, tracker)

The study (optuna) lies in the store's home under sweeps/ and outlives a kill: what is finished is not tried again, what was going on goes on. A trial
is an ordinary pretrain stage, found again by its fingerprint. Out: trials.jsonl, importance.png, parallel.png; the table of the best in `info`.
"""

import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from prefect import task
from prefect.futures import PrefectFuture, as_completed
from pydantic import Field

from model.config import STRICT, ModelConfig, TrainConfig, canonical, fingerprint, resource
from model.errors import ConfigError, EmptyError, NonFiniteError, RoomError
from tasks import policy, train
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, locked, made_of, run_stage, stage_address
from tasks.curves import Row, curve
from tasks.report import ended, watch
from tasks.space import Point, Range, Sections, Space, drawn, grid, settled
from tasks.tracking import Tracker
from tasks.train import PRETRAIN, PretrainConfig

if TYPE_CHECKING:
    import optuna

SWEEP = Stage("sweep", 1)
CONFIDENCE = 0.95
"""Of the band within which a lead counts as noise."""
K = TypeVar("K")


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep tries."""

    __pydantic_config__ = STRICT

    model: ModelConfig
    """Shape of the model where the space says nothing."""
    pretrain: TrainConfig
    """Settings of the loop where the space says nothing."""
    space: Space
    """What is varied, by dotted field."""
    trials: Annotated[int, Field(ge=1)]
    """Points that are tried; a space of choices that has fewer is tried whole."""
    pruner: Literal["median", "asha", "none"]
    """What ends a trial early: a validation loss above the median of the others' there, or not among the best half (successive halving, Li et al. 2020)."""
    finalists: Annotated[int, Field(ge=1)]
    """Best points that are repeated; the recipe's own settings are repeated beside them."""
    seeds: Annotated[int, Field(ge=0)]
    """Further seeds of each; 0 repeats nothing, and then nothing is known of noise."""
    parallel: Annotated[int, Field(ge=1)] = resource()
    """Trainings at a time, which share this machine's cores."""

    @property
    def rungs(self) -> int:
        """Validations of one trial."""
        return self.pretrain.steps // self.pretrain.valid_every if self.pretrain.valid_every else 1

    @property
    def base(self) -> Sections:
        """What every point changes."""
        return Sections(self.model, self.pretrain)


@dataclass(frozen=True)
class Outcome:
    """How one training of a sweep ended."""

    address: str
    """Of its stage; '' where it did not come to its end."""
    loss: float | None
    """Validation loss at the end, nats a target."""
    why: str
    """'' at its end; pruned, diverged or no_room."""
    curve: tuple[tuple[int, float], ...]
    """Validation losses by rung, of one that came to its end: a killed sweep has not heard all of them, nor one that finds it complete."""


class PrunedError(Exception):
    """Raised within a training to end it for good."""


class StoppedError(Exception):
    """Raised within a training to end it because another one failed; it goes on when the sweep does."""


def sweep(store: Store, recipe: str, config: SweepConfig, inputs: Mapping[str, Manifest], tracker: Tracker) -> Manifest:
    """Try, repeat, compare; within a Prefect flow. Inputs as pretrain's. Killed anywhere and called again, it goes on.

    ConfigError where there is no held-out text to compare by, EmptyError where no trial came to its end.
    """
    if inputs["encode"].info["tokens"]["valid"] <= config.pretrain.length:
        raise ConfigError(
            f"{inputs['encode'].address} has {inputs['encode'].info['tokens']['valid']:,} tokens for validation, which trials are compared by; "
            f"one sample takes {config.pretrain.length + 1:,}. Raise encode.valid_share or take more text."
        )
    return ended(run_stage(store, SWEEP, recipe, config, inputs, lambda work: _Sweep(work, recipe, config, tracker).run()))


@task(name="trial", task_run_name="{name}", **policy.COMPUTE)
def trial(
    store: Store,
    recipe: str,
    config: PretrainConfig,
    inputs: Mapping[str, Manifest],
    name: str,
    rungs: int,
    judge: Callable[[int, float], bool],
    on_row: Callable[[Row], None],
    beside: int,
) -> Outcome:
    """One training. `judge(rung, loss)` of 1 … rungs says whether to end it there: its processes are ended and nothing of it is left."""

    def row(metrics: Row) -> None:
        on_row(metrics)
        if "valid_loss" in metrics:
            rung = metrics["step"] * rungs // config.train.steps
            if judge(rung, metrics["valid_loss"]) and rung < rungs:
                raise PrunedError

    why, steps = "", config.train.steps
    with watch(name) as progress:
        try:
            made = train.pretrained(store, recipe, config, inputs, row, progress, beside=beside)
        except PrunedError:
            why = "pruned"
        except NonFiniteError:
            why = "diverged"
        except RoomError:
            why = "no_room"
        progress(steps, steps, why or f"valid_loss {made.info['final']['valid_loss']:.4f}")
    if why:
        _clear(store, stage_address(PRETRAIN.name, recipe, fingerprint(made_of(PRETRAIN, config, inputs))))
        return Outcome("", None, why, ())
    seen = [(row["step"] * rungs // steps, row["valid_loss"]) for row in curve(store, made) if "valid_loss" in row]
    return Outcome(made.address, made.info["final"]["valid_loss"], "", tuple(seen))


def _clear(store: Store, address: str) -> None:
    """Remove what an ended training has left, unless another process has made it whole."""
    with locked(store, address):
        if store.manifest(address) is None:
            store.remove(address)


class _Sweep:
    """The body of the stage."""

    def __init__(self, work: Work, recipe: str, config: SweepConfig, tracker: Tracker):
        self.work, self.recipe, self.config, self.tracker = work, recipe, config, tracker
        apart = ("trials", "finalists", "seeds")
        source = made_of(SWEEP, config, work.inputs)
        source["config"] = {name: value for name, value in source["config"].items() if name not in apart}
        self.name = f"{recipe}-{fingerprint(source)[:10]}"  # more trials, or more seeds, go on with the same study
        self.stopped = False

    def run(self) -> Result:
        with locked(self.work.store, f"sweeps/{self.name}"):
            study = open_study(self.work.store, self.name, self.config)
            try:
                self._search(study)
                trials = study.get_trials()[: self._limit()]
                whole = _whole(trials)
                if not whole:
                    raise EmptyError(
                        f"none of {len(trials)} trials came to its end: {_counts(trials)}. Lower the learning rates of the space, or take --pruner none."
                    )
                final = self._repeat(whole[: self.config.finalists])
            except BaseException:
                self.stopped = True
                raise
            files = self._written(study, trials)
        counts = _counts(trials)
        kept = counts.pop("", 0)
        chosen = next(t for t in whole if final[0]["name"] in (f"trial {t.number}", "recipe"))
        best = {"settings": final[0]["settings"], "address": (final[0]["addresses"] or [chosen.user_attrs["address"]])[0]}
        info = {"study": self.name, "finalists": final, "verdict": compared(final), "best": best}
        return Result([(name, None) for name in files], len(trials), kept, counts, info)

    def _limit(self) -> int:
        points = grid(self.config.space, self.config.trials)
        return self.config.trials if points is None else len(points)

    def _point(self, found: "optuna.trial.FrozenTrial") -> dict[str, Any]:
        """A trial's settings as the recipe has them."""
        return {name: _plain(self.config.space[name], value) for name, value in found.params.items()}

    def _search(self, study: "optuna.Study") -> None:
        """Trials until there are as many as wanted, those first that a killed sweep left unfinished."""
        import optuna

        config, states = self.config, optuna.trial.TrialState
        for point in grid(config.space, config.trials) or ():
            study.enqueue_trial({name: _key(value) for name, value in point.items()}, skip_if_exists=True)
        left = [optuna.trial.Trial(study, t._trial_id) for t in study.get_trials(states=(states.RUNNING,))]

        def jobs() -> Iterator[tuple["optuna.Trial", Callable[[], PrefectFuture[Outcome]]]]:
            yield from ((one, self._job(study, one)) for one in left)
            while len([t for t in study.get_trials(deepcopy=False) if t.state != states.WAITING]) < self._limit():
                study.sampler = sampler(config, len(study.get_trials(deepcopy=False)))
                one = study.ask()
                for name, axis in config.space.items():
                    _suggest(one, name, axis)
                known = _ended_alike(study, one)
                if known is None:
                    yield one, self._job(study, one)
                else:
                    _tell(study, one, Outcome("", None, _why(known), ()))

        for one, outcome in _beside(jobs(), config.parallel):
            _tell(study, one, outcome)
            self._shown(f"trial {one.number}", outcome)

    def _job(self, study: "optuna.Study", one: "optuna.Trial") -> Callable[[], PrefectFuture[Outcome]]:
        """What starts a trial's training."""
        point = {name: _plain(axis, _suggest(one, name, axis)) for name, axis in self.config.space.items()}

        def judge(rung: int, loss: float) -> bool:
            if rung not in study.get_trials(deepcopy=False)[one.number].intermediate_values:
                one.report(loss, rung)
            return one.should_prune()

        return lambda: self._submit(f"trial {one.number}", point, self.config.pretrain.seed, judge)

    def _submit(self, name: str, point: Point, seed: int, judge: Callable[[int, float], bool]) -> PrefectFuture[Outcome]:
        made = settled(self.config.base, point)
        config = PretrainConfig(made.model, replace(made.pretrain, seed=seed))
        shown = dict(point) | {"pretrain.seed": seed}
        stream = self.tracker.trial(f"{self.name}/{name}", name, shown)

        def on_row(row: Row) -> None:
            if self.stopped:
                raise StoppedError
            stream(row)

        return trial.submit(
            self.work.store, self.recipe, config, self.work.inputs, name, self.config.rungs, judge, on_row, self.config.parallel
        )

    def _repeat(self, best: "Sequence[optuna.trial.FrozenTrial]") -> list[Row]:
        """These and the recipe's own settings with further seeds, the best mean first. The losses that chose the best are left out: they were
        chosen for being low. Without further seeds, only these as they are."""
        points: list[tuple[str, Point]] = [(f"trial {t.number}", self._point(t)) for t in best]
        if not self.config.seeds:
            alone = [[Outcome(t.user_attrs["address"], t.value, "", ())] for t in best]
            return ranked([(*one, outcomes) for one, outcomes in zip(points, alone, strict=True)])
        points.append(("recipe", {}))
        found: dict[str, list[Outcome]] = {name: [] for name, _ in points}

        def jobs() -> Iterator[tuple[tuple[str, str], Callable[[], PrefectFuture[Outcome]]]]:
            for more in range(self.config.seeds):
                for name, point in points:
                    seed = self.config.pretrain.seed + more + 1
                    alias = f"{name} seed {seed}"
                    yield (name, alias), partial(self._submit, alias, point, seed, _never)

        for (name, alias), outcome in _beside(jobs(), self.config.parallel):
            found[name].append(outcome)
            self._shown(alias, outcome)
        return ranked([(name, point, found[name]) for name, point in points])

    def _shown(self, name: str, outcome: Outcome) -> None:
        self.tracker.trial_ended(
            name, {} if outcome.loss is None else {"valid_loss": outcome.loss}, outcome.why or "complete", outcome.address
        )

    def _written(self, study: "optuna.Study", trials: Sequence["optuna.trial.FrozenTrial"]) -> list[str]:
        """trials.jsonl and the plots that the trials allow; names of the files."""
        rows = [
            {
                "trial": t.number,
                "settings": self._point(t),
                "valid_loss": t.value if _why(t) == "" else None,
                "ended": _why(t) or "complete",
                "address": t.user_attrs.get("address", ""),
                "rungs": {str(rung): loss for rung, loss in sorted(t.intermediate_values.items())},
            }
            for t in trials
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.work.dir / "trials.jsonl").write_text(text, encoding="utf-8")
        return ["trials.jsonl", *plots(study, trials, self.work.dir)]


def open_study(store: Store, name: str, config: SweepConfig) -> "optuna.Study":
    """The study of a sweep, made at the first call."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    place = store.home / "sweeps" / f"{name}.db"
    place.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{place}", engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="minimize", sampler=sampler(config, 0), pruner=pruner(config)
    )


def sampler(config: SweepConfig, number: int) -> "optuna.samplers.BaseSampler":
    """Tree-structured Parzen estimators (Bergstra et al. 2011), whose draws for a trial depend on the recipe's seed, its number and what is known."""
    import optuna

    begin = max(4, config.trials // 3)
    seed = (config.pretrain.seed * 1_000_003 + number) % 2**32
    return optuna.samplers.TPESampler(n_startup_trials=begin, seed=seed, constant_liar=config.parallel > 1)


def pruner(config: SweepConfig) -> "optuna.pruners.BasePruner":
    """What ends trials early."""
    import optuna

    first = 1 + config.rungs // 5  # what is said of a trial before is said of its warm-up
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=first, n_min_trials=3)
    if config.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    return optuna.pruners.NopPruner()


def ranked(points: Sequence[tuple[str, Point, Sequence[Outcome]]]) -> list[Row]:
    """Name, settings, losses, mean and standard error of each, the lowest mean first; one that did not always come to its end is last."""
    rows: list[Row] = []
    for name, point, outcomes in points:
        losses = [outcome.loss for outcome in outcomes if outcome.loss is not None]
        whole = bool(losses) and len(losses) == len(outcomes)
        mean = statistics.fmean(losses) if whole else None
        error = statistics.stdev(losses) / math.sqrt(len(losses)) if whole and len(losses) > 1 else None
        ends = sorted({outcome.why for outcome in outcomes if outcome.why})
        addresses = [outcome.address for outcome in outcomes if outcome.address]
        rows.append(
            {"name": name, "settings": dict(point), "losses": losses, "mean": mean, "error": error, "ends": ends, "addresses": addresses}
        )
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else row["mean"])


def compared(final: Sequence[Row]) -> dict[str, Any]:
    """The lead of the first over the second, the half width of its band (Welch's t at 95%; None where seeds are too few), and what that says."""
    from scipy.stats import t

    first, second = final[0], final[1] if len(final) > 1 else None
    if second is None or first["mean"] is None or second["mean"] is None:
        return {
            "lead": None,
            "band": None,
            "beyond": None,
            "why": "nothing to compare with: seeds is 0, or repeats did not come to their end",
        }
    lead = second["mean"] - first["mean"]
    if first["error"] is None or second["error"] is None:
        return {"lead": lead, "band": None, "beyond": None, "why": "with one seed nothing is known of noise"}
    spreads = [(row["error"] ** 2, len(row["losses"]) - 1) for row in (first, second)]
    total = sum(spread for spread, _ in spreads)
    if total == 0:
        return {"lead": lead, "band": 0.0, "beyond": lead > 0, "why": f"{first['name']} over {second['name']}: seeds make no difference"}
    freedom = total**2 / sum(spread**2 / degrees for spread, degrees in spreads if spread)
    band = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)
    word = "beyond" if lead > band else "within"
    return {
        "lead": lead,
        "band": band,
        "beyond": lead > band,
        "why": f"{first['name']} over {second['name']}: {lead:.4f} ± {band:.4f}, {word} noise",
    }


def plots(study: "optuna.Study", trials: Sequence["optuna.trial.FrozenTrial"], folder: Path) -> list[str]:
    """importance.png (fANOVA, Hutter et al. 2014) and parallel.png; where fewer than two trials came to their end, or all alike, there is nothing to plot."""
    whole = _whole(trials)
    if len({t.value for t in whole}) < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    import optuna
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as views

    shown = optuna.create_study(direction="minimize")
    shown.add_trials(whole)
    names = [name for name in whole[0].params if len({canonical(t.params[name]) for t in whole}) > 1]
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    figures = {
        "importance.png": lambda: views.plot_param_importances(shown, evaluator=evaluator, params=names, target_name="valid_loss"),
        "parallel.png": lambda: views.plot_parallel_coordinate(shown, params=names, target_name="valid_loss"),
    }
    for name, draw in figures.items():
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            figure: Any = draw().figure
        figure.set_size_inches(9, 5)
        figure.savefig(folder / name, bbox_inches="tight")
        pyplot.close(figure)
    return list(figures)


def _beside(jobs: Iterator[tuple[K, Callable[[], PrefectFuture[Outcome]]]], parallel: int) -> Iterator[tuple[K, Outcome]]:
    """Start jobs, `parallel` at a time, and give each with its outcome as it ends; the next is asked for only then."""
    going: dict[PrefectFuture[Outcome], K] = {}
    more = True
    while more or going:
        while more and len(going) < parallel:
            job = next(jobs, None)
            if job is None:
                more = False
            else:
                going[job[1]()] = job[0]
        if going:
            done = next(iter(as_completed(list(going))))
            yield going.pop(done), done.result()


def _suggest(one: "optuna.Trial", name: str, axis: Any) -> Any:
    if isinstance(axis, Range) and axis.whole:
        return one.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    if isinstance(axis, Range):
        return one.suggest_float(name, axis.low, axis.high, log=axis.log)
    return one.suggest_categorical(name, [_key(value) for value in axis.values])


def _key(value: Any) -> Any:
    """A choice as optuna takes it."""
    return value if isinstance(value, bool | int | float | str) or value is None else canonical(value)


def _plain(axis: Any, key: Any) -> Any:
    """The value that optuna's stands for."""
    return drawn(axis, key) if isinstance(axis, Range) else next(value for value in axis.values if _key(value) == key)


def _tell(study: "optuna.Study", one: "optuna.Trial", outcome: Outcome) -> None:
    """Settle a trial; what stopped it is on record first. One that diverged counts as pruned, so that the sampler learns from it."""
    import optuna

    one.set_user_attr("address", outcome.address)
    one.set_user_attr("why", outcome.why)
    if outcome.why:
        study.tell(one, state=optuna.trial.TrialState.PRUNED)
        return
    known = study.get_trials(deepcopy=False)[one.number].intermediate_values
    for rung, loss in outcome.curve:
        if rung > 0 and rung not in known:
            one.report(loss, rung)
            one.should_prune()  # by which successive halving learns of it
    study.tell(one, outcome.loss)


def _why(found: "optuna.trial.FrozenTrial") -> str:
    """What stopped a trial; '' where nothing did."""
    return str(found.user_attrs.get("why", ""))


def _whole(trials: "Sequence[optuna.trial.FrozenTrial]") -> "list[optuna.trial.FrozenTrial]":
    """Those that came to their end, the lowest loss first."""
    found = [(t.value, t.number, t) for t in trials if t.value is not None and not _why(t)]
    return [t for _, _, t in sorted(found, key=lambda one: one[:2])]


def _ended_alike(study: "optuna.Study", one: "optuna.Trial") -> "optuna.trial.FrozenTrial | None":
    """An earlier trial of the same point that was ended before its end, and need not be begun again."""
    alike = (t for t in study.get_trials(deepcopy=False) if t.number != one.number and t.params == one.params and t.state.is_finished())
    return next((t for t in alike if _why(t)), None)


def _counts(trials: Sequence["optuna.trial.FrozenTrial"]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in trials:
        found[_why(one)] = found.get(_why(one), 0) + 1
    return found


def _never(rung: int, loss: float) -> bool:
    return False
