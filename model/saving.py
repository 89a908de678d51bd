"""Checkpoints written while training goes on: the training thread stands still only for a copy to main memory.

    writer = Writer(engine)
    engine.save_checkpoint(…)                  # DeepSpeed hands its files to the writer, which copies
    writer.start(lambda files: …)              # a thread writes, syncs and hashes them, then says which they are
    writer.wait()                              # before the next one, and before the run ends: one is in flight at most

Takes main memory for one more copy of what this rank saves.
"""

import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch


class Writer:
    """This rank's."""

    def __init__(self, engine: Any):
        self._copies: list[tuple[Any, Path]] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        engine.checkpoint_engine.save = self._take

    def _take(self, state_dict: Any, path: str) -> None:
        self._copies.append((copied(state_dict, {}), Path(path)))

    def start(self, done: Callable[[list[Path]], None]) -> None:
        """Write what was taken, in a thread that then calls `done` with the files."""
        copies, self._copies = self._copies, []

        def write() -> None:
            try:
                files = []
                while copies:
                    state, path = copies.pop(0)  # memory is given back file by file
                    torch.save(state, path)
                    files.append(path)
                done(files)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write, daemon=True)  # a run that fails does not wait for it: what is torn is passed over
        self._thread.start()

    def wait(self) -> None:
        """Return when what was started is done. Raises what went wrong in it."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            raise self._error


def copied(value: Any, seen: dict[Any, torch.Tensor]) -> Any:
    """A copy with every tensor in main memory. Tensors that are the same one (tied weights) stay so; of views no more than they show is kept."""
    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if type(value) in (list, tuple):
        return type(value)(copied(item, seen) for item in value)
    if isinstance(value, dict):
        twin = value.__class__()
        twin.update((key, copied(item, seen)) for key, item in value.items())
        return twin
    return deepcopy(value)
