"""Scores with their uncertainty: bounds hold what they promise, pairing takes out what is hard for both, unlike items are not compared."""

import models
import numpy as np
import pytest
from chain import asked
from click.testing import Result

from model.errors import InputError, NotFoundError
from model.evaluate import Item
from tasks import compare, evaluate
from tasks.corpus.manifest import Manifest, Store, run_stage


def answers(values, score="choice/facts"):
    return [Item(score, f"line {n}", float(value), 1.0) for n, value in enumerate(values)]


def test_bounds_of_a_share_hold_the_truth_about_19_times_in_20():
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = compare.intervals(answers(random.random(80) < 0.6))["choice/facts"]
        held += low <= 0.6 <= high
    assert 180 <= held <= 199


def test_bounds_of_bits_per_byte_weigh_documents_by_their_bytes():
    items = [
        Item("bits_per_byte", str(n), bits, size) for n, (bits, size) in enumerate([(10.0, 5.0), (900.0, 1000.0), (300.0, 200.0)] * 20)
    ]
    low, high = compare.intervals(items)["bits_per_byte"]
    assert low < 1210 / 1205 < high and high - low < 0.3
    assert compare.score("bits_per_byte", items) == pytest.approx(1210 / 1205)


def test_a_mean_over_files_is_resampled_file_by_file():
    found = compare.intervals([*answers([1] * 40, "choice/easy"), *answers([0, 1] * 20, "choice/hard")])
    assert found["choice/easy"] == (1, 1)
    assert found["choice"] == pytest.approx([(1 + bound) / 2 for bound in found["choice/hard"]])


def test_pairing_sees_a_gain_that_is_smaller_than_the_spread_of_the_items():
    random = np.random.default_rng(1)
    hard = random.normal(1000, 300, 50)
    one, other = (np.stack((bits, np.full(50, 1000.0)), axis=1) for bits in (hard, hard - 20 + random.normal(0, 5, 50)))
    low, high = compare.bounds(compare.resampled({"bits_per_byte": [one, other]})["bits_per_byte"])
    assert low < -0.02 < high < -0.015
    alone = compare.bounds(compare.resampled({"bits_per_byte": [one]})["bits_per_byte"])
    assert alone[1] - alone[0] > 0.1


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> tuple[Store, dict[str, Manifest]]:
    """Two models scored on the same files, and one of them on others."""
    folder = tmp_path_factory.mktemp("compare")
    store, found = Store(folder / "store"), {}
    for name, seed, most in (("one", 0, 12), ("other", 3, 12), ("elsewhere", 3, 5)):
        stages = models.chain(store, folder / name, seed)
        inputs = {"model": stages["finetune"], "base": stages["pretrain"], "evaluation": models.evaluation(store, most=most)}
        found[name] = run_stage(store, evaluate.EVALUATE, name, models.EVALUATE, inputs, lambda work: evaluate.score(work, models.EVALUATE))
    return store, found


def test_a_model_against_itself_is_within_the_noise_of_zero_width(scored):
    store, found = scored
    rows = compare.compare(store, found["one"], found["one"])
    assert {row.verdict for row in rows if row.low is not None} == {compare.SAID[2]}
    assert all((row.low, row.high) == (0, 0) for row in rows if row.low is not None)


def test_two_models_differ_by_what_their_items_differ(scored):
    store, found = scored
    rows = {row.score: row for row in compare.compare(store, found["one"], found["other"])}
    back = {row.score: row for row in compare.compare(store, found["other"], found["one"])}
    assert {"bits_per_byte", "choice", "choice_2shot", "minimal_pairs", "samples/stopped"} <= rows.keys()
    for name, row in rows.items():
        if row.low is None:
            assert name == "samples/stopped"
            continue
        assert row.low <= row.other - row.one <= row.high
        assert (back[name].low, back[name].high) == pytest.approx((-row.high, -row.low))
    turned = dict(zip(compare.SAID, (compare.SAID[1], compare.SAID[0], compare.SAID[2]), strict=True))
    assert all(back[name].verdict == turned[row.verdict] for name, row in rows.items() if row.low is not None)


def test_models_that_set_different_items_aside_are_judged_by_those_they_share(scored):
    """One answers 45 of 100, all among the fifty that the other can read at all, of which that answers 35."""
    store, found = scored
    said = {"one": [1] * 45 + [0] * 55, "other": [1] * 35 + [0] * 15}
    sides = []
    for name, values in said.items():
        items = store.home / f"{name}.parquet"
        compare.written(answers(values), items)
        inputs = dict.fromkeys(("evaluation", "model", "base"), store.need(found["one"].inputs["evaluation"]))
        metrics = {"choice/facts": sum(values) / len(values), "choice": sum(values) / len(values)}
        sides.append(models.made(store, "evaluate", inputs, {compare.ITEMS: items.read_bytes()}, {"metrics": metrics}, config=name))
    rows = {row.score: row for row in compare.compare(store, *sides)}
    for name in ("choice/facts", "choice"):
        row = rows[name]
        assert (row.one, row.other, row.items, row.verdict) == (0.9, 0.7, 50, "worse") and row.low <= row.other - row.one <= row.high < 0


def test_files_of_equal_length_are_resampled_apart():
    random = np.random.default_rng(0)
    same = random.random(200) < 0.5
    found = compare.intervals([item for name in "abcd" for item in answers(same, f"choice/{name}")])
    width = {name: high - low for name, (low, high) in found.items()}
    assert width["choice"] < 0.65 * width["choice/a"]  # of four independent files: half


def test_scores_of_other_items_are_not_compared(scored):
    store, found = scored
    with pytest.raises(InputError, match="scores of different items do not compare"):
        compare.compare(store, found["one"], found["elsewhere"])
    with pytest.raises(NotFoundError, match="was not evaluated"):
        compare.scored(store, found["one"], store.need(store.need(found["one"].inputs["model"]).inputs["examples"]))


def test_the_command_finds_the_scores_of_two_models_and_draws_them(scored, tmp_path):
    store, found = scored
    said: Result = asked(
        store.base, "compare", *(found[name].inputs["model"] for name in ("one", "elsewhere")), "--plot", str(tmp_path / "gains.png")
    )
    assert said.exit_code == 0, said.output
    assert "bits_per_byte" in said.output and "within the noise in" in said.output
    assert (tmp_path / "gains.png").read_bytes()[:4] == b"\x89PNG"
