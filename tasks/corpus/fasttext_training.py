"""One fastText model, trained in a process of its own that imports little: texts with labels in, a model file out.

    MALLOC_PERTURB_=85 python -m tasks.corpus.fasttext_training TEXTS MODEL SETTINGS          # exit status 3 where the model is not finite

fastText reads memory that it has not written: without that variable a part of the runs ends in NaN, or silently in a bad model.
"""

import ctypes
import json
import os
import signal
import sys


def main(texts: str, model: str, settings: str) -> int:
    """Train on one thread; the same texts give the same bytes."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as engine.die_with_parent
    if os.getppid() != int(os.environ["INGOT_PARENT"]):
        return 1
    import fasttext
    import numpy as np

    made = fasttext.train_supervised(input=texts, thread=1, seed=1, loss="softmax", verbose=0, **json.loads(settings))
    if not np.isfinite(made.get_output_matrix()).all() or not np.isfinite(made.get_input_matrix()).all():
        return 3
    made.save_model(model)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
