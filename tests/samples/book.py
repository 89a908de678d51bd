"""The sample's e-book: source/books/orchard (title.txt and one XHTML body a chapter) -> OUT/files/the-last-orchard.epub.

A valid EPUB 3: `mimetype` stored first, every entry stored and dated alike, so the bytes depend on the sources
alone. Called by build.py.
"""

import uuid
import zipfile
from pathlib import Path

CONTAINER = """<?xml version="1.0" encoding="UTF-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
 <rootfiles><rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>
"""
PACKAGE = """<?xml version="1.0" encoding="UTF-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" xml:lang="en">
 <metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
  <dc:identifier id="id">urn:uuid:{identity}</dc:identifier>
  <dc:title>{title}</dc:title>
  <dc:language>en</dc:language>
  <dc:rights>CC0 1.0</dc:rights>
  <meta property="dcterms:modified">1970-01-01T00:00:00Z</meta>
 </metadata>
 <manifest>
  <item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
{items}
 </manifest>
 <spine>
{spine}
 </spine>
</package>
"""
PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" xml:lang="en">
<head><title>{title}</title></head>
<body>
{body}
</body>
</html>
"""


def build(source: Path, out: Path) -> None:
    """Write the e-book under OUT/files."""
    folder = source / "books" / "orchard"
    title = (folder / "title.txt").read_text("utf-8").strip()
    chapters = sorted(folder.glob("*.xhtml"))
    bodies = [chapter.read_text("utf-8").strip() for chapter in chapters]
    headings = [text.partition("<h1>")[2].partition("</h1>")[0] for text in bodies]
    links = "\n".join(f'<li><a href="{c.name}">{heading}</a></li>' for c, heading in zip(chapters, headings, strict=True))
    items = "\n".join(f'  <item id="{c.stem}" href="{c.name}" media-type="application/xhtml+xml"/>' for c in chapters)
    package = PACKAGE.format(
        identity=uuid.uuid5(uuid.NAMESPACE_URL, title),
        title=title,
        items=items,
        spine="\n".join(f'  <itemref idref="{chapter.stem}"/>' for chapter in chapters),
    )
    nav = PAGE.format(title=title, body=f'<nav epub:type="toc"><ol>\n{links}\n</ol></nav>')
    entries = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/content.opf": package,
        "OEBPS/nav.xhtml": nav,
    }
    for chapter, heading, text in zip(chapters, headings, bodies, strict=True):
        entries[f"OEBPS/{chapter.name}"] = PAGE.format(title=heading, body=text)
    file = out / "files" / "the-last-orchard.epub"
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            archive.writestr(info, content)
