"""Decoding one sequence on one CPU core: onnxruntime in fp32 and int8, our torch with its cache, transformers.generate.

    python tests/benchmarks/decode_speed.py [--rounds 5] [--tokens 96] [--quick] [--record]

Two shapes of random weights, recipe demo's and recipe small's (about 30M parameters). A prompt of 64 tokens is continued greedily; a figure is new
tokens a second, the prompt's time included. The four take turns within each round; ratios are medians over rounds of the same round's. All but int8
must write the same tokens.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch starts its threads

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, arguments, conclude, table

from model.config import ModelConfig

PROMPT = 64
GOAL = 2.0


class Ids:
    """A tokenizer that spells nothing: every row of the vocabulary is a token."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def get_vocab_size(self) -> int:
        return self.vocab

    def decode(self, ids: list[int]) -> str:
        return ""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

    from flows import recipes
    from model.config import qwen3
    from model.tokenizer import vocab_size

    rounds, tokens = (2, 8) if given.quick else (given.rounds, given.tokens)
    demo, small = recipes.demo(), recipes.small()
    shapes = {"demo": (demo.model, demo.tokenizer.vocab), "small": (small.model, small.tokenizer.vocab)}
    if given.quick:
        shapes = {"tiny": (qwen3(64, 2, 4, 2, 96, 128), 512)}
    figures = []
    for name, (shape, words) in shapes.items():
        rates = measured(shape, vocab_size(Ids(words)), rounds, tokens)  # type: ignore[arg-type]
        rows = [(who, f"{statistics.median(found):,.0f}", f"{min(found):,.0f}", f"{max(found):,.0f}") for who, found in rates.items()]
        table((f"{name}: engine", "tokens/s", "least", "most"), rows)
        print()
        figures += [Figure(f"{name}: decoding, tokens a second", ", ".join(f"{who} {rate}" for who, rate, *_ in rows))]
        for ours in ("onnx", "onnx-int8"):
            for peer in ("torch", "transformers"):
                ratio = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
                middle = statistics.median(ratio)
                value = f"{middle:.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
                figures.append(Figure(f"{name}: decoding, {ours} : {peer}", value, f"≥ {GOAL:g}", middle >= GOAL))
    conclude(given, figures)


def measured(shape: ModelConfig, vocab: int, rounds: int, tokens: int) -> dict[str, list[float]]:
    """New tokens a second of every round, by engine; the first turn of each is not counted."""
    import torch
    from transformers import AutoModelForCausalLM, logging

    from deploy import export_onnx, onnx_model
    from model import families, generate
    from model.transformer import Transformer

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    words = Ids(vocab)
    prompt = np.random.default_rng(0).integers(5, vocab, PROMPT).tolist()
    model = Transformer(shape, vocab)
    model.init_weights(0)
    with tempfile.TemporaryDirectory(prefix="ingot-decode-") as name:
        folder = Path(name)
        families.save(model.eval(), shape, vocab, folder / "hf")
        engines: dict[str, Callable[[], list[int]]] = {
            "torch": lambda: generate.generate(model, words, [prompt], tokens, stop_ids=())[0].ids  # type: ignore[arg-type]
        }
        for kind, precision in (("onnx", "fp32"), ("onnx-int8", "int8")):
            export_onnx.export(folder / "hf", folder / kind, precision)  # type: ignore[arg-type]
            opened = onnx_model.load(folder / kind, threads=1)
            engines[kind] = lambda opened=opened: onnx_model.generate(opened, words, [prompt], tokens, stop_ids=())[0].ids  # type: ignore[misc, arg-type]
        theirs = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
        given = torch.tensor([prompt])
        settings = {"attention_mask": torch.ones_like(given), "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        theirs.generation_config.eos_token_id = None
        engines["transformers"] = lambda: theirs.generate(given, **settings)[0, PROMPT:].tolist()
        said = {who: engine() for who, engine in engines.items()}
        for who in ("onnx", "transformers"):
            assert said[who] == said["torch"], f"{who} writes other tokens than torch"
        rates: dict[str, list[float]] = {who: [] for who in engines}
        for _ in range(rounds):
            for who, engine in engines.items():
                begun = time.perf_counter()
                engine()
                rates[who].append(tokens / (time.perf_counter() - begun))
    return rates


if __name__ == "__main__":
    main()
