"""Text to token ids: ours against `tokenizers` and tiktoken with the same vocabulary, on the same real text, one core.

    python tests/benchmarks/encode_speed.py [--megabytes 12] [--stage 4000] [--rounds 3] [--quick] [--record]

A vocabulary of 32,000 is learnt from one part of the text (English novels and web pages, Chinese laws and web pages, Wikipedia in seven languages);
the rest is encoded. Every document is seen once by each, so that nothing remembered from it helps; each first reads a part that is not measured, as
a corpus would have warmed it. Blocks of 1,000 documents in turn: ours from Arrow's buffers to int32 with the end of every document; `tokenizers`'
encode_batch_fast from strings; tiktoken's encode_ordinary_batch with our ranks (its one regular expression cannot say our three cuts exactly: documents
with other ids are counted). CPU seconds; a figure is the ratio of the sums. Limits: gigatoken alone, from bytes to its own array; and reading the
text and writing the ids, which is a copy of memory. Then the encode stage, parquet to shards, through gigatoken and through `tokenizers`.
"""

import argparse
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from figures import REPO, Figure, arguments, conclude, table

sys.path.insert(0, str(REPO / "tests"))
DATA = REPO.parent / "shared" / "data"
KINDS = {
    "English": ("novel", "article", "labelled"), "Chinese": ("law",), "web pages": ("page, whole", "crawl, whole", "news"), "Wikipedia": ("wikipedia",),
}  # fmt: skip
SIZE, BLOCK, GOAL = 5_000, 1_000, 25
VOCABULARY = 32_000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=float, default=12, help="text of a kind that is encoded")
    parser.add_argument("--stage", type=int, default=4_000, help="documents of the stage's run")
    parser.add_argument("--rounds", type=int, default=3, help="of the stage")
    given = parser.parse_args()
    if given.quick:
        given.megabytes, given.stage, given.rounds = 0.02, 60, 1
    os.environ |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    pa.set_cpu_count(1)
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    from model import tokenizer as tk

    texts = documents(given.megabytes)
    learnt = [text for some in texts.values() for text in some[: len(some) // 4]]
    tokenizer = tk.train(learnt, 1_000 if given.quick else VOCABULARY)
    figures = []
    lines = []
    for kind, some in texts.items():
        seconds, differ, size = race(tokenizer, some[len(some) // 4 :])
        ratio = {name: spent / seconds["ours"] for name, spent in seconds.items()}
        lines += [(kind, name, f"{size / spent:,.1f}", f"{ratio[name]:,.2f}", differ.get(name, "")) for name, spent in seconds.items()]
        figures += [
            Figure(f"encoding {kind}: ours", f"{size / seconds['ours']:,.0f} MB/s"),
            Figure(f"encoding {kind}: ours : tokenizers", f"{ratio['tokenizers']:,.1f}", f"≥ {GOAL}", ratio["tokenizers"] >= GOAL),
        ]
        figures += [Figure(f"encoding {kind}: ours : tiktoken", f"{ratio['tiktoken']:,.1f}")] if "tiktoken" in ratio else []
        figures += [
            Figure(f"encoding {kind}: share of the limit, gigatoken alone", f"{ratio['gigatoken alone']:.2f}"),
            Figure(f"encoding {kind}: documents with other ids than tokenizers'", differ["ours"], "0", differ["ours"].startswith("0 ")),
        ]
    table(("text", "encoder", "MB/s", "CPU seconds, it : ours", "other ids than tokenizers"), lines)
    return figures + stage(given, tokenizer, [text for some in texts.values() for text in some])


def documents(megabytes: float) -> dict[str, list[str]]:
    """Texts of at most SIZE bytes by kind, no two alike, in a random order; twice `megabytes` of each where there are as many."""
    found: dict[str, list[str]] = defaultdict(list)
    if DATA.is_dir():
        from real_texts import real_texts

        for kind, text in real_texts(DATA):
            name = next((name for name, kinds in KINDS.items() if kind in kinds), None)
            if name:
                step = SIZE // 3 if name == "Chinese" else SIZE
                found[name] += [text[at : at + step] for at in range(0, len(text), step)]
    else:
        print("without ../shared/data: random words")
        chance = random.Random(0)
        for name, letters in (("English", "abcdefghijklmnopqrstuvwxyz"), ("Chinese", [chr(point) for point in range(0x4E00, 0x5600)])):
            words = ["".join(chance.choices(letters, k=chance.randrange(2, 9))) for _ in range(20_000)]
            found[name] = [("" if name == "Chinese" else " ").join(chance.choices(words, k=500)) for _ in range(2_000)]
    for name, some in found.items():
        random.Random(1).shuffle(some)
        sizes = np.cumsum([len(text.encode()) for text in some])
        found[name] = some[: max(8, int(np.searchsorted(sizes, 2e6 * megabytes)))]
    return dict(found)


def race(tokenizer: Any, texts: list[str]) -> tuple[dict[str, float], dict[str, str], float]:
    """CPU seconds of each encoder for the last two thirds of the texts, documents that get other ids than from `tokenizers`, and megabytes."""
    from model import tokenizer as tk
    from tasks.corpus.encode import _buffers

    encoder = tk.Encoder(tokenizer)
    assert encoder.engine == "gigatoken", encoder.why
    alone = tk._gigatoken(encoder._json)
    works: dict[str, Callable[[Any], Any]] = {
        "ours": lambda some: encoder(*some), "tokenizers": lambda some: tokenizer.encode_batch_fast(some, add_special_tokens=False),
        "gigatoken alone": lambda some: alone.encode_batch(some, parallel=False), "a copy of memory": lambda some: (some[0].copy(), some[1].copy()),
    }  # fmt: skip
    if importlib.util.find_spec("tiktoken"):
        works["tiktoken"] = tiktoken(tokenizer)
    else:
        print("not installed, left out: tiktoken")
    seconds: dict[str, float] = defaultdict(float)
    differ, count = dict.fromkeys(("ours", "tiktoken"), 0), 0
    size, warm = 0, len(texts) // 3
    for start in (0, *range(warm, len(texts), BLOCK)):
        some = texts[start : warm if not start else start + BLOCK]
        buffers = _buffers(pa.array(some))
        given: dict[str, Any] = dict.fromkeys(works, some) | {"ours": buffers, "gigatoken alone": [text.encode() for text in some]}
        given["a copy of memory"] = buffers[0], np.zeros(buffers[1][-1] // 4, np.int32)
        made = {}
        for name, work in works.items():
            begun = time.process_time()
            made[name] = work(given[name])
            seconds[name] += time.process_time() - begun if start else 0.0
        size += len(buffers[0]) if start else 0
        true = [[*found.ids, tk.END_OF_TEXT] for found in made["tokenizers"]]
        ids, ends = made["ours"]
        differ["ours"] += sum(one.tolist() != other for one, other in zip(np.split(ids, ends[:-1]), true, strict=True))
        if "tiktoken" in made:
            differ["tiktoken"] += sum([*one, tk.END_OF_TEXT] != other for one, other in zip(made["tiktoken"], true, strict=True))
        count += len(some)
    return seconds, {name: f"{number:,} of {count:,}" for name, number in differ.items()}, size / 1e6


def tiktoken(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """tiktoken with our ranks: bytes of a token to its id."""
    from tiktoken import Encoding
    from tokenizers.pre_tokenizers import ByteLevel

    from model import tokenizer as tk

    alphabet = sorted(ByteLevel.alphabet())
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(value): value for value in plain}
    byte |= {chr(256 + place): value for place, value in enumerate(value for value in range(256) if value not in plain)}
    assert sorted(byte) == alphabet
    ranks = {bytes(byte[char] for char in token): id for token, id in tokenizer.get_vocab().items() if token not in tk.SPECIALS}
    han = "一-龥\u3040-ゟ゠-ヿ"
    pattern = "|".join(
        (tk.CUTS[0], tk.CUTS[1], tk.CUTS[2].replace(r"\p{S}]?[\p{L}\p{M}]+", rf"\p{{S}}\p{{N}}]?(?:(?![{han}])[\p{{L}}\p{{M}}])+"))
    )
    made = Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={name: id for id, name in enumerate(tk.SPECIALS)})
    return lambda texts: made.encode_ordinary_batch(texts, num_threads=1)


def stage(given: argparse.Namespace, tokenizer: Any, texts: list[str]) -> list[Figure]:
    """The encode stage over the same documents, through gigatoken and without it."""
    from corpora import document, output_of

    from model import tokenizer as tk
    from tasks.corpus import encode
    from tasks.corpus.manifest import Result, Stage, Store, run_stage

    random.Random(2).shuffle(texts)
    texts = texts[: given.stage]
    size = sum(len(text.encode()) for text in texts) / 1e6
    config = encode.EncodeConfig(1 << 24, 0.01, 1, mixture=())
    seconds: dict[str, list[float]] = {"gigatoken": [], "tokenizers": []}

    def saved(work: Any) -> Result:
        tk.save(tokenizer, work.dir / "tokenizer")
        files = [(f"tokenizer/{path.name}", None) for path in sorted((work.dir / "tokenizer").iterdir())]
        return Result(files, 1, 1, {}, {"tokenizer": tk.fingerprint(tokenizer)})

    with tempfile.TemporaryDirectory(prefix="ingot-encode-") as folder:
        store = Store(Path(folder))
        rows = [document(text, place, language="en") for place, text in enumerate(texts)]
        inputs = {
            "corpus-000": output_of(store, "decontaminate", [rows]),
            "tokenizer": run_stage(store, Stage("tokenizer", 1), "speed", {}, {}, saved),
        }
        loaded = sys.modules["gigatoken.gigatoken_rs"]
        for number in range(-1, given.rounds):
            shards = []
            for engine, some in seconds.items():
                sys.modules["gigatoken.gigatoken_rs"] = loaded if engine == "gigatoken" else None  # type: ignore[assignment]
                begun = time.process_time()
                made = encode.run(store, f"speed-{engine}", config, inputs, rebuild=True)
                some += [time.process_time() - begun] if number >= 0 else []
                assert made.info["encoder"] == engine, made.info
                shards.append([file.sha256 for file in made.files])
            sys.modules["gigatoken.gigatoken_rs"] = loaded
            assert shards[0] == shards[1], "the shards differ"
    speed = {engine: len(texts) / statistics.median(some) for engine, some in seconds.items()}
    print(f"\nthe stage: {len(texts):,} documents, {size:.1f} MB")
    table(
        ("through", "documents/s", "MB/s"), [(engine, f"{each:,.0f}", f"{each * size / len(texts):,.1f}") for engine, each in speed.items()]
    )
    return [
        Figure(
            "encode stage, parquet to shards", f"{speed['gigatoken']:,.0f} documents/s, {speed['gigatoken'] * size / len(texts):,.1f} MB/s"
        ),
        Figure("encode stage, through gigatoken : through tokenizers", f"{speed['gigatoken'] / speed['tokenizers']:,.1f}"),
    ]


if __name__ == "__main__":
    main()
