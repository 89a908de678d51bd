"""A model that is to be served, as the registry or a directory gives it. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """A model that is to be served."""

    name: str
    """What clients call it."""
    version: str
    """Of the registry; '' for a directory."""
    corpus: str
    """What it learnt from, as far as that is known."""
    page: str
    """Where a browser shows it; '' where nothing does."""
    folder: Callable[[], Path]
    """Gives its directory, fetched if need be."""

    @property
    def title(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}" if self.version else self.name
