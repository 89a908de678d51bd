"""The store: stage outputs addressed by what they are, published versions by name, and the manifest that makes either exist.

    stages/<stage>/<recipe>-<first 10 of fingerprint>/manifest.json, parts…      written last by one rename: no manifest, it did not happen
    corpora|tokenizers|models|indexes/<name>/<version>/manifest.json             immutable, refers to stage outputs by address

`run_stage` is the only way a stage's output comes to be: found again when its fingerprint is there, else built in place under a lock.
The root is any fsspec URL. A remote store works in a local cache folder and uploads parts, then the manifest by one conditional put: of two writers
one wins. For S3 install the extra `s3`; keys and endpoint are botocore's own variables:

    INGOT_STORE=s3://bucket/prefix AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_ENDPOINT_URL=http://host:9000 INGOT_CACHE=/big/disk ingot run small
"""

import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.config import differing, fingerprint, identity
from model.errors import BooksError, ConfigError, DamageError, IngotError, NetworkError, NotFoundError, RankError, SpaceError, StoreError
from tasks.corpus.document import file_sha256

log = logging.getLogger("ingot.store")
Progress = Callable[[float, float, str], None]
"""progress(done, total, unit): total 0 where it is not known."""
Kind = Literal["corpora", "tokenizers", "models", "indexes"]
FULL = 1 << 20
"""Bytes free below which a disk counts as full when a write has failed without saying why."""
BUCKETS = (("s3", "s3a"), ("gs", "gcs"))
"""Protocols without folders, whose clients would make a bucket of a mistyped name."""
PACKAGES = (
    "torch",
    "deepspeed",
    "prefect",
    "mlflow",
    "datatrove",
    "datasketch",
    "pyarrow",
    "tokenizers",
    "FastWARC",
    "resiliparse",
    "mwparserfromhell",
    "fasttext-numpy2-wheel",
    "opencc",
)


@dataclass(frozen=True)
class File:
    """One file of a manifest: path relative to its directory, size, rows (None where it has none), sha256."""

    path: str
    bytes: int
    rows: int | None
    sha256: str


@dataclass(frozen=True)
class Stage:
    """A stage's name and revision; the revision is raised by hand when the stage's results change."""

    name: str
    revision: int


@dataclass(frozen=True)
class Manifest:
    """What one stage made, of what, and its books. `content` is what later stages hash; it differs from `fingerprint` for ingest only."""

    address: str
    fingerprint: str
    content: str
    made_of: dict[str, Any]
    inputs: dict[str, str]
    files: tuple[File, ...]
    seen: int
    kept: int
    rejected: dict[str, int]
    info: dict[str, Any]
    reproducible: bool
    about: dict[str, Any]
    skipped: bool = field(default=False, compare=False)
    """True in memory when this call found the stage complete; never stored as True."""

    @property
    def stage(self) -> str:
        return str(self.made_of["stage"])

    def parts(self, prefix: str = "documents-") -> list[File]:
        """Files whose name begins with `prefix`, in the manifest's order."""
        return [f for f in self.files if Path(f.path).name.startswith(prefix)]


@dataclass(frozen=True)
class Publication:
    """A named, immutable version that refers to stage outputs."""

    kind: str
    name: str
    version: str
    fingerprint: str
    made_of: dict[str, Any]
    parts: tuple[str, ...]
    info: dict[str, Any]
    about: dict[str, Any]

    @property
    def address(self) -> str:
        return f"{self.kind}/{self.name}/{self.version}"


@dataclass
class Result:
    """What a stage's body returns. `files` are (path relative to work.dir, rows or None), in the order readers shall see them."""

    files: Sequence[tuple[str, int | None]]
    seen: int
    kept: int
    rejected: Mapping[str, int]
    info: dict[str, Any] = field(default_factory=dict)
    content: str | None = None
    reproducible: bool = True


@dataclass(frozen=True)
class Work:
    """What a stage's body is given: a directory to write into (scratch in `scratch`, removed afterwards), its inputs, and a way to report progress."""

    store: "Store"
    stage: str
    dir: Path
    inputs: Mapping[str, Manifest]
    fingerprint: str
    progress: Progress

    @property
    def scratch(self) -> Path:
        path = self.dir / "_work"
        path.mkdir(exist_ok=True)
        return path

    def paths(self, role: str, prefix: str = "documents-") -> list[Path]:
        """Verified local paths of an input's parts."""
        manifest = self.inputs[role]
        return [self.store.path(manifest, f) for f in manifest.parts(prefix)]


class Store:
    """One root: a path or any fsspec URL. `cache` is the local folder in which a remote store's files are worked on; default INGOT_CACHE, or a temporary
    folder of this user's. It must be on a file system that all nodes share where engine.kind is ray or slurm, and may be removed between two runs.
    """

    def __init__(self, root: str | Path, cache: str | Path | None = None):
        self.url = str(root)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)  # others write there too
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"no store can be opened at {self.url}: {error}. Set INGOT_STORE to a path, or to s3://bucket/prefix."
            ) from None
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local:
            self.base = Path(self.root).absolute()
        else:
            place = os.environ.get("INGOT_CACHE") or Path(tempfile.gettempdir()) / f"ingot-cache-{os.getuid()}"
            self.base = Path(cache or Path(place) / fingerprint(self.url)[:12]).absolute()
        self._checked: dict[tuple[str, int, int], None] = {}
        self._ready = self.is_local

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def home(self) -> Path:
        """Where what cannot lie in a remote store is kept: databases, settings, logs. The store itself, or ./.ingot beside a remote one."""
        return self.base if self.is_local else Path(".ingot").absolute()

    def dir(self, address: str) -> Path:
        """The local directory of an address (it may not exist yet)."""
        return self.base / address

    def _remote(self, address: str) -> str:
        return f"{self.root.rstrip('/')}/{address}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What a remote store's client raises becomes an error of ours; that something is there, or is not, stays as it is."""
        try:
            yield
        except (IngotError, FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            if self.is_local:
                raise
            raise StoreError(f"{self.url} refuses: {error}. Check the keys in the environment, and what they may do there.") from error
        except Exception as error:
            if self.is_local:
                raise
            raise NetworkError(f"{self.url}: {type(error).__name__}: {error}") from error

    def ready(self) -> None:
        """Once a process: a remote store must be there and take what is written, before a stage works for hours. StoreError when it does not."""
        if self._ready:
            return
        try:
            with self._asking():
                self.fs.pipe_file(self._remote("ready"), b"")
        except FileNotFoundError as error:
            raise StoreError(f"{self.url} is not there: {error}. Make the bucket, or set INGOT_STORE to another.") from None
        self._ready = True

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the store by its relative name, None where it does not exist."""
        try:
            with self._asking():
                raw = self.fs.cat_file(self._remote(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return json.loads(raw)
        except json.JSONDecodeError as error:
            raise DamageError(f"{name} in {self.url} is not JSON ({error}). Remove it and run the stage again.") from None

    def write_json(self, name: str, data: dict[str, Any], exclusive: bool = False) -> None:
        """Write JSON by one rename, or one put; `exclusive` refuses an existing remote file (conditional put)."""
        raw = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        if not self.is_local:
            try:
                with self._asking():
                    self.fs.pipe_file(self._remote(name), raw, **({"mode": "create"} if exclusive else {}))
            except FileExistsError:
                raise StoreError(
                    f"{name} in {self.url} was written by another run meanwhile. Run again: it will be found complete."
                ) from None
            return
        path = self.dir(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)

    def manifest(self, address: str) -> Manifest | None:
        """The manifest of a stage's output, None where it is not complete."""
        data = self.read_json(f"{address}/manifest.json")
        if data is None:
            return None
        try:
            return Manifest(**(data | {"files": tuple(File(**f) for f in data["files"])}))
        except (TypeError, KeyError) as error:
            raise DamageError(
                f"{address}/manifest.json in {self.url} is not a manifest ({error}). Remove it and run the stage again."
            ) from None

    def need(self, address: str) -> Manifest:
        """As `manifest`, but NotFoundError where it is not complete."""
        found = self.manifest(address)
        if found is None:
            raise NotFoundError(f"{address} is not in {self.url} (or not complete). `ingot show` lists what is there.")
        return found

    def find(self, stage: str, recipe: str, print_: str) -> Manifest | None:
        """A complete output of this fingerprint: the recipe's own first, then any recipe's."""
        own = self.manifest(stage_address(stage, recipe, print_))
        if own is not None and own.fingerprint == print_:
            return own
        for address in self.addresses(stage):
            if address.endswith(f"-{print_[:10]}"):
                other = self.manifest(address)
                if other is not None and other.fingerprint == print_:
                    return other
        return None

    def addresses(self, stage: str | None = None) -> list[str]:
        """Addresses of all stage outputs, complete or not, sorted."""
        stages = [stage] if stage else self._names("stages")
        return [f"stages/{s}/{name}" for s in stages for name in self._names(f"stages/{s}")]

    def _names(self, folder: str) -> list[str]:
        try:
            with self._asking():
                names = [Path(entry).name for entry in self.fs.ls(self._remote(folder), detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def path(self, manifest: Manifest, file: File, verify: bool = True) -> Path:
        """Local path of one file, fetched when the store is remote. Its size is checked, and with `verify`, or when it was fetched now, its sha256 (once a
        process). DamageError names it."""
        path = self.dir(manifest.address) / file.path
        problem = self._problem(path, file, verify)
        if problem and not self.is_local:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = f"{path}.{os.getpid()}.tmp"
            try:
                with self._asking():
                    self.fs.get_file(self._remote(f"{manifest.address}/{file.path}"), temporary)
            except FileNotFoundError:
                raise self._damage(manifest, file, "is missing") from None
            os.replace(temporary, path)
            problem = self._problem(path, file, verify=True)
        if problem:
            raise self._damage(manifest, file, problem)
        return path

    def _problem(self, path: Path, file: File, verify: bool) -> str:
        """What is wrong with a local file; '' where it is as its manifest says."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return "is missing"
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if stat.st_size != file.bytes:
            return _differs(file, stat.st_size, "")
        if verify and key not in self._checked:
            found = file_sha256(path)
            if found != file.sha256:
                return _differs(file, stat.st_size, found)
            self._checked[key] = None
        return ""

    def _damage(self, manifest: Manifest, file: File, what: str) -> StoreError:
        name = f"{manifest.address}/{file.path}"
        if file.path in self.dropped(manifest):
            return StoreError(f"{name} was dropped by keep_raw. Run the build again with --rebuild {manifest.stage} to fetch it.")
        return DamageError(f"{name} {what}. Run again with --rebuild {manifest.stage} to make it anew.")

    def verify(self, manifest: Manifest) -> None:
        """Check every file, where it is stored, against its sha256. DamageError names the first that differs."""
        dropped = self.dropped(manifest)
        for file in manifest.files:
            if file.path in dropped:
                continue
            if self.is_local:
                self.path(manifest, file)
                continue
            try:
                with self._asking(), self.fs.open(self._remote(f"{manifest.address}/{file.path}"), "rb") as handle:
                    size, found = handle.size, hashlib.file_digest(handle, "sha256").hexdigest()
            except FileNotFoundError:
                raise self._damage(manifest, file, "is missing") from None
            if found != file.sha256:
                raise self._damage(manifest, file, _differs(file, size, found))

    def dropped(self, manifest: Manifest) -> set[str]:
        """Files that keep_raw removed after use; they can be fetched again by origin."""
        return set((self.read_json(f"{manifest.address}/dropped.json") or {"files": []})["files"])

    def drop(self, manifest: Manifest, used: Mapping[str, Sequence[tuple[int, int]]]) -> int:
        """Remove the files of a manifest, on record; returns bytes freed. Of a file named in `used`, the byte ranges (offset, length) stay readable at
        their offsets in a sparse file; where a length is negative (a dump's pages have none) the file stays whole. A remote store keeps or removes whole files.
        """
        gone = [
            f for f in manifest.files if f.path not in self.dropped(manifest) and not any(length < 0 for _, length in used.get(f.path, ()))
        ]
        self.write_json(f"{manifest.address}/dropped.json", {"files": sorted(self.dropped(manifest) | {f.path for f in gone})})
        freed = 0
        for file in gone:
            path = self.dir(manifest.address) / file.path
            ranges = used.get(file.path, ())
            if ranges and path.exists():
                freed += file.bytes - _sparse(path, file.bytes, ranges)
            elif not ranges:
                path.unlink(missing_ok=True)
                freed += file.bytes
                if not self.is_local and self.fs.exists(self._remote(f"{manifest.address}/{file.path}")):
                    self.fs.rm_file(self._remote(f"{manifest.address}/{file.path}"))
        return freed

    def remove(self, address: str) -> None:
        """Remove an output: its manifest first, so that a half-removed one does not exist."""
        for name in (f"{address}/manifest.json", f"{address}/dropped.json"):
            if self.fs.exists(self._remote(name)):
                self.fs.rm_file(self._remote(name))
        if not self.is_local:
            for name in self.fs.find(self._remote(address)):  # not rm(recursive=True): it takes a name with brackets for a pattern
                self.fs.rm_file(name)
        shutil.rmtree(self.dir(address), ignore_errors=True)

    def size(self, address: str) -> int:
        """Bytes an address takes."""
        return int(self.fs.du(self._remote(address))) if self.fs.exists(self._remote(address)) else 0

    def publish(
        self, kind: Kind, name: str, version: str, parts: Sequence[Manifest], made_of: dict[str, Any], info: dict[str, Any]
    ) -> Publication:
        """Give stage outputs a name, once and for all. The same again is found; another content under the same version is a StoreError naming the differing fields."""
        full = made_of | {"parts": [p.content for p in parts]}
        thing = Publication(kind, name, version, fingerprint(full), full, tuple(p.address for p in parts), info, about(time.time()))
        old = self.published(kind, name, version)
        if old is None:
            try:
                self.write_json(f"{thing.address}/manifest.json", dataclasses.asdict(thing), exclusive=True)
            except StoreError:
                old = self.published(kind, name, version)  # another run was first
                if old is None:
                    raise
        if old is not None:
            if old.fingerprint != thing.fingerprint:
                raise StoreError(
                    f"{old.address} exists with another content; these fields differ: {', '.join(differing(old.made_of, full))}. "
                    "Give the recipe another version, or leave the version out of the overrides to get one with a suffix."
                )
            return old
        return thing

    def published(self, kind: str, name: str, version: str) -> Publication | None:
        """A published version, None where there is none."""
        data = self.read_json(f"{kind}/{name}/{version}/manifest.json")
        return None if data is None else Publication(**(data | {"parts": tuple(data["parts"])}))

    def version(self, address: str) -> Publication:
        """A published version by its address, corpora/demo/v1. NotFoundError where there is none."""
        found = self.published(*address.split("/")) if address.count("/") == 2 else None
        if found is None:
            there = [thing.address for thing in self.versions(*address.split("/")[:2])] if "/" in address else []
            hint = f"there are {', '.join(there)}" if there else "`ingot show` lists what is"
            raise NotFoundError(f"{address} is not published in {self.url}; {hint}.")
        return found

    def previous(self, thing: Publication) -> Publication | None:
        """The version that another was published over, None where it was the first or built alone."""
        return self.version(thing.made_of["previous"]) if thing.made_of.get("previous") else None

    def versions(self, kind: str, name: str) -> list[Publication]:
        """All published versions of a name, oldest first."""
        found = [self.published(kind, name, version) for version in self._names(f"{kind}/{name}")]
        return sorted((p for p in found if p is not None), key=lambda p: (p.about["finished"], p.version))

    def publications(self) -> Iterator[Publication]:
        """Everything published, of every kind."""
        for kind in ("corpora", "indexes", "tokenizers", "models"):
            for name in self._names(kind):
                yield from self.versions(kind, name)


def _differs(file: File, size: int, sha256: str) -> str:
    if size != file.bytes:
        return f"has {size:,} bytes; its manifest says {file.bytes:,}"
    return f"has sha256 {sha256[:12]}…; its manifest says {file.sha256[:12]}…"


def stage_address(stage: str, recipe: str, print_: str) -> str:
    return f"stages/{stage}/{recipe}-{print_[:10]}"


def made_of(stage: Stage, config: Any, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    """What a stage's fingerprint is the hash of: name, revision, the config's identity, the inputs' contents."""
    return {
        "stage": stage.name,
        "revision": stage.revision,
        "config": identity(config),
        "inputs": {role: m.content for role, m in inputs.items()},
    }


def lookup(store: Store, stage: Stage, recipe: str, config: Any, inputs: Mapping[str, Manifest]) -> Manifest | None:
    """The complete output of a stage for this config and these inputs, None where it would have to run."""
    return store.find(stage.name, recipe, fingerprint(made_of(stage, config, inputs)))


def run_stage(
    store: Store,
    stage: Stage,
    recipe: str,
    config: Any,
    inputs: Mapping[str, Manifest],
    body: Callable[[Work], Result],
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
    whole: bool = False,
) -> Manifest:
    """Find a stage's output or make it. `rebuild` makes it anew; `whole` makes it anew if keep_raw dropped files of it.

    The body resumes from what a killed run left in its directory. Raises whatever the body raises, BooksError if kept + rejected differs
    from seen, SpaceError when the disk is full.
    """
    source = made_of(stage, config, inputs)
    print_ = fingerprint(source)
    found = store.find(stage.name, recipe, print_)
    if rebuild and found is not None:
        store.remove(found.address)
        found = None
    if found is not None and whole and store.dropped(found):
        store.remove(found.address)
        found = None
    if found is not None:
        return dataclasses.replace(found, skipped=True)
    address = stage_address(stage.name, recipe, print_)
    store.ready()
    directory = store.dir(address)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(store, address):
        found = store.manifest(address)
        if found is not None:
            return dataclasses.replace(found, skipped=True)
        start = time.time()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            result = body(Work(store, stage.name, directory, inputs, print_, progress))
            return _settle(store, address, print_, source, inputs, result, start)
        except Exception as error:
            known = translate(error, directory)
            if known is error:
                raise
            raise known from error


def _settle(
    store: Store, address: str, print_: str, source: dict[str, Any], inputs: Mapping[str, Manifest], result: Result, start: float
) -> Manifest:
    rejected = dict(sorted(result.rejected.items()))
    if result.kept + sum(rejected.values()) != result.seen:
        raise BooksError(
            f"{address}: kept {result.kept:,} + rejected {sum(rejected.values()):,} is not seen {result.seen:,}. This is a defect of the stage: please report it with its config."
        )
    directory = store.dir(address)
    files = []
    for name, rows in result.files:
        path = directory / name
        files.append(File(name, path.stat().st_size, rows, file_sha256(path)))
        sync_directory(path.parent)
    if not store.is_local:
        for file in files:
            with store._asking():
                if store.fs.protocol not in BUCKETS:
                    store.fs.makedirs(str(Path(store._remote(f"{address}/{file.path}")).parent), exist_ok=True)
                store.fs.put_file(str(directory / file.path), store._remote(f"{address}/{file.path}"))
    manifest = Manifest(
        address=address, fingerprint=print_, content=result.content or print_, made_of=source, inputs={role: m.address for role, m in inputs.items()},
        files=tuple(files), seen=result.seen, kept=result.kept, rejected=rejected, info=result.info, reproducible=result.reproducible, about=about(start),
    )  # fmt: skip
    shutil.rmtree(directory / "_work", ignore_errors=True)
    data = dataclasses.asdict(manifest)
    del data["skipped"]
    try:
        store.write_json(f"{address}/manifest.json", data, exclusive=True)
    except StoreError:
        theirs = store.manifest(address)  # another run was first
        if theirs is None or theirs.files != manifest.files:
            raise
        return dataclasses.replace(theirs, skipped=True)
    return manifest


@contextmanager
def locked(store: Store, address: str) -> Iterator[None]:
    """One process at a time works on an address; a second waits. The kernel frees the lock of a killed one."""
    path = store.base / "locks" / f"{address.replace('/', '.')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s is being made by another process; waiting for it", path.stem)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sparse(path: Path, size: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Replace a file by a sparse one that holds these byte ranges only, at the same offsets. Returns the bytes kept."""
    temporary = path.with_name(path.name + ".tmp")
    kept = 0
    with open(path, "rb") as old, open(temporary, "wb") as new:
        new.truncate(size)
        for offset, length in sorted(set(ranges)):
            old.seek(offset)
            new.seek(offset)
            kept += new.write(old.read(length))
    os.replace(temporary, path)
    return kept


def translate(error: Exception, where: Path) -> Exception:
    """A full disk becomes a SpaceError; any other error stays as it is.

    Only Python's own writes say ENOSPC. NumPy, Rust and torch raise something else, and a process that cannot write just dies: then an all but full
    disk is the explanation.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and (isinstance(error, RankError) or not isinstance(error, IngotError)):
        full = where.exists() and shutil.disk_usage(where).free < FULL
    if not full:
        return error
    name = error.filename if isinstance(error, OSError) and error.filename else where
    return SpaceError(
        f"no room left on the device while writing {name}. Free some space (`ingot gc` lists what can go) and run again: it resumes."
    )


def sync_directory(path: Path) -> None:
    """fsync a directory, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that results may depend on."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def about(start: float) -> dict[str, Any]:
    """Where and with what something was made; outside every fingerprint. Times are seconds since 1970, UTC."""
    now = time.time()
    return {
        "started": start,
        "finished": now,
        "seconds": now - start,
        "host": platform.node(),
        "python": platform.python_version(),
        "git_commit": _commit(),
        "packages": versions(),
    }


def _commit() -> str:
    here = Path(__file__).parent
    asked = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def ancestors(store: Store, parts: Sequence[Manifest]) -> list[Manifest]:
    """What these outputs were made of, at however many removes, themselves first. What they were only compared with (previous-NNN, index-NNN) is not."""
    queue, found = list(parts), dict[str, Manifest]()
    while queue:
        manifest = queue.pop(0)
        if manifest.address not in found:
            found[manifest.address] = manifest
            before = (address for role, address in manifest.inputs.items() if not role.startswith(("previous-", "index-")))
            queue += [m for m in map(store.manifest, before) if m is not None]
    return list(found.values())


def collectable(store: Store, also: Sequence[str] = ()) -> list[tuple[str, int, str]]:
    """What `ingot gc` may remove: (address, bytes, why) of stage outputs that nothing published, and nothing in `also` (addresses that the registry's
    aliases refer to), was made from."""
    needed: set[str] = set()
    queue = [*also, *(address for thing in store.publications() for address in thing.parts)]
    while queue:
        address = queue.pop()
        if address not in needed:
            needed.add(address)
            manifest = store.manifest(address)
            queue += [] if manifest is None else manifest.inputs.values()
    gone = []
    for address in store.addresses():
        if address not in needed and not _busy(store, address):
            why = "nothing published refers to it" if store.manifest(address) else "incomplete"
            gone.append((address, store.size(address) or sum(f.stat().st_size for f in store.dir(address).rglob("*") if f.is_file()), why))
    return gone


def _busy(store: Store, address: str) -> bool:
    path = store.base / "locks" / f"{address.replace('/', '.')}.lock"
    if not path.exists():
        return False
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def free_bytes(store: Store) -> int:
    """Bytes free where the store works (for a remote store: its local cache)."""
    place = store.base
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(store: Store, needed: int) -> None:
    """SpaceError when `needed` bytes do not fit beside a reserve of 5%."""
    free = free_bytes(store)
    if needed * 1.05 > free:
        raise SpaceError(
            f"{store.url} needs about {needed:,} bytes and has {free:,} free. Lower the number of files or the byte budget, or free space: `ingot gc`."
        )
