"""Properties of model/spikes.py: what is a spike, what is remembered, and a held optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.spikes import WINDOW, Spikes, held


def after(losses: list[float], sigmas: float = 6.0) -> Spikes:
    spikes = Spikes(sigmas)
    for loss in losses:
        spikes.seen(loss)
    return spikes


def test_a_loss_beyond_so_many_deviations_is_a_spike_and_one_below_is_not():
    losses = [2.0, 4.0] * 32  # mean 3, deviation 1.0079 (of a sample)
    assert after(losses).seen(9.0) is None
    assert after(losses).seen(9.1) == pytest.approx(3 + 6 * 1.0079, abs=1e-3)
    assert after(losses, 0.0).seen(1e9) is None
    assert after(losses).seen(-100.0) is None


def test_nothing_is_judged_before_half_the_window():
    assert after([2.0, 4.0] * (WINDOW // 4 - 1)).seen(1e9) is None


def test_a_lasting_rise_is_a_spike_only_at_first():
    spikes = after([1.0, 1.01] * 64)
    judged = [spikes.seen(loss) is not None for loss in [2.0, 2.01] * 64]
    assert judged[0] and not any(judged[10:])


@given(losses=st.lists(st.floats(0, 20), max_size=400), cut=st.integers(0, 400))
def test_what_is_kept_is_enough_to_judge_as_before(losses, cut):
    spikes, judged = Spikes(1.0), []
    for number, loss in enumerate(losses):
        if number == cut:
            spikes = Spikes(1.0, spikes.losses)
        judged.append(spikes.seen(loss))
    undisturbed = Spikes(1.0)
    assert judged == [undisturbed.seen(loss) for loss in losses] and len(undisturbed.losses) <= WINDOW


def test_a_held_optimizer_moves_neither_weights_nor_state():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    with held(optimizer):
        optimizer.step()
    assert weight.tolist() == [1, 1, 1] and not optimizer.state
    optimizer.step()
    assert weight[0] < 1 and optimizer.state[weight]["step"] == 1
