"""Properties of tasks/space.py: what is typed becomes the space it says, every point of it is a recipe with the same tokens, and mistakes are named."""

import dataclasses
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as some

from flows import recipes
from model.config import to_dict
from model.errors import ConfigError
from tasks.space import Choices, Range, Sections, drawn, grid, parse, settled, shown, split, told

TINY = recipes.tiny()
BASE = Sections(TINY.model, TINY.pretrain)
POSITIVE = some.floats(1e-9, 1e3, allow_nan=False)


@given(low=POSITIVE, high=POSITIVE, log=some.booleans())
def test_a_range_is_what_was_typed(low, high, log):
    word = f"{low!r}..{high!r}" + ":log" * log
    if low < high:
        assert parse(BASE, {"pretrain.lr": word}) == {"pretrain.lr": Range(low, high, log, whole=False)}
    else:
        with pytest.raises(ConfigError, match="the range is empty"):
            parse(BASE, {"pretrain.lr": word})


@given(low=POSITIVE, high=POSITIVE, at=some.floats(0, 1))
def test_what_is_drawn_lies_within_and_is_told_in_full(low, high, at):
    assume(low < high)
    value = drawn(Range(low, high, False, False), low + at * (high - low))
    assert low <= value <= high
    assert float(shown(value)) == value
    assert value == settled(BASE, {"pretrain.lr": shown(value)}).pretrain.lr == settled(BASE, {"pretrain.lr": value}).pretrain.lr


@given(widths=some.lists(some.integers(8, 512), min_size=2, max_size=5, unique=True))
def test_choices_are_those_that_were_typed_in_order(widths):
    space = parse(BASE, {"model.width": ",".join(map(str, widths))})
    assert space == parse(BASE, {"model.width": widths}) == {"model.width": Choices(tuple(widths))}
    assert [settled(BASE, point).model.width for point in grid(space, 5)] == widths


@given(word=some.text(max_size=12))
@example(word="1,NaN")
@example(word="Infinity,2")
def test_any_word_is_a_space_or_a_configerror(word):
    for name in ("pretrain.lr", "pretrain.schedule", "model.width", "model.tie_embeddings", "model.attention"):
        try:
            space = parse(BASE, {name: word})
        except ConfigError as error:
            assert name in str(error)
        else:
            assert set(space) == {name}


def test_a_command_is_split_into_what_varies_and_what_is_set():
    words = {"pretrain.lr": "1e-4..1e-2:log", "pretrain.batch": "4,8", "model.attention": '["global","local"]', "pretrain.steps": "9"}
    words |= {"pretrain.objective": '{"kind": "spans", "rate": 0.15, "length": 3}', "register.model": "a,b"}
    axes, fixed = split(words)
    assert list(axes) == ["pretrain.lr", "pretrain.batch"]
    assert axes | fixed == words


@pytest.mark.parametrize("batch, steps", [(2, 16), (4, 8), (8, 4), (16, 2)])
def test_every_point_sees_the_same_tokens_and_is_measured_on_the_same_rows(batch, steps):
    base = dataclasses.replace(BASE, pretrain=dataclasses.replace(BASE.pretrain, micro_batch=1, warmup=2, valid_every=2))
    made = settled(base, {"pretrain.batch": batch, "pretrain.lr": 1e-3}).pretrain
    assert (made.steps, made.lr) == (steps, 1e-3)
    assert made.steps * made.batch == base.pretrain.steps * base.pretrain.batch
    assert made.valid_batches * made.batch == base.pretrain.valid_batches * base.pretrain.batch
    assert made.warmup / made.steps == pytest.approx(2 / 8, abs=1 / made.steps)
    assert made.steps // made.valid_every == min(4, made.steps)


def test_without_another_batch_nothing_but_the_point_differs():
    made = settled(BASE, {"model.width": 64, "pretrain.schedule": "wsd"})
    expected = to_dict(BASE)
    expected["model"]["width"], expected["pretrain"]["schedule"] = 64, "wsd"
    assert to_dict(made) == expected


@pytest.mark.parametrize(
    "name, word, said",
    [
        ("pretrain.lrr", "1,2", "unknown field 'pretrain.lrr' (did you mean 'lr'?)"),
        ("pretrain.lr", "2..1", "the range is empty"),
        ("pretrain.lr", "1..1", "the range is empty"),
        ("pretrain.lr", "0..1:log", "begins above 0"),
        ("pretrain.lr", "low..high", "a number on either side"),
        ("pretrain.lr", "1..inf", "a number on either side"),
        ("pretrain.lr", "-1..1", "'pretrain.lr': Input should be greater than 0"),
        ("pretrain.lr", "1,1.0,1", "two or more different values"),
        ("pretrain.lr", "1,,2", "a choice is empty"),
        ("pretrain.lr", "0.1", "two or more different values"),
        ("model.width", "8.5..9", "takes whole numbers"),
        ("model.dropout", "0..1", "the space holds model.dropout=1.0, which the recipe refuses"),
        ("model.heads", "2,4,-1", "the space holds model.heads=-1"),
        ("pretrain.batch", "4,6", "batch=6: validation has 16 rows"),
        ("pretrain.batch", "2,4", "batch (2) must be a multiple of micro_batch"),
        ("pretrain.batch", "4..8", "takes choices"),
        ("pretrain.schedule", "cosine,linear", "the space holds pretrain.schedule=linear"),
        ("pretrain.schedule", "0..1", "is no number"),
        ("pretrain.seed", "1,2", "--seeds"),
        ("pretrain.length", "32,64", "cannot be swept"),
        ("pretrain.objective.kind", "causal,spans", "cannot be swept"),
        ("pretrain.ranks", "1,2", "changes no result"),
        ("encode.seed", "1,2", "fields of model and pretrain"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(name, word, said):
    with pytest.raises(ConfigError) as caught:
        parse(BASE, {name: word})
    assert said in str(caught.value) and name in str(caught.value)


def test_a_combination_that_the_recipe_refuses_is_named():
    with pytest.raises(ConfigError, match=r"the space holds model.heads=2 model.kv_heads=4.*multiple of kv_heads"):
        parse(BASE, {"model.heads": "2,4", "model.kv_heads": "2,4"})


def test_a_grid_has_every_point_once_and_only_where_there_are_few():
    space = parse(BASE, {"model.width": "16,32,64", "pretrain.schedule": "cosine,wsd"})
    points = grid(space, 6)
    assert len({told(point) for point in points}) == len(points) == 6
    assert grid(space, 5) is None
    assert grid(parse(BASE, {"pretrain.lr": "0.1..0.2"}), 10**9) is None


def test_of_a_very_large_space_points_are_tried_by_lot():
    axes = {f"pretrain.{name}": "0.5,0.6,0.7,0.8" for name in ("beta1", "beta2", "momentum", "min_lr", "weight_decay", "clip")}
    assert math.prod(4 for _ in axes) > 2000
    assert len(parse(BASE, axes)) == 6
