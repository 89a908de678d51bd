"""The clock that really ends a call, and the process that serves the next one."""

import os
import time

import pytest

from tasks.corpus.guard import DeadError, Guard, SlowError


def work(what, value=None):
    if what == "sleep":
        time.sleep(value)
    if what == "die":
        os._exit(3)
    if what == "raise":
        raise ValueError(value)
    if what == "lxml":
        from lxml import html

        html.fromstring("<html><body><div " + " ".join(f"a{i}=1" for i in range(value)) + ">x</div></body></html>")
    return os.getpid() if what == "pid" else value


def test_calls_are_answered_by_one_process_that_is_not_ours():
    with Guard(work, 5) as guard:
        assert guard.call("echo", "文" * 100_000) == "文" * 100_000
        first, second = guard.call("pid"), guard.call("pid")
    assert first == second != os.getpid()


def test_a_parser_lost_in_c_is_ended_and_the_next_call_works():
    """200,000 attributes on one tag: libxml2 would look at them for two minutes, deaf to any alarm."""
    with Guard(work, 0.5) as guard:
        before = time.monotonic()
        with pytest.raises(SlowError):
            guard.call("lxml", 200_000)
        assert time.monotonic() - before < 3
        assert guard.call("echo", 1) == 1


def test_a_death_is_told_and_the_next_call_works():
    with Guard(work, 5) as guard:
        with pytest.raises(DeadError, match="3"):
            guard.call("die")
        assert guard.call("echo", 2) == 2


def test_an_exception_crosses_by_name_and_the_process_lives():
    with Guard(work, 5) as guard:
        pid = guard.call("pid")
        with pytest.raises(RuntimeError, match="ValueError: no"):
            guard.call("raise", "no")
        assert guard.call("pid") == pid


def test_the_process_ends_with_the_guard():
    with Guard(work, 5) as guard:
        pid = guard.call("pid")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_guard_that_was_never_called_has_no_process():
    with Guard(work, 5):
        pass
