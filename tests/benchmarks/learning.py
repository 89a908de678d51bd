"""What each objective teaches, by the one loop on a CPU: characters of Shakespeare, hidden tokens of held-out text, likeness of sentences.

    python tests/benchmarks/learning.py [--only shakespeare masked sentences words] [--plot FOLDER] [--quick] [--record]

shakespeare   tinyshakespeare by character in nanoGPT's CPU setting: its 4 layers of 4 heads, width 128, block 64, batch 12, 2,000 steps, learning rate 1e-3 to
              1e-4, warm-up 100, no dropout. Loss over the whole last tenth of the text, where nanoGPT's readme has 1.88 from 20 random batches of it
masked        BERT's masking on an encoder: tokens of English novels (one held out) and whole words of Chinese laws (each twentieth held out). Share of hidden tokens
              found, beside the share that the commonest one would find
sentences     STS-B, English and Chinese (a translation): Spearman correlation on the development set of cosines with people's scores, of the encoder untrained and
              after contrastive training on the training set: pairs scored 4 and more (labelled), or each sentence with itself (dropout)
words         what whole words cost: tokens/s of masking by token and by word, one core

Text: ../shared/data. Runs are launched as the pretrain stage launches them. With --plot a curve each.
"""

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import REPO, Figure, arguments, conclude

from flows import recipes
from model import tokenizer as tokens
from model.batches import NO_LOSS, Batches, Stream, held_out
from model.config import Causal, Contrastive, Masked, ModelConfig, Objective, Run, TrainConfig, gpt2, qwen3, to_dict
from model.evaluate import read_similarities
from model.noise import Masking
from model.shards import Shard, ShardWriter
from model.train import launch

DATA = REPO.parent / "shared" / "data"
PUBLISHED = 1.88
"""nanoGPT's loss on Shakespeare's characters in its setting for a CPU (its readme)."""
BERT = Masked("masked", 0.3, 0.15, 0.8, 0.1, whole_words=False)
ENCODER = replace(qwen3(width=128, layers=4, heads=4, kv_heads=4, ffn_width=352, context=128), kind="encoder")
SENTENCES = replace(qwen3(width=128, layers=2, heads=4, kv_heads=4, ffn_width=352, context=64), kind="encoder", dropout=0.1)
Rows = list[dict[str, Any]]


def main() -> None:
    parts = {"shakespeare": shakespeare, "masked": masked, "sentences": sentences, "words": words}
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(parts), default=list(parts))
    parser.add_argument("--plot", type=Path, help="folder for a curve of each run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingot-learning-") as name:
        conclude(given, [figure for part in given.only for figure in parts[part](Path(name) / part, given)])


def shakespeare(folder: Path, given: argparse.Namespace) -> list[Figure]:
    """nanoGPT's setting for a CPU."""
    text = (DATA / "text/tinyshakespeare/input.txt").read_text()
    words, cut = by_character(text), int(0.9 * len(text))
    shards(folder, words, [text[:cut]], [text[cut:]])
    wanted = settings(Causal("causal"), 2000, 12, 64, 1e-3, given, beta2=0.99, valid_batches=(len(text) - cut) // (12 * 64))
    found = []
    for shape, model in (
        ("GPT-2's shape without biases, as there", replace(gpt2(128, 4, 4, 512, 64, 0.0), bias=False, qkv_bias=False)),
        ("our default shape", qwen3(width=128, layers=4, heads=4, kv_heads=4, ffn_width=352, context=64)),
    ):
        name = f"Shakespeare by character, {shape}"
        loss = trained(name, folder, words, model, wanted, given)[-1]["valid_loss"]
        found.append(Figure(f"{name}: held-out loss", f"{loss:.3f}", f"< {PUBLISHED}", loss < PUBLISHED))
    return found


def masked(folder: Path, given: argparse.Namespace) -> list[Figure]:
    """Hidden tokens of English, hidden words of Chinese."""
    found = []
    for language, whole, (learnt, kept) in (("English", False, novels(given)), ("Chinese", True, laws(given))):
        words = tokens.train(learnt, 2048)
        shards(folder / language, words, learnt, kept)
        name = f"masked {'whole words' if whole else 'tokens'}, {language}"
        wanted = settings(replace(BERT, whole_words=whole), 400, 16, 64, 2e-3, given, valid_batches=8)
        checked = trained(name, folder / language, words, ENCODER, wanted, given)
        found.append(risen(name, checked, commonest(folder / language, words, wanted)))
    return found


def sentences(folder: Path, given: argparse.Namespace) -> list[Figure]:
    """STS-B before and after contrastive training."""
    found = []
    for language, code in (("English", "en"), ("Chinese", "zh")):
        train, dev = (read_similarities(DATA / f"eval/stsb/data/stsb-{code}-{part}.csv") for part in ("train", "dev"))
        train = train[:1500] if given.quick else train
        words = tokens.train([row[key] for row in train for key in ("text_a", "text_b")], 2048)
        alike = [row[key] for row in train if row["score"] >= 4 for key in ("text_a", "text_b")]
        every = sorted({row[key] for row in train for key in ("text_a", "text_b")})
        for pairs, texts in (("labelled", alike), ("dropout", every)):
            place = folder / language / pairs
            shards(place, words, texts[200:], texts[:200])
            objective = Contrastive("contrastive", pairs, 0.05, "mean")  # type: ignore[arg-type]
            wanted = settings(objective, 200, 64, 32, 5e-4, given, micro_batch=32)
            checked = trained(f"sentences, {pairs} pairs, {language}", place, words, SENTENCES, wanted, given)
            before, after = (likeness(model, words, dev) for model in (None, checked[-1]["model"]))
            value = f"{before:.3f} → {after:.3f}"
            found.append(Figure(f"STS-B {language}, {pairs} pairs: Spearman, untrained → trained", value, "rises", after > before))
    return found


def words(folder: Path, given: argparse.Namespace) -> list[Figure]:
    """Masking by token and by word."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    found = []
    for language, (learnt, kept) in (("English", novels(given)), ("Chinese", laws(given))):
        made = tokens.train(learnt, 2048)
        shards(folder / language, made, learnt, kept)
        source, speeds = Stream([Shard(folder / language / "train")], 128), []
        for whole in (False, True):
            noise = Masking(replace(BERT, whole_words=whole), made)
            batches = Batches(source, "f", 32, 1, noise, steps=1000)
            batches.targets(0)
            begun, steps = time.perf_counter(), 2 if given.quick else 60
            for step in range(1, 1 + steps):
                batches.targets(step)
            speeds.append(steps * 32 * 128 / (time.perf_counter() - begun))
        found.append(Figure(f"masking {language}, tokens/s: by token, by whole word", ", ".join(f"{speed:,.0f}" for speed in speeds)))
    return found


def settings(objective: Objective, steps: int, batch: int, length: int, lr: float, given: argparse.Namespace, **more: Any) -> TrainConfig:
    """The recipes' values for what is not named, held-out text ten times a run; a smoke run has few steps."""
    steps = 10 if given.quick else steps
    common: dict[str, Any] = {
        "objective": objective,
        "beta2": 0.98,
        "valid_every": steps // 10,
        "valid_batches": 1,
        "save_every": steps,
        "zero": 0,
        "device": "cpu",
    }
    common |= more | ({"valid_batches": 1} if given.quick else {})
    return recipes.train(steps, batch, length, lr, min(100, steps // 10), **common)


def trained(name: str, folder: Path, words: Any, model: ModelConfig, wanted: TrainConfig, given: argparse.Namespace) -> Rows:
    """Train on `train` of a folder and measure on its `valid`; rows of validation, the last with the folder of the model."""
    out = folder / name.replace(",", "").replace(" ", "-")
    out.mkdir()
    run = Run(
        data="stream", fingerprint="f" * 64, data_fingerprint="d" * 64, model=model, train=wanted, vocab=tokens.vocab_size(words),
        shards=(str(folder / "train"),), valid=(str(folder / "valid"),), tokenizer=str(folder / "tokenizer"), start=None, out=str(out),
    )  # fmt: skip
    (out / "run.json").write_text(json.dumps(to_dict(run)))
    rows: Rows = []
    begun = time.perf_counter()
    launch(out / "run.json", 1, out / "log", 600, rows.append, folder / "cache")
    checked = [row for row in rows if "valid_loss" in row]
    print(f"{name}: {time.perf_counter() - begun:.0f} s")
    for row in checked:
        print(
            "  "
            + ", ".join(f"{key.removeprefix('valid_')} {row[key]:.4g}" for key in ("step", "valid_loss", "valid_accuracy") if key in row)
        )
    if given.plot:
        plot(given.plot, name, rows, checked)
    checked[-1]["model"] = str(out / "model")
    return checked


def plot(folder: Path, name: str, rows: Rows, checked: Rows) -> None:
    """Losses, and accuracy on an axis of its own, by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    learnt = [row for row in rows if "loss" in row]
    left.plot([row["step"] for row in learnt], [row["loss"] for row in learnt], color="0.8", label="training loss")
    left.plot([row["step"] for row in checked], [row["valid_loss"] for row in checked], "o-", label="held-out loss")
    left.set(xlabel="step", ylabel="nats a target", title=name)
    right = left.twinx()
    right.plot([row["step"] for row in checked], [row["valid_accuracy"] for row in checked], "s--", color="C1", label="held-out accuracy")
    right.set(ylabel="accuracy")
    figure.legend(loc="outside lower center", ncols=3)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name.replace(',', '').replace(' ', '_')}.png", dpi=120)
    pyplot.close(figure)


def risen(name: str, checked: Rows, commonest: float) -> Figure:
    first, last = checked[0], checked[-1]
    value = f"{first['valid_accuracy']:.1%} → {last['valid_accuracy']:.1%} ({first['step']:,} → {last['step']:,} steps), commonest {commonest:.1%}"
    return Figure(f"{name}: held-out accuracy", value, "rises", last["valid_accuracy"] > max(first["valid_accuracy"], commonest))


def commonest(folder: Path, words: Any, wanted: TrainConfig) -> float:
    """Share of validation's targets that the commonest of them makes up."""
    assert isinstance(wanted.objective, Masked)
    source = Stream([Shard(folder / "valid")], wanted.length)
    batch = held_out(source, wanted.valid_batches * wanted.batch, "d" * 64, Masking(wanted.objective, words))
    targets = batch.targets[batch.targets != NO_LOSS]
    return float(np.bincount(targets).max() / len(targets))


def likeness(folder: str | None, words: Any, pairs: Sequence[Mapping[str, Any]]) -> float:
    """Spearman correlation of cosines with scores, of a model directory or of fresh weights."""
    from model import families
    from model.evaluate import similarity
    from model.transformer import Transformer

    if folder is None:
        model = Transformer(SENTENCES, tokens.vocab_size(words))
        model.init_weights(1)
    else:
        model = families.load(folder)
    return similarity(model, words, {"stsb": pairs}, 64)["similarity"]


def shards(folder: Path, words: Any, learnt: Iterable[str], kept: Iterable[str]) -> None:
    """Texts as documents of a training and a validation shard, and the tokenizer beside them."""
    folder.mkdir(parents=True)
    tokens.save(words, folder / "tokenizer")
    for name, texts in (("train", learnt), ("valid", kept)):
        with ShardWriter(folder / name, np.uint16) as writer:
            for ids in tokens.encode_documents(words, list(texts)):
                writer.add(ids)


def by_character(text: str) -> Any:
    """A tokenizer whose tokens are the characters of a text."""
    from tokenizers import AddedToken, Tokenizer, models

    names = [*tokens.SPECIALS, *sorted(set(text))]
    made = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    made.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in tokens.SPECIALS])
    made.encode_special_tokens = True
    return made


def novels(given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """English novels: to learn, and one to measure on."""
    paths = sorted((DATA / "text/100-english-novels").glob("*.txt.gz"))[: 3 if given.quick else 13]
    texts = [gzip.decompress(path.read_bytes()).decode("utf-8", "replace") for path in paths]
    return texts[:-1], texts[-1:]


def laws(given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Chinese laws: to learn, and each twentieth to measure on."""
    with gzip.open(DATA / "text/zh-laws.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][: 200 if given.quick else None]
    return [text for number, text in enumerate(texts) if number % 20], texts[::20]


if __name__ == "__main__":
    main()
