"""Regenerate the sample from source/: the crawl, the dumps, the local files and truth.json.

    python tests/samples/build.py [--out DIR]      writes commoncrawl/, wikimedia/, files/ and truth.json
    python tests/samples/build.py --check          exits 1 and names what differs from the sources

Standard library only; the same sources give the same bytes. The check unpacks gzip members before it compares,
since another zlib may pack the same content differently.
"""

import argparse
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import book
import crawl
import truth
import wikimedia

HERE = Path(__file__).resolve().parent
BUILT = ("commoncrawl", "wikimedia", "files", "truth.json")


def build(out: Path) -> None:
    """Write the whole sample under `out`."""
    source = HERE / "source"
    shutil.copytree(source / "files", out / "files", dirs_exist_ok=True)
    crawl.build(source / "web", out)
    wikimedia.build(source / "wiki", out)
    book.build(source, out)
    truth.build(source, out)


def content(file: Path) -> bytes:
    """The bytes of a file, gzip members unpacked; a clipped last member gives what it holds."""
    left = file.read_bytes()
    if file.suffix != ".gz":
        return left
    found = []
    while left:
        member = zlib.decompressobj(wbits=31)
        found.append(member.decompress(left))
        left = member.unused_data
    return b"".join(found)


def differences(built: Path, kept: Path) -> list[str]:
    """Names of the files that are missing, left over or different in `kept`."""

    def listing(root: Path) -> set[Path]:
        tops = [root / name for name in BUILT]
        below = [file for top in tops for file in (top, *top.rglob("*")) if file.is_file()]
        return {file.relative_to(root) for file in below}

    names = listing(built) | listing(kept)
    return [
        str(name)
        for name in sorted(names)
        if not (built / name).exists() or not (kept / name).exists() or content(built / name) != content(kept / name)
    ]


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=HERE, help="folder to write to, or to check")
    ask.add_argument("--check", action="store_true", help="compare instead of writing")
    given = ask.parse_args()
    if not given.check:
        build(given.out)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        build(Path(fresh))
        found = differences(Path(fresh), given.out)
    for name in found:
        print(f"{name} differs from what source/ gives; run tests/samples/build.py")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
