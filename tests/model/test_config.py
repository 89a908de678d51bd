"""Configs: checked, overridden by dotted names, and fingerprinted by what matters only."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from model.config import STRICT, canonical, differing, fingerprint, from_dict, identity, override, resource, to_dict
from model.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    __pydantic_config__ = STRICT
    steps: Annotated[int, Field(ge=1)]
    rate: float
    workers: int = resource(default=1)


@dataclass(frozen=True)
class Outer:
    __pydantic_config__ = STRICT
    name: str
    train: Inner
    extra: Inner | None
    words: tuple[str, ...]


OUTER = Outer("a", Inner(3, 0.1, 2), None, ("x",))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_dotted_overrides_change_one_field_and_parse_shell_words():
    assert override(OUTER, {"train.steps": "5", "words": '["p", "q"]'}) == Outer("a", Inner(5, 0.1, 2), None, ("p", "q"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.step": 5}, ["'train.step'", "did you mean 'steps'"]),
        ({"train.steps": 0}, ["'train.steps'", "greater than or equal to 1", "got 0"]),
        ({"train.steps": "many"}, ["'train.steps'", "many"]),
        ({"extra.steps": 1}, ["'extra.steps'", "section is off"]),
        ({"nothing": 1}, ["'nothing'", "name, train"]),
    ],
)
def test_a_bad_override_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError) as caught:
        override(OUTER, changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_overrides_of_a_section_and_of_its_field_leave_what_was_given_as_it_was():
    given = {"extra": {"steps": 1, "rate": 0.5, "workers": 1}, "extra.steps": 7}
    assert override(OUTER, given).extra == Inner(7, 0.5, 1)
    assert given["extra"] == {"steps": 1, "rate": 0.5, "workers": 1}


def test_a_partial_section_names_the_missing_field():
    data = to_dict(OUTER)
    del data["train"]["rate"]
    with pytest.raises(ConfigError, match="'train.rate' is missing"):
        from_dict(Outer, data)


def test_an_unknown_field_of_a_section_is_refused_by_name():
    with pytest.raises(ConfigError, match="unknown field 'train.speed'"):
        from_dict(Outer, to_dict(OUTER) | {"train": to_dict(OUTER)["train"] | {"speed": 1}})


def test_plain_data_and_back_is_the_same_config():
    assert from_dict(Outer, to_dict(OUTER)) == OUTER


def test_resources_stay_out_of_the_identity():
    assert identity(OUTER) == identity(override(OUTER, {"train.workers": 9}))
    assert identity(OUTER) != identity(override(OUTER, {"train.rate": 0.2}))


@given(JSON)
def test_a_fingerprint_survives_json_and_key_order(data):
    import json

    again = json.loads(json.dumps(data))
    turned = dict(reversed(again.items())) if isinstance(again, dict) else again
    assert fingerprint(data) == fingerprint(turned)


@given(JSON, JSON)
def test_fingerprints_are_equal_exactly_when_canonical_forms_are(one, two):
    assert (fingerprint(one) == fingerprint(two)) == (canonical(one) == canonical(two))


def test_not_a_number_has_no_fingerprint():
    with pytest.raises(ValueError):
        fingerprint({"a": float("nan")})


def test_differing_names_leaves():
    assert differing({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 3}) == ["a.c", "d", "e"]
