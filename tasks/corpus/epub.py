"""E-books: the chapters of an EPUB in reading order, as HTML bytes, with bounds on what a hostile archive can make of itself.

    for chapter in chapters(path): chapter.html or chapter.problem

Members are read by name and never unpacked to disk, so a name cannot leave the archive. Source: EPUB 3.3, https://www.w3.org/TR/epub-33/
"""

import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from xml.parsers import expat

from model.errors import InputError

MAX_MEMBERS = 20_000
MAX_INDEX = 8 << 20
"""Bytes of container.xml, the package document or encryption.xml."""
MAX_CHAPTER = 16 << 20
"""Bytes of one chapter, unpacked."""
MAX_BOOK = 512 << 20
"""Bytes of all chapters, unpacked."""


@dataclass(frozen=True)
class Chapter:
    """One entry of the spine: its HTML, or the problem for which it is set aside."""

    number: int
    """Place in the spine, from 1."""
    name: str
    """Member of the archive."""
    book: str
    """Title of the book."""
    date: str
    html: bytes | None
    problem: str
    """too_large, missing_chapter, encrypted, broken_chapter or ''."""


def chapters(path: Path) -> Iterator[Chapter]:
    """Chapters in spine order; the navigation document is none. Raises InputError or zipfile.BadZipFile where the archive is no EPUB."""
    with zipfile.ZipFile(path) as archive:
        if len(archive.infolist()) > MAX_MEMBERS:
            raise InputError(f"{path.name} has {len(archive.infolist()):,} members, more than {MAX_MEMBERS:,}. It is no ordinary book.")
        package = _Package()
        _parse(_index(archive, "META-INF/container.xml"), package.container)
        if not package.root:
            raise InputError(f"{path.name}: META-INF/container.xml names no package document")
        _parse(_index(archive, package.root), package.opf, package.data)
        if "META-INF/encryption.xml" in archive.namelist():
            _parse(_index(archive, "META-INF/encryption.xml"), package.encryption)
        total = 0
        for number, name in enumerate(package.spine(), 1):
            html, problem = (None, "encrypted") if name in package.locked else _read(archive, name, min(MAX_CHAPTER, MAX_BOOK - total))
            total += len(html or b"")
            yield Chapter(number, name, package.title.strip(), package.date.strip(), html, problem)


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> tuple[bytes | None, str]:
    """A member of at most `limit` bytes (counted while unpacking; the archive's own figure may lie), or the problem."""
    try:
        with archive.open(name) as member:
            found = member.read(limit + 1)
    except KeyError:
        return None, "missing_chapter"
    except RuntimeError:  # zipfile: a password is required
        return None, "encrypted"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError):
        return None, "broken_chapter"
    return (None, "too_large") if len(found) > limit else (found, "")


def _index(archive: zipfile.ZipFile, name: str) -> bytes:
    found, problem = _read(archive, name, MAX_INDEX)
    if found is None:
        raise InputError(f"{archive.filename}: {name} is not readable ({problem}); this is no EPUB, or a damaged one")
    return found


def _parse(raw: bytes, start: Callable[[str, dict[str, str]], None], data: Callable[[str], None] | None = None) -> None:
    """Run XML through a handler of start tags (local names); declared entities are refused, since they can grow without bounds."""
    parser = expat.ParserCreate()

    def refuse(name: str, *rest: object) -> None:
        raise InputError(f"its XML declares an entity ({name[:50]!r}); entities are refused")

    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: start(tag.rpartition(":")[2], attributes)
    if data is not None:
        parser.CharacterDataHandler = data
        parser.EndElementHandler = lambda tag: start("", {})
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise InputError(f"its index is not well-formed XML ({error})") from None


class _Package:
    """What the archive's XML files say: where the package document lies, its items, their order, title and date."""

    def __init__(self) -> None:
        self.root = self.title = self.date = ""
        self.locked: set[str] = set()
        self._items: dict[str, tuple[str, str]] = {}
        self._order: list[str] = []
        self._tag = ""

    def container(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "rootfile" and not self.root:
            self.root = attributes.get("full-path", "")

    def encryption(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "CipherReference":
            self.locked.add(unquote(attributes.get("URI", "")))

    def opf(self, tag: str, attributes: dict[str, str]) -> None:
        self._tag = tag if (tag == "title" and not self.title) or (tag == "date" and not self.date) else ""
        if tag == "item":
            self._items[attributes.get("id", "")] = (attributes.get("href", ""), attributes.get("properties", ""))
        elif tag == "itemref":
            self._order.append(attributes.get("idref", ""))

    def data(self, text: str) -> None:
        if self._tag == "title":
            self.title += text
        elif self._tag == "date":
            self.date += text

    def spine(self) -> Iterator[str]:
        """Members in reading order; one that the manifest lacks goes by its id, so that it is counted as missing."""
        folder = posixpath.dirname(self.root)
        for ident in self._order:
            href, properties = self._items.get(ident, (ident, ""))
            if "nav" not in properties.split():
                yield posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))
