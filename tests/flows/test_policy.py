"""Retries: what may succeed when tried again is tried again, a mistake is not; and Prefect decides nothing about what exists."""

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from model.errors import ConfigError, DamageError, IngotError, NetworkError, NonFiniteError, RankError, ServiceError
from tasks import decontaminate, dedup, encode, evaluate, extract, filter, ingest, policy, registry, train

pytestmark = pytest.mark.xdist_group("prefect")
TASKS = (
    *(
        ingest.common_crawl,
        ingest.wiki_dumps,
        ingest.local_files,
        extract.extract,
        filter.filter_,
        dedup.dedup,
        dedup.index,
        decontaminate.decontaminate,
    ),
    *(encode.tokenizer, encode.encode, train.pretrain, train.finetune, evaluate.evaluate, registry.register),
)


@pytest.fixture
def tries(prefect_server):
    """tries(preset, errors, …): for each list of errors, what comes of a task that raises them one after another and then succeeds (its value or
    error), and how often it ran. All in one flow: each flow run costs most of a second."""

    def tries(preset, *cases):
        found = []

        @task(**(preset | {"retry_delay_seconds": 0, "retry_jitter_factor": None}))
        def stage(left, ran):
            ran.append(1)
            if left:
                raise left.pop(0)
            return "made"

        @flow
        def all_of_them():
            for errors in cases:
                ran = []
                try:
                    came = stage(errors, ran)
                except (IngotError, OSError, ValueError) as error:
                    came = error
                found.append((came, len(ran)))

        all_of_them()
        return found

    return tries


@pytest.mark.parametrize("preset", [policy.NETWORK, policy.COMPUTE], ids=["network", "compute"])
def test_what_may_succeed_later_is_tried_again(tries, preset):
    errors = (
        NetworkError("503"),
        ServiceError("MLflow is away"),
        RankError("rank 3 died"),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
    )
    assert tries(preset, *([error] for error in errors)) == [("made", 2)] * len(errors)


def test_a_mistake_damage_or_defect_fails_at_once_with_its_message(tries):
    errors = ConfigError("bad field"), DamageError("part-3 is damaged"), NonFiniteError("step 7"), ValueError("a defect")
    for error, (came, ran) in zip(errors, tries(policy.NETWORK, *([error] for error in errors)), strict=True):
        assert (type(came), str(came), ran) == (type(error), str(error), 1)


def test_what_never_succeeds_is_given_up_with_its_own_error(tries):
    [(came, ran)] = tries(policy.COMPUTE, [RankError(f"died {n}") for n in range(9)])
    assert (type(came), str(came), ran) == (RankError, "died 2", 3)


def test_a_wait_that_the_other_side_asks_for_is_honoured_up_to_a_limit(tries, monkeypatch):
    waits = []
    monkeypatch.setattr(policy.time, "sleep", waits.append)
    assert tries(policy.NETWORK, [NetworkError("429", 12.5), NetworkError("503", 1e9), NetworkError("reset")]) == [("made", 4)]
    assert [w for w in waits if w in (12.5, policy.LONGEST_WAIT)] == [12.5, policy.LONGEST_WAIT]


def test_waits_grow():
    assert policy.NETWORK["retry_delay_seconds"](4) == [5, 10, 20, 40]
    assert policy.COMPUTE["retry_delay_seconds"](2) == [2, 4]


@pytest.mark.parametrize("stage", TASKS, ids=lambda t: t.name)
def test_every_stage_has_a_policy_and_no_cache(stage):
    assert stage.cache_policy == NO_CACHE
    assert stage.retry_condition_fn is policy.transient
    assert stage.retries > 0
