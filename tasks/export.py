"""Exports of a model: written, checked by the gate of deploy/parity.py, put in place by one rename, and told to the registry.

    made = export(store, recipe.register, "ingot-demo@champion", "onnx-int8")
    made.path, made.report.agrees

What disagrees with torch does not count: it lies at PATH.refused with its report, what was at PATH stays, and its version cannot become champion.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import ConfigError
from tasks import registry
from tasks.corpus.manifest import Store
from tasks.registry import RegistryConfig

if TYPE_CHECKING:
    from deploy.parity import Report


@dataclass(frozen=True)
class Exported:
    """An export and its verdict."""

    path: Path
    """Where it lies; PATH.refused if it disagrees."""
    report: "Report"
    versions: list[str]
    """NAME/VERSION of the registered versions of these weights, which were told."""


def export(store: Store, config: RegistryConfig, reference: str, to: str, out: Path | None = None) -> Exported:
    """Export a model named as for registry.resolve. `out` defaults to exports/MODEL/FORMAT in the store (beside a remote one, in ./.ingot).

    Raises ConfigError for an unknown format, a model that the format cannot say, or an `out` that holds something else; NotFoundError for no such model.
    """
    from deploy import parity

    if to not in parity.FORMATS:
        raise ConfigError(f"--to {to}: there is {', '.join(parity.FORMATS)}")
    folder, title, versions = registry.located(store, config, reference)
    path = (out or store.home / "exports" / title / to).absolute()
    if path.exists() and not (path.is_dir() and ((path / parity.FILE).exists() or not any(path.iterdir()))):
        raise ConfigError(f"{path} holds something that is no export; choose another --out")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _write(folder, scratch, to)
        report = parity.check(folder, scratch, to)
        kept = parity.keep(report, scratch)
        registry.told(store, config, versions, to, report.verdict, kept)
        if not report.agrees:
            path = path.with_name(f"{path.name}.refused")
        _place(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(path, report, [f"{made.name}/{made.version}" for made in versions])


def _write(folder: Path, out: Path, to: str) -> None:
    from deploy import export_gguf, export_hf, export_onnx

    if to == "hf":
        export_hf.export(folder, out)
    elif to == "gguf":
        export_gguf.export(folder, out)
    else:
        export_onnx.export(folder, out, "int8" if to == "onnx-int8" else "fp32")


def _place(scratch: Path, path: Path) -> None:
    """Rename into place; what was there before is removed after."""
    before = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(before)
    scratch.rename(path)
    shutil.rmtree(before, ignore_errors=True)
