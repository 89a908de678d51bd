"""Write stages.json anew: golden hashes of what the corpus stages make of the sample. After raising the revision of a stage whose results changed.

python tests/golden/write.py
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]


def main() -> None:
    from chain import corpus, golden_of

    from flows import recipes
    from tasks.corpus.manifest import Store

    with tempfile.TemporaryDirectory() as folder:
        found = golden_of(corpus(Store(folder), recipes.tiny()))
    (HERE / "stages.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
