"""All benchmarks one after another, and the table of figures with their goals.

    python tests/benchmarks/run.py [--quick] [--record] [--long]         `make bench`

--long adds the demo stretched to more than ten minutes (pretrain.steps), for the share of time outside stage bodies in a long run.
Run it on an idle machine: it takes about half an hour there.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Figure, arguments, machine, table

LONG = "pretrain.steps=4000"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--long", action="store_true")
    given = parser.parse_args()
    flags = [name for name, on in (("--quick", given.quick), ("--record", given.record)) if on]
    runs = [["chain.py"], ["train_speed.py"], ["memory.py"], *([["chain.py", "demo", LONG]] if given.long else [])]
    found: list[Figure] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as folder:
        for number, (script, *words) in enumerate(runs):
            print(f"\n== {' '.join([script, *words, *flags])}", flush=True)
            left = Path(folder) / f"{number}.json"
            command = [sys.executable, str(Path(__file__).with_name(script)), *words, *flags, "--json", str(left)]
            if subprocess.run(command).returncode:
                failed.append(script)
            else:
                found += [Figure(**figure) for figure in json.loads(left.read_text())]
    print(f"\n== all figures, on {machine()}")
    table(("figure", "value", "goal"), [figure.cells for figure in found])
    if given.json:
        given.json.write_text(json.dumps([vars(figure) for figure in found]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
