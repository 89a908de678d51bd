"""The corpus engine beside its peers: every script of issue 3 one after another, and the table of their figures with goals.

    python tests/benchmarks/corpus.py [--only NAME ...] [--quick] [--record]         `make bench-corpus`

What scripts need is made first, in a temporary folder: the mirror of ../shared/tools/make_mirror.py for refresh.py, the forests that have not seen a
fold of sites for extract_quality.py. A script that is not there, or whose data is not, is left out with a word; one that fails is named at the end.
Run it on an idle machine: it takes about an hour there.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from figures import REPO, Figure, arguments, clean_environment, machine, table

HERE = Path(__file__).parent
SHARED = REPO.parent / "shared"
SCRIPTS = {
    "warc_speed.py": "§1 reading", "extract_quality.py": "§1 main text", "rules_speed.py": "§2 rules", "rules_kept.py": "§2 what rules keep of Chinese", "pii_quality.py": "§2 personal data", "blocklist.py": "§2 block-lists",
    "quality_model.py": "§2 quality model",
    "language_accuracy.py": "§2 languages", "dedup_speed.py": "§3 dedup", "dedup_scale.py": "§3 dedup at scale", "refresh.py": "§4 refresh",
    "encode_speed.py": "§5 tokens", "engine_scaling.py": "§6 engines", "corpus_cost.py": "§8 cost of the whole chain", "memory.py": "§8 peak memory",
}  # fmt: skip
"""In the order of the issue."""
REAL = {"extract_quality.py", "rules_speed.py", "rules_kept.py", "refresh.py"}
"""Scripts that say nothing without the real sample data."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scripts alone, without .py")
    given = parser.parse_args()
    chosen = {script: about for script, about in SCRIPTS.items() if not given.only or script.removesuffix(".py") in given.only}
    if unknown := sorted(set(given.only or ()) - {script.removesuffix(".py") for script in SCRIPTS}):
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(script.removesuffix('.py') for script in SCRIPTS)}")
    flags = [name for name, on in (("--quick", given.quick), ("--record", given.record)) if on]
    sections: list[tuple[str, list[Figure]]] = []
    left_out, failed = [], []
    with tempfile.TemporaryDirectory(prefix="ingot-corpus-") as folder:
        for script, about in chosen.items():
            if why := missing(script):
                left_out.append(f"{script}: {why}")
                continue
            print(f"\n== {about}: {script}", flush=True)
            try:
                words = list(needed(script, Path(folder), given.quick))
                left = Path(folder) / f"{script}.json"
                run([str(HERE / script), *words, *flags, "--json", str(left)])
                sections.append((about, [Figure(**figure) for figure in json.loads(left.read_text())]))
            except subprocess.CalledProcessError as error:
                failed.append(f"{script} ({error.returncode})")
    every = [figure for _, figures in sections for figure in figures]
    print(f"\n== issue 3, on {machine()}")
    table(("section", "figure", "value", "goal"), [(about, *figure.cells) for about, figures in sections for figure in figures])
    goals = [figure for figure in every if figure.met is not None]
    print(f"\n{sum(bool(figure.met) for figure in goals)} of {len(goals)} goals met")
    for figure in goals:
        if not figure.met:
            print(f"missed: {figure.name}: {figure.value}, goal {figure.goal}")
    for line in left_out:
        print(f"left out: {line}")
    if given.json:
        given.json.write_text(json.dumps([vars(figure) for figure in every]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def missing(script: str) -> str:
    """Why a script cannot be run here, or nothing."""
    if not (HERE / script).is_file():
        return "not in this tree"
    if script in REAL and not (SHARED / "data").is_dir():
        return f"needs the real sample data at {SHARED / 'data'}"
    return ""


def needed(script: str, folder: Path, quick: bool) -> Iterator[str]:
    """Makes what a script needs and gives the words that lead it there."""
    if script == "refresh.py":
        run([str(SHARED / "tools" / "make_mirror.py"), "--data", str(SHARED / "data"), "--out", str(folder / "mirror")])
        yield str(folder / "mirror")
    if script == "extract_quality.py" and not quick:
        run([str(HERE / "train_main_text.py"), "--folds", str(folder / "folds")])
        yield from ("--tables", str(folder / "folds"))


def run(command: list[str]) -> None:
    """A script of ours in a process of its own, one thread a library. Raises CalledProcessError if it fails."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    subprocess.run([sys.executable, *command], check=True, env=clean_environment(**threads))


if __name__ == "__main__":
    main()
