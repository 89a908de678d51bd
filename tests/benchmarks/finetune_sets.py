"""Fine-tuning on public sets: scores beside their baselines, from a small encoder and a small decoder that are trained here first.

    python tests/benchmarks/finetune_sets.py [--quick] [--record] [--only SET]

Sets: ../shared/data, banking77, CMRC 2018's trial set, CrossWOZ's validation dialogues, Self-Instruct's seed tasks; one in ten of each is held out. The
starts learn the sets' own training texts, the encoder by masked tokens, the decoder by the next; they know nothing else. Then `ingot finetune RECIPE` is
run as a user would, with fewer and shorter steps. A decoder of some million parameters is no match for a language model: what counts is each row's
baseline.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}
REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
DATA = REPO.parent / "shared" / "data"
SETS = {
    "banking77": ("finetune/banking77", "banking_data/train.csv"),
    "cmrc": ("eval/cmrc2018", "squad-style-data/cmrc2018_trial.json.gz"),
    "crosswoz": ("finetune/crosswoz", "data/crosswoz/val.json.zip"),
    "self_instruct": ("finetune/self-instruct-seed", "seed_tasks.jsonl"),
}
LORA = '{"kind": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": ["q", "k", "v", "o", "up", "down"]}'
SOFT = '{"kind": "prompt", "tokens": 20}'
BANK = "finetune.lr=0.002"
RUNS: list[tuple[str, str, str, Sequence[str]]] = [
    ("banking77, labels", "encoder", "banking77", ["finetune.steps=400", BANK]),
    ("banking77, labels", "decoder", "banking77", ["finetune.steps=300", BANK]),
    ("banking77, labels, LoRA", "decoder", "banking77", ["finetune.steps=300", "finetune.lr=0.01", f"finetune.adapter={LORA}"]),
    ("banking77, labels, soft prompt", "decoder", "banking77", ["finetune.steps=300", "finetune.lr=0.02", f"finetune.adapter={SOFT}", "finetune.length=84", "prompts.rated=[]"]),
    ("banking77, chats by template intent_en", "decoder", "banking77",
     ["finetune.steps=300", BANK, "prompts.trained=intent_en", "prompts.rated=[]", 'finetune.objective={"kind": "causal"}', "finetune.length=128"]),
    ("CMRC, answers", "encoder", "cmrc", ["finetune.steps=300", "finetune.length=256", "finetune.batch=8", "finetune.lr=0.001"]),
    ("CrossWOZ, chats, LoRA", "decoder", "crosswoz", ["finetune.steps=60", "finetune.length=512", "finetune.batch=4", "finetune.lr=0.005"]),
    ("Self-Instruct, chats, LoRA", "decoder", "self_instruct", ["finetune.steps=30", "finetune.length=512", "finetune.batch=4", "finetune.lr=0.005"]),
]  # fmt: skip
QUICK = ["finetune.steps=4", "prompts.items=2"]
SPARE = ["finetune.warmup=4", "finetune.valid_every=0", "finetune.valid_batches=1", "finetune.save_every=1000", "prompts.items=40"]


def texts() -> list[str]:
    """The training texts of all sets, each once."""
    from tasks.corpus.examples import read

    found: dict[str, None] = {}
    for folder, name in SETS.values():
        for row in read(DATA / folder / name, name):
            if row["split"] == "train":
                parts = [row[key] for key in ("text", "context") if key in row]
                found |= dict.fromkeys(parts or ["\n".join(message["content"] for message in row["messages"])])
    return list(found)


def starts(folder: Path, steps: int) -> None:
    """encoder/ and decoder/: model directories, trained on the sets' training texts."""
    from flows.recipes import train as settings
    from model import tokenizer
    from model.config import Causal, Masked, Run, bert, qwen3, to_dict
    from model.shards import ShardWriter, dtype_for
    from model.train import launch

    every = texts()
    words = tokenizer.train(every, 4000)
    vocab = tokenizer.vocab_size(words)
    tokenizer.save(words, folder / "tokenizer")
    with ShardWriter(folder / "train", dtype_for(vocab)) as writer:
        for ids in tokenizer.encode_documents(words, every):
            writer.add(ids)
    masked = Masked("masked", 0.15, 0.15, 0.8, 0.1, False)
    for name, shape, objective in (
        ("encoder", bert(width=128, layers=3, heads=4, ffn_width=384, context=512, dropout=0.1), masked),
        ("decoder", qwen3(width=128, layers=3, heads=4, kv_heads=2, ffn_width=384, context=1024), Causal("causal")),
    ):
        out = folder / f"{name}-run"
        out.mkdir()
        run = Run(
            data="stream", fingerprint="0" * 64, data_fingerprint="0" * 64, model=shape, vocab=vocab, shards=(str(folder / "train"),), valid=(),
            train=settings(steps, 16, 128, 2e-3, max(1, steps // 20), objective=objective, save_every=steps), tokenizer=str(folder / "tokenizer"), start=None, out=str(out),
        )  # fmt: skip
        (out / "run.json").write_text(json.dumps(to_dict(run)))
        launch(out / "run.json", 1, out / "log", 600.0, lambda row: None, folder / "cache")
        (out / "model").rename(folder / name)


def tuned(folder: Path, kind: str, recipe: str, words: Sequence[str], quick: bool) -> dict[str, Any]:
    """Metrics of one `ingot finetune`, with how many parameters trained."""
    from tasks.corpus.manifest import Store

    store, base = folder / "store", str(DATA / SETS[recipe][0])
    start = json.dumps({"model": str(folder / kind), "revision": "", "tokens": []})
    command = [sys.executable, "-c", "from flows.cli import main; main()", "finetune", recipe, "start", f"start={start}", f"examples.base={base}", f"examples.paths={json.dumps([SETS[recipe][1]])}"]  # fmt: skip
    command += [*SPARE, f"finetune.micro_batch={32 if recipe == 'banking77' else 4}", *words, *(QUICK if quick else [])]
    known = set(Store(store).addresses("assess"))
    done = subprocess.run(command, cwd=REPO, env=os.environ | {"INGOT_STORE": str(store)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    print(done.stdout, flush=True)
    made = Store(store).need((set(Store(store).addresses("assess")) - known).pop())
    return made.info["metrics"] | Store(store).need(made.inputs["model"]).info["final"]


def main() -> None:
    from figures import Figure, arguments, conclude

    parser = arguments(__doc__)
    parser.add_argument("--only", choices=SETS, help="one set")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"needs the real sample data at {DATA}")
    figures = []
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as place:
        folder = Path(place)
        starts(folder, 8 if given.quick else 400)
        for title, kind, recipe, words in (run for run in RUNS if given.only in (None, run[2])):
            metrics = tuned(folder, kind, recipe, words, given.quick)
            trained = f"{metrics['trained_parameters']:,} of {metrics['parameters']:,} parameters trained"
            for measure in ("accuracy", "macro_f1", "exact_match", "answer_f1", "answer_loss"):
                if measure in metrics:
                    beside = [f"{who.partition('/')[2]} {value:.3f}" for who, value in metrics.items() if who.startswith(f"{measure}/")]
                    name = f"{title} ({kind}, {trained}): {measure}"
                    figures.append(Figure(name, f"{metrics[measure]:.3f} beside {', '.join(beside)}"))
    conclude(given, figures)


if __name__ == "__main__":
    main()
