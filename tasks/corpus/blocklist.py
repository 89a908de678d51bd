"""Lists of what is not wanted, from local files: domains, addresses and words of addresses. Looked up in sorted hashes, millions of entries in bounded memory.

    counts = compile_lists(paths, folder)                     # once: domains.npy, urls.npy, words.npy
    Blocklist(folder).find("https://shop.example.com/x")      # ("blocked_domain", "example.com"), ('', '') for what is on no list

A file is text, also .gz, an entry a line; blank lines and what follows a # are left out. What a line holds is told by its form:

    example.com   .example.com   *.example.com        a domain with all its subdomains (UT1's `domains`)
    0.0.0.0 example.com tracker.example.net           the same, as in a hosts file
    https://example.com/page?id=7   example.com/page   one address (UT1's `urls`)
    casino                                            a word, in files whose name begins with `words`

Scheme, user, `www.`, port, fragment and a slash at the end do not count; a host is compared in lower case and in its ASCII form (IDNA). A word is one run
of letters and digits of the address, case-folded, its %-codes undone.
"""

import array
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import xxhash

from model.errors import InputError
from tasks.corpus.document import settle

KINDS = ("domain", "url", "word")
REASONS = {kind: f"blocked_{kind}" for kind in KINDS}
PLAIN = re.compile(rb"(?:(?!www\.)[a-z0-9_-]+(?:\.[a-z0-9_-]+)+\n)*")
"""Lines that are domains in the form in which they are looked up."""
HOSTS = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]*:[0-9a-f:.]*(?:%\w+)?)\s+(.+)")
HOST = re.compile(r"[\w-]+(?:\.[\w-]+)+")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|//", re.IGNORECASE)
WORD = re.compile(r"[^\W_]+")
CHUNK = 1 << 16


def compile_lists(paths: Sequence[Path], folder: Path) -> dict[str, int]:
    """Write the sorted hashes of all entries into a folder. Returns how many there are of each kind, and `unread`: lines that are none of them.

    At most some 24 bytes of memory an entry. InputError names a file without any entry, and one that is not the gzip it is said to be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {kind: array.array("Q") for kind in KINDS}
    unread = 0
    for path in paths:
        words, wrong, before = path.name.startswith("words"), "", sum(map(len, found.values()))
        for chunk in _chunks(path):
            low = chunk.lower()
            if not words and PLAIN.fullmatch(low):
                found["domain"].extend(map(xxhash.xxh3_64_intdigest, low.split()))
                continue
            for line in chunk.decode("utf-8", "replace").lstrip("\ufeff").split("\n"):
                entries = _entries(line, words)
                if entries is None:
                    unread, wrong = unread + 1, wrong or line
                for kind, entry in entries or ():
                    found[kind].append(_hash(entry))
        if wrong and sum(map(len, found.values())) == before:
            raise InputError(
                f"{path} holds no entry of a block-list; its first line is {wrong[:80]!r}. Leave it out, or see tasks/corpus/blocklist.py."
            )
    counts = {"unread": unread}
    for kind in KINDS:
        hashes = np.frombuffer(found.pop(kind), np.uint64)
        hashes.sort()
        hashes = hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]
        counts[f"{kind}s"] = len(hashes)
        temporary = folder / f"{kind}s.npy.tmp"
        with open(temporary, "wb") as handle:
            np.save(handle, hashes)
        settle(temporary, folder / f"{kind}s.npy")
    return counts


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines, about CHUNK bytes at a time."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield (chunk + file.readline(CHUNK)).replace(b"\r", b"").rstrip(b"\n") + b"\n"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}). Fetch the block-list again, or leave it out.") from None


def _entries(line: str, words: bool) -> list[tuple[str, str]] | None:
    """(kind, entry) of what a line holds; None for a line that is no entry."""
    text = re.sub(r"(^|\s)#.*", "", line).strip()
    if not text:
        return []
    if words:
        return [("word", text.casefold())] if WORD.fullmatch(text) else None
    hosts = HOSTS.fullmatch(text.lower())
    if hosts:
        return [("domain", host) for name in hosts[1].split() if (host := _host(name)) and HOST.fullmatch(host)]
    if re.search(r"[\s\ufffd]", text):
        return None
    place = SCHEME.sub("", text, count=1)
    if re.search("[/?]", place.rstrip("/")):
        host, address = split(text)
        return [("url", address)] if HOST.fullmatch(host) else None
    host = _host(re.sub(r"^\*?\.", "", place.rstrip("/")))
    return [("domain", host)] if HOST.fullmatch(host) else None


def split(url: str) -> tuple[str, str]:
    """Host and whole address in the form in which they are looked up."""
    place = SCHEME.sub("", url.strip(), count=1).partition("#")[0]
    at = re.search("[/?]", place)
    host, rest = (place, "") if at is None else (place[: at.start()], place[at.start() :])
    host = _host(host)
    return host, host + rest.rstrip("/")


def _host(name: str) -> str:
    """A host without user, port and www., in ASCII and lower case."""
    name = name.rpartition("@")[2]
    if name.startswith("["):
        return name.partition("]")[0].lower() + "]"
    name = name.partition(":")[0].rstrip(".")
    name = name.lower() if name.isascii() else _ascii(name)
    rest = name.removeprefix("www.")
    return rest if "." in rest else name


def _ascii(name: str) -> str:
    import idna

    try:
        return idna.encode(name, uts46=True).decode().lower()
    except (idna.IDNAError, UnicodeError):
        return name.casefold()


def _hash(entry: str) -> int:
    return xxhash.xxh3_64_intdigest(entry.encode("utf-8", "surrogatepass"))


class Blocklist:
    """What compile_lists has written, memory-mapped."""

    def __init__(self, folder: Path):
        self._known = {kind: np.asarray(np.load(folder / f"{kind}s.npy", mmap_mode="r")) for kind in KINDS}

    def find(self, url: str) -> tuple[str, str]:
        """Reason, and the entry that an address is on a list for: its domain or the nearest one above, else itself, else its first such word."""
        if not url:
            return "", ""
        host, address = split(url)
        for kind, known in self._known.items():
            if len(known):
                entries = _above(host) if kind == "domain" else [address] if kind == "url" else _words(url)
                wanted = np.array([_hash(entry) for entry in entries], np.uint64)
                places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
                hits = np.flatnonzero(known[places] == wanted)
                if hits.size:
                    return REASONS[kind], entries[hits[0]]
        return "", ""


def _above(host: str) -> list[str]:
    """A host and the domains above it, down to two labels; of a number nothing is above."""
    if host.startswith("[") or not re.search(r"[^\d.]", host):
        return [host]
    labels = host.split(".")
    return [".".join(labels[n:]) for n in range(max(1, len(labels) - 1))]


def _words(url: str) -> list[str]:
    return WORD.findall(unquote(SCHEME.sub("", url, count=1)).casefold())


@lru_cache(maxsize=1)
def shared(folder: str) -> Blocklist:
    """One process works on many parts: open the lists once."""
    return Blocklist(Path(folder))
