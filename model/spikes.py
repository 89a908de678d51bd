"""Losses far above the last ones: the update of such a step is skipped, as OLMo's trainer does (OLMo 2, 2025).

What is kept (the last losses) travels in a checkpoint's record, so that a resumed run judges as the undisturbed one would.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

WINDOW = 128
"""Steps whose losses are compared with; nothing is judged before half of them are there."""


class Spikes:
    """Judges each loss by mean and deviation of the last WINDOW before it, skipped ones included: a lasting rise is a spike only at first."""

    def __init__(self, sigmas: float, losses: Iterable[float] = ()):
        self.sigmas = sigmas
        self._losses = deque(losses, maxlen=WINDOW)

    @property
    def losses(self) -> list[float]:
        """What a checkpoint must keep."""
        return list(self._losses)

    def seen(self, loss: float) -> float | None:
        """Take in a step's loss. Returns the bound that it exceeds, or None; 0 sigmas bound nothing."""
        bound = None
        if self.sigmas and len(self._losses) >= WINDOW // 2:
            bound = statistics.fmean(self._losses) + self.sigmas * statistics.stdev(self._losses)
        if self.sigmas:
            self._losses.append(loss)
        return bound if bound is not None and loss > bound else None


@contextmanager
def held(optimizer: Any) -> Iterator[None]:
    """Within it a torch optimizer's `step` changes nothing, neither weights nor state; DeepSpeed does all else, dropping gradients included."""
    optimizer.step = lambda *_, **__: None
    try:
        yield
    finally:
        del optimizer.step
