"""Properties of tasks/sweep.py that need no training: whose lead is beyond noise, what a study remembers, what is drawn. The flow: tests/flows/test_sweep.py."""

import random
from dataclasses import replace

import optuna
import pytest
from scipy.stats import ttest_ind

from flows import recipes
from tasks.space import Choices, Range, parse
from tasks.sweep import (
    Outcome,
    Sections,
    SweepConfig,
    _ended_alike,
    _key,
    _plain,
    _suggest,
    _tell,
    compared,
    open_study,
    plots,
    pruner,
    ranked,
)

TINY = recipes.tiny()
SPACE = parse(Sections(TINY.model, TINY.pretrain), {"pretrain.lr": "1e-4..1e-2:log", "model.width": "16,32"})
CONFIG = SweepConfig(TINY.model, TINY.pretrain, SPACE, 8, "median", 2, 3, 1)


def points(*losses):
    """Finalists with these losses of further seeds; None is a training that diverged."""
    outcomes = [
        [Outcome(f"stages/{n}-{m}", loss, "" if loss is not None else "diverged", ()) for m, loss in enumerate(row)]
        for n, row in enumerate(losses)
    ]
    return ranked([(f"trial {n}", {"pretrain.lr": n}, row) for n, row in enumerate(outcomes)])


@pytest.mark.parametrize("seed", range(12))
def test_a_lead_is_beyond_noise_where_welchs_test_says_so(seed):
    chance = random.Random(seed)
    low, high = ([chance.gauss(mean, chance.choice((0.02, 0.2))) for _ in range(3)] for mean in (3.0, 3.0 + 0.1 * seed / 3))
    verdict = compared(points(low, high))
    assert verdict["beyond"] == (ttest_ind(low, high, equal_var=False).pvalue < 0.05)
    assert verdict["lead"] == pytest.approx(abs(sum(low) - sum(high)) / 3)
    assert ("beyond" if verdict["beyond"] else "within") in verdict["why"]


def test_the_best_mean_comes_first_with_its_standard_error_and_who_diverged_comes_last():
    first, second, third = points([3.0, None, 1.0], [2.0, 2.2, 2.1], [1.0, 1.2, 1.1])
    assert [row["name"] for row in (first, second, third)] == ["trial 2", "trial 1", "trial 0"]
    assert first["mean"] == pytest.approx(1.1) and first["error"] == pytest.approx(0.1 / 3**0.5)
    assert third["mean"] is None and third["ends"] == ["diverged"]


def test_with_one_seed_or_one_finalist_nothing_is_said_of_noise():
    assert compared(points([1.0], [2.0]))["beyond"] is None
    assert compared(points([1.0, 2.0]))["beyond"] is None
    assert compared(points([1.0, 1.1], [None, 2.0]))["beyond"] is None
    assert compared(points([1.0, 1.0], [2.0, 2.0]))["beyond"] is True


@pytest.mark.parametrize(
    "axis", [Range(1e-4, 1e-2, True, False), Range(2, 9, False, True), Choices((16, 32)), Choices(((1, 2), "a", None, 0.5))]
)
def test_what_optuna_suggests_stands_for_a_value_of_the_axis(axis):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        value = _plain(axis, _suggest(study.ask(), "x", axis))
        if isinstance(axis, Choices):
            assert value in axis.values and _plain(axis, _key(value)) == value
        else:
            assert axis.low <= value <= axis.high and isinstance(value, int) == axis.whole


def test_a_study_is_found_again_with_all_it_knew_and_what_was_going_on_can_go_on(store):
    study = open_study(store, "s", CONFIG)
    one, two, three = (study.ask() for _ in range(3))
    for trial in (one, two, three):
        trial.suggest_float("lr", 0, 1)
    one.report(5.0, 1)
    _tell(study, one, Outcome("stages/pretrain/a", 2.0, "", ((1, 5.0), (2, 3.0))))
    _tell(study, two, Outcome("", None, "pruned", ()))
    three.report(4.0, 1)
    again = open_study(store, "s", CONFIG)
    done, ended, going = again.get_trials()
    assert (done.value, done.intermediate_values, done.user_attrs["address"]) == (2.0, {1: 5.0, 2: 3.0}, "stages/pretrain/a")
    assert ended.state == optuna.trial.TrialState.PRUNED and ended.user_attrs["why"] == "pruned"
    assert going.state == optuna.trial.TrialState.RUNNING and going.params == three.params and going.intermediate_values == {1: 4.0}
    same = again.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
    assert _ended_alike(again, same) is None
    again.enqueue_trial(two.params)
    same = again.ask()
    same.suggest_float("lr", 0, 1)
    assert _ended_alike(again, same).number == two.number


@pytest.mark.parametrize("kind, ends", [("median", True), ("asha", True), ("none", False)])
def test_a_trial_that_is_worse_than_all_others_is_ended_after_warm_up(kind, ends):
    config = replace(CONFIG, pruner=kind)
    study = optuna.create_study(pruner=pruner(config))
    for level in range(6):
        one = study.ask()
        for rung in range(1, config.rungs + 1):
            one.report(1.0 + level / 10, rung)
            one.should_prune()  # by which successive halving learns of it
        study.tell(one, 1.0 + level / 10)
    last, said = study.ask(), []
    for rung in range(1, config.rungs):
        last.report(9.0, rung)
        said.append(last.should_prune())
    assert any(said) == ends and not said[0]


def test_plots_need_two_different_losses(tmp_path):
    study = optuna.create_study()
    for loss in (1.0, 1.0):
        one = study.ask()
        one.suggest_float("lr", 0, 1)
        _tell(study, one, Outcome("a", loss, "", ()))
    assert plots(study, study.get_trials(), tmp_path) == [] == list(tmp_path.iterdir())
