"""Properties of model/saving.py: what a copy is, and that writing it holds up nothing."""

import threading
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from model.saving import Writer, copied


def test_a_copy_is_of_its_own_keeps_ties_and_drops_what_views_do_not_show():
    tied, long = torch.arange(4.0), torch.arange(1000.0)
    state = OrderedDict(a=tied, b=[tied, (long[10:12], 3)], c={"text": "x", "none": None, "same": long.view(10, 100)})
    twin = copied(state, {})
    tied.zero_(), long.zero_()
    assert list(twin) == ["a", "b", "c"] and type(twin) is OrderedDict
    assert twin["a"].tolist() == [0, 1, 2, 3] and twin["b"][0] is twin["a"]
    assert twin["b"][1][0].tolist() == [10, 11] and twin["b"][1][0].untyped_storage().nbytes() == 8 and twin["b"][1][1] == 3
    assert twin["c"]["same"].shape == (10, 100) and twin["c"]["same"][9, 99] == 999 and twin["c"]["text"] == "x"


@pytest.fixture
def engine():
    return SimpleNamespace(checkpoint_engine=SimpleNamespace(save=None))


def test_training_goes_on_while_files_are_written_and_what_is_written_is_what_was(engine, tmp_path, monkeypatch):
    writer, weight, go, done = Writer(engine), torch.ones(3), threading.Event(), []
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda state, path: (go.wait(10), real(state, path)))
    engine.checkpoint_engine.save({"weight": weight}, str(tmp_path / "a.pt"))
    engine.checkpoint_engine.save({"weight": weight}, str(tmp_path / "b.pt"))
    writer.start(done.append)
    weight.zero_()
    assert done == [] and not (tmp_path / "a.pt").exists()
    go.set()
    writer.wait()
    assert done == [[tmp_path / "a.pt", tmp_path / "b.pt"]]
    assert all(torch.load(path)["weight"].tolist() == [1, 1, 1] for path in done[0])
    writer.wait()


def test_what_fails_in_the_thread_is_raised_where_it_is_waited_for(engine, tmp_path):
    writer = Writer(engine)
    engine.checkpoint_engine.save({}, str(tmp_path / "absent" / "a.pt"))
    writer.start(lambda files: pytest.fail("it was not written"))
    with pytest.raises((RuntimeError, OSError), match="absent"):
        writer.wait()
