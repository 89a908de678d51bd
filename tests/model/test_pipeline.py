"""Properties of model/pipeline.py: what each stage holds and does when. What stages compute together: tests/model/test_train.py."""

from hypothesis import given
from hypothesis import strategies as st

from model import pipeline


@given(total=st.integers(1, 40), stages=st.integers(1, 8))
def test_stages_hold_every_layer_once_in_order_and_evenly(total, stages):
    stages = min(total, stages)
    held = [pipeline.layers(total, stages, stage) for stage in range(stages)]
    assert [layer for layers in held for layer in layers] == list(range(total))
    assert max(map(len, held)) - min(map(len, held)) <= 1 and len(held[-1]) == min(map(len, held))


@given(stages=st.integers(1, 6), parts=st.integers(1, 12))
def test_no_stage_waits_for_one_that_waits_and_few_micro_batches_are_held(stages, parts):
    """A simulation in which receiving waits for what was sent: every stage comes to its end."""
    left = [list(pipeline.order(stages, stage, parts)) for stage in range(stages)]
    for stage, moves in enumerate(left):
        assert sorted(moves) == sorted((forward, part) for forward in (True, False) for part in range(parts))
        assert all([part for kind, part in moves if kind is forward] == list(range(parts)) for forward in (True, False))
        held = [sum(1 if forward else -1 for forward, _ in moves[:n]) for n in range(len(moves) + 1)]
        assert min(held) == 0 and max(held) == min(parts, stages - stage)
    done: list[set] = [set() for _ in range(stages)]
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while left[stage]:
                forward, part = left[stage][0]
                source = stage - 1 if forward else stage + 1
                if 0 <= source < stages and (forward, part) not in done[source]:
                    break
                done[stage].add(left[stage].pop(0))
                moved = True
    assert left == [[] for _ in range(stages)]


def test_one_stage_goes_back_from_each_micro_batch_at_once():
    assert list(pipeline.order(1, 0, 3)) == [(True, 0), (False, 0), (True, 1), (False, 1), (True, 2), (False, 2)]
