"""A function run in a child process that a clock can really end.

    with Guard(function, seconds=20) as guard:
        guard.call(…)                 # the function's answer, or SlowError, DeadError

An alarm does not do: it is delivered to Python code, and lxml may sit in C for minutes (a tag of 200,000 attributes: 140 s). The child lives on from call
to call, so a call costs one trip through a pipe (about 0.1 ms); it is forked, so a new one costs milliseconds, not the imports.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self


class SlowError(Exception):
    """The call took longer than allowed; its process was killed."""


class DeadError(Exception):
    """The process died during the call (a crash in C code, or out of memory)."""


class Guard:
    """Calls one function in a child process, under a limit of wall-clock seconds a call. What the function raises is raised here as RuntimeError."""

    def __init__(self, function: Callable[..., Any], seconds: float):
        self.function, self.seconds = function, seconds
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._end()

    def call(self, *args: Any) -> Any:
        """The function's answer. SlowError after `seconds`, DeadError when the child died, RuntimeError for what the function raised."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send(args)
            if not self._pipe.poll(self.seconds):
                self._end()
                raise SlowError(f"{self.seconds:g} s")
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._end()
            raise DeadError(f"exit {code}") from None
        if not good:
            raise RuntimeError(answer)
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._pipe, self.function), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.join(0.5 if process.exitcode is not None else 0)
        process.kill()
        process.join()
        self._pipe.close()
        return process.exitcode


def _serve(pipe: Connection, parents: Connection, function: Callable[..., Any]) -> None:
    parents.close()
    while True:
        try:
            args = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)
