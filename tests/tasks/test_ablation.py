"""Data ablation: the band of a difference holds what it promises, and a verdict needs more than noise."""

import numpy as np
import pytest

from flows import ablation as flow
from flows import recipes
from model.errors import ConfigError
from tasks.ablation import compared
from tasks.compare import SAID


def test_the_band_holds_the_true_difference_about_19_times_in_20():
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        row = compared("bits_per_byte", list(random.normal(2.0, 0.02, 3)), list(random.normal(1.97, 0.04, 3)))
        held += abs(row["difference"] + 0.03) <= row["band"]
    assert 270 <= held <= 300


def test_a_verdict_says_which_way_and_only_beyond_the_noise():
    assert compared("bits_per_byte", [2.0, 2.01, 1.99], [1.9, 1.91, 1.89])["verdict"] == SAID[0]
    assert compared("minimal_pairs/a", [0.5, 0.51, 0.52], [0.4, 0.41, 0.39])["verdict"] == SAID[1]
    assert compared("bits_per_byte", [2.0, 2.1, 1.9], [1.99, 2.05, 1.95])["verdict"] == SAID[2]
    assert compared("bits_per_byte", [2.0], [1.0])["band"] is None
    assert compared("bits_per_byte", [2.0, 2.0], [2.0, 2.0])["verdict"] == SAID[2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"filter.gopher": True}, "has the base's settings"),
        ({"pretrain.steps": 5}, "pretrain.steps is not of the corpus"),
        ({"model.width": 64}, "model"),
    ],
)
def test_what_is_no_ablation_of_data_is_refused(changed, said):
    base = recipes.tiny()
    with pytest.raises(ConfigError, match=said):
        flow.check(base, recipes.resolve(base, base, changed))
