"""The dumps: source/wiki/{en,zh}/*.wiki -> OUT/wikimedia/, laid out as on the host that publishes them.

    wikimedia/<wiki>/index.html                                              lists the date
    wikimedia/<wiki>/19700101/dumpstatus.json                                size and sha1 of the file
    wikimedia/<wiki>/19700101/<wiki>-19700101-pages-articles.xml.bz2

A source file starts with the lines `# Title: …`, `# Id: …` and, outside the main namespace, `# Ns: …`; wikitext
follows. Pages stand in the order of file names. Called by build.py; the same sources give the same bytes.
"""

import bz2
import hashlib
import json
import re
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

DATE = "19700101"
NAMES = {"en": "Wikipedia", "zh": "维基百科"}
NAMESPACES = {
    -2: "Media", -1: "Special", 0: "", 1: "Talk", 2: "User", 3: "User talk",
    4: "Wikipedia", 5: "Wikipedia talk", 6: "File", 7: "File talk", 8: "MediaWiki", 9: "MediaWiki talk",
    10: "Template", 11: "Template talk", 12: "Help", 13: "Help talk", 14: "Category", 15: "Category talk",
}  # fmt: skip
SCHEMA = "http://www.mediawiki.org/xml/export-0.11/"
HEADER = re.compile(r"# Title: (?P<title>.+)\n# Id: (?P<id>\d+)\n(?:# Ns: (?P<ns>\d+)\n)?")
REDIRECT = re.compile(r"#(?:REDIRECT|重定向)\s*:?\s*\[\[([^\]|#]+)", re.IGNORECASE)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36_sha1(text: bytes) -> str:
    """The sha1 as MediaWiki writes it: 31 digits to the base 36."""
    number, digits = int(hashlib.sha1(text).hexdigest(), 16), ""
    while number:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits.zfill(31)


def siteinfo(lang: str) -> str:
    rows = "".join(
        f'      <namespace key="{key}" case="first-letter"' + (f">{name}</namespace>\n" if name else " />\n")
        for key, name in NAMESPACES.items()
    )
    return (
        "  <siteinfo>\n"
        f"    <sitename>{NAMES[lang]}</sitename>\n"
        f"    <dbname>{lang}wiki</dbname>\n"
        f"    <base>https://{lang}.wikipedia.org/wiki/Main_Page</base>\n"
        "    <generator>MediaWiki 1.43.0</generator>\n"
        "    <case>first-letter</case>\n"
        f"    <namespaces>\n{rows}    </namespaces>\n"
        "  </siteinfo>\n"
    )


def page(file: Path) -> str:
    """One <page>; the revision and its time follow from the page id."""
    source = file.read_text("utf-8")
    header = HEADER.match(source)
    if header is None:
        raise ValueError(f"{file}: the first lines must be '# Title: …' and '# Id: …'")
    number, text = int(header["id"]), source[header.end() :].rstrip("\n")
    target = REDIRECT.match(text)
    redirect = f"    <redirect title={quoteattr(target[1].strip())} />\n" if target else ""
    raw = text.encode()
    sha1 = base36_sha1(raw)
    body = escape(text, {'"': "&quot;"})
    return (
        "  <page>\n"
        f"    <title>{escape(header['title'])}</title>\n"
        f"    <ns>{header['ns'] or 0}</ns>\n"
        f"    <id>{number}</id>\n"
        f"{redirect}"
        "    <revision>\n"
        f"      <id>{10000 + number}</id>\n"
        f"      <parentid>{9000 + number}</parentid>\n"
        f"      <timestamp>1970-01-01T{number // 60:02}:{number % 60:02}:00Z</timestamp>\n"
        "      <contributor>\n        <username>Ingot</username>\n        <id>1</id>\n      </contributor>\n"
        "      <comment>a page of the sample</comment>\n"
        f"      <origin>{10000 + number}</origin>\n"
        "      <model>wikitext</model>\n"
        "      <format>text/x-wiki</format>\n"
        f'      <text bytes="{len(raw)}" sha1="{sha1}" xml:space="preserve">{body}</text>\n'
        f"      <sha1>{sha1}</sha1>\n"
        "    </revision>\n"
        "  </page>\n"
    )


def build(source: Path, out: Path) -> None:
    """Write `out`/wikimedia from `source`, the folder that holds en/ and zh/."""
    for lang in NAMES:
        wiki = f"{lang}wiki"
        xml = (
            f'<mediawiki xmlns="{SCHEMA}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:schemaLocation="{SCHEMA} http://www.mediawiki.org/xml/export-0.11.xsd" '
            f'version="0.11" xml:lang="{lang}">\n'
            + siteinfo(lang)
            + "".join(page(file) for file in sorted((source / lang).glob("*.wiki")))
            + "</mediawiki>\n"
        )
        blob = bz2.compress(xml.encode())
        name = f"{wiki}-{DATE}-pages-articles.xml.bz2"
        folder = out / "wikimedia" / wiki / DATE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
        facts = {"size": len(blob), "url": f"/{wiki}/{DATE}/{name}", "sha1": hashlib.sha1(blob).hexdigest()}
        job = {"status": "done", "updated": "1970-01-01 12:00:00", "files": {name: facts}}
        status = {"version": "0.8", "jobs": {"articlesdump": job}}
        (folder / "dumpstatus.json").write_text(json.dumps(status, indent=1) + "\n", "utf-8")
        (folder.parent / "index.html").write_text(f'<a href="{DATE}/">{DATE}/</a>\n', "utf-8")
